"""A `fit` on two replicas of one CPU that is steered; prints as JSON what became of each replica.

Run as a program by `test_steering_replicas`: the number of devices is fixed before TensorFlow starts.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

import keras  # noqa: E402

from tests.steered_fit import BATCH, SteeredFit, X, Y, dense_model  # noqa: E402


def spread(variables: list) -> float:
    """The largest difference between two replicas of one variable."""
    copies = [[copy.numpy() for copy in variable.value.values] for variable in variables]
    return max(float(np.abs(first - second).max()) for first, second in copies)


def train(config: dict) -> dict:
    with strategy.scope():
        model = dense_model()
        rate = keras.optimizers.schedules.CosineDecay(0.05, 20) if config["schedule"] else 0.05
        model.compile(keras.optimizers.Adam(rate, **config["optimizer"]), "mse")
    fit = SteeredFit({int(step): texts for step, texts in config["script"].items()})
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    mirrored = [v for v in model.optimizer.variables if v.path.endswith(("momentum", "velocity", "average"))]
    return {
        "replies": [{"status": r.status, "reason": r.reason, "after": r.after} for r in fit.replies],
        "rates": fit.rates,
        "weights_apart": spread(model.trainable_variables),
        "slots_apart": spread(mirrored) if mirrored else 0.0,
        "weights": [w.tolist() for w in model.get_weights()],
        "optimizer": type(model.optimizer).__name__.lower(),
    }


print(json.dumps([train(config) for config in json.loads(sys.argv[1])]))
