"""What a training script decides, as one frozen value, and what it then does: `Recipe.prepare`.

A healthy training is a recipe (`bases`); an ailment or a mutant is the same recipe with a field or two changed. The
order of work is a script's: load, perhaps spoil, scale, encode, build, compile; `Training.fit` fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from .datasets import DATASETS, REPORTED, Array, Split
from .networks import Layers, Network, dense
from .scores import SCORES, Score


@dataclass(frozen=True)
class Recipe:
    """One training script."""

    dataset: str
    network: Network = dense
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers; a convolutional network's last is dense."""
    activation: str = "relu"
    initializer: Any = "glorot_uniform"
    """Of all kernels, a name or a function of no arguments that makes one."""
    bias_initializer: Any = "zeros"
    """Of hidden layers."""
    batch_norm: bool = False
    dropout: float = 0.0
    l2: float = 0.0
    front: Layers | None = None
    """Makes layers that stand right behind the input."""
    middle: Layers | None = None
    """Makes layers that stand behind the hidden ones, before the output."""
    output_units: int = 1
    output_activation: str = "linear"
    loss: Any = "mean_squared_error"
    """A name, or a function of targets and outputs."""
    optimizer: str = "Adam"
    learning_rate: float | Callable[[], Any] | None = None
    """A number, a function that makes a schedule, or `None` for Keras' default."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer."""
    scaled: bool = True
    """Whether inputs are standardised (tables) or divided by their range (images)."""
    target_scaled: bool = False
    """Whether the targets of a regression are standardised."""
    one_hot: bool = False
    balanced: bool = False
    """Whether `fit` gets class weights."""
    batch_size: int = 32
    epochs: int = 20
    shuffle: bool = True
    validated: bool = True
    steps_per_execution: int = 1
    pipeline: bool = False
    """Whether batches come through tf.data."""
    callbacks: Callable[[], list[Any]] | None = None
    """Makes the script's own."""
    spoil: Callable[[Split, np.random.Generator], Split] | None = None
    """What is wrong with the data before anything is done to it."""
    mislabel: Callable[[Array], Array] | None = None
    """What the script does wrong to the targets of training and validation, after encoding them."""
    contaminate: Callable[[Array, np.random.Generator], Array] | None = None
    """What is wrong with the training inputs after scaling."""
    score: str = "accuracy"
    """On the held-out part; one of `scores.SCORES`."""

    @property
    def reported(self) -> bool:
        """Whether it belongs to the part that rules are judged by, not tuned on."""
        return self.dataset in REPORTED

    def but(self, **changes: Any) -> Recipe:
        """The same with some decisions changed."""
        return replace(self, **changes)

    def prepare(self, seed: int) -> Training:
        """Loads, builds and compiles; sets all random seeds."""
        keras.utils.set_random_seed(seed)
        rng = np.random.default_rng(seed)
        split = DATASETS[self.dataset](seed)
        if self.spoil is not None:
            split = self.spoil(split, rng)
        split, to_price = self._scaled(split)
        model = self.network(self, split.x.shape[1:])
        if self.contaminate is not None:
            split = replace(split, x=self.contaminate(split.x, rng))
        self._compile(model, split)
        return self._training(model, split, to_price, seed)

    def _scaled(self, split: Split) -> tuple[Split, Callable[[Array], Array]]:
        """The split as the network gets it, and what turns its outputs back into targets."""
        if self.scaled and split.x.dtype == np.float32:
            if split.x.ndim > 2:
                low, width = np.float32(0), np.float32(split.x.max())
            else:
                with np.errstate(invalid="ignore"):
                    low, width = np.nanmean(split.x, axis=0), np.nanstd(split.x, axis=0) + 1e-7
            split = replace(
                split,
                x=(split.x - low) / width,
                x_validation=(split.x_validation - low) / width,
                x_held_out=(split.x_held_out - low) / width,
            )
        if not self.target_scaled:
            return split, lambda outputs: outputs
        mean, std = split.y.mean(), split.y.std()
        split = replace(split, y=(split.y - mean) / std, y_validation=(split.y_validation - mean) / std)
        return split, lambda outputs: outputs * std + mean

    def _compile(self, model: keras.Model, split: Split) -> None:
        rate = self.learning_rate() if callable(self.learning_rate) else self.learning_rate
        given = {} if rate is None else {"learning_rate": rate}
        optimizer = getattr(keras.optimizers, self.optimizer)(**given, **self.settings)
        model.compile(
            optimizer=optimizer,
            loss=self.loss,
            metrics=["accuracy"] if split.classes else ["mae"],
            steps_per_execution=self.steps_per_execution,
        )

    def _training(
        self, model: keras.Model, split: Split, to_target: Callable[[Array], Array], seed: int
    ) -> Training:
        x: Any = split.x
        y: Any = self._encoded(split.y, split.classes)
        arguments: dict[str, Any] = {"epochs": self.epochs, "verbose": 0}
        if self.validated:
            arguments["validation_data"] = (
                split.x_validation,
                self._encoded(split.y_validation, split.classes),
            )
        if self.balanced:
            counts = np.bincount(split.y, minlength=split.classes)
            weights = len(split.y) / (split.classes * np.maximum(counts, 1))
            arguments["class_weight"] = dict(enumerate(weights.tolist()))
        if self.pipeline:
            x, y = _pipeline(x, y, self.batch_size, seed if self.shuffle else None), None
        else:
            arguments |= {"batch_size": self.batch_size, "shuffle": self.shuffle}
        if self.callbacks is not None:
            arguments["callbacks"] = self.callbacks()
        held_out = (split.x_held_out, split.y_held_out)
        return Training(model, x, y, arguments, held_out, SCORES[self.score], to_target)

    def _encoded(self, labels: Array, classes: int) -> Array:
        if self.one_hot:
            labels = np.eye(classes, dtype=np.float32)[labels]
        elif classes and self.output_units == 1:
            labels = labels.astype(np.float32)
        return labels if self.mislabel is None else self.mislabel(labels)


@dataclass(frozen=True)
class Training:
    """A compiled model with all that `fit` takes."""

    model: keras.Model
    x: Any
    """Inputs of the training part, or a tf.data.Dataset that yields inputs and targets."""
    y: Array | None
    """`None` beside a Dataset."""
    arguments: dict[str, Any]
    """Further ones of `fit`."""
    held_out: tuple[Array, Array]
    """Inputs as the network takes them, and targets as they truly are: class numbers, or unscaled."""
    score: Score
    to_target: Callable[[Array], Array]
    """Turns outputs into unscaled targets."""

    @property
    def higher_is_better(self) -> bool:
        """Of the score."""
        return self.score.higher_is_better

    def fit(self, callbacks: Sequence[Any] = (), **changes: Any) -> keras.callbacks.History:
        """Trains with further callbacks; `changes` go over the arguments."""
        arguments = {**self.arguments, **changes}
        own = arguments.pop("callbacks", [])
        return self.model.fit(self.x, self.y, callbacks=[*own, *callbacks], **arguments)

    def held_out_score(self) -> float:
        """What the model is worth on data it has not seen; the worst possible where its outputs are no numbers."""
        x, y = self.held_out
        outputs = self.model.predict(x, batch_size=512, verbose=0)
        return self.score.of(y, self.to_target(np.asarray(outputs, np.float64)))


def _pipeline(x: Array, y: Array, batch_size: int, seed: int | None) -> Any:
    import tensorflow as tf

    examples = tf.data.Dataset.from_tensor_slices((x, y))
    if seed is not None:
        examples = examples.shuffle(len(x), seed=seed)
    return examples.batch(batch_size).prefetch(2)
