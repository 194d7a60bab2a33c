"""Small copies of large arrays, taken on the training's thread: evenly spaced examples, and a stretch in order."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from client_callback.host_view import host_view, library_of

MAX_EXAMPLES = 2_000
MAX_NUMBERS = 4_000_000
"""Of all inputs together."""
MAX_LABELS = 100_000
MAX_LABEL_NUMBERS = 1_000_000
"""One-hot labels have many each."""
MAX_STRETCH = 20_000
MAX_PAIRS = 1_000
"""Examples whose targets are kept beside them."""
MAX_PAIR_NUMBERS = 1_000
"""Of one example's target; of a larger one evenly spaced numbers are kept."""

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


class Input(NamedTuple):
    """Copied from one array of inputs."""

    dtype: str
    shape: tuple[int, ...]
    """Of one example."""
    examples: Array | None
    """[n, …]. `None`: these are no numbers side by side."""


class Target(NamedTuple):
    """Copied from one array of targets."""

    dtype: str
    shape: tuple[int, ...]
    labels: Array | None
    """[m, …]: of evenly spaced examples."""
    stretch: Array | None
    """[k, …]: of the first examples, in their order."""


class Copies(NamedTuple):
    """Of the training data, as small as they may be."""

    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]
    paired: Places
    """int64[p]: which of the inputs' examples `pairs` belongs to."""
    pairs: Array | None
    """[p, numbers]: the first target of these. `None`: there is none."""


def copies_of(inputs: list[Any], targets: list[Any]) -> Copies:
    """Of arrays or tensors with the same number of examples, [N, …] each."""
    total = int(inputs[0].shape[0])
    size = max(1, sum(_size(array) for array in inputs))
    chosen = evenly(total, min(MAX_EXAMPLES, max(2, MAX_NUMBERS // size)))
    paired = evenly(len(chosen), MAX_PAIRS)
    pairs = _pairs(targets[0], chosen[paired]) if targets else None
    return Copies(
        tuple(Input(*_kind(array), _rows(array, chosen)) for array in inputs),
        tuple(_target(array, total) for array in targets),
        paired,
        pairs,
    )


def evenly(total: int, most: int) -> Places:
    """At most `most` places of `total`, ascending: one out of each of so many equal parts, at random within it.

    Places at equal distances would all be of one class where classes take turns.
    """
    if total <= most:
        return np.arange(total)
    edges = np.arange(most + 1) * total // most
    within = np.random.default_rng(0).random(most) * np.diff(edges)
    return np.asarray(edges[:-1] + within.astype(np.int64))


def _target(array: Any, total: int) -> Target:
    most = max(1, MAX_LABEL_NUMBERS // max(1, _size(array)))
    labels = _rows(array, evenly(total, min(MAX_LABELS, most)))
    stretch = _rows(array, np.arange(min(total, MAX_STRETCH, most)))
    return Target(*_kind(array), labels, stretch)


def _pairs(array: Any, places: Places) -> Array | None:
    rows = _rows(array, places)
    if rows is None:
        return None
    flat = rows.reshape(len(rows), -1)
    return flat if flat.shape[1] <= MAX_PAIR_NUMBERS else flat[:, evenly(flat.shape[1], MAX_PAIR_NUMBERS)]


def _rows(array: Any, places: Places) -> Array | None:
    """A copy of these examples."""
    view = host_view(array)
    try:
        rows = view[places] if view is not None else _fetched(array, places)
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError):
        return None  # sparse, ragged or of a type that numpy has not
    return rows if rows is not None and rows.dtype.kind in "biufc" else None


def _fetched(array: Any, places: Places) -> Array | None:
    """From a device, or out of a table."""
    match library_of(array):
        case "tensorflow":
            import tensorflow as tf  # noqa: PLC0415 (only where there are tensors of it)

            found = tf.gather(array, places)
            return np.asarray(tf.cast(found, "float32") if found.dtype == tf.bfloat16 else found)
        case "torch":
            found = array.detach()[places]
            return np.asarray((found.float() if "bfloat16" in str(found.dtype) else found).cpu())
        case "jax":
            return np.asarray(array[places])
        case "pandas":
            return np.asarray(array.iloc[places].to_numpy())
        case "scipy":
            return np.asarray(array[places].toarray()) if array.format == "csr" else None
    return None


def _kind(array: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape of one example)."""
    dtype = getattr(array, "dtype", None)
    if dtype is None and hasattr(array, "dtypes"):  # a table, of which each column has its own
        kinds = {str(kind) for kind in array.dtypes}
        dtype = kinds.pop() if len(kinds) == 1 else "mixed"
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    return name, tuple(int(length) for length in array.shape[1:])


def _size(array: Any) -> int:
    return math.prod(int(length) for length in array.shape[1:])
