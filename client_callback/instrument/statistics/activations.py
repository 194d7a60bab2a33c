"""What a layer's outputs look like: silent units, saturated ones, spread."""

from __future__ import annotations

from keras import ops

from client_callback.instrument.statistics.gradients import nonzero_per_unit
from client_callback.instrument.statistics.tensors import Tensor, count_true, first_examples, moments

ACTIVATION_LABELS = ("zero_share", "saturated_share", "mean", "std", "zero_units")
MAX_ACTIVATIONS = 262_144
"""Entries of one layer's output that are looked at: a feature map of 64 × 64 × 64."""

SATURATION = {
    "sigmoid": (0.0067, 0.9933),
    "tanh": (-0.9999, 0.9999),
    "hard_sigmoid": (0.0, 1.0),
    "sparse_sigmoid": (0.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
}
"""Activation → outputs at or beyond which its slope is next to nothing: a sigmoid's beyond ±5, where it is below
0.007; a tanh's beyond ±4.95, below 0.0002; of the others, the ends of their range."""


def activation_statistics(outputs: Tensor, activation: str | None) -> Tensor:
    """Five numbers about one layer's output in this batch.

    Args:
        outputs: float, [N, …, units]; the leading examples up to MAX_ACTIVATIONS entries are looked at.
        activation: its name as Keras has it; `None`: unknown.

    Returns:
        float32[5] as ACTIVATION_LABELS: the share of exact zeros; the share of saturated outputs, NaN for an
        activation that is not in SATURATION (of a ReLU, the zeros tell; a softmax's outputs depend on each other);
        mean and standard deviation (divisor n) of the finite outputs, NaN without any; the number of units that are
        exactly zero for all examples and positions looked at.
    """
    outputs = first_examples(outputs, MAX_ACTIVATIONS)
    per_unit = nonzero_per_unit(outputs)
    values = ops.reshape(outputs, (-1,))
    number = ops.cast(ops.shape(values)[0], "float32")
    spread = moments(values)
    return ops.stack(
        [
            1.0 - ops.sum(per_unit) / number,
            _saturated(values, activation) / number,
            spread.total / spread.number,
            ops.sqrt(spread.squares / spread.number),
            count_true(ops.equal(per_unit, 0.0)),
        ]
    )


def _saturated(values: Tensor, activation: str | None) -> Tensor:
    if activation not in SATURATION:
        return ops.convert_to_tensor(float("nan"), "float32")
    low, high = SATURATION[activation]
    values = ops.cast(values, "float32")
    return count_true(ops.logical_or(values <= low, values >= high))
