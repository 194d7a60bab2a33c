"""What a rule is and what it says.

Rules make these, `monitor.diagnosis.engine` collects them, panels and exports show them. Nothing here looks
at a session or decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from monitor.session import Session

Severity = Literal["critical", "warning", "note"]
"""`critical`: training on is a waste. `warning`: worth acting on. `note`: worth knowing, or over by now."""


class Remedy(NamedTuple):
    """Something to do about a finding."""

    text: str
    command: str | None = None
    """What can be sent to the running training. `None`: advice for the next run."""


class Finding(NamedTuple):
    """One thing that is wrong, with its evidence."""

    rule: str
    title: str
    detail: str
    """The evidence: numbers with their steps."""
    severity: Severity
    start: int
    stop: int
    """The steps `[start, stop)` it was seen in."""
    remedies: tuple[Remedy, ...] = ()
    shaded: bool = False
    """Whether the curves show its steps."""


class Rule(NamedTuple):
    """One question put to a session. Pure: the same session gives the same findings."""

    name: str
    check: Callable[[Session], list[Finding]]
    """Empty: nothing of the kind, or not enough data to say."""
    healthy: Mapping[str, Callable[[], Session]]
    """Situation → a session in which the rule must find nothing. They are its tests."""
    ailing: Mapping[str, Callable[[], Session]]
    """Situation → a session in which the rule must find something."""
