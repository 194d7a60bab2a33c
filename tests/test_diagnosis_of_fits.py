"""Whatever is trained, and however its data come: every rule can look at the recording, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from monitor.diagnosis.engine import Diagnosis, examine
from monitor.recorded_session import session_at

pytestmark = pytest.mark.every_backend

EXAMPLES, BATCH, EPOCHS = 128, 16, 5
X = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype("float32")
CLASSES = X[:, :3].argmax(axis=1)
TARGETS: dict[str, tuple[np.ndarray, int, str, str, list[str]]] = {
    "three classes": (CLASSES, 3, "softmax", "sparse_categorical_crossentropy", ["accuracy"]),
    "one-hot rows": (np.eye(3, dtype="float32")[CLASSES], 3, "softmax", "categorical_crossentropy", []),
    "two classes": ((CLASSES > 0).astype("float32")[:, None], 1, "sigmoid", "binary_crossentropy", ["accuracy"]),
    "several labels": ((X[:, :3] > 0).astype("float32"), 3, "sigmoid", "binary_crossentropy", []),
    "numbers": (X[:, 0] - X[:, 1], 1, "linear", "mean_squared_error", ["mae"]),
    "its own inputs": (X, 6, "linear", "mean_squared_error", []),
}  # fmt: skip
"""Name → targets, units, activation, loss and metrics that fit them."""


def of_generator(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            for first in range(0, EXAMPLES, BATCH):
                yield x[first : first + BATCH], y[first : first + BATCH]

    return {"x": batches(), "steps_per_epoch": EXAMPLES // BATCH, "shuffle": False}


def of_tf_data(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    data = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's").data
    return {
        "x": data.Dataset.from_tensor_slices((x, y)).shuffle(EXAMPLES, seed=1).batch(BATCH),
        "shuffle": False,
    }


def of_arrays(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {"x": x, "y": y, "batch_size": BATCH}


FEEDS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "arrays": of_arrays,
    "a generator": of_generator,
    "tf.data": of_tf_data,
}


def diagnosis_of(
    model: keras.Model, feed: str, y: np.ndarray, *, x: np.ndarray = X, epochs: int = EPOCHS
) -> Diagnosis:
    """What the rules say of a real fit when it is over."""
    callback = MonitorCallback("fit", statistics_every=4)
    model.fit(**FEEDS[feed](x, y), epochs=epochs, verbose=0, callbacks=[callback], validation_data=(x, y))
    assert callback.recording is not None
    return examine(session_at(callback.recording))


def network(units: int, activation: str, loss: str, metrics: list[str], rate: float = 0.01) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(units, activation, name="last"),
        ]
    )
    model.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
    return model


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_rule_fails_and_none_is_alarmed_by_what_learns(target: str, feed: str, home):
    y, *architecture = TARGETS[target]
    found = diagnosis_of(network(*architecture), feed, y)
    assert [silent for silent in found.silent if silent.failed] == []
    alarms = {finding.rule for finding in found.findings if finding.severity != "note"}
    assert alarms <= {"too-short"}  # after five epochs some still improve


@pytest.mark.filterwarnings("ignore:.*softmax over axis:UserWarning")
@pytest.mark.parametrize("feed", FEEDS)
def test_a_softmax_over_one_unit_is_found_however_the_data_come(feed: str, home):
    y = TARGETS["two classes"][0]
    model = network(1, "softmax", "binary_crossentropy", ["accuracy"])
    found = diagnosis_of(model, feed, y)
    assert found.findings[0].rule == "wrong-output-activation"


@pytest.mark.parametrize("feed", FEEDS)
def test_a_squashed_output_for_numbers_is_found_however_the_data_come(feed: str, home):
    y = 20 + 5 * TARGETS["numbers"][0]
    found = diagnosis_of(network(1, "sigmoid", "mean_squared_error", []), feed, y)
    assert found.findings[0].rule in ("wrong-output-activation", "label-encoding")
