"""The sender thread between a training and the world: it owns the journal and every socket.

The callback hands events over with `send` and picks commands up with `take_commands`; both cost about a
microsecond, never block and never raise. The thread writes the journal first and publishes after, so the
stream never shows what the recording lacks. Nothing here knows Keras, nor what a command does.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from client_callback.control import SILENCE_S, Control
from client_callback.resources import ResourceMonitor
from client_callback.serving import Server, check_bind
from client_callback.tail import Tail
from client_callback.wire import folders, protocol, runs
from client_callback.wire.bell import Bell
from client_callback.wire.journal import JournalWriter
from client_callback.wire.protocol import (
    Columnar,
    Command,
    ControlChanged,
    Event,
    Frame,
    Problem,
    Reply,
    Resources,
    RunDescription,
    RunEnded,
    Samples,
    StateChanged,
    Steps,
    resources_event,
)

__all__ = ["Link", "check_bind"]

QUEUE_BYTES = 64 << 20
"""How much may wait for a slow disk before steps are dropped."""
_IMPORTANT_BYTES = 4 << 20
"""Room beyond it for everything that is not columns of numbers: replies, epochs, the end."""
_DRAIN_S = 0.12
"""How often the queue is emptied. Every wake-up takes a core and the interpreter's lock away from the training for
a tenth of a millisecond or more, so steps wait for this one; what `_URGENT` lists does not."""
_URGENT = (Reply, StateChanged, ControlChanged, Problem, RunEnded)
"""What somebody may be waiting for: it is written and sent at once."""
UNNAMED = "somebody"
"""Who sent a command that does not say."""
_HEAL_S = 1.0
_READ_S = 1.0
"""Between two readings of what the machine does."""
_FIRST_READ_S = 0.2
_REST_S = 1.5
"""How long the end of a run waits for a recording that another program has locked."""
_TOLD_S = 1.0


class Link:
    """Records and publishes one run; whoever owns it sends RunStarted first and RunEnded last.

    Whatever cannot be had (a full disk, a busy port, a missing permission) is warned of once, told as a
    Problem, and done without. `bind` may be anything that `check_bind` accepts. `on_tick` is called from the
    thread at least eight times a second. `resources` is read there about once a second: its numbers are recorded too.
    """

    def __init__(
        self,
        run: RunDescription,
        *,
        directory: Path | None = None,
        record: bool = True,
        bind: str | None = None,
        on_tick: Callable[[], None] = lambda: None,
        resources: ResourceMonitor | None = None,
    ) -> None:
        self.recording: Path | None = None
        self.endpoint: str | None = None
        self._run = run
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._queued_bytes = 0
        self._dropped: list[int] = []
        self._problems: list[str] = []
        self._step = 0
        self._ended = False
        self._commands: list[Command] = []
        self.commands_waiting = False
        """Whether there is a command to take."""
        self._command_came = threading.Event()
        self._closing = threading.Event()
        self._bell = Bell()
        self._on_tick = on_tick
        self._resources = resources
        self._readings = 0
        self._read_names: dict[str, float] = {}
        self._next_read = time.monotonic() + _FIRST_READ_S
        self._abandoned = ""
        self._told_refused = 0
        self._run_file: runs.RunFile | None = None
        self._next_heal = 0.0
        self._next_told = 0.0
        self._control = Control(run, silence_s=SILENCE_S)
        self._history: JournalWriter | Tail = self._open_history(directory) if record else Tail(0)
        self._server = self._open_server(bind)
        self._thread = threading.Thread(target=self._work, name="unstuck link", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # ── Called by the training ────────────────────────────────────────────────────────────────────

    def send(self, event: Event) -> None:
        """Hands the event over. In a forked child, and once closed, it does nothing."""
        if self._closing.is_set() or os.getpid() != self._pid:
            return
        size, limit = _queue_bytes(event)
        with self._lock:
            if self._queued_bytes + size > limit:
                self._dropped.append(event.step)
                return
            self._events.append(event)
            self._queued_bytes += size
        if isinstance(event, _URGENT):
            self._bell.ring()

    def take_commands(self) -> list[Command]:
        """The commands that came since the last call, in order."""
        if not self._commands:
            return []
        with self._lock:
            taken, self._commands = self._commands, []
            self.commands_waiting = False
            self._command_came.clear()
        return taken

    @property
    def listening(self) -> bool:
        """Whether commands can still arrive."""
        return self._server is not None and self._thread.is_alive()

    def wait_for_command(self, timeout_s: float) -> bool:
        """Waits until there is a command to take, at most `timeout_s`; whether there is."""
        return self._command_came.wait(timeout_s)

    def abandon(self, reason: str, last: Callable[[], None]) -> None:
        """Has the thread call `last` and end the run as interrupted.

        It only leaves word, and so may be called from a finalizer.
        """
        self._on_tick = last
        self._abandoned = reason

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes and sends what is left, then takes the run off the list. May be called again."""
        if os.getpid() != self._pid:
            return
        self._closing.set()
        self._bell.ring()
        atexit.unregister(self.close)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    # ── Opening ───────────────────────────────────────────────────────────────────────────────────

    def _open_history(self, directory: Path | None) -> JournalWriter | Tail:
        try:
            folder = directory.expanduser().absolute() if directory else folders.recordings_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folders.recording_path(folder, self._run.name, self._run.run_id, self._run.started_at)
            writer = JournalWriter(path, self._run)
        except (OSError, sqlite3.Error) as error:
            self._trouble(f"this run is not recorded: {error}")
            return Tail(0)
        self.recording = path
        return writer

    def _open_server(self, bind: str | None) -> Server | None:
        try:
            server = Server(
                self._run,
                bind=bind,
                recording=str(self.recording or ""),
                history=lambda: self._history,
                on_command=self._take_command,
                on_present=self._control.hear,
                bell=self._bell.fileno(),
            )
        except (OSError, ValueError, zmq.ZMQError) as error:
            where = f" at {bind}" if bind else ""
            self._trouble(f"this run cannot be watched or steered live{where}: {error}")
            return None
        self.endpoint = server.control
        self._run_file = runs.RunFile(
            run_id=self._run.run_id,
            name=self._run.name,
            pid=self._pid,
            host=runs.host_name(),
            user=runs.user_name(),
            started_at=self._run.started_at,
            stream=server.stream,
            control=server.control,
            recording=str(self.recording or ""),
            server_key=server.server_key,
        )
        try:
            runs.write_run_file(self._run_file)
        except OSError as error:
            self._trouble(f"this run is not listed by `unstuck runs`: {error}")
            self._run_file = None
        return server

    # ── The thread ────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                abandoned = self._abandoned
                self._tick()
                self._read_resources()
                self._drain()
                self._serve()
                if abandoned:
                    ended = RunEnded(
                        outcome="interrupted", reason=abandoned, step=self._step, time=time.time()
                    )
                    self.send(ended)
                    self._closing.set()
            self._drain_the_rest()
        except Exception as error:  # noqa: BLE001  (a thread's edge: training goes on, the error is told)
            self._trouble(f"recording and live watching ended early: {type(error).__name__}: {error}")
        finally:
            self._closing.set()
            self._shut()

    def _tick(self) -> None:
        try:
            self._on_tick()
        except Exception as error:  # noqa: BLE001  (the caller's code; the thread must go on)
            self._on_tick = lambda: None
            self._trouble(f"steps may be recorded late while data stalls: {type(error).__name__}: {error}")

    def _read_resources(self) -> None:
        """Queues one reading if it is time for one; the run's first and last frames stay what they are."""
        now = time.monotonic()
        if self._resources is None or now < self._next_read or self._ended or not self._history.last_seq:
            return
        self._next_read = now + _READ_S
        values = self._resources.read()
        if not values:
            return
        # A name that was read once stays, so that readings go on having the same columns.
        self._read_names.update(dict.fromkeys(values, math.nan))
        event = resources_event(
            self._readings, {**self._read_names, **values}, step=self._step, time=time.time()
        )
        size, limit = _queue_bytes(event)
        with self._lock:
            last = self._events[-1] if self._events else None
            if self._queued_bytes + size <= limit and not isinstance(last, RunEnded):
                self._events.append(event)
                self._queued_bytes += size
                self._readings += 1

    def _serve(self) -> None:
        if self._server is None:
            self._bell.wait(_DRAIN_S)
            self._bell.hush()
            return
        self._server.serve(_DRAIN_S)
        self._bell.hush()
        changed = self._control.look(self._step)
        if changed:
            self.send(changed)
        if self._server.refused >= max(1, 10 * self._told_refused):
            self._told_refused = self._server.refused
            self._problems.append(
                f"{self._server.refused} requests that are no valid messages were refused; "
                f"the last: {self._server.last_refusal}"
            )
        if time.monotonic() >= self._next_heal:
            self._next_heal = time.monotonic() + _HEAL_S
            self._heal(self._server)

    def _heal(self, server: Server) -> None:
        """A runtime folder can vanish under a running process, for instance when its user logs out."""
        try:
            server.heal()
            if self._run_file:
                runs.restore_run_file(self._run_file)
        except (OSError, zmq.ZMQError):
            return  # the folder cannot be made just now; tried again in a second

    def _shut(self) -> None:
        if self._run_file:
            with contextlib.suppress(OSError):  # found stale and removed by the next `list_runs`
                runs.remove_run_file(self._run_file.run_id)
        if self._server:
            self._server.close("the run ended before the command was applied")
        self._bell.close()
        if self._resources:
            self._resources.close()
        try:
            self._history.close()
        except sqlite3.Error as error:
            self._trouble(f"the recording was not closed properly: {error}")

    def _drain(self) -> None:
        with self._lock:
            events, self._events = self._events, []
            taken_bytes = self._queued_bytes
        ending = self._closing.is_set() or any(isinstance(event, RunEnded) for event in events)
        self._tell_dropped(last_chance=ending)
        if not self._ended and (events or (self._problems and self._history.last_seq)):
            try:
                self._pass_on(events)
            except _JournalBusyError:
                with self._lock:
                    self._events[:0] = events
                return
        with self._lock:
            self._queued_bytes -= taken_bytes

    def _tell_dropped(self, *, last_chance: bool) -> None:
        if not self._dropped or (time.monotonic() < self._next_told and not last_chance):
            return
        self._next_told = time.monotonic() + _TOLD_S
        with self._lock:
            dropped, self._dropped = self._dropped, []
        self._problems.append(
            f"{len(dropped)} events between steps {min(dropped)} and {max(dropped)} were lost: "
            "the disk could not keep up"
        )

    def _drain_the_rest(self) -> None:
        deadline = time.monotonic() + _REST_S
        self._drain()
        while self._events and time.monotonic() < deadline:
            time.sleep(_DRAIN_S)
            self._drain()

    def _pass_on(self, events: list[Event]) -> None:
        self._step = max([self._step, *(event.step for event in events)])
        events[:] = [fitting for event in events if (fitting := self._fitting(event)) is not None]
        frames = self._keep(events)
        if self._server:
            self._server.publish(frames)
            for event in events:
                if isinstance(event, Reply):
                    self._server.answer(event)
        self._ended = any(isinstance(event, RunEnded) for event in events)

    def _keep(self, events: list[Event]) -> list[Frame]:
        self._tell_problems(events)
        try:
            return self._history.append(events)
        except sqlite3.Error as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise _JournalBusyError from error
            self._trouble(f"from step {self._step} on this run is no longer recorded: {error}")
        assert isinstance(self._history, JournalWriter)  # noqa: S101  (only SQLite raises its errors)
        self._history = Tail(self._history.last_seq, earlier=self._history)
        self._tell_problems(events)
        return self._history.append(events)

    def _tell_problems(self, events: list[Event]) -> None:
        """Puts the problems found so far before the events, but never before RunStarted."""
        at = 0 if self._history.last_seq else 1
        if len(events) < at:
            return
        told = [Problem(what=what, step=self._step, time=time.time()) for what in self._problems]
        self._problems = []
        events[at:at] = told

    def _fitting(self, event: Event) -> Event | None:
        """The event if a reader will accept it; otherwise its loss is told, and a reply says so itself."""
        if isinstance(event, Columnar):
            return event
        try:
            protocol.decode_event(protocol.encode(event))
        except (TypeError, ValueError, OverflowError) as error:
            reason = f"a {type(event).__name__} could not be recorded: {error}"[:2_000]
            if isinstance(event, Reply):
                return Reply(
                    id=event.id[:64],
                    text="",
                    who=event.who[:1_000],
                    status="failed",
                    reason=reason,
                    step=event.step,
                    time=event.time,
                )
            self._problems.append(reason)
            return None
        return event

    def _take_command(self, command: Command) -> None:
        """Queues the command for the training, or answers it here."""
        command = msgspec.structs.replace(command, who=command.who or UNNAMED)
        if self._ended and self._server:
            self._server.answer(self._refusal(command, "the run has ended"))
            return
        decision = self._control.decide(command, self._step)
        for event in decision.events:
            self.send(event)
        if not decision.passes:
            return
        with self._lock:
            self._commands.append(command)
            self.commands_waiting = True
            self._command_came.set()

    def _refusal(self, command: Command, reason: str) -> Reply:
        return Reply(
            id=command.id,
            text=command.text,
            who=command.who,
            status="refused",
            reason=reason,
            step=self._step,
            time=time.time(),
        )

    def _trouble(self, what: str) -> None:
        self._problems.append(what)
        message = f"unstuck: {what}. Training goes on."
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:  # warnings are errors here; training must not fail for it
            print(message, file=sys.stderr)  # noqa: T201


class _JournalBusyError(Exception):
    """Another program holds the recording's lock; the events are tried again."""


def _queue_bytes(event: Event) -> tuple[int, int]:
    """What the event weighs in the queue, and how full the queue may become with it."""
    if isinstance(event, Steps):
        return 500 + len(event.times) + sum(map(len, event.columns.values())), QUEUE_BYTES
    if isinstance(event, Samples):
        return 500 + len(event.steps) + sum(map(len, event.columns.values())), QUEUE_BYTES
    return 1_000, QUEUE_BYTES + (0 if isinstance(event, Resources) else _IMPORTANT_BYTES)
