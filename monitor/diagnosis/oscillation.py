"""Finds a loss that swings without getting anywhere.

Sees one of two things, in a loss that does not fall: waves, that is means over blocks of steps that vary several
times more than the noise from step to step explains, and by a good part of the loss itself; or successive gradients
that point against each other while the loss jumps about. Noise from batch to batch alone does neither.

Hurts because the steps go to and fro across a valley instead of along it. Try a lower rate, a lower momentum, or
larger batches.

Source: Polyak 1964 and Sutskever et al. 2013 on momentum; von Neumann 1941 on the ratio of the variance of means to
that of differences; Cohen et al. 2021 (arXiv 2103.00065). A count of sign changes, as others take, is two in three
of pure noise.

Wrong where the rate itself swings (cyclical schedules: it is silent then), and where the data come in an order (the
finding on that stands above this one). A rate that is too high, a batch that is too small and values that are not
finite explain it. Silent without the losses of single steps.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.diagnosis import motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, falling, flat, noisy, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.medians import finite, median
from monitor.session import Session

FEWEST_STEPS: Final = 96
"""Three steps to each of 32 blocks."""
BEYOND_NOISE: Final = 3.0
"""Times the spread that noise alone gives to means of blocks: a ratio of variances of 9, of 32 means."""
SWING: Final = 0.15
"""Spread of the blocks' means, in shares of the loss: smaller swings are no trouble."""
AGAINST: Final = -0.3
"""Mean cosine of successive gradients."""
RESTLESS: Final = 0.25
"""Noise from step to step in shares of the loss, beside gradients that point against each other."""
FALLEN: Final = 0.2
"""Share of the first loss. Below, what swings is small beside what was gained."""
MOMENTUM: Final = 0.95
"""From there on momentum carries for 20 steps and more."""
NEWEST: Final = 4_096


class _Waves(NamedTuple):
    spread: float
    """Standard deviation of blocks' means about their trend."""
    by_noise: float
    """What the noise from step to step gives them."""
    low: float
    high: float


