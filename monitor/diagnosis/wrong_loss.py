"""Sees a loss that does not fit the task or the output's units.

Sees: the loss, the output's units and activation, and what the targets look like. Wrong by construction are: a
categorical loss on one unit (the share of a single class is always 1, so the loss is a constant); a distance between
numbers over several units that all get one class number (Keras spreads it over them, so all learn the same); a
cross-entropy on quantities, which are no probabilities. Of several outputs each is looked at beside its targets.
A loss of the user's own is wrong when it gets better while accuracy falls below guessing. Not wrong in itself, and
told only of a training that is in trouble: a distance between class numbers, a mean absolute error on classes (it is
content with the largest class), a percentage of targets that are 0, a binary cross-entropy over classes that exclude
each other.

Hurts because training minimises something else than what is wanted, or nothing. Take the loss that belongs to the
targets. Sources: StackOverflow 68751439 (loss 0 from the start); Bishop, "Pattern Recognition and Machine Learning"
(2006), 4.3.4 and 5.2, for the pairs of output and loss; UMLAUT (CHI'21) and NeuraLint (TOSEM'21) check the same ones.

Wrong when a quantity is counted in few whole numbers (stars, ages): then a distance between them is right, and what
is said is no more than a guess. Silent on losses of the user's own where no accuracy of classes is known.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Output
from monitor.diagnosis.case import REGRESSION, Case
from monitor.diagnosis.examples import Sampled, falling, flat, labelled, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.medians import finite, median
from monitor.diagnosis.targets import (
    BINARY,
    CATEGORICAL,
    CROSS_ENTROPIES,
    HINGE,
    SPARSE,
    Targets,
    fitting,
    further,
    refit,
    targets_of,
)
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

AMONG_SEVERAL: Final = CATEGORICAL | SPARSE | {"categorical_hinge", "cosine_similarity"}
"""Losses that compare units with each other: of one unit they say nothing. A cosine of single numbers is ±1."""
DIVERGENCES: Final = frozenset({"kl_divergence"})
"""y·log(y / p), summed over the units: of a single one it is least where p is 1, whatever is to be told apart."""
KNOWN: Final = CROSS_ENTROPIES | AMONG_SEVERAL | DIVERGENCES | HINGE | REGRESSION
ABSOLUTE: Final = frozenset({"mean_absolute_error", "mae"})
RELATIVE: Final = frozenset({"mean_absolute_percentage_error", "mape"})
PARTS: Final = 8
FEWEST_POINTS: Final = 4
WRONG_SHARE: Final = 0.8
"""Of the most frequent class' share, below which answers are worse than guesses."""
LOST: Final = 0.1
"""Accuracy that it had in the first eighth of the steps."""
ABSURD: Final = 1e4
"""Percent: a mean error of a hundred times the target is one of targets near 0 (Keras divides by at least 1e-7)."""


class _Misfit(NamedTuple):
    title: str
    text: str
    meaning: str
    confidence: float
    severity: Severity
    numbers: dict[str, float]


def lacks(case: Case) -> str:
    """A loss of Keras' own and an output of known width."""
    output = case.output
    if output is None or not output.loss:
        return "the loss is not known"
    if output.loss not in KNOWN and case.accuracy is None:
        return f"the loss {output.loss} is none that it knows"
    return "" if output.units else "the number of output units is not known"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    output, targets = case.output, targets_of(case)
    if output is None:
        return []
    misfit = _certain(case, output, targets) or _likely(case, output, targets)
    for other, theirs in further(case):
        if misfit is None and (misfit := _certain(case, other, theirs)):
            output, targets = other, theirs
    perverse = _perverse(case) if output.loss not in KNOWN else None
    misfit = misfit or perverse
    if misfit is None:
        return []
    wrong = trouble(case)
    evidence = [Evidence(misfit.text, None, misfit.numbers)]
    if wrong:
        evidence.append(Evidence(wrong, case.step - 1))
    return [
        Finding(
            rule="wrong-loss",
            title=misfit.title,
            severity=misfit.severity,
            confidence=misfit.confidence,
            start=0,
            stop=case.step,
            evidence=tuple(evidence),
            explanation=misfit.meaning,
            remedies=(*((_SIGN,) if perverse else ()), *_remedies(case, output, targets)),
        )
    ]


# ── By construction ─────────────────────────────────────────────────────────────────────────────────


