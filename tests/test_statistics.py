"""The maths of the sampled statistics against numpy in float64, plain and compiled, on whatever backend Keras has."""

from __future__ import annotations

import functools
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from client_callback.instrument import statistics

pytestmark = pytest.mark.every_backend

FLOATS = ["float32", "float16", "bfloat16"]
RANDOM = np.random.default_rng(0)


def results(function, *arrays, batch=False):
    """What `function` makes of tensors: (how it was run, numpy array), for each way in which a step may run it.

    batch: also with a first axis whose length the graph does not know (TensorFlow).
    """
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    return [(way, ops.convert_to_numpy(run(*tensors))) for way, run in runs(function, tensors, batch)]


def runs(function, tensors, batch):
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            yield "eager", function
            yield "graph", tf.function(function)
            yield "XLA", tf.function(function, jit_compile=True)
            if batch:
                signature = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors]
                yield "graph, any batch", tf.function(function, input_signature=signature)
        case "jax":
            import jax

            yield "jit", jax.jit(function)
        case _:
            yield "eager", function


def check(function, *arrays, expected, batch=False, rtol=1e-5, atol=1e-6):
    for way, result in results(function, *arrays, batch=batch):
        assert result.dtype == np.float32, way
        assert result.shape == np.shape(expected), way
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol, err_msg=way)


def typed(values, dtype):
    """A tensor of a type that numpy may not have, and what it holds as float64."""
    tensor = ops.cast(ops.convert_to_tensor(np.asarray(values, np.float32)), dtype)
    return tensor, ops.convert_to_numpy(ops.cast(tensor, "float32")).astype(np.float64)


def some_gradient(*shape, dtype="float32"):
    """Entries over many orders of magnitude, a third of them exactly zero."""
    values = RANDOM.normal(size=shape) * 10.0 ** RANDOM.uniform(-6, 2, size=shape)
    return typed(np.where(RANDOM.random(shape) < 1 / 3, 0.0, values), dtype)


# ── Gradients ───────────────────────────────────────────────────────────────────────────────────────


def of_gradients(*gradients):
    return ops.stack(statistics.gradient_statistics(gradients))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradients_four_numbers_and_norm_equal_numpys(dtype):
    tensor, values = some_gradient(37, 11, dtype=dtype)
    expected = [
        np.linalg.norm(values),
        np.abs(values).sum() / 500,
        np.abs(values).max(),
        1 - (values != 0).sum() / 500,
        0,
    ]
    check(
        lambda g: ops.concatenate([statistics.norm(g)[None], of_gradients((g, 500))[:, 0]]),
        tensor,
        expected=expected,
    )


def test_several_gradients_are_described_at_once():
    first, second = some_gradient(5, 7)[0], some_gradient(3)[0]
    check(
        lambda a, b: of_gradients((a, 35), (b, 3)),
        first,
        second,
        expected=np.concatenate([of_gradients((first, 35)), of_gradients((second, 3))], axis=1),
    )


@pytest.mark.parametrize(("bad", "counted"), [([np.nan], 1), ([np.inf], 1), ([np.nan, -np.inf], 2)], ids=str)
def test_mean_and_largest_entry_say_that_one_is_not_finite(bad, counted):
    values = np.array([*bad, 1.0, 0.0, 2.0], np.float32)
    end = np.nan if np.isnan(bad).any() else np.inf
    check(
        lambda g: of_gradients((g, values.size))[:, 0],
        values,
        expected=[end, end, 1 / values.size, counted],
    )


