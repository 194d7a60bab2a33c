"""The learning rate that every step was taken with."""

from __future__ import annotations

from monitor.charts import Curve
from monitor.panels.curves import ChartPanel
from monitor.session import Session
from monitor.view import View


class LearningRatePanel(ChartPanel):
    """Effective rates, on a logarithmic axis unless asked otherwise."""

    name_ = "learning-rate"
    title = "learning rate"
    short = "rate"
    zone = "middle"
    smooths = False

    def series_name(self, session: Session, view: View) -> str | None:
        """Always the rate."""
        return "learning_rate"

    def curves(self, session: Session, view: View) -> list[Curve]:
        """The rate alone."""
        rates = session.series.get("learning_rate")
        return [Curve("effective", "rate", column=rates)] if rates is not None else []

    def heading(self, session: Session, view: View) -> str:
        """Says who sets the rate, when it is not the optimizer's own variable."""
        by = rate_owner(session)
        return f"{self.title}{f' by {by}' if by else ''}"


def rate_owner(session: Session) -> str:
    """Who decides the rate now: a schedule, callbacks of the `fit`, or whoever steers. Empty: only the optimizer.

    A rate that is held is set again after each of the callbacks, which are named as overruled.
    """
    optimizer = session.optimizer
    if optimizer is None:
        return ""
    callbacks = ", ".join(optimizer.rate_owners)
    if optimizer.held:
        return f"you, held against {callbacks}" if callbacks else "you, held"
    return ", ".join(owner for owner in (optimizer.schedule or "", callbacks) if owner)
