"""Which steps are sampled, wherever that is decided: on the host, or by the same rule inside a TensorFlow graph."""

from __future__ import annotations


class Schedule:
    """Every n-th step; where n may change, also some of the first, so that a diagnosis need not wait.

    Args:
        every: steps between two sampled ones; 0 samples none.
        fixed: whether the interval stays as it is. Otherwise the first sampled steps are 0, 1, 3, 7, 15, … until
            their distance is `every`.
    """

    def __init__(self, every: int, *, fixed: bool) -> None:
        self.every = every
        self.fixed = fixed
        self._step = 0
        self._next = 0

    def restarted(self) -> Schedule:
        """The same for a training counted from 0."""
        return Schedule(self.every, fixed=self.fixed)

    @property
    def due(self) -> bool:
        """Whether the step under way is sampled."""
        return bool(self.every) and self._step >= self._next

    @property
    def due_next(self) -> bool:
        """Whether the step after it is, as far as is known."""
        return bool(self.every) and self._step + 1 >= self._after(self._step)

    @property
    def step(self) -> int:
        """The step under way, counted from 0."""
        return self._step

    def advance(self) -> None:
        """The step under way is over."""
        self._next = self._after(self._step)
        self._step += 1

    def _after(self, step: int) -> int:
        """The next sampled step, seen from the end of `step`."""
        if step < self._next:
            # A shorter interval takes effect at once.
            return min(self._next, step + max(1, self.every))
        return step + (self.every if self.fixed else min(self.every, step + 1))