def test_non_finite_gradient_entries_are_counted_one_by_one_in_a_large_gradient():
    values = np.ones(2**24 + 3, np.float32)
    values[[5, 77, -1]] = np.nan, np.inf, -np.inf
    counted = of_gradients((ops.convert_to_tensor(values), values.size))[3]
    assert float(counted[0]) == 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_unit_without_gradient_is_one_whose_every_entry_is_exactly_zero(dtype):
    kernel = RANDOM.normal(size=(3, 3, 4, 6))
    kernel[..., [1, 2, 3, 5]] = 0.0
    kernel[1, 2, 3, 2] = 1e-7
    kernel[0, 0, 0, 3] = np.nan
    bias = np.array([1, 0, 0, 0, 0, 0.5])
    tensors = [typed(kernel, dtype)[0], typed(bias, dtype)[0]]
    check(lambda kernel, bias: statistics.zero_units([kernel, bias]), *tensors, expected=1)
    check(lambda kernel: statistics.zero_units([kernel]), tensors[0], expected=2)
    check(lambda bias: statistics.zero_units([bias]), tensors[1], expected=4)


def reference_magnitudes(values):
    """Bins by numpy's own histogram of the logarithms."""
    finite = values[np.isfinite(values) & (values != 0)]
    exponents = np.clip(np.floor(np.log2(np.abs(finite))), *np.array(statistics.MAGNITUDE_EXPONENTS)[[0, -2]])
    bins = np.histogram(exponents, statistics.MAGNITUDE_EXPONENTS)[0]
    return [(values == 0).sum(), *bins, (~np.isfinite(values)).sum()]


@pytest.mark.parametrize("dtype", FLOATS)
def test_magnitudes_are_counted_by_order_of_magnitude(dtype):
    edges = [sign * 2.0**power for power in range(-45, 20) for sign in (1, -1)]
    tensor, values = typed([*edges, 0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, 3e38, 0.3, -700.0], dtype)
    expected = reference_magnitudes(values)
    assert len(expected) == len(statistics.MAGNITUDE_LABELS)
    check(lambda g: statistics.magnitude_histograms([(g, len(values))])[0], tensor, expected=expected)


def test_magnitudes_are_those_after_the_loss_scale_and_rows_that_are_not_there_are_zero():
    tensor, values = some_gradient(40, 3, dtype="float16")
    expected = (
        np.array(reference_magnitudes(values / 1024.0)) + np.eye(len(statistics.MAGNITUDE_LABELS))[0] * 80
    )
    check(
        lambda g, scale: statistics.magnitude_histograms([(g, 200)], scale)[0],
        tensor,
        np.float32(1024),
        expected=expected,
    )


def test_magnitudes_of_a_large_gradient_are_shares_of_a_part_of_all_its_units():
    # Every second entry only would see half of the units, which here are the ones that are zero.
    values = np.tile([0.0, 1.0], 4000).reshape(-1, 16).astype(np.float32)
    for way, result in results(lambda g: statistics.magnitude_histograms([(g, 8000)], most=4000)[0], values):
        shares = dict(zip(statistics.MAGNITUDE_LABELS, result / 8000, strict=True))
        assert sum(result) == pytest.approx(8000), way
        assert shares["zero"] == pytest.approx(0.5, abs=0.01), way
        assert shares["2^0"] == pytest.approx(0.5, abs=0.01), way


def test_magnitudes_of_several_gradients_are_counted_apart():
    (a, of_a), (b, of_b) = some_gradient(40, 3), some_gradient(7)
    expected = [reference_magnitudes(of_a), reference_magnitudes(of_b)]
    check(lambda a, b: statistics.magnitude_histograms([(a, 120), (b, 7)]), a, b, expected=expected)


def test_the_update_ratio_of_weights_that_are_zero_or_of_norms_that_are_not_finite_is_not_a_number():
    nan, inf = np.nan, np.inf
    updates = np.array([1e-3, 0.0, 1.0, 0.0, inf, nan, 1.0, 1.0, 1e30], np.float32)
    weights = np.array([2.0, 4.0, 0.0, 0.0, 1.0, 1.0, inf, nan, 1e-30], np.float32)
    expected = [5e-4, 0.0, nan, nan, nan, nan, nan, nan, nan]
    check(statistics.update_ratio, updates, weights, expected=expected)


