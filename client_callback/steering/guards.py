"""`unless loss rises 20% in 200 steps`: a recorded series is watched from a change on, against its level before.

Both levels are medians, so that one noisy batch does not fire: before, of up to 200 steps; after, of a window that is
the longer the noisier the series is.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from client_callback.recent import RecentSteps
from client_callback.steering.training import Refused
from client_callback.wire.commands import Unless
from client_callback.wire.protocol import Float64

MOST_BEFORE: Final = 200
"""Steps before the change whose median is the level."""
FEWEST_BEFORE: Final = 8
SHORTEST: Final = 16
LONGEST: Final = 64
"""Steps after the change whose median is compared with it."""
_TINY: Final = 1e-300
_SURE_Z: Final = 4.0
"""Standard errors of that median which the asked-for share should be worth: it is compared at every step."""
_MEDIAN_ERROR: Final = 1.2533
"""√(π / 2): the standard error of a median of n normal values is that much σ / √n."""


class Guard:
    """One change under watch.

    Args:
        wanted: what would undo it.
        recent: what is recorded; the steps before `begun` are the level.
        begun: the first step that runs with the change.

    Raises:
        Refused: the series is not known, or not well enough.
    """

    def __init__(self, wanted: Unless, recent: RecentSteps, begun: int) -> None:
        check_series(wanted, recent)
        before = recent.values(wanted.series, begun - MOST_BEFORE, begun)
        known = before[np.isfinite(before)]
        if len(known) < FEWEST_BEFORE:
            raise Refused(
                f"{wanted.series} is known of {len(known)} steps before this one, and its level takes "
                f"{FEWEST_BEFORE}; send it later, or with `at step N`"
            )
        self.wanted, self.begun = wanted, begun
        self.level = float(np.median(known))
        if not self.level:
            raise Refused(f"{wanted.series} is at 0, and any change would be more than a share of that")
        self._of = len(known)
        reach = max(wanted.share * abs(self.level), _TINY)
        self._sign = 1 if wanted.change == "rises" else -1
        self.limit = self.level + self._sign * reach
        needed = (_SURE_Z * _MEDIAN_ERROR * _noise(known) / reach) ** 2
        self.warning = ""
        """That chance alone may fire; empty where it hardly can."""
        if needed > LONGEST:
            self.warning = f"single batches differ by ±{_noise(known):.2g}, so noise alone may do that"
        self._width = min(wanted.steps, max(SHORTEST, math.ceil(min(LONGEST, needed))))
        self._judged = begun

    @property
    def end(self) -> int:
        """The step before which the watch ends."""
        return self.begun + self.wanted.steps

    def __str__(self) -> str:
        word = "above" if self._sign > 0 else "below"
        return f"{self.wanted.series} is {word} {self.limit:.4g} before step {self.end}"

    @property
    def passed(self) -> str:
        """That it did not fire, in words."""
        return f"{self.wanted.series} was never {'above' if self._sign > 0 else 'below'} {self.limit:.4g}"

    def fired(self, recent: RecentSteps, step: int) -> str:
        """Why the change is to be undone, judged by the steps before `step` not judged yet; empty: it is not."""
        stop = min(step, self.end)
        start, self._judged = self._judged, stop
        for name in dict.fromkeys((self.wanted.series, "loss")):
            # An overflow under mixed precision is no harm: the loss scaler skips that step.
            harmful = name == "loss" or "loss_scale" not in recent.names
            if harmful and not np.isfinite(recent.values(name, start, stop)).all():
                return f"{name} is not finite any more, {self.wanted.series} was {self.level:.4g} before"
        found = recent.values(self.wanted.series, max(self.begun, start - LONGEST), stop)
        found = found[np.isfinite(found)]
        if len(found) < self._width:
            return ""
        medians = np.median(np.lib.stride_tricks.sliding_window_view(found, self._width), axis=1)
        beyond = np.flatnonzero(self._sign * (medians - self.limit) > 0)
        if not len(beyond):
            return ""
        level = float(medians[beyond[0]])
        share = abs(level - self.level) / abs(self.level)
        word = "rose" if self._sign > 0 else "fell"
        return (
            f"{self.wanted.series} {word} by {100 * share:.3g} %, from {self.level:.4g} (median of {self._of} steps "
            f"before) to {level:.4g} (of {self._width} steps after)"
        )


def check_series(wanted: Unless, recent: RecentSteps) -> None:
    """Refuses a series that is not recorded. Before the first step nothing is known of that."""
    if recent.names and wanted.series not in recent.names:
        raise Refused(f"no series {wanted.series!r} is recorded; possible: {', '.join(sorted(recent.names))}")


def _noise(values: Float64) -> float:
    """Standard deviation around whatever trend there is: from the median difference of neighbours."""
    return 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
