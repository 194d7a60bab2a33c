"""What an intervention did to the loss: its trend before and after, and whether the two differ beyond noise.

Compared are equally many steps on both sides, at most up to the neighbouring interventions: 64 after the change, then
128, and so on to 2,048, each side cut into 16 blocks. The blocks' mean losses (their logarithms where all are above
zero, so that slopes are shares of the loss) give each side Theil-Sen's slope with Sen's confidence interval, enlarged
by the memory of the noise (`client_callback.wire.trends`). Two questions are put to them:

- Does the slope differ? The interval of the difference follows from both (MOVER: Zou & Donner 2008). A falling loss
  flattens by itself, so "slower" must exceed what the bend of the curve before foretells.
- Does the level jump? Both lines are drawn on to the step of the change.

What is found once stays found, at the longest of these stretches that shows it: a loss that has fallen and is flat
again has fallen. So both questions at all stretches share the 5 % of changes without effect for which an effect is
claimed all the same (Bonferroni). It tells what followed a change, not what came of it.

Pure functions of a `Session`; nothing is drawn here.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np

from client_callback.wire import commands as c
from client_callback.wire.protocol import Float64, Reply
from client_callback.wire.trends import Trends, trends
from monitor.scales import format_number
from monitor.series import Column
from monitor.session import Session

BLOCKS: Final = 16
LOOKS: Final = tuple(BLOCKS * 4 * 2**k for k in range(6))
"""Steps after a change at which it is judged: 64 to 2,048. Few, so that little is lost on looking repeatedly."""
ERROR: Final = 0.05
"""Share of the changes without any effect for which one is claimed, at whatever look."""
_Z: Final = NormalDist().inv_cdf(1 - ERROR / (2 * len(LOOKS)) / 2)
_LEAST_FREEDOM: Final = 3.0
_BEND_Z: Final = 1.0
"""Standard errors by which a curve is allowed to bend more than it seems to: a bend is seen dimly."""
_NEAREST: Final = 4
"""Blocks on either side that must show a jump, too: lines drawn on from a bent curve jump by themselves."""
_SPIKE: Final = 3.0
"""Robust standard deviations from which on a block counts as a spike, and no further."""

_CHANGES: Final = (
    *(c.SetRate, c.ScaleRate, c.SetSchedule, c.SwitchOptimizer, c.SetHyperparameters, c.Accumulate),
    *(c.Freeze, c.Unfreeze, c.Reinitialise, c.SetClassWeight, c.SetLossWeight),
    *(c.Rollback, c.Undo, c.Redo),
)
"""What makes the training go on in another way; what a trial adopts is a command of its own. A command of the
script's own is judged, too, but as it may as well have changed nothing it ends nobody else's steps."""

Verdict = Literal["faster", "slower", "rose", "calmed", "level", "none", "not finite", "early", "unknown"]
"""`faster`, `slower`: the loss falls so now. `rose`: and did not before. `calmed`: it no longer rises as it did.
`level`: it jumped. `none`: no difference can be told. `early`: not enough steps yet. `unknown`: never enough."""


class Comparison(NamedTuple):
    """The steps `[start, step)` before and `[step, stop)` after one intervention."""

    id: str
    """Of its answer."""
    step: int
    start: int
    stop: int
    wait: int
    """Steps that are missing after it before anything can be told."""
    closed: bool
    """Whether no more steps after it will count: another intervention came, or the run has ended."""
    broke_at: int | None
    """The first step after it whose loss is not finite."""


class Slope(NamedTuple):
    """What the loss changes by in 100 steps: a share of itself, or in its own unit. Negative: it falls."""

    value: float
    low: float
    high: float
    """Bounds of its confidence interval."""

    @property
    def error(self) -> float:
        """Half the interval."""
        return (self.high - self.low) / 2


class Impact(NamedTuple):
    """What followed one intervention."""

    verdict: Verdict
    compared: Comparison
    before: Slope | None = None
    after: Slope | None = None
    """`None`: not enough steps on one of the sides."""
    levels: tuple[float, float] | None = None
    """The loss right before and right after, by the lines through both sides."""
    relative: bool = True
    """Whether slopes are shares of the loss."""
    later: bool = False
    """Whether more steps are known, and show no more."""


# ── Which steps ───────────────────────────────────────────────────────────────────────────────────


def comparisons(session: Session) -> list[Comparison]:
    """What can be compared by now for each applied intervention, in the order of their answers. Costs little."""
    loss = session.series.get("loss")
    if loss is None or session.series_kinds.get("loss") == "running":
        return []
    judged = [(reply, kind) for reply in session.replies if (kind := _kind(session, reply))]
    bounds = sorted({step for reply, kind in judged for step in _bounds(session, reply, kind)})
    return [_comparison(reply, bounds, loss, over=session.ended is not None) for reply, _ in judged]


def _kind(session: Session, reply: Reply) -> Literal["change", "action"] | None:
    if reply.status != "applied":
        return None
    order = session.order(reply)
    if order is None:
        return "change" if reply.timer is not None else None  # a timer has set something back
    if isinstance(order.instruction, c.UserAction):
        return "action"
    return "change" if isinstance(order.instruction, _CHANGES) else None


def _bounds(session: Session, reply: Reply, kind: str) -> Iterator[int]:
    """The steps from which on the training goes on in another way."""
    order = session.order(reply)
    if kind == "change":
        yield reply.step
        if order is not None and order.lasts is not None:
            yield reply.step + order.lasts


def _comparison(reply: Reply, bounds: list[int], loss: Column, *, over: bool) -> Comparison:
    step, known = reply.step, len(loss)
    earlier, later = bisect_left(bounds, step), bisect_right(bounds, step)
    since = bounds[earlier - 1] if earlier else 0
    until = min(bounds[later] if later < len(bounds) else known, known)
    closed = over or (later < len(bounds) and bounds[later] <= known)
    broken = loss.non_finite(step, until)
    look = max((look for look in LOOKS if look <= until - step), default=0)
    return Comparison(
        id=reply.id,
        step=step,
        start=max(since, step - (look or LOOKS[0]), 0),
        stop=step + look if look else max(step, until),
        wait=0 if look else LOOKS[0] - max(0, until - step),
        closed=closed,
        broke_at=int(broken[0]) if len(broken) else None,
    )


# ── What followed ─────────────────────────────────────────────────────────────────────────────────


def impact(session: Session, compared: Comparison) -> Impact:
    """What followed; the same whenever the same steps are compared."""
    if compared.broke_at is not None:
        return Impact("not finite", compared)
    if compared.wait:
        return Impact("unknown" if compared.closed else "early", compared)
    looks = [look for look in LOOKS if look <= compared.stop - compared.step]
    found = [_over(session.series["loss"], compared, look) for look in reversed(looks)]
    for one in found:
        if one.verdict not in ("none", "unknown"):
            return one._replace(later=one is not found[0])
    return found[0]


def _over(loss: Column, compared: Comparison, look: int) -> Impact:
    """What followed within so many steps."""
    start, step = max(compared.start, compared.step - look), compared.step
    compared = compared._replace(start=start, stop=step + look)
    block = (step - start) // BLOCKS
    if step - start < LOOKS[0]:
        return Impact("unknown", compared)
    before = loss.block_means(step - BLOCKS * block, block, BLOCKS)
    after = loss.block_means(step, look // BLOCKS, BLOCKS)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return Impact("unknown", compared)
    blocks = block, look // BLOCKS
    absolute = _judged(compared, before, after, blocks, relative=False)
    if min(before.min(), after.min()) <= 0:
        return absolute
    shares = _judged(compared, np.log(before), np.log(after), blocks, relative=True)
    # What falls in a straight line falls faster and faster by its share: only both scales together tell an effect.
    return shares if absolute.verdict != "none" else shares._replace(verdict="none")


class _Side:
    """The blocks of one side and the line through them; slopes are per step."""

    def __init__(self, means: Float64, block: int) -> None:
        self.means, self.block = means, block
        self.trend: Trends = trends(means[None], _Z)
        self.slope, self.low, self.high = (float(x[0]) / block for x in self.trend[:3])

    def level(self, at: float) -> tuple[float, float]:
        """The line `at` that block, counted from 0, and its standard error there (of a straight line's end)."""
        places = np.arange(BLOCKS)
        level = float(np.median(self.means - self.slope * self.block * (places - at)))
        residuals = self.means - self.slope * self.block * (places - at) - level
        reach = _SPIKE * 1.4826 * float(np.median(np.abs(residuals)))
        variance = float((residuals.clip(-reach, reach) ** 2).sum()) / (BLOCKS - 2)
        # σ² (1 / n + d² / Σ (x - x̄)²), which is 4 σ² / n at either end.
        return level, math.sqrt(4 / BLOCKS * variance * float(self.trend.inflation[0]))

    @property
    def steps(self) -> int:
        return BLOCKS * self.block


def _judged(
    compared: Comparison, old: Float64, new: Float64, blocks: tuple[int, int], *, relative: bool
) -> Impact:
    """Compares two sides of `BLOCKS` means each, of blocks of so many steps; `relative`: they are logarithms."""
    before, after = _Side(old, blocks[0]), _Side(new, blocks[1])
    (level, error), (new_level, new_error) = before.level(BLOCKS - 0.5), after.level(-0.5)
    jump = new_level - level
    nearest = float(np.median(after.means[:_NEAREST]) - np.median(before.means[-_NEAREST:]))
    freedom = (BLOCKS - 2) * float(1 / before.trend.inflation[0] + 1 / after.trend.inflation[0])
    if abs(jump) > _student(freedom) * math.hypot(error, new_error) and jump * nearest > 0:
        verdict: Verdict = "level"
    else:
        verdict = _by_slope(before, after)
    unit = math.exp if relative else float
    return Impact(
        verdict,
        compared,
        _slope(before, relative=relative),
        _slope(after, relative=relative),
        (unit(level), unit(new_level)),
        relative,
    )


def _student(freedom: float) -> float:
    """Student's quantile by the normal one `_Z` (Fisher & Cornish 1960): the noise is known from few values only."""
    freedom = max(_LEAST_FREEDOM, freedom)
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _by_slope(before: _Side, after: _Side) -> Verdict:
    change = after.slope - before.slope
    if change < -math.hypot(after.high - after.slope, before.slope - before.low):
        return "calmed" if before.low > 0 and after.high >= 0 else "faster"
    spread = math.hypot(after.slope - after.low, before.high - before.slope)
    if change > spread and after.low > 0:
        return "rose"
    flattening, error = _own_flattening(before, after)
    return "slower" if change - flattening > math.hypot(spread, error) else "none"


def _own_flattening(before: _Side, after: _Side) -> tuple[float, float]:
    """By how much the slope would grow anyway, did the curve go on bending as before the change, and its error."""
    half = BLOCKS // 2
    (early, late), lows, highs, *_ = trends(before.means.reshape(2, half), _BEND_Z)
    apart = (before.steps + after.steps) / 2 / (half * before.block)
    error = math.hypot(highs[1] - late, early - lows[0])
    return max(0.0, late - early) * apart / before.block, error * apart / before.block


def _slope(side: _Side, *, relative: bool) -> Slope:
    per_100 = [100 * value for value in (side.slope, side.low, side.high)]
    return Slope(*(math.expm1(min(value, 700.0)) if relative else value for value in per_100))


# ── In words ──────────────────────────────────────────────────────────────────────────────────────


def sentence(impact: Impact, *, full: bool = False) -> str:
    """What followed, in one line; `full` gives the numbers of both sides also where they do not differ."""
    compared, steps = impact.compared, impact.compared.stop - impact.compared.step
    if impact.verdict == "early":
        return f"too early to tell: {compared.wait} more steps"
    if impact.verdict == "not finite":
        return f"loss is not finite from step {compared.broke_at:,} on"
    if impact.verdict == "unknown" or impact.before is None or impact.after is None:
        return f"effect cannot be told: {_why_unknown(compared)}"
    trend = _trend(impact.before, impact.after, relative=impact.relative)
    if impact.verdict == "none":
        return f"no detectable effect in {steps:,} steps" + (f": loss {trend}" if full else "")
    if impact.verdict == "level" and impact.levels is not None:
        old, new = (format_number(level, 3) for level in impact.levels)
        trend = f"jumped {old} → {new}; {trend}"
    return f"loss {trend}" + (f", in the first {steps:,} steps" if impact.later else "")


def _why_unknown(compared: Comparison) -> str:
    if compared.wait:
        return f"only {compared.stop - compared.step} steps after it"
    if compared.step - compared.start < LOOKS[0]:
        return f"only {compared.step - compared.start} steps before it to compare with"
    return "losses before it are missing or not finite"


def _trend(before: Slope, after: Slope, *, relative: bool) -> str:
    """`fell 0.2 %/100 steps before, 3.1 % after (±0.4)`."""
    scale, unit = (100.0, " %") if relative else (1.0, "")
    decimals = _decimals(scale * after.error)
    error = f"±{scale * after.error:.{decimals}f}"
    (was, old), (is_, new) = (_change(scale * slope.value, decimals) for slope in (before, after))
    per = f"{unit}/100 steps"
    if not old and not new:
        return f"flat before and after ({error}{per})"
    first = f"{was} {old}{per} before" if old else "flat before"
    if not new:
        return f"{first}, flat after ({error})"
    verb = "" if old and is_ == was else f"{is_} "
    return f"{first}, {verb}{new}{unit if old else per} after ({error})"


def _change(value: float, decimals: int) -> tuple[str, str]:
    """Verb and size; an empty size for what rounds to nothing."""
    size = f"{abs(value):,.{decimals}f}"
    return ("fell" if value < 0 else "rose"), size if float(size.replace(",", "")) else ""


def _decimals(error: float) -> int:
    """Of a number with such an error: down to the error's first digit."""
    return max(0, min(6, -math.floor(math.log10(error)))) if error > 0 else 3
