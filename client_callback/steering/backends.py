"""What differs between Keras' backends when optimizer state is touched in the middle of a training.

`learning_rate` and `switch` are written against `Backend`; a new backend is one class here and one entry in
`BACKENDS`. A JAX adapter has to sync the model's state in `state`, and to have the variables of a
`RateControl` among those of the optimizer, or they are compiled in as constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import keras

from client_callback.steering.training import Refused


class Backend(Protocol):
    """How one of Keras' backends lets optimizer state be read, written and replaced between batches."""

    def state(self, model: Any) -> AbstractContextManager[None]:
        """Inside, variables hold the training's state; what is assigned reaches the next step."""

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, new variables live where the model's do: on every replica."""

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Assigns, for each (target, source) of Keras variables, each replica's own value."""

    def rehearse(self, model: Any, optimizer: Any) -> None:
        """Traces one update of the model by `optimizer` and runs nothing; raises what the tracing raises."""


class TensorFlowBackend:
    """`tf.function` reads variables at every step, so assigning one is enough."""

    def state(self, model: Any) -> AbstractContextManager[None]:
        """Variables are always current."""
        return nullcontext()

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Outside it, replicas would get variables of their own and drift apart without any error."""
        scope: AbstractContextManager[Any] = model.distribute_strategy.scope()
        return scope

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Replica by replica: accumulated gradients differ between them."""
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        for target, source in pairs:
            strategy = getattr(target.value, "distribute_strategy", None) or tf.distribute.get_strategy()
            strategy.extended.update(target.value, lambda a, b: a.assign(b), args=(source.value,))

    def rehearse(self, model: Any, optimizer: Any) -> None:
        """The next step of `fit` would trace this too, but there an error would end the training."""
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        variables = model.trainable_variables
        embeddings = _embedding_variables(model)

        def gradient(variable: Any) -> Any:
            dense = tf.zeros(variable.shape, variable.dtype)
            if id(variable) not in embeddings:
                return dense
            rows = tf.zeros([1], tf.int64)
            return tf.IndexedSlices(dense[:1], rows, tf.shape(dense, tf.int64))

        def update() -> None:
            optimizer.apply([gradient(variable) for variable in variables], variables)

        tf.function(lambda: model.distribute_strategy.run(update), autograph=False).get_concrete_function()


def _embedding_variables(model: Any) -> set[int]:
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return {id(variable) for layer in layers for variable in layer.trainable_variables}


BACKENDS: dict[str, Backend] = {"tensorflow": TensorFlowBackend()}


def current_backend() -> Backend:
    """The adapter for the backend Keras runs on.

    Raises:
        Refused: there is none yet.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        possible = ", ".join(BACKENDS)
        raise Refused(
            f"the optimizer cannot be steered on the {name} backend yet (only on {possible}); "
            "pause, resume, stop and note work"
        )
    return BACKENDS[name]
