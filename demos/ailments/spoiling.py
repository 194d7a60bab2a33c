"""Mistakes in data, as functions from a clean split to a spoiled one. What is held out always stays clean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from .datasets import Array, Split

Spoil = Callable[[Split, np.random.Generator], Split]
Contaminate = Callable[[Array, np.random.Generator], Array]


def few_of_class(label: int, share: float) -> Spoil:
    """Leaves so few examples of one class that they are `share` of what is trained and validated on."""

    def spoil(split: Split, rng: np.random.Generator) -> Split:
        def thinned(x: Array, y: Array) -> tuple[Array, Array]:
            others = np.flatnonzero(y != label)
            wanted = max(2, round(share / (1 - share) * len(others)))
            kept = np.concatenate([others, rng.permutation(np.flatnonzero(y == label))[:wanted]])
            kept = rng.permutation(kept)
            return x[kept], y[kept]

        x, y = thinned(split.x, split.y)
        x_validation, y_validation = thinned(split.x_validation, split.y_validation)
        return replace(split, x=x, y=y, x_validation=x_validation, y_validation=y_validation)

    return spoil


def few_examples(count: int) -> Spoil:
    """Leaves so many to train on."""

    def spoil(split: Split, rng: np.random.Generator) -> Split:
        return replace(split, x=split.x[:count], y=split.y[:count])

    return spoil


def one_batch_again_and_again(size: int) -> Spoil:
    """A pipeline that yields its first batch for ever."""

    def spoil(split: Split, rng: np.random.Generator) -> Split:
        times = len(split.x) // size
        repeat = np.tile(np.arange(size), times)
        return replace(split, x=split.x[repeat], y=split.y[repeat])

    return spoil


def sorted_by_target(split: Split, rng: np.random.Generator) -> Split:
    """A file in the order of its labels."""
    order = np.argsort(split.y, kind="stable")
    return replace(split, x=split.x[order], y=split.y[order])


def shuffled_labels(split: Split, rng: np.random.Generator) -> Split:
    """Features and labels that were sorted apart: no label belongs to its example."""
    return replace(split, y=rng.permutation(split.y), y_validation=rng.permutation(split.y_validation))


def wrong_labels(share: float) -> Spoil:
    """Gives such a share of the training examples a class by chance; validation is right."""

    def spoil(split: Split, rng: np.random.Generator) -> Split:
        wrong = rng.random(len(split.y)) < share
        return replace(split, y=np.where(wrong, rng.integers(0, split.classes, len(split.y)), split.y))

    return spoil


def validation_from_training(split: Split, rng: np.random.Generator) -> Split:
    """Validates on examples that are trained on: a leak."""
    leaked = rng.choice(len(split.y), len(split.y_validation), replace=False)
    return replace(split, x_validation=split.x[leaked], y_validation=split.y[leaked])


def targets_times(factor: float) -> Spoil:
    """Prices in another currency."""

    def spoil(split: Split, rng: np.random.Generator) -> Split:
        scale = np.float32(factor)
        return replace(
            split,
            y=split.y * scale,
            y_validation=split.y_validation * scale,
            y_held_out=split.y_held_out * scale,
        )

    return spoil


def missing_values(share: float) -> Contaminate:
    """NaN in such a share of one feature's values: cells left empty."""

    def contaminate(x: Array, rng: np.random.Generator) -> Array:
        x = x.copy()
        flat = x.reshape(len(x), -1)
        flat[rng.random(len(x)) < share, flat.shape[1] // 2] = np.nan
        return x

    return contaminate


def outliers(share: float, size: float) -> Contaminate:
    """A sensor that now and then writes its end stop: such a share of rows have some features at ±`size`."""

    def contaminate(x: Array, rng: np.random.Generator) -> Array:
        x = x.copy()
        flat = x.reshape(len(x), -1)
        hit = rng.random(len(x)) < share
        features = rng.choice(flat.shape[1], max(1, flat.shape[1] // 4), replace=False)
        signs = rng.choice([-1.0, 1.0], (int(hit.sum()), len(features)))
        flat[np.ix_(hit, features)] = (size * signs).astype(np.float32)
        return x

    return contaminate


def noise(size: float) -> Contaminate:
    """Augmentation that nobody looked at: noise larger than the picture."""

    def contaminate(x: Array, rng: np.random.Generator) -> Array:
        return (x + rng.normal(0, size, x.shape)).astype(np.float32)

    return contaminate


def multiplied(factor: float, shift: float = 0.0) -> Callable[[Array], Array]:
    """Labels that went through somebody's scaling."""

    def mislabel(labels: Array) -> Array:
        return (labels * np.float32(factor) + np.float32(shift)).astype(np.float32)

    return mislabel


def as_column(labels: Array) -> Array:
    """Class numbers `[N, 1]`, which a squared error spreads over all outputs without a word."""
    return labels.astype(np.float32)[:, None]


# ── Mistakes inside a network ─────────────────────────────────────────────────────────────────────


def normalised_over_one_channel() -> list[Any]:
    """Normalises each pixel over its single channel: what comes out is 0, whatever goes in."""
    return [keras.layers.LayerNormalization()]


def attention_over_one() -> list[Any]:
    """A softmax over an axis of length 1, taken for attention: what comes out is 1, whatever goes in."""
    return [
        keras.layers.Lambda(lambda x: keras.ops.expand_dims(x, 1), name="as_sequence"),
        keras.layers.Softmax(axis=1, name="attention"),
        keras.layers.Flatten(),
    ]


def cut_off() -> list[Any]:
    """Lets nothing flow back."""
    return [keras.layers.Lambda(keras.ops.stop_gradient, name="features")]


def rounded() -> list[Any]:
    """Makes bits of what the layer before computes; no gradient passes."""
    return [keras.layers.Lambda(lambda x: keras.ops.round(keras.ops.sigmoid(x)), name="binary_code")]


def root_of_rectified() -> list[Any]:
    """A square root, whose slope at 0 is infinite, behind units that are often exactly 0."""
    return [keras.layers.Lambda(lambda x: keras.ops.sqrt(keras.ops.relu(x)), name="compressed")]


def log_error(targets: Any, outputs: Any) -> Any:
    """A squared error of logarithms; outputs may well be negative, and what has no logarithm is NaN."""
    targets = keras.ops.reshape(keras.ops.cast(targets, outputs.dtype), keras.ops.shape(outputs))
    return keras.ops.mean(keras.ops.square(keras.ops.log(targets) - keras.ops.log(outputs)), axis=-1)


# ── Initial weights ───────────────────────────────────────────────────────────────────────────────


def normal(deviation: float) -> Callable[[], Any]:
    """Normally distributed weights of this standard deviation."""
    return lambda: keras.initializers.RandomNormal(stddev=deviation)


def constant(value: float) -> Callable[[], Any]:
    """All weights alike."""
    return lambda: keras.initializers.Constant(value)
