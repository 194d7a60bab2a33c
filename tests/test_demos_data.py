"""The demos' data and networks are what their pages promise, and the heart run gets stuck without help."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from demos import digits, heart, heart_sounds, rescue

ENTROPY_OF_THE_LABELS = -(0.55 * np.log(0.55) + 0.45 * np.log(0.45))


@pytest.fixture(scope="module")
def recordings() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return heart_sounds.load_data()


def test_heart_recordings_are_unscaled_28_by_28_images_with_integer_labels(recordings) -> None:
    (x_train, y_train), (x_test, y_test) = recordings
    assert x_train.shape == (2394, 28, 28) and y_train.shape == (2394,)
    assert x_test.shape == (600, 28, 28) and y_test.shape == (600,)
    assert x_train.dtype == x_test.dtype == np.uint8
    assert x_train.min() == 0 and x_train.max() == 255
    assert np.issubdtype(y_train.dtype, np.integer) and set(np.unique(y_train)) == {0, 1}


def test_55_percent_of_the_recordings_are_normal_in_both_parts(recordings) -> None:
    for _, labels in recordings:
        assert np.mean(labels == 0) == pytest.approx(0.55, abs=0.001)


def test_the_labels_are_shuffled(recordings) -> None:
    (_, labels), _ = recordings
    assert np.mean(labels[: len(labels) // 2] == 0) == pytest.approx(0.55, abs=0.05)


def test_the_same_seed_gives_the_same_recordings(recordings) -> None:
    for part, again in zip(recordings, heart_sounds.load_data(seed=0), strict=True):
        np.testing.assert_array_equal(part[0], again[0])
        np.testing.assert_array_equal(part[1], again[1])


def test_another_seed_gives_other_recordings(recordings) -> None:
    (x_train, y_train), _ = recordings
    (x_other, y_other), _ = heart_sounds.load_data(seed=1)
    assert not np.array_equal(y_train, y_other)
    assert not {image.tobytes() for image in x_train} & {image.tobytes() for image in x_other}


def test_no_recording_occurs_twice_so_none_is_both_trained_on_and_held_out(recordings) -> None:
    images = [image.tobytes() for part, _ in recordings for image in part]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("pathological", [False, True])
def test_a_recording_is_1_6_seconds_of_finite_sound(pathological: bool) -> None:
    sound = heart_sounds.recording(pathological, np.random.default_rng(3))
    assert sound.shape == (heart_sounds.SAMPLES,)
    duration_s = len(sound) / heart_sounds.RATE_HZ
    assert duration_s == pytest.approx(1.6, abs=0.05)
    assert np.isfinite(sound).all()


def test_a_spectrogram_shows_a_pure_tone_in_the_band_of_its_pitch() -> None:
    time = np.arange(heart_sounds.SAMPLES) / heart_sounds.RATE_HZ
    image = heart_sounds.spectrogram(np.sin(2 * np.pi * 250 * time))
    band_hz = heart_sounds.BINS_PER_BAND * heart_sounds.RATE_HZ / heart_sounds.WINDOW
    lowest_hz = heart_sounds.LOWEST_BIN * heart_sounds.RATE_HZ / heart_sounds.WINDOW
    assert (image.argmax(axis=0) == int((250 - lowest_hz) / band_hz)).all()
    assert image.max() == 255


def test_the_loudness_of_the_microphone_does_not_change_the_spectrogram() -> None:
    sound = heart_sounds.recording(True, np.random.default_rng(4))
    np.testing.assert_array_equal(heart_sounds.spectrogram(sound), heart_sounds.spectrogram(4.0 * sound))


def test_a_linear_classifier_tells_the_classes_apart_but_not_perfectly(recordings) -> None:
    (x_train, y_train), (x_test, y_test) = ((x.reshape(len(x), -1) / 255, y) for x, y in recordings)
    accuracy = LogisticRegression(C=0.01, max_iter=500).fit(x_train, y_train).score(x_test, y_test)
    assert 0.75 < accuracy < 0.92


def test_the_heart_network_is_dense_with_two_softmax_outputs_and_adam_at_0_01() -> None:
    model = heart.build_model(seed=0)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert model.input_shape == (None, 28, 28) and model.output_shape == (None, 2)
    assert [layer.units for layer in dense] == [512, 512, 2]
    assert [layer.activation.__name__ for layer in dense] == ["relu", "relu", "softmax"]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.loss == "sparse_categorical_crossentropy"


def test_a_seed_fixes_the_starting_weights() -> None:
    first, again, other = (heart.build_model(seed).get_weights() for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_heart_run_left_alone_is_stuck_with_a_dead_first_layer_within_four_epochs(recordings) -> None:
    (x_train, y_train), (x_test, y_test) = recordings
    model = heart.build_model(seed=1)
    history = model.fit(x_train, y_train, epochs=4, batch_size=16, verbose=0).history
    assert history["loss"][-1] == pytest.approx(ENTROPY_OF_THE_LABELS, abs=0.05)
    assert history["accuracy"][-1] == pytest.approx(0.55, abs=0.02)
    _, held_out = model.evaluate(x_test, y_test, verbose=0)
    assert held_out == pytest.approx(0.55, abs=0.02)
    kernel, bias = model.layers[1].get_weights()
    activations = x_train.reshape(len(x_train), -1).astype(np.float32) @ kernel + bias
    assert np.mean(activations.max(axis=0) > 0) < 0.01


def test_the_starting_weights_learn_with_sgd_at_a_hundredth_of_the_rate(recordings) -> None:
    (x_train, y_train), held_out = recordings
    model = heart.build_model(seed=0)
    model.compile(
        optimizer=keras.optimizers.SGD(1e-4), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = model.fit(
        x_train, y_train, validation_data=held_out, epochs=5, batch_size=16, verbose=0
    ).history
    assert history["val_accuracy"][-1] > 0.70


@pytest.mark.thorough
def test_one_command_rescues_the_heart_run_while_it_trains(monkeypatch, tmp_path) -> None:
    """`python -m demos.rescue` does so on five seeds."""
    monkeypatch.setenv("UNSTUCK_HOME", str(tmp_path))
    assert rescue.train(seed=0, epochs=9, rescue_after=3) > 0.7


def test_digits_are_scaled_to_one_and_every_class_is_in_both_parts() -> None:
    (x_train, y_train), (x_test, y_test) = digits.load_data()
    assert x_train.shape == (1437, 8, 8, 1) and x_test.shape == (360, 8, 8, 1)
    assert x_train.dtype == np.float32 and x_train.min() == 0 and x_train.max() == 1
    assert set(y_train) == set(y_test) == set(range(10))


def test_digits_split_the_same_way_for_the_same_seed() -> None:
    (first, _), _ = digits.load_data(seed=2)
    (again, _), _ = digits.load_data(seed=2)
    (other, _), _ = digits.load_data(seed=3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_digits_network_ends_in_ten_softmax_outputs() -> None:
    model = digits.build_model(seed=0)
    assert model.input_shape == (None, 8, 8, 1) and model.output_shape == (None, 10)
    assert model.layers[-1].activation.__name__ == "softmax"
