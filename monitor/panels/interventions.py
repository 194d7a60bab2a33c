"""Every command that was sent to the training, with its answer."""

from __future__ import annotations

from collections.abc import Hashable

from client_callback.wire.protocol import Reply, Scalar
from monitor.charts import Row, Segment, format_number
from monitor.panels.panel import Panel
from monitor.panels.text import both_ends, cut, duration, rate, spelled, wrapped
from monitor.session import Session
from monitor.view import View

_LOOKS = {"applied": ("✓", "good"), "refused": ("✗", "warn"), "failed": ("✗", "bad")}
_SHORT = {"learning_rate": "lr", "optimizer": ""}
"""Names that are clear without being written out."""
_MARGIN = 2


class InterventionsPanel(Panel):
    """The newest first; below each what changed, or why nothing did."""

    name_ = "interventions"
    title = "interventions"
    zone = "lower"
    scrolls = True

    def stamp(self, session: Session, view: View) -> Hashable:
        """Replies never change but for the last ones."""
        return (len(session.replies), tuple(session.replies[-3:]), view.pending)

    def badge(self, session: Session, view: View) -> str:
        """How many there are."""
        return str(len(session.replies)) if session.replies else ""

    def draw(self, session: Session, view: View, width: int, height: int) -> list[Row]:
        """Commands still on their way, then answers, newest first."""
        rows: list[Row] = [
            [Segment(f"… {cut(text, width - 10)}", "text"), Segment("  sent", "dim")] for text in view.pending
        ]
        began = session.run.started_at if session.run else 0.0
        for reply in reversed(session.replies[-200:]):
            rows += _entry(reply, began, width, ascii_only=view.ascii_only)
        if not rows:
            rows = [[Segment(text, "dim")] for text in wrapped(_invitation(session, view), width)]
        return rows


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
    return f"{reply.text}: {reply.status}{who}{'. ' if what else ''}{what}"


def _entry(reply: Reply, began: float, width: int, *, ascii_only: bool) -> list[Row]:
    sign, look = _LOOKS[reply.status]
    at = f"step {reply.step:,}  {duration(reply.time - began)}"
    command = cut(reply.text, max(8, width - len(at) - _MARGIN - 1))
    head = both_ends([Segment(f"{sign} ", look), Segment(command, "strong")], [Segment(at, "dim")], width)
    what = spelled(changes(reply), ascii_only=ascii_only) if reply.status == "applied" else ""
    body = [(text, "text") for text in wrapped(what, width - _MARGIN)] if what else []
    if reply.reason:
        body += [
            (text, "dim" if reply.status == "applied" else look)
            for text in wrapped(reply.reason, width - _MARGIN)
        ]
    elif reply.status != "applied":
        body += [(f"{reply.status}, no reason given", look)]
    return [head, *([Segment(" " * _MARGIN, ""), Segment(text, style)] for text, style in body)]


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
        "None yet. [ halves the learning rate, ] doubles it, o switches the optimizer, : takes any command."
    )
