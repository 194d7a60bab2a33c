"""What `unstuck demo` can start, each in a line. Names alone: what they train is in `demos/`, which needs Keras."""

from __future__ import annotations

from collections.abc import Mapping

DEMOS: Mapping[str, str] = {
    "heart": "gets stuck by an honest mistake, and can be rescued",
    "digits": "healthy",
}

AILMENTS: Mapping[str, str] = {
    "class-imbalance": "one class dominates",
    "input-scale": "inputs are not normalised",
    "bad-input": "missing values, outliers, sorted or repeated examples",
    "label-encoding": "labels do not mean what the loss takes them for",
    "wrong-loss": "the loss does not fit the task",
    "wrong-output-activation": "the output cannot say what is asked for",
    "hidden-activation": "sigmoid stacks, or no non-linearity at all",
    "learning-rate-high": "updates too large",
    "learning-rate-low": "updates vanishingly small",
    "unsuitable-optimizer": "this optimizer sits still where another moves",
    "batch-size": "far too small, or far too large",
    "vanishing-gradient": "early layers receive almost nothing",
    "exploding-gradient": "norms grow without bound",
    "dead-units": "units that never fire again",
    "underfitting": "too small for the data",
    "overfitting": "training improves, validation worsens",
    "plateau": "no progress beyond noise",
    "oscillation": "the loss swings without net progress",
    "non-finite": "NaN",
    "bad-initialisation": "weights that start at 0, alike, or too large",
    "too-short": "still improving when the epochs run out",
    "over-regularised": "dropout or L2 dominates the data",
    "validation-too-good": "validation far better than training",
    "frozen-layer": "a layer receives no gradient at all",
    "input-ignored": "outputs do not depend on the inputs",
}
"""The cause of each, as the rule that should name it is called."""

ALL: Mapping[str, str] = {**DEMOS, **AILMENTS}


def listing() -> str:
    """All names with their lines."""
    return "\n".join(f"{name:24} {line}" for name, line in ALL.items())
