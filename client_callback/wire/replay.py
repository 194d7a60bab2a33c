"""The commands of a recording, so that they can be given to another run at the same steps.

`MonitorCallback(replay=…)` gives each at its step, `unstuck replay-commands` sends them ahead with `at step N`. What
was refused or changed nothing is not repeated, nor what a timer did by itself: its command is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from client_callback.wire import commands
from client_callback.wire.commands import SUFFIXES, Order
from client_callback.wire.protocol import AnyEvent, Reply, RunDescription, Timer, TimersChanged
from client_callback.wire.recording import JournalReader

_SILENT = commands.TakeControl | commands.ReleaseControl | commands.ListTimers
"""What changes nothing of a training and is of no use to another."""
_HOLDING = commands.Pause | commands.Resume


class Repeated(NamedTuple):
    """One command to give to another run."""

    step: int
    """How many steps must have been completed."""
    text: str | None
    """To be given at that step. `None`: it comes by itself there."""
    ahead: str | None
    """To be given at any time before it. `None`: there is no such command."""
    why: str = ""
    """Why there is none; empty when none is needed."""


class Replay(NamedTuple):
    """What was done to one run, in the order in which it was done."""

    name: str
    """Of the run."""
    commands: tuple[Repeated, ...]
    left_out: tuple[str, ...]
    """What cannot be repeated by anybody, each with its step and the reason."""


def read_replay(path: Path) -> Replay:
    """The commands of the recording at `path`. Raises RecordingError when it is none."""
    with JournalReader(path) as reader:
        return replay_of(reader.run, (event for _, event in reader.events()))


def replay_of(run: RunDescription, events: Iterable[AnyEvent]) -> Replay:
    """The commands among a run's events."""
    return _Collection(run, events).replay()


def own_answers(replies: Iterable[Reply]) -> tuple[list[Reply], list[Reply]]:
    """(answers that commands got, answers that tell what was done in their name later), in the order of their steps.

    The latter's ids are a command's own and what was done: a timer's `.1`, `.end` and `.undo`, the `.1` of what a
    trial adopted, the `-1`, `-2`, … of `reduce-on-plateau`.
    """
    own: list[Reply] = []
    later: list[Reply] = []
    ids: set[str] = set()
    for reply in sorted(replies, key=lambda reply: (reply.step, reply.time)):
        bases = {reply.id.rpartition(sign)[0] for sign in ".-"}
        (later if ids & bases else own).append(reply)
        ids.add(reply.id)
    return own, later


def changed_training(reply: Reply) -> bool:
    """Whether the training is another since; what a step showed to be without effect may still have been set."""
    return reply.status == "applied" or (reply.status == "ineffective" and reply.before != reply.after)


