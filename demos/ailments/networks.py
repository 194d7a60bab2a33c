"""The networks that recipes name: what a tutorial of its kind builds. Each is a function of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from .datasets import VOCABULARY

if TYPE_CHECKING:
    from .recipe import Recipe

EMBEDDING = 8
"""Numbers to a word."""

Layers: TypeAlias = Callable[[], list[Any]]
Network: TypeAlias = Callable[["Recipe", tuple[int, ...]], keras.Model]
"""A function of the recipe and the shape of one example; returns a built model."""


def dense(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """Dense layers on a flattened example."""
    body: list[Any] = [keras.layers.Flatten()] if len(shape) > 1 else []
    for width in recipe.hidden:
        body += _block(recipe, keras.layers.Dense, width)
    return _model(recipe, shape, body)


def convolutional(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """Convolutions of 3x3, each halving the image, then one dense layer."""
    body: list[Any] = []
    for filters in recipe.hidden[:-1]:
        body += _block(recipe, keras.layers.Conv2D, filters, kernel_size=3, padding="same")
        body.append(keras.layers.MaxPooling2D())
    body.append(keras.layers.Flatten())
    body += _block(recipe, keras.layers.Dense, recipe.hidden[-1])
    return _model(recipe, shape, body)


def pooled(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """Convolutions in strides of two, the mean of each filter over the image, then one dense layer."""
    body: list[Any] = []
    for filters in recipe.hidden[:-1]:
        body += _block(recipe, keras.layers.Conv2D, filters, kernel_size=3, padding="same", strides=2)
    body.append(keras.layers.GlobalAveragePooling2D())
    body += _block(recipe, keras.layers.Dense, recipe.hidden[-1])
    return _model(recipe, shape, body)


def recurrent(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """A GRU over the words of a snippet."""
    body: list[Any] = [keras.layers.Embedding(VOCABULARY, EMBEDDING), *_gru(recipe)]
    return _model(recipe, shape, body)


def over_time(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """A GRU over the columns of a spectrogram, from left to right."""
    body: list[Any] = [keras.layers.Reshape(shape[:2]), keras.layers.Permute((2, 1)), *_gru(recipe)]
    return _model(recipe, shape, body)


def simple_over_time(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """A plain recurrent layer over the columns of a spectrogram, with the recipe's activation."""
    body: list[Any] = [keras.layers.Reshape(shape[:2]), keras.layers.Permute((2, 1)), _plain_rnn(recipe)]
    return _model(recipe, shape, body)


def simple_recurrent(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """A plain recurrent layer over the words of a snippet, with the recipe's activation."""
    body: list[Any] = [keras.layers.Embedding(VOCABULARY, EMBEDDING), _plain_rnn(recipe)]
    return _model(recipe, shape, body)


def bag_of_words(recipe: Recipe, shape: tuple[int, ...]) -> keras.Model:
    """The mean of the words' embeddings, then dense layers."""
    body: list[Any] = [keras.layers.Embedding(VOCABULARY, EMBEDDING), keras.layers.GlobalAveragePooling1D()]
    for width in recipe.hidden:
        body += _block(recipe, keras.layers.Dense, width)
    return _model(recipe, shape, body)


def _model(recipe: Recipe, shape: tuple[int, ...], body: list[Any]) -> keras.Model:
    front = recipe.front() if recipe.front else []
    middle = recipe.middle() if recipe.middle else []
    output = keras.layers.Dense(
        recipe.output_units, recipe.output_activation, kernel_initializer=_initializer(recipe)
    )
    name = recipe.dataset.replace("-", "_")
    return keras.Sequential([keras.Input(shape), *front, *body, *middle, output], name=name)


def _block(recipe: Recipe, kind: Any, width: int, **arguments: Any) -> list[Any]:
    layer = kind(
        width,
        activation=None if recipe.batch_norm else recipe.activation,
        kernel_initializer=_initializer(recipe),
        bias_initializer=recipe.bias_initializer,
        kernel_regularizer=keras.regularizers.L2(recipe.l2) if recipe.l2 else None,
        **arguments,
    )
    block = [layer]
    if recipe.batch_norm:
        block += [keras.layers.BatchNormalization(momentum=0.9), keras.layers.Activation(recipe.activation)]
    if recipe.dropout:
        block.append(keras.layers.Dropout(recipe.dropout))
    return block


def _gru(recipe: Recipe) -> list[Any]:
    gru = keras.layers.GRU(
        recipe.hidden[0],
        kernel_initializer=_initializer(recipe),
        kernel_regularizer=keras.regularizers.L2(recipe.l2) if recipe.l2 else None,
    )
    body: list[Any] = [gru]
    if recipe.dropout:
        body.append(keras.layers.Dropout(recipe.dropout))
    for width in recipe.hidden[1:]:
        body += _block(recipe, keras.layers.Dense, width)
    return body


def _plain_rnn(recipe: Recipe) -> Any:
    return keras.layers.SimpleRNN(
        recipe.hidden[0], activation=recipe.activation, recurrent_initializer=_initializer(recipe)
    )


def _initializer(recipe: Recipe) -> Any:
    """A new one for each layer, so that equal shapes do not get equal weights."""
    return recipe.initializer() if callable(recipe.initializer) else recipe.initializer