def test_a_gradient_pairs_signal_and_noise_are_mccandlishs_estimators():
    a, b, size = RANDOM.normal(size=50) + 0.5, RANDOM.normal(size=50) + 0.5, 32
    small = (a @ a + b @ b) / 2
    big = ((a + b) / 2) @ ((a + b) / 2)
    signal = (2 * size * big - size * small) / (2 * size - size)
    noise = (small - big) / (1 / size - 1 / (2 * size))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    check(
        lambda a, b: statistics.gradient_pair(a, b, size),
        a.astype(np.float32),
        b.astype(np.float32),
        expected=[cosine, signal, noise, noise / signal],
        rtol=1e-4,
    )


def test_averaged_over_pairs_signal_and_noise_find_a_known_gradient_and_covariance():
    size, copies = 16, 2000
    true = np.tile(np.linspace(-1, 1, 20), copies)
    deviations = np.tile(np.linspace(0.5, 4, 20), copies)
    pairs = true + RANDOM.normal(size=(10, 2, true.size)) * deviations / math.sqrt(size)
    found = np.mean(
        [ops.convert_to_numpy(statistics.gradient_pair(*np.float32(pair), size)) for pair in pairs], axis=0
    )
    assert found[1] == pytest.approx(true @ true, rel=0.03)
    assert found[2] == pytest.approx((deviations**2).sum(), rel=0.03)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0], [1, 2], [np.nan, 0, 10, np.nan]),
        ([1, 0], [-1, 0], [-1, -1, 8, np.nan]),
        ([2, 1], [2, 1], [1, 5, 0, 0]),
        ([np.nan, 1], [1, 1], [np.nan] * 4),
    ],
)
def test_a_pair_without_a_signal_has_no_noise_scale(a, b, expected):
    check(
        lambda a, b: statistics.gradient_pair(a, b, 4),
        np.float16(a),
        np.float16(b),
        expected=expected,
        rtol=1e-3,
    )


