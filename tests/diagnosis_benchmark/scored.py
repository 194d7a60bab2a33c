"""From judgements to figures. Pure: no file, no training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.diagnosis_benchmark.judged import Judgement

HARMLESS = 0.01
"""An ailing run must be worse than its sound twin's median by so much of accuracy, R² or log loss."""
FAILED = 0.1
"""A sound run that is so much worse than the median of its seeds has failed by itself."""
MARGIN = 0.005
"""A remedy that moves the held-out score by less has changed nothing."""


@dataclass(frozen=True)
class Run:
    """One recording of a case, and what was said of it."""

    case: str
    kind: str
    cause: str
    accepted: frozenset[str]
    dataset: str
    reported: bool
    seed: int
    steps_per_epoch: int
    score: float
    judgement: Judgement
    own_signs: bool = False
    sound: str = ""
    """The case without the fault, as in `Case`."""
    higher_is_better: bool = True
    remedy: Remedy | None = None
    """`None`: none was applied."""


@dataclass(frozen=True)
class Remedy:
    """A command that the diagnosis advised, given to the same training at the step of the verdict."""

    command: str
    at: int
    reply: str
    gain: float
    """How much better the held-out score became; below 0: worse. NaN: no score."""

    @property
    def outcome(self) -> str:
        """`refused`, `undecided` (a trial that put everything back), `helped`, `nothing` or `harmed`."""
        if self.command.startswith("trial ") and self.gain == 0:
            return "undecided"
        if not self.reply.startswith(("applied", "planned", "ineffective")):
            return "refused"
        if math.isnan(self.gain) or self.gain < -MARGIN:
            return "harmed"
        return "helped" if self.gain > MARGIN else "nothing"


@dataclass(frozen=True)
class Sick:
    """How well runs that ail are diagnosed. Shares are from 0 to 1 of `runs`; NaN: there are none."""

    runs: int
    detected: float
    """An alarm at the end."""
    detected_ever: float
    """At any step that was looked at."""
    first: float
    """An accepted cause in first place at the end."""
    first_three: float
    steps_to_first: float
    """Median over the runs that have an accepted cause in first place at some step."""
    steps_to_first_three: float
    epochs_to_first: float
    remedies: dict[str, int]
    """Outcome → how many."""

    @property
    def helped(self) -> float:
        """Share of the remedies that changed the training."""
        idle = ("refused", "undecided")
        carried_out = sum(count for outcome, count in self.remedies.items() if outcome not in idle)
        return self.remedies.get("helped", 0) / carried_out if carried_out else math.nan


@dataclass(frozen=True)
class Well:
    """How often runs that are well raise an alarm; shares of `runs`."""

    runs: int
    at_end: float
    ever: float
    critical: float
    """With a finding of the highest severity at any step."""


def mislabelled(runs: Sequence[Run]) -> list[Run]:
    """Runs that are not what their case says, by their held-out score: chance has made some faults harmless on a
    seed, and some sound trainings fail. The others of the case, or of its twin, on all seeds tell.
    """
    by_case: dict[str, list[float]] = {}
    for run in runs:
        if not math.isnan(run.score):
            by_case.setdefault(run.case, []).append(run.score)
    found = []
    for run in runs:
        usual = by_case.get(run.sound if run.kind == "ailing" else run.case)
        if not usual or math.isnan(run.score):
            continue
        behind = (median(usual) - run.score) * (1 if run.higher_is_better else -1)
        if run.kind == "ailing" and not run.own_signs and behind < HARMLESS:
            found.append(run)
        if run.kind in ("healthy", "twin") and behind > FAILED:
            found.append(run)
    return found


def sick(runs: Sequence[Run]) -> Sick:
    """Of runs that all ail."""
    first = [run.judgement.first_right(run.accepted, 1) for run in runs]
    three = [run.judgement.first_right(run.accepted, 3) for run in runs]
    epochs = [
        said.step / run.steps_per_epoch
        for run, said in zip(runs, first, strict=True)
        if said is not None and run.steps_per_epoch
    ]
    return Sick(
        runs=len(runs),
        detected=_share(run.judgement.end.alarm for run in runs),
        detected_ever=_share(run.judgement.first_alarm is not None for run in runs),
        first=_share(named(run, 1) for run in runs),
        first_three=_share(named(run, 3) for run in runs),
        steps_to_first=_median(said.step for said in first if said is not None),
        steps_to_first_three=_median(said.step for said in three if said is not None),
        epochs_to_first=_median(epochs),
        remedies=dict(Counter(run.remedy.outcome for run in runs if run.remedy is not None)),
    )


def well(runs: Sequence[Run]) -> Well:
    """Of runs with nothing wrong."""
    return Well(
        runs=len(runs),
        at_end=_share(run.judgement.end.alarm for run in runs),
        ever=_share(run.judgement.first_alarm is not None for run in runs),
        critical=_share(run.judgement.worst == "critical" for run in runs),
    )


def named(run: Run, within: int) -> bool:
    """Whether an accepted cause is among the first so many at the end of an alarmed run."""
    end = run.judgement.end
    return end.alarm and bool(run.accepted & set(end.rules[:within]))


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found) if found else math.nan


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return float(median(found)) if found else math.nan
