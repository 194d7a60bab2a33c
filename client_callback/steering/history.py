"""What was changed so far, and the way back: `snapshot`, `rollback`, `undo`, `redo`.

Each change keeps the state just before it, so that `undo` gives back the training itself and not only a setting.
`Steering` calls `begin` before a change, then `commit` or `abandon`.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import dataclass, replace

from client_callback.steering.backends import current_backend
from client_callback.steering.carrying import going_back_says
from client_callback.steering.describe import current_optimizer, describe_optimizer
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.settings import (
    Settings,
    TrainedSetting,
    changed,
    differences,
    read_settings,
    settings_of,
    tell_settings,
)
from client_callback.steering.snapshots import MOST_CHANGES, Kind, Snapshot, Snapshots
from client_callback.steering.state import (
    State,
    capture,
    has_variables,
    moved,
    restore,
    size_of,
    write_settings,
)
from client_callback.steering.training import Outcome, Refused, Training, retrace
from client_callback.wire import commands
from client_callback.wire.protocol import OptimizerChanged, PlanLine, SnapshotsChanged

_NOT_REWOUND = "the data goes on from the next batch, it cannot be rewound"


@dataclass(eq=False)
class Change:
    """One command that changed the training."""

    id: str
    text: str
    before: Snapshot
    settings: Settings
    """What it set, as it was before."""


class History:
    """The changes of one training and its snapshots."""

    def __init__(self, training: Training, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self.done: list[Change] = []
        self.undone: list[tuple[Change, Snapshot]] = []
        """Changes taken back, with the state as it was then; the last is the first to come again."""
        self._seconds = 0.0
        self._training = training
        self._begun: Snapshot | None = None
        """Of the change that is being made now."""

    # ── What a change needs ────────────────────────────────────────────────────────────────────

    def take(self, kind: Kind, *, name: str = "", reason: str = "") -> Snapshot:
        """Keeps the state as it is now.

        Raises:
            Refused: there is nothing to keep yet.
        """
        model = self._training.model
        if current_optimizer(model) is None:
            raise Refused("there is no state to keep: this run has no model with an optimizer")
        begin = clock.perf_counter()
        with_values = has_variables(model) and self.snapshots.can_hold(size_of(model))
        state = capture(model, self._training.step, with_values=with_values)
        snapshot = self.snapshots.add(state, kind, name=name, reason=reason)
        seconds = clock.perf_counter() - begin
        self._seconds += seconds
        self.snapshots.note_cost(seconds, clock.monotonic())
        self._announce(seconds)
        return snapshot

    def take_seconds(self) -> float:
        """Seconds that taking snapshots took since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def can_begin(self) -> bool:
        """Whether there is a state that a change could be taken back to."""
        return current_optimizer(self._training.model) is not None

    def begin(self, text: str) -> Snapshot:
        """The state before a change; until it is made, `last` is still the one kept before."""
        self._begun = self.take("change", reason=text)
        return self._begun

    def commit(self, id_: str, text: str, before: Snapshot, *, moved_weights: bool) -> bool:
        """The change was made, and can be undone from now on. False: nothing is other than it was."""
        model = self._training.model
        with current_backend().state(model):
            settings = changed(before.state.settings, read_settings(model))
        if not settings and not moved_weights:
            self.abandon(before)
            return False
        self.done.append(Change(id_, text, before, settings))
        self._begun = None
        self._forget_undone()
        while len(self.done) > MOST_CHANGES:
            self.snapshots.drop(self.done.pop(0).before)
        return True

    def abandon(self, before: Snapshot) -> None:
        """The change was not made, or changed nothing."""
        self._begun = None
        self.snapshots.drop(before)
        self._announce(0.0)

    def differs(self, before: Snapshot) -> bool:
        """Whether anything is other than in a state kept before, as far as that holds it."""
        model = self._training.model
        state = before.state if before.dropped else self.snapshots.load(before)
        with current_backend().state(model):
            return changed(state.settings, read_settings(model)) != {} or moved(model, state)

    def put_back(self, before: Snapshot, time: float) -> None:
        """The change failed: everything is as it was, or the settings where nothing more is kept."""
        state = before.state if before.dropped else self.snapshots.load(before)
        self._restore(state, time, "back after a failure")

    def keep_recent(self) -> None:
        """Takes a snapshot by itself when it is time; the first is the start."""
        model = self._training.model
        if not has_variables(model) or not self.snapshots.memory_bytes:
            return
        if not self.snapshots.can_hold(size := size_of(model)):
            raise MemoryError(
                f"a state of this training takes {size >> 20} MiB, snapshot_memory is "
                f"{self.snapshots.memory_bytes >> 20} MiB"
            )
        if not any(one.kind == "start" for one in self.snapshots.kept):
            self.take("start", name="start")
        elif self.snapshots.due(clock.monotonic()):
            self.take("periodic")

    def revert(self, settings: Settings, time: float, reason: str) -> Outcome:
        """Sets back what a change set; the weights stay as they are by now."""
        model = self._training.model
        with current_backend().state(model):
            told = tell_settings(model)
            optimizers = settings.get("optimizer")
            notes = going_back_says(current_optimizer(model), optimizers.optimizer) if optimizers else []
            write_settings(model, settings, self._rebuild(time, reason))
            before, after = differences(told, tell_settings(model))
        self._announce_optimizer(time)
        return Outcome(before=before, after=after, reason="; ".join(notes))

    def take_back(self, change: Change, time: float) -> tuple[Outcome, list[Change]]:
        """The training as it was just before a change; returns the changes that this took back, it first.

        Raises:
            Refused: the state before it is no longer kept.
        """
        if change not in self.done:
            raise Refused(f"the state before {change.text!r} is no longer kept")
        state = self.snapshots.load(change.before)
        now = self.take("change", reason=f"undo of {change.text}")
        outcome = self._go_to(state, time, f"undo of {change.text}")
        place = self.done.index(change)
        gone, self.done = self.done[place:], self.done[:place]
        for later in gone[1:]:
            self.snapshots.drop(later.before)
        self.undone.append((change, now))
        lost = now.step - state.step
        since = f" and the {lost} steps since" if lost else ""
        others = "".join(f", {later.text!r}" for later in gone[1:])
        told = Outcome(
            before=outcome.before,
            after=outcome.after,
            reason=f"took back {change.text!r}{others}{since}; {_NOT_REWOUND}",
            undoes=change.id,
            restored=state.step,
        )
        return told, gone

    # ── Commands ────────────────────────────────────────────────────────────────────────────────────

    def handlings(self) -> Handlings:
        """Those of going back."""
        return {
            commands.TakeSnapshot: Handling(carry_out=self._snapshot, plan=self._plan_snapshot),
            commands.Rollback: Handling(
                carry_out=self._rollback,
                plan=self._plan_rollback,
                subjects=frozenset({"rate", "optimizer", "layers", "weights", "loss"}),
            ),
            commands.Undo: Handling(carry_out=self._undo, plan=self._plan_undo),
            commands.Redo: Handling(carry_out=self._redo, plan=self._plan_redo),
        }

    def _snapshot(self, training: Training, instruction: commands.TakeSnapshot, time: float) -> Outcome:
        if not self.snapshots.memory_bytes:
            raise Refused("this run keeps no snapshots (snapshot_memory=0)")
        kept = self.take("named", name=instruction.name or f"step-{training.step}")
        if kept.dropped:
            raise Refused(f"the snapshot takes {kept.nbytes >> 20} MiB and could not be kept on disk either")
        where = " on disk" if kept.file is not None else ""
        return Outcome(after={"snapshot": kept.name}, reason=f"{kept.nbytes / 2**20:.1f} MiB{where}")

    def _plan_snapshot(self, training: Training, instruction: commands.TakeSnapshot) -> list[PlanLine]:
        return [PlanLine(topic="does", text="keeps weights, optimizer, settings and seeds as they are now")]

    def find(self, to: str, *, later: bool = False) -> Snapshot:
        """What a command's `start`, `last`, step or name stands for; `later`: the command waits for its moment.

        Raises:
            Refused: there is none such, or the step has not come yet.
        """
        step = self._training.step
        if to.isdecimal() and int(to) > step and not later:
            raise Refused(
                f"step {to} has not come yet, the next one is step {step}; possible: {self.snapshots.possible()}"
            )
        return self.snapshots.find(to, but=self._begun)

    def go_back(self, to: str, time: float) -> tuple[int, str]:
        """Back to a snapshot, as the first part of a change; returns its step and what is to be said of it.

        Raises:
            Refused: there is none such.
        """
        target = self.find(to)
        self._restore(self.snapshots.load(target), time, f"rollback to step {target.step}")
        return target.step, f"from the state before step {target.step}; {_NOT_REWOUND}"

    def _rollback(self, training: Training, instruction: commands.Rollback, time: float) -> Outcome:
        target = self.find(instruction.to)
        outcome = self._go_to(self.snapshots.load(target), time, f"rollback to step {target.step}")
        reason = f"the training is as it was before step {target.step}; {_NOT_REWOUND}"
        return replace(outcome, reason=reason, restored=target.step)

    def _plan_rollback(self, training: Training, instruction: commands.Rollback) -> list[PlanLine]:
        return self.plan_going_back(instruction.to)

    def plan_going_back(self, to: str, *, later: bool = False) -> list[PlanLine]:
        """What going back to a snapshot would do. Raises Refused when there is none such."""
        target = self.find(to, later=later)
        lost = self._training.step - target.step
        return [
            PlanLine(topic="does", text=f"the training as it was before step {target.step}, bit for bit"),
            PlanLine(topic="resets", text=f"what was learned in {lost} steps since; `undo` brings it back"),
            *self._plan_settings(target.state.settings),
            PlanLine(topic="warning", text=_NOT_REWOUND),
        ]

    def _undo(self, training: Training, instruction: commands.Undo, time: float) -> Outcome:
        change = self._last_done()
        if instruction.settings:
            outcome = self.revert(change.settings, time, f"undo settings of {change.text}")
            self.done.pop()
            self.snapshots.drop(change.before)
            self._forget_undone()
            return Outcome(
                before=outcome.before,
                after=outcome.after,
                reason="; ".join(
                    part
                    for part in (f"took back what {change.text!r} had set; the weights stay", outcome.reason)
                    if part
                ),
                undoes=change.id,
            )
        outcome, _ = self.take_back(change, time)
        return outcome

    def _plan_undo(self, training: Training, instruction: commands.Undo) -> list[PlanLine]:
        change = self._last_done()
        lines = [PlanLine(topic="does", text=f"takes back {change.text!r} of step {change.before.step}")]
        if not instruction.settings:
            self.snapshots.load(change.before)
            lost = training.step - change.before.step
            lines.append(PlanLine(topic="resets", text=f"what was learned in {lost} steps since"))
        return lines + self._plan_settings(change.settings)

    def _redo(self, training: Training, instruction: commands.Redo, time: float) -> Outcome:
        change, after = self._last_undone()
        outcome = self._go_to(self.snapshots.load(after), time, f"redo of {change.text}")
        self.undone.pop()
        self.done.append(change)
        self.snapshots.drop(after)
        return Outcome(
            before=outcome.before,
            after=outcome.after,
            reason=f"{change.text!r} is in effect again, with the weights of step {after.step}; {_NOT_REWOUND}",
            restored=after.step,
        )

    def _plan_redo(self, training: Training, instruction: commands.Redo) -> list[PlanLine]:
        change, after = self._last_undone()
        return [
            PlanLine(topic="does", text=f"brings back {change.text!r} with the weights of step {after.step}"),
            *self._plan_settings(after.state.settings),
        ]

    def _forget_undone(self) -> None:
        """Another change was made: what was undone before does not fit it any more."""
        for change, after in self.undone:
            self.snapshots.drop(change.before)
            self.snapshots.drop(after)
        if self.undone:
            self.undone.clear()
            self._announce(0.0)

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _last_done(self) -> Change:
        if not self.done:
            raise Refused(
                f"nothing to undo; `rollback` goes back to a snapshot, possible: {self.snapshots.possible()}"
            )
        return self.done[-1]

    def _last_undone(self) -> tuple[Change, Snapshot]:
        if not self.undone:
            raise Refused("nothing to redo: no `undo` since the last change")
        return self.undone[-1]

    def _go_to(self, state: State, time: float, reason: str) -> Outcome:
        """The training as it was then; the answer tells the settings that are others now."""
        model = self._training.model
        with current_backend().state(model):
            told = tell_settings(model)
            self._restore(state, time, reason)
            before, after = differences(told, tell_settings(model))
        self._announce_optimizer(time)
        return Outcome(before=before, after=after)

    def _restore(self, state: State, time: float, reason: str) -> None:
        restore(self._training.model, state, self._rebuild(time, reason))

    def _rebuild(self, time: float, reason: str) -> Callable[[Callable[[], None]], None]:
        return lambda change: retrace(self._training, change, time, reason)

    def _plan_settings(self, wanted: Settings) -> list[PlanLine]:
        model = self._training.model
        with current_backend().state(model):
            different = sorted(changed(read_settings(model), wanted))
            found = settings_of(model)
        named = [name for name in different if not isinstance(found[name], TrainedSetting)]
        lines = []
        if named:
            lines.append(PlanLine(topic="does", text=f"sets back {', '.join(named)}"))
        if set(different) - {"learning_rate"}:
            lines.append(PlanLine(topic="recompiles", text="the train step is traced anew"))
        return lines

    def _announce(self, seconds: float) -> None:
        training = self._training
        event = SnapshotsChanged(
            step=training.step, time=clock.time(), snapshots=self.snapshots.described(), seconds=seconds
        )
        training.emit(event)

    def _announce_optimizer(self, time: float) -> None:
        described = describe_optimizer(self._training.model, self._training.callbacks)
        if described is not None:
            self._training.emit(OptimizerChanged(step=self._training.step, time=time, optimizer=described))
