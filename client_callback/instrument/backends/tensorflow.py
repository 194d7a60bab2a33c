"""TensorFlow: rings in variables on the device, written inside the graph, and a second train function for samples.

The function that trains knows no statistics. Steps that are sampled, and those just before them, are run by another,
traced from the same train step with the statistics in a branch. Where the host cannot choose between the two (several
steps in one call, XLA, random operations with a state of their own) the one with the branch runs every step.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from client_callback.instrument.backends import Waiting
from client_callback.instrument.backends.tensorflow_rings import Rings, when
from client_callback.instrument.capture import CapturedStep, current_rate, innermost
from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.statistics import Tensor

if TYPE_CHECKING:
    from client_callback.instrument.probe import Probe

SCOPE = "unstuck__probe"
"""In the name of every operation of ours, by which an error in one is told from an error in the model.

No path contains it: TensorFlow's errors quote the paths of the user's scripts.
"""
CAPACITY = 1024
"""Rows of the step ring: well above what runs between two drains (0.1 s); at least four calls' worth."""
_JOINED = {
    "Add", "AddV2", "BatchMatMulV2", "BiasAdd", "Conv2D", "Conv3D", "DepthwiseConv2dNative", "Einsum", "MatMul",
}  # fmt: skip
"""Operations that TensorFlow computes in one with the one that takes their result, if nothing else takes it."""
SLOTS = 64
"""Samples the ring holds, where they fit and a call of the train function makes no more."""


