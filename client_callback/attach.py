"""Runs a training script as it is, with a monitor in every `fit`: `python -m client_callback.attach SCRIPT`.

`unstuck doctor` starts this as a process of its own. The script chooses Keras' backend and imports Keras itself, when
it likes; the callback is put into `fit` just after that import. Nothing here watches or judges.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


class BudgetSpentError(SystemExit):
    """Ends the script after the `fit` in which its budget ran out. A SystemExit: scripts do not catch these."""

    def __init__(self) -> None:
        super().__init__(0)


class Budget:
    """How long a script may train, over all its fits.

    Args:
        steps: calls of the train function. `None`: as many as the script likes.
        seconds: of training, from the first step on. `None`: likewise.
    """

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self._steps, self._seconds = steps, seconds
        self._done = 0
        self._began: float | None = None
        self.spent = False

    def step_begins(self) -> bool:
        """Counts one more; whether it is the last."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._done += 1
        self.spent = (self._steps is not None and self._done >= self._steps) or (
            self._seconds is not None and now - self._began >= self._seconds
        )
        return self.spent


class _KerasLoader(Loader):
    """Loads Keras as its own loader does, then calls `then`."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._then(module)


class _KerasFinder(MetaPathFinder):
    """Finds Keras where it is, for the loader above."""

    def __init__(self, then: Callable[[ModuleType], None]) -> None:
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _KerasLoader(spec.loader, self._then)
        return spec


def put_into_fit(keras: ModuleType, budget: Budget, told: Path | None, directory: Path | None) -> None:
    """From now on every `fit` of a Keras model is watched, and ends when the budget is spent.

    Args:
        keras: the imported package.
        budget: of all fits together.
        told: a file that gets the recording's path of each fit, one JSON text per line, when that is over.
        directory: where recordings go. `None`: the user's data folder.
    """
    from client_callback.callback import MonitorCallback  # noqa: PLC0415 (needs the script's Keras)

    class StopWhenSpent(keras.callbacks.Callback):  # type: ignore[name-defined,misc] # the script's Keras
        """Asked before each step: a hook after it would have JAX and torch wait for every step."""

        def __init__(self, monitor: MonitorCallback) -> None:
            super().__init__()
            self._monitor = monitor

        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            if budget.step_begins():
                self._monitor.stop()
                self._model.stop_evaluating = True

    owner = next(kind for kind in keras.Model.__mro__ if "fit" in vars(kind))
    original = vars(owner)["fit"]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        callbacks = given.arguments.get("callbacks")
        listed = list(getattr(callbacks, "callbacks", None) or _as_list(callbacks))
        own = next((one for one in listed if isinstance(one, MonitorCallback)), None)
        monitor = MonitorCallback(directory=directory) if own is None else own
        added: list[Any] = [StopWhenSpent(monitor), *([monitor] if own is None else [])]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            for one in added:
                callbacks.append(one)
        else:
            given.arguments["callbacks"] = [*listed, *added]
        try:
            return original(*given.args, **given.kwargs)
        finally:
            _tell(told, monitor.recording)
            if budget.spent and sys.exc_info()[0] is None:
                raise BudgetSpentError

    owner.fit = fit


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Runs it as `python SCRIPT ARGUMENTS…` would."""
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the script."""
    parser = argparse.ArgumentParser(
        prog="client_callback.attach", description="Runs a script with a monitor in every fit."
    )
    parser.add_argument("--steps", type=int, help="stop after so many calls of the train function")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds of training")
    parser.add_argument("--told", type=Path, help="file that gets the paths of the recordings")
    parser.add_argument("--directory", type=Path, help="folder for the recordings")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    os.environ.setdefault("MPLBACKEND", "Agg")  # a window that waits to be closed would hold the script up
    budget = Budget(options.steps, options.seconds)
    finder = _KerasFinder(lambda keras: put_into_fit(keras, budget, options.told, options.directory))
    sys.meta_path.insert(0, finder)
    run_script(options.script, options.arguments)


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def _tell(told: Path | None, recording: Path | None) -> None:
    if told is not None and recording is not None:
        with told.open("a", encoding="utf-8") as file:
            file.write(json.dumps(str(recording)) + "\n")


if __name__ == "__main__":
    main()
