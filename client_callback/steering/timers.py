"""What waits for its moment, and what is in effect and may be taken back by itself: `timers`, `cancel`.

Kept and judged in the training process, so that a lost connection changes nothing. `Steering.tick` asks what is due
and carries it out; here is when, and what stands against it.
"""

from __future__ import annotations

import shlex
import sys
import time as clock
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec

from client_callback.steering.backends import current_backend
from client_callback.steering.carrying import alike, brings_its_rate
from client_callback.steering.guards import Guard, check_series
from client_callback.steering.handling import Handling, Handlings, Subject
from client_callback.steering.history import Change
from client_callback.steering.settings import (
    Optimizers,
    Rates,
    Settings,
    TrainedSetting,
    changed,
    read_settings,
    settings_of,
)
from client_callback.steering.training import Outcome, Refused, Training, end_of
from client_callback.wire import commands
from client_callback.wire.commands import AtEpoch, AtStep, OnPlateau, Order
from client_callback.wire.protocol import Command, PlanLine, Timer, TimersChanged

NEVER: Final = sys.maxsize

LOOK_S: Final = 0.2
"""How often guards and plateaus are looked for: each look waits for the device."""

MOST_TIMERS: Final = 100

_REMEMBERED: Final = 10
"""Timers that are over."""

_OF_OPTIMIZER: Final = frozenset({"optimizer", "learning_rate"})
"""Settings that another optimizer takes the place of."""


@dataclass(eq=False)
class RunningTimer:
    """One command that waits, or that is in effect for a time or under watch."""

    number: int
    command: Command
    order: Order
    subjects: frozenset[Subject]
    change: Change | None = None
    """`None`: it waits."""
    before: Settings = field(default_factory=dict)
    """What the change set, as it was before: after going back, where it went back first."""
    set_to: Settings | None = None
    """What the change has set, as it was right after."""
    begun: int = 0
    """The first step that ran with the change."""
    until: int | None = None
    guard: Guard | None = None
    was_until: int = 0
    """`until`, also after the end."""
    lost: frozenset[str] = frozenset()
    """What it will not set back, as was said already."""

    @property
    def text(self) -> str:
        """The command without when and how long."""
        return without_suffixes(self.command.text, "at", "when", "for", "unless")

    def sub_command(self, suffix: str, text: str) -> Command:
        """In whose name something is done now."""
        who = f"timer {self.number} of {self.command.who or 'somebody'}"
        return msgspec.structs.replace(
            self.command, id=f"{self.command.id}.{suffix}", text=text, who=who[:1_000]
        )

    def told(self) -> Timer:
        """As an event tells it."""
        unless = self.order.unless
        return Timer(
            number=self.number,
            id=self.command.id,
            text=self.command.text,
            who=self.command.who,
            state="waiting" if self.change is None else "active",
            starts=_moment(self.order) if self.change is None else "",
            until=self.until,
            unless=str(self.guard or "") or ("" if unless is None else _condition(unless)),
        )

    def __str__(self) -> str:
        return f"timer {self.number} ({self.command.text})"


