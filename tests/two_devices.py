"""Two devices of one CPU, for programs that train on replicas; their number is fixed before a backend starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import keras


def replicate() -> Callable[[], AbstractContextManager[object]]:
    """Two devices; models are made inside of what this returns."""
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
        return nullcontext
    import tensorflow as tf

    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
