"""`lr` and `schedule`: who decides the learning rate, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from client_callback.steering.backends import current_backend
from client_callback.steering.handlers.shared import announce_optimizer, used_optimizer, what_else_decides
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.learning_rate import (
    check_rate,
    ramp_rates,
    read_rate,
    read_rates,
    scale_rates,
    set_rates,
)
from client_callback.steering.plateau import NAME as PLATEAU
from client_callback.steering.plateau import PlateauRule, plateau_rule, put_rule
from client_callback.steering.rate_control import (
    RAMP,
    RateControl,
    control_of,
    is_variable,
    put_controls,
    rated_optimizers,
    schedule_name,
    uncontrolled,
    updates,
)
from client_callback.steering.schedules import a_rate, checked, make_schedule, rates_along, span_of
from client_callback.steering.training import Outcome, Refused, Training, retrace
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine, Scalar

_REPLACED = "the train step is traced anew once, to let the rate follow it"

# ── lr ────────────────────────────────────────────────────────────────────────────────────────────


def set_rate(training: Training, instruction: commands.SetRate, time: float) -> Outcome:
    """`lr 3e-4 [over 500 steps] [hold]`."""

    def change(optimizer: Any) -> None:
        if instruction.over:
            ramp_rates(optimizer, instruction.over, value=instruction.value, hold=instruction.hold)
        else:
            set_rates(optimizer, instruction.value, hold=instruction.hold)

    return _change_rate(training, instruction, time, change)


def scale_rate(training: Training, instruction: commands.ScaleRate, time: float) -> Outcome:
    """`lr x0.5 [over 500 steps] [hold]`."""

    def change(optimizer: Any) -> None:
        if instruction.over:
            ramp_rates(optimizer, instruction.over, factor=instruction.factor, hold=instruction.hold)
        else:
            scale_rates(optimizer, instruction.factor, hold=instruction.hold)

    return _change_rate(training, instruction, time, change)


def _change_rate(
    training: Training,
    instruction: commands.SetRate | commands.ScaleRate,
    time: float,
    change: Callable[[Any], None],
) -> Outcome:
    optimizer = used_optimizer(training)
    with current_backend().state(training.model):
        before, told = read_rates(optimizer), _telling(training, optimizer)
        _check_possible(optimizer, instruction)
        _take_control(training, optimizer, instruction, time)
        change(optimizer)
        if instruction.hold:
            put_rule(training.model, None)
        after, now = read_rates(optimizer), _telling(training, optimizer)
        notes = [*_about_schedules(optimizer, told["schedule"], now["schedule"]), *_ended(told, now)]
        if instruction.over:
            notes.insert(0, f"reaches {_target(optimizer, instruction)} in {instruction.over} steps")
        reason = "; ".join([*notes, *what_else_decides(training, optimizer)])
    if told != now or notes:
        announce_optimizer(training, time)
    return Outcome(before=before, after={**after, **_news(instruction, now)}, reason=reason)


def _news(instruction: commands.SetRate | commands.ScaleRate, now: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What the answer tells beside the rate."""
    found: dict[str, Scalar] = {}
    if instruction.over:
        found["schedule"] = now["schedule"]
    if instruction.hold:
        found["hold"] = True
    return found


def _check_possible(optimizer: Any, instruction: commands.SetRate | commands.ScaleRate) -> None:
    """What would be refused after a new trace is refused before it."""
    if isinstance(instruction, commands.SetRate):
        check_rate(instruction.value)
        return
    for rated in rated_optimizers(optimizer):
        rate = read_rate(rated)
        if not rate:
            raise Refused("the learning rate is 0, and times anything it stays 0; `lr VALUE` sets another")
        check_rate(rate * instruction.factor)


def _takes_control(optimizer: Any, instruction: commands.SetRate | commands.ScaleRate) -> bool:
    """Whether the step has to be traced anew, to ask a control that is not there yet."""
    controls = [control_of(rated) for rated in rated_optimizers(optimizer)]
    if instruction.over:
        return any(control is None or not control.ramps for control in controls)
    if instruction.hold:
        return any(control is None for control in controls)
    return bool(uncontrolled(optimizer))


def _take_control(
    training: Training, optimizer: Any, instruction: commands.SetRate | commands.ScaleRate, time: float
) -> None:
    """Puts a control where the command needs one; a rate that is computed has one from the start."""
    if not _takes_control(optimizer, instruction):
        return
    ramps = bool(instruction.over)

    def control(rated: Any) -> RateControl | None:
        old = control_of(rated)
        if old is None and (ramps or instruction.hold or not is_variable(rated._learning_rate)):
            return RateControl(rated, optimizer, ramps=ramps)
        if old is None or old.ramps or not ramps:
            return None
        return old.carried_to(rated, optimizer, ramps=True)

    _put(training, optimizer, control, time)


