"""Sees predictions that collapse to the frequent classes because the others are rare.

Sees: how often each class occurs, and in the confusion counts of the newest sampled batches how many examples of the
rare classes are recognised beside those of the most frequent one. Accuracy hides this: with nine of ten examples in
one class, always saying that class is right nine times in ten.

Hurts because the rare classes are usually the ones that matter. Weigh the classes in the loss (can be done live),
sample the rare ones more often, move the threshold; and look at balanced accuracy or the area under the ROC curve.
Sources: He and Garcia (2009), "Learning from Imbalanced Data"; SageMaker Debugger's rule takes a ratio above 10 and
a per-class error above 0.7.

Wrong when the rare classes cannot be told apart from the inputs: weights then only trade one error for another. A
network that guesses for another reason (dead units, a rate too high) collapses to the frequent class as well: where
the loss has not fallen below that of always answering with the classes' shares, the network has learned nothing at
all and this is a note. Silent without classes, without predictions, and where classes are weighted already.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import Float64
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, flat, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.session import Session

RATIO: Final = 4.0
"""Most over least frequent class. Below, a collapse has other causes: a threshold of 0.5 still suits 3 to 1."""
STRONG_RATIO: Final = 6.0
"""From here on it is the likeliest reason."""
MISSED: Final = 0.3
"""Recall of the rare classes below which they are missed: SageMaker Debugger's. Above, where classes overlap, it is a
matter of the threshold."""
SURELY_KNOWN: Final = 0.5
"""Share of the rare examples that is right by the errors made lately: then older batches do not count."""
BESIDE: Final = 0.35
"""By which the frequent class must be recognised better."""
ENOUGH_RARE: Final = 40
"""With so many the recall is known to 0.15, and older batches, of a model that knew less, are left out."""
FEWEST_RARE: Final = 10
"""Examples of the rare classes in the sampled batches: their recall is then known to 0.3 at worst."""
ROWS: Final = 16
LEARNED: Final = 0.03
"""Of the entropy of the classes' shares, by which the loss lies below it once anything was learned."""


class _Recalls(NamedTuple):
    """Over the newest sampled batches."""

    rare: float
    rare_share: float
    """Of all examples."""
    frequent: float
    said_frequent: float
    """Share of predictions that name the most frequent class."""
    rare_classes: list[str]
    frequent_class: str
    first: int
    """The first step looked at."""


def lacks(case: Case) -> str:
    """Class counts and predictions."""
    if case.task not in ("classification", "binary") or case.class_counts is None:
        return "there are no classes, or they are not known"
    if case.data is not None and (case.data.class_weight or case.data.weighted):
        return "classes or examples are weighted already"
    if case.table("confusion") is None:
        return "predictions were not sampled"
    return case.too_early


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    counts = case.class_counts
    if (
        counts is None
        or len(counts) < 2
        or counts[0] / counts[-1] < RATIO
        or case.non_finite_from is not None
    ):
        return []
    found = _recalls(case)
    if found is None or found.rare >= MISSED or found.frequent - found.rare < BESIDE:
        return []
    # No more errors were made lately than that: sampled batches may be older than what the model has learned since.
    if case.accuracy is not None and 1 - (1 - case.accuracy) / found.rare_share >= SURELY_KNOWN:
        return []
    ratio = float(counts[0] / counts[-1])
    below = _below_guessing(case)
    confidence = 0.6 if ratio >= STRONG_RATIO else 0.45
    if below is not None:
        confidence += 0.25 if below > LEARNED else 0.0
    # A network that has learned nothing at all says the frequent class for whatever reason it learns nothing.
    learned = below is None or below > 0
    majority = float(counts[0] / counts.sum())
    evidence = [
        Evidence(
            f"the most frequent class has {majority:.1%} of the examples, {ratio:.3g} times as many as the rarest",
            None,
            {"majority": majority, "ratio": ratio},
        ),
        Evidence(
            f"of the examples of class {', '.join(found.rare_classes[:4])} {found.rare:.0%} are recognised, of class "
            f"{found.frequent_class} {found.frequent:.0%}; {found.said_frequent:.0%} of all predictions are "
            f"{found.frequent_class} (sampled steps {found.first:,} to {case.step - 1:,})",
            case.step - 1,
            {"rare recall": found.rare, "frequent recall": found.frequent, "said": found.said_frequent},
        ),
    ]
    if case.accuracy is not None:
        evidence.append(Evidence(f"accuracy is {case.accuracy:.3f} all the same", case.step - 1))
    if below is not None and case.baseline is not None:
        evidence.append(
            Evidence(
                f"the loss {case.progress.level:.4g} is {abs(below):.0%} {'below' if below > 0 else 'above'} that of "
                f"always answering with the classes' shares, {case.baseline.entropy:.4g}",
                case.step - 1,
            )
        )
    return [
        Finding(
            rule="class-imbalance",
            title=f"The rare classes are missed: {found.rare:.0%} recognised",
            severity="warning" if learned else "note",
            confidence=confidence if learned else 0.4,
            start=found.first,
            stop=case.step,
            evidence=tuple(evidence),
            explanation="Because one class is so frequent, saying that class nearly always gives a low loss and a "
            "high accuracy, and the rare ones are not learned.",
            remedies=_remedies(case),
        )
    ]


