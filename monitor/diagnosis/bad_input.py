"""Sees data that no network can learn from as they come: not finite, outlying, all alike, the same again, or sorted.

Sees: NaN and infinities in inputs and targets; entries extremely far from the rest of their feature; batches whose
examples are all equal; sampled batches of different steps that are bit for bit the same; data that consist of
copies; and labels that come in order: the sampled batches hold one class each, though there are several.

Hurts because a single NaN spreads to every weight in one step; an outlier makes a gradient that outweighs all
others; copies tell nothing new; and from batches of one class a network learns to say that class until the next one
comes: training looks excellent then, and validation is at chance. Clean or impute, clip, shuffle. Sources: the data
checks of DeepChecks and of TensorFlow Data Validation; Bengio (2012), "Practical recommendations for gradient-based
training", on shuffling; StackOverflow 37213388 and many like it on NaN in inputs.

Wrong for heavy-tailed data that are meant to be so, and for tiny data sets of few different rows: outliers are told
of only in trouble. That a step sees the same batch each epoch is usual where nothing is shuffled, and no finding.
Silent where neither the data nor its batches were seen.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Summary
from monitor.diagnosis.case import Case
from monitor.diagnosis.epochs import sides, validated_accuracy
from monitor.diagnosis.examples import (
    Sampled,
    dense,
    falling,
    flat,
    labelled,
    trained,
    trained_on,
    with_value,
)
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.targets import of_rows
from monitor.diagnosis.trouble import thrives, trouble
from monitor.session import Session

FAR: Final = 50.0
"""Ranges of the middle 80 % that an entry must be away: 128 standard deviations of a normal feature. Of a lognormal
one as skewed as incomes are (σ = 1) the farthest of 10,000 is 11 away."""
COPIES: Final = 0.95
"""Share of examples that equal another one."""
WIDE: Final = 16
"""Features from which on equal examples are no coincidence of few possible values."""
FEWEST_EXAMPLES: Final = 100
FEWEST_REPEATS: Final = 4
"""Sampled batches that must be the same: steps 0, 1, 3 and 7."""
ROWS: Final = 32
SORTED: Final = 0.9
"""Of the way from what chance gives to all neighbours alike, which neighbours in the data's order must be alike."""
ONE_CLASS: Final = 0.9
"""Mean share of a sampled batch's most frequent class, beside MIXED over all of them."""
MIXED: Final = 0.6
FEWEST_BATCHES: Final = 4
FEWEST_IN_BATCH: Final = 6


class _Fault(NamedTuple):
    title: str
    meaning: str
    severity: Severity
    confidence: float
    evidence: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...]
    start: int = 0


def lacks(case: Case) -> str:
    """The data, or batches of them."""
    if case.inputs or case.target:
        return ""
    sampled = any(case.table(name) for name in ("input", "input_0", "fingerprint", "target_counts", "target"))
    return "" if sampled else "neither the data nor their batches were seen"


def check(case: Case) -> list[Finding]:
    """The worst fault alone: what is not finite hides the rest."""
    looks = (_not_finite, _targets_not_finite, _uniform, _same_again, _in_order, _copies, _outliers)
    fault = next((found for look in looks if (found := look(case))), None)
    if fault is None:
        return []
    return [
        Finding(
            rule="bad-input",
            title=fault.title,
            severity=fault.severity,
            confidence=fault.confidence,
            start=fault.start,
            stop=case.step,
            evidence=fault.evidence,
            explanation=fault.meaning,
            remedies=fault.remedies,
        )
    ]


# ── Not finite ──────────────────────────────────────────────────────────────────────────────────────


def _not_finite(case: Case) -> _Fault | None:
    known = case.inputs
    if known is not None and known.values.non_finite > 0:
        share, feature = known.values.non_finite, known.non_finite_feature or 0
        text = f"{share:.3g} of all input entries are NaN or infinite, first in feature {feature}"
        return _of_nan(case, "inputs", text, 0, {"share": share, "feature": float(feature)})
    table = case.table("input") or case.table("input_0")
    if table is None:
        return None
    counts = of_rows(table, "non_finite")
    if not (counts > 0).any():
        return None
    place = int(np.argmax(counts > 0))
    step = int(table.steps[place])
    features = case.table("input_features")
    where = ""
    if features is not None and len(features.steps) > place:
        bad = np.flatnonzero(features.column("non_finite")[place] > 0)
        where = f", in feature {', '.join(features.labels[n] for n in bad[:3])}" if len(bad) else ""
    text = (
        f"the batch of step {step:,} had {counts[place]:,.0f} input entries that are NaN or infinite{where}"
    )
    return _of_nan(case, "inputs", text, step, {"entries": float(counts[place])})