# ── Activations ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("relu", "float16"),
        ("sigmoid", "float32"),
        ("tanh", "bfloat16"),
        ("hard_sigmoid", "float32"),
        ("relu6", "float32"),
        ("softmax", "float32"),
        (None, "bfloat16"),
    ],
)
def test_an_activations_numbers_equal_numpys(name, dtype):
    before = RANDOM.normal(size=(20, 5, 8)).astype(np.float32) * 8
    before[..., 3] = -100.0
    outputs = before if name is None else ops.convert_to_numpy(keras.activations.get(name)(before))
    tensor, values = typed(outputs, dtype)
    low, high = {
        "sigmoid": (0.0067, 0.9933),
        "tanh": (-0.9999, 0.9999),
        "hard_sigmoid": (0, 1),
        "relu6": (0, 6),
    }.get(name, (np.nan, np.nan))
    saturated = ((values <= low) | (values >= high)).mean() if np.isfinite(low) else np.nan
    expected = [
        (values == 0).mean(),
        saturated,
        values.mean(),
        values.std(),
        (values == 0).all(axis=(0, 1)).sum(),
    ]
    check(
        lambda outputs: statistics.activation_statistics(outputs, name),
        tensor,
        expected=expected,
        batch=True,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_sigmoid_counts_as_saturated_where_its_input_is_beyond_five():
    inputs = np.linspace(-8, 8, 1601, dtype=np.float32)[:, None]
    outputs = ops.sigmoid(inputs)
    share = ops.convert_to_numpy(statistics.activation_statistics(outputs, "sigmoid"))[1]
    assert share == pytest.approx((np.abs(inputs) >= 5).mean(), abs=2 / 1601)


def test_activations_that_are_not_finite_stay_out_of_mean_and_spread():
    values = np.array([[0.0, np.nan, 0.0], [0.0, 2.0, np.inf], [0.0, 4.0, 0.0]], np.float32)
    finite = values[np.isfinite(values)]
    expected = [5 / 9, np.nan, finite.mean(), finite.std(), 1]
    check(lambda x: statistics.activation_statistics(x, "relu"), values, expected=expected, batch=True)
    nothing = np.full((2, 2), np.nan, np.float32)
    check(
        lambda x: statistics.activation_statistics(x, None), nothing, expected=[0, np.nan, np.nan, np.nan, 0]
    )


def test_only_the_leading_examples_of_a_large_output_are_looked_at():
    outputs = np.ones((10, statistics.MAX_ACTIVATIONS // 4), np.float32)
    outputs[4:] = np.nan
    check(
        lambda x: statistics.activation_statistics(x, None),
        outputs,
        expected=[0, np.nan, 1, 0, 0],
        batch=True,
    )
    assert tuple(statistics.first_examples(outputs, 1).shape) == (1, outputs.shape[1])
    assert tuple(statistics.first_examples(np.float32(3)).shape) == ()


# ── Classes and values ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float32", "float16", "int64"])
def test_counts_equal_numpys_and_leave_out_what_is_no_class(dtype):
    values = (
        RANDOM.integers(-3, 13, size=(50, 3)) if dtype != "uint8" else RANDOM.integers(0, 13, size=(50, 3))
    )
    values = values.astype(dtype)
    numbers = values.astype(int)
    expected = np.bincount(numbers[(numbers >= 0) & (numbers < 9)], minlength=9)
    check(lambda x: statistics.counts(x, 9), values, expected=expected, batch=True)


def test_labels_that_are_not_finite_or_not_there_are_not_counted():
    labels = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1.0], np.float32)
    check(lambda x: statistics.counts(x, 2), labels, expected=[0, 1])
    check(lambda x: statistics.counts(x, 2), labels[:0], expected=[0, 0])


def test_the_confusion_table_has_true_classes_in_rows():
    true, predicted = RANDOM.integers(-1, 7, size=(2, 300))
    expected = np.zeros((6, 6))
    for row, column in zip(true, predicted, strict=True):
        if 0 <= row < 6 and 0 <= column < 6:
            expected[row, column] += 1
    arrays = true.astype("int32"), predicted.astype("int64")
    check(lambda t, p: statistics.confusion_counts(t, p, 6), *arrays, expected=expected, batch=True)
    check(statistics.number_correct, *arrays, expected=(true == predicted).sum(), batch=True)


@pytest.mark.parametrize(("classes", "spread"), [(50_000, 12), (50_000, 40_000), (7, 7)])
def test_of_many_classes_the_most_frequent_are_named(classes, spread):
    labels = (RANDOM.integers(0, spread, size=2000) ** 2 // spread).astype("int32")
    labels[:2] = -1, classes
    for way, rows in results(lambda x: statistics.top_counts(x, classes), labels, batch=True):
        assert rows.shape == (statistics.TOP_CLASSES, 2), way
        numbers = np.bincount(labels[2:], minlength=classes)
        expected = np.sort(numbers)[::-1][: statistics.TOP_CLASSES]
        np.testing.assert_array_equal(rows[:, 1], np.pad(expected, (0, 20 - len(expected))), err_msg=way)
        for number, count in rows:
            assert count == (numbers[int(number)] if number >= 0 else 0), way
        named = [number for number, _ in rows if number >= 0]
        assert len(set(named)) == len(named) == min(20, (numbers > 0).sum()), way


@pytest.mark.parametrize("dtype", FLOATS)
def test_histograms_equal_numpys(dtype):
    tensor, values = typed([*RANDOM.normal(size=500), -2.0, 2.0, 0.5, np.nan, np.inf, -np.inf, -3.0], dtype)
    finite = values[np.isfinite(values)]
    check(
        lambda x: statistics.histogram(x, -2.0, 2.0, 8), tensor, expected=np.histogram(finite, 8, (-2, 2))[0]
    )
    check(
        lambda x: ops.concatenate(statistics.moving_histogram(x, 4)),
        tensor,
        expected=[*np.histogram(finite, 4)[0], finite.min(), finite.max()],
        batch=True,
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], [0, 0, 0, 0, 0]),
        ([np.nan, np.inf], [0, 0, 0, 0, 0]),
        ([3.0, 3.0], [2, 0, 0, 3, 3]),
        ([1e30, -1e30], [1, 0, 1, -1e30, 1e30]),
    ],
    ids=str,
)
def test_a_moving_histogram_takes_any_values(values, expected):
    check(
        lambda x: ops.concatenate(statistics.moving_histogram(x, 3)),
        np.array(values, np.float32),
        expected=expected,
        batch=True,
    )