class _Collection:
    """Gathers the commands of one run."""

    def __init__(self, run: RunDescription, events: Iterable[AnyEvent]) -> None:
        self._run = run
        replies: list[Reply] = []
        self._cancelled: dict[int, Timer] = {}
        """Timers that a command took away, as they were."""
        timers: dict[int, Timer] = {}
        for event in events:
            if isinstance(event, TimersChanged):
                gone = timers.keys() - {timer.number for timer in event.timers}
                if event.reason.startswith("cancel"):
                    self._cancelled.update({number: timers[number] for number in gone})
                timers = {timer.number: timer for timer in event.timers}
            elif isinstance(event, Reply):
                replies.append(event)
        self._replies, later = own_answers(replies)
        self._later = {reply.id: reply for reply in later}
        """What was done in the name of a command: its id and a suffix → the answer."""
        self._found: list[Repeated] = []
        self._left_out: list[str] = []
        self._names = {"start"}
        """Of snapshots that the other run will have too."""

    def replay(self) -> Replay:
        """Those that can be repeated, and the others."""
        for reply in self._replies:
            waits = reply.status == "planned" and reply.timer is not None
            if waits or changed_training(reply):
                self._take(reply)
            adopted = self._later.get(f"{reply.id}.1")
            if adopted is not None and adopted.timer is None and changed_training(adopted):
                # A trial that is repeated adopts by itself; where it cannot be, this can.
                self._found.append(Repeated(adopted.step, None, f"{adopted.text} at step {adopted.step}"))
        self._found.sort(key=lambda command: command.step)
        return Replay(self._run.name, tuple(self._found), tuple(self._left_out))

    def _take(self, reply: Reply) -> None:
        try:
            order = commands.parse(reply.text, self._run.actions)
        except commands.CommandError as error:
            self._leave_out(reply, str(error))
            return
        instruction = order.instruction
        if order.dry_run or isinstance(instruction, _SILENT):
            return
        if isinstance(instruction, _HOLDING):
            self._leave_out(reply, "it changes nothing of the training, and would hold it")
        elif isinstance(instruction, commands.Rollback) and order.starts is None:
            self._take_rollback(reply, instruction)
        elif isinstance(instruction, commands.CancelTimer):
            self._found.append(Repeated(reply.step, reply.text, None))  # what it did is worked in above
        else:
            self._take_change(reply, order)

    def _take_rollback(self, reply: Reply, instruction: commands.Rollback) -> None:
        to = self._kept(reply, instruction.to)
        if to is not None:
            self._found.append(Repeated(reply.step, f"rollback {to}", f"rollback {to} at step {reply.step}"))

    def _kept(self, reply: Reply, to: str) -> str | None:
        """What the other run calls the same state; one that only this run happened to keep is kept there too."""
        if to in self._names:
            return to
        answers = [reply, self._later.get(f"{reply.id}.1", reply)]
        step = next((found for one in answers if (found := one.restored) is not None), None)
        if step is None:
            self._leave_out(reply, "the recording does not tell which step it went back to")
            return None
        kept = Repeated(step, "snapshot", f"snapshot at step {step}")
        if kept not in self._found:
            self._found.insert(0, kept)  # before whatever else was done at that step
        return str(step)

    def _take_change(self, reply: Reply, order: Order) -> None:
        text = reply.text
        if isinstance(order.instruction, commands.TakeSnapshot) and order.instruction.name:
            self._names.add(order.instruction.name)
        if isinstance(order.instruction, commands.Checkpoint) and order.instruction.path:
            text = _without(text, keep=1)  # never over the file of the run that is repeated
        if order.origin:
            to = self._kept(reply, order.origin)
            if to is None:
                return
            text = f"{_without(text, 'from')} from {to}"
        self._found.append(self._repeated(reply, order, text))

    def _repeated(self, reply: Reply, order: Order, text: str) -> Repeated:
        """With what became of its timer worked into what can be given beforehand."""
        starts = order.starts
        timer = self._cancelled.get(reply.timer) if reply.timer is not None else None
        ahead: str | None = text
        why = ""
        if timer is not None and timer.state == "waiting":
            return Repeated(reply.step, text, None, "it was cancelled before its moment came")
        if timer is not None:
            ahead = _without(text, "for", "unless")
        if isinstance(starts, commands.OnPlateau):
            began = self._later.get(f"{reply.id}.1")
            ahead = f"{_without(text, 'when')} at step {began.step}" if began else None
            why = "" if began else "no plateau came"
        elif starts is None and not isinstance(order.instruction, commands.Extend):
            ahead = f"{ahead} at step {reply.step}"
            if not _waits(ahead, self._run.actions):
                ahead, why = None, "it cannot be told to wait for a step"
        return Repeated(reply.step, text, ahead, why)

    def _leave_out(self, reply: Reply, why: str) -> None:
        self._left_out.append(f"step {reply.step}: {reply.text}: {why}")


def _waits(text: str, actions: Sequence[str]) -> bool:
    """Whether it is a command whose moment was understood; a note would take the moment for its own text."""
    try:
        return isinstance(commands.parse(text, actions).starts, commands.AtStep)
    except commands.CommandError:
        return False


def _without(text: str, *suffixes: str, keep: int | None = None) -> str:
    """The command without some of its suffixes; `keep`: with only so many words before the first of them."""
    words = shlex.split(text)
    marks = [place for place, word in enumerate(words) if place and word in SUFFIXES] + [len(words)]
    kept = words[: marks[0] if keep is None else min(keep, marks[0])]
    for begin, end in pairwise(marks):
        if words[begin] not in suffixes:
            kept += words[begin:end]
    return shlex.join(kept)
