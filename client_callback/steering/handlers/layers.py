"""`freeze`, `unfreeze`, `reinit`, and numbers of layers for `set`: what the layers of the model do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from client_callback.steering.backends import current_backend
from client_callback.steering.dead_units import (
    Candidate,
    DeadUnits,
    candidates,
    find_dead,
    inputs_of,
    restarted,
)
from client_callback.steering.handlers.shared import used_optimizer
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.layer_values import LayerChange, checked_layer_changes, notes_on
from client_callback.steering.named_layers import brief, chosen_layers, inside, named_layers
from client_callback.steering.preflight import recompiling
from client_callback.steering.rate_control import rated_optimizers, updates
from client_callback.steering.reinitialisation import Fresh, Reinitialisation, fresh_layer, own_weights
from client_callback.steering.settings import differences, tell_settings
from client_callback.steering.state import set_aside
from client_callback.steering.trained_variables import follow, learn, unbuilt_like, unknown_variables
from client_callback.steering.training import Outcome, Refused, Training, retrace
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine, Scalar

# ── Freezing ────────────────────────────────────────────────────────────────────────────────────────


def set_trainable(
    training: Training, instruction: commands.Freeze | commands.Unfreeze, time: float
) -> Outcome:
    """`freeze conv*`, `unfreeze conv2`."""
    model, optimizer = training.model, used_optimizer(training)
    layers = _checked_layers(training, instruction)
    trainable = isinstance(instruction, commands.Unfreeze)
    affected = _affected(layers, trainable=trainable)
    with current_backend().state(model):
        before = tell_settings(model)
        notes = _notes(model, affected, trainable=trainable)
        if not affected:
            return Outcome()
        unknown = learn(model, _weights(affected)) if trainable else []
        if unknown:
            notes.append(_begin_anew(optimizer, _holding(affected, unknown)))

        def change() -> None:
            for layer in layers.values():
                layer.trainable = trainable
            follow(model)
            current_backend().forget_trace(model)
            current_backend().forget_evaluation(model)
            if optimizer.built:
                current_backend().rehearse(model, optimizer, lambda: unbuilt_like(optimizer))

        retrace(training, change, time, f"{'unfreeze' if trainable else 'freeze'} {brief(layers)}")
        before, after = differences(before, tell_settings(model))
    notes.append(_share(model))
    return Outcome(before=before, after=after, reason="; ".join(notes))


def plan_trainable(training: Training, instruction: commands.Freeze | commands.Unfreeze) -> list[PlanLine]:
    """Which weights are no longer trained, or are again, and what becomes of their moments."""
    with current_backend().state(training.model):
        return _trainable_plan(training, instruction)


def _trainable_plan(training: Training, instruction: commands.Freeze | commands.Unfreeze) -> list[PlanLine]:
    model, optimizer = training.model, used_optimizer(training)
    layers = _checked_layers(training, instruction)
    trainable = isinstance(instruction, commands.Unfreeze)
    affected = _affected(layers, trainable=trainable)
    verb = "train" if trainable else "no longer train"
    count = sum(_size(variable) for variable in _weights(affected))
    if not affected:
        return [
            PlanLine(
                topic="does", text=f"nothing: {brief(layers)} {'trained' if trainable else 'frozen'} already"
            )
        ]
    lines = [PlanLine(topic="does", text=f"gradients {verb} {brief(affected)}: {count:,} weights")]
    unknown = unknown_variables(model, _weights(affected)) if trainable else []
    if len(unknown) < len(_weights(affected)):
        kept = (
            "moments go on from where they were" if trainable else "moments are kept for when it is unfrozen"
        )
        lines.append(PlanLine(topic="keeps", text=kept))
    if unknown:
        lines.append(PlanLine(topic="resets", text=_begin_anew(optimizer, _holding(affected, unknown))))
    lines += [PlanLine(topic="warning", text=note) for note in _notes(model, affected, trainable=trainable)]
    return [*lines, PlanLine(topic="recompiles", text=recompiling(training))]


def _checked_layers(training: Training, instruction: commands.Freeze | commands.Unfreeze) -> dict[str, Any]:
    """The named layers that have weights to train."""
    model: Any = training.model
    chosen = chosen_layers(model, instruction.layers)
    layers = {name: layer for name, layer in chosen.items() if own_weights(layer)}
    if not layers:
        able = [name for name, layer in named_layers(model).items() if own_weights(layer)]
        raise Refused(f"{brief(chosen)} has no weights to train; possible: {brief(able)}")
    if isinstance(instruction, commands.Freeze):
        frozen = {id(v) for layer in layers.values() for v in own_weights(layer)}
        if all(id(v) in frozen for v in model.trainable_variables):
            raise Refused("no weights would be left to train; `pause` and `stop` hold and end the training")
    for name, layer in layers.items():
        if any(getattr(one, "lora_enabled", False) for one in inside(layer)):
            raise Refused(f"{name} is held by LoRA, which decides which of its weights train")
        if any(getattr(one, "quantization_mode", None) for one in inside(layer)):
            raise Refused(f"{name} is quantized: its kernel cannot be trained")
    return layers


def _affected(layers: Mapping[str, Any], *, trainable: bool) -> dict[str, Any]:
    """Those whose flags, or whose weights' flags, are others than wanted."""
    return {
        name: layer
        for name, layer in layers.items()
        if any(one.trainable != trainable for one in inside(layer))
        or any(v.trainable != trainable for v in own_weights(layer))
    }


