"""True per-step values and sampled statistics of a compiled train step, kept on the device until drained.

The callback installs a `Probe` before the first trace, drains it while training goes on, and removes it at the end.
While Keras traces (or, eagerly, runs) the step, `capture` catches the tensors that pass by; this module makes them
one row per step, `sampler` one vector per sampled step; the backend's driver keeps both until they are drained. A
statistic that cannot be computed is left out and named in `missing`; a train step that cannot be traced with the
probe is trained without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from client_callback.instrument import replicas
from client_callback.instrument.backends import make_driver
from client_callback.instrument.capture import Capture, CapturedStep
from client_callback.instrument.clock import CallClock
from client_callback.instrument.gradient_tables import added, examples_of, gradient_scale, usable_gradients
from client_callback.instrument.layers import described_layers
from client_callback.instrument.sampler import Sampler
from client_callback.instrument.schedule import Schedule
from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Instrumented, Int64, Series

READY_MODULUS = 256.0
"""Seconds: float32 then still tells 15 µs apart, and no step takes longer."""
READY = f"{replicas.INTERNAL}ready"
"""Column with the time at which a step's batch was there; always the last."""


class Drained(NamedTuple):
    """What accumulated since the last drain."""

    first: int
    """Number of the first step in `rows`, counted since the probe was made."""
    rows: Float32
    """float32[n, number of series], or one column more: when each batch was there, modulo READY_MODULUS."""
    sample_steps: Int64
    samples: dict[str, Float32]
    """Statistic → float32[m, width]."""
    lost: int
    """Steps that were overwritten before this drain."""


