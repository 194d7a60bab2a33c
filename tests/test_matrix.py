"""However a model is trained, on whichever backend: its steps are recorded truly, and it trains as it would alone.

The truth is a twin of the model that Keras trains batch by batch with `train_on_batch`, its metrics reset before
each: what Keras reports is then the batch's own value. With plain SGD, how far the weights move tells the gradient;
where another optimizer moves them, a third model takes each step from the twin's state with plain SGD.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from client_callback import MonitorCallback
from client_callback.wire import protocol
from client_callback.wire.recording import JournalReader
from tests.matrix_cells import BACKEND, CELLS, EPOCHS, RATE, STEPS, Cell, X, Y, classification
from tests.recorded import layout, of_kind, samples, series

# Compiling on torch takes a C++ compiler a minute where nothing is cached.
pytestmark = [pytest.mark.every_backend, pytest.mark.timeout(300)]

MAX_FRAME_BYTES = 1 << 20
"""What one event, or one sampled step of several, may take in the recording, however large the model."""
CPP = shutil.which("g++") or shutil.which("clang++")


@dataclass(frozen=True)
class Trained:
    """One cell, trained three times: watched, alone, and batch by batch."""

    cell: Cell
    recording: Path
    histories: list[dict[str, list[float]]]
    """Watched, alone."""
    variables: list[list[np.ndarray]]
    """Of the model and its optimizer at the end: watched, alone."""
    truth: dict[str, np.ndarray]
    """Series → float64[STEPS], from the twin."""
    moved: np.ndarray
    """float64[STEPS]: how far the trainable variables moved in each step."""
    gradients: np.ndarray
    """float64[STEPS]: the gradient's norm. NaN: it overflowed."""


def cell_parameters() -> list[Any]:
    return [pytest.param(cell, id=name) for name, cell in CELLS.items() if BACKEND in cell.backends]


@pytest.fixture(scope="module", params=cell_parameters())
def trained(request, tmp_path_factory) -> Trained:
    cell = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSTUCK_HOME", str(tmp_path_factory.mktemp("home")))
        watched, callback = cell.build(), MonitorCallback("cell", statistics_every=cell.statistics_every)
        histories = [fit(watched, cell, [callback])]
    alone = cell.build()
    first = state(alone)
    histories.append(fit(alone, cell, []))
    variables = [state(watched), state(alone)]
    twin = cell.build(steps_per_execution=1) if "steps_per_execution" in cell.options else alone
    restore(twin, first)
    return Trained(cell, callback.recording, histories, variables, *train_batch_by_batch(twin, cell))


def fit(model: keras.Model, cell: Cell, callbacks: list[keras.callbacks.Callback]) -> dict[str, list[float]]:
    arguments = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, **cell.feed().fit}
    return model.fit(**arguments, callbacks=callbacks).history


