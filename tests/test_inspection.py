"""What a run says of its data: seen from the side, true, and at no cost to the training."""

from __future__ import annotations

import gc
import time
import weakref

import keras
import numpy as np
import pytest
from keras import layers
from scipy.spatial.distance import cdist

from client_callback import MonitorCallback, Run
from client_callback.inspection import Inspection
from client_callback.inspection.arguments import FitArguments
from client_callback.inspection.copies import MAX_EXAMPLES, MAX_LABELS, evenly
from client_callback.inspection.signal_probe import RIDGES
from client_callback.wire import protocol
from tests.matrix_cells import Batches
from tests.recorded import events, of_kind

pytestmark = pytest.mark.every_backend

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(3)
X = (RANDOM.normal(size=(300, 4)) * [1, 10, 0.1, 1] + [0, 500, 0, 0]).astype("float32")
CLASSES = (X[:, 0] > 0).astype("int64") + (X[:, 3] > 1)


def looked_at(x: object, y: object = None, **given: object) -> protocol.DataDescribed:
    """As described without a training."""
    arguments = {
        "sample_weight": None,
        "class_weight": {},
        "shuffle": True,
        "batch_size": 32,
        "validated": False,
    }
    return Inspection(FitArguments(x=x, y=y, **{**arguments, **given})).described()


