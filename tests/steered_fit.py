"""A small real training that can be steered, on any backend, and an independent loop to compare it with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from client_callback.recent import RecentSteps
from client_callback.steering import Steering
from client_callback.wire.protocol import Command, Event, Reply, decode_answer, encode

BACKEND = keras.backend.backend()
BATCH = 8
STEPS = 8
"""Per epoch."""

not_compiled = pytest.mark.skipif(
    BACKEND == "jax", reason="the same on every backend, and there a step takes long to compile"
)

rng = np.random.default_rng(7)
X = rng.normal(size=(BATCH * STEPS, 4)).astype("float32")
Y = (X @ rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(BATCH * STEPS, 1))).astype("float32")


class SteeredFit(keras.callbacks.Callback):
    """Runs commands before given steps of a `fit`; what the callback of the product does, without the rest.

    `read_rates`: reads the rate before each step, which on JAX makes the variables current at each step.
    """

    def __init__(
        self,
        script: Mapping[int, Sequence[str]],
        *,
        control: bool = True,
        read_rates: bool = False,
        **steering: object,
    ) -> None:
        super().__init__()
        self.script = {step: list(texts) for step, texts in script.items()}
        self.step = 0
        self.paused = False
        self.optimizer_used = True
        self.stopped = False
        self.callbacks: Sequence[keras.callbacks.Callback] = ()
        self.replies: list[Reply] = []
        """At once."""
        self.verified: list[Reply] = []
        """Once the step after the change was done, of those that wait for it."""
        self.events: list[Event] = []
        self.traces = 0
        self.read_rates = read_rates
        self.rates: list[float] = []
        """The rate read before each step."""
        self.last_values: dict[str, float] = {}
        self.sampled_update = None
        self.label_counts: Mapping[int, float] = {}
        self.trace_seconds: float | None = None
        self.held: list[object] = []
        """Earlier train functions: whoever else may hold them, they must not come back."""
        self.recent = RecentSteps()
        self.recording: Path | None = None
        self.epoch = self.epoch_start = 0
        self.epochs: int | None = None
        self.steps_per_epoch: int | None = None
        self._mean = 0.0
        self.steering = Steering(self, control=control, **steering)

    @property
    def model(self) -> keras.Model:
        """Unlike Keras' own, this makes no variable current on JAX."""
        return self._model

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def stop(self) -> None:
        self.stopped = True
        self.model.stop_training = True

    def rebuild(self, change: Callable[[], None]) -> None:
        self.held.append(self.model.train_function)
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
        self.epochs, self.steps_per_epoch = self.params["epochs"], self.params["steps"]
        self.steering.install(in_fit=True)

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.verified += self.steering.tick(time=1.0)
        for text in self.script.pop(self.step, ()):
            self.send(text)
        self._first = batch
        if self.read_rates:
            optimizer = super().model.optimizer
            self.rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        count = batch - self._first + 1
        if "loss" in (logs or {}):
            # Keras tells the mean over the epoch so far; all batches have the same size.
            loss = ((batch + 1) * logs["loss"] - self._first * self._mean) / count
            self._mean = logs["loss"]
            self.recent.add(self.step, {"loss": np.full(count, loss, np.float32)})
        self.step += count

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.epoch, self.epoch_start = epoch, self.step
        self.steering.epoch_began()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        for reply in self.steering.epoch_ended(epoch, dict(logs or {}), time=1.0):
            self.emit(reply)

    def on_train_end(self, logs: object = None) -> None:
        self.verified += self.steering.tick(time=1.0, last=True)
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


def build_optimizer(model: keras.Model) -> None:
    """Makes its slots before the fit, as Keras does on JAX: on TensorFlow a step that makes them is traced twice."""
    if model.built and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def steered(
    optimizer: keras.optimizers.Optimizer,
    script: Mapping[int, Sequence[str]],
    *,
    epochs: int = 2,
    model: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    control: bool = True,
    read_rates: bool = False,
    unbuilt: bool = False,
    **compiled: object,
) -> tuple[keras.Model, SteeredFit]:
    """Fits a model while the script's commands are carried out.

    `unbuilt`: its first step makes the optimizer's slots.
    """
    model = model or dense_model()
    model.compile(optimizer, "mse", **compiled)
    if not unbuilt:
        build_optimizer(model)
    fit = SteeredFit(script, control=control, read_rates=read_rates)
    fit.callbacks = [*callbacks, fit]
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks, fit])
    return model, fit


def gradients(weights: Sequence[np.ndarray], step: int) -> list[np.ndarray]:
    """Of the mean squared error of `dense_model` at a step's batch, by the chain rule."""
    first, bias, second, last_bias = (weight.astype("float64") for weight in weights)
    start = step % STEPS * BATCH
    x, y = X[start : start + BATCH].astype("float64"), Y[start : start + BATCH]
    hidden = np.tanh(x @ first + bias)
    error = 2 * (hidden @ second + last_bias - y) / len(y)
    inner = error @ second.T * (1 - hidden**2)
    found = [x.T @ inner, inner.sum(0), hidden.T @ error, error.sum(0)]
    return [gradient.astype("float32") for gradient in found]


def looped(
    optimizer_at: Callable[[int], keras.optimizers.Optimizer],
    rate_at: Callable[[int], float] | None = None,
    *,
    epochs: int = 2,
) -> keras.Model:
    """The same training as a plain loop: `optimizer_at(step)` updates, at `rate_at(step)`."""
    model = dense_model()
    update = updater()
    for step in range(epochs * STEPS):
        optimizer = optimizer_at(step)
        if rate_at is not None:
            optimizer.learning_rate = rate_at(step)
        found = [keras.ops.convert_to_tensor(g) for g in gradients(model.get_weights(), step)]
        update(optimizer, found, model.trainable_variables)
    return model


def updater() -> Callable[[keras.optimizers.Optimizer, list, list[keras.Variable]], None]:
    """How an optimizer updates variables outside of a `fit`."""
    if BACKEND == "tensorflow":
        return lambda optimizer, found, weights: optimizer.apply(found, weights)
    if BACKEND == "torch":
        import torch

        return torch.no_grad()(lambda optimizer, found, weights: optimizer.apply(found, weights))
    import jax

    compiled: dict[int, Callable] = {}

    def update(optimizer: keras.optimizers.Optimizer, found: list, weights: list[keras.Variable]) -> None:
        if not optimizer.built:
            optimizer.build(weights)
        apply = compiled.setdefault(id(optimizer), jax.jit(optimizer.stateless_apply))
        variables = [*weights, *optimizer.variables]
        new = apply([v.value for v in optimizer.variables], found, [w.value for w in weights])
        for variable, value in zip(variables, [*new[0], *new[1]], strict=True):
            variable.assign(value)

    return update


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
