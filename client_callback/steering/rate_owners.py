"""Who else sets the learning rate in this `fit`: Keras' callbacks, a rule of ours, and the user's own by their code.

A callback of the user's counts as an owner when one of its functions assigns something called a learning rate;
the code is read, never run. Called by the handlers (for the reply) and by `describe`.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import keras

from client_callback.steering.plateau import NAME, plateau_rule

_RATE_NAMES = {"learning_rate", "_learning_rate", "lr"}

_KNOWN = {
    "ReduceLROnPlateau": "at the end of an epoch without improvement",
    "LearningRateScheduler": "when the next epoch begins",
}

_WHEN = {
    "on_train_batch_begin": "before the next batch",
    "on_batch_begin": "before the next batch",
    "on_train_batch_end": "after the next batch",
    "on_batch_end": "after the next batch",
    "on_epoch_begin": "when the next epoch begins",
    "on_epoch_end": "at the end of this epoch",
    "on_test_end": "after the next validation",
}
"""Keras' hooks, the soonest first."""

_OVER = {"on_train_begin", "__init__", "on_train_end"}
"""What runs once, before or after anything that could be steered."""


@dataclass(frozen=True)
class RateOwner:
    """What sets the rate too."""

    name: str
    when: str
    ours: bool = False
    """Whether a command put it in. What it sets has effect whatever decides."""

    def __str__(self) -> str:
        return f"{self.name} may set the rate again {self.when}"


def rate_owners(callbacks: Iterable[Any], model: Any | None = None) -> tuple[RateOwner, ...]:
    """What will overwrite a rate set by hand: callbacks in the order of `fit`, then a rule that a command put in."""
    found = [owner for callback in callbacks if (owner := _owner(callback)) is not None]
    if model is not None and plateau_rule(model) is not None:
        found.append(RateOwner(NAME, _KNOWN["ReduceLROnPlateau"], ours=True))
    return tuple(found)


def _owner(callback: Any) -> RateOwner | None:
    name = type(callback).__name__
    for known, when in _KNOWN.items():
        if isinstance(callback, getattr(keras.callbacks, known)):
            return RateOwner(name, when)
    setters = [hook for hook, code in _functions(callback) if hook not in _OVER and _sets_rate(code)]
    if not setters:
        return None
    hooks = [hook for hook in _WHEN if hook in setters]
    return RateOwner(name, _WHEN[hooks[0]] if hooks else "at a time of its own")


def _functions(callback: Any) -> Iterator[tuple[str, CodeType]]:
    """(name, code) of the user's functions: methods, and functions kept on the instance (LambdaCallback)."""
    classes: Sequence[type] = type(callback).__mro__
    own = [cls for cls in classes if not cls.__module__.startswith(("keras.", "client_callback."))]
    for namespace in (*(vars(cls) for cls in own), vars(callback)):
        for name, value in namespace.items():
            function = value.__func__ if isinstance(value, MethodType) else value
            if isinstance(function, FunctionType) and not function.__module__.startswith("keras."):
                yield name, function.__code__


def _sets_rate(code: CodeType) -> bool:
    if any(i.opname == "STORE_ATTR" and i.argval in _RATE_NAMES for i in dis.get_instructions(code)):
        return True
    names, constants = set(code.co_names), code.co_consts
    if names & _RATE_NAMES and names & {"assign", "assign_add", "assign_sub", "set_value"}:
        return True
    if "setattr" in names and any(isinstance(c, str) and c in _RATE_NAMES for c in constants):
        return True
    return any(isinstance(constant, CodeType) and _sets_rate(constant) for constant in constants)