class Timers:
    """All timers of one training."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.kept: list[RunningTimer] = []
        self._over: list[RunningTimer] = []
        """The last that ended, not cancelled: going back may bring back what they were to set back."""
        self._count = 0
        self._looked = (0, 0.0)
        """Step and second of the last look."""
        self._look_at = 0
        """The step before which is looked again."""

    # ── Coming and going ────────────────────────────────────────────────────────────────────────────

    def check(self, order: Order, subjects: frozenset[Subject], *, but: RunningTimer | None = None) -> Order:
        """The order as it is to be obeyed: one whose moment is this very step begins now.

        Raises:
            Refused: its moment has passed or never comes, its series is not known, or another timer is in its way.
        """
        order = _without_start(order) if self._is_now(order) else order
        if order.unless is not None:
            check_series(order.unless, self._training.recent)
        if isinstance(order.starts, OnPlateau):
            self._check_losses()
        self._check_conflicts(order, subjects, but)
        if len(self.kept) >= MOST_TIMERS and but is None and _lasting(order):
            raise Refused(f"there are {MOST_TIMERS} timers already; `cancel NUMBER` makes room")
        return order

    def plan(self, order: Order) -> list[PlanLine]:
        """What the timer of an order would do."""
        lines = []
        if order.starts is not None:
            lines.append(PlanLine(topic="does", text=f"waits for {_moment(order)}"))
        if order.lasts is not None:
            after = f"after {order.lasts} steps what was set is set back; the weights stay"
            lines.append(PlanLine(topic="does", text=after + self._late()))
        if order.unless is not None:
            lines.append(PlanLine(topic="does", text=f"everything is undone if {_condition(order.unless)}"))
        return lines

    def wait(self, command: Command, order: Order, subjects: frozenset[Subject]) -> RunningTimer:
        """A command that waits from now on."""
        timer = self._new(command, order, subjects)
        self._announce(f"{timer} waits for {_moment(order)}")
        return timer

    def begin(
        self,
        command: Command,
        order: Order,
        *,
        subjects: frozenset[Subject],
        change: Change,
        guard: Guard | None,
        timer: RunningTimer | None,
        origin: Settings | None = None,
    ) -> RunningTimer | None:
        """A change is in effect: whether it is watched or will be set back.

        `timer`: that which made it. `origin`: all settings after going back, if it went back first.
        """
        if order.lasts is None and guard is None:
            return None
        now = self._read_settings()
        before = change.settings if origin is None else changed(origin, now)
        lasts = order.lasts if before else None
        if lasts is None and guard is None:
            return None
        timer = timer or self._new(command, order, subjects)
        if timer not in self.kept:
            self.kept.append(timer)
        timer.change, timer.guard, timer.begun = change, guard, self._training.step
        timer.until = None if lasts is None else timer.begun + lasts
        timer.was_until = timer.until or 0
        timer.before = before
        timer.set_to = {name: now[name] for name in before if name in now}
        if "optimizer" in now:
            timer.set_to["optimizer"] = now["optimizer"]
        self._announce(f"{timer} is in effect: {self.ends(timer)}")
        return timer

    def ends(self, timer: RunningTimer) -> str:
        """When and why what is in effect will be taken back, in words."""
        parts = []
        if timer.until is not None:
            parts.append(f"set back before step {timer.until}{self._late()}")
        if timer.guard is not None:
            parts.append(f"undone if {timer.guard}")
        return " or ".join(parts)

    def overwritten(self, change: Change, *, but: RunningTimer | None) -> list[str]:
        """What a change sets that a timer was to set back and now will not, in words."""
        notes = []
        for timer in self.kept:
            if timer is not but and timer.change is not change and timer.until is not None:
                _, lost = self.revertible(timer)
                touched = set(change.settings) | (_OF_OPTIMIZER if "optimizer" in change.settings else set())
                names = [name for name in lost if name in touched - timer.lost]
                timer.lost = frozenset(lost)
                if names:
                    notes.append(f"{timer} will not set back {', '.join(names)}")
        return notes

    def pass_watch(self, timer: RunningTimer) -> None:
        """Nothing has fired: the change stays, or lasts as long as it was to."""
        guard, timer.guard = timer.guard, None
        why = "has passed its watch" if guard is None else f"stays: its watch is over, {guard.passed}"
        if timer.until is None:
            self.remove(timer, why)
        else:
            self._announce(f"{timer} {why}")

    def remove(self, timer: RunningTimer, why: str) -> None:
        """It is over; `why` follows its name."""
        if timer in self.kept:
            self.kept.remove(timer)
            if timer.change is not None and (timer.order.lasts is not None or timer.guard is not None):
                self._over = [*self._over, timer][-_REMEMBERED:]
            self._announce(f"{timer} {why}")

    def taken_back(self, ids: Iterable[str]) -> None:
        """Commands were undone: what was to become of them is void."""
        gone = set(ids)
        for timer in list(self.kept):
            if timer.change is not None and timer.change.id in gone:
                self.remove(timer, "ended: its command was undone")

    def went_back(self) -> None:
        """The training is at an earlier state: what is no longer in effect there is void."""
        for timer in [timer for timer in self.kept if timer.set_to is not None]:
            kept, _ = self.revertible(timer)
            if timer.before and not kept:
                self.remove(timer, "ended: the training went back to before its command")

    def revive(self, done: Sequence[Change], restored: int | None) -> list[str]:
        """After an undo or a redo: timers whose commands are in effect again go on; returns what is to be said.

        `done`: the changes that are in effect. `restored`: the step whose state is back. `None`: none is.
        """
        step = self._training.step
        notes = []
        for timer in [timer for timer in self._over if timer.change in done]:
            kept, _ = self.revertible(timer)
            later = done[done.index(cast("Change", timer.change)) + 1 :]
            if not kept or any(name in change.settings for change in later for name in kept):
                continue
            watched = timer.guard is not None
            left = min(timer.order.lasts or 0, timer.was_until - (step if restored is None else restored))
            if left > 0 and not self._in_the_way(timer):
                self._over.remove(timer)
                timer.begun, timer.guard = step, None
                timer.until = timer.was_until = step + left
                self.kept.append(timer)
                self._announce(f"{timer} is in effect again: {self.ends(timer)}")
                notes.append(f"{self.ends(timer)} (timer {timer.number})")
            elif timer.order.lasts is not None:
                notes.append(f"{timer.text!r} is in effect without its timer, it stays until undone")
            if watched:
                notes.append(f"{timer.text!r} is no longer watched")
        return notes

    def brought_back(self, change: Change) -> list[str]:
        """What going back to an earlier state has set as timers had that are over, in words."""
        notes = []
        for timer in self._over:
            kept, _ = self.revertible(timer)
            names = ", ".join(name for name in timer.before if name in kept and name in change.settings)
            if timer.order.lasts is not None and names:
                notes.append(f"{names} is as {timer} had set it, without its timer: it stays until undone")
        return notes

    def _in_the_way(self, timer: RunningTimer) -> bool:
        others = [other for other in self.kept if other.subjects & timer.subjects]
        return any(other.order.lasts is not None or other.order.unless is not None for other in others)

    def end(self, why: str = "the run ended") -> None:
        """Nothing waits any more."""
        if self.kept:
            names = ", ".join(map(str, self.kept))
            self.kept.clear()
            self._announce(f"{why} with {names}")

    # ── What is due ─────────────────────────────────────────────────────────────────────────────────

    @property
    def next_step(self) -> int:
        """The step before which something may have to be done. An epoch's begin is told by whoever runs it."""
        return min((self._due(timer) for timer in self.kept), default=NEVER)

    def begun(self) -> list[RunningTimer]:
        """Those whose moment has come."""
        waiting = [timer for timer in self.kept if timer.change is None]
        return [timer for timer in waiting if self._has_come(timer.order)]

    def ended(self) -> list[RunningTimer]:
        """Those whose time in effect is over."""
        step = self._training.step
        return [timer for timer in self.kept if timer.until is not None and timer.until <= step]

    def watched(self, *, due: bool = False) -> list[RunningTimer]:
        """Those under watch; `due`: only if it is time to look."""
        step = self._training.step
        guarded = [timer for timer in self.kept if timer.guard is not None]
        return [timer for timer in guarded if not due or self._due(timer) <= step]

    def look(self) -> None:
        """All were looked at: notes when to do so again."""
        step, now = self._training.step, clock.monotonic()
        looked, then = self._looked
        pace = (step - looked) / max(now - then, 1e-6)
        self._looked = (step, now)
        self._look_at = step + max(1, int(pace * LOOK_S))

    def revertible(self, timer: RunningTimer) -> tuple[Settings, list[str]]:
        """What a change set, as it was before, where it still is as set; and the names of what is not."""
        if timer.change is None or timer.set_to is None:
            return {}, []
        now, set_to, before = self._read_settings(), timer.set_to, timer.before
        follows = self._following()
        own = [name for name in before if name not in follows]
        kept = [name for name in own if _same(now.get(name), set_to.get(name))]
        present, used = (settings.get("optimizer") for settings in (now, set_to))
        if present and used and not alike(present.optimizer, used.optimizer):
            kept = [name for name in kept if name not in _OF_OPTIMIZER]
        if present and used and _schedules(present) != _schedules(used) and _by_schedule(before):
            # Which is no longer there.
            kept = [name for name in kept if name != "learning_rate"]
        if "optimizer" in own:
            earlier = before["optimizer"]
            if _same(earlier, used):
                # Only the rate's control is another, and what decides the rate now may need the one there is.
                if not {"optimizer", "learning_rate"} <= set(kept):
                    own, kept = ([name for name in names if name != "optimizer"] for names in (own, kept))
            elif "optimizer" not in kept:
                kept = [name for name in kept if name != "learning_rate"]
            elif (
                present
                and "learning_rate" not in kept
                and brings_its_rate(present.optimizer, earlier.optimizer)
            ):
                own = [name for name in own if name != "learning_rate"]
        written = [*kept, *(name for name in before if name in follows)] if kept else []
        return {name: before[name] for name in written}, [name for name in own if name not in kept]

    def _following(self) -> set[str]:
        """Settings that follow from others, and are written whenever one of these is."""
        found = settings_of(self._training.model)
        return {name for name, setting in found.items() if isinstance(setting, TrainedSetting)}

    # ── Commands ────────────────────────────────────────────────────────────────────────────────────

    def handlings(self) -> Handlings:
        """`timers` and `cancel`."""
        return {
            commands.ListTimers: Handling(carry_out=self._list, changes_training=False),
            commands.CancelTimer: Handling(carry_out=self._cancel, plan=self._plan_cancel),
        }

    def _list(self, training: Training, instruction: commands.ListTimers, time: float) -> Outcome:
        lines = [f"{timer.number}: {timer.command.text}, {self._state(timer)}" for timer in self.kept]
        return Outcome(
            after={"timers": len(lines)}, reason="; ".join(lines) or "nothing waits or will be taken back"
        )

    def _cancel(self, training: Training, instruction: commands.CancelTimer, time: float) -> Outcome:
        chosen = self._chosen(instruction)
        before = len(self.kept)
        self.kept = [timer for timer in self.kept if timer not in chosen]
        names = ", ".join(map(str, chosen))
        self._announce(f"cancelled: {names}")
        stays = "; what is in effect stays" if any(timer.change for timer in chosen) else ""
        return Outcome(
            before={"timers": before}, after={"timers": len(self.kept)}, reason=f"cancelled {names}{stays}"
        )

    def _plan_cancel(self, training: Training, instruction: commands.CancelTimer) -> list[PlanLine]:
        return [PlanLine(topic="does", text=f"cancels {timer}") for timer in self._chosen(instruction)]

    def _chosen(self, instruction: commands.CancelTimer) -> list[RunningTimer]:
        if not self.kept:
            raise Refused("there is no timer to cancel")
        chosen = [timer for timer in self.kept if instruction.number in (None, timer.number)]
        if not chosen:
            possible = ", ".join(str(timer.number) for timer in self.kept)
            raise Refused(f"there is no timer {instruction.number}; possible: {possible}, all")
        return chosen

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _new(self, command: Command, order: Order, subjects: frozenset[Subject]) -> RunningTimer:
        self._count += 1
        self.kept.append(RunningTimer(self._count, command, order, subjects))
        self._look_at = 0
        return self.kept[-1]

    def _state(self, timer: RunningTimer) -> str:
        return f"waits for {_moment(timer.order)}" if timer.change is None else self.ends(timer)

    def _is_now(self, order: Order) -> bool:
        """Whether an order begins at once. Raises Refused when it began earlier or never will."""
        training, starts = self._training, order.starts
        if isinstance(starts, AtStep):
            if starts.step < training.step:
                raise Refused(f"step {starts.step} has passed; the next one is step {training.step}")
            self._check_comes(starts.step, f"step {starts.step}")
            return starts.step == training.step
        if isinstance(starts, AtEpoch):
            present = training.epoch + 1
            begun = training.step > training.epoch_start
            if starts.epoch < present or (starts.epoch == present and begun):
                passed = "has passed" if starts.epoch < present else "has begun"
                raise Refused(f"epoch {starts.epoch} {passed}; the next to begin is epoch {present + begun}")
            if training.epochs is not None and starts.epoch > training.epochs:
                raise Refused(f"there is no epoch {starts.epoch}: this fit ends with epoch {training.epochs}")
            return starts.epoch == present
        return False

    def _check_comes(self, step: int, name: str) -> None:
        end = end_of(self._training)
        if end is not None and step >= end:
            raise Refused(f"there is no {name}: this fit ends with step {end - 1}")

    def _check_losses(self) -> None:
        recent = self._training.recent
        if recent.names and ("loss" not in recent.names or "loss" in recent.running):
            raise Refused(
                "a plateau is told by the loss of single steps, which is not recorded here; possible: at step N, "
                "at epoch N"
            )

    def _check_conflicts(self, order: Order, subjects: frozenset[Subject], but: RunningTimer | None) -> None:
        """Refuses two that would take back the same thing in the same time."""
        if order.lasts is None and order.unless is None:
            return
        begin, end = self._span(order, None)
        for timer in self.kept:
            if timer is but or not timer.subjects & subjects:
                continue
            if timer.order.lasts is None and timer.order.unless is None:
                continue
            its_begin, its_end = self._span(timer.order, timer)
            if begin < its_end and its_begin < end:
                shared = ", ".join(sorted(timer.subjects & subjects))
                raise Refused(
                    f"{timer} may take back the same ({shared}) in the same time: {self._state(timer)}; "
                    f"`cancel {timer.number}` frees it"
                )

    def _span(self, order: Order, timer: RunningTimer | None) -> tuple[int, int]:
        """From which step to before which one an order is or may be in effect."""
        if timer is not None and timer.change is not None:
            ends = [timer.until or 0, timer.guard.end if timer.guard else 0]
            return timer.begun, max(ends)
        begin = self._begin(order)
        length = max(order.lasts or 0, order.unless.steps if order.unless else 0)
        return (self._training.step, NEVER) if begin is None else (begin, begin + length)

    def _begin(self, order: Order) -> int | None:
        """The first step of an order. `None`: not known."""
        training, starts = self._training, order.starts
        if starts is None:
            return training.step
        if isinstance(starts, AtStep):
            return starts.step
        if isinstance(starts, AtEpoch) and training.steps_per_epoch:
            return training.epoch_start + (starts.epoch - 1 - training.epoch) * training.steps_per_epoch
        return None

    def _has_come(self, order: Order) -> bool:
        training, starts = self._training, order.starts
        if isinstance(starts, AtStep):
            return starts.step <= training.step
        if isinstance(starts, AtEpoch):
            return starts.epoch <= training.epoch + 1
        return training.step >= self._look_at and training.recent.losses.plateau()

    def _due(self, timer: RunningTimer) -> int:
        if timer.change is None:
            starts = timer.order.starts
            if isinstance(starts, AtStep):
                return starts.step
            return self._look_at if isinstance(starts, OnPlateau) else NEVER
        ends = NEVER if timer.until is None else timer.until
        return ends if timer.guard is None else min(ends, self._look_at, timer.guard.end)

    def _late(self) -> str:
        steps = int(getattr(self._training.model, "steps_per_execution", 1) or 1)
        return f" (at the first boundary of {steps} steps from there on)" if steps > 1 else ""

    def _read_settings(self) -> Settings:
        model = self._training.model
        with current_backend().state(model):
            return read_settings(model)

    def _announce(self, reason: str) -> None:
        told = tuple(timer.told() for timer in self.kept)
        self._training.emit(
            TimersChanged(step=self._training.step, time=clock.time(), timers=told, reason=reason[:4_000])
        )


