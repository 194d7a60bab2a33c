"""What a step's gradients and updates look like, and how much of them is noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import ops

from client_callback.instrument.statistics.counting import occurrences
from client_callback.instrument.statistics.tensors import Tensor, bit_patterns, count_true, evenly

MAGNITUDE_EXPONENTS = tuple(range(-40, 17, 2))
"""Edges of the magnitude bins, as powers of two: [2⁻⁴⁰, 2⁻³⁸) is 1e-12 … 4e-12, the last ends at 65,536, where
float16 does. What is smaller than the first, or larger than the last, counts into the first or last bin."""
MAGNITUDE_LABELS = ("zero", *(f"2^{exponent}" for exponent in MAGNITUDE_EXPONENTS[:-1]), "non_finite")
"""Bins are named by their lower edge."""
MAX_MAGNITUDES = 65_536
"""Entries of one gradient whose magnitudes are looked at: each share is right to ± 0.4 percentage points (two
standard errors), and a large layer costs no more than a small one."""
PAIR_LABELS = ("cosine", "signal", "noise", "noise_scale")


def gradient_statistics(gradients: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Four numbers of each variable's gradient g.

    What is no reduction is done for all at once: an operation costs more than its work.

    Args:
        gradients: for each variable its gradient, float of any shape (of a sparse gradient, the rows present, each
            once), and how many entries the whole gradient has; those not present are zero.

    Returns:
        float32[gradients] each: mean |g| = Σ|gᵢ| / size; max |g|; the share of entries that are exactly zero, in
        [0, 1]; the count of entries that are NaN or infinite. The first two are NaN or infinite when an entry is.
    """
    totals, largest, nonzero, non_finite = [], [], [], []
    for gradient, _ in gradients:
        values = ops.cast(gradient, "float32")
        magnitude = ops.abs(values)
        totals.append(ops.sum(magnitude))
        largest.append(ops.max(magnitude, initial=0.0))
        nonzero.append(count_true(ops.not_equal(values, 0.0)))
        # Not size − finite: beyond 2²⁴ entries that difference of two rounded counts is not 0.
        non_finite.append(count_true(ops.logical_not(ops.isfinite(values))))
    sizes = ops.convert_to_tensor(np.array([size for _, size in gradients], np.float32))
    total = ops.stack(totals)
    return [
        total / sizes,
        # XLA's maximum may pass over a NaN; the sum does not.
        ops.where(ops.isnan(total), total, ops.stack(largest)),
        1.0 - ops.stack(nonzero) / sizes,
        ops.stack(non_finite),
    ]


def nonzero_per_unit(values: Tensor) -> Tensor:
    """How many entries of each unit are not exactly zero (NaN is not): float32[units], units along the last axis."""
    columns = ops.reshape(values, (-1, values.shape[-1] if tuple(values.shape) else 1))
    return ops.sum(ops.cast(ops.not_equal(columns, 0), "float32"), axis=0)


def zero_units(gradients: Sequence[Tensor]) -> Tensor:
    """How many units of a layer get no gradient at all from this batch, a float32 scalar.

    A unit counts when each of its entries in each tensor is exactly 0, as of a ReLU that is off for the whole batch
    (a "dead" one, when it stays so: Lu et al. 2019, arXiv 1903.06733).

    Args:
        gradients: of the layer's variables that have one row of numbers per unit, units along the last axis:
            kernel […, units], bias [units].
    """
    alive = nonzero_per_unit(gradients[0])
    for values in gradients[1:]:
        alive = alive + nonzero_per_unit(values)
    return count_true(ops.equal(alive, 0.0))


def magnitude_histograms(
    gradients: Sequence[tuple[Tensor, int]], scale: Tensor | float = 1.0, most: int = MAX_MAGNITUDES
) -> Tensor:
    """How many entries have which order of magnitude: bins of ⌊log₂|g|⌋, two exponents wide.

    The exponent is read from the float32 bits. Of more than `most` entries of a gradient, every so many is looked at,
    and the counts are scaled to the whole. All gradients are counted at once: an operation costs more than its work.

    Args:
        gradients: as of `gradient_statistics`.
        scale: what to divide entries by first (a loss scale).
        most: entries of each that are looked at.

    Returns:
        float32[gradients, MAGNITUDE_LABELS], a row's sum is the size. Zero takes in what float32 holds with fewer
        digits, below 2⁻¹²⁶, for most devices make it zero anyway.
    """
    bins = len(MAGNITUDE_LABELS)
    parts, places, factors, absent = [], [], [], []
    for row, (values, size) in enumerate(gradients):
        part, looked_at, present = evenly(values, most)
        parts.append(ops.cast(part, "float32"))
        places.append(ops.full_like(parts[-1], float(row * bins)))
        if isinstance(present, int):
            factors.append(present / max(looked_at, 1))
            absent.append(float(size - present))
        else:
            present = ops.cast(present, "float32")
            factors.append(present / ops.maximum(ops.cast(looked_at, "float32"), 1.0))
            absent.append(size - present)
    entries = ops.concatenate(parts)
    if not (isinstance(scale, float) and scale == 1.0):
        entries = entries / scale
    exponents = ops.bitwise_and(ops.right_shift(bit_patterns(entries), 23), 255)
    found = ops.take(ops.convert_to_tensor(_BIN_OF_EXPONENT), exponents) + ops.concatenate(places)
    counts = ops.reshape(occurrences(found, len(parts) * bins), (len(parts), bins))
    of_zero = ops.convert_to_tensor(np.eye(1, bins, dtype=np.float32))
    return counts * _column(factors) + _column(absent) * of_zero


