"""Sees labels that the loss or the output cannot take, and labels that have nothing to do with their examples.

Sees: the least and the greatest label, their mean and spread, and whether they are whole numbers, beside the loss,
the output's activation and its units. Wrong by construction are labels outside 0 to 1 under a binary cross-entropy
(1 and 2, −1 and 1, 0 and 255, several classes on one unit), class numbers that the output has no unit for (counted
from 1), class numbers that are no whole numbers (divided along with the images: all become class 0), and rows that
are no shares of classes under a categorical cross-entropy (several classes at once, none, 255 in place of 1). That
labels are of two values follows from their spread: no others reach the bound of Bhatia and Davis (2000).

Of numbers to be predicted, whether they are so large that the outputs, which begin near 0, have not got there: the
error is still about the size of the numbers themselves, and above that of always saying their mean.

Of labels that were shuffled apart from their examples the signs are indirect: a plain kernel model, which needs no
training, does no better than chance, and the network either guesses as well or learns what then fails on every
validation. The confidence stays moderate, since a plain model is at chance in some texts and pictures that can be
learned.

Hurts because the loss has no minimum where the labels are (it may fall without end while accuracy stays), or because
there is nothing to be learned. Encode labels as the loss wants them. Sources: StackOverflow 46869312 (labels outside
0 to 1: the loss goes to −∞); the documentation of Keras' losses; UMLAUT (CHI'21) checks label shapes likewise.

Wrong when soft labels are meant (label smoothing is recognised as long as the two values add up to 1). Silent without
the labels' values or the loss.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Output, SignalProbe, Summary
from monitor.diagnosis import experiments, motion
from monitor.diagnosis.case import REGRESSION, Case
from monitor.diagnosis.epochs import come, reached, validated_lift
from monitor.diagnosis.examples import Sampled, falling, flat, labelled, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.targets import (
    BINARY,
    CATEGORICAL,
    HINGE,
    SPARSE,
    Targets,
    fitting,
    refit,
    targets_of,
)
from monitor.session import Session

SMOOTHED: Final = 0.5
"""Two-valued labels whose higher value is at least this may be smoothed on one side (GANs use 0.9; Salimans et al.
2016); lower ones were divided."""
LEAST_PROBED: Final = 250
"""Examples that a plain model must have been tried on: two standard errors of a share are then 6 points."""
CLEAR_ERRORS: Final = 4.0
"""Standard errors above chance that leave no doubt, however few the examples."""
CLEAR_SIGNAL: Final = 0.2
"""Share of the variance that a plain model explains, likewise."""
LEAST_LABELS: Final = 100
"""Before all labels being equal means anything."""
MOSTLY: Final = 1.4
"""Times its fair share that the most frequent class may have, for a plain model at chance to mean anything."""
BY_HEART: Final = 0.3
"""By how much training must be further than validation, in lift: more than chance makes in a few hundred examples."""
NOTHING: Final = 0.05
"""A lift below is none: validation sets of a few hundred examples differ by as much."""
ROW_ERROR: Final = 0.02
"""By which the mean of a row's sum may differ from 1: a fiftieth of the rows without a class, or with two."""
NOT_THERE: Final = 0.5
"""Squared error as a share of the mean square of the targets: outputs are still nearer to 0 than to these."""
EXPLODED: Final = 1.1
"""From here on outputs are worse than 0 would be: that is no matter of how far the targets are."""
WORSE_THAN_MEAN: Final = 1.5
"""Squared error over the targets' variance."""
LEAST_SHARED: Final = 0.25
"""Of labels beyond what a bounded output reaches. Fewer are no matter of encoding."""


def lacks(case: Case) -> str:
    """Labels and a loss."""
    if case.output is None or not case.output.loss:
        return "the loss is not known"
    return "" if targets_of(case) is not None else "no labels were seen"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    targets, output = targets_of(case), case.output
    if targets is None or output is None:
        return []
    for look in (_constant, _of_binary, _of_hinge, _of_sparse, _of_categorical, _of_bounded):
        found = look(case, targets, output)
        if found is not None:
            return [found]
    indirect = _apart(case, targets) or _out_of_reach(case, targets, output)
    return [indirect] if indirect else []


