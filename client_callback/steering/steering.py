"""The one door to steering: commands in, verified replies out, never an exception.

The callback calls `install` before the first trace, `answer` between batches on the training's thread, and
`uninstall` at the end.
"""

from __future__ import annotations

from typing import Any, Literal

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.handlers import HANDLERS, OBEYED_WITHOUT_CONTROL, OF_THE_OPTIMIZER
from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    install_controls,
    rated_optimizers,
    remove_controls,
    updates,
)
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
        self._updates_before: int | None = None
        """Updates made by the optimizer before this run. `None`: in a `fit`, which makes them itself."""

    def install(self, *, in_fit: bool = False) -> None:
        """Makes a scheduled rate steerable; must come before the first trace of this training.

        `in_fit`: Keras runs the loop. A loop of one's own on JAX may hold the optimizer's variables already, as
        `stateless_apply` wants them; so there a control is put on with the first command that needs one.
        """
        optimizer = current_optimizer(self._training.model)
        if not self._control or optimizer is None:
            return
        try:
            if not in_fit:
                self._updates_before = updates(optimizer)
            if not in_fit and current_backend().reads_only_listed_variables:
                return
            self._installed = install_controls(self._training.model, optimizer)
            if self._installed:
                _make_anew(self._training.model)
        except Refused as refused:
            self._report(str(refused))
        except Exception as error:  # noqa: BLE001 (foreign optimizers; training goes on without this)
            self._report(f"the learning rate cannot be changed: {type(error).__name__}: {error}")

    def uninstall(self) -> None:
        """Its optimizers are as if they had never been steered, their state and their rate's value apart."""
        model = self._training.model
        optimizer = current_optimizer(model)
        controlled = optimizer is not None and any(control_of(one) for one in rated_optimizers(optimizer))
        if not controlled and not self._installed:
            return
        try:
            with current_backend().state(model):
                self._remove_controls(optimizer)
        except Exception:  # noqa: BLE001 (the step died and took the state with it: there is none to hand over)
            self._remove_controls(optimizer)
        if controlled:
            # The traced step still holds the controls.
            current_backend().forget_trace(model)
            _make_anew(model)

    def _remove_controls(self, optimizer: Any | None) -> None:
        if optimizer is not None:
            remove_controls(optimizer)
        for control in self._installed:
            control.detach()  # also from an optimizer that the user's own `compile` has replaced since

    def answer(self, command: Command, time: float) -> Reply:
        """The reply to one command; the link sees to it that a command sent twice comes here once."""
        try:
            instruction = commands.parse(command.text)
            if not self._control and type(instruction) not in OBEYED_WITHOUT_CONTROL:
                raise Refused("this run is read-only (control=False); only note is possible")
            if type(instruction) in OF_THE_OPTIMIZER:
                self._check_loop()
            outcome = HANDLERS[type(instruction)](self._training, instruction, time)
        except (Refused, commands.CommandError) as refusal:
            return self._reply(command, time, "refused", Outcome(reason=str(refusal)))
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            return self._reply(command, time, "failed", Outcome(reason=_explain(error)))
        return self._reply(command, time, "applied", outcome)

    def _check_loop(self) -> None:
        """Refuses to change an optimizer that a loop of one's own does not use, or whose state it keeps itself."""
        optimizer = current_optimizer(self._training.model)
        if self._updates_before is None or not self._training.step or optimizer is None:
            return
        if updates(optimizer) == self._updates_before:
            raise Refused(
                f"model.optimizer has made no update in {self._training.step} steps: this loop uses another, or "
                "keeps its state outside; pause, resume, stop and note work"
            )

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


def _make_anew(model: Any) -> None:
    """A train function made before does not know what is there now; `fit` asks for it at every step."""
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
