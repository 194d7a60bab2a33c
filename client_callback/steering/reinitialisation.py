"""Fresh values for weights in the middle of a training: whole layers, or some units of a layer.

The values come from the layer's own initializers, by making the layer once more from its configuration with new
seeds (one of Keras' initializers gives the same values each time it is asked). What the optimizer keeps of these
weights begins anew with them.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client_callback.steering.backends import current_backend
from client_callback.steering.named_layers import inside
from client_callback.steering.trained_variables import Kept, kept_of
from client_callback.steering.training import Refused

_Place = tuple[Any, ...]
"""An index into a weight: which of its entries."""

WHOLE: _Place = (Ellipsis,)


@dataclass(frozen=True, eq=False)
class Fresh:
    """New values for entries of one weight."""

    variable: Any
    value: npt.NDArray[Any]
    """Of the whole weight, as `Backend.host` would copy it from one replica."""
    place: _Place = WHOLE


class Reinitialisation:
    """New values for weights, and a new beginning for what the optimizer keeps of them.

    To be made and used inside the backend's `state`.

    Raises:
        Refused: it cannot be told what the optimizer would begin with.
    """

    def __init__(self, model: Any, fresh: list[Fresh]) -> None:
        self._fresh = fresh
        variables = list({id(one.variable): one.variable for one in fresh}.values())
        self._kept = kept_of(model, variables) if model.optimizer.built else []

    @property
    def untouched(self) -> list[str]:
        """Attributes of the optimizer that hold sums over weights of which only some entries are new."""
        parts = {id(one.variable) for one in self._fresh if one.place is not WHOLE}
        return sorted(
            {kept.name.strip("_") for kept in self._kept if id(kept.variable) in parts and not _alike(kept)}
        )

    def run(self) -> None:
        """Assigns all of it and reads it back."""
        for one in self._fresh:
            _put(one.variable, one.value, one.place)
        for one in self._fresh:
            for kept in self._kept:
                if kept.variable is one.variable and (one.place is WHOLE or _alike(kept)):
                    source = one.variable if kept.follows else kept.initial
                    _put(kept.mine, _of_one_replica(source), one.place)


def fresh_layer(layer: Any, step: int) -> list[Fresh]:
    """New values for all weights of a layer and of those inside it, its moving statistics among them.

    Args:
        layer: built.
        step: another one gives other values.

    Raises:
        Refused: the layer cannot be made once more.
    """
    if any(getattr(one, "lora_enabled", False) for one in inside(layer)):
        raise Refused(
            f"{layer.name} is held by LoRA, whose weights have a meaning only beside those they adapt"
        )
    if any(getattr(one, "quantization_mode", None) for one in inside(layer)):
        raise Refused(
            f"{layer.name} is quantized, so its weights come from others and not from an initializer"
        )
    weights = layer.weights
    clone = _made_again(layer, _seed(layer, step))
    shapes = [tuple(v.shape) for v in clone.weights]
    if shapes != [tuple(v.shape) for v in weights]:
        raise Refused(f"{layer.name} made once more from its configuration has other weights")
    return [
        Fresh(variable, _of_one_replica(new)) for variable, new in zip(weights, clone.weights, strict=True)
    ]


def _made_again(layer: Any, seed: int) -> Any:
    seeds = np.random.default_rng(seed)
    with _generators_kept():
        try:
            clone = type(layer).from_config(_reseeded(layer.get_config(), seeds))
            if not clone.built:
                clone.build_from_config(layer.get_build_config())
        except Exception as error:
            raise Refused(
                f"{layer.name} cannot be made once more from its configuration ({type(error).__name__}: {error})"
            ) from error
    return clone


def _reseeded(config: Any, seeds: np.random.Generator) -> Any:
    """A copy in which whatever has a seed has another one."""
    if isinstance(config, Mapping):
        return {
            key: int(seeds.integers(1, 1 << 31)) if key == "seed" else _reseeded(value, seeds)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_reseeded(one, seeds) for one in config)
    return config


def _seed(layer: Any, step: int) -> int:
    """The same for the same command in the same training, so that this can be repeated."""
    found = zlib.crc32(f"{layer.path} {step}".encode())
    for variable in layer.weights:
        found = zlib.crc32(current_backend().host(variable).tobytes(), found)
    return found


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Making a layer may ask the host's random generators, on which the training's data may depend."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _alike(kept: Kept) -> bool:
    """Whether the optimizer keeps a number for each entry of the weight, and not of its rows and columns."""
    return tuple(kept.mine.shape) == tuple(kept.variable.shape)


def _put(variable: Any, value: npt.NDArray[Any], place: _Place) -> None:
    """Writes some entries, the same on each replica."""
    backend = current_backend()
    present = backend.host(variable)
    wanted = np.array(present)
    several = present.ndim > len(variable.shape)
    wanted[(slice(None), *place) if several else place] = value[place]
    backend.set_from_host(variable, wanted)
    if not np.array_equal(backend.host(variable), wanted, equal_nan=_is_float(wanted)):
        raise RuntimeError(f"{variable.path} was set and reads otherwise")


def _is_float(value: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(value.dtype, np.floating))


def _of_one_replica(variable: Any) -> npt.NDArray[Any]:
    value = current_backend().host(variable)
    first: npt.NDArray[Any] = value[0] if value.ndim > len(variable.shape) else value
    return first


def own_weights(layer: Any) -> list[Any]:
    """Weights that gradients may train, of the layer and those inside it, whether they do now or not."""
    return [v for one in inside(layer) for v in one._trainable_variables]
