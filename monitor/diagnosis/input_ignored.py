"""Finds a network whose outputs do not depend on what goes in.

Sees one of four things. A layer gets nothing but zeros: all its ReLU units are silent from the first step on though
its weights have both signs and no bias, or its kernel gets a gradient of exactly 0 while its bias gets one. Or the
outputs hardly differ between the examples of a batch, beside the spread of the targets, after the training should
have shown something. Or, where that spread is not recorded, every prediction falls into one class and one bin of
probability, or one value. Or a trial has shown that the model does as well on inputs of 0.

Hurts because such a network can only learn its output's bias: the classes' shares, or the mean. Try to find the
layer that lets nothing through: a normalisation over an axis of length 1, a softmax over one entry, dead units.

Source: what a layer of zeros does follows from its equation; DeepDiagnosis (ICSE 2022) has outputs that stay among
its symptoms.

Wrong at the very beginning, when small weights give nearly equal outputs: it waits for 3 epochs or 200 steps. Nearly
every other fault can end so, so whatever else is found stands above this.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from monitor.diagnosis import experiments, motion
from monitor.diagnosis.case import Case, Table
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of, with_trial
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

SAME: Final = 0.01
"""Spread of the outputs between examples, in shares of the targets' spread (of classes: of probability)."""
ROWS: Final = 4
"""Newest sampled rows that must all show it."""
FEWEST_EXAMPLES: Final = 4
"""In a batch, to differ from each other."""


def lacks(case: Case) -> str:
    """Sampled predictions, or outputs of layers."""
    names = ("gradient_mean_abs", "activations", "prediction_spread", "predicted_counts", "predictions_range")
    if all(motion.table(case, name) is None for name in names):
        return "neither predictions nor outputs of layers were sampled, or not since the last change"
    return ""


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    starved = _starved_layer(case)
    if starved is not None and (case.guessing or case.stuck or case.lift is None):
        name, evidence = starved
        return [_of_zeros(case, name, evidence)]
    if not case.seasoned or not trouble(case) or case.non_finite_from is not None:
        return []
    same, tried = _same_outputs(case), experiments.compared(case, experiments.ZERO_INPUTS)
    if tried is not None and tried.worse:
        return []  # it does worse without them, so it uses them
    if tried is not None and not tried.alike:
        tried = None  # it tells neither this nor that
    if same is None and tried is None:
        return []
    shown = [] if same is None else [same[0]]
    confidence = 0.6 if same is None else same[1]
    if tried is not None:
        shown.append(tried.told("it does as well without its inputs"))
        confidence = max(confidence, 0.85)
    return [_collapsed(case, shown, confidence)]


def _of_zeros(case: Case, name: str, evidence: Evidence) -> Finding:
    names = [layer.name for layer in case.layers]
    before = case.layers[names.index(name) - 1] if name in names and names.index(name) > 0 else None
    text = f"{before.name} ({before.class_name}) stands before it" if before else "it stands first"
    where = Evidence(text, None)
    named = f"model.get_layer({before.name if before else name!r})"
    code = f"keras.Model(model.inputs, {named}.output).predict(x).std(axis=0)"
    return Finding(
        rule="input-ignored",
        title=f"Nothing but zeros gets to {name}",
        severity="critical",
        confidence=0.92,
        start=evidence.step or 0,
        stop=case.step,
        evidence=(evidence, where),
        explanation="What goes into this layer is 0 for every example, so nothing behind it can depend on the "
        "inputs and only the output's bias learns.",
        remedies=(
            Remedy(
                f"Take out or mend what stands before {name}: a normalisation over an axis of length 1 gives zeros, "
                "as do inputs that were divided to 0",
                code=f"{code}  # must not be 0",
            ),
            Remedy("Stop: nothing can come of this", "stop"),
        ),
    )


def _starved_layer(case: Case) -> tuple[str, Evidence] | None:
    """The first layer that nothing but zeros comes into, and what shows it."""
    dead = motion.dead_layers(case, 0.99)
    for one in dead:
        if one.starved is not None and one.rows >= 2:
            text = (
                f"all {one.units:,} units of {one.layer.name} gave 0 from step {one.since:,} on, though the weights "
                f"of {one.starved.name} have both signs and no bias was set: only inputs of 0 do that"
            )
            return one.starved.name, Evidence(text, one.since, {"silent_units": float(one.units)})
    if dead:
        return None
    return _kernel_without_gradient(case)