# ── What the loss cannot take ───────────────────────────────────────────────────────────────────────


def _constant(case: Case, targets: Targets, output: Output) -> Finding | None:
    if not targets.described or targets.examples < LEAST_LABELS or targets.width != 1:
        return None
    if targets.high > targets.low:
        return None
    return _finding(
        case,
        targets,
        "All labels are the same",
        f"all {targets.examples:,.0f} labels looked at are {targets.low:g}",
        "Where every label is the same there is nothing to tell apart, so the model learns to say it always.",
        confidence=0.95,
        remedies=[Remedy("Look at how the labels are read: print(numpy.unique(y, return_counts=True))")],
    )


def _of_binary(case: Case, targets: Targets, output: Output) -> Finding | None:
    if output.loss not in BINARY or not targets.class_like:
        return None
    remedy = refit(fitting(targets, output.units), output.layer)
    if targets.low >= 0 and targets.high <= 1:
        return _divided(case, targets, output, remedy) if targets.two_valued else None
    if targets.number > 2 and output.units == 1:
        title = f"{targets.number} classes on one unit"
        meaning = "One unit tells two classes apart, 0 and 1; further classes have no place on it."
    else:
        title = f"Labels {targets.span} for a loss that takes 0 to 1"
        meaning = (
            "The loss compares probabilities with the labels, and no probability is outside 0 to 1: it can "
            "be lowered for ever without the predictions getting any better."
        )
    text = f"labels are {targets.span}, {output.loss} takes 0 to 1"
    return _finding(case, targets, title, text, meaning, confidence=0.97, remedies=[remedy])


def _divided(case: Case, targets: Targets, output: Output, remedy: Remedy) -> Finding | None:
    """Labels that were scaled along with the inputs."""
    smoothed = abs(targets.low + targets.high - 1) < 0.01 or targets.high >= SMOOTHED
    if smoothed or targets.low < 0:
        return None
    factor = 1 / targets.high
    return _finding(
        case,
        targets,
        f"Labels {targets.span}: divided by {factor:.4g}",
        f"the only labels are {targets.low:.4g} and {targets.high:.4g} = 1/{factor:.4g}, so no prediction is to "
        "exceed 0.5",
        "The labels were scaled along with the inputs, so that class 1 is asked for with next to no probability.",
        confidence=0.95,
        remedies=[Remedy("Scale the inputs only", code=f"y = (y > {targets.low:g}).astype(int)"), remedy],
    )


def _of_hinge(case: Case, targets: Targets, output: Output) -> Finding | None:
    if output.loss not in HINGE or not targets.class_like:
        return None
    if (targets.low, targets.high) in ((0, 1), (-1, 1)) and (targets.two_valued or not targets.classes):
        return None
    return _finding(
        case,
        targets,
        f"Labels {targets.span} for a loss that takes −1 and 1",
        f"labels are {targets.span}, {output.loss} takes −1 and 1",
        "The sign of the label tells this loss which side an example belongs on; these have not both signs.",
        confidence=0.95,
        remedies=[Remedy("Make them −1 and 1", code=f"y = numpy.where(y > {targets.low:g}, 1, -1)")],
    )


def _of_sparse(case: Case, targets: Targets, output: Output) -> Finding | None:
    units = output.units
    if output.loss not in SPARSE or units < 2:
        return None
    layer = output.layer or "the last layer"
    if not targets.integral:
        if not (targets.class_like or 0 <= targets.low <= targets.high <= 1):
            return None  # quantities: another rule's
        return _finding(
            case,
            targets,
            "Class numbers that are no whole numbers",
            f"labels are {targets.span}, and the loss cuts off what follows the point"
            + (": all of them become class 0" if targets.high < 1 else ""),
            "Class numbers name classes and must be whole; scaled along with the inputs they no longer tell classes "
            "apart.",
            confidence=0.97,
            remedies=[
                Remedy(
                    "Scale the inputs only, and leave the labels as they were read",
                    code="x = x / 255  # not y",
                )
            ],
        )
    if targets.low >= 0 and targets.high < units:
        return None
    shifted = targets.low > 0 and targets.high - targets.low < units
    title = (
        f"Labels count from {targets.low:g}: class {targets.high:g} has no unit"
        if shifted
        else f"Class numbers {targets.span}, but {units} units"
    )
    numbers = fitting(targets, units)
    remedies = [Remedy("Count from 0", code=numbers.labels or f"y = y - {targets.low:g}")]
    if not shifted:
        remedies = [
            Remedy(
                "As many units as there are classes",
                code=f'keras.layers.Dense({numbers.units}, activation="softmax")  # in place of {layer}'
                + (f"\n{numbers.labels}" if numbers.labels else ""),
            )
        ]
    return _finding(
        case,
        targets,
        title,
        f"class numbers are {targets.span}; {layer} has units for 0 to {units - 1}",
        "A class without a unit cannot be predicted; what the loss makes of it depends on the machine (an "
        "error, NaN, or nothing).",
        confidence=0.97,
        remedies=remedies,
    )


