"""What a range test suggests, on losses of known shape."""

from __future__ import annotations

import numpy as np
import pytest

from client_callback.wire.protocol import TrialEnded, TrialResult
from client_callback.wire.range_test import SAFETY, RangeTest
from monitor.trial_results import range_test_of

RATES = np.geomspace(1e-5, 1.0, 80)


def read(losses: np.ndarray, rates: np.ndarray = RATES) -> RangeTest:
    result = TrialResult(text="", losses=losses.astype("<f4").tobytes(), score=0, low=0, high=0)
    ended = TrialEnded(id="t", text="", start=0, results=(result,), rates=rates.astype("<f4").tobytes())
    found = range_test_of(ended)
    assert found is not None
    return found


def falling(fastest: float, rises_from: float = np.inf, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    fall = 0.7 - 0.4 / (1 + np.exp(-3 * np.log(RATES / fastest)))
    return (
        fall
        + np.where(rises_from < RATES, 3 * (RATES / rises_from - 1), 0)
        + (np.random.default_rng(seed).normal(0, noise, len(RATES)))
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_suggestion_lies_where_the_loss_falls_fastest(seed: int):
    found = read(falling(1e-3, seed=seed))
    assert found.suggested == found.steepest == pytest.approx(1e-3, rel=1.0)
    assert found.diverges_at is None


@pytest.mark.parametrize("seed", range(10))
def test_it_keeps_a_decade_from_where_the_loss_diverges(seed: int):
    found = read(falling(5e-2, rises_from=0.2, seed=seed))
    assert found.diverges_at == pytest.approx(0.25, rel=0.3)
    assert found.suggested == found.diverges_at / SAFETY < found.steepest


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_suggested_where_the_loss_never_falls_beyond_noise(seed: int):
    noise = np.random.default_rng(seed).normal(0, 0.05, len(RATES))
    assert read(0.69 + noise).suggested is None
    assert read(0.69 + noise + np.where(RATES > 0.1, 5 * RATES, 0)).suggested is None


def test_a_hard_batch_on_the_way_is_no_divergence():
    losses = falling(5e-2, rises_from=0.2)
    losses[20] += 5.0
    assert read(losses).diverges_at == pytest.approx(0.25, rel=0.3)
    losses = falling(1e-3)
    losses[75] += 5.0  # its means come down again before the end
    assert read(losses).suggested == pytest.approx(1e-3, rel=1.0)


def test_a_loss_that_is_not_finite_or_ends_early_diverges_there():
    losses = falling(1e-3)
    losses[70:] = np.nan
    found = read(losses)
    assert found.diverges_at == pytest.approx(RATES[70], rel=1e-5)
    early = read(falling(1e-3)[:70])
    assert early.diverges_at == pytest.approx(RATES[69], rel=1e-5)
    assert found.suggested == pytest.approx(early.suggested, rel=0.3)


def test_the_shortest_tests_and_losses_without_noise_are_read():
    five = read(np.array([1.0, 1.0, 0.8, 0.5, 0.4]), np.geomspace(1e-4, 1, 5))
    assert five.suggested is None or 1e-4 <= five.suggested <= 1
    assert read(np.ones(80)).suggested is None
    assert read(np.full(80, np.nan)).suggested is None


def test_a_trial_of_candidates_is_no_range_test():
    assert range_test_of(TrialEnded(id="t", text="", start=0)) is None