def train_batch_by_batch(
    model: keras.Model, cell: Cell
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(series → its values, how far the weights moved, the gradients' norms), one number per step."""
    by_sgd = None if cell.plain_sgd else cell.build(optimizer=keras.optimizers.SGD(RATE))
    rows, moved, gradients = [], [], []
    for batch in cell.feed().batches * EPOCHS:
        rates = {"learning_rate": float(model.optimizer.learning_rate)}
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            rates["loss_scale"] = float(model.optimizer.dynamic_scale)
        if by_sgd is not None:
            restore(by_sgd, [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables])
            gradients.append(train_step(by_sgd, batch)[1] / RATE)
        logs, distance = train_step(model, batch)
        rows.append({**logs, **rates})
        moved.append(distance)
        if by_sgd is None:
            gradients.append(distance / rates["learning_rate"] if distance else np.nan)
    truth = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    return truth, np.array(moved), np.array(gradients)


def train_step(model: keras.Model, batch: dict[str, Any]) -> tuple[dict[str, float], float]:
    """(what Keras reports of the batch, how far the weights moved)."""
    before = trainable_weights(model)
    model.reset_metrics()
    logs = model.train_on_batch(**batch, return_dict=True)
    return logs, float(np.linalg.norm(trainable_weights(model) - before))


def trainable_weights(model: keras.Model) -> np.ndarray:
    """All in one, float64[n]."""
    values = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    return np.concatenate([np.ravel(value) for value in values]).astype(np.float64)


def state(model: keras.Model) -> list[np.ndarray]:
    """Of everything that training changes; what is random and the optimizer included."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def restore(model: keras.Model, values: list[np.ndarray]) -> None:
    """Sets the first of `state`'s variables."""
    for variable, value in zip([*model.variables, *model.optimizer.variables], values, strict=False):
        variable.assign(value)


def test_each_step_is_recorded_with_its_own_loss_metrics_and_learning_rate(trained):
    recorded = series(trained.recording)
    assert set(recorded) == {*trained.truth, "grad_norm"}
    for name, values in trained.truth.items():
        np.testing.assert_allclose(recorded[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    kinds = {one.name: one.kind for one in layout(trained.recording).series}
    assert {kinds[name] for name in recorded} == {"batch"}


def test_the_gradient_norm_of_each_step_is_that_of_its_batch_whatever_the_loss_scale(trained):
    norms = series(trained.recording)["grad_norm"]
    finite = np.isfinite(trained.gradients)
    assert len(norms) == STEPS
    np.testing.assert_allclose(norms[finite], trained.gradients[finite], rtol=1e-3)
    assert not np.isfinite(norms[~finite]).any()


def test_statistics_come_from_the_steps_asked_for_and_agree_with_the_weights_moves_and_gradients(trained):
    every = trained.cell.statistics_every
    if not every:
        assert of_kind(trained.recording, protocol.Samples) == []
        return
    steps, tables = samples(trained.recording)
    assert list(steps) == list(range(0, STEPS, every))
    finite = np.isfinite(trained.gradients[steps])
    gradients = np.linalg.norm(tables["gradient_norm"].astype(np.float64), axis=1)
    np.testing.assert_allclose(gradients[finite], trained.gradients[steps][finite], rtol=1e-3)
    updates = np.linalg.norm(tables["update_norm"].astype(np.float64), axis=1)
    np.testing.assert_allclose(updates, trained.moved[steps], rtol=1e-3, atol=1e-6)


def test_weights_and_history_are_bit_identical_to_those_without_the_callback(trained):
    watched, alone = trained.histories
    assert watched == alone
    for ours, theirs in zip(*trained.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_problem_is_reported_and_the_run_finishes(trained):
    assert [problem.what for problem in of_kind(trained.recording, protocol.Problem)] == []
    assert [ended.outcome for ended in of_kind(trained.recording, protocol.RunEnded)] == ["finished"]


class ManyWeights(layers.Layer):
    """Scales its inputs, float32 `[N, 2]`, by the sum of many small variables."""

    def build(self, shape):
        self.many = [
            self.add_weight(shape=(2,), name=f"part_{number}", initializer="ones") for number in range(2_000)
        ]

    def call(self, inputs):
        rows = [keras.ops.reshape(one, (1, 2)) for one in self.many]
        return inputs * keras.ops.mean(keras.ops.concatenate(rows), axis=0)


def watched_fit(model: keras.Model, x: np.ndarray, y: Any, batch_size: int = 4) -> Path:
    callback = MonitorCallback("large", statistics_every=2)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[callback])
    assert [problem.what for problem in of_kind(callback.recording, protocol.Problem)] == []
    assert list(samples(callback.recording)[0]) == [0, 2]
    return callback.recording


def assert_frames_stay_small(recording: Path) -> None:
    reader = JournalReader(recording)
    try:
        for frame in reader.frames():
            event = protocol.decode_event(frame.payload)
            sampled = len(protocol.sample_steps(event)) if isinstance(event, protocol.Samples) else 1
            assert len(frame.payload) / sampled < MAX_FRAME_BYTES, type(event).__name__
    finally:
        reader.close()


def what_is_told(recording: Path) -> str:
    """Of what is missing, pooled or cut; numbers without separators."""
    shown = layout(recording)
    return " ".join([*shown.missing, *(one.doc for one in shown.statistics)]).replace(",", "")


@pytest.mark.skipif(BACKEND != "torch", reason="it is about torch.compile")
@pytest.mark.skipif(not CPP, reason="torch.compile needs a C++ compiler")
def test_what_torch_compiles_trains_as_without_the_callback_and_its_logs_are_recorded_with_the_reason():
    cell = Cell(options={"jit_compile": True})
    watched, alone, callback = cell.build(), cell.build(), MonitorCallback("compiled")
    with pytest.warns(RuntimeWarning, match="torch.compile"):
        history = fit(watched, cell, [callback])
    assert fit(alone, cell, []) == history
    for one, other in zip(state(watched), state(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(series(callback.recording)["loss"]) == STEPS
    assert "torch.compile" in of_kind(callback.recording, protocol.Problem)[0].what


@pytest.mark.skipif(BACKEND != "torch", reason="Keras alone compiles it for 20 s or more here")
def test_a_model_of_two_thousand_variables_is_recorded_in_small_frames_and_says_what_it_pools():
    model = keras.Sequential([keras.Input((2,)), ManyWeights()])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    recording = watched_fit(model, x, 3 * x)
    assert_frames_stay_small(recording)
    of_variables = [one for one in layout(recording).statistics if one.of == "variables"]
    assert of_variables
    complete = all(len(one.labels) == 2_000 for one in of_variables)
    assert complete or "2000" in what_is_told(recording)


def test_fifty_thousand_classes_are_recorded_in_small_frames_and_what_is_cut_is_said():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(50_000)])
    model.compile(**classification())
    recording = watched_fit(model, X[:16], Y[:16] + 49_000)
    assert_frames_stay_small(recording)
    of_classes = [one for one in layout(recording).statistics if one.of == "classes"]
    complete = of_classes and all(len(one.labels) == 50_000 for one in of_classes)
    assert complete or "50000" in what_is_told(recording)


def test_ten_outputs_have_ten_losses_of_each_batch():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    outputs = [layers.Dense(1, name=f"output{number}")(inputs) for number in range(10)]
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), ["mse"] * 10)
    targets = [X[:16, :1] * number for number in range(10)]
    recording = watched_fit(model, X[:16], targets)
    assert_frames_stay_small(recording)
    recorded = series(recording)
    for number, predicted in enumerate(model.predict(X[:16], verbose=0)):
        squares = (predicted - targets[number]) ** 2
        expected = squares.reshape(4, 4).mean(axis=1)
        np.testing.assert_allclose(recorded[f"output{number}_loss"], expected, rtol=1e-5)
    total = sum(recorded[f"output{number}_loss"] for number in range(10))
    np.testing.assert_allclose(recorded["loss"], total, rtol=1e-5)