def _put(
    training: Training, optimizer: Any, control: Callable[[Any], RateControl | None], time: float
) -> None:
    def change() -> None:
        put_controls(training.model, optimizer, control)

    if current_backend().late_control == "at once":
        change()
    else:
        retrace(training, change, time, "learning rate")


def _target(optimizer: Any, instruction: commands.SetRate | commands.ScaleRate) -> str:
    if isinstance(instruction, commands.SetRate):
        return f"{instruction.value:g}"
    scheduled = any(control.scheduled for one in rated_optimizers(optimizer) if (control := control_of(one)))
    if scheduled:
        return f"{instruction.factor:g} times its schedule"
    return ", ".join(f"{read_rate(one) * instruction.factor:g}" for one in rated_optimizers(optimizer))


# ── schedule ──────────────────────────────────────────────────────────────────────────────────────


def set_schedule(training: Training, instruction: commands.SetSchedule, time: float) -> Outcome:
    """`schedule cosine decay_steps=1000`."""
    optimizer = used_optimizer(training)
    with current_backend().state(training.model):
        before, told = read_rates(optimizer), _telling(training, optimizer)
        if instruction.kind == "constant":
            _make_constant(training, optimizer, instruction.arguments, time)
            put_rule(training.model, None)
        elif instruction.kind == PLATEAU:
            _put_plateau_rule(training, optimizer, instruction.arguments, time)
        else:
            _put_schedule(training, optimizer, instruction, time)
            put_rule(training.model, None)
        after, now = read_rates(optimizer), _telling(training, optimizer)
        notes = [*_replaced(told["schedule"], now["schedule"]), *_ended(told, now)]
        reason = "; ".join([*notes, *what_else_decides(training, optimizer)])
    announce_optimizer(training, time)
    return Outcome(before={**before, **told}, after={**after, **now}, reason=reason)


def _put_schedule(training: Training, optimizer: Any, instruction: commands.SetSchedule, time: float) -> None:
    """Counted from now, whatever else decided before."""
    made = {
        id(rated): make_schedule(instruction.kind, instruction.arguments, read_rate(rated))
        for rated in rated_optimizers(optimizer)
    }

    def control(rated: Any) -> RateControl:
        return RateControl(rated, optimizer, schedule=made[id(rated)], offset=-updates(rated))

    _put(training, optimizer, control, time)


def _make_constant(training: Training, optimizer: Any, arguments: Mapping[str, Scalar], time: float) -> None:
    """At the present rate, or at the one given."""
    given = checked(arguments, {"learning_rate": a_rate()}, "schedule constant")
    rates = {id(one): given.get("learning_rate", read_rate(one)) for one in rated_optimizers(optimizer)}
    for value in rates.values():
        check_rate(value)
    if uncontrolled(optimizer):
        _put(training, optimizer, lambda one: None if control_of(one) else RateControl(one, optimizer), time)
    for rated in rated_optimizers(optimizer):
        set_rates(rated, rates[id(rated)])


def _put_plateau_rule(
    training: Training, optimizer: Any, arguments: Mapping[str, Scalar], time: float
) -> None:
    rule = PlateauRule(training.model, arguments)
    _make_constant(training, optimizer, {}, time)
    put_rule(training.model, rule)


# ── What is said ──────────────────────────────────────────────────────────────────────────────────


def _telling(training: Training, optimizer: Any) -> dict[str, Scalar]:
    """Who decides the rate, for an answer."""
    names = sorted({name for one in rated_optimizers(optimizer) if (name := schedule_name(one))})
    held = any(control.held for one in rated_optimizers(optimizer) if (control := control_of(one)))
    found: dict[str, Scalar] = {"schedule": ", ".join(names) or None}
    if held:
        found["hold"] = True
    rule = plateau_rule(training.model)
    if rule is not None:
        found[PLATEAU] = str(rule)
    return found


def _about_schedules(optimizer: Any, before: Scalar, after: Scalar) -> list[str]:
    """What became of what decided the rate before."""
    if not before:
        return []
    if before != after:
        return [f"{before} no longer decides the rate"]
    if before == RAMP:
        return []
    controls = [control for one in rated_optimizers(optimizer) if (control := control_of(one))]
    factors = dict.fromkeys(f"{control.factor:g}" for control in controls if control.scheduled)
    return [f"{before} keeps its shape, times {', '.join(factors)}"]


def _replaced(before: Scalar, after: Scalar) -> list[str]:
    """Another schedule decides from now on, maybe of the same kind."""
    if not before:
        return []
    return [
        f"another {after} decides the rate" if before == after else f"{before} no longer decides the rate"
    ]