def _weights(layers: Mapping[str, Any]) -> list[Any]:
    """Of several layers, those that gradients may train, each once."""
    return list({id(v): v for layer in layers.values() for v in own_weights(layer)}.values())


def _holding(layers: Mapping[str, Any], variables: list[Any]) -> list[str]:
    """Those of the layers that hold one of the variables."""
    ids = {id(v) for v in variables}
    return [name for name, layer in layers.items() if any(id(v) in ids for v in own_weights(layer))]


def _notes(model: Any, affected: Mapping[str, Any], *, trainable: bool) -> list[str]:
    normalising = {
        id(one): one
        for layer in affected.values()
        for one in inside(layer)
        if isinstance(one, keras.layers.BatchNormalization)
    }
    if not normalising:
        return []
    names = brief(name for name, layer in named_layers(model).items() if id(layer) in normalising)
    if trainable:
        return [f"{names} normalises by the batch again, and its moving statistics go on"]
    return [
        f"{names} runs in inference mode while frozen: it normalises by its moving statistics, and they stand still"
    ]


def _begin_anew(optimizer: Any, names: Iterable[str]) -> str:
    """Moments that begin at 0 at a late step make an optimizer like Adam step too far."""
    text = f"the moments of {brief(names)} begin anew"
    factor = first_updates(optimizer)
    if factor > _NOTABLE:
        text += (
            f": first updates may be up to {factor:.1f} times as large as after a fresh start, for bias correction "
            "counts the optimizer's steps; `lr` with `over` or `for` softens that"
        )
    return text


_NOTABLE = 1.5
_FIRST_UPDATES = 1_000
_CORRECTING_BOTH = {"Adam", "AdamW", "Nadam"}
_CORRECTING_SECOND = {"ScheduleFreeAdamW"}


def first_updates(optimizer: Any) -> float:
    """Largest factor by which updates after moments of 0 exceed those of a fresh start, where gradients stay alike.

    After n updates Adam divides its first moment by 1 - β₁ⁿ and its second by 1 - β₂ⁿ (Kingma & Ba 2015,
    arXiv:1412.6980, section 3). For moments that began k updates ago, k would be right.
    """
    (inner, *others) = rated_optimizers(optimizer)
    kind = type(inner).__name__
    if others or not inner.built or kind not in _CORRECTING_BOTH | _CORRECTING_SECOND:
        return 1.0
    done = updates(inner) // (inner.gradient_accumulation_steps or 1)
    first = inner.beta_1 if kind in _CORRECTING_BOTH else 0.0

    def factor(k: int) -> float:
        second = (1 - inner.beta_2 ** (done + k)) / (1 - inner.beta_2**k)
        return float((1 - first**k) / (1 - first ** (done + k)) * second**0.5)

    return max(factor(k) for k in range(1, _FIRST_UPDATES))


def _share(model: Any) -> str:
    trained = sum(_size(v) for v in model.trainable_variables)
    every = sum(_size(v) for v in {id(v): v for v in own_weights(model)}.values())
    return f"{trained:,} of {every:,} weights are trained now"


def _size(variable: Any) -> int:
    size = 1
    for length in variable.shape:
        size *= int(length)
    return size


# ── Fresh weights ───────────────────────────────────────────────────────────────────────────────────


