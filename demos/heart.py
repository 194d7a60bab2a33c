"""Normal or pathological heart sounds: the two-layer dense network of the MNIST tutorials, with an honest mistake.

Adam runs at 0.01, ten times its default, and the spectrograms go in as they come, 0 to 255. Its first steps move
all weights of a unit by 0.01 in the same direction, which over 784 bright pixels swings the unit by hundreds: within
three epochs practically no ReLU of the first layer fires, and from then on the loss sits at 0.69 and the accuracy at
the majority share, 55 %. Dead units pass no gradient, so from there neither another rate nor another optimizer helps;
the starting weights do learn, with SGD at 0.001 or less or with Adam at 0.0001. Dividing the inputs by 255 while
keeping Adam at 0.01 does not help.

Nothing is rigged and nothing slows the run down: `python -m demos.heart`.
"""

import argparse
from collections.abc import Sequence

import keras
import numpy as np

from .heart_sounds import load_data


def build_model(seed: int = 0, steps_per_execution: int = 1) -> keras.Model:
    """Return the compiled network; seeds Python, NumPy and Keras, so that weights and shuffling repeat."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(512, activation="relu"),
            keras.layers.Dense(512, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ],
        name="heart",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.01),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Train with a monitor attached, then print the held-out accuracy."""
    from client_callback import MonitorCallback

    parser = argparse.ArgumentParser(
        prog="heart", description="Train a heart-sound classifier that gets stuck."
    )
    parser.add_argument(
        "--epochs", type=int, default=80, help="passes over the 2,394 recordings (default 80)"
    )
    parser.add_argument("--seed", type=int, default=0, help="starting weights and shuffling (default 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="recordings per step (default 16)")
    parser.add_argument(
        "--steps-per-execution", type=int, default=1, help="steps per compiled call (default 1)"
    )
    parser.add_argument("--name", default="heart", help="of the run (default heart)")
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
        callbacks=[MonitorCallback(name=options.name)],
        verbose=0 if options.quiet else 2,
    )
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    majority = np.bincount(y_test).max() / len(y_test)
    print(f"held-out accuracy: {accuracy:.3f} (always guessing the majority class: {majority:.3f})")


if __name__ == "__main__":
    main()
