"""`optimizer`, `set`, `accumulate`: which optimizer trains, and with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from client_callback.steering import preflight
from client_callback.steering.backends import current_backend
from client_callback.steering.describe import described_settings
from client_callback.steering.handlers import layers
from client_callback.steering.handlers.shared import announce_optimizer, used_optimizer, what_else_decides
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.learning_rate import read_rates
from client_callback.steering.optimizers import (
    checked_arguments,
    checked_settings,
    command_name,
    optimizer_class,
    settings,
)
from client_callback.steering.rate_control import rated_optimizers
from client_callback.steering.settings import differences
from client_callback.steering.switch import Proposal, Replacement, build, exchange, prepare, prepare_changed
from client_callback.steering.training import Outcome, Training, announce_resting_state, stand_in
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine, Scalar, StateChanged

_MATCH = "match"
"""As a learning rate: the one at which the new optimizer moves the weights as far as the present one does."""


# ── optimizer ─────────────────────────────────────────────────────────────────────────────────────


def switch_optimizer(training: Training, instruction: commands.SwitchOptimizer, time: float) -> Outcome:
    """`optimizer sgd learning_rate=0.01`."""
    old = used_optimizer(training)
    with current_backend().state(training.model):
        before = _identity(old)
        proposal = _proposed_switch(training, old, instruction)
        replacement = build(proposal)
        _exchange(training, replacement, time, type(proposal.inner).__name__)
        after = _identity(replacement.new)
    announce_optimizer(training, time)
    always: dict[str, Scalar] = {name: before[name] for name in ("optimizer", "learning_rate")}
    changed, now = differences(before, after)
    return Outcome(
        before={**always, **changed},
        after={**{name: after[name] for name in always}, **now},
        reason="; ".join([*replacement.notes, *what_else_decides(training, replacement.new)]),
    )


def plan_switch(training: Training, instruction: commands.SwitchOptimizer) -> list[PlanLine]:
    """Raises Refused for what cannot be."""
    old = used_optimizer(training)
    with current_backend().state(training.model):
        return preflight.plan_exchange(training, _proposed_switch(training, old, instruction))


def check_switch(training: Training, instruction: commands.SwitchOptimizer) -> list[PlanLine]:
    """Raises Refused for what cannot be, without a look at the weights."""
    old = used_optimizer(training)
    with current_backend().state(training.model):
        _proposed_switch(training, old, instruction)
    return []


def _proposed_switch(training: Training, old: Any, instruction: commands.SwitchOptimizer) -> Proposal:
    cls = optimizer_class(instruction.name)
    given = dict(instruction.arguments)
    matched = given.get("learning_rate") == _MATCH
    if matched:
        given["learning_rate"] = 1.0  # until the optimizer tells how far it moves at a rate of 1
    arguments = checked_arguments(cls, given)
    proposal = prepare(training.model, old, cls, arguments)
    _check(training, old, proposal)
    if not matched:
        return proposal
    arguments["learning_rate"] = preflight.matched_rate(training, old, proposal.inner)
    return prepare(training.model, old, cls, arguments)


def _check(training: Training, old: Any, proposal: Proposal) -> None:
    preflight.check_averages(training, proposal.inner)
    preflight.check_accumulation(training, rated_optimizers(old)[0], proposal.inner)


def _identity(optimizer: Any) -> dict[str, Scalar]:
    """Name, rate as a number, and every setting."""
    name = command_name(rated_optimizers(optimizer)[0])
    return {"optimizer": name, **described_settings(optimizer), **read_rates(optimizer)}


# ── set, accumulate ───────────────────────────────────────────────────────────────────────────────


def set_hyperparameters(training: Training, instruction: commands.SetHyperparameters, time: float) -> Outcome:
    """`set momentum=0.9 dropout.rate=0.3`."""
    own, of_layers = _by_subject(instruction.values)
    if not own:
        before, after, notes = layers.set_layer_values(training, of_layers, time)
        return Outcome(before=before, after=after, reason="; ".join(notes))
    return _change(training, own, of_layers, time)


def plan_hyperparameters(training: Training, instruction: commands.SetHyperparameters) -> list[PlanLine]:
    """Raises Refused for what cannot be."""
    own, of_layers = _by_subject(instruction.values)
    lines = _plan_change(training, own) if own else []
    if of_layers:
        known = {line.topic for line in lines}
        of_layer = layers.plan_layer_values(training, of_layers)
        lines += [line for line in of_layer if line.topic != "recompiles" or "recompiles" not in known]
    return lines


def accumulate(training: Training, instruction: commands.Accumulate, time: float) -> Outcome:
    """`accumulate 4`."""
    return _change(training, _accumulating(instruction), {}, time)


def plan_accumulate(training: Training, instruction: commands.Accumulate) -> list[PlanLine]:
    """Raises Refused for what cannot be."""
    return _plan_change(training, _accumulating(instruction))


def _accumulating(instruction: commands.Accumulate) -> dict[str, Scalar]:
    return {"gradient_accumulation_steps": instruction.batches if instruction.batches > 1 else None}


def _by_subject(values: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """(of the optimizer, of layers: their names hold a dot)."""
    of_layers = {name: value for name, value in values.items() if "." in name}
    return {name: value for name, value in values.items() if name not in of_layers}, of_layers


def _change(
    training: Training, own: Mapping[str, Scalar], of_layers: Mapping[str, Scalar], time: float
) -> Outcome:
    """Makes the optimizer anew with other settings and all its state, and sets layers' values with the same trace."""
    old = used_optimizer(training)
    with current_backend().state(training.model):
        proposal = _proposed_change(training, old, own)
        told = settings(rated_optimizers(old)[0])
        if proposal is None:
            return _only_layers(training, {name: told[name] for name in own}, of_layers, time)
        replacement = build(proposal)
        of_layer: list[tuple[Mapping[str, Scalar], Mapping[str, Scalar], list[str]]] = []

        def beside() -> None:
            if of_layers:
                of_layer.append(layers.set_layer_values(_inside(training), dict(of_layers), time))

        _exchange(training, replacement, time, ", ".join([*own, *of_layers]), beside)
        before, after = differences(told, settings(rated_optimizers(replacement.new)[0]))
        _check_read_back(own, settings(rated_optimizers(replacement.new)[0]))
    announce_optimizer(training, time)
    notes = [*replacement.notes]
    for layer_before, layer_after, layer_notes in of_layer:
        before, after = {**before, **layer_before}, {**after, **layer_after}
        notes += layer_notes
    return Outcome(before=before, after=after, reason="; ".join(notes))


