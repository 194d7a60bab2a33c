"""What a model is worth on held-out data: scores from its outputs, whatever it was trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Score:
    """A function of true targets `[N]` and outputs `[N, units]`."""

    name: str
    of: Callable[[Array, Array], float]
    higher_is_better: bool = True


def accuracy(targets: Array, outputs: Array) -> float:
    """Share of right classes; outputs that are no numbers are wrong."""
    return float(np.mean(_classes(outputs) == targets))


def balanced_accuracy(targets: Array, outputs: Array) -> float:
    """Mean over the classes of the share of each that is recognised."""
    right = _classes(outputs) == targets
    return float(np.mean([right[targets == label].mean() for label in np.unique(targets)]))


def log_loss(targets: Array, outputs: Array) -> float:
    """Mean of −ln p of the true class; at most 20."""
    if outputs.shape[1] == 1:
        outputs = np.concatenate([1 - outputs, outputs], axis=1)
    chosen = outputs[np.arange(len(targets)), targets]
    return float(np.mean(-np.log(np.clip(np.nan_to_num(chosen, nan=0.0), 2e-9, 1.0))))


def r2(targets: Array, outputs: Array) -> float:
    """1 − squared error / that of the mean; not below −1."""
    if not np.isfinite(outputs).all():
        return -1.0
    errors = targets - outputs[:, 0]
    return max(-1.0, float(1 - np.mean(errors**2) / np.var(targets)))


def _classes(outputs: Array) -> Array:
    """The most probable class of each example; −1 where the outputs are no numbers."""
    chosen: Array = outputs[:, 0] > 0.5 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return np.where(np.isfinite(outputs).all(axis=1), chosen.astype(np.int64), -1)


SCORES = {
    "accuracy": Score("accuracy", accuracy),
    "balanced accuracy": Score("balanced accuracy", balanced_accuracy),
    "log loss": Score("log loss", log_loss, higher_is_better=False),
    "R²": Score("R²", r2),
}
