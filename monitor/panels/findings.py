"""What the rules found, with evidence and remedies; then what could not be recorded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from monitor.charts import Row, Segment
from monitor.diagnosis.finding import Finding, Remedy, Severity
from monitor.panels.panel import Panel
from monitor.panels.text import spelled, wrapped
from monitor.session import Session
from monitor.view import View

FINDING_LOOKS: dict[Severity, tuple[str, str]] = {
    "critical": ("●", "bad"),
    "warning": ("●", "warn"),
    "note": ("·", "dim"),
}
"""Sign and look of each severity."""
_INDENT = "  "
_MOST_PROBLEMS = 20


def sendable(findings: Sequence[Finding]) -> list[Remedy]:
    """The remedies that can be sent, as numbered in the panel and by the keys 1 to 9."""
    remedies = [remedy for finding in findings for remedy in finding.remedies if remedy.command]
    return list({remedy.command: remedy for remedy in remedies}.values())[:9]


class FindingsPanel(Panel):
    """The gravest finding first."""

    name_ = "findings"
    title = "findings"
    zone = "lower"
    scrolls = True

    def stamp(self, session: Session, view: View) -> Hashable:
        """The findings themselves: they are small and few."""
        return (view.findings, len(session.problems), session.missing, session.step > 0, view.link.live)

    def badge(self, session: Session, view: View) -> str:
        """How many there are that matter now."""
        count = sum(finding.severity != "note" for finding in view.findings)
        return str(count) if count else ""

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Findings, problems, and what is missing."""
        numbers = {remedy: number for number, remedy in enumerate(sendable(view.findings), 1)}
        rows = [row for finding in view.findings for row in _finding_rows(finding, numbers, width, view)]
        for problem in reversed(session.problems[-_MOST_PROBLEMS:]):
            rows += _paragraph(f"! {problem.what} (step {problem.step:,})", "warn", width)
        for text in session.missing:
            rows += _paragraph(f"– not recorded: {text}", "dim", width)
        if not view.findings and not session.problems:
            words = "Nothing wrong so far." if session.step else "Waiting for the first steps."
            rows.insert(0, [Segment(words, "dim")])
        return rows


def _finding_rows(finding: Finding, numbers: dict[Remedy, int], width: int, view: View) -> list[Row]:
    sign, look = FINDING_LOOKS[finding.severity]
    title, *more = wrapped(f"{finding.title}{_since(finding)}", width - 2)
    rows: list[Row] = [
        [Segment(f"{sign} ", look), Segment(title, f"{look} strong" if look != "dim" else look)]
    ]
    rows += [[Segment(_INDENT, ""), Segment(text, look)] for text in more]
    detail = spelled(finding.detail, ascii_only=view.ascii_only)
    rows += _paragraph(detail, "dim" if finding.severity == "note" else "text", width, first=_INDENT)
    if finding.severity != "note":
        rows += _paragraph(finding.explanation, "dim", width, first=_INDENT)
    if finding.symptoms:
        rows += _paragraph(f"explains: {', '.join(finding.symptoms)}", "dim", width, first=_INDENT)
    for remedy in finding.remedies:
        rows += _remedy_rows(remedy, numbers.get(remedy) if view.link.live else None, width)
    return rows


def _since(finding: Finding) -> str:
    """How sure it is, and since when; of a note only its title is told."""
    if finding.severity == "note":
        return ""
    since = f" since step {finding.start:,}" if finding.start else ""
    return f" ({finding.confidence:.0%}{since})"


def _remedy_rows(remedy: Remedy, number: int | None, width: int) -> list[Row]:
    command = f"{remedy.command}  " if remedy.command else ""
    label = f"{number} " if number else "› "
    rows: list[Row] = []
    for i, text in enumerate(wrapped(f"{command}{remedy.text}", width - 4)):
        row = [Segment(_INDENT, ""), Segment(label if i == 0 else "  ", "key")]
        if i == 0 and command and text.startswith(command.strip()):
            row += [Segment(command.strip(), "key"), Segment(text[len(command.strip()) :], "dim")]
        else:
            row.append(Segment(text, "dim"))
        rows.append(row)
    # Of code, indentation matters: cut where it is too long, not wrapped.
    code = [line[: width - 4] for line in remedy.code.splitlines()]
    return [*rows, *([Segment(_INDENT * 2, ""), Segment(line, "text")] for line in code)]


def _paragraph(text: str, style: str, width: int, first: str = "") -> list[Row]:
    lines = wrapped(text, width - 2)
    return [[Segment(_INDENT if i else first, ""), Segment(line, style)] for i, line in enumerate(lines)]
