"""The newest steps of a training in memory: what guards compare, and whether the loss still falls.

`recorder.StepRecorder` adds steps as it sends them; `steering` asks between two batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from client_callback.wire.plateau import BLOCKS, SHORTEST_BLOCK, block_steps, judge_windows
from client_callback.wire.protocol import Float32, Float64

KEPT_STEPS = 4_096
"""At least so many steps are kept of a training that has made them."""


class _Part(NamedTuple):
    """Consecutive steps."""

    first: int
    stop: int
    columns: Mapping[str, Float32]


class RecentSteps:
    """Every recorded series over the last steps. May be added to from one thread and read from another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: deque[_Part] = deque()
        self.losses = BlockMeans()
        """Of the loss of single steps, over the whole training."""
        self.running: frozenset[str] = frozenset()
        """Series that are Keras' running means of the epoch instead of single steps' values."""

    def add(self, first: int, columns: Mapping[str, Float32], running: Collection[str] = ()) -> None:
        """Takes over columns of equal length, the first value of which is that of step `first`."""
        count = max(map(len, columns.values()), default=0)
        with self._lock:
            self.running = frozenset(running)
            self._parts.append(_Part(first, first + count, columns))
            while len(self._parts) > 1 and self._parts[1].first <= first + count - KEPT_STEPS:
                self._parts.popleft()
            if "loss" in columns and "loss" not in self.running:
                self.losses.add(first, columns["loss"])

    @property
    def names(self) -> list[str]:
        """The series that are recorded now."""
        return list(self._parts[-1].columns) if self._parts else []

    def values(self, name: str, start: int, stop: int) -> Float64:
        """Of the steps from `start` to before `stop`, oldest first; steps that are not known are left out."""
        with self._lock:
            parts = list(self._parts)
        found = [
            part.columns[name][max(start - part.first, 0) : max(stop - part.first, 0)]
            for part in parts
            if name in part.columns and part.first < stop and part.stop > start
        ]
        return np.concatenate(found).astype(np.float64) if found else np.empty(0)


class BlockMeans:
    """Mean losses of blocks of steps from the first step on: at most twice `MOST_BLOCKS`, at any length."""

    def __init__(self) -> None:
        self.steps = 0
        self._block = SHORTEST_BLOCK
        self._sums: Float64 = np.zeros(0)
        self._counts: Float64 = np.zeros(0)
        """Finite values in each block."""

    def add(self, first: int, values: Float32) -> None:
        """The losses of the steps from `first` on; steps passed over count as unknown."""
        self.steps = first + len(values)
        finite = np.isfinite(values)
        places = np.arange(first, self.steps) // self._block
        blocks = -(-self.steps // self._block)
        sums: Float64 = np.bincount(places, np.where(finite, values, 0.0), blocks).astype(np.float64)
        counts: Float64 = np.bincount(places, finite, blocks).astype(np.float64)
        sums[: len(self._sums)] += self._sums
        counts[: len(self._counts)] += self._counts
        self._sums, self._counts = sums, counts
        while self._block < block_steps(self.steps):
            self._double()

    def plateau(self) -> bool:
        """Whether the newest window is flat, as the terminal's rule means it."""
        whole = self.steps // self._block
        if whole < BLOCKS:
            return False
        with np.errstate(invalid="ignore"):
            means = self._sums[:whole] / self._counts[:whole]
        return bool(judge_windows(means[-BLOCKS:], float(means[0])).flat[0])

    @property
    def needed(self) -> int:
        """Steps after which a plateau can first be told."""
        return BLOCKS * self._block

    def _double(self) -> None:
        odd = len(self._sums) % 2
        self._sums = np.pad(self._sums, (0, odd)).reshape(-1, 2).sum(axis=1)
        self._counts = np.pad(self._counts, (0, odd)).reshape(-1, 2).sum(axis=1)
        self._block *= 2
