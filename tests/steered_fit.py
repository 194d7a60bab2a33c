"""A small real training that can be steered, and an independent loop to compare it with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from client_callback.steering import Steering
from client_callback.wire.protocol import Command, Event, Reply, decode_answer, encode

BATCH = 8
STEPS = 8
"""Per epoch."""

rng = np.random.default_rng(7)
X = rng.normal(size=(BATCH * STEPS, 4)).astype("float32")
Y = (X @ rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(BATCH * STEPS, 1))).astype("float32")


class SteeredFit(keras.callbacks.Callback):
    """Runs commands before given steps of a `fit`; what the callback of the product does, without the rest."""

    def __init__(self, script: Mapping[int, Sequence[str]], *, control: bool = True) -> None:
        super().__init__()
        self.script = {step: list(texts) for step, texts in script.items()}
        self.step = 0
        self.paused = False
        self.optimizer_used = True
        self.stopped = False
        self.callbacks: Sequence[keras.callbacks.Callback] = ()
        self.replies: list[Reply] = []
        self.events: list[Event] = []
        self.traces = 0
        self.rates: list[float] = []
        """The rate read before each step."""
        self.steering = Steering(self, control=control)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def stop(self) -> None:
        self.stopped = True
        self.model.stop_training = True

    def rebuild(self, change: Callable[[], None]) -> None:
        try:
            change()
        finally:
            self.model.make_train_function(force=True)
            self.traces += 1

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def send(self, text: str) -> Reply:
        reply = self.steering.answer(Command(id=f"c{len(self.replies)}", text=text, who="ada@box"), time=1.0)
        assert decode_answer(encode(reply)) == reply  # it can travel
        self.replies.append(reply)
        return reply

    def on_train_begin(self, logs: object = None) -> None:
        self.steering.install()

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        for text in self.script.pop(self.step, ()):
            self.send(text)
        self._first = batch
        optimizer = self.model.optimizer
        if not isinstance(optimizer, keras.optimizers.MultiOptimizer):
            self.rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.step += batch - self._first + 1

    def on_train_end(self, logs: object = None) -> None:
        self.steering.uninstall()


def dense_model(**layer: object) -> keras.Model:
    """Two dense layers with the same weights every time."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(6, activation="tanh", **layer),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )


def steered(
    optimizer: keras.optimizers.Optimizer,
    script: Mapping[int, Sequence[str]],
    *,
    epochs: int = 2,
    model: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    control: bool = True,
    **compiled: object,
) -> tuple[keras.Model, SteeredFit]:
    """Fits a model while the script's commands are carried out."""
    model = model or dense_model()
    model.compile(optimizer, "mse", **compiled)
    fit = SteeredFit(script, control=control)
    fit.callbacks = [*callbacks, fit]
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, fit])
    return model, fit


def looped(
    optimizer_at: Callable[[int], keras.optimizers.Optimizer],
    rate_at: Callable[[int], float] | None = None,
    *,
    epochs: int = 2,
    model: keras.Model | None = None,
) -> keras.Model:
    """The same training as a plain loop: `optimizer_at(step)` updates, at `rate_at(step)`."""
    model = model or dense_model()
    for step in range(epochs * STEPS):
        first = step % STEPS * BATCH
        x, y = X[first : first + BATCH], Y[first : first + BATCH]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - model(x, training=True)))
        optimizer = optimizer_at(step)
        if rate_at is not None:
            optimizer.learning_rate = rate_at(step)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
    return model


def always(optimizer: keras.optimizers.Optimizer) -> Callable[[int], keras.optimizers.Optimizer]:
    """The same optimizer at every step."""
    return lambda step: optimizer


def assert_same_weights(one: keras.Model, other: keras.Model, tolerance: float = 1e-6) -> None:
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_equal_weights(one: keras.Model, other: keras.Model) -> None:
    """Bit for bit."""
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
