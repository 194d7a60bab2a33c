"""The statistics of sampled steps are those that numpy computes from the same weights and batches."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from client_callback.instrument.statistics import ACTIVATION_LABELS, MAGNITUDE_LABELS
from client_callback.wire import protocol
from tests import models
from tests.recorded import layout, of_kind, samples

pytestmark = pytest.mark.every_backend

RATE, STEPS = 0.05, 20
DEAD = slice(0, 6)
"""Units that no input reaches: their weights are 0 and their biases below it."""


class Forward(NamedTuple):
    """One step of the network by hand, float64."""

    hidden: np.ndarray
    probabilities: np.ndarray
    gradients: list[np.ndarray]


def by_hand(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> Forward:
    first, first_bias, second, second_bias = (weight.astype(np.float64) for weight in weights)
    before = x @ first + first_bias
    hidden = np.maximum(before, 0)
    scores = hidden @ second + second_bias
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    of_scores = (probabilities - np.eye(3)[y]) / len(x)
    of_before = (of_scores @ second.T) * (before > 0)
    gradients = [x.T @ of_before, of_before.sum(axis=0), hidden.T @ of_scores, of_scores.sum(axis=0)]
    return Forward(hidden, probabilities, gradients)


class Weights(keras.callbacks.Callback):
    """Remembers those before each step."""

    def __init__(self):
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append([np.array(weight) for weight in self.model.get_weights()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(recording, the weights before each step and at the end, batches)."""
    x = models.inputs(examples=models.BATCH * STEPS)
    y = models.labels(x)
    model = models.plain_mlp()
    kernel, bias, *others = model.get_weights()
    kernel[:, DEAD], bias[DEAD] = 0.0, -1.0
    model.set_weights([kernel, bias, *others])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    remember = Weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSTUCK_HOME", str(tmp_path_factory.mktemp("home")))
        callback = MonitorCallback("samples", statistics_every=1)
        model.fit(x, y, batch_size=models.BATCH, shuffle=False, verbose=0, callbacks=[remember, callback])
    seen = [*remember.seen, [np.array(weight) for weight in model.get_weights()]]
    batches = [
        (x[at : at + models.BATCH], y[at : at + models.BATCH]) for at in range(0, len(x), models.BATCH)
    ]
    return callback.recording, seen, batches


@pytest.fixture(scope="module")
def tables(trained) -> dict[str, np.ndarray]:
    steps, found = samples(trained[0])
    assert list(steps) == list(range(STEPS))
    return found


@pytest.fixture(scope="module")
def expected(trained) -> list[Forward]:
    _, weights, batches = trained
    return [by_hand(before, x, y) for before, (x, y) in zip(weights, batches, strict=False)]


def test_nothing_is_missing(trained):
    assert layout(trained[0]).missing == ()
    assert not of_kind(trained[0], protocol.Problem)


def test_every_table_is_as_wide_as_its_layout_says(trained, tables):
    widths = {statistic.name: statistic.width for statistic in layout(trained[0]).statistics}
    assert {name: table.shape[1] for name, table in tables.items()} == widths


def test_gradients_are_described(tables, expected):
    norms = [[np.linalg.norm(g) for g in step.gradients] for step in expected]
    np.testing.assert_allclose(tables["gradient_norm"], norms, rtol=1e-4, atol=1e-7)
    largest = [[np.abs(g).max() for g in step.gradients] for step in expected]
    np.testing.assert_allclose(tables["gradient_max_abs"], largest, rtol=1e-4, atol=1e-7)


def test_units_that_get_no_gradient_are_counted(tables, expected):
    shares = [[((step.gradients[0] == 0).all(axis=0)).mean(), 0.0] for step in expected]
    assert min(share for share, _ in shares) >= 6 / 24
    np.testing.assert_allclose(tables["dead_units"], shares, atol=1e-6)


