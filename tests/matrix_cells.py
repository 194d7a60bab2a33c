"""The ways of training that `test_matrix` goes through: small models, options of `compile`, kinds of data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

BACKEND = keras.backend.backend()
BATCH = 8
EXAMPLES = 48
EPOCHS = 2
RATE = 0.1
STEPS = EPOCHS * EXAMPLES // BATCH

X = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype("float32")
Y = X[:, :3].argmax(axis=1)
TOKENS = np.random.default_rng(1).integers(0, 12, size=(EXAMPLES, 5))
WEIGHT = np.linspace(0.1, 2, EXAMPLES).astype("float32")


@dataclass(frozen=True)
class Feed:
    """The same examples for `fit` and, batch by batch, for `train_on_batch`."""

    fit: dict[str, Any]
    batches: list[dict[str, Any]]
    """Of one epoch."""


def arrays(x: Any = X, y: Any = Y, *, class_weight: Any = None, sample_weight: Any = None) -> Feed:
    whole = {"x": x, "y": y, "sample_weight": sample_weight}

    def part(start: int) -> dict[str, Any]:
        return keras.tree.map_structure(lambda values: values[start : start + BATCH], whole)

    whole = {name: values for name, values in whole.items() if values is not None}
    weights = {} if class_weight is None else {"class_weight": class_weight}
    length = len(keras.tree.flatten(x)[0])
    return Feed(
        {**whole, **weights, "batch_size": BATCH}, [part(at) | weights for at in range(0, length, BATCH)]
    )


def generator() -> Feed:
    batches = arrays().batches

    def endless() -> Iterator[tuple[Any, Any]]:
        while True:
            yield from ((batch["x"], batch["y"]) for batch in batches)

    return Feed({"x": endless(), "steps_per_epoch": len(batches)}, batches)


def tf_data() -> Feed:
    import tensorflow as tf

    return Feed({"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)}, arrays().batches)


class Batches(keras.utils.PyDataset):
    """One item per batch."""

    def __len__(self) -> int:
        return EXAMPLES // BATCH

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        batch = arrays().batches[index]
        return batch["x"], batch["y"]


def with_validation() -> Feed:
    feed = arrays()
    return Feed({**feed.fit, "validation_data": (X[:16], Y[:16])}, feed.batches)


def two_targets() -> Feed:
    return arrays(X, [Y, X[:, :1]], sample_weight=[WEIGHT, WEIGHT[::-1].copy()])


def mlp() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])


def float16_mlp() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu"),
                layers.Dense(3),
                layers.Activation("linear", dtype="float32"),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")


def embedding() -> keras.Model:
    return keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(40, 4), layers.Flatten(), layers.Dense(3)]
    )


def shared() -> keras.Model:
    """One layer, called twice."""
    inputs = keras.Input((6,))
    twice = layers.Dense(6, activation="tanh")
    return keras.Model(inputs, layers.Dense(3)(twice(twice(inputs))))


def nested() -> keras.Model:
    """A model in a model, with what is random and what is not trained by gradients."""
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3, seed=5)],
        name="inner",
    )
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(inner(inputs)))


def frozen() -> keras.Model:
    model = mlp()
    model.layers[0].trainable = False
    return model


def two_outputs() -> keras.Model:
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="relu")(inputs)
    return keras.Model(inputs, [layers.Dense(3, name="a")(hidden), layers.Dense(1, name="b")(hidden)])


def classification(optimizer: keras.optimizers.Optimizer | None = None, **options: Any) -> dict[str, Any]:
    return {
        "optimizer": optimizer or keras.optimizers.SGD(RATE),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        **options,
    }


def two_losses() -> dict[str, Any]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {
        "optimizer": keras.optimizers.SGD(RATE),
        "loss": [loss, "mse"],
        "loss_weights": [1.0, 0.5],
        "metrics": [["accuracy"], ["mae"]],
    }


@dataclass(frozen=True)
class Cell:
    """One way of training. Everything is made anew for each fit."""

    model: Callable[[], keras.Model] = mlp
    feed: Callable[[], Feed] = arrays
    compiled: Callable[[], dict[str, Any]] = classification
    options: dict[str, Any] = field(default_factory=dict)
    """Of `compile`, beside those of `compiled`."""
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")
    statistics_every: int = 5
    plain_sgd: bool = True
    """Whether a step moves the weights by learning rate × gradient, or not at all where that overflows."""

    def build(self, **options: Any) -> keras.Model:
        """Compiled, with the same first weights every time."""
        keras.utils.set_random_seed(1)
        model = self.model()
        model.compile(**{**self.compiled(), **self.options, **options})
        model.optimizer.build(model.trainable_variables)
        return model


# Where `jit_compile` is not named it is "auto": XLA on JAX, and on TensorFlow where there is a GPU. Each cell is
# compiled twice, which is what the tests' time goes into, so kinds of data and of models share cells.
CELLS = {
    "tf.data, several steps per execution": Cell(
        feed=tf_data, options={"steps_per_execution": 4}, backends=("tensorflow", "jax")
    ),
    "Python generator, jit_compile=True": Cell(
        feed=generator, options={"jit_compile": True}, backends=("tensorflow", "jax")
    ),
    "Python generator": Cell(feed=generator, backends=("torch",)),
    # On JAX, Keras takes it as `run_eagerly`.
    "jit_compile=False, no statistics": Cell(
        options={"jit_compile": False}, statistics_every=0, backends=("tensorflow", "torch")
    ),
    "run_eagerly": Cell(options={"run_eagerly": True}),
    "gradient accumulation": Cell(
        compiled=lambda: classification(keras.optimizers.SGD(RATE, gradient_accumulation_steps=3)),
        plain_sgd=False,
    ),
    "Adam on a schedule, nested model, validation": Cell(
        model=nested,
        feed=with_validation,
        compiled=lambda: classification(
            keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 4, 0.5))
        ),
        plain_sgd=False,
    ),
    "mixed_float16 with a loss scale that overflows and grows": Cell(
        model=float16_mlp,
        compiled=lambda: classification(
            keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(RATE), initial_scale=2.0**19, dynamic_growth_steps=3
            )
        ),
    ),
    "embedding, class_weight": Cell(
        model=embedding,
        feed=lambda: arrays(TOKENS, TOKENS.sum(axis=1) % 3, class_weight={0: 1.0, 1: 3.0, 2: 0.5}),
    ),
    "shared layer, PyDataset": Cell(model=shared, feed=lambda: Feed({"x": Batches()}, arrays().batches)),
    "frozen layer, sample_weight": Cell(model=frozen, feed=lambda: arrays(sample_weight=WEIGHT)),
    "two outputs with losses and weights of their own": Cell(
        model=two_outputs, feed=two_targets, compiled=two_losses
    ),
    "arrays with a partial last batch": Cell(feed=lambda: arrays(X[:44], Y[:44])),
}
