"""Arrays of whatever library as numpy sees them. `description` and `inspection` look at weights and data with it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt


def library_of(array: Any) -> str:
    """The package that its class comes from, such as `numpy`, `tensorflow`, `jax`, `torch` or `pandas`."""
    package = type(array).__module__.partition(".")[0]
    return "jax" if package == "jaxlib" else package


def host_view(array: Any) -> npt.NDArray[Any] | None:
    """Its values where they are, without a copy; to be read at once and let go.

    `None`: they are not in this process' memory, or not as plain numbers side by side.
    """
    if isinstance(array, np.ndarray):
        return array
    reader = _READERS.get(library_of(array))
    try:
        return None if reader is None else reader(array)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        BufferError,
        AttributeError,
    ):  # sparse, symbolic, bfloat16, …
        return None


def outside_graphs() -> AbstractContextManager[None]:
    """Inside, variables have values although a graph of TensorFlow's is being made."""
    tensorflow = sys.modules.get("tensorflow")
    scope: AbstractContextManager[None] = nullcontext() if tensorflow is None else tensorflow.init_scope()
    return scope


def _of_tensorflow(array: Any) -> npt.NDArray[Any] | None:
    tensor = sys.modules["tensorflow"].convert_to_tensor(array)
    return np.asarray(memoryview(tensor)) if "CPU" in tensor.device else None


def _of_jax(array: Any) -> npt.NDArray[Any] | None:
    return np.asarray(array) if all(device.platform == "cpu" for device in array.devices()) else None


def _of_torch(array: Any) -> npt.NDArray[Any] | None:
    view: npt.NDArray[Any] | None = array.detach().numpy() if array.device.type == "cpu" else None
    return view


_READERS = {"tensorflow": _of_tensorflow, "jax": _of_jax, "torch": _of_torch}
