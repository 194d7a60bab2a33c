"""What the callback adds to a step of real training: the same `fit` with and without it, taken in turns."""

from __future__ import annotations

import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from client_callback import MonitorCallback

ROUNDS = 7
STEPS = 300


def run() -> list[tuple[str, float, float]]:
    """(label, median seconds per step with the callback, without it)."""
    with tempfile.TemporaryDirectory() as home:
        before = os.environ.get("UNSTUCK_HOME")
        os.environ["UNSTUCK_HOME"] = home
        try:
            return [_compare(label, *case) for label, case in _cases().items()]
        finally:
            if before is None:
                del os.environ["UNSTUCK_HOME"]
            else:
                os.environ["UNSTUCK_HOME"] = before


def _cases() -> dict[str, tuple[keras.Model, np.ndarray, int]]:
    dense = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    convolutional = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    return {
        "step of a small dense network": (dense, _inputs((784,)), STEPS),
        "step of a small convolutional network": (convolutional, _inputs((28, 28, 1)), STEPS // 5),
    }


def _inputs(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(32 * STEPS, *shape)).astype("float32")


def _compare(label: str, model: keras.Model, x: np.ndarray, steps: int) -> tuple[str, float, float]:
    x = x[: 32 * steps]
    y = np.arange(len(x)) % 10
    watched, bare = [], []
    for _ in range(ROUNDS):
        bare.append(_seconds_per_step(model, x, y, []))
        watched.append(_seconds_per_step(model, x, y, [MonitorCallback("bench")]))
    pairs = sorted(w / b for w, b in zip(watched, bare, strict=True))
    middle = statistics.median(bare)
    return f"{label}, statistics every 10", middle * pairs[len(pairs) // 2], middle


def _seconds_per_step(
    model: keras.Model, x: np.ndarray, y: np.ndarray, callbacks: list[keras.callbacks.Callback]
) -> float:
    """Median over the steps of one `fit`; the first, which trace, are left out."""
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    model.fit(x, y, batch_size=32, verbose=0, callbacks=[*callbacks, clock])
    return (ends[-1] - ends[9]) / (len(ends) - 10)