# ── Inputs ──────────────────────────────────────────────────────────────────────────────────────────


def reference_features(columns):
    """Mean, std, min, max and the count of what is not finite, of each list of entries, in float64."""
    rows = []
    for column in columns:
        finite = column[np.isfinite(column)].astype(np.float64)
        four = [finite.mean(), finite.std(), finite.min(), finite.max()] if finite.size else [np.nan] * 4
        rows.append([*four, column.size - finite.size])
    return rows


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int32"])
def test_features_are_summarised_one_by_one(dtype):
    values = RANDOM.normal(size=(30, 4, 3)) * 20 + 100
    if dtype in FLOATS:
        values[3, 0, 0], values[4, 0, 0], values[:, 1, 2], values[:, 3, 0] = np.nan, np.inf, np.nan, 0.1
        values[1, 3, 0] = -np.inf
    tensor, held = typed(values, dtype) if dtype in FLOATS else (values.astype(dtype), values.astype(dtype))
    expected = reference_features(held.reshape(30, 12).T)
    check(statistics.feature_statistics, tensor, expected=expected, batch=True, rtol=1e-5, atol=1e-5)
    check(
        statistics.input_statistics,
        tensor,
        expected=reference_features([held.ravel()])[0],
        batch=True,
        rtol=1e-5,
        atol=1e-5,
    )
    assert statistics.feature_labels(12) == tuple(str(number) for number in range(12))


def test_the_spread_of_a_feature_far_from_zero_keeps_its_digits():
    years = (200_000 + RANDOM.integers(0, 5, size=(400, 1))).astype(np.float32)
    check(
        lambda x: statistics.feature_statistics(x)[0, 1],
        years,
        expected=years.astype(np.float64).std(),
        rtol=1e-3,
    )


def test_too_many_features_are_taken_together_in_groups_of_neighbours():
    features = 2 * statistics.MAX_FEATURES + 102
    values = (RANDOM.normal(size=(6, features)) + np.arange(features) / 100).astype(np.float32)
    values[:, 0] = np.nan
    values[:, 3:6] = np.inf
    values[2, 7] = np.nan
    labels = statistics.feature_labels(features)
    assert len(labels) == 717
    assert labels[:2] == ("0–2", "3–5")
    assert labels[-1] == "2148–2149"
    groups = np.split(values, range(3, features, 3), axis=1)
    expected = reference_features([group.ravel() for group in groups])
    check(statistics.feature_statistics, values, expected=expected, batch=True, rtol=1e-4, atol=1e-5)


def test_labels_of_features_match_the_rows():
    for features in (1, 1023, 1024, 1025, 3072, 150_528):
        labels = statistics.feature_labels(features)
        assert len(labels) == len(set(labels)) <= statistics.MAX_FEATURES
    result = statistics.feature_statistics(ops.ones((2, 3072)))
    assert tuple(result.shape) == (len(statistics.feature_labels(3072)), len(statistics.FEATURE_COLUMNS))
    one_number_each = statistics.feature_statistics(ops.ones((5,)))
    np.testing.assert_array_equal(ops.convert_to_numpy(one_number_each), [[1, 0, 1, 1, 0]])


# ── Fingerprints ────────────────────────────────────────────────────────────────────────────────────