def _of_categorical(case: Case, targets: Targets, output: Output) -> Finding | None:
    if output.loss not in CATEGORICAL or output.units < 2 or targets.one_hot:
        return None
    if targets.width not in (0, output.units):
        return None
    total = targets.mean * output.units
    if targets.low < 0 or not targets.two_valued:
        return None
    if targets.integral and targets.high == 1:
        return _of_several(case, targets, output, total)
    if abs(total - targets.high) > ROW_ERROR * targets.high or abs(targets.high - 1) < 0.05:
        return None
    return _finding(
        case,
        targets,
        f"One-hot labels of {targets.high:.4g} in place of 1",
        f"each row has one {targets.high:.4g} and zeros: it adds up to {total:.4g}, where shares of classes add up "
        "to 1",
        "The labels were scaled along with the inputs: rows that do not add up to 1 ask for shares that no softmax "
        "can give.",
        confidence=0.95,
        remedies=[Remedy("Scale the inputs only", code=f"y = y / {targets.high:.6g}")],
    )


def _of_several(case: Case, targets: Targets, output: Output, total: float) -> Finding | None:
    if abs(total - 1) <= ROW_ERROR:
        return None
    several = total > 1
    if several:
        title = "Several classes at once under a categorical cross-entropy"
        meaning = (
            "A softmax shares out one certainty among all classes, so it cannot say yes to several of them."
        )
        remedies = [
            refit(fitting(targets._replace(width=output.units, integral=True), output.units), output.layer)
        ]
    else:
        title = "Examples without any class"
        meaning = "Rows of zeros name no class, so nothing is learned from those examples."
        remedies = [
            Remedy("Leave these examples out, or give them a class of their own", code="kept = y.any(axis=1)")
        ]
    return _finding(
        case,
        targets,
        title,
        f"a row of labels has {total:.3g} ones on average, where {output.loss} takes a single one",
        meaning,
        confidence=0.85,
        remedies=remedies,
        severity="warning",
    )


def _of_bounded(case: Case, targets: Targets, output: Output) -> Finding | None:
    """Two classes, or a few, under a distance and an output that cannot reach their numbers."""
    if output.loss not in REGRESSION or not targets.classes or targets.one_hot or targets.width != 1:
        return None
    bounds = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(output.activation)
    if bounds is None or output.units != 1 or (targets.low >= bounds[0] and targets.high <= bounds[1]):
        return None
    beyond = sum(count for value, count in targets.classes.items() if not bounds[0] <= value <= bounds[1])
    share = beyond / max(sum(targets.classes.values()), 1)
    if share < LEAST_SHARED:
        return None
    return _finding(
        case,
        targets,
        f"Labels {targets.span} for an output from {bounds[0]:g} to {bounds[1]:g}",
        f"{share:.0%} of the labels are outside of what {output.layer} can give ({output.activation}: "
        f"{bounds[0]:g} to {bounds[1]:g})",
        "The output cannot reach the numbers that stand for the classes, so it runs against its end.",
        confidence=0.9,
        remedies=[refit(fitting(targets, output.units), output.layer)],
    )


# ── Labels that belong to other examples ────────────────────────────────────────────────────────────


