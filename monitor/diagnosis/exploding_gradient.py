"""Finds gradients that are, or become, far too large for the weights they are to change.

Sees: the gradient's norm of every step, before clipping. It has grown at least seventyfold, or was huge from the
start (a step of ordinary rate moved the weights by about their own length), and the training came to harm: NaN, or a
loss far above that of guessing or of the beginning.

Hurts because the step is as long as the gradient (under SGD), so one such step throws the weights away; the next
gradient is larger still, until numbers overflow. Try clipping the gradient's norm, a lower rate, going back to the
start, and targets and inputs of ordinary size.

Source: Pascanu et al. 2013 (arXiv 1211.5063) on clipping; AutoTrainer (ICSE 2021) takes a ratio above 70,
TheDeepChecker a growth of 2 and more over five iterations.

Wrong where a rate far above the usual one makes gradients grow: the rule then stands behind `learning-rate-high`, as
it does with optimizers whose steps do not depend on the gradient's size. Large gradients of a training that goes
well are no finding. Silent where the gradient's norm is not recorded.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.diagnosis import learning_rate_high, motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of, with_value
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.medians import finite, median
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

GROWTH: Final = 70.0
"""Times the first norm: AutoTrainer's."""
HUGE: Final = 1e3
"""A first norm that is large for any loss of ordinary size: cross-entropies of sound starts give 0.1 to 10."""
HOPELESS: Final = 100.0
"""A hundredth of the rate times the squared spread of the targets, from which on no rate helps. The output's weights
must grow as large as the targets are, and the curvature for the layer before with their square: the rate that bears
is about one over that."""
OVERTHROWN: Final = 0.5
"""‖Δw‖ / ‖w‖ of the first steps: the weights are practically others."""


def lacks(case: Case) -> str:
    """The gradient's norm of each step."""
    column = case.per_step("grad_norm")
    if column is None:
        return "the gradient's norm of single steps is not known"
    return (
        ""
        if len(column) > case.changed_at + 1
        else "too early to tell: fewer than two steps since the last change"
    )


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    if not (trouble(case) or _far_off(case)):
        return []
    column, begin = case.session.series["grad_norm"], case.changed_at
    first = float(column.values[begin])
    lost = case.non_finite_from is not None
    moved = motion.motion(case)
    overthrown = moved is not None and moved.first >= OVERTHROWN
    huge = first >= HUGE and (overthrown or lost)
    harmful = lost or _far_off(case) or _stays_high(case, first)
    if not (math.isfinite(first) and (huge or harmful)):
        return []
    _, highs = column.envelope(begin, len(column), motion.BLOCKS)
    if not np.isfinite(highs).any():
        return []
    place = int(np.nanargmax(highs))
    highest, around = float(highs[place]), begin + place * (len(column) - begin) // motion.BLOCKS
    grew = harmful and highest >= GROWTH * max(first, 1e-12)
    if not (grew or huge):
        return []
    return [_finding(case, first, highest, around, huge=huge)]


def _far_off(case: Case) -> bool:
    """Whether the loss stands, or stood last, far above where it began."""
    level, reference = case.progress.level, motion.reference_loss(case)
    return level > learning_rate_high.JUMP * reference > 0


def _stays_high(case: Case, first: float) -> bool:
    """Whether the newest norms are still many times the first."""
    found = case.blocks("grad_norm")
    newest = found.means[-8:] if found is not None else np.empty(0)
    newest = finite(newest)
    return len(newest) > 0 and median(newest) >= GROWTH * max(first, 1e-12)


