"""The one door to steering: commands in, verified replies out, never an exception.

The callback calls `install` before the first trace, `answer` between batches on the training's thread, `tick` there
now and then, and `uninstall` at the end. A change goes through: parse → plan (which refuses what cannot be) → keep
the state → change → read back → wait for the next update of the weights → answer. What fails is put back.
"""

from __future__ import annotations

import sys
import time as clock
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.handlers import HANDLINGS
from client_callback.steering.handling import Handling
from client_callback.steering.history import History
from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    install_controls,
    rated_optimizers,
    remove_controls,
    updates,
)
from client_callback.steering.settings import differences, tell_settings
from client_callback.steering.snapshots import MEMORY_BYTES, Snapshot, Snapshots
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.steering.verification import Verification, weights_now, weights_of
from client_callback.wire import commands
from client_callback.wire.protocol import Command, PlanLine, Problem, Reply

_REASON_LENGTH = 4_000
"""Characters of an error that are passed on: TensorFlow's can be long."""

NEVER = sys.maxsize


class Steering:
    """Carries out the commands of one training.

    Args:
        training: what is steered.
        control: whether commands that change it are obeyed.
        snapshot_memory: bytes of host memory for states to go back to; 0 keeps settings only.
        folder: where states go that the memory does not hold. `None`: the system's folder for temporary files.
    """

    def __init__(
        self,
        training: Training,
        *,
        control: bool,
        snapshot_memory: int = MEMORY_BYTES,
        folder: Path | None = None,
    ) -> None:
        self._training = training
        self._control = control
        self._installed: list[RateControl] = []
        self._updates_before: int | None = None
        """Updates made by the optimizer before this run. `None`: in a `fit`, which makes them itself."""
        self.history = History(training, Snapshots(snapshot_memory if control else 0, folder))
        self.handlings = {**HANDLINGS, **self.history.handlings()}
        self._waiting: list[Verification] = []
        self.attention_at = 0
        """The step before which `tick` wants to be called, at the latest. Read on the hot path."""

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
        self.history.snapshots.close()
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

    # ── Commands ────────────────────────────────────────────────────────────────────────────────────

    def answer(self, command: Command, time: float) -> Reply:
        """The reply to one command; the link sees to it that a command sent twice comes here once.

        When `awaits` says so, it is not complete yet: `tick` returns it once the next step has verified it.
        """
        before: Snapshot | None = None
        try:
            order = commands.parse(command.text)
            handling = self.handlings[type(order.instruction)]
            self._check_allowed(order, handling)
            plan = self._plan(order, handling)
            if order.dry_run:
                return self._reply(command, time, Outcome(), status="planned", plan=plan)
            if handling.subjects:
                before = self.history.begin(command.text)
            outcome = self._carry_out(order, handling, time)
            reply = self._reply(command, time, outcome)
            if before is None:
                return reply
            moves_weights = bool(order.origin) or "weights" in handling.subjects
            return self._committed(reply, handling, before, outcome, moves_weights=moves_weights)
        except (Refused, commands.CommandError) as refusal:
            if before is not None:
                self._put_back(before, time)
            return self._reply(command, time, Outcome(reason=str(refusal)), status="refused")
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            reason = _explain(error)
            if before is not None:
                reason = f"{self._put_back(before, time)}: {reason}"
            return self._reply(command, time, Outcome(reason=reason), status="failed")

    @property
    def snapshot_due(self) -> bool:
        """Whether it is time to keep the state. May be asked from any thread."""
        return self.history.snapshots.due(clock.monotonic())

    def awaits(self, reply: Reply) -> bool:
        """Whether the answer comes from `tick`, once the step after the change has verified it."""
        return any(one.reply.id == reply.id for one in self._waiting)

    def tick(self, time: float, *, last: bool = False) -> list[Reply]:
        """What is to be done between batches without being asked; returns the answers that are complete now.

        `last`: no step follows any more.
        """
        replies = []
        for waiting in list(self._waiting):
            if last or waiting.ready(self._training):
                self._waiting.remove(waiting)
                replies.append(self._verified(waiting))
        if not last and self._control:
            try:
                self.history.keep_recent()
            except Exception as error:  # noqa: BLE001 (foreign variables; training goes on without this)
                self.history.snapshots.memory_bytes = 0
                self._report(f"no snapshots are kept: {type(error).__name__}: {error}")
        self.attention_at = 0 if self._waiting else NEVER
        return replies

    def _plan(self, order: commands.Order, handling: Handling) -> list[PlanLine]:
        """What would happen. Raises Refused for what cannot be."""
        back = self.history.plan_going_back(order.origin) if order.origin else []
        return [*back, *handling.plan(self._training, order.instruction)]

    def _carry_out(self, order: commands.Order, handling: Handling, time: float) -> Outcome:
        """Makes the change, from an earlier state if it says so; the answer compares with the state just before."""
        if not order.origin:
            return handling.carry_out(self._training, order.instruction, time)
        with current_backend().state(self._training.model):
            told = tell_settings(self._training.model)
        back = self.history.go_back(order.origin, time)
        outcome = handling.carry_out(self._training, order.instruction, time)
        with current_backend().state(self._training.model):
            before, after = differences(told, tell_settings(self._training.model))
        reason = "; ".join(part for part in (back, outcome.reason) if part)
        return replace(outcome, before=before, after={**after, **outcome.after}, reason=reason)

    def _check_allowed(self, order: commands.Order, handling: Handling) -> None:
        if not self._control and handling.changes_training and not order.dry_run:
            free = [
                name
                for name, kind in (("note", commands.Note), ("timers", commands.ListTimers))
                if kind in self.handlings
            ]
            raise Refused(f"this run is read-only (control=False); only {' and '.join(free)} is possible")
        if handling.of_optimizer:
            self._check_loop()

    def _committed(
        self, reply: Reply, handling: Handling, before: Snapshot, outcome: Outcome, *, moves_weights: bool
    ) -> Reply:
        """The change was made: it can be undone from now on, unless nothing is other than it was."""
        different = self.history.commit(reply.id, reply.text, before)
        if not different and not (moves_weights and outcome.changed):
            self.history.done.pop()
            self.history.abandon(before)
            reason = "; ".join(part for part in ("it was so already", reply.reason) if part)
            return msgspec.structs.replace(reply, status="ineffective", reason=reason)
        reply = msgspec.structs.replace(reply, update_before=self._training.sampled_update)
        if handling.steps_weights and not self._training.paused and self.history.snapshots.memory_bytes:
            wanted = outcome.after.get("learning_rate") if "rate" in handling.subjects else None
            rate = float(wanted) if isinstance(wanted, int | float) else None
            model = self._training.model
            weights = {} if moves_weights else weights_of(model, before.state)
            self._waiting.append(Verification(reply, weights or weights_now(model), rate))
            self.attention_at = 0
        return reply

    def _verified(self, waiting: Verification) -> Reply:
        try:
            return waiting.completed(self._training)
        except Exception as error:  # noqa: BLE001 (the change itself was read back; say what is not known)
            why = f"its effect could not be measured: {_explain(error)}"
            reason = "; ".join(part for part in (waiting.reply.reason, why) if part)
            return msgspec.structs.replace(waiting.reply, reason=reason[:_REASON_LENGTH])

    def _put_back(self, before: Snapshot, time: float) -> str:
        """After a failure; says how that went."""
        try:
            self.history.put_back(before, time)
        except Exception as error:  # noqa: BLE001 (the edge to foreign code)
            return f"it could not be taken back ({_explain(error)}); it failed with"
        finally:
            self.history.abandon(before)
        return "everything is as it was before"

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

    def _reply(
        self,
        command: Command,
        time: float,
        outcome: Outcome,
        *,
        status: Any = "applied",
        plan: Sequence[Any] = (),
    ) -> Reply:
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
            plan=tuple(plan),
            undoes=outcome.undoes,
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
