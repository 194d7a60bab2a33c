"""Asks every rule, now and then, what it sees in the session.

The app calls `Engine.look` as often as it likes and gets the findings of the last half second; `diagnose` is
one look. To add a rule: one module, one line in `RULES`. No rule is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from monitor.diagnosis import non_finite, plateau
from monitor.diagnosis.finding import Finding, Rule, Severity
from monitor.session import Session

RULES: Final[tuple[Rule, ...]] = (
    non_finite.RULE,
    plateau.RULE,
)

PERIOD_S: Final = 0.5
"""Between two looks. A finding rests on hundreds of steps, so looking more often shows nothing sooner."""

_GRAVEST_FIRST: Final[dict[Severity, int]] = {"critical": 0, "warning": 1, "note": 2}


def diagnose(session: Session, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """What the rules find, the gravest first and then the newest."""
    findings = [finding for rule in rules for finding in rule.check(session)]
    return tuple(sorted(findings, key=lambda finding: (_GRAVEST_FIRST[finding.severity], -finding.stop)))


class Engine:
    """Remembers the last findings, so that asking often costs little."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._findings: tuple[Finding, ...] = ()
        self._looked_at_s: float | None = None

    def look(self, session: Session, now_s: float) -> tuple[Finding, ...]:
        """The findings, at most `PERIOD_S` old; `now_s` comes from any clock that does not go back."""
        if self._looked_at_s is None or now_s - self._looked_at_s >= PERIOD_S:
            self._findings = diagnose(session, self._rules)
            self._looked_at_s = now_s
        return self._findings

    def forget(self) -> None:
        """Looks afresh at the next call; for when another session takes the place of this one."""
        self._looked_at_s = None