def _targets_not_finite(case: Case) -> _Fault | None:
    known = case.target
    if known is not None and known.values.non_finite > 0:
        share = known.values.non_finite
        return _of_nan(
            case, "targets", f"{share:.3g} of all targets are NaN or infinite", 0, {"share": share}
        )
    table = case.table("target")
    counts = of_rows(table, "non_finite") if table is not None else np.empty(0)
    if table is None or not (counts > 0).any():
        return None
    step = int(table.steps[int(np.argmax(counts > 0))])
    return _of_nan(
        case, "targets", f"the batch of step {step:,} had targets that are NaN or infinite", step, {}
    )


def _of_nan(case: Case, what: str, text: str, step: int, numbers: dict[str, float]) -> _Fault:
    name = "x" if what == "inputs" else "y"
    since = case.non_finite_from
    evidence = [Evidence(text, step or None, numbers)]
    if since is not None:
        evidence.append(Evidence(f"the loss is not finite since step {since:,}", since))
    elif wrong := trouble(case):
        evidence.append(Evidence(wrong, case.step - 1))
    # It goes well all the same: something replaces them before the first weights. A finite loss alone does not tell,
    # since a relu may turn NaN into 0.
    survived = thrives(case) and case.epochs_since_change >= 1
    if what == "inputs":
        repair = (
            "x = numpy.where(numpy.isfinite(x), x, numpy.nan)\n"
            "x = numpy.where(numpy.isnan(x), numpy.nanmedian(x, axis=0), x)  # with the training's medians"
        )
    else:
        repair = "kept = numpy.isfinite(y)\nx, y = x[kept], y[kept]"
    remedies = [
        Remedy("Drop or impute them", code=repair),
        Remedy("See where they are", code=f"print(numpy.argwhere(~numpy.isfinite({name}))[:20])"),
    ]
    if since is not None:
        remedies.append(Remedy("Stop: weights that are NaN stay NaN", "stop"))
    return _Fault(
        f"NaN or infinities in the {what}",
        "One entry that is not a number makes the loss, the gradient and with them all weights not a number.",
        "warning" if survived else "critical",
        0.5 if survived else 0.98,
        tuple(evidence),
        tuple(remedies),
        step,
    )


# ── All alike, or the same again ────────────────────────────────────────────────────────────────────


def _uniform(case: Case) -> _Fault | None:
    known = case.inputs
    constant = known is not None and known.features > 0 and known.constant_features == known.features
    if known is not None and constant and (case.data is None or (case.data.examples or 2) > 1):
        text = f"all {known.features:,} features are the same in every example looked at ({known.values.mean:.4g})"
        return _of_alike(text, None)
    table = case.table("fingerprint")
    if table is None or not (case.batch_size or 0) > 1 or len(table.steps) < FEWEST_REPEATS:
        return None
    same = of_rows(table, "same_as_first")
    if not np.nanmin(same, initial=1.0) >= 1.0 or not np.isfinite(same).any():
        return None
    text = f"in {len(same)} sampled batches of {case.batch_size:.0f} all examples were equal"
    return _of_alike(text, int(table.steps[0]))


def _of_alike(text: str, step: int | None) -> _Fault:
    return _Fault(
        "All inputs are the same",
        "Where all examples look the same there is nothing to tell them apart by.",
        "critical",
        0.95,
        (Evidence(text, step),),
        (Remedy("Look at how the inputs are read", code="print(x[:5], x.std(axis=0))"),),
        step or 0,
    )


def _same_again(case: Case) -> _Fault | None:
    """The same batch at steps that are no whole number of epochs apart."""
    table, per_epoch = case.table("fingerprint"), case.session.steps_per_epoch
    if table is None or per_epoch == 1:
        return None
    pairs = table.values[-ROWS:, :2, 0]
    steps = table.steps[-ROWS:]
    places = steps % per_epoch if per_epoch else steps
    # Before the length of an epoch is known, it may be short: only steps in a row tell.
    if len(np.unique(places)) < FEWEST_REPEATS or (not per_epoch and not (np.diff(steps) == 1).any()):
        return None
    if not (pairs == pairs[:1]).all() or not np.isfinite(pairs).all():
        return None
    text = (
        f"the batches of {len(steps)} sampled steps ({steps[0]:,} to {steps[-1]:,}) are bit for bit the same"
    )
    return _Fault(
        "Every step gets the same batch",
        "The network sees the same few examples at every step, so it can only learn these by heart.",
        "warning",
        0.92,
        (Evidence(text, int(steps[0])),),
        (
            Remedy(
                "Let the generator go on to the next batch",
                code="for start in range(0, len(x), batch_size):\n"
                "    yield x[start : start + batch_size], y[start : start + batch_size]",
            ),
        ),
        int(table.steps[0]),
    )


