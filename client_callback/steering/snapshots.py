"""The states of a training that can be gone back to, within a budget of host memory and then of disk.

Kept are the start, what the user named, the state before each change (for `undo`), and recent ones taken now and
then, the fewer the longer ago. Called by `history`, between batches on the training's thread.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from client_callback.steering.state import State, Values
from client_callback.steering.training import Refused
from client_callback.wire import runs
from client_callback.wire.protocol import SnapshotKept

MEMORY_BYTES = 1 << 30
"""Of host memory that snapshots may take unless told otherwise."""

DISK_FACTOR = 8
"""Times as much may lie on disk."""

MOST_PERIODIC = 8
MOST_CHANGES = 32
"""How many commands can be undone."""

SHORTEST_INTERVAL_S = 10.0
COST_SHARE = 0.002
"""Of the training's time, for those taken now and then."""

Kind = Literal["start", "named", "change", "periodic"]


@dataclass(eq=False)
class Snapshot:
    """One kept state. `state.values` is empty while they lie on disk."""

    state: State
    kind: Kind
    name: str = ""
    reason: str = ""
    file: Path | None = None
    nbytes: int = 0
    dropped: bool = False
    """Whether there are only its settings: the model had no variables yet, or the budget did not hold them."""

    @property
    def step(self) -> int:
        """The step that had not been taken yet."""
        return self.state.step

    def described(self) -> SnapshotKept:
        """As an event tells it."""
        return SnapshotKept(
            step=self.step,
            name=self.name or ("start" if self.kind == "start" else ""),
            reason=self.reason,
            bytes=self.nbytes,
            on_disk=self.file is not None,
        )


