"""Every command, sent to a real `fit` through its socket, for each way of training; run as a program for replicas.

`run_cell` trains one small classifier until all commands have been answered, and returns the answers with what the
recording says of the same steps.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import msgspec
import numpy as np
from keras import layers
from keras.optimizers import Adam
from keras.optimizers.schedules import ExponentialDecay

from client_callback import MonitorCallback
from client_callback.wire import protocol
from monitor import sending
from tests.recorded import of_kind, series
from tests.two_devices import replicate

BACKEND = keras.backend.backend()
EXAMPLES, BATCH = 8_192, 8
X = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype("float32")
Y = X[:, :3].argmax(axis=1)


@dataclass(frozen=True)
class Cell:
    """One way of training."""

    optimizer: Callable[[], keras.optimizers.Optimizer] = lambda: Adam(0.002)
    policy: str = "float32"
    steps_per_execution: int = 1
    two_outputs: bool = False
    replicas: bool = False
    statistics_every: int = 0
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")


# Each command has the step traced anew, which is what the tests' time goes into, so ways of training share cells.
# What takes longest to trace are the statistics; one cell has them, and on JAX none.
CELLS = {
    "schedule, statistics": Cell(
        lambda: Adam(ExponentialDecay(0.002, 1_000, 0.9)), statistics_every=0 if BACKEND == "jax" else 3
    ),
    "mixed precision, several steps per execution": Cell(
        policy="mixed_float16", steps_per_execution=1 if BACKEND == "torch" else 4
    ),
    "accumulation, two outputs": Cell(lambda: Adam(0.002, gradient_accumulation_steps=3), two_outputs=True),
    "replicas": Cell(replicas=True, backends=("tensorflow", "jax")),
}

COMMANDS = (
    "note begun",
    "snapshot early",
    "lr 0.003",
    "lr x0.5",
    "lr 0.002 over 6 steps",
    "schedule cosine decay_steps=5000",
    "schedule one-cycle maximal_learning_rate=0.004 total_steps=2000",
    "schedule reduce-on-plateau patience=50",
    "schedule constant learning_rate=0.002",
    "lr x0.9 for 5000 steps",
    "cancel all",
    "lr x0.8 unless loss rises 900% in 5000 steps",
    "cancel  all",
    "set clipnorm=5",
    "set beta_1=0.8",
    "set dropout.rate=0.2",
    "set hidden.l2=0.001",
    "accumulate 2",
    "accumulate 1",
    "freeze hidden",
    "look",
    "note later",
    "look ",
    "unfreeze hidden",
    "class-weight 0=1 1=2.5",
    "class-weight balanced",
    "class-weight none",
    "loss-weight first=0.5",
    "reinit hidden",
    "reinit dead-units",
    "optimizer sgd learning_rate=0.01 momentum=0.9",
    "optimizer adam learning_rate=match",
    "optimizer rmsprop learning_rate=0.001 from early",
    "trial keep 'lr x0.5' 'sgd 0.01' for 4 steps",
    "trial lr 1e-4..0.1 for 6 steps",
    "lr x0.9 at epoch 100000",
    "timers",
    "cancel   all",
    "lr x0.7 --dry-run",
    "optimizer sgd --dry-run",
    "evaluate",
    "checkpoint {folder}/model.keras",
    "checkpoint {folder}/model.weights.h5",
    "undo",
    "redo",
    "undo settings",
    "rollback early",
    "rollback start",
    "pause",
    "resume",
    "extend 3 epochs",
    "control take",
    "stop now",
)


def build(cell: Cell) -> keras.Model:
    keras.utils.set_random_seed(2)
    keras.config.set_dtype_policy(cell.policy)
    try:
        inputs = keras.Input((6,))
        hidden = layers.Dense(12, activation="relu", name="hidden")(inputs)
        dropped = layers.Dropout(0.1, name="dropout")(layers.BatchNormalization(name="norm")(hidden))
        first = layers.Activation("linear", dtype="float32", name="first")(layers.Dense(3)(dropped))
        second = layers.Dense(1, dtype="float32", name="second")(dropped)
    finally:
        keras.config.set_dtype_policy("float32")
    model = keras.Model(inputs, [first, second] if cell.two_outputs else first)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        cell.optimizer(),
        [loss, "mse"] if cell.two_outputs else loss,
        metrics=[["accuracy"], ["mae"]] if cell.two_outputs else ["accuracy"],
        steps_per_execution=cell.steps_per_execution,
    )
    return model


def run_cell(name: str, folder: Path) -> dict[str, Any]:
    """The answers in order, the events of the recording that tell of them, and its series."""
    cell = CELLS[name]
    scope = replicate() if cell.replicas else nullcontext
    with scope():
        model = build(cell)
    actions = {"look": look(model)}
    callback = MonitorCallback(
        "table", directory=folder, statistics_every=cell.statistics_every, actions=actions
    )
    answers: list[dict[str, Any]] = []
    failure: list[BaseException] = []

    def steer() -> None:
        try:
            for text in COMMANDS:
                reply = sending.send("table", text.format(folder=folder), wait_s=60.0)
                while "send it again" in reply.reason:  # the epoch's last batches
                    reply = sending.send("table", text, wait_s=60.0)
                answers.append({"command": text, **msgspec.to_builtins(reply)})
        except BaseException as error:  # noqa: BLE001 (raised again by the test)
            failure.append(error)
            model.stop_training = True

    class Began(keras.callbacks.Callback):
        """Commands come once training runs."""

        async_safe = True

        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            if not epoch:
                thread.start()

    thread = threading.Thread(target=steer)
    targets = [Y, X[:, :1]] if cell.two_outputs else Y
    history = model.fit(
        X,
        targets,
        batch_size=BATCH,
        epochs=100_000,
        validation_data=(X[:16], [t[:16] for t in targets] if cell.two_outputs else targets[:16]),
        validation_freq=2,
        shuffle=False,
        verbose=0,
        callbacks=[callback, Began()],
    )
    thread.join()
    if failure:
        raise failure[0]
    recording = callback.recording
    columns = series(recording)
    problems = [problem.what for problem in of_kind(recording, protocol.Problem)]
    replies = [msgspec.to_builtins(reply) for reply in of_kind(recording, protocol.Reply)]
    return {
        "answers": answers,
        "replies": replies,
        "problems": problems,
        "ended": [ended.outcome for ended in of_kind(recording, protocol.RunEnded)],
        "rates": columns["learning_rate"].tolist(),
        "finite": bool(np.isfinite(history.history["loss"]).all()),
        "steps": len(columns["loss"]),
    }


def look(model: keras.Model) -> Callable[[], dict[str, float]]:
    """A command of the script's own: tells whether weights have moved."""

    def sums() -> dict[str, float]:
        found = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
        return {
            name: float(sum(np.abs(one.astype(np.float64)).sum() for one in weights))
            for name, weights in found.items()
        }

    return sums


if __name__ == "__main__":
    print(json.dumps(run_cell(sys.argv[1], Path(sys.argv[2]))))
