"""`class-weight` and `loss-weight`: how much each class, and each output, counts in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client_callback.steering.backends import current_backend
from client_callback.steering.handlers.shared import used_optimizer
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.loss_control import (
    Classes,
    ClassWeightSetting,
    LossWeightSetting,
    classes_of,
    loss_weights_of,
    why_unweighted,
)
from client_callback.steering.named_layers import likely
from client_callback.steering.preflight import recompiling
from client_callback.steering.settings import Setting, differences
from client_callback.steering.training import Outcome, Refused, Training, retrace
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine

FEWEST_LABELS = 100
"""Below so many, how often each class occurs is not known well enough to weigh it."""


def set_class_weight(training: Training, instruction: commands.SetClassWeight, time: float) -> Outcome:
    """`class-weight 0=1 1=4.5`, `class-weight balanced`, `class-weight none`."""
    used_optimizer(training)
    weights = _checked_weights(training, instruction)
    setting = ClassWeightSetting(training.model)
    before, after = _write(training, setting, tuple(sorted(weights.items())), time, "class weights")
    if not after:
        return Outcome()
    return Outcome(
        before=before,
        after=after,
        reason="; ".join(_notes(weights)),
        confirm=lambda: why_unweighted(training.model),
    )


def plan_class_weight(training: Training, instruction: commands.SetClassWeight) -> list[PlanLine]:
    """The weights, and what they do to the numbers that are recorded."""
    used_optimizer(training)
    weights = _checked_weights(training, instruction)
    if not weights:
        text = "every class counts the same"
    else:
        told = " ".join(f"{label}={weight:.6g}" for label, weight in weights.items())
        text = f"the loss of each example is multiplied by the weight of its class: {told}; others count 1"
    lines = [PlanLine(topic="does", text=text)]
    lines += [PlanLine(topic="warning", text=note) for note in _notes(weights)]
    return [*lines, PlanLine(topic="recompiles", text=recompiling(training))]


def set_loss_weight(training: Training, instruction: commands.SetLossWeight, time: float) -> Outcome:
    """`loss-weight segmentation=0.5`."""
    used_optimizer(training)
    weights = _checked_outputs(training, instruction)
    setting = LossWeightSetting(training.model)
    before, after = _write(training, setting, setting.with_weights(weights), time, "loss weights")
    return Outcome(before=before, after=after, reason=_OF_THE_SUM) if after else Outcome()


def plan_loss_weight(training: Training, instruction: commands.SetLossWeight) -> list[PlanLine]:
    """The weights before and after."""
    used_optimizer(training)
    weights = _checked_outputs(training, instruction)
    present = loss_weights_of(training.model)
    return [
        *(
            PlanLine(topic="does", text=f"the loss of {name} counts {present[name]:g} → {weight:g}")
            for name, weight in weights.items()
        ),
        PlanLine(topic="warning", text=_OF_THE_SUM),
        PlanLine(topic="recompiles", text=recompiling(training)),
    ]


_OF_THE_SUM = (
    "loss and val_loss are the sums by the new weights from now on; the losses of the outputs stay unweighted"
)


def _write(
    training: Training, setting: Setting, value: Any, time: float, reason: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sets it where it is another; what differs before and after."""
    with current_backend().state(training.model):
        told = setting.told()
        if setting.read() != value:
            retrace(training, lambda: setting.write(value), time, reason)
        return differences(told, setting.told())


# ── Classes ─────────────────────────────────────────────────────────────────────────────────────────


def _checked_weights(training: Training, instruction: commands.SetClassWeight) -> dict[int, float]:
    counts = training.label_counts
    classes = classes_of(training.model, labels_counted=bool(counts))
    if instruction.balanced:
        return balanced_weights(counts, classes)
    unknown = [label for label in instruction.weights if label >= (classes.number or _MOST_CLASSES)]
    if unknown:
        raise Refused(f"no class {unknown[0]}; possible: {classes.possible}")
    return dict(instruction.weights)


_MOST_CLASSES = 1 << 20
"""Where the number is not known: a weight for each up to the largest named is held in memory."""


def balanced_weights(counts: Mapping[int, float], classes: Classes) -> dict[int, float]:
    """Total / (k · count) of each of k classes, so that all have the same share of the loss, as scikit-learn does it.

    Raises:
        Refused: too few labels were counted.
    """
    total = sum(counts.values())
    if total < FEWEST_LABELS:
        why = f"only {total:g} labels were counted so far" if total else "no labels were counted"
        raise Refused(
            f"{why}, and balanced needs {FEWEST_LABELS}: the predictions of some steps are sampled, never with "
            "statistics_every=0; write CLASS=WEIGHT"
        )
    number = classes.number or max(counts) + 1
    unseen = [label for label in range(number) if not counts.get(label)]
    if unseen:
        seen = f"among {total:g} labels there was none of class {unseen[0]}"
        raise Refused(f"{seen}, so its weight is not known; write CLASS=WEIGHT")
    return {label: total / (number * counts[label]) for label in range(number)}


def _notes(weights: Mapping[int, float]) -> list[str]:
    if not weights:
        return ["the recorded loss is unweighted again"]
    return [
        "the recorded loss is the weighted one from now on; metrics and val_loss stay unweighted",
        "class_weight and sample_weight of fit count as before, multiplied by these",
    ]


# ── Outputs ─────────────────────────────────────────────────────────────────────────────────────────


def _checked_outputs(training: Training, instruction: commands.SetLossWeight) -> dict[str, float]:
    possible = loss_weights_of(training.model)
    if not possible:
        raise Refused(
            "the loss has one part only, and a weight would scale it as `lr` scales the step; use lr"
        )
    for name in instruction.weights:
        if name not in possible:
            raise Refused(f"no output {name!r} with a loss; possible: {likely(name, list(possible))}")
    if not any({**possible, **instruction.weights}.values()):
        raise Refused("no output would count any more; give one a weight above 0")
    return dict(instruction.weights)


_OF_THE_LOSS: dict[str, Any] = {"subjects": frozenset({"loss"}), "steps_weights": True, "of_optimizer": True}

HANDLINGS: Handlings = {
    commands.SetClassWeight: Handling(carry_out=set_class_weight, plan=plan_class_weight, **_OF_THE_LOSS),
    commands.SetLossWeight: Handling(carry_out=set_loss_weight, plan=plan_loss_weight, **_OF_THE_LOSS),
}