def _kernel_without_gradient(case: Case) -> tuple[str, Evidence] | None:
    """A kernel whose gradient is exactly 0 while its bias has one: gradient = inputs x what comes back."""
    found = motion.table(case, "gradient_mean_abs")
    if found is None or len(found.steps) < 2:
        return None
    rows = found.column()[-motion.NEWEST_ROWS :]
    without = np.flatnonzero((rows == 0).all(axis=0)).tolist()
    places = {label: place for place, label in enumerate(found.labels)} if without else {}
    for place in without:
        label = found.labels[place]
        if not label.endswith("/kernel"):
            continue
        bias = places.get(label.removesuffix("kernel") + "bias")
        layer = motion.layer_of(case, label)
        if bias is None or layer is None or not layer.kernel_shape:
            continue
        if (rows[:, bias] > 0).all():
            typical = float(np.median(rows[:, bias]))
            text = (
                f"the gradient of {label} is exactly 0 in the newest {len(rows)} sampled steps, that of its bias is "
                f"{typical:.1e}: its inputs are 0"
            )
            return layer.name, Evidence(text, int(found.steps[0]), {"bias_gradient": typical})
    return None


def _collapsed(case: Case, evidence: list[Evidence], confidence: float) -> Finding:
    return Finding(
        rule="input-ignored",
        title="The outputs do not depend on the inputs",
        severity="warning",
        confidence=confidence,
        start=min(evidence[0].step or 0, case.step - 1),
        stop=case.step,
        evidence=tuple(evidence),
        explanation="The model gives practically the same answer to every example, whatever goes in.",
        remedies=(
            Remedy("Back to the start, with a tenth of the rate", "lr /10 from start"),
            Remedy(
                "Look for the first layer whose outputs are the same for all examples",
                code="for layer in model.layers:\n"
                "    outputs = keras.Model(model.inputs, layer.output).predict(x[:64])\n"
                "    print(layer.name, outputs.std(axis=0).mean())",
            ),
            *([experiments.FIND_OUT] if experiments.compared(case, experiments.ZERO_INPUTS) is None else []),
        ),
    )


def _same_outputs(case: Case) -> tuple[Evidence, float] | None:
    """What shows that outputs are alike, and how sure that is."""
    if (case.batch_size or 0) < FEWEST_EXAMPLES:
        return None
    spread = motion.table(case, "prediction_spread")
    if spread is not None:
        return _by_spread(case, spread)
    return _by_range(case) if case.task in ("regression", "unknown") else _by_counts(case)


def _by_spread(case: Case, table: Table) -> tuple[Evidence, float] | None:
    values = table.number("between")
    targets = _target_spread(case)
    if len(values) < ROWS or not targets > 0 or not np.all(values[-ROWS:] <= SAME * targets):
        return None
    first = _since(values <= SAME * targets, table)
    newest = float(values[-1])
    text = (
        f"from step {first:,} on, outputs spread by {newest:.2g} between the examples of a batch, targets by "
        f"{targets:.2g}"
    )
    return Evidence(text, first, {"between": newest, "targets": targets}), 0.65


def _target_spread(case: Case) -> float:
    """Standard deviation of what the outputs should be. NaN: not known."""
    base = case.baseline
    if base is None:
        return math.nan
    if base.classes > 1:
        # Of one class's indicator, as for K equally frequent classes.
        share = 1 / base.classes
        return math.sqrt(share * (1 - share))
    return math.sqrt(base.variance) if base.variance > 0 else math.nan


def _by_range(case: Case) -> tuple[Evidence, float] | None:
    ranges, targets = motion.table(case, "predictions_range"), motion.table(case, "targets_range")
    if ranges is None or targets is None or len(ranges.steps) < ROWS:
        return None
    wide = float(np.median(targets.values[:, 1, 0] - targets.values[:, 0, 0]))
    widths = ranges.values[:, 1, 0] - ranges.values[:, 0, 0]
    if not wide > 0 or not np.all(widths[-ROWS:] <= SAME * wide):
        return None
    first = _since(widths <= SAME * wide, ranges)
    text = f"from step {first:,} on, predictions of a batch span {widths[-1]:.2g}, targets {wide:.3g}"
    return Evidence(text, first, {"span": float(widths[-1]), "targets": wide}), 0.6


