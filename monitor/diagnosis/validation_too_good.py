"""Sees that validation is much better than training at the same moments, which it cannot be by skill.

Sees: training and validation at the ends of epochs, in the same state of the model (not Keras' mean over the epoch,
which lags). The validation loss must be below two thirds of the training's in nearly all of the newest epochs; where
accuracy is known, that must be higher by a seventh of the way from guessing to perfect, and the loss lower.

What acts in training only explains it: dropout, noise, augmentation, class or example weights. Then the training
numbers are what misleads, and the finding says so; it is a warning only where training itself looks bad. Otherwise
validation examples are easier, fewer kinds of them, among those trained on, or have cleaner labels. Hurts because the
number that decisions rest on does not hold. Source: Kaufman et al., "Leakage in data mining" (2012); Keras' FAQ, "Why
is my training loss much higher than my testing loss?".

Wrong with a very small validation set, where luck does as much. Silent without three validations.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from client_callback.wire.protocol import Float64, Layer
from monitor.diagnosis.case import Case
from monitor.diagnosis.epochs import Sides, lacks_validations, sides, validated_accuracy, validated_lift
from monitor.diagnosis.examples import dense, session_of, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import LATE_EPOCHS
from monitor.session import Session

FEWEST_EPOCHS: Final = 3
"""A difference that has lasted so long is none of a lucky epoch."""
LOWER: Final = 0.67
"""Validation loss / training loss."""
HIGHER: Final = 1 / 7
"""Of the way from guessing to perfect: 0.07 of accuracy with two classes alike, 0.13 with ten."""
LASTING: Final = 0.8
"""Share of the newest epochs in which it must be so."""
STRONG: Final = 0.25
"""Share of the signal that all dropout together takes away, 1 − Π(1 − rate), from which on it can explain so much."""
FINE: Final = 0.8
"""A training lift from here on is nobody's trouble."""
BEARABLE: Final = 0.65
"""The same where what acts in training explains it and validation is fine: strong augmentation makes that of it."""
OFF_AT_VALIDATION: Final = ("Dropout", "GaussianNoise", "Random", "MixUp", "CutMix", "AugMix", "RandAugment")
"""Class names of layers, or their parts, that act in training only."""


def lacks(case: Case) -> str:
    """Enough validations."""
    return lacks_validations(case, FEWEST_EPOCHS)


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    losses = sides(case)
    if losses is None or case.non_finite_from is not None:
        return []
    training, validation = losses.now
    recent = _recent(losses)
    lower = (recent.validation < LOWER * recent.training) & (recent.training > 0)
    lower_lately = float(lower.mean()) >= LASTING
    name = validated_accuracy(case)
    accuracies = sides(case, name) if name else None
    higher = _higher(case, accuracies)
    if accuracies is not None and case.baseline is not None and case.baseline.classes > 1:
        # Accuracy decides where it is known: labels that are noisier in training may leave the losses alike.
        suspicious = higher >= HIGHER and validation < training
    else:
        suspicious = lower_lately and _matters(case, training, validation)
    if not suspicious:
        return []
    causes, explained = _acting_in_training_only(case)
    well = (validated_lift(case) or 0.0) >= FINE and (case.lift or 0.0) >= BEARABLE
    bad = (case.lift is None or case.lift < FINE) and not (explained and (_early(case) or well))
    onset = int(np.argmax(losses.validation < LOWER * losses.training)) if lower.any() else 0
    evidence = [
        Evidence(
            f"val_loss {validation:.4g} beside a loss of {training:.4g} at the same moment",
            int(losses.steps[-1]),
            {"val_loss": validation, "loss": training},
        )
    ]
    if accuracies is not None:
        evidence.append(
            Evidence(
                f"{name} {accuracies.now[1]:.3g} in validation, {accuracies.now[0]:.3g} in training",
                int(losses.steps[-1]),
                {"val_accuracy": accuracies.now[1], "accuracy": accuracies.now[0]},
            )
        )
    evidence.append(Evidence(f"acting in training only: {', '.join(causes) or 'nothing known'}"))
    return [
        Finding(
            rule="validation-too-good",
            title="Validation is too good to be true"
            if not explained
            else "Training looks worse than the model is",
            severity="warning" if bad else "note",
            confidence=(0.5 if explained else 0.65) if bad else 0.4,
            start=int(losses.steps[onset]),
            stop=case.step,
            evidence=tuple(evidence),
            explanation=_explanation(explained=explained),
            remedies=_remedies(case, explained=explained),
        )
    ]


def _early(case: Case) -> bool:
    """Whether training improves still, and may soon be good in spite of what acts in it."""
    return case.progress.trend == "falling" and case.epochs_since_change < LATE_EPOCHS


