"""Sees that a model learns its training data by heart: validation gets worse while training goes on improving.

Sees: the losses of training and of validation at the ends of epochs. Since its best value the validation loss must
rise beyond its own noise (Mann-Kendall, one-sided 5 %) by a twentieth at least, while the training loss has fallen by
as much. Where accuracy is known a wide gap counts too: of a fifth while the validation loss is above its best by a
twentieth, or of a seventh once there is nothing left to learn of the training data. It is a warning
only when it costs something: accuracy that training has and validation has not, a loss that is half as high again, or
one above that of guessing. A model that is merely more certain than it should be gets a note.

Hurts because every further step makes the model worse on what it has not seen. Stop and take the weights of the best
epoch; more data, augmentation, dropout, weight decay, or a smaller network move that point. Sources: Prechelt, "Early
stopping, but when?" (1998); Srivastava et al. (2014) for dropout; AutoTrainer and UMLAUT compare the two losses by
their ratio, which this rule does not: a ratio says nothing about the direction.

Wrong when the validation examples are of another kind than the training's (the split was not shuffled): then the gap
is there from the first epoch, and the rule is less sure. Silent without five validations.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from client_callback.wire.trends import trends
from monitor.diagnosis.case import Case
from monitor.diagnosis.epochs import Sides, lacks_validations, sides, validated_accuracy
from monitor.diagnosis.examples import dense, session_of, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.medians import median
from monitor.session import Session

FEWEST_EPOCHS: Final = 5
"""A turn needs a best value and four after it: fewer cannot reach 5 % in a rank test."""
RISE_Z: Final = 1.645
"""One-sided 5 %: from here on the validation loss counts as rising."""
SHARE: Final = 0.05
"""Of the loss: smaller rises and falls are not worth speaking of."""
NOISES: Final = 2.0
"""So many times the noise from epoch to epoch must the validation loss have risen."""
GAP: Final = 0.1
"""Accuracy that training has and validation has not: 2 standard errors of 100 validation examples. UMLAUT's and
AutoTrainer's threshold on (validation − training) / training is the same number."""
WIDE_GAP: Final = 0.2
"""Enough where the rise of the validation loss is not beyond its noise."""
GAP_OF_SOLVED: Final = 0.15
"""Enough where there is nothing left to learn of the training data."""
COSTLY_RISE: Final = 0.5
"""Of the best validation loss; of numbers, where no accuracy tells what it costs, less."""
COSTLY_RISE_OF_NUMBERS: Final = 0.2


class _Turn(NamedTuple):
    """Where validation was best, and what came after."""

    best: int
    """Place of the best epoch among those looked at."""
    lowest: float
    now: float
    rising: bool
    training_then: float
    training_now: float

    @property
    def rise(self) -> float:
        """As a share of the best."""
        return (self.now - self.lowest) / max(abs(self.lowest), 1e-9)

    @property
    def learning(self) -> bool:
        """Whether training has gone on improving."""
        return self.training_then - self.training_now >= SHARE * abs(self.training_then)


def lacks(case: Case) -> str:
    """Enough validations."""
    return lacks_validations(case, FEWEST_EPOCHS)


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    both = sides(case)
    if both is None or case.non_finite_from is not None:
        return []
    turn = _turn(both)
    accuracies = _accuracies(case)
    gap = accuracies[0] - accuracies[1] if accuracies else math.nan
    turned = turn.rising and turn.learning and turn.now > turn.training_now
    clear = (gap >= WIDE_GAP and turn.rise > SHARE) or (gap >= GAP_OF_SOLVED and case.solved)
    left_behind = clear and turn.best < len(both.steps) - 3 and turn.learning
    if not (turned or left_behind):
        return []
    costly = _costs(case, turn, gap) or left_behind
    return [
        Finding(
            rule="overfitting",
            title="Overfitting: it learns the training data by heart",
            severity="warning" if costly else "note",
            confidence=_confidence(both, turn, gap, turned=turned) if costly else 0.4,
            start=int(min(both.steps[turn.best] + 1, case.step - 1)),
            stop=case.step,
            evidence=tuple(_evidence(case, both, turn, accuracies)),
            explanation="The model still gets better on the examples it trains on and "
            + ("worse" if turn.rise > SHARE else "no better")
            + " on those it does not: it memorises instead of learning what they have in common.",
            remedies=_remedies(case, worse=turn.rise > SHARE),
            shaded=True,
        )
    ]


