"""What was done to the training: timers, commands under way, and every command with its answer and what followed."""

from __future__ import annotations

import shlex
from collections.abc import Hashable
from typing import Final

from client_callback.wire.protocol import Reply, Scalar, Timer
from monitor.charts import Row, Segment, format_number
from monitor.impact import Comparison, Impact, comparisons, impact, sentence
from monitor.messages import ActionChosen
from monitor.panels.panel import Panel
from monitor.panels.text import both_ends, cut, duration, rate, row_width, spelled, wrapped
from monitor.panels.trials import trial_rows
from monitor.session import Session
from monitor.view import View
from monitor.vocabulary import without_dry_run, without_endings

_LOOKS: Final = {
    "applied": ("✓", "good"),
    "ineffective": ("○", "warn"),
    "planned": ("›", "accent"),
    "refused": ("✗", "warn"),
    "failed": ("✗", "bad"),
}
_IMPACTS: Final = {
    **dict.fromkeys(("faster", "calmed"), "good"),
    "slower": "warn",
    **dict.fromkeys(("rose", "not finite"), "bad"),
}
"""Verdict → how it looks; the others are dim."""
_SHORT: Final = {"learning_rate": "lr", "optimizer": ""}
"""Names that are clear without being written out."""
_MARGIN: Final = 2
_MOST: Final = 200
_ROOMY: Final = 70
"""Cells from which on there is room for all numbers."""


class InterventionsPanel(Panel):
    """Buttons and timers first, then the newest command; below each what changed, or why nothing did."""

    name_ = "interventions"
    title = "interventions"
    zone = "lower"
    scrolls = True

    def __init__(self) -> None:
        super().__init__()
        self._impacts: dict[Comparison, Impact] = {}
        self._of: Session | None = None

    def stamp(self, session: Session, view: View) -> Hashable:
        """Answers never change but for the last ones."""
        return (
            (len(session.replies), tuple(session.replies[-3:]), len(session.trials)),
            (view.pending, view.checking, session.timers, session.actions),
            tuple(comparisons(session)[-_MOST:]),
        )

    def badge(self, session: Session, view: View) -> str:
        """How many there are."""
        count = len(session.answered())
        return str(count) if count else ""

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Buttons, timers, commands still on their way, then answers, newest first."""
        ascii_only = view.ascii_only
        rows = _button_rows(session, view, width)
        if session.timers is not None:
            rows += [row for timer in session.timers.timers for row in _timer_rows(timer, width)]
        rows += _under_way(view, width)
        began = session.run.started_at if session.run else 0.0
        followed = self._followed(session)
        undone = session.taken_back()
        for reply in reversed(session.answered()[-_MOST:]):
            rows.append(_head(reply, began, width, undone=reply.id in undone))
            trial = next((trial for trial in session.trials if trial.id == reply.id), None)
            if trial is not None:
                told, room = reply.reason, width - _MARGIN
                body = trial_rows(trial, room, height, told=told, ascii_only=ascii_only)
            else:
                body = _changes(reply, width - _MARGIN, undone=reply.id in undone, ascii_only=ascii_only)
            if reply.id in followed:
                body += _impact_rows(followed[reply.id], width - _MARGIN, ascii_only=ascii_only)
            body += _moved(reply, width - _MARGIN) + _reason(reply, width - _MARGIN)
            rows += [[Segment(" " * _MARGIN, ""), *row] for row in body]
        if not rows:
            rows = [[Segment(text, "dim")] for text in wrapped(_invitation(session, view), width)]
        return rows

    def clicked(self, x: int, y: int) -> None:
        """Runs the script's own command whose button was clicked; else selects the panel."""
        if self._shown is not None:
            session, view = self._shown
            line = y + self.scrolled_down(view)
            for row, first, last, name in _buttons(session, view, self.content_size.width):
                if row == line and first <= x < last:
                    self.post_message(ActionChosen(f"send({shlex.quote(name)!r})"))
                    return
        super().clicked(x, y)

    def _followed(self, session: Session) -> dict[str, Impact]:
        """The impact of every intervention, computed once for the same steps."""
        known = self._impacts if self._of is session else {}
        self._of = session
        wanted = comparisons(session)[-_MOST:]
        self._impacts = {one: known.get(one) or impact(session, one) for one in wanted}
        return {one.id: found for one, found in self._impacts.items()}


def changes(reply: Reply) -> str:
    """What the answer says was changed: `lr 1e-3 → 5e-4`."""
    parts = []
    for name, value in reply.after.items():
        before = reply.before.get(name)
        label = _SHORT.get(name, name)
        change = (
            f"{_scalar(name, before)} → {_scalar(name, value)}"
            if name in reply.before
            else _scalar(name, value)
        )
        if before != value or name == "learning_rate":
            parts.append(f"{label} {change}".strip())
    return ", ".join(parts)


def spoken(reply: Reply, *, own: bool) -> str:
    """An answer in one sentence, for a toast; `own` when the command was sent from here."""
    what = changes(reply) if reply.status == "applied" else reply.reason
    who = "" if own else f" by {reply.who}"
    return f"{without_dry_run(reply.text)}: {reply.status}{who}{'. ' if what else ''}{what}"


