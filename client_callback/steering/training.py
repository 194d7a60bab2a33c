"""What steering needs of whoever runs the training, and what a handler hands back.

The callback (for `fit`) and the run object (for loops of one's own) implement `Training`; the handlers use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from client_callback.wire.protocol import Event, Measured, Scalar, StateChanged


class Refused(Exception):  # noqa: N818 (an answer rather than an error)
    """A command that cannot be obeyed. The text says why and what is possible; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an obeyed command did."""

    before: Mapping[str, Scalar] = field(default_factory=dict)
    """As read from the model before."""
    after: Mapping[str, Scalar] = field(default_factory=dict)
    """As read back from the model after."""
    reason: str = ""
    """What is worth knowing beyond the values; empty when nothing is."""
    undoes: str = ""
    """Id of the command that was taken back."""
    changed: bool = True
    """Whether anything is other than before, where readings of the settings cannot tell."""


class Training(Protocol):
    """A training that can be steered between two batches."""

    @property
    def model(self) -> Any | None:
        """The `keras.Model`. `None`: a custom loop without one."""

    @property
    def step(self) -> int:
        """Steps completed so far, which is the first step that a change now affects."""

    @property
    def callbacks(self) -> Sequence[Any]:
        """The `keras.callbacks.Callback`s of this `fit`."""

    @property
    def paused(self) -> bool:
        """Whether training is held before its next batch."""

    @property
    def optimizer_used(self) -> bool:
        """Whether the train step applies the model's optimizer, as far as is known."""

    @property
    def last_values(self) -> Mapping[str, float]:
        """What was measured inside the last completed step, by series; empty when nothing is."""

    @property
    def sampled_update(self) -> Measured | None:
        """‖Δw‖/‖w‖ of the last step that was sampled. `None`: none was."""

    def pause(self) -> None:
        """Holds training before its next batch."""

    def resume(self) -> None:
        """Lets a paused training go on."""

    def stop(self) -> None:
        """Ends the training after the current batch."""

    def rebuild(self, change: Callable[[], None]) -> None:
        """Runs `change` with the instrument off the model, then has the train step traced anew.

        What `change` raises is raised again, with the instrument back on.

        Raises:
            Refused: this training has no train step that could be traced anew.
        """

    def emit(self, event: Event) -> None:
        """Records an event and sends it to the monitors."""


def announce_resting_state(training: Training, time: float) -> None:
    """Says that the training is running, or paused, after it was busy with something else."""
    state: Literal["paused", "running"] = "paused" if training.paused else "running"
    training.emit(StateChanged(step=training.step, time=time, state=state))


def retrace(training: Training, change: Callable[[], None], time: float, reason: str) -> None:
    """Runs a change to what the compiled step holds, has the step traced anew, and says so meanwhile."""
    training.emit(StateChanged(step=training.step, time=time, state="recompiling", reason=reason))
    try:
        training.rebuild(change)
    except BaseException:
        announce_resting_state(training, time)
        raise
    if training.paused:
        announce_resting_state(training, time)