def _only_layers(
    training: Training, told: Mapping[str, Scalar], of_layers: Mapping[str, Scalar], time: float
) -> Outcome:
    """The optimizer is so already."""
    if not of_layers:
        return Outcome(before=told, after=told, changed=False)
    before, after, notes = layers.set_layer_values(training, dict(of_layers), time)
    return Outcome(before=before, after=after, reason="; ".join(notes))


def _plan_change(training: Training, own: Mapping[str, Scalar]) -> list[PlanLine]:
    old = used_optimizer(training)
    with current_backend().state(training.model):
        proposal = _proposed_change(training, old, own)
        if proposal is None:
            values = ", ".join(f"{name}={preflight.told(value)}" for name, value in own.items())
            return [PlanLine(topic="does", text=f"nothing: {values} already")]
        before, after = differences(settings(rated_optimizers(old)[0]), settings(proposal.inner))
        return preflight.plan_changes(training, proposal, before, after)


def _proposed_change(training: Training, old: Any, own: Mapping[str, Scalar]) -> Proposal | None:
    """`None`: the optimizer has these settings already."""
    changes = checked_settings(rated_optimizers(old)[0], own)
    if not changes:
        return None
    proposal = prepare_changed(training.model, old, changes)
    _check(training, old, proposal)
    return proposal


def _check_read_back(wanted: Mapping[str, Scalar], found: Mapping[str, Scalar]) -> None:
    for name, value in wanted.items():
        if found[name] != value:
            raise RuntimeError(f"{name} was set to {value} and reads {found[name]}")


# ── Both ──────────────────────────────────────────────────────────────────────────────────────────


def _exchange(
    training: Training,
    replacement: Replacement,
    time: float,
    reason: str,
    beside: Callable[[], None] = lambda: None,
) -> None:
    """Puts the replacement in, and says "recompiling" meanwhile."""
    training.emit(StateChanged(step=training.step, time=time, state="recompiling", reason=reason))
    try:
        exchange(training, replacement, beside)
    except BaseException:
        announce_resting_state(training, time)
        raise
    if training.paused:
        announce_resting_state(training, time)


def _inside(training: Training) -> Training:
    """In the middle of a `rebuild`: what asks for another trace gets the one that comes anyway."""
    return stand_in(training, told=lambda event: not isinstance(event, StateChanged))


_OF_THE_OPTIMIZER: dict[str, Any] = {"steps_weights": True, "of_optimizer": True}

HANDLINGS: Handlings = {
    commands.SwitchOptimizer: Handling(
        carry_out=switch_optimizer,
        plan=plan_switch,
        check=check_switch,
        subjects=frozenset({"optimizer", "rate"}),
        **_OF_THE_OPTIMIZER,
    ),
    commands.SetHyperparameters: Handling(
        carry_out=set_hyperparameters,
        plan=plan_hyperparameters,
        subjects=frozenset({"optimizer", "layers"}),
        **_OF_THE_OPTIMIZER,
    ),
    commands.Accumulate: Handling(
        carry_out=accumulate,
        plan=plan_accumulate,
        subjects=frozenset({"optimizer"}),
        **_OF_THE_OPTIMIZER,
    ),
}