def told(x: object, y: object = None, **options: object) -> protocol.DataDescribed:
    """By a real fit, which must have told it once and before its end."""
    inputs = {name: keras.Input((4,), name=name) for name in x} if isinstance(x, dict) else keras.Input((4,))
    joined = layers.Concatenate()(list(inputs.values())) if isinstance(inputs, dict) else inputs
    model = keras.Model(inputs, layers.Dense(3)(joined))
    model.compile(keras.optimizers.SGD(1e-6), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = MonitorCallback("data", statistics_every=0)
    model.fit(x, y, verbose=0, callbacks=[callback], **options)
    assert not of_kind(callback.recording, protocol.Problem)
    (event,) = of_kind(callback.recording, protocol.DataDescribed)
    assert isinstance(events(callback.recording)[-1], protocol.RunEnded)
    return event


def test_arrays_are_described_as_numpy_describes_them():
    data = told(X, CLASSES, batch_size=50, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, shuffle=False)
    assert (data.source, data.examples, data.batch_size, data.shuffled) == ("arrays", 300, 50, False)
    assert (data.class_weight, data.weighted, data.validated) == (
        {"0": 1.0, "1": 2.0, "2": 0.5},
        False,
        False,
    )
    (found,) = data.inputs
    exact = X.astype(np.float64)
    assert (found.dtype, found.shape, found.features, found.constant_features) == ("float32", (4,), 4, 0)
    values = [
        found.values.mean,
        found.values.std,
        found.values.low,
        found.values.high,
        found.values.non_finite,
    ]
    expected = [exact.mean(), exact.std(), exact.min(), exact.max(), 0]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(
        [found.std_low, found.std_high], np.sort(exact.std(axis=0))[[0, -1]], rtol=1e-6
    )
    np.testing.assert_allclose(
        found.offset, (np.abs(exact.mean(axis=0)) / exact.std(axis=0)).max(), rtol=1e-6
    )
    low, middle, high = np.quantile(exact, [0.1, 0.5, 0.9], axis=0)
    distances = (np.abs(exact - middle) / (high - low)).max(axis=0)
    np.testing.assert_allclose(found.farthest, distances.max(), rtol=1e-6)
    assert found.farthest_feature == distances.argmax()
    assert (found.non_finite_feature, found.repeated) == (None, 0.0)
    (target,) = data.targets
    assert (target.dtype, target.shape, target.integral, target.one_hot) == ("int64", (), True, False)
    assert target.classes == {str(c): int(n) for c, n in enumerate(np.bincount(CLASSES))}
    assert target.in_order == pytest.approx((CLASSES[1:] == CLASSES[:-1]).mean())


def left_out(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Predictions of each example by a kernel ridge regression that was fitted to all others; degrees of freedom."""
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    distances = cdist(rows, rows, "sqeuclidean")
    kernel = np.exp(-distances / np.median(distances[distances > 0]))
    mean, found = values.mean(axis=0), []
    for ridge in RIDGES:
        predicted = np.empty_like(values)
        for one in range(len(rows)):
            others = np.delete(np.arange(len(rows)), one)
            model = kernel_ridge.KernelRidge(alpha=ridge, kernel="precomputed")
            model.fit(kernel[np.ix_(others, others)], values[others] - mean)
            predicted[one] = model.predict(kernel[one, others][None])[0] + mean
        found.append(predicted)
    errors = [((predicted - values) ** 2).sum() for predicted in found]
    best, of_kernel = int(np.argmin(errors)), np.linalg.eigvalsh(kernel)
    return found[best], float((of_kernel / (of_kernel + RIDGES[best])).sum())


def test_classes_are_told_from_the_other_examples_as_one_model_for_each_tells_them():
    few, classes = X[:120], CLASSES[:120]
    signal = looked_at(few, classes).signal
    predicted, freedom = left_out(few.astype(np.float64), np.eye(3)[classes])
    expected = predicted.argmax(axis=1) == classes
    assert signal.freedom == pytest.approx(freedom, rel=1e-3)
    assert (signal.kind, signal.model) == ("accuracy", "kernel ridge regression")
    assert signal.score == pytest.approx(expected.mean(), abs=1 / 120)
    assert signal.chance == pytest.approx(np.bincount(classes).max() / 120)
    assert signal.score > signal.chance + 0.1
    assert signal.examples == 120


def test_values_are_told_from_the_other_examples_as_one_model_for_each_tells_them():
    few = X[:120].astype(np.float64)
    values = np.stack([few[:, 0] * 3 + few[:, 3], few[:, 1]], axis=1)
    signal = looked_at(few, values).signal
    errors = values - left_out(few, values)[0]
    expected = 1 - (errors**2).sum() / ((values - values.mean(axis=0)) ** 2).sum()
    assert (signal.kind, signal.chance) == ("r2", 0.0)
    assert signal.score == pytest.approx(expected, abs=1e-4)
    assert signal.score > 0.9


@pytest.mark.parametrize(
    ("loss", "kind"), [("poisson", "r2"), ("sparse_categorical_crossentropy", "accuracy")]
)
def test_whole_numbers_are_probed_for_what_the_loss_takes_them_for(loss: str, kind: str):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "softmax") if kind == "accuracy" else layers.Dense(1)]
    )
    model.compile("sgd", loss)
    callback = MonitorCallback("counts", statistics_every=0)
    model.fit(X, CLASSES, verbose=0, callbacks=[callback])
    (data,) = of_kind(callback.recording, protocol.DataDescribed)
    assert data.signal.kind == kind and len(data.targets[0].classes) == 3


def test_the_size_of_values_makes_no_difference_to_the_probe():
    values = X[:, 0] * 3 + X[:, 3].astype(np.float64)
    plain, huge = looked_at(X, values).signal, looked_at(X, 1e60 * values).signal
    assert huge.score == pytest.approx(plain.score, abs=1e-4) and plain.score > 0.9


def test_examples_that_are_all_alike_but_one_are_no_trouble_to_the_probe():
    x = np.zeros((100, 3))
    x[7] = 1.0
    assert looked_at(x, np.arange(100.0)).signal.score < 0.01


def test_inputs_that_tell_nothing_are_told_from_those_that_do():
    noise = RANDOM.normal(size=(1_500, 8))
    labels = RANDOM.integers(0, 4, 1_500)
    nothing = looked_at(noise, labels).signal
    assert nothing.score == pytest.approx(0.25, abs=0.06)
    assert looked_at(noise, RANDOM.normal(size=1_500)).signal.score < 0.02
    assert looked_at(noise + 3 * labels[:, None], labels).signal.score > 0.9


def test_handwritten_digits_are_seen_to_be_easy():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    data = looked_at(digits.images[..., None], np.eye(10)[digits.target])
    assert data.signal.score > 0.97
    (found,), (target,) = data.inputs, data.targets
    assert (found.shape, found.features) == ((8, 8, 1), 64)
    assert found.constant_features == int((digits.data.std(axis=0) == 0).sum())
    assert (found.values.low, found.values.high) == (0.0, 16.0)
    assert (target.one_hot, target.shape, len(target.classes)) == (True, (10,), 10)
    assert sum(target.classes.values()) == len(digits.target)


def test_what_is_wrong_with_inputs_is_found():
    x = RANDOM.normal(size=(100, 5))
    x[:, 1], x[7, 3], x[9, 3], x[50, 4] = 2.0, np.nan, np.inf, 1e4
    x[10:20] = x[10]
    (found,) = looked_at(x, np.zeros(100)).inputs
    assert (found.constant_features, found.non_finite_feature) == (1, 3)
    assert found.values.non_finite == pytest.approx(2 / 500)
    assert found.values.mean == pytest.approx(np.mean(x[np.isfinite(x)]))
    assert found.values.std == pytest.approx(np.std(x[np.isfinite(x)]))
    assert found.farthest_feature == 4
    assert found.farthest > 1_000
    assert found.repeated == pytest.approx(0.1)


def test_a_small_spread_about_a_large_mean_is_measured():
    x = RANDOM.normal(size=(500, 2)) + np.array([1e9, 0])
    (found,) = looked_at(x).inputs
    assert found.std_high == pytest.approx(x.std(axis=0).max(), rel=1e-5)
    assert found.offset == pytest.approx(1e9 / x[:, 0].std(), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(200) % 2 * 255, {"0": 100, "255": 100}),
        (np.where(np.arange(200) < 50, -1.0, 1.0), {"-1": 50, "1": 150}),
        (np.repeat(np.arange(1, 21), 10)[:, None], {str(label): 10 for label in range(1, 21)}),
        (np.eye(3, dtype=bool)[np.arange(90) % 3], {"0": 30, "1": 30, "2": 30}),
        (RANDOM.integers(25, 347, 400), {}),
        (RANDOM.normal(size=200), {}),
        (np.where(np.arange(200) < 1, np.nan, 1.0), {}),
        (np.arange(200) % 2 / 2, {}),
        (np.ones((50, 4)) * [1, 0, 1, 0], {}),
        (np.arange(300).reshape(100, 3) % 2, {}),
    ],
    ids=[
        "times 255",
        "signed",
        "from 1",
        "one-hot",
        "ages",
        "numbers",
        "nan",
        "halves",
        "two hot",
        "several",
    ],
)
def test_classes_are_told_from_numbers(labels, classes):
    (target,) = looked_at(np.zeros((len(labels), 1)), labels).targets
    assert target.classes == classes
    assert (target.in_order is None) == (not classes)


def test_data_sorted_by_class_show_and_classes_taking_turns_do_not():
    x = RANDOM.normal(size=(5_000, 2))
    (sorted_ones,) = looked_at(x, np.repeat(np.arange(10), 500)).targets
    (turns,) = looked_at(x, np.arange(5_000) % 10).targets
    assert sorted_ones.in_order == pytest.approx(1 - 9 / 4_999)
    assert turns.in_order == 0.0
    assert len(sorted_ones.classes) == len(turns.classes) == 10


def test_of_many_examples_evenly_spaced_ones_are_taken_whatever_their_order():
    places = evenly(1_000_000, MAX_LABELS)
    assert len(places) == MAX_LABELS
    assert (np.diff(places) > 0).all()
    assert np.abs(places - np.arange(MAX_LABELS) * 10).max() < 10
    assert np.abs(np.bincount(places % 10) / MAX_LABELS - 0.1).max() < 0.01
    x = np.arange(400_000, dtype="float32")[:, None]
    data = looked_at(x, (np.arange(400_000) >= 300_000).astype(int))
    (found,), (target,) = data.inputs, data.targets
    assert sum(target.classes.values()) == MAX_LABELS
    assert target.classes["1"] == pytest.approx(MAX_LABELS / 4, rel=0.01)
    assert found.values.mean == pytest.approx(x.mean(), rel=0.01)
    assert data.examples == 400_000 > MAX_EXAMPLES


def as_tensor(values: np.ndarray) -> object:
    return keras.ops.convert_to_tensor(values)


def test_tensors_tell_the_same_as_arrays():
    array, tensor = looked_at(X, CLASSES), looked_at(as_tensor(X), as_tensor(CLASSES.astype("int32")))
    assert tensor.inputs == array.inputs
    assert tensor.signal == array.signal
    assert tensor.targets[0].classes == array.targets[0].classes
    assert told(as_tensor(X), as_tensor(CLASSES.astype("int32")), shuffle=False).inputs == array.inputs


def test_several_inputs_are_described_in_kerass_order():
    data = told({"b": X, "a": X * 100}, CLASSES)
    assert [found.values.std for found in data.inputs] == [
        pytest.approx((X * 100).std(), rel=1e-4),
        pytest.approx(X.std(), rel=1e-4),
    ]
    assert data.signal.examples == 300


def test_the_part_that_is_trained_on_is_described_not_the_split_off_one():
    late = np.arange(300) >= 200
    data = told(X + 1e6 * late[:, None], np.where(late, 2, CLASSES % 2), validation_split=1 / 3)
    assert (data.examples, data.validated) == (200, True)
    assert data.inputs[0].values.high < 1e4
    assert set(data.targets[0].classes) == {"0", "1"}


def test_weights_and_keras_own_batch_size_are_told():
    data = told(X, CLASSES, sample_weight=np.ones(300), validation_data=(X, CLASSES))
    assert (data.weighted, data.validated, data.batch_size, data.shuffled) == (True, True, 32, True)


def test_of_a_generator_only_what_it_is_called_is_known_and_it_is_not_drawn_from():
    def batches():
        """As many as training takes: were one drawn for another purpose, it would run out of data and warn."""
        for _ in range(3):
            yield X[:10], CLASSES[:10]

    data = told(batches(), steps_per_epoch=3, shuffle=False)
    assert data == protocol.DataDescribed(source="generator", step=data.step, time=data.time)


def test_a_dataset_class_of_the_users_is_not_asked():
    asked = []

    class Watched(Batches):
        def __getattribute__(self, name):
            asked.append(name)
            return super().__getattribute__(name)

    data = Watched()
    asked.clear()
    found = looked_at(data, batch_size=None)
    assert (found.source, found.examples, found.shuffled, found.inputs) == ("Watched", None, None, ())
    assert set(asked) <= {"shape", "element_spec", "__class__", "__dict__"}


@pytest.mark.skipif(BACKEND == "torch", reason="TensorFlow is not there")
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_of_tf_data_the_batches_and_whether_it_shuffles_are_known():
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices((X, CLASSES))
    cases = {
        (300, 25, False): whole.batch(25).prefetch(2),
        (300, 25, True): whole.shuffle(100).batch(25).map(lambda x, y: (x, y)),
        (300, 20, False): whole.shuffle(300, reshuffle_each_iteration=False).batch(20),
        (300, 10, False): whole.shuffle(300).cache().batch(10),
        (None, 30, None): tf.data.Dataset.from_generator(
            lambda: zip(X, CLASSES, strict=True),
            output_signature=(tf.TensorSpec((4,)), tf.TensorSpec((), tf.int64)),
        ).batch(30),
    }
    for (examples, size, shuffled), dataset in cases.items():
        data = told(dataset, shuffle=False)
        assert data.source == "tf.data"
        assert (data.examples, data.batch_size, data.shuffled) == (examples, size, shuffled)
        assert (data.inputs, data.targets, data.signal) == ((), (), None)


@pytest.mark.skipif(BACKEND != "torch", reason="only there is torch")
def test_of_a_data_loader_the_batches_and_whether_it_shuffles_are_known():
    from torch.utils.data import DataLoader, TensorDataset

    whole = TensorDataset(as_tensor(X), as_tensor(CLASSES))
    for shuffled in (False, True):
        data = told(DataLoader(whole, batch_size=25, shuffle=shuffled), shuffle=False)
        assert (data.source, data.examples, data.batch_size) == ("DataLoader", 300, 25)
        assert data.shuffled is shuffled


def test_texts_have_a_place_among_the_inputs_but_no_numbers():
    data = looked_at([np.array(["a", "b"] * 20), np.arange(40.0)], np.arange(40) % 2)
    assert [found.features for found in data.inputs] == [0, 1]
    assert np.isnan(data.inputs[0].values.mean)
    assert data.signal.score == 0.0


def test_integers_truth_values_and_half_floats_are_numbers_too():
    bits = RANDOM.integers(0, 2, (100, 3))
    expected = looked_at(bits.astype(np.float64), bits[:, 0]).inputs[0].values
    for kind in ("bool", "uint8", "int16", "int64", "float16"):
        assert looked_at(bits.astype(kind), bits[:, 0]).inputs[0].values == expected


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((1, 3)), np.zeros(1)),
        (np.full((30, 3), np.nan), np.zeros(30)),
        (np.zeros((30, 3)), np.arange(30) % 2),
        (np.full((30, 2), np.inf), np.full(30, np.nan)),
        (np.zeros((30, 0)), np.zeros((30, 0))),
        (np.zeros(30), np.array([str(number) for number in range(30)])),
        (RANDOM.normal(size=(40, 2)) * 1e200, RANDOM.normal(size=40) * 1e200),
    ],
    ids=["one example", "nan", "constant", "infinite", "no features", "texts", "huge"],
)
def test_degenerate_data_are_described_all_the_same(x, y):
    with np.errstate(all="raise", under="ignore"):
        data = looked_at(x, y)
    assert data.signal is None or np.isfinite(data.signal.score)
    protocol.decode_event(protocol.encode(data))


def test_nothing_of_the_users_arrays_is_kept():
    x, y = X.copy(), CLASSES.copy()
    alive = [weakref.ref(x), weakref.ref(y)]
    inspection = Inspection(
        FitArguments(
            x=x, y=y, sample_weight=None, class_weight={}, shuffle=True, batch_size=1, validated=False
        )
    )
    expected = inspection.described()
    x[:], y[:] = 0, 0
    assert inspection.described() == expected
    del x, y
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_what_cannot_be_described_is_told_and_training_goes_on(monkeypatch):
    def broken(self):
        raise RuntimeError("cannot be described")

    monkeypatch.setattr(Inspection, "described", broken)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = MonitorCallback("broken")
    model.fit(X, X[:, :1], verbose=0, callbacks=[callback])
    (problem,) = of_kind(callback.recording, protocol.Problem)
    assert "cannot be described" in problem.what
    assert of_kind(callback.recording, protocol.RunEnded)[0].outcome == "finished"


def test_a_training_that_dies_at_once_has_told_its_data():
    class Dies(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = MonitorCallback("dies")
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, X[:, :1], verbose=0, callbacks=[callback, Dies()])
    gc.collect()  # Keras' list of callbacks, whose end tells that of the fit
    deadline = time.monotonic() + 30
    while not of_kind(callback.recording, protocol.RunEnded):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(of_kind(callback.recording, protocol.DataDescribed)) == 1


def test_a_loop_of_ones_own_tells_nothing_of_its_data():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    with Run("loop", model=model) as run:
        model.train_on_batch(X[:8], X[:8, :1])
        run.log()
    assert not of_kind(run.recording, protocol.DataDescribed)
