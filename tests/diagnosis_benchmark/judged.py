"""What the diagnosis says of one recording, at steps of a grid and at its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monitor.diagnosis.engine import Diagnosis, examine
from monitor.session import Session
from monitor.sources import RecordedSource

END = sys.maxsize
"""Beyond the last step: all there is."""

FINEST = 20
"""Steps between the first points of the grid; fewer in a run of few steps."""
ONLY_END = frozenset({"stop", "pause"})
WIDENING = 1.12
"""From then on each gap is so much wider: what comes late need not be told to the step."""


@dataclass(frozen=True)
class Said:
    """A diagnosis at one step, as far as it counts: notes are no alarms."""

    step: int
    verdict: str
    rules: tuple[str, ...]
    """Of the findings above a note, best first."""
    severities: tuple[str, ...]
    command: str | None
    """The first that the top finding offers. `None`: it offers none that is meant to help: what only ends or holds a
    training comes after the code that mends the next one."""

    @property
    def alarm(self) -> bool:
        """Whether somebody would look up."""
        return self.verdict != "healthy"


@dataclass(frozen=True)
class Judgement:
    """What was said of a whole run."""

    said: tuple[Said, ...]
    """At the steps of the grid; the last is the end."""
    failed: tuple[str, ...] = ()
    """Rules that failed on the recording, each with its error."""

    @property
    def end(self) -> Said:
        """After the last step."""
        return self.said[-1]

    @property
    def first_alarm(self) -> Said | None:
        """`None`: there was none."""
        return next((said for said in self.said if said.alarm), None)

    @property
    def worst(self) -> str:
        """The highest severity of any finding in an alarm: `critical`, `warning` or ``."""
        found = {severity for said in self.said if said.alarm for severity in said.severities}
        return next((severity for severity in ("critical", "warning") if severity in found), "")

    def first_right(self, accepted: frozenset[str], within: int) -> Said | None:
        """The first alarm with an accepted cause among the first `within`. `None`: there was none."""
        return next((said for said in self.said if said.alarm and accepted & set(said.rules[:within])), None)


def judge(recording: Path, steps: int) -> Judgement:
    """Reads a recording of so many steps once, and asks at each step of the grid and at its end."""
    session = Session()
    said, failed = [], set()
    with contextlib.closing(RecordedSource(recording, start_step=0)) as source:
        for at in (*grid(steps), END):
            source.seek(at)
            for event in source.poll().events:
                session.apply(event)
            diagnosis = examine(session)
            said.append(_said(diagnosis, min(at, steps)))
            failed |= {f"{silent.rule}: {silent.reason}" for silent in diagnosis.silent if silent.failed}
    return Judgement(tuple(said), tuple(sorted(failed)))


def grid(steps: int) -> Iterator[int]:
    """Steps at which to look, the end left out."""
    gap = at = float(min(FINEST, max(1, steps // 10)))
    while at < steps:
        yield round(at)
        if at >= 10 * FINEST:
            gap *= WIDENING
        at += gap


def _said(diagnosis: Diagnosis, step: int) -> Said:
    findings = [finding for finding in diagnosis.findings if finding.severity != "note"]
    remedies = findings[0].remedies if findings else ()
    return Said(
        step=step,
        verdict=diagnosis.verdict,
        rules=tuple(finding.rule for finding in findings),
        severities=tuple(finding.severity for finding in findings),
        command=next(
            (
                remedy.command
                for place, remedy in enumerate(remedies)
                if remedy.command and (place == 0 or remedy.command not in ONLY_END)
            ),
            None,
        ),
    )
