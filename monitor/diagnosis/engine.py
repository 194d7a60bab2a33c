"""Asks every rule what it sees in a session, and puts what they say in order: causes first, symptoms under them.

`examine` is one look; the app calls `Engine.look` as often as it likes and gets the findings of the last half second.
To add a rule: one module, one line in `RULES`. No rule is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

from monitor.diagnosis import (
    bad_initialisation,
    bad_input,
    batch_size,
    class_imbalance,
    dead_units,
    exploding_gradient,
    frozen_layer,
    hidden_activation,
    input_ignored,
    input_scale,
    label_encoding,
    learning_rate_high,
    learning_rate_low,
    non_finite,
    oscillation,
    over_regularised,
    overfitting,
    plateau,
    too_short,
    underfitting,
    unsuitable_optimizer,
    validation_too_good,
    vanishing_gradient,
    wrong_loss,
    wrong_output_activation,
)
from monitor.diagnosis.case import Case, Memory
from monitor.diagnosis.finding import Finding, Rule, Severity
from monitor.diagnosis.trouble import gets_nowhere
from monitor.session import Session

RULES: Final[tuple[Rule, ...]] = (
    non_finite.RULE,
    bad_initialisation.RULE,
    bad_input.RULE,
    batch_size.RULE,
    class_imbalance.RULE,
    dead_units.RULE,
    exploding_gradient.RULE,
    frozen_layer.RULE,
    hidden_activation.RULE,
    input_ignored.RULE,
    input_scale.RULE,
    label_encoding.RULE,
    learning_rate_high.RULE,
    learning_rate_low.RULE,
    oscillation.RULE,
    over_regularised.RULE,
    overfitting.RULE,
    too_short.RULE,
    underfitting.RULE,
    unsuitable_optimizer.RULE,
    validation_too_good.RULE,
    vanishing_gradient.RULE,
    wrong_loss.RULE,
    wrong_output_activation.RULE,
    plateau.RULE,
)

PERIOD_S: Final = 0.5
"""Between two looks. A finding rests on dozens of steps, so looking more often shows nothing sooner."""

MUCH_LESS_SURE: Final = 0.3
"""A finding so much less sure than another does not explain it."""

_GRAVITY: Final[dict[Severity, int]] = {"critical": 0, "warning": 1, "note": 2}

Verdict = Literal["healthy", "suspect", "stuck"]


class Silent(NamedTuple):
    """A rule that could not tell anything."""

    rule: str
    reason: str
    failed: bool = False
    """Whether that is a fault of the rule's own."""


class Diagnosis(NamedTuple):
    """What all rules say together."""

    verdict: Verdict
    """`stuck`: training gets nowhere. `suspect`: something is worth acting on. `healthy`: nothing seen is."""
    findings: tuple[Finding, ...]
    """The best explanation first."""
    silent: tuple[Silent, ...]
    """Rules that had not enough to go by."""


def examine(session: Session, rules: Sequence[Rule] = RULES, memory: Memory | None = None) -> Diagnosis:
    """What the rules find in a session, as it is now. Pure: `memory` of earlier looks only saves time."""
    case = Case(session, memory)
    findings: list[Finding] = []
    silent: list[Silent] = []
    for rule in rules:
        try:
            if reason := rule.lacks(case):
                silent.append(Silent(rule.name, reason))
            else:
                findings += rule.check(case)
        except Exception as error:  # noqa: BLE001 (whatever was recorded, one rule must not silence the others)
            silent.append(Silent(rule.name, f"it failed: {type(error).__name__}: {error}", failed=True))
    ranked = _without_symptoms(sorted(findings, key=_rank), {rule.name: rule.explains for rule in rules})
    return Diagnosis(_verdict(case, ranked), tuple(ranked), tuple(silent))


def diagnose(session: Session, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """What the rules find, the best explanation first."""
    return examine(session, rules).findings


class Engine:
    """Looks at a session again and again, in a thread of its own, and remembers what was found."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._memory = Memory()
        self._diagnosis = Diagnosis("healthy", (), ())
        self._looked_at_s: float | None = None
        self._thread = ThreadPoolExecutor(1, "diagnosis")
        self._looking: Future[Diagnosis] | None = None

    def look(self, session: Session, now_s: float) -> Diagnosis:
        """The newest diagnosis there is, and at most every `PERIOD_S` the beginning of another.

        Only the first look at a session is taken here and now, so that what is opened shows its findings at once.

        Args:
            session: may go on changing after the call.
            now_s: from any clock that does not go back.
        """
        if self._looking is not None and self._looking.done():
            self._diagnosis, self._looking = self._looking.result(), None
        if self._looked_at_s is None:
            self._diagnosis, self._looked_at_s = examine(session, self._rules, self._memory), now_s
        elif self._looking is None and now_s - self._looked_at_s >= PERIOD_S:
            self._looked_at_s = now_s
            self._looking = self._thread.submit(examine, session.still(), self._rules, self._memory)
        return self._diagnosis

    def forget(self) -> None:
        """Looks afresh at the next call; for when another session takes the place of this one."""
        self._memory = Memory()  # a look at the other may still be on its way
        self._looked_at_s = self._looking = None

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)


def _rank(finding: Finding) -> tuple[int, float, int]:
    return _gravity(finding), -finding.confidence, -finding.stop


def _without_symptoms(findings: Sequence[Finding], explains: Mapping[str, frozenset[str]]) -> list[Finding]:
    """A finding that another explains is named in that one's `symptoms`, and hands its gravity on if greater.

    What a trial showed is handed on too: somebody asked for it, and waits for the answer.

    What a note says explains nothing: it may not even be a fault. A cause must have set in before its symptom was
    last seen, and be hardly less sure: a guess does not explain what was measured.
    """
    cause_of: dict[int, int] = {}
    for place, finding in enumerate(findings):
        for other, cause in enumerate(findings):
            known = finding.rule in explains.get(cause.rule, ())
            sure = cause.confidence >= finding.confidence - MUCH_LESS_SURE
            if known and sure and cause.severity != "note" and cause.start < finding.stop:
                cause_of[place] = other
                break

    def root(place: int) -> int:
        while place in cause_of:  # ends: no rule explains one that explains it
            place = cause_of[place]
        return place

    kept = []
    for place, finding in enumerate(findings):
        if place in cause_of:
            continue
        own = [findings[other] for other in cause_of if root(other) == place]
        gravest = min([finding, *own], key=_gravity).severity
        symptoms = tuple(dict.fromkeys(one.rule for one in own))
        tried = [
            one for found in own for one in found.evidence if one.by_trial and one not in finding.evidence
        ]
        evidence = (*finding.evidence, *tried)
        kept.append(finding._replace(symptoms=symptoms, severity=gravest, evidence=evidence))
    return sorted(kept, key=_rank)


def _gravity(finding: Finding) -> int:
    return _GRAVITY[finding.severity]


def _verdict(case: Case, findings: Sequence[Finding]) -> Verdict:
    worst = min(map(_gravity, findings), default=2)
    if worst == 0 or (worst == 1 and gets_nowhere(case)):
        return "stuck"
    return "suspect" if worst == 1 else "healthy"
