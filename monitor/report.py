"""A diagnosis in words for a terminal of 80 columns, and as the object that `unstuck diagnose --json` prints.

`monitor.actions` hands over what the rules said; nothing here looks for faults. The object's names are stable:
scripts depend on them.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from monitor.diagnosis.case import Case
from monitor.diagnosis.engine import Diagnosis, Verdict
from monitor.diagnosis.finding import Evidence, Finding, Remedy
from monitor.session import Session

WIDTH: Final = 80
_INDENT: Final = "   "
_VERDICTS: Final[dict[Verdict, str]] = {
    "stuck": "STUCK: this training gets nowhere",
    "suspect": "SUSPECT: something here is worth acting on",
    "healthy": "HEALTHY: nothing found that is worth acting on",
}
_TRENDS: Final = {"falling": "falling", "flat": "not falling", "rising": "rising"}


def report(diagnosis: Diagnosis, session: Session, *, live: bool) -> str:
    """All of it, lines of at most 80 columns but for code and commands, which must stay whole.

    Args:
        diagnosis: what the rules said of the session.
        session: the run, as it was when they looked.
        live: whether commands can be sent to it now.
    """
    lines = [_VERDICTS[diagnosis.verdict], *_wrapped(_standing(Case(session), session), "")]
    for number, finding in enumerate(diagnosis.findings, 1):
        lines += ["", *_finding_lines(number, finding, _selector(session, live=live))]
    if any(remedy.command for finding in diagnosis.findings for remedy in finding.remedies) and not live:
        lines += ["", *_wrapped("The run is over: what can be sent is for its next time.", "")]
    if diagnosis.silent:
        lines += ["", "could not be judged:"]
        for silent in diagnosis.silent:
            lines += _wrapped(f"{silent.rule}: {silent.reason}", "  ", "    ")
    return "\n".join(lines)


def in_brief(diagnosis: Diagnosis) -> str:
    """The verdict and the best explanation, in half a line."""
    best = next(iter(diagnosis.findings), None)
    if best is None or best.severity == "note":
        return diagnosis.verdict
    return f"{diagnosis.verdict}, {best.title} [{best.rule}]"


def as_object(diagnosis: Diagnosis, session: Session) -> dict[str, object]:
    """For JSON; numbers that are not finite are None."""
    return {
        "verdict": diagnosis.verdict,
        "findings": [_finding_object(finding) for finding in diagnosis.findings],
        "silent": [{"rule": silent.rule, "reason": silent.reason} for silent in diagnosis.silent],
        "step": session.step,
        "run": session.run.run_id if session.run else None,
    }


def _finding_object(finding: Finding) -> dict[str, object]:
    return {
        "rule": finding.rule,
        "title": finding.title,
        "severity": finding.severity,
        "confidence": _finite(finding.confidence),
        "onset_step": int(finding.onset),
        "evidence": [_evidence_object(one) for one in finding.evidence],
        "explanation": finding.explanation,
        "remedies": [_remedy_object(remedy) for remedy in finding.remedies],
        "symptoms": list(finding.symptoms),
    }


def _evidence_object(one: Evidence) -> dict[str, object]:
    numbers = {name: _finite(value) for name, value in one.numbers.items()}
    return {"text": one.text, "step": None if one.step is None else int(one.step), "numbers": numbers}


def _remedy_object(remedy: Remedy) -> Mapping[str, object]:
    if remedy.command is not None:
        return {"command": remedy.command, "text": remedy.text}
    return {"advice": remedy.text, "code": remedy.code}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────


def _standing(case: Case, session: Session) -> str:
    """Which run, how far, and how good it is beside guessing."""
    name = f"{session.run.name} ({session.run.run_id})" if session.run else "a run without a beginning"
    parts = [f"{name} after {case.step:,} steps"]
    if case.non_finite_from is not None:
        parts.append(f"loss not finite since step {case.non_finite_from:,}")
    elif math.isfinite(case.progress.level):
        trend = _TRENDS.get(case.progress.trend)
        parts.append(f"loss {case.progress.level:.4g}" + (f", {trend}" if trend else ""))
    base = case.baseline
    if case.accuracy is not None:
        parts.append(f"accuracy {case.accuracy:.3g}")
    if base is not None and base.classes > 1:
        parts.append(
            f"always saying the most frequent of {base.classes} classes gives {base.majority:.3g}, "
            f"their shares as probabilities a cross-entropy of {base.entropy:.3g}"
        )
    elif base is not None and base.variance > 0:
        parts.append(f"always predicting the mean gives a squared error of {base.variance:.3g}")
    return "; ".join(parts)


def _finding_lines(number: int, finding: Finding, selector: str) -> Iterator[str]:
    since = f"since step {finding.onset:,}" if finding.onset else "since the beginning"
    head = f"{number}. {finding.severity.upper()}: {finding.title} [{finding.rule}]"
    yield from _wrapped(head, "")
    yield from _wrapped(f"{since}, {finding.confidence:.0%} sure")
    yield from _wrapped(finding.detail)
    if finding.symptoms:
        yield from _wrapped(f"this explains: {', '.join(finding.symptoms)}")
    yield from _wrapped(finding.explanation)
    for remedy in finding.remedies:
        yield from _wrapped(remedy.text, _INDENT + "> ", _INDENT + "  ")
        if remedy.command is not None:
            yield f"{_INDENT}    unstuck send {selector} {_typed(remedy.command)}"
        for line in remedy.code.splitlines():
            yield f"{_INDENT}    {line}".rstrip()


def _selector(session: Session, *, live: bool) -> str:
    """What to call the run in a command: a run yet to come has the name of this one, not its id."""
    if session.run is None:
        return "RUN"
    return session.run.run_id if live else shlex.quote(session.run.name)


def _typed(command: str) -> str:
    """As a shell takes it."""
    words = command.split(" ")
    return command if all(word and shlex.quote(word) == word for word in words) else shlex.quote(command)


def _wrapped(text: str, first: str = _INDENT, following: str = "") -> list[str]:
    """Lines of at most 80 columns; words longer than that stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=following or first or "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