def lacks(case: Case) -> str:
    """Enough losses of single steps."""
    column = case.per_step("loss")
    if column is None:
        return "the loss of single steps is not known"
    done = len(column) - case.changed_at
    return f"only {done} of the {FEWEST_STEPS} steps it takes have been done" if done < FEWEST_STEPS else ""


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    progress = case.progress
    if progress.trend in ("falling", "unknown") or case.solved or case.non_finite_from is not None:
        return []
    if progress.level < FALLEN * max(abs(progress.first), abs(case.first_loss)):
        return []
    waves, against = _waves(case), _against(case)
    if (waves is None and against is None) or _rate_swings(case):
        return []
    momentum = _momentum(case)
    confidence = 0.55 + 0.1 * (waves is not None and against is not None) + 0.15 * (momentum >= MOMENTUM)
    evidence = [one for one in (_of_waves(case, waves), against) if one is not None]
    if momentum >= MOMENTUM:
        evidence.append(Evidence(f"momentum {momentum:g}", None, {"momentum": momentum}))
    return [
        Finding(
            rule="oscillation",
            title="The loss swings without getting anywhere",
            severity="warning",
            confidence=confidence,
            start=max(case.changed_at, case.step - max(case.step // 2, FEWEST_STEPS)),
            stop=case.step,
            evidence=tuple(evidence),
            explanation="The steps go to and fro across the same valley of the loss instead of down along it.",
            remedies=_remedies(momentum),
        )
    ]


def _waves(case: Case) -> _Waves | None:
    """Of the newest half. `None`: no more than noise, or too small to matter."""
    column, count = case.session.series["loss"], case.step - case.changed_at
    newest = column.values[max(case.changed_at, len(column) - min(count // 2 + 1, NEWEST)) :]
    losses = finite(newest.astype(np.float64))
    block = len(losses) // 32
    if block < 1:
        return None
    means = losses[len(losses) - 32 * block :].reshape(32, block).mean(axis=1)
    time = np.arange(32) - 15.5
    apart = means - means.mean() - time * (time @ means / (time @ time))  # from the line of least squares
    spread = math.sqrt(float(apart @ apart) / 32)
    if not spread > SWING * abs(median(means)) or _spiked(apart):
        return None
    # Of Gaussian noise the median of |difference| is 0.6745 · √2 standard deviations.
    noise = median(np.abs(np.diff(losses))) / (0.6745 * math.sqrt(2))
    by_noise = noise / math.sqrt(block)
    if not spread > BEYOND_NOISE * by_noise:
        return None
    return _Waves(spread, by_noise, float(means.min()), float(means.max()))


def _spiked(residuals: Float64) -> bool:
    """Whether one or two blocks make up the spread: spikes are no waves."""
    squares = np.sort(residuals**2)
    return bool(squares[-2:].sum() > 0.6 * squares.sum())


def _of_waves(case: Case, waves: _Waves | None) -> Evidence | None:
    if waves is None:
        return None
    text = (
        f"means of the loss over a 64th of the run swing between {waves.low:.4g} and {waves.high:.4g}, by "
        f"{waves.spread:.2g} where the noise from step to step explains {waves.by_noise:.2g}"
    )
    return Evidence(text, case.step - 1, waves._asdict())


def _against(case: Case) -> Evidence | None:
    pairs, progress = motion.pairs(case), case.progress
    if pairs is None or pairs.rows < 4 or pairs.cosine > AGAINST:
        return None
    if not progress.noise > RESTLESS * abs(progress.level):
        return None
    text = (
        f"successive gradients point against each other (mean cosine {pairs.cosine:.2f}), loss {progress.level:.3g} "
        f"± {progress.noise:.2g}"
    )
    return Evidence(text, case.step - 1, {"cosine": pairs.cosine, "noise": progress.noise})


def _rate_swings(case: Case) -> bool:
    """Whether the learning rate rose again in the newest half, as a cyclical schedule makes it."""
    rates = case.per_step("learning_rate")
    if rates is None:
        return False
    lows, highs = rates.envelope(case.changed_at + (case.step - case.changed_at) // 2, len(rates), 16)
    known = np.isfinite(highs) & np.isfinite(lows)
    rises = np.maximum.accumulate(highs[known][::-1])[::-1] - lows[known]
    return bool(known.any() and np.any(rises > 0.5 * np.max(highs[known])))


def _momentum(case: Case) -> float:
    settings = case.optimizer.settings if case.optimizer else {}
    value = settings.get("momentum", settings.get("beta_1"))
    return float(value) if isinstance(value, int | float) else 0.0


def _remedies(momentum: float) -> tuple[Remedy, ...]:
    lower = Remedy("Lower the learning rate", "lr /10")
    less = Remedy("Less momentum", "set momentum=0.9")
    return (
        *((less, lower) if momentum >= MOMENTUM else (lower,)),
        Remedy("Average over more examples", "accumulate 4"),
        Remedy("Let the rate fall as training goes on", "schedule cosine decay_steps=1000"),
    )


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)


def _example(
    loss: Float64, cosine: float = 0.05, rates: Float64 | None = None, momentum: float = 0.9
) -> Session:
    return session_of(
        {"loss": loss, "learning_rate": np.full(len(loss), 0.01) if rates is None else rates},
        optimizer="sgd",
        settings={"momentum": momentum},
        tables={
            "gradient_pair": Sampled(
                _STEPS, {"cosine": cosine, "signal": 1.0, "noise": 40.0, "noise_scale": 40.0}, (), "values"
            )
        },
    )


def _wave(count: int, period: float, size: float) -> Float64:
    return np.asarray(1.0 + size * np.sin(2 * np.pi * np.arange(count) / period))


HEALTHY = {
    "the loss falls": lambda: _example(falling(800)),
    "the loss stays, with much noise from batch to batch": lambda: _example(flat(0.69, 800, 0.3)),
    "a spike on a plateau": lambda: _example(
        noisy(np.where(np.arange(800) // 10 == 60, 6.0, 0.7), 0.02)
    ),
    "gradients point against each other, and the loss stays quiet": lambda: _example(flat(0.69, 800, 0.02), -0.5),
    "the rate swings, and the loss with it": lambda: _example(
        noisy(_wave(1_000, 200, 0.4), 0.05), rates=np.asarray(0.01 * _wave(1_000, 200, 0.9))
    ),
}  # fmt: skip
AILING = {
    "waves of 80 steps": lambda: _example(noisy(_wave(1_000, 80, 0.5), 0.05)),
    "waves under a momentum of 0.99": lambda: _example(noisy(_wave(600, 120, 0.8), 0.1), momentum=0.99),
    "the loss jumps with each step": lambda: _example(flat(1.0, 600, 0.5), -0.6),
}

EXPLAINS = frozenset({"plateau"})

RULE = Rule("oscillation", check, lacks, EXPLAINS, HEALTHY, AILING)
