"""One handler per command: checks, does it, reads the result back from the model.

`Steering.answer` looks the handler up in `HANDLERS` and turns what comes out into a reply. To add a command: its
instruction in `wire.commands`, a handler here, one line in `HANDLERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer, describe_optimizer, described_settings
from client_callback.steering.learning_rate import read_rates, scale_rates, set_rates
from client_callback.steering.optimizers import checked_arguments, command_name, optimizer_class
from client_callback.steering.rate_control import (
    control_of,
    install_controls,
    is_computed,
    rated_optimizers,
    schedule_name,
    uncontrolled,
)
from client_callback.steering.rate_owners import rate_owners
from client_callback.steering.switch import build_replacement, exchange
from client_callback.steering.training import Outcome, Refused, Training, announce_resting_state
from client_callback.wire import commands
from client_callback.wire.protocol import OptimizerChanged, Scalar, StateChanged

Handler = Callable[[Training, Any, float], Outcome]
"""(training, instruction, time) → what it did. Raises Refused; any other error means it failed."""


def set_rate(training: Training, instruction: commands.SetRate, time: float) -> Outcome:
    """`lr 3e-4`."""
    return _change_rate(training, time, lambda optimizer: set_rates(optimizer, instruction.value))


def scale_rate(training: Training, instruction: commands.ScaleRate, time: float) -> Outcome:
    """`lr x0.5`."""
    return _change_rate(training, time, lambda optimizer: scale_rates(optimizer, instruction.factor))


def switch_optimizer(training: Training, instruction: commands.SwitchOptimizer, time: float) -> Outcome:
    """`optimizer sgd learning_rate=0.01`."""
    old = _optimizer(training)
    model = training.model
    cls = optimizer_class(instruction.name)
    arguments = checked_arguments(cls, instruction.arguments)
    with current_backend().state(model):
        before = _identity(old)
        replacement = build_replacement(model, old, cls, arguments)
        _check_averages(training, replacement.new)
        training.emit(StateChanged(step=training.step, time=time, state="recompiling", reason=cls.__name__))
        try:
            exchange(training, replacement)
        except BaseException:
            announce_resting_state(training, time)
            raise
        after = _identity(replacement.new)
    _announce_optimizer(training, time)
    if training.paused:
        announce_resting_state(training, time)
    notes = [*replacement.notes, *_what_else_decides(training, replacement.new)]
    before, after = _differences(before, after)
    return Outcome(before=before, after=after, reason="; ".join(notes))


def pause(training: Training, instruction: commands.Pause, time: float) -> Outcome:
    """`pause`."""
    if training.paused:
        raise Refused(f"already paused at step {training.step}; `resume` goes on")
    training.pause()
    return Outcome(before={"state": "running"}, after={"state": _state(training)})


def resume(training: Training, instruction: commands.Resume, time: float) -> Outcome:
    """`resume`."""
    if not training.paused:
        raise Refused("not paused; `pause` holds training before its next batch")
    training.resume()
    return Outcome(before={"state": "paused"}, after={"state": _state(training)})


def stop(training: Training, instruction: commands.Stop, time: float) -> Outcome:
    """`stop`."""
    before = _state(training)
    training.stop()
    if training.paused:
        training.resume()
    return Outcome(
        before={"state": before},
        after={"state": "stopping"},
        reason="ends after the current batch; where there is validation data, its validation runs first",
    )


def note(training: Training, instruction: commands.Note, time: float) -> Outcome:
    """`note "…"`: the reply is the record."""
    return Outcome()


HANDLERS: dict[type[commands.Instruction], Handler] = {
    commands.SetRate: set_rate,
    commands.ScaleRate: scale_rate,
    commands.SwitchOptimizer: switch_optimizer,
    commands.Pause: pause,
    commands.Resume: resume,
    commands.Stop: stop,
    commands.Note: note,
}

OF_THE_OPTIMIZER = frozenset({commands.SetRate, commands.ScaleRate, commands.SwitchOptimizer})
"""They need an optimizer that the training uses."""

OBEYED_WITHOUT_CONTROL = frozenset({commands.Note})
"""A remark changes nothing of the training."""


def _change_rate(training: Training, time: float, change: Callable[[Any], None]) -> Outcome:
    optimizer = _optimizer(training)
    with current_backend().state(training.model):
        before = read_rates(optimizer)
        schedules = [schedule_name(one) for one in rated_optimizers(optimizer)]
        _take_control(training, optimizer, time)
        change(optimizer)
        after = read_rates(optimizer)
        notes = _about_schedules(optimizer, schedules)
    if notes:
        _announce_optimizer(training, time)
    reason = "; ".join([*notes, *_what_else_decides(training, optimizer)])
    return Outcome(before=before, after=after, reason=reason)


def _take_control(training: Training, optimizer: Any, time: float) -> None:
    """Puts a control on what has none yet: a schedule of a loop of one's own, or one assigned since."""
    backend = current_backend()
    if backend.late_control == "impossible" or not uncontrolled(optimizer):
        return

    def install() -> None:
        install_controls(training.model, optimizer)

    if backend.late_control == "at once":
        install()
        return
    training.emit(StateChanged(step=training.step, time=time, state="recompiling", reason="learning rate"))
    try:
        training.rebuild(install)
    except BaseException:
        announce_resting_state(training, time)
        raise
    if training.paused:
        announce_resting_state(training, time)


