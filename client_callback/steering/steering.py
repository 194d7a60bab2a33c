"""The one door to steering: commands in, verified replies out, never an exception.

The callback calls `install` before the first trace, `answer` between batches on the training's thread, `tick` there
now and then, and `uninstall` at the end. A change goes through: parse → plan (which refuses what cannot be) → keep
the state → change → read back → wait for the next update of the weights → answer. What fails is put back.
"""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from client_callback.steering.actions import Action, UserActions
from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.guards import Guard
from client_callback.steering.handlers import HANDLINGS
from client_callback.steering.handlers.trial import Trials
from client_callback.steering.handling import Handling
from client_callback.steering.history import History
from client_callback.steering.learning_rate import leave_rates
from client_callback.steering.loss_control import remove_class_weights
from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    install_controls,
    rated_optimizers,
    remove_controls,
    updates,
)
from client_callback.steering.rate_keeping import RateKeeping
from client_callback.steering.running_fit import RunningFit
from client_callback.steering.settings import Settings, differences, read_settings, tell_settings
from client_callback.steering.snapshots import MEMORY_BYTES, Snapshot, Snapshots
from client_callback.steering.timers import RunningTimer, Timers, without_suffixes
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.steering.verification import Verification, weights_now, weights_of
from client_callback.wire import commands
from client_callback.wire.protocol import Command, PlanLine, Problem, Reply

_REASON_LENGTH = 4_000
"""Characters of an error that are passed on: TensorFlow's can be long."""

_OF_ITS_MOMENT = commands.Undo | commands.Redo | commands.Rollback
"""Whether these are possible is known only when their moment has come."""


