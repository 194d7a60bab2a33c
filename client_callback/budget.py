"""What watching costs a training, measured while it runs, and how often it may be sampled for a given share of it."""

from __future__ import annotations

import math
import os
import statistics
from collections import deque

MOST_SAMPLES_PER_S = 5.0
"""More would tell nothing that fewer do not, and would grow the recording."""
MOST_BYTES_PER_S = 32_768.0
"""Of samples, in the long run."""
MOST_SAMPLES_UNTIL = 20_000
"""At step n the interval is at least n over this: each tenfold in length adds some 5·10⁴ samples to a recording."""
LEAST_FOR_SAMPLES = 0.25
"""Of the share. Where everything else uses up the budget, statistics still come, if rarely: without them a diagnosis
has little to go by."""
FIRST_INTERVAL = 100
"""Steps between two sampled ones until their cost is known."""
LONGEST_INTERVAL = 100_000
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""That the training may use."""
_MEMORY = 64
"""Calls of each kind whose durations are kept. Few, so that a change of the machine's load is soon forgotten."""
_ENOUGH = 3
"""Sampled calls before their cost is believed."""


class Budget:
    """Chooses the interval between sampled steps so that watching stays inside a share of the time.

    The cost of a sampled step is how much longer calls of the train function with samples take than those without:
    the difference of their medians per sample, in seconds, which neither a slow step nor the first, traced ones
    move. Where the backend measures it directly, that figure is taken.

    Args:
        share: of the time that training takes, above 0 and below 1. `None`: the interval stays as it is.
        every: the interval to begin with; 0: nothing is ever sampled.
    """

    def __init__(self, share: float | None, every: int) -> None:
        self.share = share
        self.every = every
        self._plain: deque[float] = deque(maxlen=_MEMORY)
        self._sampled: deque[tuple[float, int]] = deque(maxlen=_MEMORY)
        self._direct: deque[float] = deque(maxlen=_MEMORY)
        self._paces: deque[float] = deque(maxlen=_MEMORY)
        self._steps_per_call = 1.0
        self.hooks = 0.0
        """Seconds per call spent in the callback's hooks, lately."""
        self._hook_samples: deque[tuple[float, int]] = deque(maxlen=_MEMORY)
        self.sender = 0.0
        """CPU seconds per second that the sender's thread takes, lately."""
        self._sender_samples: deque[float] = deque(maxlen=_MEMORY)

    def note_hooks(self, seconds: float, calls: int) -> None:
        """Time spent in hooks around some calls of the train function."""
        if calls:
            self._hook_samples.append((seconds, calls))
            # Of all together: one call that kept a state is not to stand for thousands that did not.
            self.hooks = sum(s for s, _ in self._hook_samples) / sum(c for _, c in self._hook_samples)

    def note_sender(self, cpu_seconds: float, seconds: float) -> None:
        """CPU time the sender's thread took within a while."""
        if seconds > 0:
            self._sender_samples.append(cpu_seconds / seconds)
            self.sender = statistics.fmean(self._sender_samples)

    def note_call(self, duration: float, steps: int, samples: int) -> None:
        """One call of the train function: seconds, and how many of its steps were sampled."""
        if not math.isfinite(duration):
            return
        self._steps_per_call += (steps - self._steps_per_call) / _MEMORY if self._plain else steps - 1.0
        if samples:
            self._sampled.append((duration, samples))
        else:
            self._plain.append(duration)

    def note_pace(self, seconds: float, steps: int) -> None:
        """Steps that came out of the device within a short time; a call may return long before its step is done.

        Short, so that the median tells the pace of training though it rests now and then.
        """
        if steps:
            self._paces.append(seconds / steps)

    def note_sample_costs(self, seconds: list[float]) -> None:
        """As measured directly by the backend."""
        self._direct.extend(seconds)

    @property
    def sampling(self) -> float:
        """Seconds that a sampled step takes longer than another. NaN: not known yet."""
        if len(self._direct) >= _ENOUGH:
            return statistics.median(self._direct)
        if len(self._sampled) < _ENOUGH:
            return math.nan
        if len(self._plain) >= _ENOUGH:
            base = statistics.median(self._plain)
            return max(0.0, statistics.median((duration - base) / count for duration, count in self._sampled))
        # Every call holds samples, so only calls with more and with fewer can be compared.
        few = min(count for _, count in self._sampled)
        many = max(count for _, count in self._sampled)
        if few == many:
            return math.nan
        low = statistics.median(duration for duration, count in self._sampled if count == few)
        high = statistics.median(duration for duration, count in self._sampled if count == many)
        return max(0.0, (high - low) / (many - few))

    @property
    def step_seconds(self) -> float:
        """Of a step, lately. NaN: not known yet."""
        if self._paces:
            return statistics.median(self._paces)
        calls = list(self._plain) or [duration for duration, _ in self._sampled]
        return statistics.median(calls) / self._steps_per_call if calls else math.nan

    @property
    def overhead(self) -> float:
        """Share of the training's time that watching takes. NaN: not known yet.

        Hooks and sampling hold the training up; the sender's thread takes its share of the machine's CPUs from it, as
        if the training could use them all.
        """
        step = self.step_seconds
        if not step or math.isnan(step):
            return math.nan
        sampling = self.sampling if self.every else 0.0
        per_step = self.hooks / self._steps_per_call + (0.0 if math.isnan(sampling) else sampling) / max(
            1, self.every
        )
        return per_step / (step + per_step) + self.sender / CPUS

    def choose(self, *, steps: int, sample_bytes: int) -> int:
        """The interval that keeps inside the budget; the present one as long as too little is known.

        Args:
            steps: trained so far.
            sample_bytes: size of one sample.
        """
        step, sampling = self.step_seconds, self.sampling
        if self.share is None or not self.every or math.isnan(step) or math.isnan(sampling) or step <= 0:
            return self.every
        left = (self.share - self.sender / CPUS) * step - self.hooks / self._steps_per_call
        affordable = math.ceil(sampling / max(left, LEAST_FOR_SAMPLES * self.share * step))
        seconds = max(1.0 / MOST_SAMPLES_PER_S, sample_bytes / MOST_BYTES_PER_S)
        wanted = max(1, affordable, math.ceil(seconds / step), steps // MOST_SAMPLES_UNTIL)
        # What is measured scatters; a new interval is worth it only where it makes a difference, and by degrees.
        if not 0.75 * self.every <= wanted <= 1.33 * self.every:
            self.every = min(LONGEST_INTERVAL, max(self.every // 4, min(wanted, 4 * self.every), 1))
        return self.every