def _about_schedules(optimizer: Any, schedules: list[str | None]) -> list[str]:
    """What became of each schedule that decided a rate before."""
    notes = []
    for name, rated in zip(schedules, rated_optimizers(optimizer), strict=True):
        control = control_of(rated)
        if name is None or control is None or not is_computed(rated):
            continue
        kept = f"{name} keeps its shape, times {control.factor:g}"
        notes.append(f"{name} no longer decides the rate" if control.overridden else kept)
    return list(dict.fromkeys(notes))


def _what_else_decides(training: Training, optimizer: Any) -> list[str]:
    """Why the step may use another rate than the one read back."""
    capped = [one for one in rated_optimizers(optimizer) if isinstance(one, keras.optimizers.Adafactor)]
    owners = [str(owner) for owner in rate_owners(training.callbacks)]
    return [
        *("Adafactor never steps faster than 1/√step, counted from its start" for _ in capped[:1]),
        *owners,
    ]


def _optimizer(training: Training) -> Any:
    optimizer = current_optimizer(training.model)
    if optimizer is None:
        raise Refused("this run has no optimizer that unstuck knows; pause, resume, stop and note work")
    if not training.optimizer_used:
        raise Refused(
            "the train step does not apply model.optimizer, so changing it would do nothing; "
            "pause, resume, stop and note work"
        )
    return optimizer


def _check_averages(training: Training, new: Any) -> None:
    swaps = [c for c in training.callbacks if isinstance(c, keras.callbacks.SwapEMAWeights)]
    if swaps and not rated_optimizers(new)[0].use_ema:
        raise Refused("SwapEMAWeights in this fit needs moving averages; leave use_ema=false out")


def _announce_optimizer(training: Training, time: float) -> None:
    described = describe_optimizer(training.model, training.callbacks)
    if described is not None:
        training.emit(OptimizerChanged(step=training.step, time=time, optimizer=described))


def _identity(optimizer: Any) -> dict[str, Scalar]:
    """Name, rate as a number, and every setting."""
    name = command_name(rated_optimizers(optimizer)[0])
    return {"optimizer": name, **described_settings(optimizer), **read_rates(optimizer)}


def _differences(
    before: dict[str, Scalar], after: dict[str, Scalar]
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """Name and rate always, of the settings those that are not the same on both sides."""
    missing = object()
    same = {
        key
        for key, value in before.items()
        if value == after.get(key, missing) and key not in {"optimizer", "learning_rate"}
    }
    return (
        {key: value for key, value in before.items() if key not in same},
        {key: value for key, value in after.items() if key not in same},
    )


def _state(training: Training) -> str:
    return "paused" if training.paused else "running"
