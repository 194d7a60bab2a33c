"""The TensorFlow side of the probe: buffers on the device, branches in the graph, sparse gradients.

Another backend is one more module with these names; `instrument.probe` chooses by `keras.backend.backend()`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Int64

SCOPE = "unstuck__probe"
"""In the name of every operation of ours, by which an error in one is told from an error in the model.

No path contains it: TensorFlow's errors quote the paths of the user's scripts.
"""


class DeviceBuffers:
    """Two rings in device memory: one row per step, and one row per sampled step.

    Their widths are known once the first step is traced; they are made then.

    Args:
        capacity: rows of the step ring.
        slots: rows of the sample ring.
        variables: number of trainable variables, for the norms of their updates.
        every: steps between two sampled ones, at least 1.
    """

    def __init__(self, *, capacity: int, slots: int, variables: int, every: int) -> None:
        self.capacity, self.slots = capacity, slots
        self.count = _buffer([], tf.int64)
        self.sampled_count = _buffer([], tf.int64)
        self.every = _buffer([], tf.int64, every)
        self.updates = _buffer([variables], tf.float32)
        self.sampled_steps = _buffer([slots], tf.int64)
        self.rows: tf.Variable | None = None
        self.samples: tf.Variable | None = None
        self.asides: tf.Variable | None = None

    def sampled(self) -> Tensor:
        """Whether the step under way is sampled, a boolean scalar."""
        return tf.equal(self.count % self.every, 0)

    def write_row(self, values: list[Tensor]) -> None:
        """Appends float32 scalars as this step's row and counts the step."""
        if self.rows is None:
            self.rows = _buffer([self.capacity, len(values)], tf.float32)
        _set_row(self.rows, self.count % self.capacity, tf.stack(values))
        self.count.assign_add(1)

    def write_sample(self, values: Tensor) -> None:
        """Appends a float32[width] vector as this step's sample. Called before `write_row`, in a branch."""
        if self.samples is None:
            self.samples = _buffer([self.slots, values.shape[0]], tf.float32)
        slot = self.sampled_count % self.slots
        _set_row(self.samples, slot, values)
        _set_row(self.sampled_steps, slot, self.count)
        self.sampled_count.assign_add(1)

    def write_aside(self, values: Tensor) -> None:
        """As `write_sample`, before it and outside any branch: what comes in other steps goes to a spare row."""
        if self.asides is None:
            self.asides = _buffer([self.slots + 1, values.shape[0]], tf.float32)
        slot = tf.where(self.sampled(), self.sampled_count % self.slots, self.slots)
        _set_row(self.asides, slot, values)

    def read_rows(self, first: int) -> tuple[int, Float32]:
        """The rows from step `first` on, as (first step there is, float32[n, columns])."""
        count = int(self.count.numpy())
        first = max(first, count - self.capacity)
        if self.rows is None or count == first:
            return first, np.empty((0, 0), np.float32)
        return first, self.rows.numpy()[np.arange(first, count) % self.capacity]

    def read_samples(self, first: int) -> tuple[int, Int64, Float32]:
        """The samples from number `first` on: (first number there is, steps int64[n], float32[n, width])."""
        count = int(self.sampled_count.numpy())
        first = max(first, count - self.slots)
        rings = [ring for ring in (self.asides, self.samples) if ring is not None]
        if not rings or count == first:
            return first, np.empty(0, np.int64), np.empty((0, 0), np.float32)
        slots = np.arange(first, count) % self.slots
        matrix = np.concatenate([ring.numpy()[slots] for ring in rings], axis=1)
        return first, self.sampled_steps.numpy()[slots], matrix


def _buffer(shape: list[int], dtype: Any, value: int = 0) -> tf.Variable:
    with tf.init_scope():
        return tf.Variable(tf.fill(shape, tf.cast(value, dtype)), trainable=False, name="unstuck_buffer")


def _set_row(buffer: tf.Variable, row: Tensor, values: Tensor) -> None:
    """`buffer[row] = values`; written as a scatter because XLA takes no row that it does not know beforehand."""
    buffer.scatter_update(tf.IndexedSlices(tf.convert_to_tensor(values)[tf.newaxis], tf.reshape(row, [1])))


def when(condition: Tensor, body: Callable[[], None]) -> None:
    """Runs `body` inside the graph where `condition` holds."""

    def then() -> Tensor:
        body()
        return tf.constant(0)

    tf.cond(condition, then, lambda: tf.constant(0))


def is_ours(error: BaseException) -> bool:
    """Whether an operation of ours failed while the step ran."""
    return SCOPE in str(error)


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Marks the operations made inside as ours."""
    with tf.name_scope(SCOPE):
        yield


def squared_norm(gradient: Tensor, *, compiled: bool) -> Tensor:
    """Σgᵢ², a float32 scalar. `compiled`: inside XLA."""
    values, _ = entries(gradient, compiled=compiled)
    return 2.0 * tf.nn.l2_loss(tf.cast(values, tf.float32))


def entries(gradient: Tensor, *, compiled: bool) -> tuple[Tensor, int]:
    """A gradient's entries and how many the whole has; of a sparse one, each row that is present once.

    Rows of `IndexedSlices` may repeat and then add up. XLA knows no shapes that depend on values, so there the
    gradient is made dense.
    """
    size = math.prod(gradient.shape)
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient, size
    if compiled:
        return tf.convert_to_tensor(gradient), size
    rows, position = tf.unique(tf.reshape(gradient.indices, [-1]))
    return tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows)), size


def dense(tensor: Tensor) -> Tensor:
    """The tensor as float32, with the rows of a sparse one in their places."""
    return tf.cast(tf.convert_to_tensor(tensor), tf.float32)


def reachable(tensor: Tensor) -> bool:
    """Whether the graph being built can use this tensor; one from an inner loop or branch it cannot."""
    if isinstance(tensor, tf.IndexedSlices):
        return reachable(tensor.values)
    if not hasattr(tensor, "graph") or tf.executing_eagerly() or isinstance(tensor, tf.Variable):
        return True
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if tensor.graph is graph:
            return True
        graph = getattr(graph, "outer_graph", None)
    return False
