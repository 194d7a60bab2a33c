"""True per-step values and sampled statistics of a compiled train step, kept on the device until drained.

The callback installs a `Probe` before the first trace, drains it between batches, and removes it at the end. While
Keras traces the step, `capture` hands over the tensors that pass by, and this module turns them into one row per
step and one vector per sampled step. A statistic that cannot be computed is left out and named in `missing`; a
train step that cannot be traced with the probe is trained without it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from client_callback.instrument import predictions, statistics
from client_callback.instrument.capture import Capture, CapturedStep, innermost
from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Instrumented, Int64, Series, Statistic

BACKENDS = {"tensorflow": "client_callback.instrument.tensorflow"}
"""Keras backend → the module that knows its buffers and graphs."""

GRADIENT_STATISTICS = (
    ("gradient_mean_abs", "Mean |g|"),
    ("gradient_max_abs", "Largest |g|"),
    ("gradient_zero_share", "Share of gradient entries that are exactly 0"),
    ("gradient_non_finite", "Gradient entries that are NaN or infinite"),
)
INPUT_LABELS = ("mean", "std", "min", "max", "non_finite")
CAPACITY = 1024
"""Rows of the step ring: a power of two well above what runs between two drains (0.1 s)."""
MAX_SAMPLE_BYTES = 32 << 20
"""Device memory the sample ring may take."""


class Drained(NamedTuple):
    """What accumulated since the last drain."""

    first: int
    """Number of the first step in `rows`, counted since the probe was made."""
    rows: Float32
    """float32[n, number of series]."""
    sample_steps: Int64
    samples: dict[str, Float32]
    """Statistic → float32[m, number of labels]."""
    lost: int
    """Steps that were overwritten before this drain."""


class Probe:
    """Measures one model's train step.

    Args:
        model: compiled, its optimizer built.
        every: steps between two sampled ones; 0 samples none.
        on_problem: told once about each thing that cannot be measured.
    """

    def __init__(self, model: keras.Model, *, every: int, on_problem: Callable[[str], None]) -> None:
        backend = keras.backend.backend()
        if backend not in BACKENDS:
            raise NotImplementedError(
                f"values inside the train step are read on {', '.join(BACKENDS)}; this is {backend}"
            )
        self._backend: Any = importlib.import_module(BACKENDS[backend])
        self._model = model
        self._every = every
        self._on_problem = on_problem
        self._variables = list(model.trainable_variables)
        self._capture = Capture(
            model, on_step=self._write, on_update=self._write_updates, before_update=self._clear_updates
        )
        execution = int(getattr(model, "steps_per_execution", 1) or 1)
        self._buffers: Any = self._backend.DeviceBuffers(
            capacity=max(CAPACITY, 4 * execution),
            slots=_slots(len(self._variables), execution // max(every, 1) + 32),
            variables=len(self._variables),
            every=max(every, 1),
        )
        self._series: list[Series] = []
        self._statistics: list[Statistic] = []
        self._missing: list[str] = []
        self._broken: set[str] = set()
        self._task: predictions.TaskKind = "unknown"
        self._read_steps = 0
        self._read_samples = 0
        self.traced = False
        """Whether a train step has been traced since the layout was last taken."""

    def install(self) -> None:
        """Hooks the model; the next trace is measured."""
        self._capture.install()

    def remove(self) -> None:
        """Takes the hooks off. What was measured can still be drained."""
        self._capture.remove()

    @property
    def steps(self) -> int:
        """Steps drained so far."""
        return self._read_steps

    @property
    def slots(self) -> int:
        """Sampled steps that fit between two drains."""
        return int(self._buffers.slots)

    @property
    def capacity(self) -> int:
        """Steps that fit between two drains."""
        return int(self._buffers.capacity)

    def take_layout(self, *, step: int, time: float) -> Instrumented:
        """What is measured since the last trace, as the event that says so."""
        self.traced = False
        return Instrumented(
            step=step,
            time=time,
            series=tuple(self._series),
            statistics=tuple(self._statistics),
            missing=tuple(self._missing),
            task=self._task,
        )

    @property
    def series_names(self) -> list[str]:
        """Columns of `Drained.rows`."""
        return [series.name for series in self._series]

    def drain(self) -> Drained:
        """Takes what accumulated; waits for the device."""
        first, rows = self._buffers.read_rows(self._read_steps)
        lost = first - self._read_steps
        self._read_steps = first + len(rows)
        number, sample_steps, matrix = self._buffers.read_samples(self._read_samples)
        self._read_samples = number + len(sample_steps)
        return Drained(first, rows, sample_steps, self._split(matrix) if len(sample_steps) else {}, lost)

    def _split(self, matrix: Float32) -> dict[str, Float32]:
        widths = [len(statistic.labels) for statistic in self._statistics]
        parts = np.split(matrix, np.cumsum(widths)[:-1], axis=1)
        return {statistic.name: part for statistic, part in zip(self._statistics, parts, strict=True)}

    # ── Inside the trace ────────────────────────────────────────────────────────────────────────────

    def _write(self, step: CapturedStep, logs: Any) -> None:
        with self._backend.scope():
            row = self._row(step, logs if isinstance(logs, dict) else {})
            if self._every:
                self._backend.when(self._buffers.sampled(), lambda: self._write_sample(step))
            nan = ops.convert_to_tensor(float("nan"), "float32")
            self._buffers.write_row([row.get(series.name, nan) for series in self._series])
        self.traced = True

    def _row(self, step: CapturedStep, logs: dict[str, Any]) -> dict[str, Tensor]:
        """Series name → float32 scalar; on the first trace also decides which series there are."""
        measured: dict[str, Tensor] = {}
        if self._usable(step.loss):
            measured["loss"] = step.loss
        if self._usable(step.learning_rate):
            measured["learning_rate"] = step.learning_rate
        gradients = self._gradients(step)
        if gradients:
            squares = [self._squared_norm(gradient) for gradient in gradients.values()]
            measured["grad_norm"] = ops.sqrt(ops.sum(ops.stack(squares))) / self._scale(step)
        for name, increments in step.metric_sums.items():
            if all(self._usable(total) and self._usable(count) for total, count in increments):
                total = sum(ops.cast(total, "float32") for total, _ in increments)
                count = sum(ops.cast(count, "float32") for _, count in increments)
                measured.setdefault(name, total / count)
        running = {
            name: value
            for name, value in logs.items()
            if name not in measured and self._usable(value) and not tuple(getattr(value, "shape", ()))
        }
        if not self._series:
            self._choose_series(measured, running)
        return {name: ops.cast(value, "float32") for name, value in (measured | running).items()}

    def _choose_series(self, measured: dict[str, Tensor], running: dict[str, Any]) -> None:
        names = sorted(measured | running, key=lambda name: _ORDER.get(name, len(_ORDER)))
        self._series = [Series(name=name, kind="batch" if name in measured else "running") for name in names]
        for name, why in _EXPECTED.items():
            if name not in measured:
                self._miss(f"{name} of each step: {why}")

    def _write_sample(self, step: CapturedStep) -> None:
        """Runs once per trace, inside the branch that only sampled steps take."""
        first_trace = not self._statistics
        parts: dict[str, Tensor] = {}
        for statistic, compute in self._tables(step):
            if statistic.name in self._broken:
                continue
            try:
                value = ops.reshape(ops.cast(compute(), "float32"), (len(statistic.labels),))
            except Exception as error:  # noqa: BLE001 (a statistic must never stop a training)
                self._broken.add(statistic.name)
                self._miss(f"{statistic.name}: {type(error).__name__}: {error}")
                self._on_problem(f"the statistic {statistic.name} is not recorded: {error}")
                continue
            parts[statistic.name] = value
            if first_trace:
                self._statistics.append(statistic)
        if not self._statistics:
            return
        columns = [
            parts.get(statistic.name, ops.full((len(statistic.labels),), float("nan"), dtype="float32"))
            for statistic in self._statistics
        ]
        self._buffers.write_sample(ops.concatenate(columns))

    def _tables(self, step: CapturedStep) -> list[predictions.Table]:
        return [
            *self._variable_tables(step),
            *self._prediction_tables(step),
            *self._input_tables(step),
        ]

    def _variable_tables(self, step: CapturedStep) -> list[predictions.Table]:
        labels = variable_labels(self._variables)
        gradients = self._gradients(step)
        if not gradients:
            return [(_of_variables("weight_norm", labels, "‖w‖ after the step"), self._weight_norms)]
        unreached = [label for index, label in enumerate(labels) if index not in gradients]
        if unreached:
            self._miss(f"no gradient reaches {', '.join(unreached)}; it counts as 0")
        scale = self._scale(step)
        rows = [
            self._gradient_row(gradients[i], scale) if i in gradients else None for i in range(len(labels))
        ]
        nothing = [0.0, 0.0, 0.0, 1.0, 0.0]

        def column(position: int) -> Tensor:
            return ops.stack(
                [
                    ops.convert_to_tensor(nothing[position] if row is None else row[position], "float32")
                    for row in rows
                ]
            )

        names = (("gradient_norm", "‖g‖ before clipping"), *GRADIENT_STATISTICS)
        made: list[predictions.Table] = [
            (_of_variables(name, labels, doc), functools.partial(column, position))
            for position, (name, doc) in enumerate(names)
        ]
        made.append((_of_variables("weight_norm", labels, "‖w‖ after the step"), self._weight_norms))
        doc = "‖Δw‖: the optimizer's step with its weight decay, before constraints"
        made.append((_of_variables("update_norm", labels, doc), lambda: self._buffers.updates))
        return made

    def _gradient_row(self, gradient: Tensor, scale: Tensor) -> list[Tensor]:
        values, size = self._backend.entries(gradient, compiled=self._compiled)
        mean, largest, zeros, non_finite = statistics.gradient_statistics(values, size)
        return [statistics.norm(values) / scale, mean / scale, largest / scale, zeros, non_finite]

    def _weight_norms(self) -> Tensor:
        return ops.stack([statistics.norm(ops.convert_to_tensor(variable)) for variable in self._variables])

    def _prediction_tables(self, step: CapturedStep) -> list[predictions.Table]:
        outputs, targets = keras.tree.flatten(step.predictions), keras.tree.flatten(step.targets)
        if not outputs or not targets or outputs[0] is None or targets[0] is None:
            self._miss("predictions: the train step does not call compute_loss(x, y, y_pred)")
            return []
        if not self._usable(outputs[0]) or not self._usable(targets[0]):
            self._miss("predictions: they are computed in an inner loop or branch of the train step")
            return []
        if len(outputs) > 1:
            self._miss(f"predictions of outputs 2 to {len(outputs)}: only those of the first are described")
        losses = keras.tree.flatten(getattr(self._model, "loss", None))
        task = predictions.infer_task(losses[0] if losses else None, targets[0], outputs[0])
        self._task = task.kind
        return predictions.tables(task, targets[0], outputs[0])

    def _input_tables(self, step: CapturedStep) -> list[predictions.Table]:
        made: list[predictions.Table] = []
        inputs = [value for value in keras.tree.flatten(step.inputs) if self._usable(value)]
        for number, values in enumerate(inputs):
            if not hasattr(values, "dtype") or "string" in str(values.dtype):
                self._miss(f"statistics of input {number}: it holds no numbers")
                continue
            name = "input" if len(inputs) == 1 else f"input_{number}"
            layout = Statistic(name=name, of="values", labels=INPUT_LABELS, doc="Of the batch's input values")
            made.append((layout, functools.partial(statistics.input_statistics, _first_examples(values))))
        return made

    def _clear_updates(self) -> None:
        """A step whose update is skipped (accumulating, or a loss scale that overflowed) moved nothing."""
        optimizer = self._model.optimizer
        always = innermost(optimizer) is optimizer and not getattr(
            optimizer, "gradient_accumulation_steps", 0
        )
        if always or not self._every:
            return
        with self._backend.scope():
            self._buffers.updates.assign(ops.zeros((len(self._variables),), dtype="float32"))

    def _write_updates(self, step: CapturedStep) -> None:
        if not self._every:
            return
        with self._backend.scope():
            self._backend.when(
                self._buffers.sampled(), lambda: self._buffers.updates.assign(self._update_norms(step))
            )

    def _update_norms(self, step: CapturedStep) -> Tensor:
        moves: dict[int, list[tuple[int, Tensor]]] = {}
        for index, sign, value in step.updates:
            moves.setdefault(index, []).append((sign, value))
        norms = [self._update_norm(index, moves.get(index, [])) for index in range(len(self._variables))]
        return ops.stack([ops.cast(value, "float32") for value in norms])

    def _update_norm(self, index: int, moves: list[tuple[int, Tensor]]) -> Tensor:
        """‖Δw‖ of one variable, without a copy of it.

        Decoupled weight decay takes c·w first (c = learning rate × weight decay), then the optimizer adds its
        step s: w′ = (1 − c)·w + s. So Δw = w′ − w = (s − c·w′) / (1 − c).
        """
        if not moves:
            return 0.0
        decay = self._decay(index)
        if decay is None and len(moves) == 1:
            return ops.sqrt(self._squared_norm(moves[0][1]))
        total = sum(sign * self._backend.dense(value) for sign, value in moves)
        if decay is not None:
            weights = ops.cast(ops.convert_to_tensor(self._variables[index]), "float32")
            total = (total - decay * weights) / (1.0 - decay)
        return statistics.norm(total)

    def _decay(self, index: int) -> Tensor | None:
        optimizer = innermost(self._model.optimizer)
        rate = getattr(optimizer, "weight_decay", None)
        if not rate or not optimizer._use_weight_decay(self._variables[index]):
            return None
        return ops.cast(optimizer.learning_rate, "float32") * float(rate)

    # ── Small things ────────────────────────────────────────────────────────────────────────────────

    def _gradients(self, step: CapturedStep) -> dict[int, Tensor]:
        return {index: gradient for index, gradient in step.gradients.items() if self._usable(gradient)}

    def _usable(self, tensor: Any) -> bool:
        return tensor is not None and bool(self._backend.reachable(tensor))

    def _squared_norm(self, gradient: Tensor) -> Tensor:
        return self._backend.squared_norm(gradient, compiled=self._compiled)

    @property
    def _compiled(self) -> bool:
        return bool(getattr(self._model, "jit_compile", False))

    @staticmethod
    def _scale(step: CapturedStep) -> Tensor:
        return 1.0 if step.loss_scale is None else ops.cast(step.loss_scale, "float32")

    def _miss(self, what: str) -> None:
        if what not in self._missing:
            self._missing.append(what)


_ORDER = {"loss": 0, "learning_rate": 1, "grad_norm": 2}
_EXPECTED = {
    "loss": "the train step does not pass it to the loss tracker",
    "learning_rate": "the train step uses no optimizer that has one",
    "grad_norm": "the train step does not call optimizer.apply",
}


def variable_labels(variables: list[Any]) -> tuple[str, ...]:
    """A distinct label for each variable: its path, numbered where paths repeat."""
    seen: dict[str, int] = {}
    labels = []
    for variable in variables:
        number = seen[variable.path] = seen.get(variable.path, -1) + 1
        labels.append(f"{variable.path}:{number}" if number else variable.path)
    return tuple(labels)


def _slots(variables: int, wanted: int) -> int:
    row_bytes = 4 * (8 * variables + 1_000)
    return max(2, min(wanted, MAX_SAMPLE_BYTES // row_bytes))


def _of_variables(name: str, labels: tuple[str, ...], doc: str) -> Statistic:
    return Statistic(name=name, of="variables", labels=labels, doc=doc)


def _first_examples(values: Tensor) -> Tensor:
    """At most MAX_INPUT_ELEMENTS entries: of the leading examples of the batch."""
    shape = tuple(values.shape)
    if not shape:
        return values
    per_example = 1
    for length in shape[1:]:
        per_example *= int(length or 1)
    return values[: max(1, statistics.MAX_INPUT_ELEMENTS // max(per_example, 1))]
