"""Trainings that take turns, and what is read from their turns: paired ratios with the range chance leaves them.

Every variant trains in a process of its own (`trainee`), a short segment at a time, in a new random order each round,
so that what drifts and what disturbs hits all alike. Whoever has no turn is held still with all its processes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from tests.bench.processes import signal_all

Segment = dict[str, Any]
"""What `trainee` tells of one: wall_s, cpu_s, …"""
Turns = dict[str, list[Segment]]
"""Variant → its segment of each round."""

WARM_UP = 16
"""Segments before the first round: traces, first monitors, and an interval of statistics that adapts itself."""
_SETTLE_S = 0.15
"""Between waking a training and its segment: its monitor asks for what it seems to have missed."""


class Trainee:
    """One variant's process."""

    def __init__(self, variant: str, sizes: Sequence[str], backend: str) -> None:
        self.variant = variant
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `kill`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.trainee", variant, *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0", "KERAS_BACKEND": backend},
        )

    def segment(self) -> Segment:
        """Trains one and holds still again. Raises RuntimeError when the process ended instead."""
        signal_all(self._process.pid, signal.SIGCONT)
        time.sleep(_SETTLE_S)
        self._say("go")
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"{self.variant}: {self._errors.read()[-3_000:]}")
        signal_all(self._process.pid, signal.SIGSTOP)
        return json.loads(answer)

    def next_size(self) -> None:
        """Ends the fit under way; the next segment is of the next size."""
        signal_all(self._process.pid, signal.SIGCONT)
        self._say("next")

    def kill(self) -> None:
        """With whatever it started."""
        signal_all(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _say(self, word: str) -> None:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()


@contextmanager
def trainees(variants: Sequence[str], sizes: Sequence[str], backend: str) -> Iterator[list[Trainee]]:
    """One process for each variant."""
    with ExitStack() as stack:
        started = [Trainee(variant, sizes, backend) for variant in variants]
        for trainee in started:
            stack.callback(trainee.kill)
        yield started


def take_turns(started: Sequence[Trainee], rounds: int) -> Turns:
    """Warms every training up, then has each train a segment a round."""
    for trainee in started:
        for _ in range(WARM_UP):
            trainee.segment()
    turns: Turns = {trainee.variant: [] for trainee in started}
    for _ in range(rounds):
        for trainee in random.sample(list(started), len(started)):
            turns[trainee.variant].append(trainee.segment())
    return turns


class Ratio(NamedTuple):
    """What one variant took in terms of another: the median over the rounds."""

    value: float
    low: float
    high: float
    """Between them 95 % of what drawing those rounds again would give (bootstrap)."""


def ratio(turns: Turns, variant: str, reference: str, key: str) -> Ratio:
    """Paired within each round. `key`: wall_s or cpu_s."""
    pairs = per_round(turns, variant, key) / per_round(turns, reference, key)
    chance = np.random.default_rng(0)
    draws = np.median(chance.choice(pairs, (2_000, len(pairs))), axis=1)
    return Ratio(float(np.median(pairs)), *np.quantile(draws, [0.025, 0.975]))


def others_share(turns: Turns, variant: str) -> float:
    """CPUs that other programs kept busy meanwhile."""
    return float(per_round(turns, variant, "others_cpu_s").sum() / per_round(turns, variant, "wall_s").sum())


def per_round(turns: Turns, variant: str, key: str) -> np.ndarray:
    """float64[rounds]."""
    return np.array([segment[key] for segment in turns[variant]])


def middle(turns: Turns, variant: str, key: str) -> float:
    """Of a segment: the median over the rounds."""
    return float(np.median(per_round(turns, variant, key)))


def pooled(turns: Turns, variant: str, key: str) -> np.ndarray:
    """All values of a list that every segment tells, float64[n]."""
    return np.concatenate([segment[key] for segment in turns[variant]])
