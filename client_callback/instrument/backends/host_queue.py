"""Rows and samples that wait on the host, as arrays of the device, until they are drained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from client_callback.instrument.backends import Waiting
from client_callback.wire.protocol import Float32

CAPACITY = 4096
"""Steps that may wait before the training drains them itself. None is ever dropped."""


class HostQueue:
    """Filled by the training's thread, drained by another. Nothing is lost in between.

    Args:
        to_numpy: n ≥ 1 tensors of one shape → float32[n, …]; waits for the device.
    """

    def __init__(self, to_numpy: Callable[[list[Any]], Float32]) -> None:
        self.capacity = CAPACITY
        self._to_numpy = to_numpy
        self._waiting: deque[tuple[Any, Any]] = deque()
        self._read = 0

    def append(self, row: Any, sample: Any) -> None:
        """One step: float32[columns] and, of a sampled one, float32[width], else `None`."""
        self._waiting.append((row, sample))

    def drain(self) -> Waiting:
        """Takes everything; waits until the device has computed it."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        first = self._read
        self._read += len(taken)
        steps = [first + place for place, (_, sample) in enumerate(taken) if sample is not None]
        return Waiting(
            first,
            self._table([row for row, _ in taken]),
            np.array(steps, np.int64),
            self._table([sample for _, sample in taken if sample is not None]),
        )

    def _table(self, tensors: list[Any]) -> Float32:
        """float32[1, n, width]: of the one replica there is."""
        return self._to_numpy(tensors)[np.newaxis] if tensors else np.empty((1, 0, 0), np.float32)