class _Unrelated(NamedTuple):
    """Labels that the inputs seem to tell nothing about."""

    by_heart: bool
    """Whether it learned the training data, to no avail on validation."""
    useless: bool
    """Whether validation shows that what was learned is worth nothing."""
    at_chance: bool
    """Whether a plain model shows that there is nothing to be learned."""
    validated: float | None
    """Lift in validation. `None`: not known."""


def _unrelated(case: Case, targets: Targets) -> _Unrelated | None:
    signal = case.data.signal if case.data and not case.inputs_are_names else None
    probed = signal is not None and signal.examples >= LEAST_PROBED
    at_chance = probed and signal is not None and _at_chance(case, signal)
    if (probed and not at_chance) or (signal is not None and _far_above_chance(signal)):
        return None
    lift, validated, base = case.lift, validated_lift(case), case.baseline
    useless = validated is not None and validated < NOTHING
    by_heart = (
        useless
        and targets.class_like
        and lift is not None
        and lift - max(validated or 0.0, 0.0) >= BY_HEART
        # Of rare classes nothing may be recognised at first, with labels in order as well.
        and base is not None
        and base.majority <= MOSTLY / max(base.classes, 2)
    )
    guesses = case.guessing and (reached(case) or 0.0) < NOTHING
    if not by_heart and not (at_chance and (guesses or useless)):
        return None
    return _Unrelated(by_heart, useless, at_chance, validated)


def _apart(case: Case, targets: Targets) -> Finding | None:
    found = None
    if case.seasoned and case.non_finite_from is None:
        found = _unrelated(case, targets)
    if found is None:
        return None
    confidence = 0.65 if found.at_chance and found.useless else 0.55 if found.by_heart else 0.45
    tried = experiments.one_batch(case)
    if tried is not None:
        confidence += 0.1 if tried[0] else -0.1  # what cannot learn even one batch has another fault
    return Finding(
        rule="label-encoding",
        title="The labels seem to have nothing to do with the inputs",
        severity="warning",
        confidence=confidence,
        start=0,
        stop=case.step,
        evidence=(*_of_unrelated(case, found), *([tried[1]] if tried else [])),
        explanation="What it learns of its training examples is worth nothing on others, as if inputs and labels had "
        "been shuffled or read apart from each other."
        if found.by_heart
        else "Neither similar examples nor the network tell anything about the labels, as if inputs and labels had "
        "been shuffled or read apart from each other.",
        remedies=(
            Remedy("Look at a few examples beside their labels", code="for i in range(9): print(y[i], x[i])"),
            Remedy(
                "Shuffle both with the same order",
                code="order = numpy.random.permutation(len(x))\nx, y = x[order], y[order]",
            ),
        ),
    )


def _of_unrelated(case: Case, found: _Unrelated) -> list[Evidence]:
    signal, lift = case.data.signal if case.data and not case.inputs_are_names else None, case.lift
    evidence = []
    if signal is not None:
        evidence.append(
            Evidence(
                f"{signal.model} reaches {signal.score:.3f} on {signal.examples:,} examples, chance "
                f"{signal.chance:.3f}",
                None,
                {"plain_model": signal.score, "chance": signal.chance},
            )
        )
    if lift is not None:
        text, numbers = f"in {case.step:,} steps training has come {come(lift)}", {"lift": lift}
        if found.validated is not None:
            text += f", validation {max(found.validated, 0):.0%}"
            numbers["val_lift"] = found.validated
        evidence.append(Evidence(text, case.step - 1, numbers))
    return evidence


def _at_chance(case: Case, signal: SignalProbe) -> bool:
    if signal.kind == "r2":
        return signal.score < 0.02
    classes = case.baseline.classes if case.baseline else 0
    if signal.chance > MOSTLY / max(classes, 2):
        return False  # of rare classes a plain model tells nothing, with labels in order as well
    error = math.sqrt(max(signal.chance * (1 - signal.chance), 1e-4) / signal.examples)
    return signal.score < signal.chance + 2 * error


def _far_above_chance(signal: SignalProbe) -> bool:
    """Whether even few examples prove that the inputs tell something."""
    if signal.kind == "r2":
        return signal.score > CLEAR_SIGNAL
    error = math.sqrt(max(signal.chance * (1 - signal.chance), 1e-4) / max(signal.examples, 1))
    return signal.score > signal.chance + CLEAR_ERRORS * error


