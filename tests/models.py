"""Small real models and data, the same for every call."""

from __future__ import annotations

import keras
import numpy as np

STEPS = 500
BATCH = 16


def inputs(seed: int = 0, examples: int = 800, shape: tuple[int, ...] = (12,)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(examples, *shape)).astype("float32")


def labels(x: np.ndarray, classes: int = 3) -> np.ndarray:
    """Learnable: the class is the largest of the first features."""
    return x.reshape(len(x), -1)[:, :classes].argmax(axis=1)


def mlp(units: int = 24, classes: int = 3, seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(0.2, seed=3),
            keras.layers.Dense(classes, activation="softmax"),
        ],
        name="mlp",
    )


def plain_mlp(seed: int = 1) -> keras.Model:
    """Without anything random, for comparison with loops written by hand."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(24, activation="relu"), keras.layers.Dense(3)], name="plain"
    )


def cnn(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ],
        name="cnn",
    )


def lstm(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6, 4)), keras.layers.LSTM(8), keras.layers.Dense(3, activation="softmax")], name="lstm"
    )
