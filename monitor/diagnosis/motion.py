"""How far the steps of a training move its weights, how alike its gradients are, and which of its units are dead.

What several rules about rates, optimizers and gradients ask of a case; each answer is that of the training since a
command changed it last. No rule here. Costs are bounded: of long tables so many rows are looked at, evenly spaced.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Int64, Layer
from monitor.diagnosis.case import Case, Table, per_case, per_run
from monitor.diagnosis.medians import finite, median, medians

MOST_ROWS: Final = 48
"""Of a table that are looked at."""
EARLY_ROWS: Final = 4
"""Rows that count as the beginning: steps 0, 1, 3 and 7."""
NEWEST_ROWS: Final = 8
MOSTLY_DEAD: Final = 0.7
"""Share of silent units with which a layer counts as dead, in batches of 16 examples and more."""
SURE_ROWS: Final = 3
"""Newest rows that must all show a unit dead."""
BLOCKS: Final = 64
"""Parts of the run that a series is looked at in."""
FEW_EXAMPLES: Final = 8
"""A batch of fewer tells little of a unit or of a loss."""
LARGE_INPUTS: Final = 10.0
"""Root mean square of inputs that are far from standardised, as pixels from 0 to 255 are."""

USUAL_RATES: Final = {
    "sgd": 0.01,
    "adam": 1e-3,
    "adamw": 1e-3,
    "nadam": 1e-3,
    "adamax": 2e-3,
    "rmsprop": 1e-3,
    "lion": 1e-4,
    "lamb": 1e-3,
    "muon": 1e-3,
    "adagrad": 0.01,
    "adadelta": 1.0,
    "ftrl": 0.01,
    "adafactor": 1e-3,
}
"""What an optimizer is usually run at. Keras' own defaults, but for Adagrad, Adadelta and Ftrl: theirs are a tenth
and less of what the papers use (Duchi et al. 2011 and TensorFlow: 0.01; Zeiler 2012, which has no rate at all: 1)."""
MOST_OF_A_UNIT: Final = 0.1
"""Of what it gives at the start, by which a step may move a unit."""
SCALED_BY_GRADIENT: Final = frozenset({"sgd"})
"""Optimizers whose steps are as large as the gradient is; those of the others hardly depend on its size."""

_VECTORS: Final = frozenset({"bias", "beta", "gamma", "embeddings", "alpha"})
"""Last parts of the paths of weights whose ratio tells nothing: they begin at 0, or only rows of them move."""


class Motion(NamedTuple):
    """How far steps move kernels, each step in shares of a kernel's own norm, ‖Δw‖ / ‖w‖."""

    start: int
    """The first step that was measured."""
    first: float
    """The largest of the first rows, each the median over the kernels."""
    newest: float
    """Median over the newest rows and the kernels. NaN: not finite any more."""
    fastest: float
    """The same of the kernel that moves most."""
    travelled: float
    """Sum over all steps so far, of the kernel that moves most: it is now at most so far from its start."""
    ahead: float
    """What will be added by the end of the run as planned, at the newest pace. 0: nothing is planned."""


class Pairs(NamedTuple):
    """What gradients of successive steps tell, over the newest rows."""

    cosine: float
    """Mean of the cosine between one step's gradient and the next one's."""
    noise_scale: float
    """In examples; infinite where the signal is lost in the noise. NaN: not known."""
    rows: int
    """Pairs looked at."""


class Dead(NamedTuple):
    """A layer of rectifiers most of whose units give nothing and get no gradient."""

    layer: Layer
    share: float
    """Of its units: the least of the newest three rows."""
    units: int
    since: int
    """The first sampled step from which on it stayed so."""
    at_first: float
    """The share at the first sampled step."""
    rows: int
    """Sampled rows that show it."""
    starved: Layer | None
    """The layer with weights, this one or the one before it, that nothing but zeros can have come into: its weights
    alone cannot silence all units. `None`: there is no such proof."""


@per_run
def kernels(case: Case, labels: tuple[str, ...]) -> Int64:
    """Places of the labels of weights with two axes or more; not of embeddings, most rows of which rest."""
    variables = case.session.run.variables if case.session.run else ()
    axes = {variable.path: len(variable.shape) for variable in variables}
    return np.array(
        [
            place
            for place, label in enumerate(labels)
            if label.rsplit("/", 1)[-1].split(":")[0] not in _VECTORS and axes.get(label, 2) >= 2
        ],
        np.int64,
    )


def layer_of(case: Case, label: str) -> Layer | None:
    """The innermost layer on the path of a layer or variable. `None`: not known."""
    known = _by_name(case)
    parts = label.partition(":")[0].split("/")
    return next((known[part] for part in reversed(parts) if part in known), None)