class Probe:
    """Measures one model's train step.

    Args:
        model: compiled, its optimizer built.
        schedule: which steps are sampled.
        clock: told when a batch is ready, where that can be seen.
        on_problem: told once about each thing that cannot be measured.
        on_forward: called after the forward pass of a step, before its update, until it returns True.

    Raises:
        NotImplementedError: this model's train step cannot be measured.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        schedule: Schedule,
        clock: CallClock,
        on_problem: Callable[[str], None],
        on_forward: Callable[[], bool] | None = None,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.clock = clock
        self.driver = make_driver(self)
        self.layers, cut = described_layers(model) if schedule.every else ([], "")
        self.capture = Capture(
            model,
            layers={layer.name: layer.layer for layer in self.layers if layer.activation is not None},
            targets_from=self.driver.targets_from,
            on_forward=on_forward,
        )
        self.ready_modulus = READY_MODULUS
        self.failure: Exception | None = None
        """What went wrong while a train step was traced; nothing is measured in it then."""
        self.report = on_problem
        """Told once about each thing that cannot be measured."""
        self._sampler: Sampler | None = None
        self._columns: list[Series] = []
        """Of a row as a replica writes it."""
        self._series: list[Series] = []
        self._missing: list[str] = [cut] if cut else []
        self._announced: tuple[object, ...] = ()
        self._read_steps = 0

    def install(self) -> None:
        """Hooks the model; the next trace is measured."""
        self.capture.install()
        self.driver.install()

    def remove(self) -> None:
        """Takes the hooks off. What was measured can still be drained."""
        self.driver.remove()
        self.capture.remove()

    @property
    def steps(self) -> int:
        """Steps drained so far."""
        return self._read_steps

    def take_layout(self, *, step: int, time: float) -> Instrumented | None:
        """What is measured, as the event that says so. `None`: the same as when last asked."""
        signature = self._signature
        if signature == self._announced or not self._series:
            return None
        self._announced = signature
        return self.layout(step=step, time=time)

    @property
    def _signature(self) -> tuple[object, ...]:
        """Tells a layout from another of the same model."""
        sampler = self.sampler
        known = (len(self._series), len(sampler.statistics), len(self._missing), len(sampler.missing))
        return (*known, sampler.task)

    def layout(self, *, step: int, time: float) -> Instrumented:
        """What is measured, as the event that says so."""
        sampler = self.sampler
        return Instrumented(
            step=step,
            time=time,
            series=tuple(series for series in self._series if series.name != READY),
            statistics=tuple(sampler.statistics),
            missing=tuple(self._missing + sampler.missing),
            task=sampler.task,
        )

    @property
    def series_names(self) -> list[str]:
        """Columns of `Drained.rows`."""
        return [series.name for series in self._series if series.name != READY]

    def drain(self) -> Drained:
        """Takes what accumulated; may wait for the device."""
        waiting = self.driver.drain()
        lost = max(0, waiting.first - self._read_steps)
        steps = waiting.rows.shape[1]
        self._read_steps = waiting.first + steps
        samples = self.sampler.split(waiting.samples) if len(waiting.sample_steps) else {}
        return Drained(
            waiting.first, replicas.join(self._columns, waiting.rows), waiting.sample_steps, samples, lost
        )

    # ── Inside the trace ────────────────────────────────────────────────────────────────────────────

    @property
    def variables(self) -> list[Any]:
        """The trainable ones; known when the first step is traced."""
        return self.sampler.variables

    @property
    def sampler(self) -> Sampler:
        """Made at the first trace: only then has every model its variables."""
        if self._sampler is None:
            self._sampler = Sampler(self.model, self.layers, self.driver, self.report)
        return self._sampler

    def safely(self, body: Callable[[], None]) -> None:
        """An error of ours must not leave Keras' trace half done, with variables it made never initialised."""
        if self.failure is not None:
            return
        try:
            body()
        except Exception as error:  # noqa: BLE001 (measuring must never stop a training)
            self.failure = error

    def row(self, step: CapturedStep, logs: Any) -> list[Tensor]:
        """This step's row: a float32 scalar for each series, and more where replicas are to be joined."""
        cells = self._cells(step, _flat(logs))
        nan = ops.convert_to_tensor(float("nan"), "float32")
        return [ops.cast(cells.get(series.name, nan), "float32") for series in self._columns]

    def _cells(self, step: CapturedStep, logs: dict[str, Any]) -> dict[str, Tensor]:
        """Series name → scalar; on the first trace also decides which series there are."""
        measured: dict[str, Tensor] = {}
        examples = examples_of(step.inputs)
        if self._usable(step.loss):
            measured["loss"] = step.loss
        if self._usable(step.learning_rate):
            measured["learning_rate"] = step.learning_rate
        gradients = usable_gradients(step, self.driver)
        if gradients:
            measured["grad_norm"] = _unscaled(self.driver.norm(list(gradients.values())), step)
        if self._usable(step.loss_scale) and not isinstance(step.loss_scale, float):  # one that may change
            measured["loss_scale"] = step.loss_scale
        counts: dict[str, Tensor] = {}
        for name, increments in step.metric_sums.items():
            if all(self._usable(total) and self._usable(count) for total, count in increments):
                total = added([ops.cast(total, "float32") for total, _ in increments])
                counts[name] = added([ops.cast(count, "float32") for _, count in increments])
                measured.setdefault(name, ops.divide_no_nan(total, counts[name]))
        running = {
            name: value
            for name, value in logs.items()
            if name not in measured and self._usable(value) and not tuple(getattr(value, "shape", ()))
        }
        if examples is not None:
            measured["examples"] = examples
        if step.ready is not None:
            measured[READY] = step.ready
        if self.driver.replicas > 1:
            measured |= self._replica_cells(step, counts)
        if not self._columns:
            self._choose_series(measured, running)
        return measured | running

    def _replica_cells(self, step: CapturedStep, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is needed to join the replicas: the weight of each mean, and the norm of each one's gradient."""
        cells = {f"{replicas.WEIGHT}{name}": count for name, count in counts.items()}
        if step.gradients and all(self._usable(gradient) for gradient in step.gradients.values()):
            # The loss was divided by the number of replicas, so that the gradients add up to the whole one.
            norm = self.driver.norm(list(step.gradients.values()))
            cells[replicas.LOCAL_NORM] = _unscaled(norm, step) * self.driver.replicas
        return cells

    def _choose_series(self, measured: dict[str, Tensor], running: dict[str, Any]) -> None:
        names = sorted(measured | running, key=lambda name: (name == READY, _ORDER.get(name, len(_ORDER))))
        self._columns = [
            Series(
                name=name, kind="timing" if name == "examples" else "batch" if name in measured else "running"
            )
            for name in names
        ]
        self._series = replicas.joined_series(self._columns, self.driver.replicas)
        for name, why in _EXPECTED.items():
            if name not in measured:
                self._miss(f"{name} of each step: {why}")

    def _usable(self, tensor: Any) -> bool:
        return tensor is not None and self.driver.reachable(tensor)

    def _miss(self, what: str) -> None:
        if what not in self._missing:
            self._missing.append(what)


_ORDER = {"loss": 0, "learning_rate": 1, "grad_norm": 2}
_EXPECTED = {
    "loss": "the train step does not pass it to the loss tracker",
    "learning_rate": "the train step uses no optimizer that has one",
    "grad_norm": "the train step does not call optimizer.apply",
}


def _flat(logs: Any) -> dict[str, Any]:
    """Name → value, as Keras reads what a step returns: several metrics may come as a dictionary of their own."""
    found: dict[str, Any] = {}
    for name, value in logs.items() if isinstance(logs, dict) else ():
        found |= _flat(value) if isinstance(value, dict) else {name: value}
    return found


def _unscaled(norm: Tensor, step: CapturedStep) -> Tensor:
    return norm if step.loss_scale is None else norm / gradient_scale(step)
