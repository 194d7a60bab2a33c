"""What the diagnosis says of one recording, at steps of a grid and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.diagnosis.engine import Diagnosis, examine
from monitor.sources.recorded import session_at

FINEST = 20
"""Steps between the first points of the grid."""
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
    """The first that the top finding offers. `None`: it offers none."""

    @property
    def alarm(self) -> bool:
        """Whether somebody would look up."""
        return self.verdict != "healthy"


@dataclass(frozen=True)
class Judgement:
    """What was said of a whole run."""

    said: tuple[Said, ...]
    """At the steps of the grid; the last is the end."""

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


def judge(recording: Path, steps: int, *, whole: bool = True) -> Judgement:
    """Reads a recording of so many steps; `whole`: at all steps of the grid, not only at its end."""
    points: Sequence[int | None] = [*grid(steps), None] if whole else [None]
    return Judgement(tuple(_said(recording, steps, at) for at in points))


def grid(steps: int) -> Iterator[int]:
    """Steps at which to look, the end left out."""
    at, gap = float(FINEST), float(FINEST)
    while at < steps:
        yield round(at)
        if at >= 10 * FINEST:
            gap *= WIDENING
        at += gap


def _said(recording: Path, steps: int, at: int | None) -> Said:
    diagnosis: Diagnosis = examine(session_at(recording, at))
    findings = [finding for finding in diagnosis.findings if finding.severity != "note"]
    commands = [remedy.command for remedy in findings[0].remedies if remedy.command] if findings else []
    return Said(
        step=steps if at is None else at,
        verdict=diagnosis.verdict,
        rules=tuple(finding.rule for finding in findings),
        severities=tuple(finding.severity for finding in findings),
        command=commands[0] if commands else None,
    )