def _turn(both: Sides) -> _Turn:
    validation = both.validation
    # Of medians of three: the least of many noisy values is far too low, and later ones look like a rise.
    smooth = _median_of_three(validation)
    best = int(np.argmin(smooth))
    after = validation[best:]
    training_now, now = both.now
    lowest = float(smooth[best])
    rising = False
    if len(after) >= 4 and now - lowest > SHARE * abs(lowest):
        noise = 1.4826 * median(np.abs(np.diff(validation))) / math.sqrt(2)
        risen = now - lowest > NOISES * noise
        found = trends(after[None], RISE_Z)
        # Without the allowance for a memory: a curve that bends upwards looks like noise with one.
        rising = risen and float(found.z[0]) * math.sqrt(float(found.inflation[0])) >= RISE_Z
    return _Turn(best, lowest, now, rising, float(both.training[best]), training_now)


def _median_of_three(values: Float64) -> Float64:
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.sort([padded[:-2], values, padded[2:]], axis=0)[1])


def _accuracies(case: Case) -> tuple[float, float] | None:
    """Of training and validation, now."""
    name = validated_accuracy(case)
    both = sides(case, name) if name else None
    return both.now if both is not None and all(map(math.isfinite, both.now)) else None


def _costs(case: Case, turn: _Turn, gap: float) -> bool:
    """Whether it is more than a model that is too certain of itself."""
    if not math.isfinite(gap):
        return turn.rise >= COSTLY_RISE_OF_NUMBERS
    entropy = case.baseline.entropy if case.baseline else math.nan
    above_guessing = "crossentropy" in (case.output.loss if case.output else "") and turn.now > entropy
    return gap >= GAP or (gap >= GAP / 2 and (turn.rise >= COSTLY_RISE or above_guessing))


def _confidence(both: Sides, turn: _Turn, gap: float, *, turned: bool) -> float:
    if not turned:
        return 0.6
    if turn.best == 0 and both.validation[0] > 2 * both.training[0]:
        return 0.5  # apart from the first epoch on: another kind of examples fits as well
    return 0.85 if gap >= WIDE_GAP or turn.rise >= COSTLY_RISE else 0.75


def _evidence(case: Case, both: Sides, turn: _Turn, accuracies: tuple[float, float] | None) -> list[Evidence]:
    at, newest = int(both.steps[turn.best]), int(both.steps[-1])
    found = [
        Evidence(
            f"val_loss was lowest with {turn.lowest:.4g} at step {at:,} and is {turn.now:.4g} at step {newest:,}",
            at,
            {"val_loss_best": turn.lowest, "val_loss": turn.now},
        ),
        Evidence(
            f"loss fell from {turn.training_then:.4g} to {turn.training_now:.4g} meanwhile",
            newest,
            {"loss_then": turn.training_then, "loss": turn.training_now},
        ),
    ]
    if accuracies:
        found.append(
            Evidence(
                f"accuracy is {accuracies[0]:.3g} in training and {accuracies[1]:.3g} in validation",
                newest,
                {"accuracy": accuracies[0], "val_accuracy": accuracies[1]},
            )
        )
    examples, parameters = case.data.examples if case.data else None, _parameters(case)
    if examples and parameters > examples:
        found.append(
            Evidence(
                f"{parameters:,} weights for {examples:,} examples",
                None,
                {"parameters": parameters, "examples": examples},
            )
        )
    return found


def _parameters(case: Case) -> int:
    return sum(layer.parameters for layer in case.layers if layer.trainable)


def _remedies(case: Case, *, worse: bool) -> tuple[Remedy, ...]:
    change = "it only gets worse" if worse else "nothing more is gained"
    found = [Remedy(f"Stop here: from now on {change} on new examples", "stop")]
    drops = [layer for layer in case.layers if layer.class_name == "Dropout"]
    if drops and all(float(layer.settings.get("rate") or 0.0) < 0.5 for layer in drops):
        values = " ".join(f"{layer.name}.rate=0.5" for layer in drops)
        found.append(Remedy("Drop more units", f"set {values}"))
    hidden = [layer for layer in case.trained_layers[:-1] if layer.class_name.startswith(("Dense", "Conv"))]
    if hidden and not any(layer.settings.get("l2") for layer in hidden):
        values = " ".join(f"{layer.name}.l2=0.001" for layer in hidden[:8])
        found.append(Remedy("Penalise large weights, from the start", f"set {values} from start"))
    found += [
        Remedy(
            "Next time, stop by itself and keep the best weights",
            code="keras.callbacks.EarlyStopping(monitor='val_loss', patience=5, restore_best_weights=True)",
        ),
    ]
    if not drops:
        width = max((layer.units for layer in hidden), default=64)
        found.append(
            Remedy(
                "Drop units after the hidden layers, and halve them",
                code=f"keras.layers.Dense({max(4, width // 2)}, activation='relu'),\nkeras.layers.Dropout(0.5),",
            )
        )
    found.append(Remedy("More examples, or augmented ones; judge small data by cross-validation"))
    return tuple(found)


