"""One controller at a time: whose commands a run obeys when several monitors watch it.

The link asks here, on its own thread, before a command reaches the training. The first monitor that steers while
nobody has control gets it, and keeps it while it is there; of all others only what changes nothing is let through,
until one of them takes over with `control take`. No socket and no training is known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from client_callback.wire import commands
from client_callback.wire.protocol import (
    Command,
    ControlChanged,
    PlanLine,
    Present,
    Reply,
    RunDescription,
    Scalar,
)

SILENCE_S = 15.0
"""After so long without a sign of life from whoever holds control, anybody may steer again."""

_HARMLESS = commands.Note | commands.ListTimers
"""What everybody may send at any time; so is every dry run."""


class Decision(NamedTuple):
    """What becomes of one command."""

    passes: bool
    """Whether the training is to answer it."""
    events: tuple[ControlChanged | Reply, ...] = ()
    """To be recorded first; where the command does not pass, its answer is among them."""


_PASSES = Decision(True)


class _Holder(NamedTuple):
    client: str
    who: str
    since: float
    step: int

    @property
    def key(self) -> tuple[str, str]:
        return _key(self.client, self.who)

    def __str__(self) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.who} has control since step {self.step} ({at})"


class Control:
    """Who steers one run.

    Args:
        run: a run that is read-only has no controller: the training refuses what changes it.
        silence_s: how long whoever holds control may be silent.
        clock: counts seconds; tests bring their own.
    """

    def __init__(
        self,
        run: RunDescription,
        *,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._silence_s = silence_s
        self._clock = clock
        self._holder: _Holder | None = None
        self._heard_at = self._looked_at = clock()

    def decide(self, command: Command, step: int) -> Decision:
        """Whether the command may reach the training now; `step`: how many have been completed."""
        try:
            order = commands.parse(command.text, self._run.actions)
        except commands.CommandError:
            return _PASSES  # the training says what is wrong with it
        if isinstance(order.instruction, commands.TakeControl | commands.ReleaseControl):
            return self._answer(command, order, step)
        if not self._run.control or order.dry_run or isinstance(order.instruction, _HARMLESS):
            return _PASSES
        return self._steer(command, step)

    def hear(self, sign: Present) -> None:
        """Notes that a monitor is still there."""
        if self._holder is not None and sign.client and sign.client == self._holder.client:
            self._heard_at = self._clock()

    def look(self, step: int) -> ControlChanged | None:
        """Takes control from a holder that is gone. To be called often, after what was sent has been heard."""
        now = self._clock()
        slept, self._looked_at = now - self._looked_at, now
        if slept > self._silence_s / 4:
            self._heard_at += slept  # it was this process that did not listen
        if self._holder is None or now - self._heard_at <= self._silence_s:
            return None
        gone, self._holder = self._holder, None
        reason = f"no sign of life from {gone.who} for {self._silence_s:g} s"
        return ControlChanged(step=step, time=time.time(), reason=reason)

    def _steer(self, command: Command, step: int) -> Decision:
        if self._holder is None:
            if not command.client:
                return _PASSES  # a script's single command: it does not stay
            return Decision(True, (self._hand_to(command, step, "the first to steer"),))
        if self._holder.key != _key(command.client, command.who):
            return Decision(False, (_reply(command, step, "refused", reason=self._how_to_take_over()),))
        self._heard_at = self._clock()
        return _PASSES

    def _answer(self, command: Command, order: commands.Order, step: int) -> Decision:
        """Of `control take` and `control release`."""
        takes = isinstance(order.instruction, commands.TakeControl)
        refusal = self._why_not(command, takes=takes)
        if refusal:
            return Decision(False, (_reply(command, step, "refused", reason=refusal),))
        holder = self._holder
        if order.dry_run:
            does = f"{command.who} would steer" if takes else "anybody could steer"
            plan = (PlanLine(topic="does", text=f"{does}; now {holder or 'nobody has control'}"),)
            return Decision(False, (_reply(command, step, "planned", plan=plan),))
        had = holder.who if holder else None
        if takes and holder is not None and holder.key == _key(command.client, command.who):
            self._heard_at = self._clock()
            answer = _reply(command, step, "ineffective", before=had, after=had, reason=f"{holder} already")
            return Decision(False, (answer,))
        if takes:
            changed = self._hand_to(command, step, f"taken from {had}" if had else "taken")
        else:
            self._holder = None
            changed = ControlChanged(step=step, time=time.time(), reason=f"released by {command.who}")
        answer = _reply(command, step, "applied", before=had, after=changed.who or None)
        return Decision(False, (changed, answer))

    def _why_not(self, command: Command, *, takes: bool) -> str:
        """Why `control take` or `release` is refused; empty when it is not."""
        if not self._run.control:
            return "this run is read-only (control=False); only note is possible"
        if takes:
            return ""
        if self._holder is None:
            return "nobody has control, so there is nothing to release; the first monitor that steers gets it"
        if self._holder.key != _key(command.client, command.who):
            return self._how_to_take_over()
        return ""

    def _how_to_take_over(self) -> str:
        return (
            f"{self._holder}; possible: note, timers, --dry-run, and `control take` to take over "
            "(from a script: unstuck send --take-control RUN COMMAND)"
        )

    def _hand_to(self, command: Command, step: int, reason: str) -> ControlChanged:
        now = time.time()
        self._holder = _Holder(command.client, command.who, now, step)
        self._heard_at = self._clock()
        return ControlChanged(step=step, time=now, who=command.who, client=command.client, reason=reason)


def _key(client: str, who: str) -> tuple[str, str]:
    """What tells controllers apart: a monitor by its own id, scripts by who runs them."""
    return (client, "") if client else ("", who)


def _reply(
    command: Command,
    step: int,
    status: Literal["applied", "ineffective", "planned", "refused"],
    *,
    before: Scalar = None,
    after: Scalar = None,
    reason: str = "",
    plan: tuple[PlanLine, ...] = (),
) -> Reply:
    """`before`, `after`: who had and has control; `None`: nobody."""
    told = status in ("applied", "ineffective")
    return Reply(
        id=command.id,
        text=command.text,
        who=command.who,
        status=status,
        before={"control": before} if told else {},
        after={"control": after} if told else {},
        reason=reason,
        plan=plan,
        step=step,
        time=time.time(),
    )
