"""Whether a training is in trouble at all: what is suspicious in one that goes well is no more than a note.

Rules on data, losses and layers ask this. No rule here.
"""

from __future__ import annotations

import math
from typing import Final

from monitor.diagnosis.case import Case, per_case
from monitor.diagnosis.epochs import come, reached
from monitor.diagnosis.motion import guessing_loss

SHORTFALL: Final = 0.15
"""Of lift behind a plain model, a lower bound of what can be had, once a sound training would be there."""
LATE_EPOCHS: Final = 6
"""A loss that falls may still take so long to beat guessing."""
ABOVE_GUESSING: Final = 1.5
"""Times the loss of guessing, by which it is worse than nothing."""
WELL: Final = 0.5
"""A lift from here on is one of a training that learns; whatever is odd about it does not keep it from learning."""


@per_case
def trouble(case: Case) -> str:
    """What is wrong with it, as a clause with numbers. Empty: nothing, or it is too early to say."""
    if case.non_finite_from is not None:
        return f"the loss is not finite since step {case.non_finite_from:,}"
    lift = reached(case)
    if _guesses_for_long(case):
        return f"after {case.step:,} steps it is no better than guessing{_beside(case, lift)}"
    guess, level = guessing_loss(case), case.progress.level
    if case.seasoned and level - case.penalty > ABOVE_GUESSING * guess > 0:
        return f"after {case.step:,} steps its loss is {level:.4g}, that of guessing {guess:.4g}"
    if case.stuck:
        since = case.progress.start + case.progress.steps // 2
        return (
            f"the loss stays at {case.progress.level:.4g} since step {since:,} at least{_beside(case, lift)}"
        )
    waited = case.progress.trend in ("flat", "rising") or case.epochs_since_change >= LATE_EPOCHS
    if case.seasoned and waited and lift is not None and case.attainable is not None:
        behind = case.attainable - lift
        if behind >= SHORTFALL:
            return f"it is {behind:.2f} of the way behind {case.plain_model}{_beside(case, lift)}"
    return ""


@per_case
def falls_short(case: Case) -> str:
    """How little was learned in several epochs, where nothing tells what could be had. Empty: not so.

    Hard data look the same, so this counts only beside what is wrong by construction.
    """
    lift = reached(case)
    if trouble(case) or case.attainable is not None or lift is None or case.epochs_since_change < LATE_EPOCHS:
        return ""
    return f"in {case.epochs_since_change} epochs it has come {come(lift)}" if lift < WELL else ""


def gets_nowhere(case: Case) -> bool:
    """Whether it learns nothing any more, or has learned nothing yet though it had the time."""
    return case.stuck or _guesses_for_long(case)


def thrives(case: Case) -> bool:
    """Whether it is known to go well."""
    if trouble(case):
        return False
    lift = reached(case)
    if lift is None or not math.isfinite(lift):
        return case.solved
    return case.solved or lift >= max(WELL, (case.attainable or 0.0) - SHORTFALL)


def _guesses_for_long(case: Case) -> bool:
    return case.guessing and case.seasoned and _late(case)


def _late(case: Case) -> bool:
    """Whether to judge by what was reached: a loss that falls may yet get there."""
    return case.progress.trend != "falling" or case.epochs_since_change >= LATE_EPOCHS


def _beside(case: Case, lift: float | None) -> str:
    base, accuracy = case.baseline, case.accuracy
    if base is not None and base.classes > 1 and accuracy is not None:
        return f" (accuracy {accuracy:.3f}, always the largest class {base.majority:.3f})"
    return "" if lift is None else f" (it explains {max(lift, 0):.0%} of the variance)"