# ── Above the answers ─────────────────────────────────────────────────────────────────────────────


def _buttons(session: Session, view: View, width: int) -> list[tuple[int, int, int, str]]:
    """(row, first cell, first cell after it, name) of every button."""
    placed: list[tuple[int, int, int, str]] = []
    row = first = 0
    for name in session.actions if view.link.live and not session.ended else ():
        cells = row_width([Segment(_button(name, width), "")])
        if first and first + cells > width:
            row, first = row + 1, 0
        placed.append((row, first, first + cells, name))
        first += cells + 1
    return placed


def _button(name: str, width: int) -> str:
    return f" ▸ {cut(name, width - 4)} "


def _button_rows(session: Session, view: View, width: int) -> list[Row]:
    rows: list[Row] = []
    for row, _, _, name in _buttons(session, view, width):
        if row == len(rows):
            rows.append([])
        gap = [Segment(" ", "")] if rows[row] else []
        rows[row] += [*gap, Segment(_button(name, width), "state")]
    return rows


def _timer_rows(timer: Timer, width: int) -> list[Row]:
    """`#2 lr x0.5  until step 1,700`."""
    head = [Segment(f"#{timer.number} ", "key"), Segment(cut(without_endings(timer.text), width - 4), "text")]
    tail = _when(timer)
    if row_width(head) + len(tail) + 2 <= width:
        return [[*head, Segment(f"  {tail}", "accent")]]
    return [head, *([Segment(f"   {line}", "accent")] for line in wrapped(tail, width - 3))]


def _when(timer: Timer) -> str:
    parts = []
    if timer.state == "waiting":
        parts.append(f"waits for {timer.starts}" if timer.starts else "waits")
    if timer.until is not None:
        parts.append(f"until step {timer.until:,}")
    if timer.unless:
        parts.append(f"unless {timer.unless}")
    return ", ".join(parts) or "in effect"


def _under_way(view: View, width: int) -> list[Row]:
    under_way = [(text, "being checked") for text in view.checking] + [
        (text, "sent") for text in view.pending
    ]
    return [
        [Segment(f"… {cut(text, width - len(state) - 6)}", "text"), Segment(f"  {state}", "dim")]
        for text, state in under_way
    ]


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────


def _head(reply: Reply, began: float, width: int, *, undone: bool) -> Row:
    """Sign and command at the left, when it was at the right."""
    sign, look = ("↶", "dim") if undone else _LOOKS[reply.status]
    at = f"step {reply.step:,}  {duration(reply.time - began)}"
    command = cut(without_dry_run(reply.text), max(8, width - len(at) - _MARGIN - 1))
    name = Segment(command, "dim" if undone else "strong")
    return both_ends([Segment(f"{sign} ", look), name], [Segment(at, "dim")], width)


def _changes(reply: Reply, width: int, *, undone: bool, ascii_only: bool) -> list[Row]:
    what = spelled(changes(reply), ascii_only=ascii_only) if reply.status == "applied" else ""
    rows: list[Row] = [[Segment("undone", "dim")]] if undone else []
    return rows + [
        [Segment(line, "dim" if undone else "text")] for line in (wrapped(what, width) if what else ())
    ]


def _reason(reply: Reply, width: int) -> list[Row]:
    """Why, or what else is worth knowing."""
    look = "dim" if reply.status in ("applied", "planned") else _LOOKS[reply.status][1]
    reason = reply.reason
    if not reason and reply.status == "planned":
        reason = f"as timer #{reply.timer}"
    elif not reason and reply.status != "applied":
        reason = f"{reply.status}, no reason given"
    return [[Segment(line, look)] for line in wrapped(reason, width)] if reason else []


def _moved(reply: Reply, width: int) -> list[Row]:
    """How far a step moved the weights before and after, where it was measured."""
    before, after = reply.update_before, reply.update_after
    if after is None:
        return []
    change = f"{rate(before.value)} → {rate(after.value)}" if before else f"{rate(after.value)} now"
    return [[Segment(line, "dim")] for line in wrapped(f"‖Δw‖/‖w‖ of a step {change}", width)]


def _impact_rows(found: Impact, width: int, *, ascii_only: bool) -> list[Row]:
    look = _IMPACTS.get(found.verdict, "dim")
    if found.verdict == "level" and found.levels is not None:
        look = "good" if found.levels[1] < found.levels[0] else "warn"
    words = spelled(sentence(found, full=width >= _ROOMY), ascii_only=ascii_only)
    first, *more = wrapped(words, width - 2)
    return [
        [Segment("↳ ", "dim"), Segment(first, look)],
        *([Segment("  ", ""), Segment(line, look)] for line in more),
    ]


def _scalar(name: str, value: Scalar) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value)
    return rate(value) if name == "learning_rate" else format_number(value)


def _invitation(session: Session, view: View) -> str:
    if not view.link.live:
        return "Nobody intervened in what has been played so far."
    if session.run is not None and not session.run.control:
        return "This run takes no commands (control=False)."
    return (
        "None yet. [ halves the learning rate, ] doubles it, o switches the optimizer, u takes the last change back, "
        ": takes any command."
    )
