"""What steering needs of whoever runs the training, and what a handler hands back.

The callback (for `fit`) and the run object (for loops of one's own) implement `Training`; the handlers use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from client_callback.recent import RecentSteps
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
    restored: int | None = None
    """Before which step the training is again. `None`: it goes on from where it is."""
    changed: bool = True
    """Whether anything is other than before, where readings of the settings cannot tell."""
    confirm: Callable[[], str] = lambda: ""
    """Asked once a step has been made with it: why it had no effect after all. Empty: it had."""


class Batches(Protocol):
    """Batches that training comes to next; it is given each of them when its time comes."""

    @property
    def batches(self) -> Sequence[Any]:
        """As the data yields them, in their order."""

    @property
    def nbytes(self) -> int:
        """Memory that they take."""

    @property
    def left(self) -> int | None:
        """How many the epoch still has, these included. `None`: not known."""

    @property
    def short(self) -> str:
        """Why they are fewer than were asked for; empty when they are not."""

    @property
    def alone(self) -> Callable[[Any], Any]:
        """One of them → what a train function takes to train on it and on no other."""


class Training(Protocol):
    """A training that can be steered between two batches."""

    @property
    def model(self) -> Any | None:
        """The `keras.Model`. `None`: a custom loop without one."""

    @property
    def step(self) -> int:
        """Steps completed so far, which is the first step that a change now affects."""

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 0."""

    @property
    def epoch_start(self) -> int:
        """The first step of that epoch."""

    @property
    def epochs(self) -> int | None:
        """How many there will be, those before `initial_epoch` included. `None`: not known."""

    @property
    def steps_per_epoch(self) -> int | None:
        """How many batches an epoch has. `None`: not known."""

    @property
    def recent(self) -> RecentSteps:
        """What was recorded of the last steps."""

    @property
    def recording(self) -> Path | None:
        """The file that is written. `None`: there is none."""

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

    @property
    def label_counts(self) -> Mapping[int, float]:
        """How often each class was seen among the labels of sampled steps; empty where labels are not counted."""

    @property
    def trace_seconds(self) -> float | None:
        """How long the last step took that had to be traced. `None`: not known."""

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

    def pull_batches(self, count: int, most_bytes: int) -> Batches:
        """The next `count` batches; fewer where the epoch has fewer left, or they take more than `most_bytes`.

        Training is given them later, as if nothing had happened.

        Raises:
            Refused: the batches of this training cannot be taken ahead.
        """

    def unmeasured(self, reason: str) -> AbstractContextManager[Callable[[], Callable[..., Any]]]:
        """Inside, nothing is measured; yields what makes train functions of the model as it is then.

        Each is traced on its own. The one that trains for good stays what it is. Monitors see a trial with its
        `reason`.
        """

    def emit(self, event: Event) -> None:
        """Records an event and sends it to the monitors."""


def end_of(training: Training) -> int | None:
    """The step that there will not be any more. `None`: not known."""
    if training.epochs is None or not training.steps_per_epoch:
        return None
    return training.epoch_start + (training.epochs - training.epoch) * training.steps_per_epoch


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


class _StandIn:
    """See `stand_in`."""

    def __init__(self, training: Training, told: Callable[[Event], bool]) -> None:
        self._training, self._told = training, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._training, name)

    def rebuild(self, change: Callable[[], None]) -> None:
        change()

    def emit(self, event: Event) -> None:
        if self._told(event):
            self._training.emit(event)


def stand_in(training: Training, told: Callable[[Event], bool]) -> Training:
    """The training for a handler whose changes somebody else traces: they are made at once.

    `told`: which of the handler's events the monitors get.
    """
    return cast(Training, _StandIn(training, told))