def _copies(case: Case) -> _Fault | None:
    known, examples = case.inputs, (case.data.examples if case.data else None) or 0
    if known is None or known.repeated < COPIES or known.features < WIDE or examples < FEWEST_EXAMPLES:
        return None
    text = (
        f"{known.repeated:.0%} of {examples:,} examples equal another one in all {known.features:,} features"
    )
    wrong = trouble(case)
    return _Fault(
        "The data are copies of few examples",
        "However many examples there seem to be, only few are different, and these are learned by heart.",
        "warning",
        0.8,
        (Evidence(text, None, {"repeated": known.repeated}), *_of(wrong, case)),
        (
            Remedy(
                "Look for what repeats them, and split training from validation before anything is repeated",
                code="print(len(x), len(numpy.unique(x.reshape(len(x), -1), axis=0)))",
            ),
        ),
    )


# ── In the order of the labels ──────────────────────────────────────────────────────────────────────


def _in_order(case: Case) -> _Fault | None:
    evidence = _sorted_data(case) or _batches_of_one_class(case)
    if evidence is None:
        return None
    gap = _validated_gap(case)
    return _Fault(
        "Examples come sorted by class, and are not shuffled",
        "A network that sees one class at a time learns to say that class, and forgets it with the next.",
        "warning",
        0.92,
        (evidence, *((gap,) if gap else ())),
        (
            Remedy("Let fit shuffle", code="model.fit(x, y, shuffle=True, …)"),
            Remedy(
                "Or shuffle before: of a generator or a tf.data.Dataset the whole data, not a small buffer",
                code="order = numpy.random.permutation(len(x))\nx, y = x[order], y[order]\n"
                "# dataset = dataset.shuffle(len(x))",
            ),
        ),
    )


def _sorted_data(case: Case) -> Evidence | None:
    target, data = case.target, case.data
    if target is None or data is None or data.shuffled is not False or target.in_order is None:
        return None
    total = sum(target.classes.values())
    if len(target.classes) < 2 or total < FEWEST_EXAMPLES:
        return None
    chance = sum((count / total) ** 2 for count in target.classes.values())
    if target.in_order < chance + SORTED * (1 - chance):
        return None
    if data.batch_size and data.batch_size >= total / 2:
        return None  # the whole data in a batch or two: their order does not matter
    return Evidence(
        f"{target.in_order:.1%} of the examples have the class of the one before them, by chance {chance:.1%}, and "
        "shuffle is off",
        None,
        {"in order": target.in_order, "chance": chance},
    )


def _batches_of_one_class(case: Case) -> Evidence | None:
    table = case.table("target_counts")
    if table is None or len(table.steps) < FEWEST_BATCHES or (case.data and case.data.shuffled):
        return None
    counts = table.values[-ROWS:, :, 0].astype(np.float64)
    sizes = counts.sum(axis=1)
    counts, sizes = counts[sizes >= FEWEST_IN_BATCH], sizes[sizes >= FEWEST_IN_BATCH]
    if len(sizes) < FEWEST_BATCHES:
        return None
    within = float((counts.max(axis=1) / sizes).mean())
    together = float(counts.sum(axis=0).max() / sizes.sum())
    if within < ONE_CLASS or together > MIXED:
        return None
    return Evidence(
        f"in {len(sizes)} sampled batches {within:.0%} of the examples are of one class, over all of them only "
        f"{together:.0%}",
        int(table.steps[-len(sizes)]),
        {"within": within, "together": together},
    )


def _validated_gap(case: Case) -> Evidence | None:
    name = validated_accuracy(case)
    both = sides(case, name) if name else None
    if both is None or not all(map(math.isfinite, both.now)):
        return None
    training, validation = both.now
    text = f"{name} {training:.3f} in training, {validation:.3f} in validation"
    return Evidence(text, case.step - 1, {"training": training, "validation": validation})


# ── Outliers ────────────────────────────────────────────────────────────────────────────────────────


def _outliers(case: Case) -> _Fault | None:
    known = case.inputs
    if known is None or known.farthest < FAR or case.inputs_are_names:
        return None
    wrong = trouble(case)
    text = (
        f"an entry of feature {known.farthest_feature} is {known.farthest:,.0f} times as far from the median as the "
        f"middle 80 % of its feature are wide; inputs range from {known.values.low:.4g} to {known.values.high:.4g}"
    )
    return _Fault(
        f"Outliers in feature {known.farthest_feature}",
        "A few entries that are far out make outputs and gradients so large that all other examples hardly count.",
        "warning" if wrong else "note",
        0.78 if wrong else 0.4,
        (Evidence(text, None, {"farthest": known.farthest}), *_of(wrong, case)),
        (
            Remedy(
                "Clip each feature to what most examples have, and look where the rest comes from",
                code="low, high = numpy.percentile(x_train, [0.5, 99.5], axis=0)\nx = x.clip(low, high)",
            ),
            Remedy("Meanwhile, clip the gradients", "set clipnorm=1"),
        ),
    )