def _recent(both: Sides) -> Sides:
    number = max(FEWEST_EPOCHS, len(both.steps) // 2)
    return Sides(both.steps[-number:], both.training[-number:], both.validation[-number:])


def _higher(case: Case, accuracies: Sides | None) -> float:
    """By how much of the way from guessing to perfect validation is ahead, as the median of the newest epochs."""
    base = case.baseline
    if accuracies is None or base is None or base.classes < 2:
        return math.nan
    recent = _recent(accuracies)
    return float(np.median(recent.validation - recent.training)) / max(1 - base.majority, 1e-9)


def _matters(case: Case, training: float, validation: float) -> bool:
    """Whether two losses differ by more than a share of a tiny number. Of squared errors: beside the variance."""
    variance = case.baseline.variance if case.baseline else math.nan
    loss = case.output.loss if case.output else ""
    if loss in ("mean_squared_error", "mse") and variance > 0:
        return (training - validation) / variance >= HIGHER
    return validation < LOWER * training and not case.solved


def _acting_in_training_only(case: Case) -> tuple[list[str], bool]:
    """What does, with its strength, and whether that is enough to explain the difference."""
    found, left = [], 1.0
    for layer in case.layers:
        rates = [float(layer.settings.get(name) or 0.0) for name in ("dropout", "recurrent_dropout")]
        if any(part in layer.class_name for part in OFF_AT_VALIDATION):
            rate = layer.settings.get("rate")
            rates.append(float(rate) if isinstance(rate, int | float) else 1.0)
        if max(rates) > 0:
            found.append(f"{layer.name} ({_strength(layer)})")
            left *= 1.0 - min(max(rates), 1.0)
    if case.data is not None and case.data.class_weight:
        found.append("class weights")
    if case.data is not None and case.data.weighted:
        found.append("weights of examples")
    return found, left <= 1 - STRONG or "class weights" in found or "weights of examples" in found


def _strength(layer: Layer) -> str:
    """A rate or a spread, as text."""
    for name in ("rate", "stddev", "factor", "dropout", "recurrent_dropout"):
        value = layer.settings.get(name)
        if isinstance(value, int | float):
            return f"{value:g}"
    return layer.class_name


def _explanation(*, explained: bool) -> str:
    if explained:
        return (
            "What acts in training only makes the training numbers worse than the model really is; judge it by "
            "validation, and weaken that if training makes no progress."
        )
    return (
        "A model cannot be better on examples it has never seen than on those it trains on, so the two are not "
        "alike: validation examples are easier, are trained on too, or have cleaner labels."
    )


def _remedies(case: Case, *, explained: bool) -> tuple[Remedy, ...]:
    found = []
    drops = [
        layer
        for layer in case.layers
        if layer.class_name == "Dropout" and float(layer.settings.get("rate") or 0.0) > 0.3
    ]
    if drops:
        values = " ".join(f"{layer.name}.rate=0.2" for layer in drops)
        found.append(Remedy("Drop fewer units", f"set {values}"))
    if not explained:
        found.append(
            Remedy(
                "Split once, shuffled, with equal shares of each class, before anything is fitted or augmented",
                code="x_train, x_val, y_train, y_val = train_test_split(\n"
                "    x, y, test_size=0.2, shuffle=True, stratify=y, random_state=0)",
            )
        )
    found.append(
        Remedy(
            "Measure training as validation is measured",
            code="print(model.evaluate(x_train, y_train))\nprint(model.evaluate(x_val, y_val))",
        )
    )
    if not explained:
        found.append(
            Remedy("Look for validation examples that are in the training data too, and for wrong labels")
        )
    return tuple(found)


# ── Examples ──────────────────────────────────────────────────────────────────────────────────────


def dropout(name: str, rate: float, class_name: str = "Dropout") -> Layer:
    """A layer that drops so many of its inputs in training."""
    return Layer(name=name, class_name=class_name, settings={"rate": rate})


def _run(
    training: Float64,
    validation: Float64,
    accuracies: tuple[Float64, Float64] | None = None,
    layers: tuple[Layer, ...] = (),
    *,
    weighted: bool = False,
    per_epoch: int = 20,
) -> Session:
    count = len(training)
    rng = np.random.default_rng(0)
    places = np.arange(count * per_epoch) / per_epoch - 1
    series = {"loss": np.interp(places, np.arange(count), training) * rng.normal(1, 0.05, len(places))}
    epochs = [{"loss": t, "val_loss": v} for t, v in zip(training.tolist(), validation.tolist(), strict=True)]
    if accuracies:
        series["accuracy"] = np.interp(places, np.arange(count), accuracies[0])
        for logs, train, held in zip(epochs, *accuracies, strict=True):
            logs.update(accuracy=float(train), val_accuracy=float(held))
    data = trained_on(classes=(200, 200) if accuracies else ())
    return session_of(
        series,
        epochs=epochs,
        task="binary" if accuracies else "regression",
        layers=(dense("hidden", 32), *layers, dense("out", 1, "sigmoid", inputs=32)),
        data=msgspec.structs.replace(data, weighted=weighted),
    )


def _falling(count: int, to: float) -> Float64:
    return np.asarray(to + (0.7 - to) * np.exp(-np.arange(count) / 3))


HEALTHY = {
    "both sides are alike": lambda: _run(
        _falling(10, 0.2), _falling(10, 0.22), (np.full(10, 0.9), np.full(10, 0.89))
    ),
    "a little dropout makes training a little worse": lambda: _run(
        _falling(10, 0.3),
        _falling(10, 0.25),
        (np.full(10, 0.88), np.full(10, 0.91)),
        (dropout("dropout", 0.3),),
    ),
    "it improves so quickly that the epoch's mean lags behind": lambda: _run(
        0.7 * 0.3 ** np.arange(6.0), 0.7 * 0.33 ** np.arange(6.0)
    ),
}
AILING = {
    "training labels are wrong, those of validation are not": lambda: _run(
        _falling(12, 0.6), _falling(12, 0.35), (np.full(12, 0.7), np.full(12, 0.92))
    ),
    "most units are dropped in training": lambda: _run(
        _falling(12, 0.6),
        _falling(12, 0.35),
        (np.full(12, 0.66), np.full(12, 0.85)),
        (dropout("dropout", 0.85),),
    ),
    "numbers: half of the error": lambda: _run(_falling(12, 0.6), _falling(12, 0.6) * 0.5),
}

RULE = Rule("validation-too-good", check, lacks, frozenset(), HEALTHY, AILING)