def without_suffixes(text: str, *suffixes: str) -> str:
    """A command without those of its suffixes."""
    words = shlex.split(text)
    marks = [place for place, word in enumerate(words) if place and word in commands.SUFFIXES]
    if not any(words[place] in suffixes for place in marks):
        return text
    kept = words[: marks[0]]
    for begin, end in zip(marks, [*marks[1:], len(words)], strict=True):
        if words[begin] not in suffixes:
            kept += words[begin:end]
    return shlex.join(kept)


def _without_start(order: Order) -> Order:
    return msgspec.structs.replace(order, starts=None)


def _lasting(order: Order) -> bool:
    return order.starts is not None or order.lasts is not None or order.unless is not None


def _moment(order: Order) -> str:
    starts = order.starts
    if isinstance(starts, AtStep):
        return f"step {starts.step}"
    return f"epoch {starts.epoch}" if isinstance(starts, AtEpoch) else "a plateau"


def _condition(unless: commands.Unless) -> str:
    return f"{unless.series} {unless.change} {100 * unless.share:g} % in {unless.steps} steps"


def _same(now: Any, then: Any) -> bool:
    """Whether a setting still reads as it was set.

    Another control of the same optimizer's rate is no difference, and neither is how far a ramp or a rule has got.
    """
    if isinstance(now, Optimizers) and isinstance(then, Optimizers):
        return now.optimizer is then.optimizer
    if isinstance(now, Rates) and isinstance(then, Rates):
        return now.goal == then.goal and now.held == then.held
    return bool(now == then)


def _schedules(optimizers: Optimizers) -> list[Any]:
    return [None if control is None else control.schedule for control in optimizers.controls]


def _by_schedule(settings: Settings) -> bool:
    """Whether a schedule decided the rate that is among these."""
    rates = settings.get("learning_rate")
    return isinstance(rates, Rates) and any(numbers.get("override", 0) < 0 for numbers in rates.numbers)
