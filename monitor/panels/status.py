"""Two lines on top: which run, how far, how fast, at which rate, what is wrong, and what the view does."""

from __future__ import annotations

import math
from collections.abc import Hashable

from monitor.charts import Row, Segment
from monitor.panels.findings import FINDING_LOOKS
from monitor.panels.learning_rate import rate_owner
from monitor.panels.machine import overhead_style
from monitor.panels.panel import Panel
from monitor.panels.text import Item, bar, both_ends, cut, duration, line, rate, row_width, spelled
from monitor.session import Session, State
from monitor.view import View

_STATES: dict[State, str] = {
    "waiting": "dim",
    "running": "good",
    "paused": "warn",
    "recompiling": "accent",
    "validating": "accent",
    "trial": "accent",
    "finished": "loss",
    "stopped": "warn",
    "interrupted": "warn",
    "failed": "bad",
}
_ROOMY = 110
"""Cells from which on words are not shortened."""


class StatusPanel(Panel):
    """Always shown; what matters least gives way first."""

    name_ = "status"
    zone = "status"

    def stamp(self, session: Session, view: View) -> Hashable:
        """Nearly everything; two lines are cheap, and only changed cells are sent."""
        return (
            session.step,
            session.time,
            session.state,
            len(session.epochs),
            session.run,
            session.optimizer,
            session.requested_learning_rate,
            session.overhead,
            len(session.problems),
            view.findings[:1],
            (view.mode, view.start, view.stop, view.span, view.smoothing, view.link),
        )

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """First line: the run. Second line: its rate at the left, the view at the right."""
        inner = width - 2
        edge = Segment(" ", "")
        first = _run_line(session, view, inner)
        right = line(_view_items(view, inner), inner // 2, "  ")
        left = line(_training_items(session, view, inner), inner - row_width(right) - 2)
        return [[edge, *first], [edge, *both_ends(left, right, inner)]][:height]


def _run_line(session: Session, view: View, width: int) -> Row:
    roomy = width >= _ROOMY
    run = session.run
    name = cut(run.name, 24 if roomy else 14) if run else "no run yet"
    look = _STATES[session.state]
    items = [
        Item(0, [Segment(name, "strong")]),
        Item(8, [Segment(run.run_id[:18], "dim")] if run and roomy else []),
        Item(0, [Segment("● ", look), Segment(session.state, look)]),
        Item(2, _epoch(session, roomy=roomy)),
        Item(0, _steps(session, roomy=roomy)),
        Item(1, _speed(session, roomy=roomy)),
        Item(1, _remaining(session)),
    ]
    share = session.progress()
    if share is not None:
        percent = [Segment(f" {math.floor(share * 100):>3} %", "text")]
        used = row_width(line([*items, Item(0, percent)], width, "  "))
        room = min(40, width - used - 4)
        items.insert(5, Item(5, [*bar(share, room), *percent] if room >= 8 else percent))
    return line(items, width, "   " if roomy else "  ")


def _epoch(session: Session, *, roomy: bool) -> Row:
    if session.epoch is None:
        return []
    of = f"/{session.epoch_count}" if session.epoch_count else ""
    return [Segment("epoch " if roomy else "ep ", "dim"), Segment(f"{session.epoch + 1}{of}", "text")]


def _steps(session: Session, *, roomy: bool) -> Row:
    total = session.total_steps
    of = f"/{total:,}" if total else ""
    return [
        Segment("step " if roomy else "", "dim"),
        Segment(f"{session.step:,}", "text"),
        Segment(of, "dim"),
    ]


def _speed(session: Session, *, roomy: bool) -> Row:
    speed = session.steps_per_second()
    if speed is None or session.ended or session.state in ("paused", "trial"):
        return []
    number = f"{speed:,.0f}" if speed >= 20 else f"{speed:.1f}"
    return [Segment(number, "text"), Segment(" steps/s" if roomy else "/s", "dim")]


def _remaining(session: Session) -> Row:
    if session.ended:
        began = session.run.started_at if session.run else session.time
        return [Segment("took ", "dim"), Segment(duration(session.time - began), "text")]
    seconds = session.eta_s() if session.state != "paused" else None
    return [Segment("ETA ", "dim"), Segment(duration(seconds), "text")] if seconds is not None else []


def _training_items(session: Session, view: View, width: int) -> list[Item]:
    optimizer = session.optimizer
    wrong = view.link.connection
    ended_badly = session.state_reason if session.state in ("failed", "interrupted", "stopped") else ""
    held = session.state_reason if session.state in ("paused", "recompiling", "trial") else ""
    return [
        Item(0, [Segment(cut(wrong, width // 2), "warn")] if wrong else []),
        Item(1, _steered_by(view, width)),
        Item(1, [Segment(cut(ended_badly, width // 2), "bad")] if ended_badly else []),
        Item(4, [Segment(cut(held, width // 3), "accent")] if held else []),
        Item(0, _rate(session, ascii_only=view.ascii_only)),
        Item(2, [Segment(optimizer.name, "text")] if optimizer else []),
        Item(3, _owners(session)),
        Item(2, _wrong(view, width)),
        Item(5, [Segment(f"{len(session.problems)} problems", "warn")] if session.problems else []),
        Item(4, _overhead(session)),
        Item(7, [Segment(cut(view.link.note, 60), "dim")] if view.link.note else []),
    ]


def _wrong(view: View, width: int) -> Row:
    """The best explanation there is; the panel on findings has the rest."""
    if not view.findings or view.findings[0].severity == "note":
        return []
    sign, look = FINDING_LOOKS[view.findings[0].severity]
    sign = spelled(sign, ascii_only=view.ascii_only)
    return [Segment(f"{sign} ", look), Segment(cut(view.findings[0].title, max(20, width // 2)), look)]


def _rate(session: Session, *, ascii_only: bool) -> Row:
    """What is in effect, and what was asked for where that is something else."""
    effective, asked = session.learning_rate, session.requested_learning_rate
    row: Row = [Segment("lr ", "dim")]
    if asked is not None and effective is not None and not math.isclose(asked, effective, rel_tol=1e-3):
        row += [
            Segment(f"{rate(asked)} asked", "warn"),
            Segment(spelled(" → ", ascii_only=ascii_only), "dim"),
        ]
        return [*row, Segment(rate(effective), "rate"), Segment(" in effect", "dim")]
    row.append(Segment(rate(effective if effective is not None else asked), "rate"))
    return [*row, Segment(" as asked", "dim")] if asked is not None and effective is not None else row


def _overhead(session: Session) -> Row:
    """Only where watching costs more than it may; the panel on the machine says it always."""
    overhead = session.overhead
    if overhead is None or session.ended or (style := overhead_style(overhead)) == "text":
        return []
    return [Segment("overhead ", "dim"), Segment(f"{100 * overhead.share:.1f} %", style)]


def _owners(session: Session) -> Row:
    owner = rate_owner(session)
    return [Segment("rate by ", "dim"), Segment(cut(owner, 48), "text")] if owner else []


def _steered_by(view: View, width: int) -> Row:
    """Who else has control, and the command that takes it."""
    who = view.link.steered_by
    if not who:
        return []
    return [
        Segment(cut(who, width // 2), "warn"),
        Segment(" steers; ", "dim"),
        Segment("control take", "key"),
    ]


def _view_items(view: View, width: int) -> list[Item]:
    smoothing = f"mean of {view.smoothing}" if view.smoothing else "no smoothing"
    return [
        Item(3, [Segment(smoothing, "dim")] if width >= _ROOMY else []),
        Item(0, _position(view)),
        Item(0, _mode(view)),
    ]


def _position(view: View) -> Row:
    link = view.link
    if link.live:
        return []
    sign, look = ("▶", "good") if link.playing else ("‖", "warn")
    at = f" {link.position:,}/{link.last_step:,}"
    return [Segment(f"{sign} {link.speed:g}×", look), Segment(at, "text")]


def _mode(view: View) -> Row:
    if view.mode == "frozen":
        return [Segment("frozen", "warn strong"), Segment(f" {view.start:,}–{view.stop - 1:,}", "text")]
    if view.mode == "live":
        return [Segment("live", "good"), Segment(f" last {view.span:,}", "dim")]
    return [Segment("all steps", "good")]