def _column(numbers: Sequence[Tensor | float]) -> Tensor:
    """float32[n, 1]; without an operation where all are known beforehand."""
    if all(isinstance(number, float) for number in numbers):
        return ops.convert_to_tensor(np.array(numbers, np.float32)[:, None])
    return ops.stack([ops.convert_to_tensor(number, "float32") for number in numbers])[:, None]


def _bins_of_exponents() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Float32's exponent bits, 0 to 255 → the place of the bin in MAGNITUDE_LABELS."""
    power = np.arange(256) - 127
    place = 1 + np.clip((power - MAGNITUDE_EXPONENTS[0]) // 2, 0, len(MAGNITUDE_EXPONENTS) - 2)
    place[0], place[255] = 0, len(MAGNITUDE_LABELS) - 1
    return place.astype(np.float32)


_BIN_OF_EXPONENT = _bins_of_exponents()


def update_ratio(updates: Tensor, weights: Tensor) -> Tensor:
    """‖Δw‖ / ‖w‖ from the norms of steps and weights, float32 of their shape; about 1e-3 is often healthy.

    NaN where the weights are all zero (a fresh bias: any step is infinitely large beside it) or a norm is not finite.
    Source: Karpathy, CS231n notes, "Ratio of weights:updates".
    """
    updates, weights = ops.cast(updates, "float32"), ops.cast(weights, "float32")
    ratio = updates / ops.where(weights > 0, weights, 1.0)
    told = ops.logical_and(weights > 0, ops.logical_and(ops.isfinite(ratio), ops.isfinite(weights)))
    return ops.where(told, ratio, float("nan"))


def gradient_pair(previous: Tensor, current: Tensor, batch_size: Tensor | int) -> Tensor:
    """How alike the gradients of two successive steps are, and how much of them is noise.

    With a and b two gradients from batches of B examples, each the true gradient G plus noise of covariance Σ / B:
    signal = a·b, whose expectation is |G|²; noise = (B / 2)·|a − b|², whose expectation is tr Σ; noise scale = noise
    / signal, the batch size from which larger batches stop helping much.

    These are the estimators of McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1,
    |G|² ≈ (B_big·|G_big|² − B_small·|G_small|²) / (B_big − B_small) and
    tr Σ ≈ (|G_small|² − |G_big|²) / (1/B_small − 1/B_big), with B_small = B, |G_small|² = (|a|² + |b|²) / 2,
    B_big = 2B and G_big = (a + b) / 2, for then
    |G|² ≈ 2·|a + b|²/4 − (|a|² + |b|²)/2 = a·b, and
    tr Σ ≈ 2B·[(|a|² + |b|²)/2 − |a + b|²/4] = (B/2)·|a − b|².
    The weights move between the two steps, which A.1 does not have: where they move fast, that counts as noise.

    One pair tells little. Read the ratio of averages, mean(noise) / mean(signal) over many steps: the average of
    ratios is biased, and dominated by the steps whose signal happens to be near zero.

    Args:
        previous: float[m], of the step before: some coordinates of its gradient, the same for both.
        current: float[m], of this step.
        batch_size: examples B of each of the two batches.

    Returns:
        float32[4] as PAIR_LABELS: cosine of the angle between a and b, in [−1, 1], NaN when either is zero; signal
        and noise, of these m coordinates alone (times size / m: of the whole gradient); noise scale in examples,
        NaN unless the signal is above zero.
    """
    previous = ops.cast(ops.reshape(previous, (-1,)), "float32")
    current = ops.cast(ops.reshape(current, (-1,)), "float32")
    signal = ops.sum(previous * current)
    noise = 0.5 * ops.cast(batch_size, "float32") * ops.sum(ops.square(previous - current))
    lengths = ops.sqrt(ops.sum(ops.square(previous))) * ops.sqrt(ops.sum(ops.square(current)))
    nan = ops.full_like(signal, float("nan"))
    cosine = ops.where(lengths > 0, signal / ops.where(lengths > 0, lengths, 1.0), nan)
    noise_scale = ops.where(signal > 0, noise / ops.where(signal > 0, signal, 1.0), nan)
    return ops.stack([cosine, signal, noise, noise_scale])