def _finding(case: Case, first: float, highest: float, around: int, *, huge: bool) -> Finding:
    lost = case.non_finite_from
    factor = motion.rate_factor(case)
    scaled = case.optimizer is not None and case.optimizer.name in motion.SCALED_BY_GRADIENT
    if not scaled:
        confidence = 0.5
    elif factor >= learning_rate_high.HIGH_FACTOR_SGD:
        confidence = 0.55
    else:
        confidence = 0.88 if lost is not None else 0.75
    begin = case.changed_at
    evidence = [
        Evidence(
            f"the gradient's norm was {first:.3g} at step {begin:,}"
            + (", huge for a first step" if huge else ""),
            begin,
            {"first_norm": first},
        ),
        Evidence(f"and {highest:.3g} about step {around:,}", around, {"highest_norm": highest}),
    ]
    moved = motion.motion(case)
    if moved is not None and moved.first >= learning_rate_high.LONG:
        text = f"a step moved kernels by up to {moved.first:.0%} of their length"
        evidence.append(Evidence(text, moved.start, {"update_ratio": moved.first}))
    if lost is not None:
        evidence.append(Evidence(f"the loss is not finite from step {lost:,} on", lost))
    return Finding(
        rule="exploding-gradient",
        title="The gradient explodes",
        severity="critical" if lost is not None else "warning",
        confidence=confidence,
        start=min(begin if huge else around, case.step - 1),
        stop=case.step,
        evidence=tuple(evidence),
        explanation="The gradients are so large that a single step throws the weights far away, which makes the next "
        "gradients larger still.",
        remedies=_remedies(case),
    )


def _remedies(case: Case) -> tuple[Remedy, ...]:
    name = case.optimizer.class_name if case.optimizer else "SGD"
    rate = case.learning_rate or 0.01
    target = case.target
    spread = target.values.std if target is not None and not target.classes else math.nan
    clipped = Remedy(
        "Back to the start, with the gradient's norm clipped", "set global_clipnorm=1 from start"
    )
    slower = Remedy("Back to the start, with a hundredth of the rate", "lr /100 from start")
    # To large targets it is a long way, which steps of a fixed length do not get far on.
    live = (slower, clipped) if spread > motion.LARGE_INPUTS else (clipped, slower)
    scaled = Remedy(
        f"Next run: targets of ordinary size (they spread by {spread:.3g})",
        code="y = (y - y.mean()) / y.std()",
    )
    if rate / 100 * spread**2 > HOPELESS:
        return (scaled,)
    return (
        *live,
        *((scaled,) if spread > motion.LARGE_INPUTS else ()),
        Remedy(
            "In the script",
            code=f"keras.optimizers.{name}(learning_rate={rate:.3g}, global_clipnorm=1.0)",
        ),
    )


_STEPS = (0, 1, 3, 7)


def _example(
    norms: Float64, loss: Float64, *, ratio: float = 0.02, rate: float = 0.01, optimizer: str = "sgd"
) -> Session:
    return session_of(
        {"loss": loss, "grad_norm": norms, "learning_rate": np.full(len(loss), rate)},
        optimizer=optimizer,
        task="regression",
        layers=(dense("dense", 64), dense("dense_1", 1, "linear")),
        output=output_of("dense_1", 1, "linear", "mean_squared_error"),
        tables={"update_ratio": Sampled(_STEPS, {"dense/kernel": ratio, "dense_1/kernel": ratio})},
        epochs=[{"loss": 1.0}] * 4,
    )


def _growing(first: float, factor: float, steps: int = 200) -> Float64:
    """Until float32 overflows, then NaN."""
    powers = np.log10(first) + np.arange(float(steps)) * np.log10(factor)
    return np.where(powers < 30, 10 ** np.minimum(powers, 30), math.nan)


HEALTHY = {
    "gradients are large, and the model learns": lambda: _example(
        flat(500.0, noise=50), falling(start=900.0)
    ),
    "one large gradient, and training goes on": lambda: _example(
        np.where(np.arange(400) == 100, 300.0, 1.0), falling()
    ),
    "the loss is not finite without any growth": lambda: _example(
        flat(1.0), with_value(flat(1.0), 200, math.nan)
    ),
}
AILING = {
    "the gradient grows until it is NaN": lambda: _example(_growing(2.0, 1.5), _growing(1.0, 2.0)),
    "targets in the hundreds of thousands: huge from the first step": lambda: _example(
        _growing(5e5, 1e4), _growing(4e10, 1e8), ratio=50.0
    ),
    "the gradient grows and the loss stays high": lambda: _example(
        np.minimum(2.0 * 1.2 ** np.arange(400), 5e3), np.minimum(1.0 * 1.1 ** np.arange(400), 50.0)
    ),
}

EXPLAINS = frozenset(
    {
        "non-finite",
        "dead-units",
        "oscillation",
        "plateau",
        "input-ignored",
        "underfitting",
        "vanishing-gradient",
    }
)

RULE = Rule("exploding-gradient", check, lacks, EXPLAINS, HEALTHY, AILING)
