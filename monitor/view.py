"""What the person at the terminal looks at: which steps, how, and through which source.

The app owns one `View` and replaces it at every key; panels are drawn from a session and a view and from
nothing else. Frozen values and pure functions; no Textual here. Freezing concerns the view alone: the training
goes on. Step ranges are half-open, `[start, stop)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from monitor.diagnosis.finding import Finding

Mode = Literal["live", "frozen", "all"]
"""`live`: the newest `span` steps. `frozen`: the same steps whatever arrives. `all`: from step 0 to the newest."""

SMOOTHINGS: Final = (0, 10, 30, 100, 300, 1_000)
"""Steps of the moving mean that one key goes through. 0: none."""

_ROUND: Final = (10, 11, 12, 13, 14, 16, 18, 20, 22, 25, 28, 32, 36, 40, 45, 50, 56, 63, 70, 80, 90, 100)

SHORTEST_SPAN: Final = 10
"""Steps. Closer than that there is nothing to see between two dots."""

SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Of a replay; 1 is as fast as it was recorded."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where the events come from, for the status line."""

    live: bool = True
    """`False`: a recording, and the fields on playing count."""
    connection: str = ""
    """Empty: all is well. Else what is wrong."""
    steered_by: str = ""
    """Who controls the run when it is somebody else. Empty: nobody, or this monitor."""
    note: str = ""
    """What the caller wants to be read, such as the recording's path."""
    playing: bool = False
    speed: float = 1.0
    position: int = 0
    """The step that a replay has come to."""
    last_step: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """All that decides, beside the session, what is on the screen."""

    mode: Mode = "all"
    start: int = 0
    stop: int = 0
    """The steps shown while frozen."""
    span: int = 500
    """How many steps the live tail shows."""
    followed: Literal["live", "all"] = "all"
    """What to return to after freezing."""
    smoothing: int = 30
    log: frozenset[str] = frozenset({"learning_rate"})
    """Charts with a logarithmic axis, by the name of their series."""
    linear: frozenset[str] = frozenset()
    """Charts with a linear one. The others choose by what they show."""
    chart: Literal["loss", "metric"] = "loss"
    """Which of the two is shown where there is room for one."""
    metric: str | None = None
    """The series beside the loss. `None`: the first one there is."""
    statistic: str | None = None
    """What the map of layers shows. `None`: gradient norms."""
    distribution: str | None = None
    """What the histogram shows. `None`: the first one there is."""
    cursor: int | None = None
    """The step whose values are read out. `None`: the newest."""
    findings: tuple[Finding, ...] = ()
    pending: tuple[str, ...] = ()
    """Commands on their way, not yet answered."""
    checking: tuple[str, ...] = ()
    """Commands of which the training is asked first what they would do."""
    link: Link = Link()
    ascii_only: bool = False
    compact: bool = False
    """Whether there is room for one chart and one panel only."""
    selected: str = ""
    """Name of the panel that Tab has come to."""
    scrolled: int = 0
    """Lines the selected panel is scrolled down from its first."""

    def window(self, steps: int) -> tuple[int, int]:
        """The steps to draw when `steps` are known.

        While following, the right edge moves on in jumps, so that a new step changes a few cells on the screen
        and not all of them.
        """
        if self.mode == "frozen":
            return self.start, self.stop
        if self.mode == "live":
            stop = _rounded_up(max(steps, self.span), max(1, self.span // 10))
            return stop - self.span, stop
        return 0, _with_room(max(steps, 20))

    def zoomed(self, factor: float, anchor: int | None, steps: int) -> View:
        """Shows `factor` times as many steps round `anchor` (`None`: the newest shown), frozen."""
        start, stop = self.window(steps)
        span = max(SHORTEST_SPAN, round((stop - start) * factor))
        if span >= steps and factor > 1:
            return replace(self, mode="all", followed="all")
        pivot = min(stop, steps) if anchor is None else anchor
        share = (pivot - start) / max(1, stop - start)
        return self._frozen_at(round(pivot - span * share), span, steps)

    def panned(self, by: int, steps: int) -> View:
        """Moves by so many steps, frozen."""
        start, stop = self.window(steps)
        return self._frozen_at(start + by, stop - start, steps)

    def centred(self, step: int, steps: int) -> View:
        """Brings a step into view, if it is not there."""
        start, stop = self.window(steps)
        return (
            self if start <= step < stop else self._frozen_at(step - (stop - start) // 2, stop - start, steps)
        )

    def with_cursor(self, direction: int, steps: int) -> View:
        """Reads out values about a cell further on (1) or back (-1), in view; at first at the newest."""
        start, stop = self.window(steps)
        here = min(stop, steps) - 1 if self.cursor is None else self.cursor
        step = max(0, min(here + direction * max(1, (stop - start) // 100), steps - 1))
        return replace(self.centred(step, steps), cursor=step) if steps else self

    def frozen(self, steps: int) -> View:
        """Keeps what is shown now."""
        start, stop = self.window(steps)
        return replace(self, mode="frozen", start=start, stop=stop)

    def following(self) -> View:
        """Goes on with what was followed before freezing; a zoomed window becomes the live tail."""
        if self.mode != "frozen":
            return self
        zoomed = self.followed == "live"
        return replace(self, mode=self.followed, span=self.stop - self.start if zoomed else self.span)

    def showing(self, mode: Literal["live", "all"]) -> View:
        """Follows the newest steps, or all; a zoomed window becomes the live tail."""
        span = self.stop - self.start if self.mode == "frozen" and mode == "live" else self.span
        return replace(self, mode=mode, followed=mode, span=span)

    def next_smoothing(self, by: int = 1) -> View:
        """The next of `SMOOTHINGS`."""
        position = SMOOTHINGS.index(self.smoothing) if self.smoothing in SMOOTHINGS else 0
        return replace(self, smoothing=SMOOTHINGS[(position + by) % len(SMOOTHINGS)])

    def _frozen_at(self, start: int, span: int, steps: int) -> View:
        start = max(0, min(start, max(0, steps - span // 2)))
        return replace(self, mode="frozen", start=start, stop=start + span)


def _with_room(steps: int) -> int:
    """The next of few round numbers, each about a tenth above the one before."""
    unit: int = 10 ** (len(str(steps)) - 2)
    return next(mantissa * unit for mantissa in _ROUND if mantissa * unit >= steps)


def _rounded_up(value: int, to: int) -> int:
    return -(-value // to) * to