@per_run
def _by_name(case: Case) -> dict[str, Layer]:
    return {layer.name: layer for layer in case.layers}


@per_case
def table(case: Case, name: str) -> Table | None:
    """The rows of a statistic since the last command, thinned out evenly. `None`: there are none."""
    found = case.table(name)
    if found is None:
        return None
    first = int(found.steps.searchsorted(case.changed_at))
    count = len(found.steps) - first
    if count <= 0:
        return None
    places = first + _thinned(count)
    return Table(found.steps[places], found.labels, found.columns, found.values.take(places, axis=0))


@functools.lru_cache(maxsize=8)  # tables have about as many rows each
def _thinned(count: int) -> Int64:
    """Places of the rows that are looked at, of so many: the first and the newest are among them."""
    number = min(count, MOST_ROWS)
    return np.arange(number, dtype=np.int64) * (count - 1) // max(number - 1, 1)


@per_case
def motion(case: Case) -> Motion | None:
    """`None`: not measured."""
    found = table(case, "update_ratio")
    if found is None:
        return None
    ratios = found.column().take(kernels(case, found.labels), axis=1).astype(np.float64)
    known = np.isfinite(ratios)
    if not known.any():
        return None
    by_row = medians(ratios[:EARLY_ROWS], axis=1)
    newest = finite(medians(ratios[-NEWEST_ROWS:]))
    reach = np.append(found.steps[1:], max(case.step, found.steps[-1] + 1)) - found.steps
    travelled = reach.astype(np.float64) @ np.where(known, ratios, 0.0)
    total = case.session.total_steps or case.step
    left = 0 if case.session.ended else max(0, total - case.step)
    fastest = float(np.max(newest, initial=0.0))
    return Motion(
        int(found.steps[0]),
        float(np.max(by_row[np.isfinite(by_row)], initial=0.0)),
        median(newest),
        fastest,
        float(travelled.max()),
        fastest * left,
    )


@per_case
def pairs(case: Case) -> Pairs | None:
    """`None`: not measured."""
    found = table(case, "gradient_pair")
    if found is None:
        return None
    newest = found.values[-NEWEST_ROWS:, :, 0].astype(np.float64)
    newest = newest[np.isfinite(newest[:, :3]).all(axis=1)]
    if not len(newest):
        return None
    cosine, signal, noise = newest[:, :3].mean(axis=0).tolist()
    scale = noise / signal if signal > 0 else math.inf if noise > 0 else math.nan
    return Pairs(cosine, scale, len(newest))


@per_case
def dead_layers(case: Case, share: float) -> list[Dead]:
    """Layers of ReLU, the output's left out, of whose units that share is silent and without gradient, for good."""
    outputs, gradients = table(case, "activations"), table(case, "dead_units")
    if outputs is None:
        return []
    found = []
    of_units = outputs.column("zero_units")
    # Silent units' zeros are among all zeros: most layers need no closer look.
    for place in np.flatnonzero(outputs.column("zero_share")[-1] >= 0.99 * share).tolist():
        label = outputs.labels[place]
        layer = layer_of(case, label)
        if layer is None or not layer.units or layer.activation not in ("relu", "relu6"):
            continue
        units = of_units[:, place].astype(np.float64)
        if units[-1] < share * layer.units or (case.output and layer.name == case.output.layer):
            continue
        silent = units / layer.units
        if gradients is not None and label in gradients.labels:
            unreached = gradients.column()[:, gradients.labels.index(label)]
            _, of_both, same = np.intersect1d(outputs.steps, gradients.steps, True, return_indices=True)
            silent[of_both] = np.minimum(silent[of_both], unreached[same])
        below = np.flatnonzero(~(silent >= share))
        first = int(below[-1]) + 1 if len(below) else 0
        if first == len(silent):
            continue
        found.append(
            Dead(
                layer,
                float(silent[first:][-SURE_ROWS:].min()),
                layer.units,
                int(outputs.steps[first]),
                float(silent[0]),
                len(silent) - first,
                _starved(case, layer, float(silent[0])),
            )
        )
    return found


@per_case
def highest_loss(case: Case) -> tuple[float, int] | None:
    """The highest the loss stood (mean of a 64th of the run), and the step at which that was. `None`: not known."""
    found = case.blocks("loss")
    known = np.isfinite(found.means) if found is not None else np.empty(0, np.bool_)
    if found is None or not known.any():
        return None
    place = int(np.argmax(np.where(known, found.means, -np.inf)))
    return float(found.means[place]), found.begin + place * found.length


def reference_loss(case: Case) -> float:
    """A loss that a training must not exceed for long: its very first, or what guessing gives, the greater one.

    NaN: not known, as of single examples, the first of which may be a lucky one.
    """
    guess, few = guessing_loss(case), (case.batch_size or 0) < FEW_EXAMPLES
    begun = [guess] if few else [guess, case.first_loss]
    return max((value for value in begun if math.isfinite(value)), default=math.nan)