def reinitialise(training: Training, instruction: commands.Reinitialise, time: float) -> Outcome:
    """`reinit head`, `reinit dead-units`."""
    used_optimizer(training)
    if not instruction.layers:
        return _restart_dead_units(training)
    layers = _checked_fresh(training, instruction)
    with current_backend().state(training.model):
        before = _norms(layers)
        notes = _resets_of(training.model, layers)
        fresh = _fresh(training, layers)
        fresh.run()
        after = _norms(layers)
    return Outcome(before=before, after=after, reason="; ".join(notes))


def plan_reinitialise(training: Training, instruction: commands.Reinitialise) -> list[PlanLine]:
    """Which weights, and what is reset with them."""
    used_optimizer(training)
    if not instruction.layers:
        return _plan_dead_units(training)
    layers = _checked_fresh(training, instruction)
    with current_backend().state(training.model):
        _fresh(training, layers)
        resets = [PlanLine(topic="resets", text=text) for text in _resets_of(training.model, layers)]
    count = sum(_size(variable) for variable in _weights(layers))
    text = f"fresh weights for {brief(layers)}: {count:,}, from their own initializers with new seeds"
    return [PlanLine(topic="does", text=text), *resets]


def _checked_fresh(training: Training, instruction: commands.Reinitialise) -> dict[str, Any]:
    model = training.model
    chosen = chosen_layers(model, instruction.layers)
    layers = {name: layer for name, layer in chosen.items() if own_weights(layer)}
    if not layers:
        able = [name for name, layer in named_layers(model).items() if own_weights(layer)]
        raise Refused(f"{brief(chosen)} has no weights of its own; possible: {brief(able)}, or dead-units")
    return layers


def _fresh(training: Training, layers: Mapping[str, Any]) -> Reinitialisation:
    """A layer inside another one that is named is made with that."""
    within = {id(one) for layer in layers.values() for one in inside(layer)[1:]}
    fresh = [
        one
        for layer in layers.values()
        if id(layer) not in within
        for one in fresh_layer(layer, training.step)
    ]
    return Reinitialisation(training.model, fresh)


def _norms(layers: Mapping[str, Any]) -> dict[str, Scalar]:
    """‖w‖ of each, over the weights that gradients may train."""
    host = current_backend().host
    found: dict[str, Scalar] = {}
    for name, layer in layers.items():
        squares = [float(np.square(host(v).astype(np.float64)).mean()) * _size(v) for v in own_weights(layer)]
        found[f"{name}.weight_norm"] = float(f"{math.sqrt(sum(squares)):.6g}")
    return found


def _resets_of(model: Any, layers: Mapping[str, Any]) -> list[str]:
    optimizer = model.optimizer
    unknown = {id(v) for v in unknown_variables(model, _weights(layers))}
    known = [v for v in _weights(layers) if id(v) not in unknown]
    notes = [_begin_anew(optimizer, _holding(layers, known))] if known and optimizer.built else []
    if any(
        isinstance(one, keras.layers.BatchNormalization) for layer in layers.values() for one in inside(layer)
    ):
        notes.append("the moving statistics of BatchNormalization begin anew")
    return notes


# ── Dead units ──────────────────────────────────────────────────────────────────────────────────────

_BATCHES = 4
"""Batches on which a unit must be 0 to be held for dead."""
_MOST_BYTES = 64 << 20


def _restart_dead_units(training: Training) -> Outcome:
    looked_for, inputs = _checked_dead_units(training)
    model = training.model
    with current_backend().state(model):
        found = _dead(training, looked_for, inputs)
        if not found:
            return Outcome(reason=_none_dead(looked_for, inputs), changed=False)
        Reinitialisation(model, _restarts(training, found)).run()
        left = {units.of.name: units.count for units in _dead(training, looked_for, inputs)}
        notes = _about_dead(model, found)
    return Outcome(
        before={f"{units.of.name}.dead_units": units.count for units in found},
        after={f"{units.of.name}.dead_units": left.get(units.of.name, 0) for units in found},
        reason="; ".join(notes),
    )


def _plan_dead_units(training: Training) -> list[PlanLine]:
    looked_for, inputs = _checked_dead_units(training)
    with current_backend().state(training.model):
        found = _dead(training, looked_for, inputs)
        if not found:
            return [PlanLine(topic="does", text=f"nothing: {_none_dead(looked_for, inputs)}")]
        untouched = Reinitialisation(training.model, _restarts(training, found)).untouched
        resets = _about_dead(training.model, found)
    lines = [
        PlanLine(
            topic="does",
            text=f"fresh incoming weights for {units.count} of {len(units.dead)} units of {units.of.name}",
        )
        for units in found
    ]
    lines += [PlanLine(topic="resets", text=text) for text in resets]
    if untouched:
        text = f"{', '.join(untouched)} of the optimizer holds sums over several units and stays as it is"
        lines.append(PlanLine(topic="keeps", text=text))
    return lines