class Steering:
    """Carries out the commands of one training.

    Args:
        training: what is steered.
        control: whether commands that change it are obeyed.
        snapshot_memory: bytes of host memory for states to go back to; 0 keeps settings only.
        folder: where states go that the memory does not hold. `None`: the system's folder for temporary files.
        actions: commands that the script defined itself, by name.
    """

    def __init__(
        self,
        training: Training,
        *,
        control: bool,
        snapshot_memory: int = MEMORY_BYTES,
        folder: Path | None = None,
        actions: Mapping[str, Action] | None = None,
    ) -> None:
        self._training = training
        self._control = control
        self._installed: list[RateControl] = []
        self._updates_before: int | None = None
        """Updates made by the optimizer before this run. `None`: in a `fit`, which makes them itself."""
        self.history = History(training, Snapshots(snapshot_memory if control else 0, folder))
        self.timers = Timers(training)
        self._fit = RunningFit(training)
        self.trials = Trials(training, self.history, HANDLINGS)
        self._actions = actions or {}
        self.handlings = {
            **HANDLINGS,
            **self.history.handlings(),
            **self.timers.handlings(),
            **self._fit.handlings(),
            **self.trials.handlings(),
            **UserActions(self._actions).handlings(),
        }
        self._rates = RateKeeping(training)
        self._waiting: list[Verification] = []
        self._origin: Settings = {}
        """After the first part of a change that goes back to an earlier state."""
        self.attention_at = 0
        """The step before which `tick` wants to be called, at the latest. Read on the hot path."""

    def install(self, *, in_fit: bool = False) -> None:
        """Makes a scheduled rate steerable; must come before the first trace of this training.

        `in_fit`: Keras runs the loop. A loop of one's own on JAX may hold the optimizer's variables already, as
        `stateless_apply` wants them; so there a control is put on with the first command that needs one.
        """
        if in_fit and self._control:
            self._fit.find()
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
        self._fit.release()
        self._rates.end()
        if model is not None and remove_class_weights(model):
            # The traced step still weighs the classes.
            current_backend().forget_trace(model)
            _make_anew(model)
        optimizer = current_optimizer(model)
        controlled = optimizer is not None and any(control_of(one) for one in rated_optimizers(optimizer))
        if not controlled and not self._installed:
            return
        try:
            with current_backend().state(model):
                if optimizer is not None:
                    leave_rates(optimizer)
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
        try:
            order = commands.parse(command.text, tuple(self._actions))
            handling = self._handling(order)
            self._check_allowed(order, handling)
            order = self.timers.check(order, handling.subjects)
            plan = self._plan(order, handling)
            if order.dry_run:
                return self._reply(command, time, Outcome(), status="planned", plan=plan)
            if order.starts is not None:
                timer = self.timers.wait(command, order, handling.subjects)
                self._set_attention()
                waits = Outcome(reason=f"waits for {timer.told().starts} (timer {timer.number})")
                return self._reply(command, time, waits, status="planned", timer=timer)
        except (Refused, commands.CommandError) as refusal:
            return self._reply(command, time, Outcome(reason=str(refusal)), status="refused")
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            return self._reply(command, time, Outcome(reason=_explain(error)), status="failed")
        reply = self._transact(command, order, handling, time)
        self._set_attention()
        return reply

    @property
    def skips_validation(self) -> bool:
        """Whether a validation that begins all the same is to end at once."""
        return self._fit.skips_validation

    @property
    def snapshot_due(self) -> bool:
        """Whether it is time to keep the state. May be asked from any thread."""
        return self.history.snapshots.due(clock.monotonic())

    def awaits(self, reply: Reply) -> bool:
        """Whether the answer comes from `tick`, once the step after the change has verified it."""
        return any(one.reply.id == reply.id for one in self._waiting)

    def tick(self, time: float, *, last: bool = False, resting: bool = False) -> list[Reply]:
        """What is to be done between batches without being asked; returns the answers that are complete now.

        `last`: no step follows any more. `resting`: something else than a batch follows, so no timer acts yet.
        """
        replies = []
        for waiting in list(self._waiting):
            if last or waiting.ready(self._training):
                self._waiting.remove(waiting)
                replies.append(self._verified(waiting))
        if last:
            replies += self._run_timers(time, last=True)
            self.timers.end()
        elif self._control:
            try:
                self.history.keep_recent()
            except Exception as error:  # noqa: BLE001 (foreign variables; training goes on without this)
                self.history.snapshots.memory_bytes = 0
                self._report(f"no snapshots are kept: {type(error).__name__}: {error}")
            if not resting:
                self._rates.tick(time)
                replies += self._run_timers(time)
        self._set_attention()
        return replies

    def ended_early(self) -> list[Reply]:
        """The training died: ends the timers, and returns the answers that no step will complete."""
        self.timers.end()
        waiting, self._waiting = self._waiting, []
        why = "the training ended before a step could show its effect"
        return [msgspec.structs.replace(one.reply, reason=_joined(one.reply.reason, why)) for one in waiting]

    def epoch_began(self) -> None:
        """The next step is the first of another epoch."""
        self._rates.epoch_began()
        self.attention_at = 0 if self.timers.kept else min(self.attention_at, self._rates.attention_at)

    def epoch_ended(self, epoch: int, logs: Mapping[str, float], time: float) -> list[Reply]:
        """An epoch's values are known; returns what was done because of them, as answers."""
        return self._rates.epoch_ended(epoch, logs, time)

    def _set_attention(self) -> None:
        due = min(self.timers.next_step, self._rates.attention_at)
        self.attention_at = 0 if self._waiting else due

    # ── One command ─────────────────────────────────────────────────────────────────────────────────

    def _handling(self, order: commands.Order) -> Handling:
        handling = self.handlings.get(type(order.instruction))
        if handling is None:
            raise Refused(
                "this is not for the training to do; who steers is decided where its monitors connect"
            )
        return handling

    def _plan(self, order: commands.Order, handling: Handling) -> list[PlanLine]:
        """What would happen. Raises Refused for what cannot be."""
        waits = order.starts is not None
        back = self.history.plan_going_back(order.origin, later=waits) if order.origin else []
        later = waits and isinstance(order.instruction, _OF_ITS_MOMENT)
        planner = handling.plan if order.dry_run else handling.check or handling.plan
        does = [] if later else planner(self._training, order.instruction)
        if any(line.topic == "recompiles" for line in does):  # once, with what it took the last time
            back = [line for line in back if line.topic != "recompiles"]
        return [*back, *does, *self.timers.plan(order)]

    def _transact(
        self,
        command: Command,
        order: commands.Order,
        handling: Handling,
        time: float,
        timer: RunningTimer | None = None,
    ) -> Reply:
        """Carries out what was found to be possible. `timer`: in whose name."""
        before: Snapshot | None = None
        self.trials.command = command
        try:
            guard = None
            if order.unless is not None:
                guard = Guard(order.unless, self._training.recent, self._training.step)
            if handling.subjects and (not handling.may_change_nothing or self.history.can_begin):
                before = self.history.begin(command.text)
            outcome = self._carry_out(order, handling, time)
            reply = self._reply(command, time, outcome, timer=timer)
            self._supersede(handling, order)
            self._rates.commanded(reply)
            if isinstance(order.instruction, commands.Undo | commands.Redo):
                self.timers.taken_back([outcome.undoes])
                if isinstance(order.instruction, commands.Redo):
                    self.timers.went_back()
                notes = self.timers.revive(self.history.done, outcome.restored)
                reply = msgspec.structs.replace(reply, reason=_joined(reply.reason, *notes))
            if before is None:
                return reply
            if handling.may_change_nothing and not self.history.differs(before):
                self.history.abandon(before)
                return reply
            moves_weights = bool(order.origin) or "weights" in handling.subjects
            reply = self._committed(reply, handling, before, outcome, moves_weights=moves_weights)
            if isinstance(order.instruction, commands.Rollback) or order.origin:
                self.timers.went_back()
            return self._timed(reply, command, order, handling=handling, guard=guard, timer=timer)
        except (Refused, commands.CommandError) as refusal:
            if before is not None:
                self._put_back(before, command.id, time)
            return self._reply(command, time, Outcome(reason=str(refusal)), status="refused", timer=timer)
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            reason = _explain(error)
            if before is not None:
                reason = f"{self._put_back(before, command.id, time)}: {reason}"
            return self._reply(command, time, Outcome(reason=reason), status="failed", timer=timer)

    def _carry_out(self, order: commands.Order, handling: Handling, time: float) -> Outcome:
        """Makes the change, from an earlier state if it says so; the answer compares with the state just before."""
        if not order.origin:
            return handling.carry_out(self._training, order.instruction, time)
        with current_backend().state(self._training.model):
            told = tell_settings(self._training.model)
        restored, back = self.history.go_back(order.origin, time)
        with current_backend().state(self._training.model):
            self._origin = read_settings(self._training.model)
        outcome = handling.carry_out(self._training, order.instruction, time)
        with current_backend().state(self._training.model):
            before, after = differences(told, tell_settings(self._training.model))
        reason = _joined(back, outcome.reason)
        return replace(
            outcome, before=before, after={**after, **outcome.after}, reason=reason, restored=restored
        )

    def _check_allowed(self, order: commands.Order, handling: Handling) -> None:
        if not self._control and handling.changes_training and not order.dry_run:
            raise Refused(
                "this run is read-only (control=False); possible: note, timers, and any command with --dry-run"
            )
        if handling.of_optimizer:
            self._check_loop()

    def _committed(
        self, reply: Reply, handling: Handling, before: Snapshot, outcome: Outcome, *, moves_weights: bool
    ) -> Reply:
        """The change was made: it can be undone from now on, unless nothing is other than it was."""
        moved = moves_weights and outcome.changed
        if not self.history.commit(reply.id, reply.text, before, moved_weights=moved):
            reason = _joined("it was so already", reply.reason)
            return msgspec.structs.replace(reply, status="ineffective", reason=reason)
        reply = msgspec.structs.replace(reply, update_before=self._training.sampled_update)
        if handling.steps_weights and not self._training.paused and self.history.snapshots.memory_bytes:
            wanted = outcome.after.get("learning_rate") if "rate" in handling.subjects else None
            rate = float(wanted) if isinstance(wanted, int | float) else None
            model = self._training.model
            known = not moves_weights and before.file is None
            weights = weights_of(model, before.state) if known else weights_now(model)
            self._waiting.append(Verification(reply, weights, rate, outcome.confirm))
            self.attention_at = 0
        return reply

    def _supersede(self, handling: Handling, order: commands.Order) -> None:
        """The next step shows this change, and no longer what one before it at the same step had asked for."""
        goes_back = bool(order.origin) or isinstance(order.instruction, _OF_ITS_MOMENT)
        for waiting in self._waiting:
            if goes_back or handling.subjects & {"rate", "optimizer"}:
                waiting.wanted_rate = None
            if goes_back or handling.subjects & {"loss", "layers"}:
                waiting.confirm = lambda: ""

    # ── Timers ──────────────────────────────────────────────────────────────────────────────────────

    def _timed(
        self,
        reply: Reply,
        command: Command,
        order: commands.Order,
        *,
        handling: Handling,
        guard: Guard | None,
        timer: RunningTimer | None,
    ) -> Reply:
        """The answer of a change that was made, with what timers have to do with it."""
        if reply.status == "ineffective":
            return reply
        change = self.history.done[-1]
        notes = self.timers.overwritten(change, but=timer)
        if reply.restored is not None:
            notes += self.timers.brought_back(change)
        begun = self.timers.begin(
            command,
            order,
            subjects=handling.subjects,
            change=change,
            guard=guard,
            timer=timer,
            origin=self._origin if order.origin else None,
        )
        if begun is not None:
            timer = begun
            notes.append(f"{self.timers.ends(begun)} (timer {begun.number})")
        if guard is not None and guard.warning:
            notes.append(guard.warning)
        if guard is not None and not self.history.snapshots.memory_bytes:
            notes.append("of which only the settings, as no snapshots are kept (snapshot_memory=0)")
        number = None if timer is None else timer.number
        full = msgspec.structs.replace(reply, reason=_joined(reply.reason, *notes), timer=number)
        for waiting in self._waiting:
            if waiting.reply is reply:
                waiting.reply = full
        self._set_attention()
        return full

    def _run_timers(self, time: float, *, last: bool = False) -> list[Reply]:
        """Does what is due now; returns the answers that are complete. `last`: no step follows any more."""
        replies: list[Reply] = []
        try:
            for timer in self.timers.watched(due=not last):
                replies += self._judge(timer, time)
            replies += [self._set_back(timer, time, verify=not last) for timer in self.timers.ended()]
            if not last:
                replies += [self._begin(timer, time) for timer in self.timers.begun()]
                self.timers.look()
        except Exception as error:  # noqa: BLE001 (foreign variables; training goes on without timers)
            self.timers.end("an error ended")
            self._report(f"all timers have ended: {_explain(error)}")
        return [reply for reply in replies if not self.awaits(reply)]

    def _begin(self, timer: RunningTimer, time: float) -> Reply:
        """The moment has come that a command waited for."""
        command = timer.sub_command("1", without_suffixes(timer.command.text, "at", "when"))
        order = msgspec.structs.replace(timer.order, starts=None)
        try:
            handling = self._handling(order)
            self._check_allowed(order, handling)
            order = self.timers.check(order, handling.subjects, but=timer)
            self._plan(order, handling)
        except (Refused, commands.CommandError) as refusal:
            reply = self._reply(command, time, Outcome(reason=str(refusal)), status="refused", timer=timer)
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            reply = self._reply(command, time, Outcome(reason=_explain(error)), status="failed", timer=timer)
        else:
            reply = self._transact(command, order, handling, time, timer)
        if timer.change is None:
            self.timers.remove(timer, f"came to its moment: {reply.status}")
        return reply

    def _set_back(self, timer: RunningTimer, time: float, *, verify: bool = True) -> Reply:
        """The time is over for which a change was to last."""
        command = timer.sub_command("end", f"{timer.text} ends")
        kept, lost = self.timers.revertible(timer)
        timer.until = None
        if timer.guard is None:
            self.timers.remove(timer, "ended: its time is over")
        stays = f"{', '.join(lost)} was set to something else since and stays" if lost else ""
        if not kept:
            return self._reply(command, time, Outcome(reason=stays), status="ineffective", timer=timer)
        handling = Handling(
            carry_out=lambda *_: self._reverted(kept, time, command.text, stays),
            subjects=timer.subjects,
            steps_weights=verify,
        )
        return self._transact(command, commands.Order(timer.order.instruction), handling, time, timer)

    def _reverted(self, settings: Settings, time: float, text: str, stays: str) -> Outcome:
        outcome = self.history.revert(settings, time, text)
        return replace(outcome, reason=_joined("what it had set is set back, the weights stay", stays))

    def _judge(self, timer: RunningTimer, time: float) -> list[Reply]:
        """Undoes a change that did what it was not to do; lets it stay when its watch is over."""
        guard, step = timer.guard, self._training.step
        if guard is None or timer not in self.timers.kept:
            return []
        why = guard.fired(self._training.recent, step)
        if why:
            return [self._take_back(timer, why, time)]
        if step >= guard.end:
            self.timers.pass_watch(timer)
        return []

    def _take_back(self, timer: RunningTimer, why: str, time: float) -> Reply:
        """The watch over a change has fired: all is as it was just before."""
        command = timer.sub_command("undo", f"undo {timer.text}")
        kept, _ = self.timers.revertible(timer)
        self.timers.remove(timer, f"fired: {why}")
        assert timer.change is not None  # noqa: S101 (what is watched is in effect)
        try:
            outcome, gone = self.history.take_back(timer.change, time)
        except Refused as refusal:
            stays = f"{why}; the weights stay, since {refusal}"
            handling = Handling(
                carry_out=lambda *_: self._reverted(kept, time, command.text, stays), subjects=timer.subjects
            )
            return self._transact(command, commands.Order(timer.order.instruction), handling, time, timer)
        except Exception as error:  # noqa: BLE001 (the edge to foreign code: the reply carries the error)
            return self._reply(
                command, time, Outcome(reason=f"{why}; {_explain(error)}"), status="failed", timer=timer
            )
        self.timers.taken_back(change.id for change in gone)
        notes = self.timers.revive(self.history.done, outcome.restored)
        outcome = replace(outcome, reason=_joined(why, outcome.reason, *notes))
        return self._reply(command, time, outcome, timer=timer)

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _verified(self, waiting: Verification) -> Reply:
        try:
            return waiting.completed(self._training)
        except Exception as error:  # noqa: BLE001 (the change itself was read back; say what is not known)
            why = f"its effect could not be measured: {_explain(error)}"
            reason = _joined(waiting.reply.reason, why)
            return msgspec.structs.replace(waiting.reply, reason=reason[:_REASON_LENGTH])

    def _put_back(self, before: Snapshot, id_: str, time: float) -> str:
        """After a failure; says how that went."""
        self.history.done = [change for change in self.history.done if change.before is not before]
        self._waiting = [waiting for waiting in self._waiting if waiting.reply.id != id_]
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
        timer: RunningTimer | None = None,
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
            restored=outcome.restored,
            timer=None if timer is None else timer.number,
        )

    def _report(self, what: str) -> None:
        self._training.emit(Problem(step=self._training.step, what=what[:_REASON_LENGTH]))


def _make_anew(model: Any) -> None:
    """A train function made before does not know what is there now; `fit` asks for it at every step."""
    if model.train_function is not None:
        model.train_function = None
        model.make_train_function()


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _explain(error: BaseException) -> str:
    """The error, and the ones it came from."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return "; after ".join(texts)
