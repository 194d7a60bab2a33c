"""A run that is being trained now: its live stream, and its recording where the stream has holes.

One thread owns the sockets: it subscribes, asks for what came before, and asks again whenever the numbers
show a hole, so that a monitor that joined late, slept or lost the line ends up with the journal's events.
When the training is gone it reads the rest from the recording. Nothing here draws.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from client_callback.wire import protocol, runs, sockets
from client_callback.wire.bell import Bell
from client_callback.wire.commands import CommandError
from client_callback.wire.protocol import AnyEvent, Frame, Reply
from client_callback.wire.recording import JournalReader, RecordingError
from client_callback.wire.runs import RunFile
from monitor.outgoing import new_command, new_id, sender, takes_long
from monitor.sources.source import Order, Update

ANSWER_TIMEOUT_S = 30.0
"""After so long without an answer a command counts as failed; one that comes later is shown all the same."""
_LONG_ANSWER_S = 1_800.0
"""The same for what keeps the training itself busy, such as a trial."""
_BUFFER_BYTES = 32 << 20
_POLL_S = 0.1
"""How often it is looked whether something has to be asked again. What comes, and what is sent, ends the wait."""
_ASK_AGAIN_S = 2.0
_SILENT_S = 3.5
_PRESENT_S = 3.0
"""Between two signs of life while this monitor steers; after 15 s without one the run lets others steer."""
_RELEASE_S = 0.5
"""How long leaving waits until the run has heard of it."""
_FRAMES_AHEAD = 256
_MESSAGES_AT_ONCE = 200


class _Pending(msgspec.Struct):
    """A command under way."""

    command: protocol.Command
    patience_s: float
    began: float
    sent: float = 0.0
    direct: Reply | None = None
    """Answered over the control socket; the same answer is awaited on the stream."""


class LiveSource:
    """Follows one live run until it ends; commands go the other way.

    `who`: recorded with every command; by default user@host and `terminal`.
    """

    live = True

    def __init__(self, run: RunFile, who: str = "", *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.run = run
        self.client = new_id()
        """This monitor's own, as `ControlChanged.client` names whoever steers."""
        self._who = who or sender("terminal")
        self._actions: protocol.Names = ()
        """Commands that the run's script defined."""
        self._answer_timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self._ready: list[AnyEvent] = []
        self._ready_bytes = 0
        self._outbox: list[protocol.Command] = []
        self._connection = "connecting"
        self._closing = threading.Event()
        self._bell = Bell()
        """Rung when there is something to send."""
        self.finished = threading.Event()
        """Set when nothing more will come: the run ended or its process is gone."""
        # Of the thread alone:
        self._order = Order()
        self._known_seq = 0
        self._ahead: dict[int, bytes] = {}
        self._asked_at = -_ASK_AGAIN_S
        self._heard_at = time.monotonic()
        self._welcomed = False
        self._recording = run.recording
        self._pending: dict[str, _Pending] = {}
        self._steers = False
        self._present_at = 0.0
        self._thread = threading.Thread(target=self._work, name="unstuck source", daemon=True)
        self._thread.start()

    @property
    def connection(self) -> str:
        """What is wrong with the connection; empty when nothing is."""
        return self._connection

    @property
    def caught_up(self) -> bool:
        """Whether all that the run had told when it was last heard is here, or waits for the next `poll`."""
        return self._welcomed and self._order.last_seq >= self._known_seq

    def poll(self) -> Update:
        """What came since the last call. Never blocks."""
        with self._lock:
            events, self._ready = self._ready, []
            self._ready_bytes = 0
        return Update(False, events)

    def send(self, text: str) -> str:
        """Sends a command and returns its id; the Reply comes as an event. Raises CommandError."""
        command = new_command(text, self._who, client=self.client, actions=self._actions)
        if self.finished.is_set():
            raise CommandError("the run has ended; there is nothing to steer any more")
        with self._lock:
            self._outbox.append(command)
        self._bell.ring()
        return command.id

    def close(self) -> None:
        """Gives control back, then ends the thread and its sockets. May be called twice."""
        self._closing.set()
        self._bell.ring()
        self._thread.join(2.0)

    # ── The thread ────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._stream = sockets.stream_socket(context, self.run.stream, self.run.server_key)
            self._control = sockets.control_socket(context, self.run.control, self.run.server_key)
            self._ask(protocol.Hello())
            while not (self._closing.is_set() or self.finished.is_set()):
                self._turn()
            if self._steers and not self.finished.is_set():
                self._release_control()
        except Exception as error:  # noqa: BLE001  (a thread's edge: the terminal goes on and shows it)
            self._connection = f"watching stopped: {type(error).__name__}: {error}"
        finally:
            self.finished.set()
            self._give_up_commands("the run has ended")
            context.destroy(linger=0)
            self._bell.close()

    def _turn(self) -> None:
        began = time.monotonic()
        room = self._ready_bytes < _BUFFER_BYTES
        self._wait(stream=room)
        if room:
            self._hear_stream()
        self._hear_answers()
        now = time.monotonic()
        if not room or now - began > 1.0:
            self._heard_at = now  # it was this side that did not listen
        self._send_commands(now)
        if self._steers and now - self._present_at > _PRESENT_S:
            self._present_at = now
            sockets.try_send(self._control, protocol.Present(client=self.client, who=self._who))
        if room and now - self._asked_at > _ASK_AGAIN_S:
            if not self._welcomed:
                self._ask(protocol.Hello())
            elif self._known_seq > self._order.last_seq:
                self._ask(protocol.Backfill(after=self._order.last_seq))
        if now - self._heard_at > _SILENT_S:
            self._look_elsewhere(now)

    def _wait(self, *, stream: bool) -> None:
        """Until something comes or is to be sent. `stream`: whether there is room for more of that."""
        poller = zmq.Poller()
        poller.register(self._bell.fileno(), zmq.POLLIN)
        for socket in (self._control, *([self._stream] if stream else [])):
            poller.register(socket, zmq.POLLIN)
        poller.poll(int(1_000 * _POLL_S))
        self._bell.hush()

    def _ask(self, request: protocol.Request) -> None:
        self._asked_at = time.monotonic()
        sockets.try_send(self._control, request)  # whether or not it goes out: asked again in a while

    def _hear_stream(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                parts = self._stream.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(parts) == 3 and parts[0] == sockets.STREAM_FRAME and len(parts[1]) == 8:
                self._heard()
                self._take_live(int.from_bytes(parts[1], "big"), parts[2])
            elif len(parts) == 2 and parts[0] == sockets.STREAM_HEARTBEAT:
                try:
                    self._known_seq = max(self._known_seq, protocol.decode_heartbeat(parts[1]).last_seq)
                except protocol.ProtocolError:
                    continue
                self._heard()
                self._ask_for_rest()

    def _hear_answers(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                parts = self._control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                answer = protocol.decode_answer(parts[-1])
            except protocol.ProtocolError as error:
                answer = protocol.Refusal(reason=f"the answer is {error}")
            self._take_answer(answer)

    def _take_answer(self, answer: protocol.Answer) -> None:
        if isinstance(answer, protocol.Refusal):
            self._heard_at = time.monotonic()
            self._connection = answer.reason
            return
        if isinstance(answer, Reply):
            if answer.id in self._pending:
                self._pending[answer.id].direct = answer
                self._pending[answer.id].sent = time.monotonic()
            return
        if isinstance(answer, protocol.Welcome):
            if answer.run.run_id != self.run.run_id:
                self._connection = f"another run ({answer.run.name}) uses this endpoint now"
                return
            self._known_seq = max(self._known_seq, answer.last_seq)  # before: `caught_up` reads both
            self._welcomed = True
            self._actions = answer.run.actions
            self._recording = answer.recording
        else:
            for frame in answer.frames:
                self._deliver(frame)
            if not answer.frames:  # what is between is lost for good: not recorded, or damaged
                self._order.last_seq = max(self._order.last_seq, answer.last_seq)
            self._deliver_ahead()
        self._known_seq = max(self._known_seq, answer.last_seq)
        self._heard()
        self._asked_at = -_ASK_AGAIN_S
        self._ask_for_rest()

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        if self._welcomed:
            self._connection = ""

    def _ask_for_rest(self) -> None:
        due = time.monotonic() - self._asked_at > _ASK_AGAIN_S
        behind = self._known_seq > self._order.last_seq
        if self._welcomed and behind and due and self._ready_bytes < _BUFFER_BYTES:
            self._ask(protocol.Backfill(after=self._order.last_seq))

    def _take_live(self, seq: int, payload: bytes) -> None:
        self._known_seq = max(self._known_seq, seq)
        if seq > self._order.last_seq and (
            len(self._ahead) < _FRAMES_AHEAD or seq == self._order.last_seq + 1
        ):
            self._ahead[seq] = payload
        self._deliver_ahead()
        self._ask_for_rest()

    def _deliver_ahead(self) -> None:
        while (seq := self._order.last_seq + 1) in self._ahead:
            self._deliver(Frame(seq=seq, first_seq=seq, payload=self._ahead.pop(seq)))
        for seq in [seq for seq in self._ahead if seq <= self._order.last_seq]:
            del self._ahead[seq]

    def _deliver(self, frame: Frame) -> None:
        event = self._order.take(frame)
        if event is None:
            return
        if isinstance(event, Reply):
            self._pending.pop(event.id, None)
        elif isinstance(event, protocol.ControlChanged):
            self._steers = event.client == self.client
        with self._lock:
            self._ready.append(event)
            self._ready_bytes += len(frame.payload)
        if isinstance(event, protocol.RunEnded):
            self._connection = ""
            self.finished.set()

    # ── Commands ──────────────────────────────────────────────────────────────────────────────────

    def _send_commands(self, now: float) -> None:
        with self._lock:
            new, self._outbox = self._outbox, []
        for command in new:
            patience_s = max(self._answer_timeout_s, _LONG_ANSWER_S if takes_long(command) else 0.0)
            self._pending[command.id] = _Pending(command, patience_s, now, -_ASK_AGAIN_S)
        for waiting in list(self._pending.values()):
            if waiting.direct is not None and now - waiting.sent > _ASK_AGAIN_S:
                self._answer_here(waiting.direct)  # told to us alone, as by a run that is ending
            elif now - waiting.began > waiting.patience_s:
                reason = f"no answer in {waiting.patience_s:.0f} s; it may still be applied"
                self._answer_here(_failed(waiting.command, reason))
            elif waiting.direct is None and now - waiting.sent > _ASK_AGAIN_S:
                waiting.sent = now
                sockets.try_send(self._control, waiting.command)

    def _release_control(self) -> None:
        """Tells the run that this monitor goes, and waits a moment for its answer."""
        command = new_command("control release", self._who, client=self.client)
        deadline = time.monotonic() + _RELEASE_S
        sockets.try_send(self._control, command)
        while (left := deadline - time.monotonic()) > 0 and self._control.poll(int(1_000 * left) + 1):
            try:
                answer = protocol.decode_answer(self._control.recv_multipart(zmq.DONTWAIT)[-1])
            except protocol.ProtocolError:
                continue
            if isinstance(answer, Reply) and answer.id == command.id:
                return

    def _give_up_commands(self, reason: str) -> None:
        with self._lock:
            unsent, self._outbox = self._outbox, []
        for command in [*unsent, *(waiting.command for waiting in self._pending.values())]:
            self._answer_here(_failed(command, reason))

    def _answer_here(self, reply: Reply) -> None:
        self._pending.pop(reply.id, None)
        with self._lock:
            self._ready.append(reply)

    # ── When nothing is heard ─────────────────────────────────────────────────────────────────────

    def _look_elsewhere(self, now: float) -> None:
        if now - self._asked_at <= _ASK_AGAIN_S:
            return
        self._connection = f"no sign of life for {now - self._heard_at:.0f} s"
        gone = runs.is_gone(self.run)
        rest = self._read_recording()
        if self.finished.is_set() or rest == "partly":
            return
        if gone:
            self._connection = "the training process is gone without having ended its run"
            if rest == "absent":
                self._connection += "; it is not recorded here, so its last steps may be missing"
            self.finished.set()
        self._ask(protocol.Hello())

    def _read_recording(self) -> Literal["absent", "partly", "whole"]:
        """Delivers what the recording has and the stream did not bring, as far as there is room."""
        if not (self._recording and self.run.local and Path(self._recording).exists()):
            return "absent"
        try:
            with JournalReader(Path(self._recording)) as reader:
                if reader.run.run_id != self.run.run_id:
                    return "absent"
                for frame in reader.frames(self._order.last_seq, _BUFFER_BYTES):
                    self._deliver(frame)
                return "whole" if reader.last_seq <= self._order.last_seq else "partly"
        except RecordingError as error:
            self._connection = str(error)
            return "absent"


def _failed(command: protocol.Command, reason: str) -> Reply:
    return Reply(
        id=command.id, text=command.text, who=command.who, status="failed", reason=reason, time=time.time()
    )