def _of(wrong: str, case: Case) -> tuple[Evidence, ...]:
    return (Evidence(wrong, case.step - 1),) if wrong else ()


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _network(inputs: dict[str, Any] | None = None, *, good: bool = False, **more: Any) -> Session:
    """Ten classes of 100 examples each; ten epochs."""
    given: dict[str, Any] = {
        "layers": (dense("hidden", 32), dense("last", 10, "softmax", inputs=32)),
        "accuracy": 0.95 if good else 0.1,
        "task": "classification",
        "data": trained_on(inputs=inputs, classes=(100,) * 10),
    }
    losses = more.pop("losses", falling() if good else flat(2.3))
    return trained(10, "softmax", "sparse_categorical_crossentropy", losses, **(given | more))


def _holed(share: float) -> Summary:
    return Summary(mean=0.0, std=1.0, low=-4.0, high=4.0, non_finite=share)


def _prints(*, same: bool, uniform: float = 1 / 32, steps: tuple[int, ...] = (0, 1, 3, 7, 15)) -> Any:
    first = 5.0 if same else np.arange(len(steps)) + 3.0
    rows = {"fingerprint_0": first, "fingerprint_1": 9.0, "same_as_first": uniform}
    return {"fingerprint": Sampled(steps, rows, of="values")}


def _batches(of_one: int) -> Any:
    """32 examples of ten classes, so many of them of one class, another in each batch."""
    counts = np.full((10, 10), (32 - of_one) / 9)
    np.fill_diagonal(counts, of_one)
    rows = {str(number): counts[:, number] for number in range(10)}
    return {"target_counts": Sampled(tuple(range(0, 200, 20)), rows, of="histogram")}


def _in_file_order(shuffled: bool, size: int = 32) -> Session:
    data = trained_on(targets=labelled(np.repeat(np.arange(10), 100)), shuffled=shuffled, batch_size=size)
    return _network(good=True, data=data)


HEALTHY = {
    "finite inputs of ordinary spread": _network,
    "a heavy tail": lambda: _network({"farthest": 15.0}),
    "an outlier in a training that goes well is a note, a tail is none": lambda: _network(
        {"farthest": 30.0}, good=True
    ),
    "batches differ": lambda: _network(tables=_prints(same=False)),
    "one batch is all there is": lambda: _network(
        tables=_prints(same=True), epochs=[{"loss": 2.3}] * 400, losses=flat(2.3)
    ),
    "the same batch once in each epoch": lambda: _network(
        tables=_prints(same=True, steps=(0, 40, 80, 120, 160))
    ),
    "mixed batches": lambda: _network(tables=_batches(5)),
    "sorted data that are shuffled": lambda: _in_file_order(shuffled=True),
    "sorted data in a single batch": lambda: _in_file_order(shuffled=False, size=1_000),
    "four rows of a truth table, again and again": lambda: _network({"repeated": 1.0, "features": 2}),
}
AILING = {
    "NaN in one feature": lambda: _network(
        {"values": _holed(0.01), "non_finite_feature": 7}, losses=with_value(flat(2.3), 3, math.nan)
    ),
    "NaN in a sampled batch": lambda: _network(
        data=None,
        losses=with_value(flat(2.3), 3, math.nan),
        tables={
            "input": Sampled(
                (0, 1, 3), {"mean": 0, "std": 1, "min": -3, "max": 3, "non_finite": (0, 0, 4)}, of="values"
            )
        },
    ),
    "NaN in the targets": lambda: _network(
        data=trained_on(targets=labelled(np.array([0.1, np.nan, 0.7] * 100))),
        losses=np.full(100, math.nan),
    ),
    "an entry a hundred times as far out": lambda: _network({"farthest": 120.0, "farthest_feature": 3}),
    "all examples are equal": lambda: _network(tables=_prints(same=False, uniform=1.0)),
    "all features are constant": lambda: _network({"constant_features": 64}),
    "the generator yields its first batch for ever": lambda: _network(tables=_prints(same=True)),
    "32 examples again and again": lambda: _network({"repeated": 1.0}, good=True),
    "sorted data, shuffle off": lambda: _in_file_order(shuffled=False),
    "batches of one class each": lambda: _network(good=True, data=None, tables=_batches(31)),
}

EXPLAINS = frozenset(
    {
        *(
            "non-finite",
            "plateau",
            "oscillation",
            "input-ignored",
            "underfitting",
            "overfitting",
            "dead-units",
        ),
        *("exploding-gradient", "vanishing-gradient", "class-imbalance", "validation-too-good", "too-short"),
        *("input-scale", "batch-size"),
    }
)

RULE = Rule("bad-input", check, lacks, EXPLAINS, HEALTHY, AILING)
