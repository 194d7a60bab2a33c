"""A watched training is, bit for bit, the one that nobody watches, whatever the model and the callbacks do."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from tests import models
from tests.recorded import samples

pytestmark = pytest.mark.every_backend

BACKEND = keras.backend.backend()


def trained(build, callbacks, targets=lambda x: x[:, :1]):
    keras.utils.set_random_seed(0)
    model = build()
    x = models.inputs(examples=96)
    model.fit(x, targets(x), batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    return model


def assert_trained_alike(build, every, callbacks=list, **options):
    watcher = MonitorCallback("alike", statistics_every=every)
    alone, watched = (trained(build, [*callbacks(), *extra], **options) for extra in ([], [watcher]))
    for one, other in zip(alone.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    return watcher.recording


def compiled(*layers, **options):
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    return model


def drawn_directly(tf, inputs):
    return inputs + tf.random.normal(tf.shape(inputs))


def drawn_in_a_branch(tf, inputs):
    return tf.cond(tf.shape(inputs)[0] > 0, lambda: tf.nn.dropout(inputs, 0.5), lambda: inputs)


def drawn_in_a_function(tf, inputs):
    return tf.function(lambda values: values + tf.random.normal(tf.shape(values)))(inputs)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only there can draws depend on which function makes them"
)
@pytest.mark.parametrize("draw", [drawn_directly, drawn_in_a_branch, drawn_in_a_function])
def test_random_operations_of_tensorflow_itself_draw_as_if_nobody_watched(draw):
    import tensorflow as tf

    class Noisy(keras.layers.Layer):
        def call(self, inputs):
            return draw(tf, inputs)

    recording = assert_trained_alike(lambda: compiled(keras.layers.Dense(4), Noisy()), every=3)
    assert list(samples(recording)[0]) == [0, 3, 6, 9]


class FreezesAfterTheFirstBatch(keras.callbacks.Callback):
    async_safe = True

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.model.layers[0].trainable = False


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="elsewhere nothing is traced, or Keras itself cannot go on"
)
@pytest.mark.parametrize("every", [None, 3, 100])
def test_what_a_callback_changes_once_the_step_is_traced_has_as_little_effect_as_without_us(every):
    assert_trained_alike(
        lambda: compiled(keras.layers.Dense(4, activation="relu")),
        every,
        lambda: [FreezesAfterTheFirstBatch()],
    )


@pytest.mark.parametrize("after", ["add", "gelu", "relu", "swish"])
def test_layers_that_are_computed_in_one_with_the_next_are_left_so(after):
    def build():
        inputs = keras.Input((12,))
        dense = keras.layers.Dense(12)(inputs)
        joined = (
            keras.layers.Add()([inputs, dense]) if after == "add" else keras.layers.Activation(after)(dense)
        )
        model = keras.Model(inputs, keras.layers.Dense(1)(joined))
        model.compile("adam", "mse")
        return model

    assert_trained_alike(build, every=2)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras itself takes no output without a loss there")
@pytest.mark.parametrize("first", [True, False])
def test_an_output_without_a_loss_is_left_in_one_with_what_follows(first):
    def build():
        inputs = keras.Input((12,))
        hidden = keras.layers.Dense(12)(inputs)
        outputs = keras.layers.Dense(1)(keras.layers.Add()([inputs, hidden]))
        model = keras.Model(inputs, [hidden, outputs] if first else [outputs, hidden])
        model.compile("sgd", [None, "mse"] if first else ["mse", None])
        return model

    assert_trained_alike(build, every=3, targets=lambda x: [x, x[:, :1]] if first else [x[:, :1], x])


class MakesItsOwn(keras.Sequential):
    """Makes its train function by a way that Keras does not know."""

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force=True)
            inner = self.train_function
            self.train_function = functools.partial(inner)
        return self.train_function


def test_a_model_that_makes_its_train_function_itself_is_sampled_as_asked_for():
    def build():
        model = MakesItsOwn([keras.Input((12,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    assert list(samples(assert_trained_alike(build, every=5))[0]) == [0, 5, 10]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere Keras itself makes it for no variables")
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_an_optimizer_of_a_frozen_model_still_fits_the_model_once_it_is_not():
    x = models.inputs(examples=32)
    model = compiled()
    optimizer = keras.optimizers.Adam()
    before = model.get_weights()
    for trainable in (False, True):
        model.trainable = trainable
        model.compile(optimizer, "mse")
        model.fit(x, x[:, :1], verbose=0, callbacks=[MonitorCallback("frozen")])
    assert not np.array_equal(before[0], model.get_weights()[0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere nothing is traced in vain")
@pytest.mark.parametrize(("every", "traces"), [(0, 1), (4, 2)])
def test_a_step_is_traced_once_and_once_more_with_its_statistics(every, traces):
    traced = []

    class Counts(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training:
                traced.append(1)
            return inputs

    trained(lambda: compiled(Counts(), metrics=["mae"]), [MonitorCallback("traced", statistics_every=every)])
    assert len(traced) == traces