# ── Examples ──────────────────────────────────────────────────────────────────────────────────────


def _run(
    training: Float64,
    validation: Float64,
    accuracies: tuple[Float64, Float64] | None = None,
    per_epoch: int = 20,
) -> Session:
    """One value of each per epoch; the losses of steps run straight through those of training."""
    count = len(training)
    rng = np.random.default_rng(0)
    places = np.arange(count * per_epoch) / per_epoch - 1
    series = {"loss": np.interp(places, np.arange(count), training) * rng.normal(1, 0.05, len(places))}
    epochs = [{"loss": t, "val_loss": v} for t, v in zip(training.tolist(), validation.tolist(), strict=True)]
    if accuracies:
        series["accuracy"] = np.interp(places, np.arange(count), accuracies[0])
        for logs, train, held in zip(epochs, *accuracies, strict=True):
            logs.update(accuracy=float(train), val_accuracy=float(held))
    classes = (200, 200) if accuracies else ()
    return session_of(
        series,
        epochs=epochs,
        task="binary" if accuracies else "regression",
        layers=(dense("hidden", 256), dense("out", 1, "sigmoid", inputs=256)),
        data=trained_on(classes=classes),
    )


def _epochs(count: int) -> Float64:
    return np.arange(count, dtype=np.float64)


def _wobbling(values: Float64, share: float) -> Float64:
    return np.asarray(values * np.random.default_rng(1).normal(1.0, share, len(values)))


def _turning(count: int, turn: int, slope: float) -> Float64:
    return np.where(
        _epochs(count) < turn,
        0.7 - 0.02 * _epochs(count),
        0.7 - 0.02 * turn + slope * (_epochs(count) - turn),
    )


HEALTHY = {
    "both losses fall": lambda: _run(
        0.7 * np.exp(-_epochs(20) / 8), _wobbling(0.1 + 0.6 * np.exp(-_epochs(20) / 8), 0.04)
    ),
    "validation stays while training falls, both accurate": lambda: _run(
        0.7 * np.exp(-_epochs(20) / 5),
        _wobbling(np.maximum(0.15, 0.7 * np.exp(-_epochs(20) / 5)), 0.05),
        (1 - 0.4 * np.exp(-_epochs(20) / 4), 0.95 - 0.35 * np.exp(-_epochs(20) / 4)),
    ),
    "the loss has risen on both sides": lambda: _run(
        0.7 + 0.05 * _epochs(12), _wobbling(0.7 + 0.05 * _epochs(12), 0.03)
    ),
    "validation is noisy": lambda: _run(0.7 * np.exp(-_epochs(20) / 20), _wobbling(np.full(20, 0.5), 0.1)),
    "only four epochs are done": lambda: _run(0.7 * np.exp(-_epochs(4)), 0.5 + 0.1 * _epochs(4)),
}
AILING = {
    "validation turns after eight epochs": lambda: _run(
        0.7 * np.exp(-_epochs(30) / 8),
        _wobbling(_turning(30, 8, 0.03), 0.03),
        (1 - 0.5 * np.exp(-_epochs(30) / 6), np.minimum(0.75, 0.5 + 0.04 * _epochs(30))),
    ),
    "numbers: validation rises by half": lambda: _run(
        np.exp(-_epochs(25) / 5), _wobbling(_turning(25, 6, 0.04), 0.03)
    ),
    "training is perfect, validation no better since long": lambda: _run(
        0.7 * np.exp(-_epochs(30) / 5),
        np.where(_epochs(30) < 4, 0.7 - 0.02 * _epochs(30), 0.63),
        (1 - 0.5 * np.exp(-_epochs(30) / 4), np.full(30, 0.7)),
    ),
}

RULE = Rule("overfitting", check, lacks, frozenset(), HEALTHY, AILING)
