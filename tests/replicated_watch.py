"""Fits on two replicas of one CPU, watched and not, and the same watched on one; prints what they led to, as JSON.

`tf.distribute.MirroredStrategy` on TensorFlow, `keras.distribution.DataParallel` on JAX. Run as a program by
`test_replicas`: the number of devices is fixed before either starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np

from client_callback import MonitorCallback
from tests import models

EVERY = 5


def on_two_devices() -> contextlib.AbstractContextManager[object]:
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
        return contextlib.nullcontext()
    import tensorflow as tf

    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def train(folder: Path | None) -> dict[str, object]:
    x = models.inputs(examples=16 * 12)
    model = models.plain_mlp()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    callbacks = [MonitorCallback("replicas", statistics_every=EVERY, directory=folder)] if folder else []
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(x, models.labels(x), callbacks=callbacks, **options)
    return {
        "weights": [np.asarray(weight).tolist() for weight in model.get_weights()],
        "history": history.history,
        "recording": str(callbacks[0].recording) if callbacks else None,
    }


def main() -> None:
    folder, *policies = sys.argv[1:]
    found: dict[str, dict[str, object]] = {policy: {} for policy in policies}
    with on_two_devices():
        for policy in policies:
            keras.mixed_precision.set_global_policy(policy)
            found[policy] |= {"watched": train(Path(folder)), "bare": train(None)}
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(None)
    for policy in policies:
        keras.mixed_precision.set_global_policy(policy)
        found[policy]["one"] = train(Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