def _remedies(case: Case) -> tuple[Remedy, ...]:
    weights = ""
    target = case.target
    if target is not None and 1 < len(target.classes) <= 10:
        total, number = sum(target.classes.values()), len(target.classes)
        pairs = ", ".join(
            f"{name}: {total / number / count:.3g}" for name, count in sorted(target.classes.items())
        )
        weights = f"model.fit(…, class_weight={{{pairs}}})"
    return (
        Remedy("Weigh each class by how rare it is", "class-weight balanced"),
        Remedy(
            "In the script",
            code=weights
            or "counts = numpy.bincount(y)\n"
            "model.fit(…, class_weight={k: len(y) / len(counts) / n for k, n in enumerate(counts)})",
        ),
        Remedy(
            "Judge by a number that is not fooled",
            code='metrics=["accuracy", keras.metrics.AUC()]  # or recall of each class',
        ),
    )


def _below_guessing(case: Case) -> float | None:
    """By which share of it the loss lies below the entropy of the classes' shares. `None`: not comparable."""
    base, loss = case.baseline, case.output.loss if case.output else ""
    level = case.progress.level
    if base is None or not loss.endswith("crossentropy") or not math.isfinite(level) or not base.entropy > 0:
        return None
    return 1.0 - (level - case.penalty) / base.entropy


def _recalls(case: Case) -> _Recalls | None:
    """`None`: too few rare examples in the newest batches."""
    table = case.table("confusion")
    if table is None or len(table.labels) != len(table.columns):
        return None
    first = max(len(table.steps) - ROWS, int(np.searchsorted(table.steps, case.changed_at)))
    if len(table.steps) - first > 3:  # not of the model as it was at its beginning
        first = max(first, len(table.steps) // 2)
    if first >= len(table.steps):
        return None
    first = max(first, _enough_from(table.values[first:], first))
    counts: Float64 = table.values[first:].sum(axis=0, dtype=np.float64)
    true, right = counts.sum(axis=1), np.diag(counts)
    frequent = int(np.argmax(true))
    rare = np.flatnonzero((true > 0) & (true * RATIO <= true[frequent]))
    examples = float(true[rare].sum())
    if examples < FEWEST_RARE:
        return None
    return _Recalls(
        float((right[rare] / true[rare]).mean()),
        examples / float(true.sum()),
        float(right[frequent] / true[frequent]),
        float(counts[:, frequent].sum() / counts.sum()),
        [table.labels[place] for place in rare],
        table.labels[frequent],
        int(table.steps[first]),
    )


def _enough_from(rows: npt.NDArray[np.float32], first: int) -> int:
    """The newest row from which on there are enough rare examples; `first` is the place of the first of the rows."""
    by_class = rows.sum(axis=2, dtype=np.float64)
    total = by_class.sum(axis=0)
    rare = (total > 0) & (total * RATIO <= total.max())
    since = np.cumsum(by_class[::-1, rare].sum(axis=1))
    return first + max(0, len(rows) - 1 - int(np.searchsorted(since, ENOUGH_RARE)))


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _network(rare: int, recall: float, loss: float, **data: Any) -> Session:
    """900 examples of class 0 and some of class 1, of which so many are recognised."""
    frequent, few = 28.0, 28.0 * rare / 900
    rows = {"0": (frequent * 0.98, frequent * 0.02), "1": (few * (1 - recall), few * recall)}
    steps = tuple(range(0, 400, 20))
    table = Sampled(steps, {name: [row] * len(steps) for name, row in rows.items()}, ("0", "1"), of="classes")
    accuracy = (900 * 0.98 + rare * recall) / (900 + rare)
    return trained(
        1,
        "sigmoid",
        "binary_crossentropy",
        flat(loss, noise=0.01),
        accuracy=accuracy,
        task="binary",
        data=trained_on(classes=(900, rare), **data),
        tables={"confusion": table},
    )


HEALTHY = {
    "as many of each class": lambda: _network(900, 0.2, 0.69),
    "the rare class is recognised": lambda: _network(100, 0.8, 0.15),
    "the classes are weighted": lambda: _network(100, 0.1, 0.28, class_weight={"1": 9.0}),
    "predictions were not sampled": lambda: trained(
        1, "sigmoid", "binary_crossentropy", task="binary", data=trained_on(classes=(900, 100))
    ),
}
AILING = {
    "one in ten, and never said": lambda: _network(100, 0.0, 0.29),
    "one in eight, and mostly missed": lambda: _network(128, 0.2, 0.3),
    "one in ten, never said, and nothing was learned": lambda: _network(100, 0.0, 0.33),
}

EXPLAINS = frozenset({"plateau", "input-ignored", "underfitting"})

RULE = Rule("class-imbalance", check, lacks, EXPLAINS, HEALTHY, AILING)
