"""What is compared: callbacks of a `fit`, each as its makers offer it."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from client_callback import MonitorCallback
from client_callback.wire import runs

LINK_THREAD = "unstuck link"
"""Name of the sender thread of a watched training."""


class DisturbedError(Exception):
    """The callback warned: this training is not watched as it should be, and its figures mean nothing."""


def refuse_warnings() -> Callable[[], None]:
    """Lets go of no warning of `MonitorCallback`: what is returned raises DisturbedError once there was one."""
    told: list[str] = []
    show = warnings.showwarning

    def keep(message: Warning | str, *rest: Any, **more: Any) -> None:
        if str(message).startswith("unstuck:"):
            told.append(str(message))
        show(message, *rest, **more)

    def check() -> None:
        if told:
            raise DisturbedError(told[0])

    warnings.showwarning = keep
    return check


class CsvEachBatch(keras.callbacks.Callback):
    """What one would write oneself: a row per batch, on disk at once."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._file = (Path(folder) / "batches.csv").open("w", newline="")
        self._rows = csv.writer(self._file)

    def on_train_batch_end(self, batch, logs=None):
        self._rows.writerow([batch, *(logs or {}).values()])
        self._file.flush()


def _bare(folder: str) -> list[keras.callbacks.Callback]:
    return []


def _monitor(every: int | None, folder: str) -> list[keras.callbacks.Callback]:
    """`every`: `None` for the default."""
    options = {} if every is None else {"statistics_every": every}
    return [MonitorCallback("bench", directory=folder, **options)]


def _tensorboard(folder: str) -> list[keras.callbacks.Callback]:
    return [keras.callbacks.TensorBoard(folder, update_freq="batch")]


def _wandb(folder: str) -> list[keras.callbacks.Callback]:
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    wandb.init(project="bench", mode="offline", dir=folder, settings=wandb.Settings(silent=True))
    return [WandbMetricsLogger(log_freq="batch")]


def _csv(folder: str) -> list[keras.callbacks.Callback]:
    return [CsvEachBatch(folder)]


VARIANTS: dict[str, Callable[[str], list[keras.callbacks.Callback]]] = {
    "bare": _bare,
    "bare again": _bare,
    "monitor": functools.partial(_monitor, None),
    "monitor, no statistics": functools.partial(_monitor, 0),
    "monitor, statistics every step": functools.partial(_monitor, 1),
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "csv": _csv,
}


class HookClock:
    """Times a callback's hooks of each batch; what timing itself takes is subtracted."""

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self._begins: list[float] = []
        self._ends: list[float] = []
        for name, taken in (("on_train_batch_begin", self._begins), ("on_train_batch_end", self._ends)):
            setattr(callback, name, _timed(getattr(callback, name), taken))
        empty: list[float] = []
        nothing = _timed(lambda batch, logs=None: None, empty)
        for batch in range(10_000):
            nothing(batch, logs=None)
        self._own_s = float(np.median(empty))

    def take(self) -> dict[str, list[float]]:
        """Seconds in each hook of each batch since the last time."""
        taken = {
            name: [max(0.0, value - self._own_s) for value in values]
            for name, values in (("hook_begin_s", self._begins), ("hook_end_s", self._ends))
        }
        self._begins.clear()
        self._ends.clear()
        return taken


def _timed(hook: Callable[..., None], taken: list[float]) -> Callable[..., None]:
    @functools.wraps(hook)
    def timed(batch, logs=None):
        began = time.perf_counter()
        hook(batch, logs=logs)
        taken.append(time.perf_counter() - began)

    return timed


@contextlib.contextmanager
def watchers() -> Iterator[list[int]]:
    """Process ids of monitors without a screen, one for each run of this process; each has seen a step."""
    with contextlib.ExitStack() as stack:
        own = [run for run in runs.list_runs() if run.pid == os.getpid()]
        yield [stack.enter_context(_watcher(run.run_id)) for run in own]


@contextlib.contextmanager
def _watcher(run_id: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.watcher", run_id], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"watching"
        yield process.pid
    finally:
        process.kill()
        process.communicate()
