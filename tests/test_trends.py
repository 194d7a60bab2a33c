"""Trends of noisy series, against SciPy's own way of computing them and against their promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from client_callback.wire.trends import trends, variance_inflation
from monitor.diagnosis.medians import finite, median, medians


def remembering(shape: tuple[int, int], memory: float, seed: int) -> np.ndarray:
    """First-order autoregressive noise of unit variance, a series per row."""
    shocks = np.random.default_rng(seed).normal(size=(shape[0], shape[1] + 300))
    return np.sqrt(1 - memory**2) * lfilter([1.0], [1.0, -memory], shocks, axis=1)[:, 300:]


@pytest.mark.parametrize("count", [8, 16, 32])
def test_slopes_bounds_and_ranks_are_those_of_scipy_where_noise_has_no_memory(count: int):
    windows = remembering((400, count), 0.0, 1) - 0.1 * np.arange(count)
    found = trends(windows, bound_z=float(stats.norm.ppf(0.975)))
    without_memory = np.flatnonzero(found.inflation == 1.0)
    assert len(without_memory) > 50
    for row in without_memory:
        theirs = stats.theilslopes(windows[row], alpha=0.95)
        ours = [found.slopes[row], found.lows[row], found.highs[row]]
        assert ours == pytest.approx([theirs.slope, theirs.low_slope, theirs.high_slope])


def test_the_test_for_a_trend_is_kendalls_with_its_variance_enlarged_by_the_memory():
    count = 24
    windows = remembering((50, count), 0.6, 2)
    found = trends(windows, 1.96)
    for row, window in enumerate(windows):
        s = stats.kendalltau(np.arange(count), window).statistic * count * (count - 1) / 2
        variance = count * (count - 1) * (2 * count + 5) / 18
        residuals = window - found.slopes[row] * np.arange(count)
        assert found.inflation[row] == variance_inflation(residuals[None])[0]
        assert found.z[row] == pytest.approx(s / np.sqrt(variance * found.inflation[row]))
    assert found.inflation.mean() > 2


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_the_interval_holds_the_slope_as_often_as_it_promises(memory: float):
    windows = remembering((3_000, 16), memory, 3) + 0.3 * np.arange(16)
    found = trends(windows, 1.96)
    missed = np.mean((found.lows > 0.3) | (found.highs < 0.3))
    assert missed < (0.05 if memory == 0.0 else 0.1)


def test_a_few_spikes_leave_the_slope_where_it_was():
    window = 1.0 - 0.02 * np.arange(32)
    spiked = window.copy()
    spiked[[3, 17, 30]] = 50.0
    assert trends(spiked[None], 1.96).slopes[0] == pytest.approx(-0.02)


@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_medians_are_numpys_of_the_finite_values(missing: float, axis: int):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9, 12)).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.inf
    expected = [
        np.median(line[np.isfinite(line)]) if np.isfinite(line).any() else np.nan
        for line in np.moveaxis(values, axis, -1)
    ]
    np.testing.assert_allclose(medians(values, axis), expected, rtol=1e-6)
    known = finite(values.reshape(-1))
    assert median(known) == pytest.approx(np.median(known) if len(known) else np.nan, nan_ok=True)
