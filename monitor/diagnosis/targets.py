"""What the training is to predict, as the rules on labels, losses and outputs see it; and what would fit it.

Read from the description of the data where there is one, else from the table `target` of the sampled batches. No rule
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Output, TargetData
from monitor.diagnosis.case import Case, Table, per_case, per_run
from monitor.diagnosis.finding import Remedy

CATEGORICAL: Final = frozenset(
    {"categorical_crossentropy", "categorical_focal_crossentropy", "categorical_generalized_cross_entropy"}
)
"""Losses that take a row of shares of the classes."""
SPARSE: Final = frozenset({"sparse_categorical_crossentropy"})
"""That take the number of the class."""
BINARY: Final = frozenset({"binary_crossentropy", "binary_focal_crossentropy"})
"""That take a share from 0 to 1 for each unit."""
HINGE: Final = frozenset({"hinge", "squared_hinge"})
"""That take −1 and 1, and turn 0 and 1 into these."""
CROSS_ENTROPIES: Final = CATEGORICAL | SPARSE | BINARY
TOLERANCE: Final = 1e-3
"""Of a range: numbers nearer than this count as equal, since tables are float32."""
ROWS: Final = 16
"""First and newest sampled batches that are looked at."""
WIDEST_CODE: Final = 256
"""Whole numbers over a wider range, of which no more is known, are taken for quantities."""


class Targets(NamedTuple):
    """Of all examples looked at."""

    low: float
    high: float
    mean: float
    std: float
    integral: bool
    """All are whole numbers."""
    one_hot: bool
    width: int
    """Length of the last axis; 1 for one number per example. 0: not known."""
    classes: Mapping[int, int]
    """Class → examples. Empty: no classes, or not known."""
    examples: float
    """Looked at. 0: not known."""
    described: bool
    """Whether the data themselves were described; otherwise only sampled batches tell."""
    step: int | None
    """First step it was measured in. `None`: known before."""

    @property
    def two_valued(self) -> bool:
        """Whether there are exactly two values: then, and only then, the variance is all that the range allows.

        Bhatia and Davis (2000): variance ≤ (high − mean)(mean − low).
        """
        if len(self.classes) == 2 and not self.one_hot:
            return True
        spread = self.high - self.low
        if not spread > 0 or len(self.classes) > 2:
            return False
        most = (self.high - self.mean) * (self.mean - self.low)
        return abs(most - self.std**2) <= TOLERANCE * max(most, 1e-12)

    @property
    def class_like(self) -> bool:
        """Whether these name classes rather than measure something."""
        if self.classes or self.two_valued:
            return True
        return not self.described and self.integral and self.high - self.low < WIDEST_CODE

    @property
    def row_sum(self) -> float:
        """Mean of what a row adds up to: 1 for one-hot ones."""
        return self.mean * self.width if self.width else math.nan

    @property
    def number(self) -> int:
        """Of classes. 0: not known."""
        if self.one_hot:
            return self.width
        return len(self.classes) or (2 if self.two_valued and self.width == 1 else 0)

    @property
    def span(self) -> str:
        """`from 0 to 255`, or the two values."""
        low, high = f"{self.low:.4g}", f"{self.high:.4g}"
        return f"{low} or {high}" if self.two_valued else f"from {low} to {high}"


@per_case
def targets_of(case: Case) -> Targets | None:
    """`None`: nothing is known of them."""
    return _described(case) or _sampled(case)


@per_run
def further(case: Case) -> list[tuple[Output, Targets]]:
    """The outputs with a loss but the first, as far as the data tell what their targets are."""
    outputs = [output for output in (case.session.run.outputs if case.session.run else ()) if output.loss]
    described = case.data.targets if case.data else ()
    if len(outputs) != len(described):
        return []
    pairs = [(output, _of(target, 0)) for output, target in zip(outputs[1:], described[1:], strict=True)]
    return [(output, targets) for output, targets in pairs if targets is not None]


@per_run
def _described(case: Case) -> Targets | None:
    return None if case.target is None else _of(case.target, (case.data and case.data.examples) or 0)


def _of(target: TargetData, examples: int) -> Targets | None:
    if not math.isfinite(target.values.low):
        return None
    shape = target.shape
    classes = {int(float(name)): count for name, count in target.classes.items() if _is_number(name)}
    return Targets(
        low=target.values.low,
        high=target.values.high,
        mean=target.values.mean,
        std=target.values.std,
        integral=target.integral,
        one_hot=target.one_hot,
        width=shape[-1] if shape else 1,
        classes=classes,
        examples=float(sum(classes.values()) or examples),
        described=True,
        step=None,
    )


def _sampled(case: Case) -> Targets | None:
    table = case.table("target")
    if table is None:
        return None
    mean, std, low, high = (of_rows(table, name) for name in ("mean", "std", "min", "max"))
    if not (np.isfinite(low).any() and np.isfinite(high).any() and np.isfinite(mean).any()):
        return None
    integral, unit_rows = of_rows(table, "integral"), of_rows(table, "unit_rows")
    middle = float(np.nanmean(mean))
    units = case.output.units if case.output else 0
    one_hot = units > 1 and bool(np.nanmin(unit_rows, initial=1.0) >= 1.0) and np.isfinite(unit_rows).any()
    return Targets(
        low=float(np.nanmin(low)),
        high=float(np.nanmax(high)),
        mean=middle,
        std=math.sqrt(float(np.nanmean(std**2 + (mean - middle) ** 2))),
        integral=bool(np.nanmin(integral, initial=1.0) >= 1.0),
        one_hot=bool(one_hot),
        width=units if one_hot else 0,
        classes={},
        examples=len(mean) * (case.batch_size or 0.0),
        described=False,
        step=int(table.steps[0]),
    )


def of_rows(table: Table, name: str) -> Float64:
    """One number of each of the first and newest rows; NaN where the table does not have it."""
    column = table.number(name)
    return np.concatenate([column[:ROWS], column[-ROWS:]]) if len(column) > 2 * ROWS else column


# ── What would fit ──────────────────────────────────────────────────────────────────────────────────


class Fitting(NamedTuple):
    """Output and loss for some targets."""

    units: int
    activation: str
    """`linear` for none."""
    loss: str
    labels: str = ""
    """What must be done with the labels first, as Python. Empty: nothing."""


def fitting(targets: Targets | None, units: int = 0) -> Fitting:
    """What these targets need; `units` is what the output has."""
    if targets is None:
        return Fitting(1, "sigmoid", "binary_crossentropy")
    if targets.one_hot:
        return Fitting(targets.width or units, "softmax", "categorical_crossentropy")
    if targets.width > 1 and targets.integral and targets.low >= 0 and targets.high <= 1:
        return Fitting(targets.width, "sigmoid", "binary_crossentropy")
    if not targets.class_like:
        return Fitting(max(targets.width, 1), "linear", "mean_squared_error")
    if targets.width > 1:
        labels = f"y = y / {targets.high:g}" if targets.high != 1 else ""
        return Fitting(targets.width, "softmax", "categorical_crossentropy", labels)
    return _of_numbers(targets, units)


def _of_numbers(targets: Targets, units: int) -> Fitting:
    """Each example's class is one number."""
    if targets.two_valued:
        labels = "" if (targets.low, targets.high) == (0, 1) else f"y = (y > {targets.low:g}).astype(int)"
        return Fitting(1, "sigmoid", "binary_crossentropy", labels)
    values = sorted(targets.classes)
    number, first, labels = len(values) or units, int(targets.low), ""
    if values and values[-1] - values[0] >= number:  # with gaps
        labels = "y = numpy.unique(y, return_inverse=True)[1]"
    elif not targets.integral:
        labels = "y = labels  # as they were read, not scaled"
    else:
        number = int(targets.high) - first + 1
        if first:
            labels = f"y = y - {first}" if first > 0 else f"y = y + {-first}"
    return Fitting(number, "softmax", "sparse_categorical_crossentropy", labels)


def code_for(fit: Fitting, layer: str) -> str:
    """The lines to change."""
    activation = "" if fit.activation == "linear" else f', activation="{fit.activation}"'
    lines = [fit.labels] if fit.labels else []
    lines.append(f"keras.layers.Dense({fit.units}{activation})  # in place of {layer or 'the last layer'}")
    lines.append(f'model.compile(optimizer=optimizer, loss="{fit.loss}", metrics=[…])')
    return "\n".join(lines)


def refit(fit: Fitting, layer: str) -> Remedy:
    """As a remedy."""
    units = "one unit" if fit.units == 1 else f"{fit.units} units"
    activation = "no activation" if fit.activation == "linear" else f"a {fit.activation}"
    text = f"{units[0].upper()}{units[1:]} with {activation}, and {fit.loss}"
    return Remedy(text, code=code_for(fit, layer))


def _is_number(name: str) -> bool:
    try:
        return float(name).is_integer()
    except ValueError:
        return False