def _out_of_reach(case: Case, targets: Targets, output: Output) -> Finding | None:
    """Numbers so large that the output, which begins near 0, would take thousands of steps to get there."""
    size, squared = math.hypot(targets.mean, targets.std), case.squared_error
    if (
        output.loss not in REGRESSION
        or targets.class_like
        or not size > motion.LARGE_INPUTS
        or squared is None
    ):
        return None
    if not (
        case.seasoned
        and NOT_THERE <= squared / size**2 <= EXPLODED
        and squared > WORSE_THAN_MEAN * targets.std**2
    ):
        return None
    return _finding(
        case,
        targets,
        "Targets far beyond what the output has reached",
        f"targets have a mean of {targets.mean:.4g} and a deviation of {targets.std:.4g}; after {case.step:,} steps "
        f"the error is {math.sqrt(squared):.4g} (root mean square), that of always saying the mean {targets.std:.4g}",
        "The outputs of a new network are about 0 and each step moves them a little; numbers so large are far off, "
        "and the way there says nothing about the inputs.",
        confidence=0.75,
        severity="warning",
        remedies=[
            Remedy(
                "Standardise the targets, and undo it for what is predicted",
                code="mean, std = y_train.mean(), y_train.std()\ny_train = (y_train - mean) / std\n"
                "predicted = model.predict(x) * std + mean",
            )
        ],
    )


def _finding(
    case: Case,
    targets: Targets,
    title: str,
    text: str,
    explanation: str,
    *,
    confidence: float,
    remedies: list[Remedy],
    severity: Severity = "critical",
) -> Finding:
    numbers = {"low": targets.low, "high": targets.high, "mean": targets.mean}
    return Finding(
        rule="label-encoding",
        title=title,
        severity=severity,
        confidence=confidence,
        start=targets.step or 0,
        stop=case.step,
        evidence=(Evidence(text, targets.step, numbers), *_classes(targets)),
        explanation=explanation,
        remedies=tuple(remedies),
    )


def _classes(targets: Targets) -> tuple[Evidence, ...]:
    if not 1 < len(targets.classes) <= 10 or targets.one_hot:
        return ()
    counts = ", ".join(f"{count:,} of {value}" for value, count in sorted(targets.classes.items()))
    return (Evidence(f"examples: {counts}", targets.step),)


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _two(low: float, high: float, activation: str = "sigmoid", loss: str = "binary_crossentropy") -> Session:
    data = trained_on(targets=labelled(np.repeat([low, high], 500)))
    return trained(1, activation, loss, accuracy=0.5, task="binary", data=data)


def _numbers(first: int, classes: int, units: int) -> Session:
    data = trained_on(targets=labelled(np.repeat(np.arange(first, first + classes), 60)))
    return trained(
        units, "softmax", "sparse_categorical_crossentropy", falling(), task="classification", data=data
    )


def _rows(height: float, second: float = 0.0, **more: Any) -> Session:
    """One-hot rows of ten classes, a share of them with a further class."""
    rng = np.random.default_rng(0)
    rows = np.eye(10)[rng.integers(0, 10, 1_000)] * height
    rows[rng.random(1_000) < second, 3] = height
    data = trained_on(targets=labelled(rows))
    return trained(10, "softmax", "categorical_crossentropy", task="classification", data=data, **more)


def _apart_from_inputs(score: float, accuracy: float, validated: float) -> Session:
    probe = SignalProbe(kind="accuracy", score=score, chance=0.5, examples=1_000)
    return trained(
        1,
        "sigmoid",
        "binary_crossentropy",
        accuracy=accuracy,
        task="binary",
        data=trained_on(classes=(500, 500), signal=probe),
        epochs=[{"loss": 0.69, "accuracy": accuracy, "val_loss": 0.7, "val_accuracy": validated}] * 10,
    )


def _prices(error: float) -> Session:
    prices = {"values": Summary(mean=2e5, std=8e4, low=2e4, high=7e5)}
    return trained(
        1, "linear", "mean_squared_error", flat(error), task="regression", data=trained_on(targets=prices)
    )


