"""The trainings that are measured: small steps, where anything added shows, and larger ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras


SEGMENTS = 10
"""In an epoch: what its begin and end cost is a part of training, but most epochs are long."""


class Size(NamedTuple):
    """A classifier of ten classes, and how long one segment of its training is."""

    inputs: tuple[int, ...]
    filters: tuple[int, ...]
    """Of its convolutions; none for inputs that are no images."""
    units: tuple[int, ...]
    batch: int
    steps: int

    def fit(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Trains until a callback raises."""
        import keras

        keras.utils.set_random_seed(0)
        model = self._model()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        chance = np.random.default_rng(0)
        x = chance.normal(size=(self.batch * self.steps * SEGMENTS, *self.inputs)).astype("float32")
        y = chance.integers(0, 10, len(x))
        model.fit(x, y, batch_size=self.batch, epochs=10**9, shuffle=False, verbose=0, callbacks=callbacks)

    def _model(self) -> keras.Model:
        import keras

        layers: list[keras.layers.Layer] = [keras.Input(self.inputs)]
        layers += [keras.layers.Conv2D(filters, 3, activation="relu") for filters in self.filters]
        if self.filters:
            layers.append(keras.layers.GlobalAveragePooling2D())
        layers += [keras.layers.Dense(units, activation="relu") for units in self.units]
        return keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")])


SIZES = {
    "dense": Size((256,), filters=(), units=(512, 256), batch=64, steps=80),
    "convolutional": Size((28, 28, 1), filters=(16, 32), units=(), batch=32, steps=40),
}
