"""Where the time of `MonitorCallback` goes: its part of the train step, its hooks, its threads.

The same training, bare and watched, goes on in one process step by step: each cycle lets every `fit` take one step,
in a new random order, so that even a busy machine treats all of them alike. Costs are medians over the cycles of
what a step took beyond the bare one of its cycle. What statistics cost follows from sampling at every step and at
none.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from tests.bench.processes import home_in, tasks_cpu_s, thread_cpu_s
from tests.bench.sizes import SIZES, Size
from tests.bench.variants import LINK_THREAD, VARIANTS, HookClock, refuse_warnings, watchers

BARE, AGAIN = "bare", "bare again"
OFF, ALWAYS = "monitor, no statistics", "monitor, statistics every step"
COMPARED = (BARE, AGAIN, OFF, ALWAYS)
CYCLES = 600
WARM_UP = 60


class Step(NamedTuple):
    """What one step took, in seconds."""

    wall: float
    """Of the train function, until its logs are there."""
    cpu: float
    """Of all threads of the process, hooks included."""
    total: float
    """Wall time, hooks included."""


class Turns:
    """Which of several fits may take its next step."""

    def __init__(self, fits: Sequence[str]) -> None:
        self._fits = list(fits)
        self._order: list[str] = []
        self._left = -1
        self._gates = {fit: threading.Semaphore(0) for fit in fits}
        self._done = threading.Event()
        self.over = False

    def run(self, cycles: int) -> None:
        """Lets every fit take so many steps."""
        self._left = cycles
        self._done.clear()
        self.pass_on()
        self._done.wait()

    def end(self) -> None:
        """Lets every fit end."""
        self.over = True
        for gate in self._gates.values():
            gate.release()

    def wait(self, fit: str) -> None:
        """Until it is the turn of `fit`."""
        self._gates[fit].acquire()

    def pass_on(self) -> None:
        """The turn is over."""
        if not self._order:
            if self._left == 0:
                self._done.set()
                return
            self._left -= 1
            self._order = random.sample(self._fits, len(self._fits))
        self._gates[self._order.pop()].release()


class EndedError(Exception):
    """Out of `fit`."""


class First(keras.callbacks.Callback):
    """Before every other callback: waits for its turn."""

    def __init__(self, fit: str, turns: Turns) -> None:
        super().__init__()
        self._fit, self._turns = fit, turns
        self.began = self.cpu_began = self.ended = 0.0
        self.ready = threading.Event()

    def on_train_batch_begin(self, batch, logs=None):
        self.ready.set()
        self._turns.wait(self._fit)
        if self._turns.over:
            raise EndedError
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        self.ended = time.perf_counter()


class Last(keras.callbacks.Callback):
    """After every other callback: passes the turn on."""

    def __init__(self, first: First, turns: Turns) -> None:
        super().__init__()
        self._first, self._turns = first, turns
        self.steps: list[Step] = []
        self._called = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self._called = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        first = self._first
        cpu = time.process_time() - first.cpu_began
        self.steps.append(Step(first.ended - self._called, cpu, time.perf_counter() - first.began))
        self._turns.pass_on()


def run(sizes: Sequence[str] = tuple(SIZES), cycles: int = CYCLES) -> None:
    """Prints it, one size of step after the other."""
    for name in sizes:
        with tempfile.TemporaryDirectory(prefix="bench") as folder, home_in(folder):
            _profile(name, folder, cycles)


def _profile(name: str, folder: str, cycles: int) -> None:
    check = refuse_warnings()
    turns = Turns(COMPARED)
    lasts, hooks, threads = {}, {}, []
    for fit in COMPARED:
        callbacks = VARIANTS[fit](folder)
        hooks[fit] = HookClock(callbacks[0]) if callbacks else None
        first = First(fit, turns)
        lasts[fit] = Last(first, turns)
        arguments = (SIZES[name], [first, *callbacks, lasts[fit]])
        threads.append(threading.Thread(target=_train, args=arguments, daemon=True))
        threads[-1].start()
        first.ready.wait()
    try:
        turns.run(WARM_UP)
        with watchers():
            turns.run(WARM_UP)
            for clock in filter(None, hooks.values()):
                clock.take()
            began, cpu = time.perf_counter(), _threads_cpu_s()
            turns.run(cycles)
            passed = time.perf_counter() - began
            check()
            spent = {what: (now - cpu[what]) / passed for what, now in _threads_cpu_s().items()}
    finally:
        turns.end()
        for thread in threads:
            thread.join()
    steps = {fit: np.array(last.steps[-cycles:]) for fit, last in lasts.items()}
    _tell(name, steps)
    for fit in (OFF, ALWAYS):
        _tell_hooks(fit, hooks[fit])
    runs = len(COMPARED) - 2
    told = ", ".join(f"{what} {share / runs * 1e3:.1f}" for what, share in spent.items())
    print(f"  CPU of one run's threads, ms per second: {told}")


def _train(size: Size, callbacks: list[keras.callbacks.Callback]) -> None:
    with contextlib.suppress(EndedError):
        size.fit(callbacks)


def _threads_cpu_s() -> dict[str, float]:
    return {"sender": thread_cpu_s(LINK_THREAD), "ZeroMQ": tasks_cpu_s(os.getpid(), "ZMQ")}


def _tell(name: str, steps: dict[str, np.ndarray]) -> None:
    bare = np.median(steps[BARE], axis=0) * 1e3
    print(f"\n{name} on {keras.backend.backend()}: bare step {bare[0]:.3f} ms, CPU {bare[1]:.3f} ms")
    print(f"  {'beyond bare, µs a step':40}{'train function':>20}{'CPU':>20}{'with hooks':>20}")
    for fit in COMPARED[1:]:
        _tell_difference(fit, steps[fit] - steps[BARE])
    _tell_difference("one sampled step (every step − none)", steps[ALWAYS] - steps[OFF])


def _tell_difference(label: str, differences: np.ndarray) -> None:
    """float64[cycles, 3]: the median and its standard error (1.25 σ / √n, σ from the middle half)."""
    low, middle, high = np.quantile(differences, [0.25, 0.5, 0.75], axis=0) * 1e6
    error = 1.25 * (high - low) / 1.35 / np.sqrt(len(differences))
    told = "".join(f"{f'{m:.0f} ± {e:.0f}':>20}" for m, e in zip(middle, error, strict=True))
    print(f"  {label:40}{told}")


def _tell_hooks(fit: str, clock: HookClock) -> None:
    taken = clock.take()
    before, after = np.array(taken["hook_begin_s"]), np.array(taken["hook_end_s"])
    for name, values in (("before", before), ("after", after), ("both", before + after)):
        median, p90, p99 = np.quantile(values * 1e6, [0.5, 0.9, 0.99])
        mean = np.mean(values) * 1e6
        label = f"{fit}: hook {name}"
        print(f"  {label:46} median {median:6.1f}  p90 {p90:7.1f}  p99 {p99:7.1f}  mean {mean:6.1f} µs")


if __name__ == "__main__":
    run()
