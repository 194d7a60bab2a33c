"""The arguments of the `fit` that is running, found on the call stack: Keras gives callbacks no other way to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_FRAMES = 40
"""Between a callback's `on_train_begin` and Keras' `fit` there are about ten."""


@dataclass(frozen=True)
class FitArguments:
    """As `fit` was given them, after `validation_split` was applied. To be let go at once."""

    x: Any
    y: Any
    sample_weight: Any
    class_weight: Mapping[Any, Any]
    shuffle: Any
    batch_size: int | None
    validated: bool


def running_fit(model: Any) -> FitArguments | None:
    """Of the innermost `fit` of this model on this thread's stack. `None`: there is none of Keras'."""
    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        if frame.f_code.co_name == "fit" and str(frame.f_globals.get("__name__", "")).startswith("keras."):
            known = frame.f_locals
            if known.get("self") is model:
                return _arguments(known)
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def _arguments(known: Mapping[str, Any]) -> FitArguments:
    adapter = getattr(known.get("epoch_iterator"), "data_adapter", None)
    of_arrays = type(adapter).__name__ == "ArrayDataAdapter"  # which knows Keras' choice where none was made
    batch_size = getattr(adapter, "batch_size", None) if of_arrays else known.get("batch_size")
    weights = known.get("class_weight")
    return FitArguments(
        x=known.get("x"),
        y=known.get("y"),
        sample_weight=known.get("sample_weight"),
        class_weight=weights if isinstance(weights, Mapping) else {},
        shuffle=known.get("shuffle"),
        batch_size=batch_size if isinstance(batch_size, int) and batch_size > 0 else None,
        validated=known.get("validation_data") is not None,
    )
