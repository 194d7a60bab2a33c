"""Joins what the replicas of a model measured into the values of the whole batch, on the host.

Each replica trains on its own part of the batch. Means are joined with their weights, the number of examples (or
the count) each replica saw; so they are those of the batch. Beside them stands how far the replicas differ.
"""

from __future__ import annotations

import numpy as np

from client_callback.wire.protocol import Float32, Series

INTERNAL = "\0"
WEIGHT = f"{INTERNAL}weight "
"""Before the name of a mean: the column with its weight."""
LOCAL_NORM = f"{INTERNAL}local gradient norm"
"""‖g‖ of one replica's gradient, scaled as if its part were the whole batch."""

SPREADS = {"loss_spread": "loss", "grad_norm_spread": LOCAL_NORM}
"""Series → the column whose largest value among the replicas minus the smallest it is."""
_SHARED = {"learning_rate", "grad_norm", "loss_scale"}


def joined_series(columns: list[Series], replicas: int) -> list[Series]:
    """The series that `join` makes of these columns."""
    if replicas == 1:
        return columns
    names = {series.name for series in columns}
    spreads = [Series(name=spread) for spread, source in SPREADS.items() if source in names]
    return [series for series in columns if not series.name.startswith(INTERNAL)] + spreads


def join(columns: list[Series], rows: Float32) -> Float32:
    """float32[replicas, n, columns] → float32[n, series of `joined_series`]."""
    if len(rows) == 1 or not rows.shape[1]:
        only: Float32 = rows[0]
        return only
    names = [series.name for series in columns]
    table = {name: rows[:, :, place].astype(np.float64) for place, name in enumerate(names)}
    joined = [_join_one(name, table) for name in names if not name.startswith(INTERNAL)]
    with np.errstate(invalid="ignore"):
        joined += [
            table[source].max(axis=0) - table[source].min(axis=0)
            for source in SPREADS.values()
            if source in table
        ]
    return np.stack(joined, axis=1).astype(np.float32)


def _join_one(name: str, table: dict[str, np.ndarray]) -> np.ndarray:
    values = table[name]
    if name == "examples":
        return np.asarray(values.sum(axis=0))
    if name in _SHARED:
        return np.asarray(values[0])
    weights = table.get(f"{WEIGHT}{name}", table.get("examples"))
    if weights is None:
        return np.asarray(values.mean(axis=0))
    # A replica without examples contributes nothing, whatever it computed of them.
    weighted = np.where(weights > 0, values * weights, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weighted.sum(axis=0) / weights.sum(axis=0))
