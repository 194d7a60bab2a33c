"""A `fit` on two replicas of one CPU that is steered; prints as JSON what became of each replica.

`tf.distribute.MirroredStrategy` on TensorFlow, `keras.distribution.DataParallel` on JAX. Run as a program by
`test_steering_replicas`: the number of devices is fixed before either starts.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np

from tests.steered_fit import BACKEND, BATCH, SteeredFit, X, Y, dense_model
from tests.two_devices import replicate


def spread(variables: list) -> float:
    """The largest difference between two replicas of one variable."""
    if BACKEND == "jax":
        copies = [[np.asarray(s.data) for s in variable.value.addressable_shards] for variable in variables]
        assert all(pair[0].shape == v.shape for pair, v in zip(copies, variables, strict=True))  # not parts
    else:
        copies = [[copy.numpy() for copy in variable.value.values] for variable in variables]
    return max(float(np.abs(first - second).max()) for first, second in copies)


def train(config: dict) -> dict:
    traces: list[int] = []
    with scope():
        model = dense_model()
        rate = keras.optimizers.schedules.CosineDecay(0.05, 20) if config["schedule"] else 0.05
        model.compile(keras.optimizers.Adam(rate, **config["optimizer"]), "mse")
    if BACKEND == "jax":
        original = model.train_step
        model.train_step = lambda *args: traces.append(1) or original(*args)
    script = {int(step): texts for step, texts in config["script"].items()}
    fit = SteeredFit(script, read_rates=BACKEND == "tensorflow" or config["schedule"])
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    mirrored = [v for v in model.optimizer.variables if v.path.endswith(("momentum", "velocity", "average"))]
    return {
        "replies": [{"status": r.status, "reason": r.reason, "after": r.after} for r in fit.replies],
        "rates": fit.rates,
        "weights_apart": spread(model.trainable_variables),
        "slots_apart": spread(mirrored) if mirrored else 0.0,
        "weights": [w.tolist() for w in model.get_weights()],
        "optimizer": type(model.optimizer).__name__.lower(),
        "traces": len(traces),
    }


scope = replicate()
print(json.dumps([train(config) for config in json.loads(sys.argv[1])]))