def _ended(told: Mapping[str, Scalar], now: Mapping[str, Scalar]) -> list[str]:
    notes = []
    if "hold" in told and "hold" not in now:
        notes.append("the rate is no longer held")
    if PLATEAU in told and PLATEAU not in now:
        notes.append(f"{PLATEAU} has ended")
    return notes


# ── Before ────────────────────────────────────────────────────────────────────────────────────────


def plan_rate(training: Training, instruction: commands.SetRate | commands.ScaleRate) -> list[PlanLine]:
    """From which rate to which, who decides, and what it takes."""
    optimizer = used_optimizer(training)
    with current_backend().state(training.model):
        _check_possible(optimizer, instruction)
        lines = [
            PlanLine(topic="does", text=_path(rated, instruction)) for rated in rated_optimizers(optimizer)
        ]
        lines += _plan_deciders(training, optimizer)
        if instruction.hold:
            hold = (
                "stays whatever callbacks set, until the next lr, schedule or optimizer command or its undo"
            )
            lines.append(PlanLine(topic="rate", text=hold))
        if _takes_control(optimizer, instruction) and current_backend().late_control != "at once":
            lines.append(PlanLine(topic="recompiles", text=_REPLACED))
    return lines


def _path(rated: Any, instruction: commands.SetRate | commands.ScaleRate) -> str:
    present = read_rate(rated)
    control = control_of(rated)
    goes = f" in a straight line over {instruction.over} steps" if instruction.over else ""
    if isinstance(instruction, commands.SetRate):
        return f"{rated.name}: {present:g} → {instruction.value:g}{goes}"
    shaped = control is not None and control.scheduled
    kept = f", and {schedule_name(rated)} goes on times {instruction.factor:g}{goes}" if shaped else goes
    return f"{rated.name}: {present:g} → {present * instruction.factor:g}{kept}"


def _plan_deciders(training: Training, optimizer: Any) -> list[PlanLine]:
    lines = []
    for rated in rated_optimizers(optimizer):
        control, name = control_of(rated), schedule_name(rated)
        now = f"{name} decides the rate now" if name else "a plain number decides the rate now"
        if control is not None and control.ramp_left:
            now += f", {control.ramp_left} steps before the end of a ramp"
        if control is not None and control.held:
            now += ", and it is held"
        lines.append(f"{rated.name}: {now}")
    owners = what_else_decides(training, optimizer)
    return [PlanLine(topic="rate", text=text) for text in [*lines, *owners]]


def plan_schedule(training: Training, instruction: commands.SetSchedule) -> list[PlanLine]:
    """Its rates at some of the steps to come, who decides now, and what it takes."""
    optimizer = used_optimizer(training)
    kind, arguments = instruction.kind, instruction.arguments
    with current_backend().state(training.model):
        rated = rated_optimizers(optimizer)
        if kind == "constant":
            given = checked(arguments, {"learning_rate": a_rate()}, "schedule constant")
            texts = [f"{one.name}: stays at {given.get('learning_rate', read_rate(one)):g}" for one in rated]
            anew = bool(uncontrolled(optimizer))
        elif kind == PLATEAU:
            texts, anew = [str(PlateauRule(training.model, arguments))], bool(uncontrolled(optimizer))
        else:
            texts, anew = [_preview(one, kind, arguments) for one in rated], True
        lines = [PlanLine(topic="does", text=text) for text in texts]
        lines += _plan_deciders(training, optimizer)
    if anew and current_backend().late_control != "at once":
        lines.append(PlanLine(topic="recompiles", text=_REPLACED))
    keeps = "weights, moments and the optimizer's own configuration; a saved file does not hold the schedule"
    lines.append(PlanLine(topic="keeps", text=keeps))
    return lines


def _preview(rated: Any, kind: str, arguments: Mapping[str, Scalar]) -> str:
    present = read_rate(rated)
    schedule = make_schedule(kind, arguments, present)
    along = rates_along(schedule, span_of(kind, arguments))
    rates = ", ".join(f"{value:.3g} at +{step}" if step else f"{value:.3g} now" for step, value in along)
    return f"{rated.name}: {type(schedule).__name__} from {present:g}: {rates}"


_OF_THE_RATE: dict[str, Any] = {
    "subjects": frozenset({"rate"}),
    "steps_weights": True,
    "of_optimizer": True,
}

HANDLINGS: Handlings = {
    commands.SetRate: Handling(carry_out=set_rate, plan=plan_rate, **_OF_THE_RATE),
    commands.ScaleRate: Handling(carry_out=scale_rate, plan=plan_rate, **_OF_THE_RATE),
    commands.SetSchedule: Handling(carry_out=set_schedule, plan=plan_schedule, **_OF_THE_RATE),
}
