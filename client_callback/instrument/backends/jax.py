"""JAX: one row per step as another output of the compiled step, and a second compiled function for sampled steps.

A train step is a pure function of its state here. So a sampled step is computed twice: by the function that trains,
which knows nothing of statistics, and by one that computes the same step with all of them and keeps only those. What
trains stays bit-identical, and costs nothing but a row when a step is not sampled. Nothing is read on the way:
`drain` waits for the device in the sender's thread.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from client_callback.instrument.backends import Waiting
from client_callback.instrument.backends.host_queue import HostQueue
from client_callback.instrument.capture import CapturedStep, current_rate, loss_scale
from client_callback.instrument.gradient_tables import gradient_scale
from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.statistics import Tensor

if TYPE_CHECKING:
    from client_callback.instrument.probe import Probe

TIMED_SAMPLES = 4
"""Sampled steps whose cost is measured at first; then one in `TIMED_EVERY`. Each waits for the device once."""
TIMED_EVERY = 64


class Driver:
    """Measures a model's train step on JAX; see `backends.Driver`."""

    targets_from = "compute_metrics"
    traces_before_batch = False
    replicas = 1
    """With `keras.distribution` the arrays are those of the whole batch."""

    def __init__(self, probe: Probe) -> None:
        if keras.config.is_nnx_enabled():
            raise NotImplementedError("with flax nnx the train step cannot be reached")
        self._probe = probe
        self._model = probe.model
        self._queue = HostQueue(lambda arrays: np.stack([np.asarray(array) for array in arrays]))
        self.capacity = self._queue.capacity
        self._hooks = InstanceHooks()
        self._outer: Any = None
        """The trace of the whole train step, while it is traced."""
        self._sampling: Any = None
        self._sketch: Any = None
        self._sketch_step = -2
        self._sample_now = False
        self._samples_taken = 0
        self._call_steps = 0
        self._sample_costs: deque[float] = deque(maxlen=32)

    # ── Life ────────────────────────────────────────────────────────────────────────────────────────

    def install(self) -> None:
        """Hooks the train step, the optimizer, and the making of functions out of them."""
        model = self._model
        if self._standard:
            # The forward pass runs inside the gradient's trace; these two carry its values out of it.
            self._compute_loss = model.compute_loss_and_updates
            self._hooks.wrap(model, "compute_loss_and_updates", self._wrap_loss_and_updates)
            self._hooks.wrap(model, "_update_metrics_variables", self._wrap_metrics_update)
        if model.optimizer is not None and hasattr(model.optimizer, "stateless_apply"):
            self._hooks.wrap(model.optimizer, "stateless_apply", self._wrap_apply)
        self._train_step = model.train_step
        if self._compiled:
            self._sampling = jax.jit(self._sampled_train_step)

    def remove(self) -> None:
        """Takes the hooks off."""
        self._hooks.remove()

    @contextlib.contextmanager
    def making_train_function(self) -> Iterator[None]:
        """Keras compiles our train step then; whoever else calls or compiles the model's gets its own."""
        hooks = InstanceHooks()
        hooks.wrap(self._model, "train_step", lambda train_step: self._measured_train_step)
        hooks.wrap(self._model, "_make_function", self._wrap_make_function)
        try:
            yield
        finally:
            hooks.remove()

    def own_train_step(self) -> Callable[..., Any]:
        """It is hooked only while a train function is made."""
        step: Callable[..., Any] = self._train_step
        return step

    def take_call_steps(self) -> int:
        """Counted where each step is started."""
        steps, self._call_steps = self._call_steps, 0
        return steps

    def set_interval(self, every: int) -> None:
        """The host decides which steps are sampled."""
        self._probe.schedule.every = every

    def take_sample_costs(self) -> list[float]:
        """Seconds of the function that computes a sampled step once more."""
        costs = list(self._sample_costs)
        self._sample_costs.clear()
        return costs

    def drain(self) -> Waiting:
        """Waits for the steps that were begun."""
        return self._queue.drain()

    def is_ours(self, error: BaseException) -> bool:
        """Errors of the device name no operation."""
        return False

    # ── Around the compiled step ────────────────────────────────────────────────────────────────────

    def _wrap_make_function(self, make_function: Callable[..., Any]) -> Callable[..., Any]:
        def measured_make_function(step_function: Any, *args: Any, **kwargs: Any) -> Any:
            return make_function(self._on_host(step_function), *args, **kwargs)

        return measured_make_function

    def _on_host(self, step_function: Callable[..., Any]) -> Callable[..., Any]:
        """What runs between the batches: the step itself and, when due, the function that samples it."""
        schedule, clock = self._probe.schedule, self._probe.clock

        def host_step(state: Any, data: Any) -> Any:
            clock.data_ready()
            sample = None
            if schedule.due and self._sampling is None:
                self._sample_now = True
            elif schedule.due:
                sample = self._sample(state, data)
            (logs, measured), state = step_function(state, data)
            if measured is not None:
                row, self._sketch, seen = measured
                self._queue.append(row, sample if seen is None else seen)
                self._sketch_step = schedule.step
            self._sample_now = False
            self._call_steps += 1
            schedule.advance()
            return logs, state

        return host_step

    def _sample(self, state: Any, data: Any) -> Any:
        """The statistics of the step about to be run, from a function that runs beside it. `None`: that failed."""
        try:
            return self._run_sampling(state, data)
        except Exception as error:  # noqa: BLE001 (the device's memory may be too small for it; training goes on)
            self._probe.schedule.every = 0
            self._probe.report(f"no statistics are taken any more: {type(error).__name__}: {error}")
            return None

    def _run_sampling(self, state: Any, data: Any) -> Any:
        timed = self._samples_taken < TIMED_SAMPLES or self._samples_taken % TIMED_EVERY == 0
        self._samples_taken += 1
        if not timed:
            return self._sampling(state, data, self._previous_sketch())
        variants = self._sampling._cache_size()
        jax.block_until_ready(state)
        begin = time.perf_counter()
        sample = jax.block_until_ready(self._sampling(state, data, self._previous_sketch()))
        if self._sampling._cache_size() == variants:  # else it was compiled
            self._sample_costs.append(time.perf_counter() - begin)
        return sample

    def _previous_sketch(self) -> Any:
        """The gradient of the step before, NaN where there is none; of one shape, or all would be compiled anew."""
        if self._sketch is not None and self._sketch_step == self._probe.schedule.step - 1:
            return self._sketch
        return jnp.full((self._probe.sampler.sketch_length,), jnp.nan, jnp.float32)

    # ── Inside the trace ────────────────────────────────────────────────────────────────────────────

    def _measured_train_step(self, state: Any, data: Any) -> Any:
        """As the model's own, with (row, sketch, sample) beside the logs; `None` when that failed."""
        with self._open(state, data) as step:
            logs, new_state = self._train_step(state, data)
            self._note_end(step, state, new_state, norms=self._sample_now)
            measured: list[Any] = []

            def measure() -> None:
                probe = self._probe
                row = jnp.stack([jnp.asarray(value, jnp.float32) for value in probe.row(step, logs)])
                sketch = probe.sampler.sketch(step) if probe.schedule.every else None
                sample = None
                if self._sample_now:
                    sample = probe.sampler.vector("branch", step, _previous(self._previous_sketch()))
                measured.append((row, sketch, sample))

            self._probe.safely(measure)
        return (logs, measured[0] if measured else None), new_state

    def _sampled_train_step(self, state: Any, data: Any, previous: Any) -> Any:
        """The statistics of a step, float32[width]. `None` when computing them failed."""
        with self._open(state, data) as step:
            _, new_state = self._train_step(state, data)
            self._note_end(step, state, new_state, norms=True)
            self._probe.safely(lambda: self._note_parts(step, state, data))
            vectors: list[Any] = []
            self._probe.safely(
                lambda: vectors.append(self._probe.sampler.vector("branch", step, _previous(previous)))
            )
        return vectors[0] if vectors else None

    @contextlib.contextmanager
    def _open(self, state: Any, data: Any) -> Iterator[CapturedStep]:
        leaves = jax.tree_util.tree_leaves((state, data))
        self._outer = next((trace for leaf in leaves if (trace := _trace(leaf)) is not None), None)
        try:
            with self._probe.capture.open_step(data) as step:
                yield step
        finally:
            self._outer = None

    def _note_end(self, step: CapturedStep, state: Any, new_state: Any, *, norms: bool) -> None:
        """‖Δw‖ is told from the weights before and after, which both are there."""
        if norms:
            step.weights = list(new_state[0])
            pairs = list(zip(new_state[0], state[0], strict=True))
            step.update_norms = lambda: jnp.sqrt(
                self.squared_norms([new.astype(jnp.float32) - old.astype(jnp.float32) for new, old in pairs])
            )

    def _note_parts(self, step: CapturedStep, state: Any, data: Any) -> None:
        """With data parallelism: what each device's part of the batch would give on its own.

        The compiled step sees the batch as one; so each part is put through the model once more.
        """
        parts = _data_parallel_parts()
        leaves = [leaf for leaf in jax.tree_util.tree_leaves(data) if jnp.ndim(leaf)]
        if parts < 2 or not self._standard or any(len(leaf) % parts for leaf in leaves):
            return
        trainable, non_trainable, optimizer_variables, metrics = state
        gradient = jax.value_and_grad(self._compute_loss, has_aux=True)
        rows = []
        for part in range(parts):

            def of_part(leaf: Any, part: int = part) -> Any:
                size = len(leaf) // parts if jnp.ndim(leaf) else 0
                return leaf[part * size : (part + 1) * size] if size else leaf

            x, y, weight = keras.utils.unpack_x_y_sample_weight(jax.tree_util.tree_map(of_part, data))
            state_before = (trainable, non_trainable, metrics)
            with self._probe.capture.closed():
                (_, aux), gradients = gradient(
                    *state_before, x, y, weight, training=True, optimizer_variables=optimizer_variables
                )
            norm = self.norm(gradients)
            rows.append(jnp.stack([aux[0].astype(jnp.float32), norm / gradient_scale(step)]))
        step.parts = jnp.stack(rows)

    @property
    def _compiled(self) -> bool:
        return bool(not self._model.run_eagerly and self._model.jit_compile)

    @property
    def _standard(self) -> bool:
        """Whether the train step is Keras' own, which hands on what it does not know."""
        return all(
            getattr(type(self._model), name) is getattr(keras.Model, name)
            for name in ("train_step", "compute_loss_and_updates", "_update_metrics_variables")
        )

    def _wrap_loss_and_updates(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def carrying_compute(*args: Any, **kwargs: Any) -> Any:
            step = self._probe.capture.step
            if step is None:
                return compute(*args, **kwargs)
            loss, (unscaled, outputs, non_trainable, metrics) = compute(*args, **kwargs)
            inner = _trace(loss)

            def inside(tensor: Any) -> bool:
                return _trace(tensor) in (None, inner, self._outer)

            sums = {
                name: increments
                for name, increments in step.metric_sums.items()
                if all(inside(value) for pair in increments for value in pair)
            }
            activations = {name: value for name, value in step.activations.items() if inside(value)}
            step.metric_sums.clear()
            step.activations.clear()
            carried = jax.lax.stop_gradient((sums, activations))
            return loss, (unscaled, outputs, non_trainable, (metrics, carried))

        return carrying_compute

    def _wrap_metrics_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def carried_update(metrics_variables: Any, *args: Any, **kwargs: Any) -> Any:
            step = self._probe.capture.step
            if step is not None:
                metrics_variables, (sums, activations) = metrics_variables
                step.metric_sums.update(
                    {name: [tuple(pair) for pair in pairs] for name, pairs in sums.items()}
                )
                step.activations.update(activations)
            return update(metrics_variables, *args, **kwargs)

        return carried_update

    def _wrap_apply(self, stateless_apply: Callable[..., Any]) -> Callable[..., Any]:
        optimizer = self._model.optimizer

        def captured_apply(optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
            step = self._probe.capture.step
            if step is not None:
                self._probe.safely(lambda: self._note_gradients(step, optimizer, optimizer_variables, grads))
            return stateless_apply(optimizer_variables, grads, trainable_variables)

        return captured_apply

    def _note_gradients(
        self, step: CapturedStep, optimizer: Any, optimizer_variables: Any, grads: Any
    ) -> None:
        mapping = list(zip(optimizer.variables, optimizer_variables, strict=False))
        with keras.StatelessScope(state_mapping=mapping):
            step.learning_rate = current_rate(optimizer)
            step.loss_scale = loss_scale(optimizer)
        step.gradients = self._probe.capture.by_index(grads, optimizer._trainable_variables)

    # ── The device's maths ──────────────────────────────────────────────────────────────────────────

    def reachable(self, tensor: Any) -> bool:
        """A tracer of the gradient's trace, or of a loop's, is gone when the step ends."""
        return _trace(tensor) in (None, self._outer)

    def joined(self, tensor: Any) -> bool:
        """XLA fuses what trains by itself: samples are taken by a function of their own."""
        return False

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """Fused with what computes them."""
        return jnp.sqrt(sum(_squared_norm(tensor) for tensor in tensors))

    def squared_norms(self, tensors: list[Tensor]) -> Tensor:
        """Fused with what computes them."""
        return jnp.stack([_squared_norm(tensor) for tensor in tensors])

    def entries(self, gradient: Tensor) -> tuple[Tensor, int]:
        """Gradients are dense."""
        return gradient, int(np.prod(gradient.shape))


def _squared_norm(tensor: Tensor) -> Tensor:
    return jnp.sum(jnp.square(tensor.astype(jnp.float32)))


def _data_parallel_parts() -> int:
    """Devices among which `keras.distribution` splits each batch; 1 without it."""
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, keras.distribution.DataParallel):
        return 1
    return int(np.prod(distribution.device_mesh.shape))


def _previous(sketch: Any) -> Callable[[int], Tensor]:
    def read(length: int) -> Tensor:
        return sketch if len(sketch) == length else jnp.full((length,), jnp.nan, jnp.float32)

    return read


def _trace(tensor: Any) -> Any:
    """The trace a tracer belongs to. `None`: a value."""
    return tensor._trace if isinstance(tensor, jax.core.Tracer) else None
