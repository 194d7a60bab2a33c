"""Whatever is trained, and however its data come: every rule can look at the recording, and says what is wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from monitor.diagnosis.engine import Diagnosis, examine
from monitor.recorded_session import session_at
from monitor.session import Session

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


def of_generator(x: np.ndarray, y: Any) -> dict[str, Any]:
    def batches() -> Iterator[tuple[np.ndarray, Any]]:
        while True:
            for first in range(0, EXAMPLES, BATCH):
                rows = slice(first, first + BATCH)
                yield keras.tree.map_structure(operator.itemgetter(rows), (x, y))

    return {"x": batches(), "steps_per_epoch": EXAMPLES // BATCH, "shuffle": False}


def of_tf_data(x: np.ndarray, y: Any) -> dict[str, Any]:
    data = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's").data
    return {
        "x": data.Dataset.from_tensor_slices((x, y)).shuffle(EXAMPLES, seed=1).batch(BATCH),
        "shuffle": False,
    }


def of_arrays(x: np.ndarray, y: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "batch_size": BATCH}


FEEDS: dict[str, Callable[[np.ndarray, Any], dict[str, Any]]] = {
    "arrays": of_arrays,
    "a generator": of_generator,
    "tf.data": of_tf_data,
}


def session_of_fit(model: keras.Model, feed: str, y: Any) -> Session:
    """A real fit when it is over."""
    callback = MonitorCallback("fit", statistics_every=4)
    model.fit(**FEEDS[feed](X, y), epochs=EPOCHS, verbose=0, callbacks=[callback], validation_data=(X, y))
    assert callback.recording is not None
    return session_at(callback.recording)


def diagnosis_of(model: keras.Model, feed: str, y: np.ndarray) -> Diagnosis:
    """What the rules say of it."""
    return examine(session_of_fit(model, feed, y))


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


@pytest.mark.parametrize("feed", FEEDS)
def test_targets_of_a_dict_stand_beside_the_outputs_they_are_named_after(feed: str, home):
    keras.utils.set_random_seed(1)
    given = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="relu")(given)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(hidden)
    amount = keras.layers.Dense(1, name="amount")(hidden)
    model = keras.Model(given, [kind, amount])
    losses = {"kind": "sparse_categorical_crossentropy", "amount": "mean_squared_error"}
    model.compile(keras.optimizers.Adam(0.01), losses)
    # The names of the targets sort the other way round.
    session = session_of_fit(model, feed, {"kind": CLASSES, "amount": X[:, 0] * 3 + 13})
    assert session.layouts["target_counts"].labels == ("0", "1", "2")
    first = dict(zip(session.layouts["target"].labels, session.statistics["target"].matrix[0], strict=True))
    assert (first["min"], first["max"]) == (0, 2)
    found = {one.rule for one in examine(session).findings}
    assert not found & {"wrong-loss", "label-encoding"}