def reference_fingerprint(arrays, inputs):
    """The definition, word by word, in Python's integers. Few features: all are hashed."""

    def finalized(word):
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    def multiplier(position, seed):
        return finalized(position + 1 + (seed << 24)) | 1

    hashes, first = [], []
    for example in range(len(arrays[0])):
        row = None
        for number, array in enumerate(arrays):
            entries = np.asarray(array[example]).ravel()
            if entries.dtype.kind == "f":
                words = entries.astype("float32").view("uint32").tolist()
            else:
                words = [int(entry) % 2**32 for entry in entries]
            total = sum(multiplier(k, 0) * (word ^ word >> 16) for k, word in enumerate(words)) % 2**32
            row = finalized(total if row is None else (row + total + 0x9E3779B1) % 2**32)
            if number + 1 == inputs:
                first.append(row)
        hashes.append(row)
    numbers = [
        finalized(sum(row * multiplier(n, seed) for n, row in enumerate(hashes)) % 2**32) >> 8
        for seed in (1, 2)
    ]
    return [*numbers, np.float32(np.mean([row == first[0] for row in first]))]


def test_a_fingerprint_is_what_its_definition_says():
    x = RANDOM.normal(size=(9, 3, 2)).astype(np.float32)
    x[2:4] = x[0]
    x[5, 0, 0] = np.nan
    tokens = RANDOM.integers(-5, 5, size=(9, 4)).astype("int32")
    y = (RANDOM.random(9) > 0.5).astype("uint8")
    expected = reference_fingerprint([x, tokens, y], inputs=1)
    assert max(expected) < 2**24
    check(
        lambda x, tokens, y: statistics.batch_fingerprint([x], [tokens, y]),
        x,
        tokens,
        y,
        expected=expected,
        rtol=0,
        atol=0,
        batch=True,
    )


@functools.cache
def compiled_fingerprint():
    def run(*arrays):
        return statistics.batch_fingerprint(arrays)

    if keras.backend.backend() != "jax":
        return run
    import jax

    return jax.jit(run)


def fingerprint(*arrays):
    return tuple(ops.convert_to_numpy(compiled_fingerprint()(*map(ops.convert_to_tensor, arrays)))[:2])


def test_the_slightest_difference_between_batches_changes_both_numbers():
    x = RANDOM.integers(0, 2, size=(12, 40)).astype(np.float32)
    x[0], x[1] = 0.0, 1.0
    same = fingerprint(x)
    assert fingerprint(x.copy()) == same
    others = [x[::-1], x[:, ::-1], np.roll(x, 1, axis=0), x[:-1], -x, x * 2, x + 1]
    for row, column in itertools.product(range(0, 12, 3), range(0, 40, 3)):
        changed = x.copy()
        changed[row, column] = 1 - changed[row, column]
        others.append(changed)
    found = [same, *(fingerprint(np.ascontiguousarray(other)) for other in others)]
    assert len({first for first, _ in found}) == len({second for _, second in found}) == len(found)


def test_batches_of_few_binary_entries_hardly_ever_share_a_number():
    batches = RANDOM.integers(0, 2, size=(200, 4, 25)).astype("uint8")
    found = [fingerprint(batch) for batch in batches]
    # Of 20,000 pairs, 0.001 agree in a 24-bit number by chance.
    assert all(len(set(column)) == len(batches) for column in zip(*found, strict=True))


def test_the_share_of_examples_that_equal_the_first_tells_a_constant_batch():
    x = RANDOM.normal(size=(8, 5)).astype(np.float32)
    y = np.arange(8)
    for changed, share in ((0, 1 / 8), (4, 4 / 8), (8, 1.0)):
        x[:changed] = x[0]
        for way, result in results(lambda x, y: statistics.batch_fingerprint([x], [y])[2], x, y, batch=True):
            assert result == share, way


def test_of_a_large_batch_the_leading_examples_are_hashed_and_of_each_a_part():
    x = RANDOM.integers(0, 255, size=(300, 32, 32, 3)).astype("uint8")
    later = x.copy()
    later[250:] = 0
    assert fingerprint(x) == fingerprint(later)
    assert fingerprint(x) != fingerprint(x + 1)
    assert fingerprint(x, np.arange(300)) != fingerprint(x, np.arange(300)[::-1].copy())


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_fingerprint_is_of_the_values_whatever_float_holds_them(dtype):
    tensor, values = typed(RANDOM.normal(size=(4, 6)), dtype)
    assert fingerprint(tensor) == fingerprint(values.astype(np.float32))