def _sampled_labels(low: float, high: float) -> Session:
    middle, half = (low + high) / 2, (high - low) / 2
    row = {
        "mean": middle,
        "std": half,
        "min": low,
        "max": high,
        "non_finite": 0,
        "integral": 1,
        "unit_rows": 0,
    }
    table = Sampled((0, 1, 3), row, of="values")
    return trained(1, "sigmoid", "binary_crossentropy", task="binary", tables={"target": table})


HEALTHY = {
    "labels are 0 and 1 for a sigmoid": lambda: _two(0, 1),
    "labels are smoothed": lambda: _two(0.05, 0.95),
    "labels are smoothed on one side": lambda: _two(0, 0.9),
    "labels are −1 and 1 for a hinge": lambda: _two(-1, 1, "tanh", "hinge"),
    "labels are −1 and 1 for a tanh and a squared error": lambda: _two(-1, 1, "tanh", "mean_squared_error"),
    "class numbers fit the units": lambda: _numbers(0, 10, 10),
    "class numbers begin at 1 and there is a unit more": lambda: _numbers(1, 10, 11),
    "one-hot rows": lambda: _rows(1),
    "sampled batches show 0 and 1": lambda: _sampled_labels(0, 1),
    "a plain model tells the labels and the network guesses": lambda: _apart_from_inputs(0.9, 0.5, 0.5),
    "a plain model is at chance and the network learns": lambda: _apart_from_inputs(0.5, 0.9, 0.8),
    "house prices that are learned": lambda: _prices(1e9),
    "targets are quantities": lambda: trained(
        1, "linear", "binary_crossentropy", task="binary", data=trained_on()
    ),
}
AILING = {
    "labels are 1 and 2 for a sigmoid": lambda: _two(1, 2),
    "labels are −1 and 1 for a binary cross-entropy": lambda: _two(-1, 1, "tanh"),
    "labels are 0 and 255": lambda: _two(0, 255),
    "labels were divided by 255": lambda: _two(0, 1 / 255),
    "labels are 1 and 2 for a hinge": lambda: _two(1, 2, "tanh", "hinge"),
    "labels are 1 and 2 for a sigmoid and a squared error": lambda: _two(
        1, 2, "sigmoid", "mean_squared_error"
    ),
    "three classes on one unit": lambda: trained(
        1, "sigmoid", "binary_crossentropy", task="binary", data=trained_on(classes=(300, 300, 300))
    ),
    "class numbers begin at 1": lambda: _numbers(1, 10, 10),
    "more classes than units": lambda: _numbers(0, 10, 5),
    "house prices, and outputs that are still about 0": lambda: _prices(3.6e10),
    "a plain model is at chance, and what was learned fails on validation": lambda: _apart_from_inputs(
        0.5, 0.62, 0.5
    ),
    "class numbers were divided by 255": lambda: trained(
        10,
        "softmax",
        "sparse_categorical_crossentropy",
        task="classification",
        data=trained_on(targets=labelled(np.repeat(np.arange(10), 60) / 255)),
    ),
    "one-hot rows were divided by 255": lambda: _rows(1 / 255),
    "one-hot rows are 0 and 255": lambda: _rows(255),
    "several classes at once under a categorical cross-entropy": lambda: _rows(1, 0.5),
    "all labels are the same": lambda: trained(
        1, "sigmoid", "binary_crossentropy", task="binary", data=trained_on(classes=(1_000,))
    ),
    "sampled batches show 1 and 2": lambda: _sampled_labels(1, 2),
    "a plain model and the network are at chance": lambda: _apart_from_inputs(0.51, 0.5, 0.5),
    "the network learns by heart what a plain model cannot tell": lambda: _apart_from_inputs(0.5, 0.95, 0.5),
}

EXPLAINS = frozenset(
    {
        *("plateau", "oscillation", "input-ignored", "underfitting", "overfitting", "non-finite"),
        *("class-imbalance", "too-short", "dead-units", "exploding-gradient"),
    }
)

RULE = Rule("label-encoding", check, lacks, EXPLAINS, HEALTHY, AILING)
