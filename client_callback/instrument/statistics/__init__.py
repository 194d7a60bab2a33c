"""The maths of the sampled statistics: tensors in, float32 tensors out, written with `keras.ops`.

Called while the train step is traced (`instrument.sampler`, `instrument.predictions`), so everything here becomes
part of the compiled step on every backend: shapes are static, nothing branches on a value, nothing waits for the
device. Nothing here knows of models, optimizers or buffers.

`tensors` is what the others share, `counting` makes histograms and tables of classes, `gradients`, `activations` and
`batches` (inputs and labels) and `outputs` (predictions and targets) describe what their names say.
"""

from client_callback.instrument.statistics.activations import (
    ACTIVATION_LABELS,
    MAX_ACTIVATIONS,
    activation_statistics,
)
from client_callback.instrument.statistics.batches import (
    FEATURE_COLUMNS,
    FINGERPRINT_LABELS,
    MAX_FEATURES,
    batch_fingerprint,
    feature_labels,
    feature_statistics,
    input_statistics,
)
from client_callback.instrument.statistics.counting import (
    CONFIDENCE_BINS,
    MAX_CLASSES,
    MAX_PREDICTIONS,
    TOP_CLASSES,
    VALUE_BINS,
    confusion_counts,
    counts,
    histogram,
    moving_histogram,
    number_correct,
    top_counts,
)
from client_callback.instrument.statistics.gradients import (
    MAGNITUDE_EXPONENTS,
    MAGNITUDE_LABELS,
    MAX_MAGNITUDES,
    PAIR_LABELS,
    gradient_pair,
    gradient_statistics,
    magnitude_histograms,
    nonzero_per_unit,
    update_ratio,
    zero_units,
)
from client_callback.instrument.statistics.outputs import (
    MAX_PREDICTED,
    SPREAD_LABELS,
    TARGET_COLUMNS,
    prediction_spread,
    target_statistics,
)
from client_callback.instrument.statistics.tensors import (
    MAX_INPUT_ELEMENTS,
    Tensor,
    coprime_stride,
    count_true,
    example_size,
    first_examples,
    norm,
)

__all__ = [
    "ACTIVATION_LABELS",
    "CONFIDENCE_BINS",
    "FEATURE_COLUMNS",
    "FINGERPRINT_LABELS",
    "MAGNITUDE_EXPONENTS",
    "MAGNITUDE_LABELS",
    "MAX_ACTIVATIONS",
    "MAX_CLASSES",
    "MAX_FEATURES",
    "MAX_INPUT_ELEMENTS",
    "MAX_MAGNITUDES",
    "MAX_PREDICTED",
    "MAX_PREDICTIONS",
    "PAIR_LABELS",
    "SPREAD_LABELS",
    "TARGET_COLUMNS",
    "TOP_CLASSES",
    "VALUE_BINS",
    "Tensor",
    "activation_statistics",
    "batch_fingerprint",
    "confusion_counts",
    "coprime_stride",
    "count_true",
    "counts",
    "example_size",
    "feature_labels",
    "feature_statistics",
    "first_examples",
    "gradient_pair",
    "gradient_statistics",
    "histogram",
    "input_statistics",
    "magnitude_histograms",
    "moving_histogram",
    "nonzero_per_unit",
    "norm",
    "number_correct",
    "prediction_spread",
    "target_statistics",
    "top_counts",
    "update_ratio",
    "zero_units",
]
