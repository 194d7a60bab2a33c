"""What a user's script does to its model in the middle of a watched `fit` works as if nobody watched."""

from __future__ import annotations

import gc
import weakref

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from tests import models
from tests.recorded import samples, series

pytestmark = pytest.mark.every_backend

BACKEND = keras.backend.backend()


class FourParts(keras.Model):
    """Knows batches that Keras does not."""

    def train_step(self, *args):
        x, y, _, _ = args[-1]
        return super().train_step(*args[:-1], (x, y))


def compiled(kind: type[keras.Model] = keras.Model) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,))
    model = kind(
        inputs, keras.layers.Dense(3, activation="softmax")(keras.layers.Dense(8, activation="relu")(inputs))
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras itself refuses such batches there")
def test_batches_that_only_the_models_own_step_understands_are_trained_and_recorded():
    x = models.inputs(examples=64)
    y = models.labels(x)

    def batches():
        while True:
            for at in range(0, 64, 16):
                part = slice(at, at + 16)
                yield x[part], y[part], x[part, :1], x[part, :2]

    callback = MonitorCallback("four", statistics_every=2)
    options = {"steps_per_epoch": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    compiled(FourParts).fit(batches(), callbacks=[callback], **options)
    recorded = series(callback.recording)
    assert len(recorded["loss"]) == 8 and np.isfinite(recorded["grad_norm"]).all()


def test_a_train_function_made_anew_in_the_middle_goes_on_being_measured_and_so_does_the_next_fit_without_us():
    x = models.inputs(examples=96)
    y = models.labels(x)
    weights = []
    for watched in (True, False):
        model = compiled()

        def remake(batch: int, logs: object, model: keras.Model = model) -> None:
            if batch == 3:
                model.make_train_function(force=True)

        remaking = keras.callbacks.LambdaCallback(on_train_batch_begin=remake)
        callback = MonitorCallback("remade", statistics_every=2)
        callbacks = [callback, remaking] if watched else [remaking]
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False, callbacks=callbacks)
        if watched:
            assert len(series(callback.recording)["grad_norm"]) == 6
            assert list(samples(callback.recording)[0]) == [0, 2, 4]
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        model.train_on_batch(x[:16], y[:16])
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_that_was_watched_is_let_go_of():
    x = models.inputs(examples=64)
    model = compiled()
    model.fit(x, models.labels(x), verbose=0, callbacks=[MonitorCallback("let go", statistics_every=1)])
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras calls hooks one after the other there")
def test_logs_are_still_handed_to_callbacks_without_waiting_for_the_step():
    model = compiled()
    for callbacks in ([], [MonitorCallback("async")]):
        made = keras.callbacks.CallbackList(callbacks, model=model)
        assert made._async_train


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere statistics are computed in the step itself")
def test_statistics_that_the_device_cannot_compute_end_alone(monkeypatch):
    from client_callback.instrument.backends.jax import Driver

    def out_of_memory(self, state, data):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(Driver, "_run_sampling", out_of_memory)
    x = models.inputs(examples=64)
    callback = MonitorCallback("small device")
    with pytest.warns(RuntimeWarning, match="no statistics are taken any more"):
        compiled().fit(x, models.labels(x), batch_size=16, verbose=0, callbacks=[callback])
    assert len(series(callback.recording)["loss"]) == 4
