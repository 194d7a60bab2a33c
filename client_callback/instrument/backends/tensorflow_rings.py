"""TensorFlow's memory for what is measured: variables on the device, written inside the graph, read from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Int64

MAX_SAMPLE_BYTES = 8 << 20
"""Device memory the ring of samples may take."""


class Rings:
    """What one replica measures: a row per step, a row per sampled step, and the norms of the last update.

    The widths are known once the first step is traced; the rings are made then.

    Args:
        capacity: rows of the step ring.
        variables: number of trainable variables.
        slots: rows of the ring of samples, where that many fit.
        every: steps between two sampled ones, at least 1.
        fixed: as in `schedule.Schedule`, whose rule is followed here inside the graph.
    """

    def __init__(self, *, capacity: int, variables: int, slots: int, every: int, fixed: bool) -> None:
        self.capacity = capacity
        self._fixed = fixed
        self.slots = slots
        self._count = _buffer([], tf.int64)
        self._next = _buffer([], tf.int64)
        self._every = _buffer([], tf.int64, every)
        self._wanted = _buffer([], tf.bool, True)
        self._wants = True
        with tf.init_scope():
            self._answers = (tf.constant(False), tf.constant(True))
        self._sampled_count = _buffer([], tf.int64)
        self._sampled_steps: ResourceVariable | None = None
        self.updates = _buffer([variables], tf.float32)
        self._rows: ResourceVariable | None = None
        self._samples: ResourceVariable | None = None
        self._asides: ResourceVariable | None = None
        self._sketch: ResourceVariable | None = None
        self._sketch_step = _buffer([], tf.int64, -2)

    def set_interval(self, every: int) -> None:
        """From the host. A shorter one takes effect at once."""
        self._every.assign(every)
        soon = self._count.read_value() + every
        if soon < self._next.read_value():
            self._next.assign(soon)

    def want_sample(self, wanted: bool) -> None:
        """From the host, which chooses: whether the step that is about to be run is sampled."""
        if wanted != self._wants:
            self._wants = wanted
            tf.raw_ops.AssignVariableOp(resource=self._wanted.handle, value=self._answers[wanted])

    def wanted(self) -> Tensor:
        """What `want_sample` said last, a boolean scalar; True at first."""
        return self._wanted.read_value()

    def due(self) -> Tensor:
        """Whether the step under way is sampled, a boolean scalar."""
        return self._count >= self._next

    def due_or_due_next(self) -> Tensor:
        """Whether this step or the next is sampled."""
        return self._count + 1 >= self._next

    def write_row(self, values: list[Tensor], after: list[Any]) -> None:
        """Appends float32 scalars as this step's row and counts the step, last of all: another thread may read."""
        if self._rows is None:
            self._rows = _buffer([self.capacity, len(values)], tf.float32)
        written = _set_row(self._rows, self._count % self.capacity, tf.stack(values))
        with tf.control_dependencies([*written, *after]):
            self._count.assign_add(1, read_value=False)

    def write_sample(self, values: Tensor) -> None:
        """Appends a float32[width] vector as this step's sample. Called before `write_row`, in a branch.

        A width of 0: all of it comes aside.
        """
        if self._samples is None:
            self.slots = self._fitting_slots(values.shape[0])
            self._samples = _buffer([self.slots, values.shape[0]], tf.float32)
        if self._sampled_steps is None:
            self._sampled_steps = _buffer([self.slots], tf.int64)
        slot = self._sampled_count % self.slots
        written = _set_row(self._samples, slot, values) + _set_row(self._sampled_steps, slot, self._count)
        with tf.control_dependencies(written):
            self._sampled_count.assign_add(1, read_value=False)
        distance = self._every if self._fixed else tf.minimum(self._every, self._count + 1)
        self._next.assign(self._count + distance)

    def write_aside(self, values: Tensor) -> list[Any]:
        """As `write_sample`, before it and outside any branch: what comes in other steps goes to a spare row."""
        if self._asides is None:
            self.slots = self._fitting_slots(2 * values.shape[0])
            self._asides = _buffer([self.slots + 1, values.shape[0]], tf.float32)
        slot = tf.where(self.due(), self._sampled_count % self.slots, self.slots)
        return _set_row(self._asides, slot, values)

    def keep_sketch(self, values: Tensor) -> None:
        """Remembers this step's gradient, float32[m], for a comparison in the next."""
        if self._sketch is None:
            self._sketch = _buffer([values.shape[0]], tf.float32)
        self._sketch.assign(values)
        self._sketch_step.assign(self._count)

    def previous_sketch(self) -> Callable[[int], Tensor]:
        """Called with its length: the gradient of the step before, float32[m]; NaN where it was not kept."""

        def read(length: int) -> Tensor:
            if self._sketch is None:
                self._sketch = _buffer([length], tf.float32)
            kept = tf.equal(self._sketch_step, self._count - 1)
            return tf.where(kept, self._sketch.read_value(), math.nan)

        return read

    def steps(self) -> int:
        """Steps written."""
        return int(_read(self._count))

    def samples_written(self) -> int:
        """Samples written."""
        return int(_read(self._sampled_count))

    def read_rows(self, first: int, end: int) -> Float32:
        """float32[end − first, columns]."""
        if self._rows is None or end <= first:
            return np.empty((0, 0), np.float32)
        rows: Float32 = _read(self._rows)[np.arange(first, end) % self.capacity]
        return rows

    def read_sample_steps(self, first: int, end: int) -> Int64:
        """int64[end − first]."""
        if self._sampled_steps is None or end <= first:
            return np.empty(0, np.int64)
        steps: Int64 = _read(self._sampled_steps)[np.arange(first, end) % self.slots]
        return steps

    def read_samples(self, first: int, end: int) -> Float32:
        """float32[end − first, width]."""
        rings = [ring for ring in (self._asides, self._samples) if ring is not None]
        if not rings or end <= first:
            return np.empty((0, 0), np.float32)
        slots = np.arange(first, end) % self.slots
        return np.concatenate([_read(ring)[slots] for ring in rings], axis=1)

    def _fitting_slots(self, width: int) -> int:
        if self._samples is not None or self._asides is not None:
            return self.slots
        return max(2, min(self.slots, MAX_SAMPLE_BYTES // (4 * max(1, width))))


def when(condition: Tensor, body: Callable[[], None]) -> Tensor:
    """Runs `body` inside the graph where `condition` holds; what comes back is there when that is over."""

    def then() -> Tensor:
        body()
        return tf.constant(0)

    result = tf.cond(condition, then, lambda: tf.constant(0))
    if not tf.executing_eagerly():
        _keep_whole(result)
    return result


def _keep_whole(result: Tensor) -> None:
    """Has a conditional stay one operation that calls its branch.

    By default its branches are spread out into the graph around it, where each of their hundreds of operations costs
    time in every step, even in those that do not take the branch.
    """
    operation = result.op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    if operation.type in ("If", "StatelessIf"):
        operation._set_attr("_lower_using_switch_merge", attr_value_pb2.AttrValue(b=False))


def _buffer(shape: list[int], dtype: Any, value: int = 0) -> ResourceVariable:
    """A plain variable of its own; `tf.Variable` would mirror it to every replica of a strategy."""
    with tf.init_scope():
        return ResourceVariable(tf.fill(shape, tf.cast(value, dtype)), trainable=False, name="unstuck_buffer")


def _read(buffer: ResourceVariable) -> Any:
    """Its value now. Several times faster than `ResourceVariable.numpy`, which notes a read for gradients."""
    return tf.raw_ops.ReadVariableOp(resource=buffer.handle, dtype=buffer.dtype).numpy()


def _set_row(buffer: ResourceVariable, row: Tensor, values: Tensor) -> list[Any]:
    """`buffer[row] = values`, as a list of the operations to wait for.

    Written as a scatter because XLA takes no row that it does not know beforehand.
    """
    written = tf.raw_ops.ResourceScatterUpdate(resource=buffer.handle, indices=row, updates=values)
    return [] if written is None else [written]
