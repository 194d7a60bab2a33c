"""Every ailment: at least one for each cause that a monitor must be able to name, most on a data set of either part.

`also` holds what else an expert would call the cause, judged by what happens on Keras 3 with TensorFlow. Symptoms of
the cause are not in it.
"""

from __future__ import annotations

import keras

from . import spoiling
from .ailment import Ailment
from .networks import convolutional, dense, simple_recurrent

SGD = {"optimizer": "SGD", "learning_rate": 0.01}
MOMENTUM = {"optimizer": "SGD", "settings": {"momentum": 0.9}}


def _also(*rules: str) -> frozenset[str]:
    return frozenset(rules)


AILMENTS: tuple[Ailment, ...] = (
    # ── Data ──────────────────────────────────────────────────────────────────────────────────────
    Ailment(
        "class-imbalance",
        "prose",
        "one snippet in eight is positive, and accuracy is all that is looked at",
        {"spoil": spoiling.few_of_class(1, 0.12)},
    ),
    Ailment(
        "class-imbalance",
        "heart-dense",
        "one recording in eight is pathological",
        {"spoil": spoiling.few_of_class(1, 0.12), "score": "balanced accuracy"},
        {"score": "balanced accuracy"},
    ),
    Ailment(
        "input-scale",
        "wine",
        "features go in as measured, from 0.1 to 1,680",
        SGD | {"scaled": False},
        SGD | {"learning_rate": 0.05},
    ),
    Ailment(
        "input-scale",
        "breast-cancer",
        "features go in as measured, from 0.001 to 4,254",
        SGD | {"scaled": False},
        SGD | {"learning_rate": 0.05},
    ),
    Ailment(
        "input-scale",
        "housing-dense",
        "population in thousands beside rooms per head, unscaled",
        {"scaled": False},
    ),
    Ailment(
        "bad-input",
        "digits-dense",
        "1 % of one pixel is missing and NaN",
        {"contaminate": spoiling.missing_values(0.01)},
    ),
    Ailment(
        "bad-input",
        "digits",
        "the file is sorted by class and not shuffled",
        {"spoil": spoiling.sorted_by_target, "shuffle": False},
    ),
    Ailment(
        "bad-input",
        "housing-dense",
        "a sensor's end stop, 300 standard deviations away, in 2 % of the rows",
        {"contaminate": spoiling.outliers(0.02, 300.0)},
    ),
    Ailment(
        "bad-input",
        "heart",
        "the pipeline yields its first batch again and again",
        {"spoil": spoiling.one_batch_again_and_again(32)},
        also=_also("overfitting"),
    ),
    Ailment(
        "bad-input",
        "breast-cancer",
        "empty cells became NaN in 1 % of one feature",
        {"contaminate": spoiling.missing_values(0.01)},
    ),
    Ailment(
        "label-encoding",
        "digits-dense",
        "one-hot labels were divided by 255 along with the images",
        {"mislabel": spoiling.multiplied(1 / 255)},
    ),
    Ailment(
        "label-encoding",
        "text",
        "snippets and labels were shuffled apart",
        {"spoil": spoiling.shuffled_labels, "epochs": 5},
    ),
    Ailment(
        "label-encoding",
        "breast-cancer",
        "labels are 1 and 2 for a sigmoid",
        {"mislabel": spoiling.multiplied(1, 1)},
    ),
    Ailment(
        "label-encoding",
        "heart-dense",
        "labels are 0 and 255",
        {"mislabel": spoiling.multiplied(255)},
    ),
    # ── Loss and output ───────────────────────────────────────────────────────────────────────────
    Ailment(
        "wrong-loss",
        "text",
        "squared error on class numbers under four softmax units",
        {"loss": "mean_squared_error", "mislabel": spoiling.as_column},
        also=_also("label-encoding"),
    ),
    Ailment(
        "wrong-loss",
        "diabetes",
        "binary cross-entropy for a regression",
        {"loss": "binary_crossentropy", "learning_rate": 2e-3},
        also=_also("wrong-output-activation"),
    ),
    Ailment(
        "wrong-loss",
        "breast-cancer",
        "categorical cross-entropy on one unit, which is always 0",
        {"loss": "categorical_crossentropy"},
    ),
    Ailment(
        "wrong-loss",
        "heart",
        "squared error on class numbers under two softmax units",
        {"loss": "mean_squared_error", "mislabel": spoiling.as_column},
        also=_also("label-encoding"),
    ),
    Ailment(
        "wrong-output-activation",
        "prose",
        "softmax on one unit",
        {"output_activation": "softmax"},
    ),
    Ailment(
        "wrong-output-activation",
        "digits",
        "relu under the cross-entropy",
        {"output_activation": "relu"},
    ),
    Ailment(
        "wrong-output-activation",
        "breast-cancer",
        "softmax on one unit",
        {"output_activation": "softmax"},
    ),
    Ailment(
        "wrong-output-activation",
        "housing-dense",
        "sigmoid for prices up to 6",
        {"output_activation": "sigmoid"},
    ),
    # ── Activations, initial weights, gradients ───────────────────────────────────────────────────
    Ailment(
        "hidden-activation",
        "digits-dense",
        "five sigmoid layers",
        {"hidden": (64,) * 5, "activation": "sigmoid"},
        {"hidden": (64,) * 5},
        also=_also("vanishing-gradient"),
    ),
    Ailment(
        "hidden-activation",
        "housing-dense",
        "no activation between the layers",
        {"activation": "linear"},
        also=_also("underfitting"),
    ),
    Ailment(
        "hidden-activation",
        "breast-cancer",
        "eight sigmoid layers",
        {"hidden": (24,) * 8, "activation": "sigmoid", "dropout": 0.0, "epochs": 15},
        {"hidden": (24,) * 6, "dropout": 0.0, "epochs": 15},
        also=_also("vanishing-gradient"),
    ),
    Ailment(
        "vanishing-gradient",
        "digits-dense",
        "ten tanh layers with small random weights",
        {"hidden": (32,) * 10, "activation": "tanh", "initializer": spoiling.normal(0.03), "dropout": 0.0},
        {"hidden": (32,) * 10, "activation": "tanh", "dropout": 0.0, "learning_rate": 0.01},
        also=_also("bad-initialisation", "hidden-activation"),
    ),
    Ailment(
        "vanishing-gradient",
        "heart-dense",
        "eight sigmoid layers",
        {"hidden": (32,) * 8, "activation": "sigmoid", "dropout": 0.0},
        {"hidden": (32,) * 4, "activation": "relu", "dropout": 0.1, "initializer": "he_normal"},
        also=_also("hidden-activation"),
    ),
    Ailment(
        "exploding-gradient",
        "diabetes",
        "plain SGD on raw targets up to 346, without clipping",
        SGD | {"target_scaled": False, "learning_rate": 0.01},
        SGD | {"learning_rate": 0.01},
        also=_also("learning-rate-high", "non-finite"),
    ),
    Ailment(
        "exploding-gradient",
        "text",
        "a recurrent layer of relu units with large weights",
        {
            "network": simple_recurrent,
            "activation": "relu",
            "initializer": lambda: keras.initializers.Orthogonal(gain=2.2),
            "optimizer": "SGD",
            "learning_rate": 0.05,
        },
        also=_also("learning-rate-high", "bad-initialisation", "non-finite"),
    ),
    Ailment(
        "exploding-gradient",
        "housing-dense",
        "prices in dollars under a squared error and plain SGD",
        SGD | {"spoil": spoiling.targets_times(1e5), "learning_rate": 0.01},
        SGD | {"learning_rate": 0.02, "settings": {"momentum": 0.9, "clipnorm": 1.0}},
        also=_also("learning-rate-high", "non-finite"),
    ),
    Ailment(
        "dead-units",
        "digits-dense",
        "biases start at −8, so no relu ever fires",
        {"bias_initializer": spoiling.constant(-8.0)()},
        also=_also("bad-initialisation"),
    ),
    Ailment(
        "dead-units",
        "heart-dense",
        "spectrograms from 0 to 255 and Adam at 0.01",
        {
            "scaled": False,
            "learning_rate": 0.01,
            "dropout": 0.0,
            "output_units": 2,
            "output_activation": "softmax",
            "loss": "sparse_categorical_crossentropy",
            "l2": 0.0,
        },
        {
            "learning_rate": 1e-3,
            "output_units": 2,
            "output_activation": "softmax",
            "loss": "sparse_categorical_crossentropy",
        },
        also=_also("learning-rate-high", "input-scale"),
    ),
    Ailment(
        "non-finite",
        "diabetes",
        "a loss of logarithms that gets negative outputs",
        {"loss": spoiling.log_error, "target_scaled": False},
    ),
    Ailment(
        "non-finite",
        "housing-dense",
        "a square root behind units that are often exactly 0",
        {"middle": spoiling.root_of_rectified},
    ),
    Ailment(
        "bad-initialisation",
        "digits",
        "all weights start at 0",
        {"initializer": "zeros"},
    ),
    Ailment(
        "bad-initialisation",
        "wine",
        "weights start with a standard deviation of 8",
        {"initializer": spoiling.normal(8.0), "l2": 0.0},
    ),
    Ailment(
        "bad-initialisation",
        "housing-dense",
        "all weights start alike, so all units of a layer stay alike",
        {"initializer": spoiling.constant(0.1)},
    ),
    Ailment(
        "bad-initialisation",
        "heart-dense",
        "all weights start at 0",
        {"initializer": "zeros"},
    ),
    Ailment(
        "frozen-layer",
        "digits",
        "a gradient is stopped behind the features",
        {"network": convolutional, "hidden": (8, 16, 16), "middle": spoiling.cut_off, "dropout": 0.0},
        {"network": convolutional, "hidden": (8, 16, 16), "dropout": 0.0},
    ),
    Ailment(
        "frozen-layer",
        "breast-cancer",
        "the features are rounded to bits, which has no gradient",
        {"hidden": (8, 3), "middle": spoiling.rounded, "dropout": 0.0},
        {"hidden": (8, 3), "dropout": 0.0},
    ),
    Ailment(
        "frozen-layer",
        "heart",
        "a gradient is stopped behind the features",
        {"hidden": (4, 4, 4), "middle": spoiling.cut_off},
        {"hidden": (4, 4, 4)},
    ),
    Ailment(
        "input-ignored",
        "digits",
        "each pixel is normalised over its one channel, which leaves zeros",
        {"front": spoiling.normalised_over_one_channel},
    ),
    Ailment(
        "input-ignored",
        "heart",
        "each pixel is normalised over its one channel, which leaves zeros",
        {"front": spoiling.normalised_over_one_channel},
    ),
    Ailment(
        "input-ignored",
        "housing-dense",
        "attention over an axis of length 1",
        {"middle": spoiling.attention_over_one},
        also=_also("frozen-layer"),
    ),
    # ── Rate, optimizer, batches ──────────────────────────────────────────────────────────────────
    Ailment(
        "learning-rate-high",
        "digits",
        "Adam at 0.3",
        {"learning_rate": 0.3},
        also=_also("oscillation", "dead-units"),
    ),
    Ailment(
        "learning-rate-high",
        "wine",
        "SGD with momentum at 3",
        MOMENTUM | {"learning_rate": 3.0},
        MOMENTUM | {"learning_rate": 0.01},
        also=_also("oscillation", "exploding-gradient", "dead-units"),
    ),
    Ailment(
        "learning-rate-high",
        "breast-cancer",
        "Adam at 1",
        {"learning_rate": 1.0},
        also=_also("oscillation", "dead-units"),
    ),
    Ailment(
        "learning-rate-high",
        "housing-dense",
        "Adam at 0.5",
        {"learning_rate": 0.5},
        also=_also("oscillation", "dead-units"),
    ),
    Ailment(
        "learning-rate-low",
        "digits",
        "Adam at 0.000002",
        {"learning_rate": 2e-6},
    ),
    Ailment(
        "learning-rate-low",
        "prose",
        "Adam at 0.00001",
        {"learning_rate": 1e-5},
    ),
    Ailment(
        "learning-rate-low",
        "breast-cancer",
        "SGD at 0.00005",
        SGD | {"learning_rate": 5e-5},
        SGD | {"learning_rate": 0.05},
    ),
    Ailment(
        "learning-rate-low",
        "heart",
        "Adam at 0.000003",
        {"learning_rate": 3e-6},
    ),
    Ailment(
        "unsuitable-optimizer",
        "digits",
        "Adadelta at Keras' default, which sits still",
        {"optimizer": "Adadelta", "learning_rate": None},
        also=_also("learning-rate-low"),
    ),
    Ailment(
        "unsuitable-optimizer",
        "text",
        "plain SGD for embeddings and a GRU",
        {"optimizer": "SGD", "learning_rate": None, "epochs": 5},
        {},
        also=_also("learning-rate-low"),
    ),
    Ailment(
        "unsuitable-optimizer",
        "housing-dense",
        "Adagrad at Keras' default, which sits still",
        {"optimizer": "Adagrad", "learning_rate": None},
        also=_also("learning-rate-low"),
    ),
    Ailment(
        "unsuitable-optimizer",
        "heart-recurrent",
        "plain SGD for a recurrent network",
        {"optimizer": "SGD", "learning_rate": None, "epochs": 10},
        also=_also("learning-rate-low"),
    ),
    Ailment(
        "batch-size",
        "diabetes",
        "one example to a step",
        {"batch_size": 1, "epochs": 4, "learning_rate": 0.03},
        {"learning_rate": 5e-3},
        also=_also("learning-rate-high", "oscillation"),
    ),
    Ailment(
        "batch-size",
        "prose",
        "the whole data set to a step",
        {"batch_size": 1200},
        also=_also("too-short", "learning-rate-low"),
    ),
    Ailment(
        "batch-size",
        "breast-cancer",
        "one example to a step, with momentum",
        MOMENTUM | {"batch_size": 1, "epochs": 4, "learning_rate": 0.05, "dropout": 0.0},
        MOMENTUM | {"batch_size": 32, "learning_rate": 0.02, "dropout": 0.0},
        also=_also("learning-rate-high", "oscillation"),
    ),
    Ailment(
        "batch-size",
        "heart",
        "the whole data set to a step",
        {"batch_size": 750, "epochs": 14},
        also=_also("too-short", "learning-rate-low"),
    ),
    Ailment(
        "oscillation",
        "digits-dense",
        "momentum of 0.99 on top of a rate for plain SGD",
        {"learning_rate": 0.06, "settings": {"momentum": 0.99}},
        also=_also("learning-rate-high", "exploding-gradient"),
    ),
    Ailment(
        "oscillation",
        "housing-dense",
        "momentum of 0.99 on top of a rate for plain SGD",
        {"optimizer": "SGD", "learning_rate": 0.03, "settings": {"momentum": 0.99}},
        {"optimizer": "SGD", "learning_rate": 0.01, "settings": {"momentum": 0.9}},
        also=_also("learning-rate-high"),
    ),
    Ailment(
        "plateau",
        "digits",
        "the schedule has halved the rate ten times before the second half begins",
        {"learning_rate": lambda: keras.optimizers.schedules.ExponentialDecay(2e-3, 15, 0.5)},
        also=_also("learning-rate-low"),
    ),
    Ailment(
        "plateau",
        "housing-dense",
        "a constant rate too large to settle with",
        {"learning_rate": 0.04},
        {"learning_rate": lambda: keras.optimizers.schedules.CosineDecay(0.01, 760)},
        also=_also("learning-rate-high", "oscillation", "batch-size"),
    ),
    # ── Capacity, regularisation, time ────────────────────────────────────────────────────────────
    Ailment(
        "underfitting",
        "digits",
        "two units before ten classes",
        {"network": dense, "hidden": (2,), "dropout": 0.0},
        {"network": dense, "hidden": (48,), "dropout": 0.0},
    ),
    Ailment(
        "underfitting",
        "housing-dense",
        "one hidden unit",
        {"hidden": (1,), "epochs": 25},
        {"epochs": 25},
    ),
    Ailment(
        "overfitting",
        "diabetes",
        "a large network for 221 patients, for long",
        {"hidden": (128, 128), "l2": 0.0, "epochs": 40},
    ),
    Ailment(
        "overfitting",
        "heart",
        "120 recordings, a dense network, no regularisation",
        {
            "network": dense,
            "hidden": (128, 64),
            "batch_norm": False,
            "spoil": spoiling.few_examples(120),
            "epochs": 60,
            "score": "log loss",
            "learning_rate": 1e-3,
        },
        {"score": "log loss"},
    ),
    Ailment(
        "over-regularised",
        "digits",
        "nine of ten units dropped in every layer",
        {"dropout": 0.9},
    ),
    Ailment(
        "over-regularised",
        "wine",
        "L2 of 1",
        {"l2": 1.0},
    ),
    Ailment(
        "over-regularised",
        "breast-cancer",
        "nine of ten units dropped in every layer",
        {"dropout": 0.9, "hidden": (16, 16, 16)},
        {"dropout": 0.1, "hidden": (16, 16, 16)},
    ),
    Ailment(
        "over-regularised",
        "housing-dense",
        "L2 of 0.3",
        {"l2": 0.3},
    ),
    Ailment(
        "too-short",
        "digits",
        "three epochs",
        {"epochs": 3, "learning_rate": 5e-4},
        own_signs=True,
    ),
    Ailment(
        "too-short",
        "heart-dense",
        "four epochs",
        {"epochs": 4},
        own_signs=True,
    ),
    Ailment(
        "too-short",
        "housing-dense",
        "four epochs",
        {"epochs": 4, "learning_rate": 1e-3},
        own_signs=True,
    ),
    Ailment(
        "validation-too-good",
        "digits",
        "noise larger than the pictures is added in training only",
        {"contaminate": spoiling.noise(0.6)},
        own_signs=True,
    ),
    Ailment(
        "validation-too-good",
        "prose",
        "17 of 20 units dropped, in training only",
        {"dropout": 0.85, "epochs": 20},
        also=_also("over-regularised"),
        own_signs=True,
    ),
    Ailment(
        "validation-too-good",
        "housing-dense",
        "validates on houses it trains on, half of the units dropped in training",
        {"spoil": spoiling.validation_from_training, "dropout": 0.5},
        also=_also("over-regularised"),
        own_signs=True,
    ),
    Ailment(
        "validation-too-good",
        "breast-cancer",
        "four of ten training labels are guessed, those of validation are not",
        {"spoil": spoiling.wrong_labels(0.4)},
        also=_also("label-encoding"),
        own_signs=True,
    ),
)


def find(name: str, base: str | None = None) -> Ailment:
    """The first ailment of this name, on this base when one is named. Raises KeyError."""
    for ailment in AILMENTS:
        if ailment.name == name and base in (None, ailment.base):
            return ailment
    raise KeyError(f"no ailment {name!r}" + (f" on {base!r}" if base else ""))