class Snapshots:
    """All of them, oldest first.

    Args:
        memory_bytes: of host memory that they may take; 0 keeps settings only.
        folder: in which a folder for those on disk is made when it is needed, and removed by `close`. `None`: the
            system's folder for temporary files.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES, folder: Path | None = None) -> None:
        self.memory_bytes = memory_bytes
        self._parent = folder
        self._folder: Path | None = None
        self._files = 0
        self.kept: list[Snapshot] = []
        self._interval_s = SHORTEST_INTERVAL_S
        self._taken_at = 0.0

    def add(self, state: State, kind: Kind, *, name: str = "", reason: str = "") -> Snapshot:
        """Keeps a state; one of the same name goes. What the budget no longer holds goes to disk, then away."""
        self.kept = [one for one in self.kept if not (name and one.name == name) or self._forget(one)]
        snapshot = Snapshot(state, kind, name, reason, nbytes=state.nbytes, dropped=not state.values)
        self.kept.append(snapshot)
        self._thin()
        self._fit_budget()
        return snapshot

    def can_hold(self, nbytes: int) -> bool:
        """Whether one more state of that size could be kept at all."""
        return bool(self.memory_bytes) and nbytes <= (1 + DISK_FACTOR) * self.memory_bytes

    def find(self, to: str, but: Snapshot | None = None) -> Snapshot:
        """`start`, `last`, a name, or the newest at or before a step; never `but`.

        Raises:
            Refused: there is none such; the text lists those there are.
        """
        usable = [one for one in self.kept if not one.dropped and one is not but]
        found: list[Snapshot] = []
        if to == "start":
            found = [one for one in usable if one.kind == "start"]
        elif to == "last":
            found = usable[-1:]
        elif to.isdecimal():
            found = sorted((one for one in usable if one.step <= int(to)), key=lambda one: one.step)
        else:
            found = [one for one in usable if one.name == to]
        if not found:
            raise Refused(f"no snapshot {to!r}; possible: {self.possible()}")
        return found[-1]

    def possible(self) -> str:
        """What `find` takes, in words."""
        usable = [one for one in self.kept if not one.dropped]
        if not usable:
            return "none, no snapshot has been kept yet" if self.memory_bytes else "none (snapshot_memory=0)"
        words = [one.name or ("start" if one.kind == "start" else str(one.step)) for one in usable]
        return ", ".join(dict.fromkeys(["last", *words]))

    def load(self, snapshot: Snapshot) -> State:
        """The state with its values, from wherever they lie.

        Raises:
            Refused: they are gone.
        """
        if snapshot.dropped:
            raise Refused(
                f"the weights of step {snapshot.step} are not kept (snapshot_memory holds "
                f"{self.memory_bytes >> 20} MiB); `undo settings` sets back what was set"
            )
        if snapshot.file is None:
            return snapshot.state
        try:
            return replace(snapshot.state, values=_read(snapshot.file, snapshot.state))
        except OSError as error:
            raise Refused(f"the snapshot of step {snapshot.step} cannot be read back: {error}") from error

    def drop(self, snapshot: Snapshot) -> None:
        """It is needed no longer."""
        if snapshot in self.kept:
            self.kept.remove(snapshot)
            self._forget(snapshot)

    def due(self, now: float) -> bool:
        """Whether it is time for another one by itself; `now` in seconds of any clock that does not jump."""
        return bool(self.memory_bytes) and now - self._taken_at >= self._interval_s

    def note_cost(self, seconds: float, now: float) -> None:
        """What the one just taken cost; the more, the longer until the next."""
        self._taken_at = now
        self._interval_s = max(SHORTEST_INTERVAL_S, seconds / COST_SHARE)

    def described(self) -> tuple[SnapshotKept, ...]:
        """Those that can be gone back to, as an event tells them."""
        return tuple(one.described() for one in self.kept if not one.dropped)

    def close(self) -> None:
        """Removes what lies on disk."""
        self.kept.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _thin(self) -> None:
        """Of those taken now and then, the one goes whose neighbours are closest for their age."""
        while len(periodic := [one for one in self.kept if one.kind == "periodic"]) > MOST_PERIODIC:
            newest = periodic[-1].step
            gaps = [
                (after.step - before.step) / (newest - one.step + 1)
                for before, one, after in zip(periodic, periodic[1:], periodic[2:], strict=False)
            ]
            self.drop(periodic[1 + int(np.argmin(gaps))])

    def _fit_budget(self) -> None:
        if not self.memory_bytes:
            for one in self.kept:
                self._drop_values(one)
            return
        for one in self.kept:
            if self._in_memory() <= self.memory_bytes:
                break
            self._to_disk(one)
        for kind in ("periodic", "change"):
            for one in [one for one in self.kept if one.kind == kind and one.file is not None]:
                if self._on_disk() > DISK_FACTOR * self.memory_bytes:
                    self._drop_values(one)
                    if kind == "periodic":
                        self.kept.remove(one)

    def _in_memory(self) -> int:
        return sum(one.nbytes for one in self.kept if one.file is None and not one.dropped)

    def _on_disk(self) -> int:
        return sum(one.nbytes for one in self.kept if one.file is not None)

    def _to_disk(self, snapshot: Snapshot) -> None:
        if snapshot.file is not None or snapshot.dropped:
            return
        try:
            if self._folder is None:
                self._folder = _make_folder(self._parent)
            self._files += 1
            file = self._folder / f"{self._files}.values"
            _write(file, snapshot.state)
        except OSError:
            self._drop_values(snapshot)
            return
        snapshot.file = file
        snapshot.state = replace(snapshot.state, values=_shapes_only(snapshot.state.values))

    def _drop_values(self, snapshot: Snapshot) -> None:
        self._forget(snapshot)
        snapshot.dropped = True
        snapshot.state = replace(snapshot.state, values={})

    def _forget(self, snapshot: Snapshot) -> bool:
        """False, so that it can stand in a filter."""
        if snapshot.file is not None:
            snapshot.file.unlink(missing_ok=True)
            snapshot.file = None
        return False


def _make_folder(parent: Path | None) -> Path:
    """For this process alone; what killed ones of this machine have left behind is removed."""
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"snapshots-{runs.host_name()}-"
    for left in parent.glob(f"{prefix}*-*"):
        pid = left.name.removeprefix(prefix).split("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def _shapes_only(values: Values) -> Values:
    """Arrays of no memory that still tell shapes and types: one element, repeated."""
    return {key: np.broadcast_to(np.empty((), one.dtype), one.shape) for key, one in values.items()}


def _write(file: Path, state: State) -> None:
    with file.open("wb") as out:
        for value in state.values.values():
            out.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def _read(file: Path, state: State) -> dict[int, Any]:
    found: dict[int, Any] = {}
    with file.open("rb") as source:
        for key, shape in state.values.items():
            count = shape.size * shape.dtype.itemsize
            data = source.read(count)
            if len(data) < count:
                raise OSError(f"{file} ends early")
            found[key] = np.frombuffer(data, shape.dtype).reshape(shape.shape)
    return found
