"""Handwritten digits: scikit-learn's 8x8 images and a small convolutional network. Healthy: a monitor finds no fault.

python -m demos.digits
"""

import argparse
from collections.abc import Sequence

import keras
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Part = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def load_data(seed: int = 0) -> tuple[Part, Part]:
    """Return `(x_train, y_train), (x_test, y_test)`: float32 `[N, 8, 8, 1]`, 0 to 1, and labels 0 to 9; 20 % test."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    return (x_train, y_train), (x_test, y_test)


def build_model(seed: int = 0, steps_per_execution: int = 1) -> keras.Model:
    """Return the compiled network; seeds Python, NumPy and Keras, so that weights and shuffling repeat."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10, activation="softmax"),
        ],
        name="digits",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=2e-4),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Train with a monitor attached, then print the held-out accuracy."""
    from client_callback import MonitorCallback

    parser = argparse.ArgumentParser(
        prog="digits", description="Train a healthy classifier of handwritten digits."
    )
    parser.add_argument("--epochs", type=int, default=60, help="passes over the 1,437 images (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="starting weights and shuffling (default 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step (default 16)")
    parser.add_argument(
        "--steps-per-execution", type=int, default=1, help="steps per compiled call (default 1)"
    )
    parser.add_argument("--quiet", action="store_true", help="print only the held-out accuracy at the end")
    options = parser.parse_args(argv)

    (x_train, y_train), (x_test, y_test) = load_data()
    model = build_model(options.seed, options.steps_per_execution)
    model.fit(
        x_train,
        y_train,
        validation_data=(x_test, y_test),
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=[MonitorCallback(name="digits")],
        verbose=0 if options.quiet else 2,
    )
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    majority = np.bincount(y_test).max() / len(y_test)
    print(f"held-out accuracy: {accuracy:.3f} (always guessing the majority class: {majority:.3f})")


if __name__ == "__main__":
    main()
