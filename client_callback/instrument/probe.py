"""True per-step values and sampled statistics of a compiled train step, kept on the device until drained.

The callback installs a `Probe` before the first trace, drains it between batches, and removes it at the end. While
Keras traces the step, `capture` hands over the tensors that pass by, and this module turns them into one row per
step and one vector per sampled step. A statistic that cannot be computed is left out and named in `missing`; a
train step that cannot be traced with the probe is trained without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import keras
import numpy as np
from keras import ops

from client_callback.instrument.capture import Capture, CapturedStep
from client_callback.instrument.sampler import Sampler, gradient_scale, usable_gradients
from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Instrumented, Int64, Series

_P = ParamSpec("_P")

BACKENDS = {"tensorflow": "client_callback.instrument.tensorflow"}
"""Keras backend → the module that knows its buffers and graphs."""

CAPACITY = 1024
"""Rows of the step ring: well above what runs between two drains (0.1 s); at least four calls' worth."""
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
        self._capture = Capture(
            model,
            on_step=self._safely(self._write),
            on_update=self._safely(self._write_updates),
            before_update=self._safely(self._clear_updates),
        )
        self._steps_per_call = int(getattr(model, "steps_per_execution", 1) or 1)
        self.capacity = max(CAPACITY, 4 * self._steps_per_call)
        """Steps that fit between two drains."""
        self.slots = self._fitting_slots()
        """Sampled steps that fit between two drains."""
        self._buffers: Any = None
        self._sampler: Sampler | None = None
        self._series: list[Series] = []
        self._missing: list[str] = []
        self._announced: Instrumented | None = None
        self._read_steps = 0
        self._read_samples = 0
        self.failure: Exception | None = None
        """What went wrong while a train step was traced; nothing is measured in it then."""
        self._traced = False

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

    def take_layout(self, *, step: int, time: float) -> Instrumented | None:
        """What is measured, as the event that says so. `None`: the same as when last asked."""
        if not self._traced:
            return None
        self._traced = False
        layout = self.layout(step=0, time=0.0)
        if layout == self._announced:
            return None
        self._announced = layout
        return self.layout(step=step, time=time)

    def layout(self, *, step: int, time: float) -> Instrumented:
        """What is measured, as the event that says so."""
        sampler = self._prepare()[1]
        return Instrumented(
            step=step,
            time=time,
            series=tuple(self._series),
            statistics=tuple(sampler.statistics),
            missing=tuple(self._missing + sampler.missing),
            task=sampler.task,
        )

    def is_ours(self, error: BaseException) -> bool:
        """Whether an operation of this probe failed while the step ran."""
        return bool(self._backend.is_ours(error))

    @property
    def series_names(self) -> list[str]:
        """Columns of `Drained.rows`."""
        return [series.name for series in self._series]

    def drain(self) -> Drained:
        """Takes what accumulated; waits for the device."""
        if self._buffers is None or self._sampler is None:
            return Drained(0, np.empty((0, 0), np.float32), np.empty(0, np.int64), {}, 0)
        first, rows = self._buffers.read_rows(self._read_steps)
        lost = first - self._read_steps
        self._read_steps = first + len(rows)
        number, sample_steps, matrix = self._buffers.read_samples(self._read_samples)
        self._read_samples = number + len(sample_steps)
        samples = self._sampler.split(matrix) if len(sample_steps) else {}
        return Drained(first, rows, sample_steps, samples, lost)

    # ── Inside the trace ────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> tuple[Any, Sampler]:
        """The buffers, made at the first call: only then has every model its variables."""
        if self._buffers is None or self._sampler is None:
            variables = list(self._model.trainable_variables)
            self.slots = self._fitting_slots()
            self._buffers = self._backend.DeviceBuffers(
                capacity=self.capacity, slots=self.slots, variables=len(variables), every=max(self._every, 1)
            )
            self._sampler = Sampler(self._model, variables, self._buffers, self._backend, self._on_problem)
        return self._buffers, self._sampler

    def _fitting_slots(self) -> int:
        wanted = self._steps_per_call // max(self._every, 1) + 32
        row_bytes = 4 * (8 * len(self._model.trainable_variables) + 1_000)
        return max(2, min(wanted, MAX_SAMPLE_BYTES // row_bytes))

    def _write(self, step: CapturedStep, logs: Any) -> None:
        buffers, sampler = self._prepare()
        with self._backend.scope():
            row = self._row(step, logs if isinstance(logs, dict) else {}, compiled=sampler.compiled)
            if self._every:
                sampler.write(step)
            nan = ops.convert_to_tensor(float("nan"), "float32")
            buffers.write_row([row.get(series.name, nan) for series in self._series])
        self._traced = True

    def _row(self, step: CapturedStep, logs: dict[str, Any], *, compiled: bool) -> dict[str, Tensor]:
        """Series name → float32 scalar; on the first trace also decides which series there are."""
        measured: dict[str, Tensor] = {}
        if self._usable(step.loss):
            measured["loss"] = step.loss
        if self._usable(step.learning_rate):
            measured["learning_rate"] = step.learning_rate
        gradients = usable_gradients(step, self._backend)
        if gradients:
            squares = [self._backend.squared_norm(g, compiled=compiled) for g in gradients.values()]
            measured["grad_norm"] = ops.sqrt(ops.sum(ops.stack(squares))) / gradient_scale(step)
        for name, increments in step.metric_sums.items():
            if all(self._usable(total) and self._usable(count) for total, count in increments):
                total = sum(ops.cast(total, "float32") for total, _ in increments)
                count = sum(ops.cast(count, "float32") for _, count in increments)
                measured.setdefault(name, ops.divide_no_nan(total, count))
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

    def _write_updates(self, step: CapturedStep) -> None:
        if self._every:
            with self._backend.scope():
                self._prepare()[1].write_updates(step)

    def _clear_updates(self) -> None:
        if self._every:
            with self._backend.scope():
                self._prepare()[1].clear_updates()

    def _safely(self, body: Callable[_P, None]) -> Callable[_P, None]:
        """An error of ours must not leave Keras' trace half done, with variables it made never initialised."""

        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
            if self.failure is not None:
                return
            try:
                body(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 (measuring must never stop a training)
                self.failure = error

        return guarded

    def _usable(self, tensor: Any) -> bool:
        return tensor is not None and bool(self._backend.reachable(tensor))

    def _miss(self, what: str) -> None:
        if what not in self._missing:
            self._missing.append(what)


_ORDER = {"loss": 0, "learning_rate": 1, "grad_norm": 2}
_EXPECTED = {
    "loss": "the train step does not pass it to the loss tracker",
    "learning_rate": "the train step uses no optimizer that has one",
    "grad_norm": "the train step does not call optimizer.apply",
}
