"""A session as the rules see it: with what follows from it for several of them, computed once.

Each look at a session makes a new `Case`; its parts are computed when a rule asks for them first. They answer the
questions that come before any cause: does the loss still fall, how good is the model compared with guessing and with
what the data allow. No rule here, no state, no clock.

All costs are bounded: long series are seen through means of blocks (which the columns keep), tables through their
first and newest rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from functools import cached_property
from operator import attrgetter
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from client_callback.wire import commands
from client_callback.wire.protocol import (
    DataDescribed,
    Float32,
    Float64,
    InputData,
    Int64,
    Layer,
    Optimizer,
    Output,
    RunDescription,
    TargetData,
)
from monitor.diagnosis.medians import finite, medians
from monitor.diagnosis.progress import BLOCKS, Progress, judge, unknown
from monitor.series import Column
from monitor.session import Session, Task

FEWEST_STEPS: Final = 24
"""Fewer losses tell nothing about a trend: a rank test on 12 values is the least that reaches 1 %."""
RECENT_ROWS: Final = 8
"""Sampled rows that count as now."""
BARELY: Final = 0.1
"""A lift below this is guessing: with K classes, a tenth of the way from the majority's share to all right."""
REGRESSION: Final = frozenset(
    {
        *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error"),
        *("mean_squared_logarithmic_error", "huber", "log_cosh"),
        *("mse", "mae", "mape", "msle", "logcosh"),
    }
)
"""Distances between numbers."""
LEVEL: Final = 0.05
"""Lift behind the plain model of the signal probe that its own error on a few hundred examples may make."""

_TRAINING_CHANGES: Final = (
    commands.SetRate,
    commands.ScaleRate,
    commands.SetSchedule,
    commands.SwitchOptimizer,
    commands.SetHyperparameters,
    commands.Rollback,
    commands.Undo,
    commands.Redo,
    commands.Reinitialise,
)


_P = ParamSpec("_P")
_R = TypeVar("_R")


class Baseline(NamedTuple):
    """What can be had without looking at the inputs."""

    majority: float
    """Share of the most frequent class. NaN: no classes."""
    classes: int
    """Number of classes seen. 0: no classes."""
    entropy: float
    """Of the classes' shares, in nats: the cross-entropy of always predicting them. NaN: no classes."""
    variance: float
    """Of the targets: the squared error of always predicting their mean."""
    counted: float
    """Labels seen."""


class Table(NamedTuple):
    """The sampled rows of one statistic."""

    steps: Int64
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    """Empty: one number per label."""
    values: Float32
    """`[rows, labels, columns]`, with one column where `columns` is empty."""

    def column(self, name: str = "") -> Float32:
        """`[rows, labels]` of one column; of the only one where they have no names."""
        place = self.columns.index(name) if name else 0
        return self.values[:, :, place]

    def number(self, name: str) -> Float64:
        """`[rows]` of the single value that has this label; all NaN: there is none."""
        if name not in self.labels:
            return np.full(len(self.steps), math.nan)
        return self.values[:, self.labels.index(name), 0].astype(np.float64)

    def recent(self, name: str = "", rows: int = RECENT_ROWS) -> Float64:
        """`[labels]`: the median over the newest rows; NaN where none of them has a number."""
        return medians(self.column(name)[-rows:])

    def early(self, name: str = "", rows: int = 4) -> Float64:
        """`[labels]`: the median over the first rows."""
        return medians(self.column(name)[:rows])


class Blocks(NamedTuple):
    """A series in 64 to 127 equal parts, a rest at its end left out; step by step where it has fewer steps."""

    means: Float64
    """Of each part, over its finite values; NaN where it has none. Step by step: the values as they are."""
    begin: int
    """The first step."""
    length: int
    """Steps in each."""

    @property
    def steps(self) -> int:
        """In all."""
        return len(self.means) * self.length


class Memory:
    """What follows from the descriptions of a run and its data alone, kept from one look at a session to the next."""

    def __init__(self) -> None:
        self._run: RunDescription | None = None
        self._data: DataDescribed | None = None
        self._known: dict[Hashable, Any] = {}

    def of(self, run: RunDescription | None, data: DataDescribed | None) -> dict[Hashable, Any]:
        """What is known of these descriptions; nothing if one is another than at the last call."""
        if run is not self._run or data is not self._data:
            self._run, self._data, self._known = run, data, {}
        return self._known


def per_case(function: Callable[Concatenate[Case, _P], _R]) -> Callable[Concatenate[Case, _P], _R]:
    """For what follows from a case and several rules ask for: computed once for each case and further arguments."""
    return _remembering(function, attrgetter("derived"))