def _by_counts(case: Case) -> tuple[Evidence, float] | None:
    """All predictions in one class and in one bin of probability, in each of the newest rows."""
    counts = motion.table(case, "predicted_counts")
    bins = [motion.table(case, name) for name in ("confidence", "confidence_0", "confidence_1")]
    known = [table for table in bins if table is not None]
    if counts is None or len(counts.steps) < ROWS or not known:
        return None
    of_class, total = counts.values[:, :, 0].max(axis=1), counts.values[:, :, 0].sum(axis=1)
    together = known[0].values[-ROWS:, :, 0].astype(np.float64)
    for table in known[1:]:
        together = together + table.values[-ROWS:, :, 0]
    one_class = of_class[-ROWS:] == total[-ROWS:]
    one_bin = together.max(axis=1) == together.sum(axis=1)
    if not (one_class.all() and one_bin.all()):
        return None
    first = _since(of_class == total, counts)
    text = f"each of the newest {ROWS} sampled batches was predicted as one class with one probability, to ± 0.05"
    return Evidence(text, first, {"batches": float(ROWS)}), 0.45


def _since(hit: np.ndarray[tuple[int], np.dtype[np.bool_]], table: Table) -> int:
    """The first sampled step from which on it is so."""
    missed = np.flatnonzero(~hit)
    place = int(missed[-1]) + 1 if len(missed) else 0
    return int(table.steps[min(place, len(table.steps) - 1)])


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)
_COLUMNS = ("zero_share", "saturated_share", "mean", "std", "zero_units")


def _example(
    *,
    stuck: bool,
    between: float | None = None,
    silent: int = 12,
    kernel: float = 0.01,
    one_class: bool = False,
) -> Session:
    tables = {
        "target_counts": Sampled(_STEPS, {"0": 16, "1": 16}, (), "histogram"),
        "predicted_counts": Sampled(
            _STEPS, {"0": 0, "1": 32} if one_class else {"0": 15, "1": 17}, (), "histogram"
        ),
        "confidence_0": Sampled(
            _STEPS, {"0.45": 0, "0.50": 16} if one_class else {"0.45": 8, "0.50": 8}, (), "histogram"
        ),
        "confidence_1": Sampled(
            _STEPS, {"0.45": 0, "0.50": 16} if one_class else {"0.45": 8, "0.50": 8}, (), "histogram"
        ),
        "activations": Sampled(
            _STEPS,
            {"dense": [[silent / 64, 0, 0.3, 0.5, silent]] * 9, "dense_1": [[0, 0, 0.5, 0.1, 0]] * 9},
            _COLUMNS,
            "layers",
        ),
        "gradient_mean_abs": Sampled(
            _STEPS, {"dense/kernel": kernel, "dense/bias": 0.01, "dense_1/kernel": 0.01, "dense_1/bias": 0.02}
        ),
    }
    if between is not None:
        spread = {"between": between, "mean_abs": 0.5, "low": 0.4, "high": 0.6, "row_sum": 0.5}
        tables["prediction_spread"] = Sampled(_STEPS, spread, (), "values")
    return session_of(
        {
            "loss": flat(0.69) if stuck else falling(),
            "accuracy": flat(0.5 if stuck else 0.97, noise=0.05),
            "examples": np.full(400, 32.0),
        },
        timing=("examples",),
        task="binary",
        layers=(dense("dense", 64), dense("dense_1", 1, "sigmoid")),
        output=output_of("dense_1", 1, "sigmoid", "binary_crossentropy"),
        tables=tables,
        epochs=[{"loss": 0.69}] * 8,
    )  # fmt: skip


HEALTHY = {
    "outputs differ from example to example": lambda: _example(stuck=True, between=0.1),
    "the model learns": lambda: _example(stuck=False, between=0.4),
    "predictions fall into two classes, their spread is not recorded": lambda: _example(stuck=True),
    "in a trial it does worse without its inputs": lambda: with_trial(
        _example(stuck=True, between=1e-4), {"keep": 0.5, "zero-inputs": 0.7}
    ),
}
AILING = {
    "outputs are the same for all examples": lambda: _example(stuck=True, between=1e-4),
    "one class and one probability, where the spread is not recorded": lambda: _example(
        stuck=True, one_class=True
    ),
    "no unit of the first layer ever fires, without a bias": lambda: _example(stuck=True, silent=64),
    "in a trial it does as well without its inputs": lambda: with_trial(
        _example(stuck=True, between=0.1), {"keep": 0.7, "zero-inputs": 0.7}
    ),
    "a kernel gets no gradient and its bias does": lambda: _example(stuck=True, kernel=0.0),
}

EXPLAINS: frozenset[str] = frozenset({"plateau"})

RULE = Rule("input-ignored", check, lacks, EXPLAINS, HEALTHY, AILING)