def test_gradient_histograms_count_orders_of_magnitude(tables, expected):
    rows = tables["gradient_histogram"].reshape(STEPS, 2, len(MAGNITUDE_LABELS))
    for found, step in zip(rows, expected, strict=True):
        for layer, gradients in zip(found, (step.gradients[:2], step.gradients[2:]), strict=True):
            entries = np.concatenate([g.ravel() for g in gradients])
            assert layer.sum() == len(entries)
            assert layer[0] == (entries == 0).sum()
            bins = np.clip((np.floor(np.log2(np.abs(entries[entries != 0]))) + 40) // 2, 0, 27).astype(int)
            counts = np.bincount(bins, minlength=len(MAGNITUDE_LABELS) - 2)
            # An entry on an edge may fall to either side of it in float32.
            assert np.abs(layer[1:-1] - counts).sum() <= 2


def test_successive_gradients_are_compared(tables, expected):
    flat = [np.concatenate([g.ravel() for g in step.gradients]) for step in expected]
    for step in range(1, STEPS):
        a, b = flat[step - 1], flat[step]
        signal, noise = a @ b, models.BATCH / 2 * ((a - b) ** 2).sum()
        cosine = signal / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(
            tables["gradient_pair"][step][:3], [cosine, signal, noise], rtol=1e-3, atol=1e-6
        )
    assert np.isnan(tables["gradient_pair"][0][0])


def test_updates_are_those_the_weights_made(trained, tables):
    weights = trained[1]
    for step in range(STEPS):
        pairs = list(zip(weights[step], weights[step + 1], strict=True))
        moved = [np.linalg.norm(after - before) for before, after in pairs]
        norms = [np.linalg.norm(after) for _, after in pairs]
        np.testing.assert_allclose(tables["update_norm"][step], moved, rtol=2e-3, atol=1e-7)
        np.testing.assert_allclose(tables["weight_norm"][step], norms, rtol=1e-5)
        ratios = [m / n if n else np.nan for m, n in zip(moved, norms, strict=True)]
        np.testing.assert_allclose(tables["update_ratio"][step], ratios, rtol=2e-3, atol=1e-7)


def test_activations_are_those_of_the_step_itself(tables, expected):
    rows = tables["activations"].reshape(STEPS, 2, len(ACTIVATION_LABELS))
    for found, step in zip(rows[:, 0], expected, strict=True):
        hidden = step.hidden
        wanted = [(hidden == 0).mean(), np.nan, hidden.mean(), hidden.std(), (hidden == 0).all(axis=0).sum()]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_predictions_are_held_against_labels(trained, tables, expected):
    for step, (_, y) in enumerate(trained[2]):
        chosen = expected[step].probabilities.argmax(axis=1)
        confusion = np.zeros((3, 3))
        np.add.at(confusion, (y, chosen), 1)
        np.testing.assert_array_equal(tables["confusion"][step].reshape(3, 3), confusion)
        np.testing.assert_array_equal(tables["predicted_counts"][step], confusion.sum(axis=0))
        np.testing.assert_array_equal(tables["target_counts"][step], confusion.sum(axis=1))


def test_how_far_predictions_differ_is_measured(trained, tables):
    kernels = [[weight.astype(np.float64) for weight in before] for before in trained[1]]
    for step, (x, _) in enumerate(trained[2]):
        first, first_bias, second, second_bias = kernels[step]
        scores = np.maximum(x @ first + first_bias, 0) @ second + second_bias
        between = scores.std(axis=0).mean()
        wanted = [between, np.abs(scores).mean(), scores.min(), scores.max(), scores.sum(axis=1).mean()]
        np.testing.assert_allclose(tables["prediction_spread"][step], wanted, rtol=1e-4, atol=1e-6)


def test_targets_are_described(trained, tables):
    for step, (_, y) in enumerate(trained[2]):
        wanted = [y.mean(), y.std(), y.min(), y.max(), 0, 1, np.nan]
        np.testing.assert_allclose(tables["target"][step], wanted, rtol=1e-5, atol=1e-6)


def test_inputs_are_described_feature_by_feature(trained, tables):
    for step, (x, _) in enumerate(trained[2]):
        found = tables["input_features"][step].reshape(12, 5)
        wanted = np.stack([x.mean(0), x.std(0), x.min(0), x.max(0), np.zeros(12)], axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert len({tuple(row[:2]) for row in tables["fingerprint"].tolist()}) == STEPS