# ── Predictions and targets ─────────────────────────────────────────────────────────────────────────


def spread_by_hand(values):
    """`values`: float64[N, …, units]."""
    between = values.std(axis=0).mean()
    return [between, np.abs(values).mean(), values.min(), values.max(), values.sum(axis=-1).mean()]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 7), (20, 5, 6, 3)])
def test_how_far_predictions_differ_equals_numpys(shape, dtype):
    tensor, values = typed(RANDOM.normal(size=shape) * 3 + 1, dtype)
    expected = spread_by_hand(values if len(shape) > 1 else values[:, None])
    check(statistics.prediction_spread, tensor, expected=expected, batch=True, rtol=1e-4, atol=1e-5)


def test_predictions_that_are_the_same_for_all_examples_have_no_spread():
    same = np.broadcast_to(RANDOM.random((1, 64, 8)).astype("float32"), (32, 64, 8)).copy()
    for way, result in results(statistics.prediction_spread, same, batch=True):
        assert result[0] == 0.0, way


def test_of_large_predictions_evenly_spaced_places_and_the_leading_examples_are_looked_at():
    values = RANDOM.normal(size=(200, 100, 100, 2)).astype("float32")
    flat = values.reshape(200, 10_000, 2)
    stride = statistics.coprime_stride(10_000, statistics.MAX_PREDICTED // 2)
    part = flat[:, ::stride]
    part = part[: statistics.MAX_INPUT_ELEMENTS // part[0].size]
    assert part[0].size <= statistics.MAX_PREDICTED
    expected = spread_by_hand(part.astype(np.float64))
    check(statistics.prediction_spread, values, expected=expected, rtol=1e-3, atol=1e-4)


def test_a_prediction_that_is_not_finite_shows():
    values = RANDOM.normal(size=(10, 3)).astype("float32")
    values[4, 1] = np.nan
    finite = values[np.isfinite(values)]
    expected = [np.nan, np.nan, finite.min(), finite.max(), np.nan]
    check(statistics.prediction_spread, values, expected=expected, batch=True)


TARGETS = {
    "class numbers": np.arange(12) % 4,
    "one-hot": np.eye(4, dtype="float32")[np.arange(12) % 4],
    "shares": RANDOM.dirichlet(np.ones(3), 10).astype("float32"),
    "nearly shares": np.float32([[0.5, 0.5005], [0.5, 0.502], [1.5, -0.5], [0.0, 1.0]]),
    "numbers": RANDOM.normal(size=(10, 1)).astype("float32"),
    "half of them whole": np.float32([1.0, 1.5, -2.0, 0.25]),
    "not finite": np.float32([[1.0, np.nan], [np.inf, 0.0], [0.0, 1.0]]),
    "truth values": np.arange(10).reshape(5, 2) % 3 == 0,
    "images": RANDOM.integers(0, 256, (4, 5, 5, 1), dtype=np.uint8),
}


@pytest.mark.parametrize("values", TARGETS.values(), ids=TARGETS.keys())
def test_targets_are_described_as_numpy_describes_them(values):
    exact = values.astype(np.float64)
    there = np.isfinite(exact)
    finite = exact[there]
    whole = (there & (exact == np.floor(exact))).mean()
    unit = np.nan
    if values.ndim > 1 and values.shape[-1] > 1:
        rows = exact.reshape(-1, values.shape[-1])
        unit = ((np.abs(rows.sum(axis=1) - 1) <= 1e-3) & (rows >= 0).all(axis=1)).mean()
    expected = [finite.mean(), finite.std(), finite.min(), finite.max(), (~there).sum(), whole, unit]
    check(statistics.target_statistics, values, expected=expected, batch=True)
