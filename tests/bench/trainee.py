"""One training in a process of its own that goes on by one segment whenever it is told to.

`turns.Trainee` starts it and holds all its processes still while others have their turn, so that nothing of it
(sender thread, monitor, wandb's service) is paid for by them. A segment is a number of steps of one `fit` that never
ends: the train step is traced in the first segments, which are the warm-up.

    python -m tests.bench.trainee VARIANT SIZE…      answers each line on stdin with a line of JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import keras

from tests.bench.processes import (
    descendants,
    die_with_parent,
    machine_cpu_s,
    rss_bytes,
    tasks_cpu_s,
    thread_cpu_s,
)
from tests.bench.sizes import SIZES, Size
from tests.bench.variants import LINK_THREAD, VARIANTS, HookClock, refuse_warnings, watchers


class Turnstile(keras.callbacks.Callback):
    """First of the callbacks: holds the `fit` before each segment until told, and tells of the segment before."""

    def __init__(self, meter: Meter, steps: int) -> None:
        super().__init__()
        self._meter, self._steps = meter, steps
        self._begun = False

    def on_train_batch_begin(self, batch, logs=None):
        if batch % self._steps:
            return
        if self._begun:
            print(json.dumps(self._meter.read()), flush=True)
        if sys.stdin.readline().strip() != "go":
            raise EndedError
        self._begun = True
        self._meter.read()


class EndedError(Exception):
    """Out of `fit`."""


class Meter:
    """What a segment takes."""

    def __init__(self) -> None:
        self.hooks: HookClock | None = None
        self.watchers: list[int] = []
        self._check = refuse_warnings()
        self._before: dict[str, float] = {}

    def read(self) -> dict[str, Any]:
        """Since the last call, in seconds; `rss_bytes` is what is in use now."""
        self._check()
        now = self._totals()
        taken = {name: value - self._before.get(name, 0.0) for name, value in now.items()}
        hooks = {} if self.hooks is None else self.hooks.take()
        self._before = self._totals()
        return {**taken, "rss_bytes": rss_bytes(), **hooks}

    def _totals(self) -> dict[str, float]:
        wall, cpu, machine = time.perf_counter(), time.process_time(), machine_cpu_s()
        me = os.getpid()
        started = {pid: tasks_cpu_s(pid) for pid in descendants(me)}
        return {
            "wall_s": wall,
            "cpu_s": cpu,
            "others_cpu_s": machine - cpu - sum(started.values()),
            "watcher_cpu_s": sum(started.pop(pid, 0.0) for pid in self.watchers),
            "helper_cpu_s": sum(started.values()),
            "sender_cpu_s": thread_cpu_s(LINK_THREAD),
            "zmq_cpu_s": tasks_cpu_s(me, "ZMQ"),
        }


def main() -> None:
    """Trains one size after the other, each until told to end."""
    die_with_parent()
    variant, *sizes = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        os.environ["UNSTUCK_HOME"] = folder
        for size in sizes:
            _train(variant, SIZES[size], folder)
        sys.stdout.flush()
    os._exit(0)  # no waiting for what a tool does at exit


def _train(variant: str, size: Size, folder: str) -> None:
    meter = Meter()
    callbacks = VARIANTS[variant](folder)
    with contextlib.ExitStack() as stack:
        if variant.startswith("monitor"):
            meter.hooks = HookClock(callbacks[0])
            callbacks.append(Watched(meter, stack))
        with contextlib.suppress(EndedError):
            size.fit([Turnstile(meter, size.steps), *callbacks])


class Watched(keras.callbacks.Callback):
    """Last of the callbacks: starts a monitor once there is something to see."""

    def __init__(self, meter: Meter, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._meter, self._stack = meter, stack

    def on_train_batch_begin(self, batch, logs=None):
        if batch and not self._meter.watchers:
            self._meter.watchers = self._stack.enter_context(watchers())


if __name__ == "__main__":
    main()
