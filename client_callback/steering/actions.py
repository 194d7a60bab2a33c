"""Commands that the script defined itself: `MonitorCallback(actions={"render": function})`.

The function is called on the training's thread between two batches, with the command's further words as text and,
where it has a parameter of that name, the model as `model`. What it returns is in the answer: a text, a number, or a
dict of these. What it changes of the model takes effect with the next step and can be undone like any other change;
when it raises, all is put back and training goes on. `compile` is refused: it would replace the loss and the metrics
in the middle of an epoch.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from client_callback.instrument.hooks import InstanceHooks
from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.handlers.shared import announce_optimizer
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.rate_control import control_of, install_controls, rated_optimizers
from client_callback.steering.settings import Settings, compile_arguments, settings_of
from client_callback.steering.trained_variables import follow, unbuilt_like
from client_callback.steering.training import Outcome, Refused, Training, retrace
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
        call = functools.partial(self._actions[instruction.name], *arguments, **named)
        if model is None:
            returned, note = call(), ""
        else:
            with current_backend().state(model):
                returned, note = _in_effect(training, instruction.name, call, time)
        reason = "; ".join(part for part in (note, _not_told(returned)) if part)
        return Outcome(after=_told(instruction.name, returned), reason=reason)

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


# ── What it changes of the model ────────────────────────────────────────────────────────────────────


def _in_effect(training: Training, name: str, call: Callable[[], Any], time: float) -> tuple[Any, str]:
    """What the function returns, and what is to be said; the next step is made with what it changed.

    Inside the backend's `state`.
    """
    model: Any = training.model
    made_before = vars(model).get("train_function")
    if made_before is None:  # a loop of one's own, which holds no step that would have to be traced anew
        return call(), ""
    optimizer, traced = getattr(model, "optimizer", None), _traced(model)
    trained = bool(model.trainable_variables)
    with _train_function_kept(model), _optimizer_known(model, optimizer), _not_compiled_anew(model):
        with _flags_in_layers(model), current_backend().scope(model):
            returned = call()
        if trained and not model.trainable_variables:
            raise Refused("no weights would be left to train; `pause` and `stop` hold and end the training")
    if vars(model).get("train_function") is made_before and _traced(model) == traced:
        return returned, ""
    retrace(training, lambda: _take_up(model, optimizer), time, name)
    if model.optimizer is not optimizer:
        announce_optimizer(training, time)
    return returned, "the train step is traced anew with what it changed"


def _traced(model: Any) -> Settings:
    """Readings of what the compiled step holds."""
    return {name: setting.read() for name, setting in settings_of(model).items() if setting.traced}


def _take_up(model: Any, before: Any) -> None:
    """The optimizer, maybe another than before, updates what is trainable now; raises what its update would raise."""
    backend, optimizer = current_backend(), current_optimizer(model)
    if optimizer is not None and optimizer is not before:
        arguments = compile_arguments(model)
        if "optimizer" in arguments:
            arguments["optimizer"] = optimizer
        install_controls(model, optimizer)
        if not optimizer.built and model.built:
            with backend.scope(model):
                optimizer.build(model.trainable_variables)
    if optimizer is not None:
        follow(model)
    backend.forget_trace(model)
    backend.forget_evaluation(model)
    if optimizer is not None and optimizer.built:
        backend.rehearse(model, optimizer, lambda: unbuilt_like(optimizer))


@contextmanager
def _train_function_kept(model: Any) -> Iterator[None]:
    """After an error the training goes on with the step it had, which `fit` would not make again."""
    before = model.train_function
    try:
        yield
    except BaseException:
        model.train_function = before
        raise


@contextmanager
def _optimizer_known(model: Any, before: Any) -> Iterator[None]:
    """Another optimizer may be assigned inside, but nothing else; what decided the old one's rate is off it then."""
    try:
        yield
    finally:
        assigned = getattr(model, "optimizer", None)
        known = assigned is before or current_optimizer(model) is not None
        if not known:
            model.optimizer = before
        elif assigned is not before and before is not None:
            for rated in rated_optimizers(before):
                control = control_of(rated)
                if control is not None:
                    control.detach()
    if not known:
        raise Refused(f"model.optimizer was set to {assigned!r}; possible is a keras.optimizers.Optimizer")


@contextmanager
def _flags_in_layers(model: Any) -> Iterator[None]:
    """`model.trainable = False` inside freezes each layer: settings hold their flags, and not the model's own."""
    before = model._trainable
    try:
        yield
    finally:
        model._trainable = model._trainable or before


@contextmanager
def _not_compiled_anew(model: Any) -> Iterator[None]:
    """Inside, `model.compile` raises Refused."""
    hooks = InstanceHooks()
    hooks.wrap(model, "compile", lambda _: _refuse_compile)
    try:
        yield
    finally:
        hooks.remove()


def _refuse_compile(*_: Any, **__: Any) -> NoReturn:
    raise Refused(
        "compile replaces the loss and the metrics, which a fit goes on using; possible in an action: "
        "assign model.optimizer, set layer.trainable and layers' arguments, which take effect without compile"
    )


# ── What it is called with, and what is told of its answer ──────────────────────────────────────────

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
