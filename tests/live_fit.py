"""A real `fit` in a process of its own: run as a script, or started and awaited by tests."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client_callback.wire import runs


def main() -> None:
    """Trains until stopped (or for `--epochs`), then saves the model and says where."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="live")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--schedule", action="store_true")
    parser.add_argument("--steps-per-execution", type=int, default=1)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--ledger", type=Path, help="file to note each finished step in")
    options = parser.parse_args()

    import keras

    from client_callback import MonitorCallback
    from tests import models

    x = models.inputs()
    model = models.plain_mlp()
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 1_000_000) if options.schedule else 1e-3
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=options.steps_per_execution,
    )
    callbacks = [MonitorCallback(options.name, statistics_every=options.every)]
    if options.ledger:
        callbacks.append(Ledger(options.ledger))
    model.fit(x, models.labels(x), batch_size=16, epochs=options.epochs, verbose=0, callbacks=callbacks)
    if options.save:
        model.save(options.save)
    print(json.dumps({"optimizer": model.optimizer.name}))


def Ledger(path: Path):  # noqa: N802 (a class made once Keras is there)
    import keras

    class Ledger(keras.callbacks.Callback):
        """Notes the time of each finished step where a killed process leaves it."""

        def on_train_begin(self, logs=None):
            self.file = path.open("ab", buffering=0)

        def on_train_batch_end(self, batch, logs=None):
            self.file.write(f"{time.time()}\n".encode())

    return Ledger()


@contextmanager
def live_fit(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], runs.RunFile]]:
    """Starts a fit, waits until it is listed and has trained a step, and ends it afterwards."""
    environment = {**os.environ, "UNSTUCK_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.live_fit", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    try:
        yield process, wait_for_run(process)
    finally:
        process.kill()
        process.communicate()


def wait_for_run(process: subprocess.Popen[str], timeout_s: float = 60.0) -> runs.RunFile:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the fit ended early:\n{process.communicate()[1][-3_000:]}")
        for run in runs.list_runs():
            if run.pid == process.pid:
                return run
        time.sleep(0.05)
    raise AssertionError("the fit was not listed in time")


if __name__ == "__main__":
    main()
