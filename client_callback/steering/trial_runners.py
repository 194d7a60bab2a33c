"""Training for the sake of a trial: one batch at a time, its loss told, by a train function of the trial's own.

The backends differ in where the state of a training is while a train function runs. Called by `trials`, inside the
backend's `state`; between two calls variables hold the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import keras

from client_callback.steering.training import Refused

TrainFunction = Callable[..., Any]


class Runner(Protocol):
    """Trains a model on single batches."""

    def train(self, data: Any) -> float:
        """The loss of one batch, as the step that trained on it logged it. `data`: as the function takes it."""


class VariablesRunner:
    """Where the train function reads and writes variables: TensorFlow and torch."""

    def __init__(self, model: Any, function: TrainFunction) -> None:
        self._model, self._function = model, function

    def train(self, data: Any) -> float:
        """Waits for the step."""
        self._model.reset_metrics()
        return _loss(self._function(data))


class StateRunner:
    """Where the state travels through the train function: JAX."""

    def __init__(self, model: Any, function: TrainFunction) -> None:
        self._model, self._function = model, function

    def train(self, data: Any) -> float:
        """Waits for the step."""
        model = self._model
        model.reset_metrics()
        lists = [
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ]
        try:
            logs, state = self._function(tuple([v.value for v in variables] for variables in lists), data)
        except BaseException:
            # The step was given the arrays to overwrite: those who restore the state expect variables to be readable.
            for variable in (variable for variables in lists for variable in variables):
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
            raise
        for variables, values in zip(lists, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return _loss(logs)


def _loss(logs: Any) -> float:
    """Metrics were reset before, so the mean of the epoch so far is the batch's own."""
    if not isinstance(logs, dict) or "loss" not in logs:
        names = ", ".join(map(str, logs)) if isinstance(logs, dict) else type(logs).__name__
        raise Refused(f"a trial compares losses, and this train step logs none (it logs {names})")
    value = float(logs["loss"])
    return value if math.isfinite(value) else math.nan


RUNNERS: dict[str, Callable[[Any, TrainFunction], Runner]] = {
    "tensorflow": VariablesRunner,
    "jax": StateRunner,
    "torch": VariablesRunner,
}


def make_runner(model: Any, function: TrainFunction) -> Runner:
    """The runner for the backend that Keras runs on."""
    return RUNNERS[keras.backend.backend()](model, function)


class Surroundings:
    """What the backend keeps beside the model's variables, to be put back as often as is wanted.

    On TensorFlow, where steps run operation by operation, the generator of those operations' seeds. An operation that
    has the same seed in each step draws from a state of its own, which cannot be put back. On torch the gradients of
    the last step, which a train step of the user's own may go on from.
    """

    def __init__(self, model: Any) -> None:
        self._generator: Any = None
        self._gradients: list[tuple[Any, Any]] = []
        if keras.backend.backend() == "tensorflow" and model.run_eagerly:
            from tensorflow.python.eager import context  # noqa: PLC0415 (only where TensorFlow is the backend)

            self._context = context.context()
            self._generator = getattr(self._context, "_rng", None)
            self._seeds = None if self._generator is None else self._generator.getstate()
        elif keras.backend.backend() == "torch":
            weights = [variable.value for variable in model.trainable_variables]
            copies = [None if weight.grad is None else weight.grad.clone() for weight in weights]
            self._gradients = list(zip(weights, copies, strict=True))

    def put_back(self) -> None:
        """They are as they were."""
        if self._generator is not None:
            self._generator.setstate(self._seeds)
            # An operation that was run with a seed before would go on from where it was.
            self._context.clear_kernel_cache()
        for weight, gradient in self._gradients:
            weight.grad = None if gradient is None else gradient.clone()
