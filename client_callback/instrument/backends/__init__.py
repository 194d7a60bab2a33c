"""What differs between Keras' backends when a train step is measured: one driver for each.

A driver hooks what is its backend's own (the train step, the optimizer), keeps the measured values on the device
until they are drained, and decides on the device or on the host which steps are sampled. To add a backend: a module
with these names and a line in `BACKENDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import keras

from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Int64

BACKENDS = {
    "tensorflow": "client_callback.instrument.backends.tensorflow",
    "jax": "client_callback.instrument.backends.jax",
    "torch": "client_callback.instrument.backends.torch",
}
"""Keras backend → the module with its `Driver`."""


class Waiting(NamedTuple):
    """What a driver hands over when it is drained."""

    first: int
    """Number of the first step in `rows`. Those between the last drain and it were overwritten."""
    rows: Float32
    """float32[replicas, steps, columns]."""
    sample_steps: Int64
    """int64[samples]."""
    samples: Float32
    """float32[replicas, samples, width]."""


class Driver(Protocol):
    """Measures the train step of one model on one backend."""

    targets_from: str
    """The method that sees targets and predictions where they can be taken."""
    replicas: int
    """Copies of the model that are trained in step, each on a part of the batch, and measured one by one."""
    capacity: int
    """Steps that fit between two drains."""

    def install(self) -> None:
        """Hooks the model; Keras then makes its train function anew."""

    def remove(self) -> None:
        """Takes the hooks off. What was measured can still be drained."""

    traces_before_batch: bool
    """Whether the step is traced before a batch is taken, so that a call that failed in tracing can be repeated."""

    def making_train_function(self) -> AbstractContextManager[None]:
        """Inside, Keras makes the train function."""

    def own_train_step(self) -> Callable[..., Any]:
        """The model's train step as it is without the hooks."""

    def take_call_steps(self) -> int:
        """Steps since this was last asked, where the host can count them; else 1."""

    def set_interval(self, every: int) -> None:
        """Samples every n-th step from now on, without a new trace."""

    def drain(self) -> Waiting:
        """Takes what accumulated; may wait for the device. From any one thread at a time."""

    def take_sample_costs(self) -> list[float]:
        """Seconds each sampled step took longer, where that is measured directly; else empty."""

    def is_ours(self, error: BaseException) -> bool:
        """Whether an operation of ours failed while the step ran."""

    # What the maths of a step needs to know of the device:

    def reachable(self, tensor: Any) -> bool:
        """Whether the graph being built can use this tensor; one from an inner loop or branch it cannot."""

    def joined(self, tensor: Any) -> bool:
        """Whether it is computed in one with what takes it, and rounded differently if more takes it too."""

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """√ΣΣv² over all of them, a float32 scalar. At least one."""

    def squared_norms(self, tensors: list[Tensor]) -> Tensor:
        """Σv² of each, float32[tensors]. At least one."""

    def entries(self, gradient: Tensor) -> tuple[Tensor, int]:
        """A gradient's entries and how many the whole has; of a sparse one, each row that is present once."""


def make_driver(probe: Any) -> Driver:
    """The driver for the backend that Keras runs on.

    Raises:
        NotImplementedError: there is none, or this model cannot be measured on it.
    """
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise NotImplementedError(
            f"values inside the train step are read on {', '.join(BACKENDS)}; this is {backend}"
        )
    driver: Driver = importlib.import_module(BACKENDS[backend]).Driver(probe)
    return driver