def _checked_dead_units(training: Training) -> tuple[list[Candidate], list[Any]]:
    looked_for = candidates(training.model)
    if not looked_for:
        raise Refused("no trained Dense or Conv layer of this model has a ReLU, in it or next to it")
    batches = training.pull_batches(_BATCHES, _MOST_BYTES).batches
    if not batches:
        raise Refused("the epoch has no more batches to look at; send it again in the next one")
    return looked_for, [part for batch in batches for part in inputs_of(batch)]


def _dead(training: Training, looked_for: list[Candidate], inputs: list[Any]) -> list[DeadUnits]:
    with set_aside(training.model):
        return find_dead(training.model, looked_for, inputs)


def _restarts(training: Training, found: list[DeadUnits]) -> list[Fresh]:
    return [one for units in found for one in restarted(units, training.step)]


def _none_dead(looked_for: list[Candidate], inputs: list[Any]) -> str:
    names = brief(one.name for one in looked_for)
    examples = sum(int(keras.tree.flatten(part)[0].shape[0]) for part in inputs)
    return f"each unit of {names} is above 0 for some of the next {examples} examples"


def _about_dead(model: Any, found: list[DeadUnits]) -> list[str]:
    notes = [_begin_anew(model.optimizer, [f"these units of {units.of.name}" for units in found])]
    readers = [(units.of.name, units.of.reader.name) for units in found if units.of.reader is not None]
    if readers:
        told = ", ".join(f"{reader} of {name}" for name, reader in readers)
        notes.append(
            f"the weights that read them are set to 0, so that the model computes what it did: {told}"
        )
    alone = [units.of.name for units in found if units.of.reader is None]
    if alone:
        notes.append(f"what reads the units of {brief(alone)} is not known, so that its weights stay")
    normalised = [units.of.name for units in found if units.of.normalising]
    if normalised:
        notes.append(f"BatchNormalization of these units of {brief(normalised)} begins anew as well")
    return notes


# ── Numbers ─────────────────────────────────────────────────────────────────────────────────────────


def set_layer_values(
    training: Training, values: Mapping[str, Scalar], time: float
) -> tuple[dict[str, Scalar], dict[str, Scalar], list[str]]:
    """`set dropout.rate=0.3 dense.l2=1e-4`: returns what differs before and after, and what is worth knowing.

    Raises:
        Refused: a layer or a number of it does not exist, or cannot have that value; nothing was changed.
    """
    model = training.model
    changes = checked_layer_changes(model, values)
    needed = [change for change in changes if change.needed]
    with current_backend().state(model):
        told = tell_settings(model)
        if needed:
            retrace(training, lambda: run(needed), time, f"set {brief(c.setting.key for c in needed)}")
        before, after = differences(told, tell_settings(model))
    return before, after, notes_on(model, changes)


def run(changes: list[LayerChange]) -> None:
    """Makes the changes; to be run where the step is traced anew afterwards."""
    for change in changes:
        change.run()


def plan_layer_values(training: Training, values: Mapping[str, Scalar]) -> list[PlanLine]:
    """What would be set. Raises Refused where `set_layer_values` would."""
    model = training.model
    changes = checked_layer_changes(model, values)
    lines = [
        PlanLine(topic="does", text=f"{c.setting.key}: {c.setting.number:g} → {c.number:g}")
        for c in changes
        if c.needed
    ]
    lines += [PlanLine(topic="warning", text=note) for note in notes_on(model, changes)]
    if any(change.needed for change in changes):
        lines.append(PlanLine(topic="recompiles", text=recompiling(training)))
    return lines


_OF_LAYERS: dict[str, Any] = {"subjects": frozenset({"layers"}), "steps_weights": True, "of_optimizer": True}

HANDLINGS: Handlings = {
    commands.Freeze: Handling(carry_out=set_trainable, plan=plan_trainable, **_OF_LAYERS),
    commands.Unfreeze: Handling(carry_out=set_trainable, plan=plan_trainable, **_OF_LAYERS),
    commands.Reinitialise: Handling(
        carry_out=reinitialise,
        plan=plan_reinitialise,
        subjects=frozenset({"weights"}),
        steps_weights=True,
        of_optimizer=True,
    ),
}
