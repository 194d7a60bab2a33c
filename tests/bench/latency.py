"""How soon a command takes effect: from `send` to the moment between two batches at which it was applied.

A real `fit` in a process of its own, whose steps are made to last as long as is wanted; commands come at random
moments, from a script (`monitor.sending`) and from a monitor that watches it (`LiveSource`). A step under way must
end first, so the reference is the step's own duration; the aim is one step and `AIM_S`.

    python -m tests.bench.latency STEP_S      trains until killed, with steps of that many seconds
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

STEPS_S = (0.002, 0.05)
COMMANDS = 100
AIM_S = 0.02
_EXAMPLES = 1 << 19
"""So many that no epoch ends meanwhile: between two epochs Keras takes some steps' time for itself."""
_BATCH = 8


def run() -> None:
    """Prints a line for each duration of a step and each way to send."""
    print(
        f"  {'':44}{'step':>9}{'median':>9}{'95 %':>9}{'worst':>9}{'beyond a step':>15}   ms, {COMMANDS} commands"
    )
    for step_s in STEPS_S:
        with tempfile.TemporaryDirectory(prefix="bench") as folder, _training(step_s, folder) as live:
            for name, sender in (("a script's `send`", _by_script), ("a monitor's command", _by_monitor)):
                with sender(live) as send:
                    taken, lasted = _measure(send, live)
                beyond = np.percentile(taken, 95) - lasted
                verdict = "as aimed at" if beyond <= AIM_S else f"more than {AIM_S * 1e3:.0f}"
                figures = (lasted, np.median(taken), np.percentile(taken, 95), max(taken), beyond)
                line = "".join(f"{1e3 * figure:>9.1f}" for figure in figures[:-1])
                print(f"  {name:44}{line}{1e3 * figures[-1]:>15.1f}   at 95 %: {verdict}", flush=True)


def _measure(send: Callable[[str], float], live) -> tuple[list[float], float]:
    """Seconds until each command was applied; median seconds of a step meanwhile."""
    chance = random.Random(0)
    taken = []
    began = time.time()
    for number in range(COMMANDS):
        time.sleep(chance.uniform(0.05, 0.15))
        sent = time.time()
        taken.append(send("lr x0.99" if number % 2 else "lr x1.01") - sent)
    return taken, _step_seconds(live.recording, began)


def _step_seconds(recording: str, since: float) -> float:
    """Median time between the ends of two steps."""
    from pathlib import Path

    from client_callback.wire import protocol
    from client_callback.wire.recording import JournalReader

    with JournalReader(Path(recording)) as reader:
        times = [protocol.step_times(e) for _, e in reader.events() if isinstance(e, protocol.Steps)]
    ends = np.concatenate(times)
    return float(np.median(np.diff(ends[ends > since])))


@contextlib.contextmanager
def _by_script(live) -> Iterator[Callable[[str], float]]:
    """When a command was applied that `monitor.sending` sends."""
    from monitor.sending import send_to

    def send(text: str) -> float:
        reply = send_to(live, text)
        assert reply.status == "applied", reply
        return reply.time

    yield send


@contextlib.contextmanager
def _by_monitor(live) -> Iterator[Callable[[str], float]]:
    """When a command was applied that a watching monitor sends."""
    from client_callback.wire.protocol import Reply
    from monitor.sources import LiveSource

    source = LiveSource(live)

    def send(text: str) -> float:
        id_, deadline = source.send(text), time.monotonic() + 10
        while time.monotonic() < deadline:
            for event in source.poll().events:
                if isinstance(event, Reply) and event.id == id_:
                    assert event.status == "applied", event
                    return event.time
            time.sleep(0.005)
        raise TimeoutError(text)

    with contextlib.closing(source):
        while source.connection:
            time.sleep(0.05)
        yield send


@contextlib.contextmanager
def _training(step_s: float, folder: str) -> Iterator:
    """The run file of a `fit` under way."""
    from client_callback.wire import runs
    from tests.bench.processes import home_in

    with home_in(folder):
        command = [sys.executable, "-m", "tests.bench.latency", str(step_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            process.stdout.readline()  # some steps have been trained
            yield runs.run_of_process(process.pid)
        finally:
            process.kill()
            process.communicate()


def main() -> None:
    """Trains until killed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from client_callback import MonitorCallback
    from tests.bench.processes import die_with_parent

    die_with_parent()
    step_s = float(sys.argv[1])

    class Lasting(keras.callbacks.Callback):
        """Makes each step last as long as is wanted."""

        steps = 0

        def on_train_batch_begin(self, batch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(max(0.0, self.began + step_s - time.perf_counter()))
            self.steps += 1
            if self.steps == 50:
                print("trains", flush=True)

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    # Labels of noise: weights that moved no more would make the commands ineffective.
    noise = np.random.default_rng(0).normal(size=(_EXAMPLES, 9)).astype("float32")
    callbacks = [MonitorCallback(), Lasting()]
    model.fit(noise[:, :8], noise[:, 8:], batch_size=_BATCH, epochs=10**6, verbose=0, callbacks=callbacks)


if __name__ == "__main__":
    main()