def per_run(function: Callable[Concatenate[Case, _P], _R]) -> Callable[Concatenate[Case, _P], _R]:
    """For what follows from the descriptions of run and data, and further arguments: computed once for all looks."""
    return _remembering(function, attrgetter("of_run"))


def _remembering(
    function: Callable[Concatenate[Case, _P], _R], memory: Callable[[Case], dict[Hashable, Any]]
) -> Callable[Concatenate[Case, _P], _R]:
    @functools.wraps(function)
    def once(case: Case, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        known, key = memory(case), (function, args, *kwargs.items()) if kwargs else (function, args)
        try:
            found: _R = known[key]
        except KeyError:
            found = known[key] = function(case, *args, **kwargs)
        return found

    return once


class Case:
    """What the rules look at.

    Args:
        session: only read. It may go on growing later; a case is of the moment it was made.
        memory: of earlier looks at the same session, to be added to.
    """

    def __init__(self, session: Session, memory: Memory | None = None) -> None:
        self.session = session
        self.derived: dict[Hashable, Any] = {}
        """What `per_case` has computed."""
        self.of_run = (memory or Memory()).of(session.run, session.data)
        """What `per_run` has computed."""
        self.step = len(session.times) or session.step
        """Steps completed."""

    # ── What is known before the first step ─────────────────────────────────────────────────────────

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """In call order. Empty: not known."""
        return self.session.run.layers if self.session.run else ()

    @cached_property
    def trained_layers(self) -> tuple[Layer, ...]:
        """Those with a kernel, that train."""
        return _trained_layers(self)

    @property
    def backend(self) -> str:
        """`tensorflow`, `jax`, `torch`. Empty: not known."""
        return self.session.run.backend if self.session.run else ""

    @cached_property
    def optimizer(self) -> Optimizer | None:
        """The one at work."""
        return self.session.optimizer

    @cached_property
    def learning_rate(self) -> float | None:
        """Of the newest step; before the first, what the optimizer was given. `None`: not known."""
        rate = self.session.learning_rate
        if rate is None and self.optimizer is not None:
            given = self.optimizer.settings.get("learning_rate")
            rate = float(given) if isinstance(given, int | float) else None
        return rate

    @cached_property
    def output(self) -> Output | None:
        """The first with a loss. `None`: not known."""
        outputs = self.session.run.outputs if self.session.run else ()
        return next((output for output in outputs if output.loss), outputs[0] if outputs else None)

    @property
    def task(self) -> Task:
        """What the model is trained for, as its loss and targets tell."""
        return self.session.task

    @property
    def data(self) -> DataDescribed | None:
        """What it is trained on. `None`: only its steps tell."""
        return self.session.data

    @property
    def inputs(self) -> InputData | None:
        """The first input array. `None`: not known."""
        return self.data.inputs[0] if self.data and self.data.inputs else None

    @cached_property
    def inputs_are_names(self) -> bool:
        """Whether an embedding takes the inputs: numbers of words or classes, which say nothing by their size."""
        for layer in self.layers:
            if layer.class_name in ("Embedding", "TextVectorization", "StringLookup"):
                return True
            if layer.kernel_shape:
                return False
        return False

    @property
    def target(self) -> TargetData | None:
        """The first array of targets. `None`: not known."""
        return self.data.targets[0] if self.data and self.data.targets else None

    @cached_property
    def batch_size(self) -> float | None:
        """Examples per step. `None`: not known."""
        if self.data and self.data.batch_size:
            return float(self.data.batch_size)
        seen = self.session.series.get("examples")
        if seen is None or not len(seen):
            return None
        sizes = seen.values[:64]
        sizes = sizes[np.isfinite(sizes)]
        return float(np.median(sizes)) if len(sizes) else None

    # ── What was measured ───────────────────────────────────────────────────────────────────────────

    @per_case
    def table(self, name: str) -> Table | None:
        """A statistic's rows. `None`: there is none, or not what its columns are."""
        rows, layout = self.session.statistics.get(name), self.session.layouts.get(name)
        if rows is None or layout is None or not len(rows) or layout.width != rows.width:
            return None
        values = rows.matrix.reshape(len(rows), len(layout.labels), -1)
        return Table(rows.steps, layout.labels, layout.columns, values)

    def per_step(self, name: str) -> Column | None:
        """A series with the value of each step's own batch. `None`: there is none, or only running means."""
        column = self.session.series.get(name)
        if column is None or not len(column) or self.session.series_kinds.get(name) == "running":
            return None
        return column

    @per_case
    def blocks(self, name: str) -> Blocks | None:
        """Means over equal parts of a series since the last change by a command. `None`: there is no step of it."""
        column, begin = self.per_step(name), self.changed_at
        if column is None or len(column) <= begin:
            return None
        length = max(1, (len(column) - begin) // BLOCKS)
        # By a sixteenth at most, so that the blocks of a long run stay where they are from one look to the next.
        length -= length % (1 << max(0, length.bit_length() - 5))
        count = (len(column) - begin) // length
        if length == 1:
            return Blocks(column.values[begin:].astype(np.float64), begin, 1)
        return Blocks(column.block_means(begin, length, count), begin, length)

    @cached_property
    def changed_at(self) -> int:
        """The step before which a command changed the training last; 0: none did."""
        for reply in reversed(self.session.replies):
            if reply.status != "applied":
                continue
            order = self.session.order(reply)
            if order is not None and isinstance(order.instruction, _TRAINING_CHANGES):
                return min(reply.step, self.step)
        return 0

    @cached_property
    def non_finite_from(self) -> int | None:
        """The first step since when no loss was finite any more. `None`: the newest is finite, or there is none."""
        column = self.per_step("loss")
        if column is None or math.isfinite(float(column.values[-1])):
            return None
        bad = column.non_finite(0, len(column))
        last_good = len(column) - 1
        place = len(bad) - 1
        while place >= 0 and bad[place] == last_good:
            last_good, place = last_good - 1, place - 1
        return last_good + 1

    @cached_property
    def first_loss(self) -> float:
        """Of the very first step since the run began; NaN where that is not known."""
        column = self.per_step("loss")
        return float(column.values[0]) if column is not None else math.nan

    @cached_property
    def progress(self) -> Progress:
        """Since the last change by a command."""
        column = self.per_step("loss")
        start = self.changed_at
        found = self.blocks("loss")
        if found is not None and found.steps >= FEWEST_STEPS:
            return judge(found.means, found.begin, found.steps, found.length, by_epoch=False)
        points = self.session.epoch_logs.get("loss")
        if column is None and points is not None:
            after = points.steps >= start
            if int(after.sum()) >= 6:
                values = points.values[after][-BLOCKS:]
                return judge(values, start, self.step - start, 1, by_epoch=True)
        return unknown(start, self.step - start, by_epoch=column is None)

    # ── How good it is ──────────────────────────────────────────────────────────────────────────────

    @cached_property
    def baseline(self) -> Baseline | None:
        """From the labels of the training data, or of the sampled batches. `None`: none were seen."""
        counts = self.class_counts
        variance = self._target_variance
        if counts is None and variance is None:
            return None
        if counts is None:
            return Baseline(math.nan, 0, math.nan, variance or 0.0, 0.0)
        total = float(counts.sum())
        shares = counts[counts > 0] / total
        return Baseline(
            float(shares.max()),
            len(shares),
            float(-(shares * np.log(shares)).sum()),
            math.nan if variance is None else variance,
            total,
        )

    @cached_property
    def class_counts(self) -> Float64 | None:
        """How often each class was seen, the most frequent first. `None`: no classes."""
        if self.task == "regression":
            return None
        if self.target is not None and self.target.classes:
            return _described_counts(self)
        table = self.table("target_counts")
        if table is None:
            return self._counts_of_two_values
        return _in_order(table.values[:, :, 0].sum(axis=0, dtype=np.float64))

    @property
    def _counts_of_two_values(self) -> Float64 | None:
        """Of zeros and ones that a loss takes which says nothing of classes, by the sampled batches."""
        table = self.table("target") if self.task == "unknown" and self.output else None
        if table is None or self.output is None or self.output.units != 1:
            return None
        known = np.stack([table.number(name) for name in ("mean", "min", "max", "integral")])
        if not (
            np.isfinite(known).all() and known[3].min() >= 1 and (known[1].min(), known[2].max()) == (0, 1)
        ):
            return None
        ones = float(known[0].mean())
        return _in_order(np.array([1 - ones, ones]) * len(table.steps) * (self.batch_size or 1.0))

    @cached_property
    def accuracy(self) -> float | None:
        """Share of right classes over the newest steps, in training. `None`: no classes, or it cannot be told."""
        if self.task == "regression" or (self.task == "unknown" and self.class_counts is None):
            return None
        window = self._newest_steps
        for name in self.session.metric_series():
            column = self.per_step(name)
            if "acc" in name and column is not None:
                return _mean(column.values[-window:])
        confusion = self.table("confusion")
        if confusion is not None:
            newest = confusion.values[-RECENT_ROWS:].sum(axis=0, dtype=np.float64)
            return float(np.trace(newest) / newest.sum()) if newest.sum() else None
        for name, points in self.session.epoch_logs.items():
            if "acc" in name and len(points):
                return float(points.values[-1])
        return None

    @cached_property
    def lift(self) -> float | None:
        """How far the model has come from guessing to perfect on the batches it trains on; 0: it guesses, 1: perfect.

        Of classes: (accuracy − majority's share) / (1 − majority's share); where classes are weighted, the same of
        the mean recall, which always saying one class makes 1 / K. Of numbers: 1 − squared error / variance of
        the targets, unless the loss aims at something else. `None`: not known.
        """
        base = self.baseline
        if base is None:
            return None
        if base.classes > 1 and self.data is not None and self.data.class_weight:
            return self._balanced_lift
        if base.classes > 1 and self.accuracy is not None:
            return (self.accuracy - base.majority) / max(1.0 - base.majority, 1e-9)
        if self.task in ("regression", "unknown") and base.variance > 0 and self._aims_at_the_mean:
            squared = self.squared_error
            return None if squared is None else 1.0 - squared / base.variance
        return None

    @cached_property
    def _balanced_lift(self) -> float | None:
        confusion = self.table("confusion")
        if confusion is None:
            return None
        counts = confusion.values[-RECENT_ROWS:].sum(axis=0, dtype=np.float64)
        true = counts.sum(axis=1)
        seen = true > 0
        if seen.sum() < 2:
            return None
        chance = 1.0 / float(seen.sum())
        return (float((np.diag(counts)[seen] / true[seen]).mean()) - chance) / (1.0 - chance)

    @cached_property
    def attainable(self) -> float | None:
        """The lift that a plain model reaches on the training data: they allow that at least. `None`: not known."""
        signal = self.data.signal if self.data else None
        if signal is None or signal.chance >= 1 or (signal.kind == "accuracy" and self.task == "regression"):
            return None
        return max(0.0, (signal.score - signal.chance) / (1.0 - signal.chance))

    @property
    def plain_model(self) -> str:
        """What reaches `attainable`, by name."""
        return self.data.signal.model if self.data and self.data.signal else ""

    @cached_property
    def guessing(self) -> bool:
        """Whether the model is certainly no better than one that ignores its inputs."""
        if self.non_finite_from is not None:
            return True
        lift = self.lift
        return lift is not None and lift + self._lift_error < BARELY

    @cached_property
    def stuck(self) -> bool:
        """Whether training gets nowhere: no fall beyond noise, or none worth the name, far from what can be had."""
        if self.non_finite_from is not None:
            return True
        if self.progress.trend in ("flat", "rising"):
            return not (self.solved or self.level_with_plain_model)
        return self.guessing and self.seasoned and self.progress.trend != "falling"

    @cached_property
    def seasoned(self) -> bool:
        """Whether a sound training would have shown something by now: after 3 epochs or 200 steps of at least 24."""
        since = self.step - self.changed_at
        return since >= FEWEST_STEPS and (since >= 200 or self.epochs_since_change >= 3)

    @property
    def too_early(self) -> str:
        """Why it is no use to ask what a seasoned training has reached. Empty: it is one."""
        if self.seasoned:
            return ""
        since, after = self.step - self.changed_at, " since the last change" if self.changed_at else ""
        if since < FEWEST_STEPS:
            return f"too early to tell: {since} steps{after}, of {FEWEST_STEPS} it takes"
        epochs = self.epochs_since_change
        return f"too early to tell: {since} steps and {epochs} epochs{after}, of 200 steps or 3 epochs"

    @cached_property
    def epochs_since_change(self) -> int:
        """Whole epochs since the training was last changed by a command."""
        return sum(end > self.changed_at for end in self.session.epoch_ends.values())

    @cached_property
    def solved(self) -> bool:
        """Whether there is hardly anything left to learn."""
        lift = self.lift
        if lift is not None:
            return lift >= max(0.9, self.attainable or 0.0)
        progress = self.progress
        return math.isfinite(progress.first) and abs(progress.level) < 0.02 * abs(progress.first)

    @cached_property
    def level_with_plain_model(self) -> bool:
        """Whether it is well beyond guessing and about as good as a plain model: maybe all that can be had."""
        return self.shortfall is not None and self.shortfall <= LEVEL and (self.lift or 0.0) >= 2 * BARELY

    @cached_property
    def shortfall(self) -> float | None:
        """How far the lift stays behind what a plain model reaches; below 0: it is beyond. `None`: not known."""
        if self.lift is None or self.attainable is None:
            return None
        return self.attainable - self.lift

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def _newest_steps(self) -> int:
        """So many that they are of one state of the model, and enough for a mean."""
        since = self.step - self.changed_at
        return int(min(max(since // 4, 12), max(since, 1), 2_048))

    @property
    def _lift_error(self) -> float:
        """Two standard errors of a lift of classes."""
        base, accuracy = self.baseline, self.accuracy
        if base is None or accuracy is None or not self.batch_size:
            return 0.0
        examples = self._newest_steps * self.batch_size
        of_all = (self.data.examples if self.data else None) or math.inf
        # What is left of the error as the examples looked at become all there are (finite population correction).
        unseen = max(0.0, 1 - examples / of_all)
        error = math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / examples * unseen)
        return 2 * error / max(1 - base.majority, 1e-9)

    @property
    def _aims_at_the_mean(self) -> bool:
        """Whether the squared error tells how good it is: a quantile, or a loss that is not known, aims elsewhere."""
        loss = self.output.loss if self.output else ""
        return (
            loss in REGRESSION
            or loss == "poisson"
            or any(name in self.session.metric_series() for name in ("mse", "mean_squared_error"))
        )

    @cached_property
    def _target_variance(self) -> float | None:
        if self.target is not None and math.isfinite(self.target.values.std):
            return self.target.values.std**2
        table = self.table("target")
        if table is None:
            return None
        mean, std = table.number("mean"), table.number("std")
        known = np.isfinite(mean) & np.isfinite(std)
        return float((std[known] ** 2).mean() + mean[known].var()) if known.any() else None

    @cached_property
    def squared_error(self) -> float | None:
        """Mean squared error over the newest steps."""
        loss = self.output.loss if self.output else ""
        if loss in ("mean_squared_error", "mse") and self.penalty < 0.1 * abs(self.progress.level):
            level = self.progress.level
            return level if math.isfinite(level) else None
        for name in ("mse", "mean_squared_error"):
            column = self.per_step(name)
            if column is not None:
                return _mean(column.values[-self._newest_steps :])
        ranges, counts = self.table("residuals_range"), self.table("residuals")
        if ranges is None or counts is None or len(ranges.steps) != len(counts.steps):
            return None
        # From histograms: the middle of each bin stands for it.
        low, high = ranges.values[-RECENT_ROWS:, 0, 0], ranges.values[-RECENT_ROWS:, 1, 0]
        number = counts.values.shape[1]
        middles = low[:, None] + (high - low)[:, None] * (np.arange(number) + 0.5) / number
        weights = counts.values[-RECENT_ROWS:, :, 0].astype(np.float64)
        total = weights.sum()
        return float((weights * middles**2).sum() / total) if total else None

    @cached_property
    def penalty(self) -> float:
        """What regularisation of kernels adds to the loss now: Σ l2·‖w‖² (of l1 no more is known than 0)."""
        strengths = _strengths(self)
        norms = self.table("weight_norm") if strengths else None
        if norms is None:
            return 0.0
        newest = norms.recent("", 1)
        total = 0.0
        for label, norm in zip(norms.labels, newest.tolist(), strict=True):
            parts = label.split("/")
            if parts[-1].split(":")[0] == "kernel" and len(parts) > 1 and math.isfinite(norm):
                total += strengths.get(parts[-2], 0.0) * norm**2
        return total


@per_run
def _trained_layers(case: Case) -> tuple[Layer, ...]:
    return tuple(layer for layer in case.layers if layer.kernel_shape and layer.trainable)


@per_run
def _strengths(case: Case) -> dict[str, float]:
    """Name of a layer → what `l2` multiplies its squared norm with, if it has one."""
    strengths = {layer.name: float(layer.settings.get("l2") or 0.0) for layer in case.layers}
    return {name: strength for name, strength in strengths.items() if strength}


@per_run
def _described_counts(case: Case) -> Float64 | None:
    return _in_order(np.array(list(case.target.classes.values()) if case.target else [], np.float64))


def _in_order(counts: Float64) -> Float64 | None:
    """Those above 0, the greatest first. `None`: there is none."""
    counts = np.sort(counts[counts > 0])[::-1]
    return counts if len(counts) else None


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    known = finite(values)
    return float(known.mean()) if len(known) else None
