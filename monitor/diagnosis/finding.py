"""What a rule is and what it says.

Rules make these, `monitor.diagnosis.engine` ranks them, panels and reports show them. Nothing here looks at a
session or decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from monitor.session import Session

if TYPE_CHECKING:
    from monitor.diagnosis.case import Case

Severity = Literal["critical", "warning", "note"]
"""`critical`: training on is a waste. `warning`: worth acting on. `note`: worth knowing, or over by now."""


class Remedy(NamedTuple):
    """Something to do about a finding."""

    text: str
    command: str | None = None
    """What can be sent to the running training. `None`: it cannot be done live."""
    code: str = ""
    """The lines to change in the user's script, as Python. Empty: the text says it all."""


class Evidence(NamedTuple):
    """One thing that was measured, or read off the model."""

    text: str
    """A clause with its numbers and steps, to stand between semicolons."""
    step: int | None = None
    """When it was so, or from when on. `None`: known before the first step."""
    numbers: Mapping[str, float] = {}
    """The same numbers by name, for programs."""
    by_trial: bool = False
    """Whether an experiment that somebody asked for showed it: a cause that explains the finding shows it too."""


class Finding(NamedTuple):
    """One thing that is wrong, with its evidence."""

    rule: str
    title: str
    severity: Severity
    confidence: float
    """From 0 to 1: how sure the rule is that this is so and hurts this training."""
    start: int
    stop: int
    """The steps `[start, stop)` it was seen in; `start` is its onset, 0 where it was so from the beginning."""
    evidence: tuple[Evidence, ...]
    explanation: str
    """What it means, in one sentence that a newcomer understands."""
    remedies: tuple[Remedy, ...] = ()
    """The most promising first."""
    shaded: bool = False
    """Whether the curves show its steps."""
    symptoms: tuple[str, ...] = ()
    """Rules whose findings this one explains; they are not listed themselves."""

    @property
    def onset(self) -> int:
        """Since which step."""
        return self.start

    @property
    def detail(self) -> str:
        """The evidence as one text."""
        return "; ".join(one.text for one in self.evidence)


class Rule(NamedTuple):
    """One question put to a case. Pure: the same session gives the same findings."""

    name: str
    """Its id, as FINDING.rule."""
    check: Callable[[Case], list[Finding]]
    """Empty: nothing of the kind."""
    lacks: Callable[[Case], str]
    """Why the rule cannot tell anything of this case. Empty: it can. Only then is `check` asked."""
    explains: frozenset[str]
    """Rules that see what follows from this: where both find something, theirs is a symptom."""
    healthy: Mapping[str, Callable[[], Session]]
    """Situation → a session in which the rule must find nothing. They are its tests and stand on its page."""
    ailing: Mapping[str, Callable[[], Session]]
    """Situation → a session in which the rule must find something."""
