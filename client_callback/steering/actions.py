"""Commands that the script defined itself: `MonitorCallback(actions={"render": function})`.

The function is called on the training's thread between two batches, with the command's further words as text and,
where it has a parameter of that name, the model as `model`. What it returns is in the answer: a text, a number, or a
dict of these. What it changes of the model can be undone like any other change; when it raises, all is put back and
training goes on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from client_callback.steering.backends import current_backend
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine, Scalar

Action = Callable[..., Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_LONGEST_TEXT = 4_000


def checked_actions(actions: object) -> dict[str, Action]:
    """The argument `actions`: names of commands → functions.

    Raises:
        ValueError: a name that cannot be a command's, or no function.
    """
    if actions is None:
        return {}
    if not isinstance(actions, Mapping):
        raise ValueError(f"actions: received {actions!r}; possible is a dict of names and functions")
    for name, function in actions.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"actions: {name!r} is no name; possible are letters, digits, _ and -, such as 'render'"
            )
        if name.lower() in commands.COMMANDS:
            raise ValueError(f"actions: {name!r} is a command already; choose another name")
        if not callable(function):
            raise ValueError(f"actions: {name!r} is to be a function, received {function!r}")
    return dict(actions)


class UserActions:
    """The actions of one run."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self._actions = actions

    def handlings(self) -> Handlings:
        """That of all actions."""
        return {
            commands.UserAction: Handling(
                carry_out=self._call,
                plan=self._plan,
                subjects=frozenset({"rate", "optimizer", "layers", "weights", "loss"}),
                may_change_nothing=True,
            )
        }

    def _call(self, training: Training, instruction: commands.UserAction, time: float) -> Outcome:
        model = training.model
        arguments, named = self._arguments(instruction, model)
        state = nullcontext() if model is None else current_backend().state(model)
        with state:
            returned = self._actions[instruction.name](*arguments, **named)
        return Outcome(after=_told(instruction.name, returned), reason=_not_told(returned))

    def _plan(self, training: Training, instruction: commands.UserAction) -> list[PlanLine]:
        self._arguments(instruction, training.model)
        words = " ".join(instruction.arguments)
        return [
            PlanLine(
                topic="does", text=f"calls this script's own {instruction.name}({words}); training waits"
            )
        ]

    def _arguments(self, instruction: commands.UserAction, model: Any) -> tuple[list[Any], dict[str, Any]]:
        """What to call the function with. Raises Refused when it does not take so many words."""
        words = instruction.arguments
        try:
            signature = inspect.signature(self._actions[instruction.name])
        except (ValueError, TypeError):  # of some functions written in C nothing is known
            return list(words), {}
        parameters = list(signature.parameters.values())
        others = [one for one in parameters if one.name != "model" or one.kind in _MANY]
        try:
            signature.replace(parameters=others).bind(*words)
        except TypeError as error:
            shape = signature.replace(parameters=others, return_annotation=inspect.Signature.empty)
            raise Refused(
                f"{instruction.name} takes {shape} of words, received {len(words)}: {error}"
            ) from error
        if len(others) == len(parameters):
            return list(words), {}
        place = next(place for place, one in enumerate(parameters) if one.name == "model")
        if parameters[place].kind is inspect.Parameter.KEYWORD_ONLY or place > len(words):
            return list(words), {"model": model}
        return [*words[:place], model, *words[place:]], {}


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _told(name: str, returned: Any) -> dict[str, Scalar]:
    """What an answer can hold of a returned value."""
    found = returned if isinstance(returned, Mapping) else {name: returned}
    told = {str(key)[:1_000]: _scalar(value) for key, value in found.items()}
    return {key: value for key, value in told.items() if value is not None}


def _not_told(returned: Any) -> str:
    found = returned if isinstance(returned, Mapping) else {"": returned}
    left = sorted(
        {type(value).__name__ for value in found.values() if value is not None and _scalar(value) is None}
    )
    return f"returned {', '.join(left)}, which is no text and no number" if left else ""


def _scalar(value: Any) -> Scalar:
    """The value as an answer takes it. `None`: it is no single text or number."""
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    if isinstance(value, int):
        return str(value)[:_LONGEST_TEXT]
    try:
        array = np.asarray(value)
        number = array.item() if array.size == 1 and array.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if number is None or isinstance(number, bool | float) else _scalar(number)