def _certain(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    numbers = {"units": float(output.units)}
    if output.units == 1 and output.loss in AMONG_SEVERAL:
        value = f"; it was {case.first_loss:.4g} at step 0" if math.isfinite(case.first_loss) else ""
        return _Misfit(
            f"{output.loss} on one unit is a constant",
            f"{output.layer or 'the output'} has 1 unit{value}",
            "This loss compares classes with each other; with a single unit there is nothing to compare, whatever "
            "the network says, so nothing can be learned.",
            0.97,
            "critical",
            numbers,
        )
    if output.units == 1 and output.loss in DIVERGENCES:
        return _Misfit(
            f"{output.loss} on one unit asks for 1 everywhere",
            f"{output.layer or 'the output'} has 1 unit",
            "This loss compares the shares of several classes; of a single share it counts only the examples of "
            "class 1, and is least when the output is 1 for all.",
            0.95,
            "critical",
            numbers,
        )
    if targets is None or not targets.high > targets.low:
        return None
    numbers |= {"low": targets.low, "high": targets.high}
    if output.loss in CROSS_ENTROPIES and _quantities(output, targets):
        return _Misfit(
            f"{output.loss} on quantities",
            f"targets are {targets.span} with mean {targets.mean:.4g} and deviation {targets.std:.3g}: no classes, "
            "and no probabilities",
            "A cross-entropy compares probabilities of classes; for numbers that measure something it has no minimum "
            "where the prediction is right.",
            0.95,
            "critical",
            numbers,
        )
    if output.loss in REGRESSION and output.units > 1 and _spread_over(case, targets) and targets.class_like:
        return _Misfit(
            f"A distance to one class number under {output.units} units",
            f"each example has one number {targets.span}, {output.layer or 'the output'} has {output.units} units "
            f"({output.activation or 'no activation'}): {output.loss} compares each unit with that number",
            "Every unit is asked to be the number of the class, instead of each standing for one class, so the units "
            "cannot tell the classes apart.",
            0.95,
            "critical",
            numbers,
        )
    return None


def _spread_over(case: Case, targets: Targets) -> bool:
    """Whether each example has one target, and the output several numbers that are all compared with it."""
    if targets.described:
        return targets.width == 1
    # Residuals are recorded where both have as many numbers.
    return case.table("predictions") is not None and case.table("residuals") is None


def _quantities(output: Output, targets: Targets) -> bool:
    """Whether these are numbers that a cross-entropy has no use for."""
    if targets.class_like or targets.one_hot:
        return False
    outside = targets.low < 0 or targets.high > 1
    if output.loss in SPARSE:
        return not targets.integral and outside
    return outside


# ── Only where it would explain the trouble ─────────────────────────────────────────────────────────


def _likely(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if targets is None or not trouble(case):
        return None
    numbers = {"low": targets.low, "high": targets.high}
    name = output.layer or "the output"
    if output.loss in RELATIVE:
        return _percentage(case, output, targets)
    places = _several_places(case, output, targets, name)
    if places is not None:
        return places
    if output.loss in REGRESSION and targets.class_like:
        return _distance_of_classes(case, output, targets, name)
    if output.loss in BINARY and output.units > 2 and targets.one_hot and output.activation == "softmax":
        return _Misfit(
            "Binary cross-entropy over classes that exclude each other",
            f"{output.units} units with a softmax, each example has one class",
            "Each class is judged by itself, and as nearly all answers are “no”, saying no to all is cheap.",
            0.45,
            "warning",
            numbers,
        )
    return None


def _percentage(case: Case, output: Output, targets: Targets) -> _Misfit | None:
    level = case.progress.level
    if not (targets.low <= 0 <= targets.high and level > ABSURD):
        return None
    return _Misfit(
        "A percentage of targets that are 0",
        f"targets are {targets.span}; {output.loss} divides by them, and is {level:.3g} %",
        "An error in percent of a target near 0 is enormous whatever is predicted, and outweighs all others.",
        0.8,
        "warning",
        {"low": targets.low, "high": targets.high, "loss": level},
    )


def _several_places(case: Case, output: Output, targets: Targets, name: str) -> _Misfit | None:
    if output.loss not in REGRESSION or output.units != 1 or targets.width not in (0, 1):
        return None
    if case.table("predictions") is None or case.table("residuals") is not None:
        return None
    return _Misfit(
        "The output has more numbers for each example than the target",
        f"{name} has 1 unit at each of several places, and an example has one target {targets.span}",
        "The prediction at every place is compared with the one target, so an axis was not reduced before the "
        "output: a Flatten is missing, or return_sequences is set on the last recurrent layer.",
        0.6,
        "warning",
        {"low": targets.low, "high": targets.high},
    )


def _distance_of_classes(case: Case, output: Output, targets: Targets, name: str) -> _Misfit | None:
    numbers = {"low": targets.low, "high": targets.high, "classes": float(targets.number)}
    asks_accuracy = any("acc" in series for series in case.session.metric_series())
    several = targets.number > 2 and not targets.one_hot
    if several and output.units == 1 and not (asks_accuracy or output.activation in ("sigmoid", "softmax")):
        return None  # a count, an age, a rating
    if several and output.units == 1:
        return _Misfit(
            f"A distance between the numbers of {targets.number} classes",
            f"{name} has 1 unit for {targets.number} classes {targets.span}, and {output.loss} measures how far it "
            "is from the class number",
            "Class numbers are names: a distance between them calls class 1 nearer to 2 than to 9, and one unit has "
            "to be exactly right to count as such.",
            0.75,
            "warning",
            numbers,
        )
    absolute = output.loss in ABSOLUTE
    if not absolute and output.activation not in ("sigmoid", "softmax"):
        return None
    return _Misfit(
        f"{output.loss} for classes",
        f"targets are {targets.span} in {targets.number or 2} classes, {name} is a {output.activation}",
        "The least absolute error of a guess is to name the largest class always, so that is where it ends."
        if absolute
        else "A squared error hardly moves an output that is far on the wrong side; a cross-entropy does.",
        0.65 if absolute else 0.45,
        "warning",
        numbers,
    )


def _perverse(case: Case) -> _Misfit | None:
    """Whether what lowers a loss of the user's own makes the model wrong: that is not what is wanted."""
    base, accuracy = case.baseline, case.accuracy
    if base is None or base.classes < 2 or accuracy is None or not case.seasoned or _weighted(case):
        return None
    losses, shares = _course(case, "loss"), _course(case, _accuracy_name(case))
    if len(losses) < FEWEST_POINTS or len(shares) < FEWEST_POINTS:
        return None
    newest = max(1, len(losses) // 4)
    spread = 1.4826 * median(np.abs(np.diff(losses)))
    fell = float(losses[:newest].mean() - losses[-newest:].mean())
    # Where guessing errs by more than this on so many examples, chance has nothing to do with it.
    error = math.sqrt(base.majority * (1 - base.majority) / max(base.counted, 1.0))
    worse_than_guesses = accuracy < min(WRONG_SHARE * base.majority, base.majority - 4 * error)
    # An untrained model may begin below guessing, and rise.
    if not (fell > 2 * spread and worse_than_guesses and shares[0] - accuracy >= LOST):
        return None
    return _Misfit(
        "The loss gets better while the answers get worse",
        f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}, accuracy from {shares[0]:.3f} to "
        f"{accuracy:.3f}; always saying the most frequent class gives {base.majority:.3f}",
        "What makes this loss small is not what makes the predictions right: a sign is wrong in it, or it does not "
        "fit the output.",
        0.85,
        "critical",
        {"accuracy": accuracy, "majority": base.majority, "loss": float(losses[-1])},
    )


def _weighted(case: Case) -> bool:
    return case.data is not None and bool(case.data.class_weight or case.data.weighted)


def _accuracy_name(case: Case) -> str:
    names = (*case.session.metric_series(), *case.session.epoch_logs)
    return next((name for name in names if "acc" in name), "")


def _course(case: Case, name: str) -> Float64:
    """Means over equal parts since the last change, or the epochs' values; those that are finite."""
    found = case.blocks(name)
    points = case.session.epoch_logs.get(name)
    if found is not None:
        means = found.means[: len(found.means) // PARTS * PARTS].reshape(PARTS, -1)
        values = means.mean(axis=1) if means.size else found.means
    elif points is not None:
        values = points.values[points.steps >= case.changed_at]
    else:
        return np.empty(0)
    return np.asarray(finite(np.asarray(values, np.float64)))


_SIGN = Remedy(
    "A loss of your own must be least where the predictions are right: try it on a few by hand",
    code="print(loss(y[:8], y[:8]), loss(y[:8], 1 - y[:8]))  # the first must be the smaller one",
)


def _remedies(case: Case, output: Output, targets: Targets | None) -> tuple[Remedy, ...]:
    if targets is None:
        two = refit(fitting(None), output.layer)
        many = Remedy(
            "For more classes one unit each",
            code='keras.layers.Dense(CLASSES, activation="softmax")\n'
            'model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=[…])',
        )
        return (two._replace(text=f"For two classes: {two.text}"), many)
    return (refit(fitting(targets, output.units), output.layer),)


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────

_KINDS: Final = {
    "two": labelled(np.repeat([0, 1], 500)),
    "ten": labelled(np.repeat(np.arange(10), 60)),
    "rows": labelled(np.eye(10)[np.repeat(np.arange(10), 60)]),
    "prices": labelled(np.linspace(0.15, 5.0, 1_000) ** 1.5),
    "shares": labelled(np.linspace(0.0, 1.0, 1_000)),
}


def _example(units: int, activation: str, loss: str, targets: str, **more: Any) -> Session:
    return trained(units, activation, loss, data=trained_on(targets=_KINDS[targets]), **more)


HEALTHY = {
    "two classes, a sigmoid, binary cross-entropy": lambda: _example(
        1, "sigmoid", "binary_crossentropy", "two"
    ),
    "class numbers, a softmax, sparse cross-entropy": lambda: _example(
        10, "softmax", "sparse_categorical_crossentropy", "ten"
    ),
    "one-hot rows, a softmax, cross-entropy": lambda: _example(
        10, "softmax", "categorical_crossentropy", "rows"
    ),
    "prices, no activation, squared error": lambda: _example(1, "linear", "mean_squared_error", "prices"),
    "shares from 0 to 1, a sigmoid, binary cross-entropy": lambda: _example(
        1, "sigmoid", "binary_crossentropy", "shares"
    ),
    "squared error on one-hot rows in a training that goes well": lambda: _example(
        10, "softmax", "mean_squared_error", "rows", losses=falling(start=0.09)
    ),
    "a rating of few whole numbers under a squared error": lambda: _example(
        1, "linear", "mean_squared_error", "ten", losses=flat(8.0)
    ),
    "a divergence of shares among ten": lambda: _example(10, "softmax", "kl_divergence", "rows"),
    "a loss of the user's own, and what is learned grows": lambda: _example(
        1, "sigmoid", "focal", "two", losses=falling(), accuracy=0.9, task="unknown"
    ),
    "a loss that falls in a training that began below guessing": lambda: _example(
        1, "sigmoid", "focal", "two", losses=falling(), accuracy=np.linspace(0.1, 0.3, 400), task="unknown"
    ),
    "a loss of the user's own that falls, and nothing is learned yet": lambda: _example(
        1, "sigmoid", "focal", "two", losses=falling(), accuracy=0.5, task="unknown"
    ),
    "prices under a percentage": lambda: _example(1, "linear", "mean_absolute_percentage_error", "prices"),
}
AILING = {
    "categorical cross-entropy on one unit": lambda: _example(
        1, "sigmoid", "categorical_crossentropy", "two", losses=flat(0.0, noise=0.0), accuracy=0.5
    ),
    "categorical cross-entropy on one softmax unit, labels not known": lambda: trained(
        1, "softmax", "categorical_crossentropy", flat(0.0, noise=0.0)
    ),
    "a divergence of shares on one unit": lambda: _example(
        1, "sigmoid", "kl_divergence", "two", losses=falling()
    ),
    "a loss of the user's own, whose sign is wrong": lambda: _example(
        1,
        "sigmoid",
        "log_likelihood",
        "two",
        losses=np.linspace(-0.7, -9.0, 400),
        accuracy=np.linspace(0.45, 0.07, 400),
        task="unknown",
    ),
    "squared error between ten units and a class number": lambda: _example(
        10, "softmax", "mean_squared_error", "ten", losses=flat(27.0), accuracy=0.1
    ),
    "binary cross-entropy on prices": lambda: _example(1, "linear", "binary_crossentropy", "prices"),
    "binary cross-entropy on standardised quantities": lambda: trained(
        1, "sigmoid", "binary_crossentropy", data=trained_on()
    ),
    "absolute error on two classes, at the share of the larger": lambda: _example(
        1, "sigmoid", "mean_absolute_error", "two", losses=flat(0.5)
    ),
    "predictions at several places for one target": lambda: _example(
        1,
        "linear",
        "mean_squared_error",
        "prices",
        losses=flat(2.0),
        task="regression",
        tables={"predictions": Sampled((0, 1), {"0": 1, "1": 1}, of="histogram")},
    ),
    "ten class numbers on one unit, and accuracy is asked for": lambda: _example(
        1, "linear", "mean_squared_error", "ten", losses=flat(8.2), accuracy=0.1, task="regression"
    ),
    "a percentage of targets that are 0": lambda: _example(
        1, "linear", "mean_absolute_percentage_error", "shares", losses=flat(4e6, noise=1e5)
    ),
}

EXPLAINS = frozenset(
    {
        *("plateau", "oscillation", "input-ignored", "underfitting", "too-short", "dead-units"),
        *("class-imbalance", "non-finite"),
    }
)

RULE = Rule("wrong-loss", check, lacks, EXPLAINS, HEALTHY, AILING)
