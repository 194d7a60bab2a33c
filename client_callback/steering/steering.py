"""The one door to steering: commands in, verified replies out, never an exception.

The callback calls `install` before the first trace, `answer` between batches on the training's thread, and
`uninstall` at the end.
"""

from __future__ import annotations

from typing import Any, Literal

from client_callback.steering.describe import current_optimizer
from client_callback.steering.handlers import HANDLERS, OBEYED_WITHOUT_CONTROL
from client_callback.steering.learning_rate import RateControl, install_controls, remove_controls
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.wire import commands
from client_callback.wire.protocol import Command, Problem, Reply

_Status = Literal["applied", "refused", "failed"]

_REASON_LENGTH = 4_000
"""Characters of an error that are passed on: TensorFlow's can be long."""


class Steering:
    """Carries out the commands of one training."""

    def __init__(self, training: Training, *, control: bool) -> None:
        self._training = training
        self._control = control
        self._installed: list[RateControl] = []

    def install(self) -> None:
        """Makes a scheduled rate steerable; must come before the first trace of this training."""
        optimizer = current_optimizer(self._training.model)
        if not self._control or optimizer is None:
            return
        try:
            self._installed = install_controls(self._training.model, optimizer)
            if self._installed:
                _forget_trace(self._training.model)
        except Refused as refused:
            self._report(str(refused))
        except Exception as error:  # noqa: BLE001 (foreign optimizers; training goes on without this)
            self._report(f"the learning rate cannot be changed: {type(error).__name__}: {error}")

    def uninstall(self) -> None:
        """Its optimizers are as if they had never been steered, their state and their rate's value apart."""
        model = self._training.model
        optimizer = current_optimizer(model)
        removed = optimizer is not None and remove_controls(optimizer)
        for control in self._installed:
            control.detach()  # also from an optimizer that the user's own `compile` has replaced since
        if removed:
            # The traced step still holds the controls; the next fit traces its own.
            model.train_function = None  # type: ignore[union-attr]

    def answer(self, command: Command, time: float) -> Reply:
        """The reply to one command; the link sees to it that a command sent twice comes here once."""
        try:
            instruction = commands.parse(command.text)
            if not self._control and type(instruction) not in OBEYED_WITHOUT_CONTROL:
                raise Refused("this run is read-only (control=False); only note is possible")
            outcome = HANDLERS[type(instruction)](self._training, instruction, time)
        except (Refused, commands.CommandError) as refusal:
            return self._reply(command, time, "refused", Outcome(reason=str(refusal)))
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            return self._reply(command, time, "failed", Outcome(reason=_explain(error)))
        return self._reply(command, time, "applied", outcome)

    def _reply(self, command: Command, time: float, status: _Status, outcome: Outcome) -> Reply:
        return Reply(
            step=self._training.step,
            time=time,
            id=command.id,
            text=command.text,
            who=command.who,
            status=status,
            before=dict(outcome.before),
            after=dict(outcome.after),
            reason=outcome.reason[:_REASON_LENGTH],
        )

    def _report(self, what: str) -> None:
        self._training.emit(Problem(step=self._training.step, what=what[:_REASON_LENGTH]))


def _forget_trace(model: Any) -> None:
    """A step compiled in an earlier fit does not know the control."""
    if model.train_function is not None:
        model.train_function = None
        model.make_train_function()


def _explain(error: BaseException) -> str:
    """The error, and the ones it came from."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return "; after ".join(texts)