class Driver:
    """Measures a model's train step on TensorFlow; see `backends.Driver`."""

    targets_from = "compute_loss"
    traces_before_batch = True

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        model = probe.model
        self._strategy = model.distribute_strategy
        self.replicas = int(self._strategy.num_replicas_in_sync)
        self._steps_per_call = int(model.steps_per_execution or 1)
        self._capacity = max(CAPACITY, 4 * self._steps_per_call)
        self._hooks = InstanceHooks()
        self._rings: list[Rings] = []
        self._read_steps = 0
        self._read_samples = 0
        self._moves: list[tuple[int, int, Tensor]] = []
        """(index, sign, step): what the optimizer adds to (1) or subtracts from (-1) each variable."""
        self._updating = False
        """While an optimizer is applied; with replicas, parts of that are traced in threads of their own."""
        self._host_chooses = False
        """Whether sampled steps are run by a function of their own."""
        self._traced = False
        """Whether a step was traced in the call under way."""
        self._both_traced = bool(model.run_eagerly)
        self._sampling = bool(probe.schedule.every)
        """Whether the function that is called now, and perhaps traced, takes statistics."""
        self._built = False
        self._own_step = "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step

    # ── Life ────────────────────────────────────────────────────────────────────────────────────────

    def install(self) -> None:
        """Hooks the train step and the optimizer."""
        model, optimizer = self._probe.model, self._probe.model.optimizer
        self._hooks.wrap(model, "train_step", self._wrap_train_step)
        if optimizer is None:
            return
        self._hooks.wrap(
            optimizer, "scale_loss", self._probe.capture.scale_loss_hook(optimizer, self._probe.safely)
        )
        self._hooks.wrap(optimizer, "apply", lambda apply: self._wrap_apply(optimizer, apply))
        inner = innermost(optimizer)
        if hasattr(inner, "_backend_update_step"):
            self._hooks.wrap(inner, "_backend_update_step", self._wrap_update_step)
            self._hooks.wrap(inner, "_all_reduce_sum_gradients", self._wrap_reduction)
            self._hooks.wrap(inner, "assign_sub", lambda assign: self._wrap_assign(assign, -1))
            self._hooks.wrap(inner, "assign_add", lambda assign: self._wrap_assign(assign, 1))
            self._hooks.wrap(inner, "assign", self._wrap_plain_assign)

    def remove(self) -> None:
        """Takes the hooks off."""
        self._hooks.remove()

    @contextlib.contextmanager
    def making_train_function(self) -> Iterator[None]:
        """Keras makes two functions of the hooked train step then."""
        hooks = InstanceHooks()
        hooks.wrap(self._probe.model, "_make_function", self._wrap_make_function)
        try:
            yield
        finally:
            hooks.remove()

    def own_train_step(self) -> Callable[..., Any]:
        """Below the hook."""
        step: Callable[..., Any] = self._hooks.original(self._probe.model, "train_step")
        return step

    def take_call_steps(self) -> int:
        """Only the graph knows."""
        return 1

    def set_interval(self, every: int) -> None:
        """Read by the host or the graph at its next step."""
        self._probe.schedule.every = every
        if not self._host_chooses:
            for rings in self._rings:
                rings.set_interval(every)

    def take_sample_costs(self) -> list[float]:
        """They are told from the durations of whole steps."""
        return []

    def drain(self) -> Waiting:
        """Reads the rings of every replica."""
        rings = list(self._rings)
        if not rings:
            nothing = np.empty((1, 0, 0), np.float32)
            return Waiting(0, nothing, np.empty(0, np.int64), nothing)
        steps = min(ring.steps() for ring in rings)
        first = max(self._read_steps, steps - self._capacity)
        count = min(ring.samples_written() for ring in rings)
        first_sample = max(self._read_samples, count - rings[0].slots)
        rows = np.stack([ring.read_rows(first, steps) for ring in rings])
        samples = np.stack([ring.read_samples(first_sample, count) for ring in rings])
        sample_steps = rings[0].read_sample_steps(first_sample, count)
        # The training goes on meanwhile: what it has overwritten since is gone, and what belongs to the step under
        # way, which is sampled before its row is written, is left for the next time.
        gone = max(0, max(ring.steps() for ring in rings) + 1 - self._capacity - first)
        gone_samples = max(
            0, max(ring.samples_written() for ring in rings) + 1 - rings[0].slots - first_sample
        )
        complete = int(np.searchsorted(sample_steps[gone_samples:], steps)) + gone_samples
        self._read_steps, self._read_samples = steps, first_sample + complete
        kept = slice(gone_samples, complete)
        return Waiting(first + gone, rows[:, gone:], sample_steps[kept], samples[:, kept])

    def is_ours(self, error: BaseException) -> bool:
        """TensorFlow's errors name the operation."""
        return SCOPE in str(error)

    @property
    def capacity(self) -> int:
        """Steps after which rows, or samples taken at the present interval, would be overwritten."""
        slots = self._rings[0].slots if self._rings else SLOTS
        return min(self._capacity, slots * max(1, self._probe.schedule.every))

    # ── Around the train function ───────────────────────────────────────────────────────────────────

    def _wrap_make_function(self, make_function: Callable[..., Any]) -> Callable[..., Any]:
        def measured_make_function(step_function: Any) -> Any:
            sampling = make_function(step_function)
            if self._steps_per_call > 1 or self.compiled or not self._probe.schedule.every:
                return self._building_first(sampling)
            self._host_chooses = True
            return self._building_first(self._choosing(sampling, make_function(step_function)))

        return measured_make_function

    def _choosing(self, sampling: Callable[[Any], Any], plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Runs the function that takes statistics where they are due, or due next: the step before is compared."""
        schedule = self._probe.schedule

        def train(iterator: Any) -> Any:
            due = schedule.due
            self._sampling = due or schedule.due_next or not self._both_traced
            if self._sampling and self._host_chooses:
                for rings in self._rings:
                    rings.want_sample(due)
            logs = (sampling if self._sampling else plain)(iterator)
            if self._traced:
                self._trace_other(plain if self._sampling else sampling, iterator)
            schedule.advance()
            return logs

        return train

    def _trace_other(self, function: Callable[[Any], Any], iterator: Any) -> None:
        """Both are traced at the same moment, or what the user's code changes later would be in one of them only.

        Where that cannot be done, the function that takes statistics goes on to run every step.
        """
        self._traced = self._both_traced = False
        step = inspect.getclosurevars(function).nonlocals.get("multi_step_on_iterator")
        known = isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator)
        if step is None or not (known and self._host_chooses and hasattr(step, "get_concrete_function")):
            return
        self._sampling = not self._sampling
        try:
            step.get_concrete_function(iterator)
        except Exception as error:  # noqa: BLE001 (foreign code that does not like to be traced twice)
            self._probe.report(f"every step takes the time of a branch for statistics: {error}")
        else:
            self._both_traced = True
        self._traced = False

    def _building_first(self, train: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Has Keras make its metrics' and the optimizer's variables before the first trace.

        A trace in which variables are made is thrown away, and the step, statistics and all, traced once more.
        """

        def build_and_train(iterator: Any) -> Any:
            if not self._built:
                self._built = True
                self._build(iterator)
            return train(iterator)

        return build_and_train

    def _build(self, iterator: Any) -> None:
        model = self._probe.model
        parts = tf.nest.flatten(getattr(iterator, "element_spec", None))
        if not (model.built and model.trainable_variables):
            return
        if self._own_step or not all(isinstance(part, tf.TensorSpec) for part in parts):
            return  # what a step of the user's own needs of what is compiled, if anything, is not known
        with contextlib.suppress(Exception):  # it fails again where the user can see it, or need not succeed
            model._symbolic_build(data_batch=iterator.element_spec)

    # ── Inside the trace ────────────────────────────────────────────────────────────────────────────

    def _wrap_train_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def measured_train_step(data: Any) -> Any:
            with self._probe.capture.open_step(data) as step:
                self._probe.safely(lambda: self._note_ready(step, data))
                logs = train_step(data)
                self._probe.safely(lambda: self._write(step, logs))
            return logs

        return measured_train_step

    def _note_ready(self, step: CapturedStep, data: Any) -> None:
        """The iterator is asked inside the train function, so only there can be told when it had answered."""
        if tf.executing_eagerly():
            self._probe.clock.data_ready()
        elif not self.compiled and self.replicas == 1 and self._steps_per_call == 1:
            parts = [part for part in tf.nest.flatten(data, expand_composites=True) if part is not None]
            order = getattr(tf.compat.v1.get_default_graph(), "experimental_acd_manager", None)
            if order is None:
                return
            with scope(), tf.control_dependencies(parts):
                now = tf.timestamp()
                # Or the step's own operations with a state would wait for it, and be joined with others differently.
                order.run_independently(now.op)
                step.ready = tf.cast(now % self._probe.ready_modulus, tf.float32)

    def _write(self, step: CapturedStep, logs: Any) -> None:
        probe, rings = self._probe, self._ring_set()
        self._traced = not tf.executing_eagerly()
        with scope():
            if self.replicas > 1 and step.gradients and not step.reduced:
                # Reduced in a branch of the optimizer's, out of reach: once more, for the norm of the whole.
                indices = list(step.gradients)
                reduced = tf.distribute.get_replica_context().all_reduce(
                    tf.distribute.ReduceOp.SUM, [step.gradients[index] for index in indices]
                )
                step.reduced = dict(zip(indices, reduced, strict=True))
            row = probe.row(step, logs)
            sampled = [self._sample(step, rings)] if self._sampling else []
            rings.write_row(row, after=sampled)

    def _sample(self, step: CapturedStep, rings: Rings) -> Tensor:
        probe = self._probe
        aside: list[Any] = []

        def sketch() -> None:
            values = probe.sampler.sketch(step)
            if values is not None:
                rings.keep_sketch(values)

        if self.compiled:
            # XLA keeps a gradient whole when a branch depends on it, and then rounds the update differently.
            # Reduced in every step, outside any branch, it is fused, and training stays bit-identical.
            aside = rings.write_aside(probe.sampler.vector("aside", step, rings.previous_sketch()))
            sketch()

        def sampled() -> None:
            previous = None if self.compiled else rings.previous_sketch()
            rings.write_sample(probe.sampler.vector("branch", step, previous))

        def near() -> None:
            when(rings.due(), sampled)
            if not self.compiled:
                sketch()

        if self._host_chooses and _has_random_state():
            # Each of two functions would go on from its own, and draws would repeat.
            self._host_chooses = False
        if self._host_chooses:
            over = when(rings.wanted(), sampled)
            sketch()
            return over
        with tf.control_dependencies(aside):
            return when(rings.due_or_due_next(), near)

    def _ring_set(self) -> Rings:
        """Of the replica whose step is being traced; made at its first trace."""
        context = tf.distribute.get_replica_context()
        number = 0 if context is None else int(tf.get_static_value(context.replica_id_in_sync_group) or 0)
        while len(self._rings) <= number:
            probe = self._probe
            self._rings.append(
                Rings(
                    capacity=self._capacity,
                    variables=len(probe.variables),
                    slots=max(SLOTS, self._capacity // max(1, probe.schedule.every)),
                    every=max(1, probe.schedule.every),
                    fixed=probe.schedule.fixed,
                )
            )
        return self._rings[number]

    @property
    def compiled(self) -> bool:
        """Whether the step runs inside XLA."""
        return bool(getattr(self._probe.model, "jit_compile", False))

    def _wrap_apply(self, optimizer: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
        def captured_apply(grads: Any, *args: Any, **kwargs: Any) -> Any:
            step = self._probe.capture.step
            if step is None:
                return apply(grads, *args, **kwargs)
            grads = list(grads)
            if args and args[0] is not None:
                args = (list(args[0]), *args[1:])
            variables = args[0] if args else kwargs.get("trainable_variables")

            def note() -> None:
                step.learning_rate = current_rate(optimizer)
                known = variables or optimizer._trainable_variables
                step.gradients = self._probe.capture.by_index(grads, known)
                self._clear_update_norms()

            self._probe.safely(note)
            self._updating = True
            try:
                return apply(grads, *args, **kwargs)
            finally:
                self._updating = False

        return captured_apply

    def _wrap_reduction(self, reduce: Callable[..., Any]) -> Callable[..., Any]:
        def captured_reduction(grads_and_vars: Any) -> Any:
            reduced = reduce(grads_and_vars)
            step = self._probe.capture.step
            if step is not None and self.replicas > 1:
                self._probe.safely(lambda: self._note_reduced(step, reduced))
            return reduced

        return captured_reduction

    def _note_reduced(self, step: CapturedStep, reduced: Any) -> None:
        if all(self.reachable(gradient) for gradient, _ in reduced if gradient is not None):
            step.reduced = self._probe.capture.by_index(*zip(*reduced, strict=True))

    # ── The optimizer's own steps, for ‖Δw‖ without a copy of the weights ───────────────────────────

    def _wrap_update_step(self, update_step: Callable[..., Any]) -> Callable[..., Any]:
        def captured_update_step(*args: Any, **kwargs: Any) -> Any:
            if not self._updating:
                return update_step(*args, **kwargs)
            self._moves = []
            result = update_step(*args, **kwargs)
            self._probe.safely(self._note_update_norms)
            return result

        return captured_update_step

    def _wrap_assign(self, assign: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def captured_assign(variable: Any, value: Any) -> Any:
            self._probe.safely(lambda: self._note_move(variable, sign, lambda: value))
            return assign(variable, value)

        return captured_assign

    def _wrap_plain_assign(self, assign: Callable[..., Any]) -> Callable[..., Any]:
        def captured_assign(variable: Any, value: Any) -> Any:
            self._probe.safely(
                lambda: self._note_move(variable, 1, lambda: value - tf.convert_to_tensor(variable))
            )
            return assign(variable, value)

        return captured_assign

    def _note_move(self, variable: Any, sign: int, move: Callable[[], Tensor]) -> None:
        if not self._updating:
            return
        index = self._probe.capture.variable_index(variable)
        if index is None and self.replicas > 1:
            # Every replica moves its own copy alike; the first one's is measured.
            first_copies = {
                id(known.value.values[0]): place for place, known in enumerate(self._probe.variables)
            }
            index = first_copies.get(id(variable))
        if index is not None:
            self._moves.append((index, sign, move()))

    def _note_update_norms(self) -> None:
        """Called in the graph in which the optimizer has just applied its update.

        Under accumulation or loss scaling that is a branch, out of which only a variable carries the norms.
        """
        step, moves = self._probe.capture.step, self._moves
        if step is not None and step.update_norms is None:
            step.update_norms = lambda: self._update_norms(moves)
            return
        rings = self._ring_set()
        if self._sampling and rings is self._rings[0]:
            with scope():
                rings.updates.assign(self._update_norms(moves))

    def _clear_update_norms(self) -> None:
        """Before an update out of reach, which may be skipped (accumulation, an overflowing loss scale)."""
        optimizer, step = self._probe.model.optimizer, self._probe.capture.step
        accumulates = getattr(optimizer, "gradient_accumulation_steps", None)
        out_of_reach = accumulates or innermost(optimizer) is not optimizer or self.replicas > 1
        if out_of_reach and self._sampling and step is not None:
            updates = self._ring_set().updates
            step.update_norms = updates.read_value
            with scope():
                updates.assign(tf.zeros_like(updates))

    def _update_norms(self, moves: list[tuple[int, int, Tensor]]) -> Tensor:
        """float32[variables]."""
        by_variable: dict[int, list[tuple[int, Tensor]]] = {}
        for index, sign, value in moves:
            by_variable.setdefault(index, []).append((sign, value))
        count = len(self._probe.variables)
        halves = [self._half_square_of_update(index, by_variable.get(index, [])) for index in range(count)]
        return tf.sqrt(2.0 * tf.stack(halves))

    def _half_square_of_update(self, index: int, moves: list[tuple[int, Tensor]]) -> Tensor:
        """‖Δw‖² / 2 of one variable, without a copy of it.

        Decoupled weight decay takes c·w first (c = learning rate × weight decay), then the optimizer adds its
        step s: w′ = (1 − c)·w + s. So Δw = w′ − w = (s − c·w′) / (1 − c).
        """
        if not moves:
            return tf.constant(0.0)
        decay = self._decay(index)
        if decay is None and len(moves) == 1:
            return self._half_squares([moves[0][1]])[0]
        total = sum(sign * tf.cast(tf.convert_to_tensor(value), tf.float32) for sign, value in moves)
        if decay is not None:
            weights = tf.cast(tf.convert_to_tensor(self._probe.variables[index]), tf.float32)
            total = (total - decay * weights) / (1.0 - decay)
        return tf.nn.l2_loss(total)

    def _decay(self, index: int) -> Tensor | None:
        optimizer = innermost(self._probe.model.optimizer)
        rate = getattr(optimizer, "weight_decay", None)
        if not rate or not optimizer._use_weight_decay(self._probe.variables[index]):
            return None
        return tf.cast(optimizer.learning_rate, tf.float32) * float(rate)

    # ── The device's maths ──────────────────────────────────────────────────────────────────────────

    def reachable(self, tensor: Any) -> bool:
        """Whether its graph is the one being built, or around it."""
        if isinstance(tensor, tf.IndexedSlices):
            return self.reachable(tensor.values)
        if not hasattr(tensor, "graph") or tf.executing_eagerly() or isinstance(tensor, tf.Variable):
            return True
        graph = tf.compat.v1.get_default_graph()
        while graph is not None:
            if tensor.graph is graph:
                return True
            graph = getattr(graph, "outer_graph", None)
        return False

    def joined(self, tensor: Any) -> bool:
        """Told by the operation it comes from."""
        if tf.executing_eagerly() or not isinstance(tensor, tf.Tensor):
            return False
        operation = tensor.op
        while operation.type == "Identity":
            operation = operation.inputs[0].op
        return operation.type in _JOINED

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """As few operations as there are: each costs a step as much as it takes to start it."""
        halves = self._half_squares(tensors)
        return tf.sqrt(2.0 * (tf.add_n(halves) if len(halves) > 1 else halves[0]))

    def squared_norms(self, tensors: list[Tensor]) -> Tensor:
        """One fused kernel each."""
        return 2.0 * tf.stack(self._half_squares(tensors))

    def _half_squares(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tf.nn.l2_loss(tf.cast(self._summed(tensor), tf.float32)) for tensor in tensors]

    def entries(self, gradient: Tensor) -> tuple[Tensor, int]:
        """Those that are not known to be 0, and how many there are in all."""
        return self._summed(gradient), math.prod(gradient.shape)

    def _summed(self, gradient: Tensor) -> Tensor:
        """Rows of `IndexedSlices` may repeat and then add up. The shape of the whole need not be known.

        XLA knows no shapes that depend on values, so there the gradient is made dense.
        """
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient
        if self.compiled:
            return tf.convert_to_tensor(gradient)
        rows, position = tf.unique(tf.reshape(gradient.indices, [-1]))
        summed = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
        summed.set_shape([None, *gradient.values.shape[1:]])
        return summed


def _has_random_state() -> bool:
    """Whether the graph being built holds operations that each draw from a state of their own, as TensorFlow's do.

    They have two seeds; Keras' own random numbers come from seeds in variables.
    """
    if tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph().as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return any("seed2" in node.attr for nodes in bodies for node in nodes)


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Marks the operations made inside as ours."""
    with tf.name_scope(SCOPE):
        yield
