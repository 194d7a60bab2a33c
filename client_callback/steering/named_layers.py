"""The layers of a model by their names, as commands name them: whole, or with `*` and `?`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras

from client_callback.steering.training import Refused

_MOST_NAMED = 8
"""Names given as possible in an answer."""


def named_layers(model: Any) -> dict[str, Any]:
    """Every layer by its name; one inside a model whose name is not its own alone, as `outer/inner`."""
    found: dict[str, Any] = {}

    def walk(layers: list[Any], path: str) -> None:
        for layer in layers:
            name = layer.name if layer.name not in found else f"{path}{layer.name}"
            found[name] = layer
            walk(_inner_layers(layer), f"{name}/")

    walk(_inner_layers(model), "")
    return found


def chosen_layers(model: Any, patterns: Iterable[str]) -> dict[str, Any]:
    """The layers that are named, in the model's order.

    Raises:
        Refused: a name or pattern fits no layer; the text says which names are possible.
    """
    known = named_layers(model)
    chosen: set[str] = set()
    for pattern in patterns:
        literal = pattern.replace("[", "[[]")
        fitting = {pattern} if pattern in known else {name for name in known if fnmatchcase(name, literal)}
        if not fitting:
            raise Refused(f"no layer {pattern!r}; possible: {likely(pattern, list(known))}")
        chosen |= fitting
    return {name: layer for name, layer in known.items() if name in chosen}


def likely(received: str, possible: Sequence[str]) -> str:
    """The possible names for an answer: those like the one received first, and not too many."""
    close = difflib.get_close_matches(received, possible, n=_MOST_NAMED, cutoff=0.5)
    ordered = [*close, *(name for name in possible if name not in close)]
    more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
    return (", ".join(ordered[:_MOST_NAMED]) or "none") + more


def brief(names: Iterable[str]) -> str:
    """Names for an answer, not too many."""
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    return ", ".join(listed[:_MOST_NAMED]) + more


def inside(layer: Any) -> list[Any]:
    """The layer and all layers in it."""
    return [one for one in layer._flatten_layers() if isinstance(one, keras.layers.Layer)]


def _inner_layers(layer: Any) -> list[Any]:
    """Directly inside; metrics are kept among them and train nothing."""
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return [one for one in inner if isinstance(one, keras.layers.Layer)]
