"""The training's sockets: the live stream, and answers to whoever asks.

`client_callback.link` owns one `Server` and calls it from its thread alone. Every request is decoded into
a bounded struct first; what does not fit is counted and refused with the reason. Nothing here waits for a
peer: one that does not read loses live frames and asks for them later. What is kept is the journal's matter.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import zmq
from zmq.auth.thread import ThreadAuthenticator

from client_callback.wire import folders, protocol, sockets
from client_callback.wire.protocol import Command, Frame, Present, Reply, RunDescription

HEARTBEAT_S = 1.0
_STREAM_QUEUE = 256
"""Frames waiting for one slow monitor; what is beyond it must ask for a back-fill."""
_ANSWER_QUEUE = 8
"""Answers waiting for one peer that does not read; each holds up to `sockets.ANSWER_BYTES`."""
_REQUESTS_AT_ONCE = 64
_MAX_PENDING = 1_000
_MAX_ANSWERED = 1_000
_LINGER_MS = 250
_TCP = re.compile(r"tcp://(?:127\.0\.0\.1|localhost):(\d{1,5}|\*)")


class _Asked(NamedTuple):
    """A command that has not been answered yet."""

    command: Command
    peers: list[bytes]


class History(Protocol):
    """What has been recorded so far."""

    @property
    def last_seq(self) -> int:
        """Number of the newest frame, 0 before the first."""

    def frames(self, after: int, limit_bytes: int) -> list[Frame]:
        """Those after `after`, in order, as far as `limit_bytes` go, at least one."""


def check_bind(bind: str | None) -> None:
    """Raises ValueError, saying what is possible, unless `bind` is None or a loopback TCP endpoint."""
    if bind is not None:
        _tcp_port(bind)


class Server:
    """XPUB and ROUTER of one run. Raises OSError when the endpoint cannot be had.

    `bell`: a file descriptor that becomes readable when `serve` has slept long enough.
    """

    def __init__(
        self,
        run: RunDescription,
        *,
        bind: str | None,
        recording: str,
        history: Callable[[], History],
        on_command: Callable[[Command], None],
        on_present: Callable[[Present], None],
        bell: int,
    ) -> None:
        self.refused = 0
        """Requests that did not fit."""
        self.last_refusal = ""
        self._run = run
        self._recording = recording
        self._history = history
        self._on_command = on_command
        self._on_present = on_present
        self._bell = bell
        self._pending: dict[str, _Asked] = {}
        self._answered: OrderedDict[str, bytes] = OrderedDict()
        self._next_heartbeat = 0.0
        self._own_folder: Path | None = None
        self._authenticator: ThreadAuthenticator | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.stream = ""
        self.control = ""
        self.server_key = ""
        """Public CURVE key of a TCP endpoint."""
        try:
            self._open(bind)
        except BaseException:
            self.close()
            raise

    # ── Called by the sender thread ───────────────────────────────────────────────────────────────

    def publish(self, frames: Sequence[Frame]) -> None:
        """Sends the frames to every monitor that keeps up."""
        for frame in frames:
            self._send(self._stream, [sockets.STREAM_FRAME, frame.seq.to_bytes(8, "big"), frame.payload])

    def serve(self, timeout_s: float) -> None:
        """Answers what is asked within `timeout_s`; returns early after answering, and when the bell is rung."""
        ready = dict(self._poller.poll(int(timeout_s * 1_000)))
        if self._control in ready:
            self._answer_requests()
        if self._stream in ready and self._heard_new_subscribers():
            self._next_heartbeat = 0.0  # tells them at once what they missed while connecting
        if time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + HEARTBEAT_S
            beat = protocol.Heartbeat(last_seq=self._history().last_seq, time=time.time())
            self._send(self._stream, [sockets.STREAM_HEARTBEAT, protocol.encode(beat)])

    def answer(self, reply: Reply) -> None:
        """Sends the reply to everyone who asked for it, and keeps it for those who ask again."""
        encoded = protocol.encode(reply)
        self._answered[reply.id] = encoded
        while len(self._answered) > _MAX_ANSWERED:
            self._answered.popitem(last=False)
        asked = self._pending.pop(reply.id, None)
        for peer in asked.peers if asked else ():
            self._send(self._control, [peer, encoded])

    def heal(self) -> None:
        """Makes the Unix sockets anew where their files have vanished, as when a login session ends."""
        for socket, endpoint in ((self._stream, self.stream), (self._control, self.control)):
            path = Path(endpoint.removeprefix("ipc://"))
            if endpoint.startswith("ipc://") and not path.exists():
                if self._own_folder is None:
                    folders.runtime_folder()
                if path.parent.is_dir():
                    socket.unbind(endpoint)
                    socket.bind(endpoint)

    def close(self, reason: str = "") -> None:
        """Tells those who still wait for an answer `reason`, then lets go of everything within a moment."""
        for command, peers in self._pending.values():
            encoded = protocol.encode(_unobeyed(command, "failed", reason))
            for peer in peers:
                self._send(self._control, [peer, encoded])
        self._pending.clear()
        if self._authenticator:
            self._authenticator.stop()
        self._context.destroy(linger=_LINGER_MS)
        for endpoint in (self.stream, self.control):
            if endpoint.startswith("ipc://"):
                Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        if self._own_folder:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    # ── Opening ───────────────────────────────────────────────────────────────────────────────────

    def _open(self, bind: str | None) -> None:
        self._stream = self._context.socket(zmq.XPUB)
        self._control = self._context.socket(zmq.ROUTER)
        sockets.bound(self._stream, send_queue=_STREAM_QUEUE, receive_bytes=sockets.MAX_REQUEST_BYTES)
        sockets.bound(self._control, send_queue=_ANSWER_QUEUE, receive_bytes=sockets.MAX_REQUEST_BYTES)
        self._stream.setsockopt(zmq.XPUB_VERBOSE, 1)
        if bind is None:
            self._bind_unix()
        else:
            self._bind_tcp(_tcp_port(bind))
        self._poller = zmq.Poller()
        self._poller.register(self._control, zmq.POLLIN)
        self._poller.register(self._stream, zmq.POLLIN)
        self._poller.register(self._bell, zmq.POLLIN)

    def _bind_unix(self) -> None:
        folder = folders.runtime_folder()
        if folders.fits_sockets(folder, self._run.run_id):
            try:
                self._bind_in(folder)
                return
            except zmq.ZMQError:  # some network file systems hold no sockets
                pass
        self._own_folder = folders.short_folder()
        self._bind_in(self._own_folder)

    def _bind_in(self, folder: Path) -> None:
        self.control = f"ipc://{folder / self._run.run_id}.control"
        self.stream = f"ipc://{folder / self._run.run_id}.stream"
        self._control.bind(self.control)
        self._stream.bind(self.stream)

    def _bind_tcp(self, port: int) -> None:
        public, secret = zmq.curve_keypair()
        keys = folders.keys_folder()
        allowed = sockets.allowed_clients(keys)
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve(domain="*", location=str(allowed))
        for socket in (self._control, self._stream):
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = public, secret
        self.server_key = public.decode()
        self._control.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.control = _endpoint(self._control)
        self._stream.bind(f"tcp://127.0.0.1:{port + 1 if port else '*'}")
        self.stream = _endpoint(self._stream)

    # ── Requests ──────────────────────────────────────────────────────────────────────────────────

    def _answer_requests(self) -> None:
        for _ in range(_REQUESTS_AT_ONCE):
            try:
                peer, *parts = self._control.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                if len(parts) != 1:
                    raise protocol.ProtocolError(f"a request is one part, received {len(parts)}")
                answer = self._answer_to(protocol.decode_request(parts[0]), peer)
            except (protocol.ProtocolError, sqlite3.Error) as error:
                self.refused += 1
                self.last_refusal = str(error)[:500]
                answer = protocol.encode(protocol.Refusal(reason=str(error)[:1_000]))
            if answer:
                self._send(self._control, [peer, answer])

    def _answer_to(self, request: protocol.Request, peer: bytes) -> bytes | None:
        if isinstance(request, Command):
            return self._answer_to_command(request, peer)
        if isinstance(request, Present):
            self._on_present(request)
            return None
        history = self._history()
        if isinstance(request, protocol.Backfill):
            frames = tuple(history.frames(request.after, sockets.ANSWER_BYTES))
            return protocol.encode(protocol.Frames(frames=frames, last_seq=history.last_seq))
        if request.version != protocol.PROTOCOL_VERSION:
            raise protocol.ProtocolError(version_mismatch(protocol.PROTOCOL_VERSION, request.version))
        welcome = protocol.Welcome(
            version=protocol.PROTOCOL_VERSION,
            run=self._run,
            last_seq=history.last_seq,
            recording=self._recording,
        )
        return protocol.encode(welcome)

    def _answer_to_command(self, command: Command, peer: bytes) -> bytes | None:
        """The answer given before, or None: it comes when the training has obeyed."""
        if command.id in self._answered:
            return self._answered[command.id]
        if command.id in self._pending:
            peers = self._pending[command.id].peers
            if peer not in peers:
                peers.append(peer)
            return None
        if len(self._pending) >= _MAX_PENDING:
            reason = f"{_MAX_PENDING} commands are waiting; try again later"
            return protocol.encode(_unobeyed(command, "refused", reason))
        self._pending[command.id] = _Asked(command, [peer])
        self._on_command(command)
        return None

    def _heard_new_subscribers(self) -> bool:
        heard = False
        for _ in range(_REQUESTS_AT_ONCE):
            try:
                parts = self._stream.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            heard = heard or parts[0][:1] == b"\x01"
        return heard

    def _send(self, socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
        try:
            socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.Again:
            pass  # XPUB and ROUTER drop for a peer whose queue is full; it asks again
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise


def version_mismatch(run: int, monitor: int) -> str:
    """What to say when the two sides speak different versions of the protocol."""
    older = "monitor" if monitor < run else "training"
    return (
        f"the run speaks protocol version {run}, this monitor {monitor}; "
        f"upgrade unstuck on the side of the {older}"
    )


def _unobeyed(command: Command, status: Literal["refused", "failed"], reason: str) -> Reply:
    """The answer to a command that never reached the training."""
    return Reply(
        id=command.id, text=command.text, who=command.who, status=status, reason=reason, time=time.time()
    )


def _endpoint(socket: zmq.Socket[bytes]) -> str:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else str(endpoint)


def _tcp_port(bind: str) -> int:
    """The port, 0 for any free one. Raises ValueError for all that is not loopback."""
    match = _TCP.fullmatch(bind)
    port = 0 if match and match[1] == "*" else int(match[1]) if match else -1
    if not 0 <= port < 65_535:
        raise ValueError(
            f"bind={bind!r} is not offered; possible: None (a Unix socket) or 'tcp://127.0.0.1:PORT' "
            "(loopback, encrypted; PORT + 1 is used too; 0 takes free ones)"
        )
    return port