def guessing_loss(case: Case) -> float:
    """The loss of always predicting the classes' shares, or the mean. NaN: not known for this loss."""
    base, output = case.baseline, case.output
    if base is None or output is None:
        return math.nan
    if output.loss.endswith("crossentropy"):
        return base.entropy
    return base.variance if output.loss in ("mean_squared_error", "mse") else math.nan


def rate_factor(case: Case) -> float:
    """The rate at work, with what momentum makes of it, over what the optimizer is usually run at. NaN: not known."""
    optimizer, rate = case.optimizer, case.learning_rate
    if optimizer is None or rate is None or optimizer.name not in USUAL_RATES:
        return math.nan
    momentum = optimizer.settings.get("momentum") if optimizer.name in SCALED_BY_GRADIENT else None
    kept = float(momentum) if isinstance(momentum, int | float) and 0 < momentum < 1 else 0.0
    return rate / (1 - kept) / USUAL_RATES[optimizer.name]


def gentler_rate(case: Case) -> float:
    """A rate at which the same optimizer is safe from the starting weights: `fitting_rate`, or a tenth of its own."""
    return min(fitting_rate(case), (case.learning_rate or 1e-3) / 10)


def fitting_rate(case: Case) -> float:
    """A rate at which the optimizer of the training is usually run on inputs of that size.

    Less than the usual one where inputs are large. A unit begins at about √2 times their root mean square (He et al.
    2015). A step that does not depend on the gradient's size moves it by the rate times Σ|x|, at most so many times
    that as it has inputs; gradients that grow with the inputs are answered by a tenth.
    """
    name = case.optimizer.name if case.optimizer else ""
    usual = USUAL_RATES.get(name, 1e-3)
    if not input_size(case) > LARGE_INPUTS:
        return usual
    # To one digit: it is a matter of size.
    return (
        usual / 10
        if name in SCALED_BY_GRADIENT
        else min(usual, float(f"{MOST_OF_A_UNIT / _fan_in(case):.1g}"))
    )


def _fan_in(case: Case) -> int:
    """Inputs of a unit of the first kernel; 1 where none is known."""
    shape = next((layer.kernel_shape for layer in case.layers if layer.kernel_shape), (1,))
    return max(1, math.prod(shape[:-1]))


def input_size(case: Case) -> float:
    """Root mean square of the inputs. NaN: not known."""
    if case.inputs is not None:
        return math.hypot(case.inputs.values.mean, case.inputs.values.std)
    found = case.table("input") or case.table("input_0")
    if found is None:
        return math.nan
    newest = found.values[-1, :, 0].astype(np.float64)
    return math.hypot(float(newest[0]), float(newest[1]))


@per_case
def gradient_decay(case: Case) -> tuple[str, float, str, float, int] | None:
    """The kernel with the smallest mean |gradient| in the first half of the layers, and the output's.

    Returns:
        Label and mean |g| of the one and the other, over the first rows; and the step of the first. `None`: not
        measured, fewer than three kernels, or gradients that are exactly 0 or not finite: that is another matter.
    """
    found = table(case, "gradient_mean_abs")
    if found is None or len(kernels(case, found.labels)) < 3:
        return None
    places = kernels(case, found.labels)
    means = medians(found.column()[:EARLY_ROWS].take(places, axis=1))
    half = means[: len(means) // 2]
    smallest, last = int(np.argmin(half)), len(means) - 1
    if not (np.isfinite(means).all() and half[smallest] > 0 and means[last] > 0):
        return None
    return (
        found.labels[places[smallest]],
        float(half[smallest]),
        found.labels[places[last]],
        float(means[last]),
        int(found.steps[0]),
    )


def in_words(number: float) -> str:
    """A rate as one writes it in a command."""
    return f"{number:.3g}"


def _starved(case: Case, silent: Layer, at_first: float) -> Layer | None:
    """With weights of both signs and no bias, every input but 0 drives about half of many units above 0."""
    layer = silent
    for layer in reversed(case.layers[: case.layers.index(silent) + 1]):
        # Batch normalisation keeps zeros as they are, and no others turn all its inputs to zeros.
        if layer.kernel is not None or (layer is not silent and layer.class_name != "BatchNormalization"):
            break
    kernel = layer.kernel
    unbiased = not layer.settings.get("use_bias", True) or layer.settings.get("bias_initializer") in (
        None,
        "Zeros",
    )
    starved = (
        at_first >= 1
        and layer.units >= 8
        and unbiased
        and kernel is not None
        and kernel.low < 0 < kernel.high
        and abs(kernel.mean) < 0.5 * kernel.std
    )
    return layer if starved else None
