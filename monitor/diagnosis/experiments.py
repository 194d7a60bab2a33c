"""What trials have shown since the training was last changed: experiments that a person asked for.

A trial goes on from one state in several ways on the same batches, so that what differs between its candidates has no
other cause. Rules add what it shows to their evidence. No rule here.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire import commands
from client_callback.wire.commands import CommandError, Instruction
from client_callback.wire.protocol import TrialEnded, TrialResult
from client_callback.wire.range_test import RangeTest
from monitor.diagnosis.case import Case, per_case
from monitor.diagnosis.finding import Evidence, Remedy
from monitor.trial_results import losses_of, range_test_of

AS_IT_IS: Final = "keep"
ZERO_INPUTS: Final = "zero-inputs"
STANDARD_INPUTS: Final = "standard-inputs"
ONE_BATCH: Final = "one-batch"
LEARNED: Final = 0.5
"""Share of its first loss below which a single batch counts as learned."""
ALIKE: Final = 0.05
FEWEST_STEPS: Final = 24
"""Of a candidate: fewer leave less than six to compare."""

FIND_OUT: Final = Remedy(
    "Find out where the fault is: go on without inputs, with standardised ones, and on one batch again and again",
    f"trial {AS_IT_IS} {ZERO_INPUTS} {STANDARD_INPUTS} {ONE_BATCH} for 40 steps",
)


class Winner(NamedTuple):
    """A candidate that did better than all others, beyond chance, and is not at work yet."""

    trial: TrialEnded
    result: TrialResult
    instruction: Instruction | None
    """`None`: it changes the data, or nothing."""


class Compared(NamedTuple):
    """A candidate beside going on as it is."""

    trial: TrialEnded
    kept: TrialResult
    other: TrialResult
    least: float
    """Bounds of how much higher its loss was than that of `keep` on the same batches, two standard errors off; over
    the last quarter of the steps."""
    most: float

    @property
    def better(self) -> bool:
        """Whether it ended lower beyond chance."""
        return self.most < 0

    @property
    def worse(self) -> bool:
        """Whether it ended higher beyond chance."""
        return self.least > 0

    @property
    def alike(self) -> bool:
        """Whether it is certainly not worse by a twentieth of the loss."""
        return self.most < ALIKE * abs(self.kept.score)

    def told(self, meaning: str) -> Evidence:
        """As evidence; `meaning` is a clause on what it shows."""
        text = (
            f"in a trial from step {self.trial.start:,}, {self.other.text} came to a loss of {self.other.score:.4g}, "
            f"{self.kept.text} to {self.kept.score:.4g}: {meaning}"
        )
        return Evidence(
            text, self.trial.start, {"loss": self.other.score, "kept": self.kept.score}, by_trial=True
        )


@per_case
def winners(case: Case) -> list[Winner]:
    """Of each trial that tells, the newest first."""
    found = []
    for trial in _trials(case):
        if trial.tells and not trial.adopted and trial.results and not trial.rates:
            best = trial.results[0]
            if best.text != AS_IT_IS and math.isfinite(best.score):
                found.append(Winner(trial, best, _instruction(best.text)))
    return found


@per_case
def compared(case: Case, candidate: str) -> Compared | None:
    """The newest trial of that candidate beside `keep`. `None`: there is none."""
    for trial in _trials(case):
        results = {result.text: result for result in trial.results}
        kept, other = results.get(AS_IT_IS), results.get(candidate)
        if kept is None or other is None:
            continue
        count = min(len(losses_of(kept)), len(losses_of(other)))
        last = slice(count - count // 4, count)
        apart = losses_of(other)[last].astype(np.float64) - losses_of(kept)[last]
        if count >= FEWEST_STEPS and np.isfinite(apart).all():
            error = 2 * float(apart.std(ddof=1)) / math.sqrt(len(apart))
            return Compared(trial, kept, other, float(apart.mean()) - error, float(apart.mean()) + error)
    return None


@per_case
def one_batch(case: Case) -> tuple[bool, Evidence] | None:
    """Whether a single batch was learned, and what shows it. `None`: not tried, or there is nothing left to learn."""
    for trial in _trials(case):
        for result in trial.results:
            losses = losses_of(result)
            if result.text != ONE_BATCH or len(losses) < FEWEST_STEPS or case.solved:
                continue
            first = float(losses[0])
            learned = first > 0 and result.score < LEARNED * first
            text = (
                f"in a trial from step {trial.start:,} one batch was trained on {len(losses)} times: its loss went "
                f"from {first:.4g} to {result.score:.4g}"
            )
            text += ", so model and optimizer can learn" if learned else ": hardly anything of it was learned"
            return learned, Evidence(text, trial.start, {"first": first, "loss": result.score}, by_trial=True)
    return None


@per_case
def range_test(case: Case) -> tuple[TrialEnded, RangeTest] | None:
    """The newest test of learning rates, and what it says. `None`: there is none."""
    for trial in _trials(case):
        if (read := range_test_of(trial)) is not None:
            return trial, read
    return None


def _trials(case: Case) -> list[TrialEnded]:
    """Since the last change, the newest first."""
    return [trial for trial in reversed(case.session.trials) if trial.start >= case.changed_at]


def _instruction(text: str) -> Instruction | None:
    try:
        return commands.parse(text).instruction
    except CommandError:
        return None
