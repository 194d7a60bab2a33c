"""How both sides open their sockets: options that bound memory and waiting, and CURVE keys for TCP.

Used by the training's server (`client_callback.serving`), by discovery (`runs`) and by the terminal's
sources. What is said over a socket is `protocol`'s; which run has which endpoint is `runs`'.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import zmq
import zmq.auth

from client_callback.wire import folders, protocol

STREAM_FRAME = b"f"
"""Topic of `[b"f", seq as 8 bytes big-endian, encoded event]`."""
STREAM_HEARTBEAT = b"h"
"""Topic of `[b"h", encoded Heartbeat]`."""

MAX_REQUEST_BYTES = 1 << 16
ANSWER_BYTES = 1 << 20
"""About how much of the recording one Frames answer holds."""

_HEARTBEAT_MS = 2_000
_FRAME_SLACK_BYTES = 1 << 20

DealerSocket = zmq.Socket[bytes]


def control_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str) -> DealerSocket:
    """A DEALER that asks one run; connects in the background. Never blocks when `zmq.DONTWAIT` is given."""
    return _connected(context, zmq.DEALER, endpoint, server_key)


def stream_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str) -> DealerSocket:
    """A SUB that hears everything one run publishes."""
    socket = _connected(context, zmq.SUB, endpoint, server_key)
    socket.subscribe(b"")
    return socket


def bound(socket: zmq.Socket[bytes], *, send_queue: int, receive_bytes: int) -> None:
    """Gives a socket its limits: what it queues, what it takes, and that closing it never waits."""
    socket.linger = 0
    socket.sndhwm = send_queue
    socket.rcvhwm = 1_000
    socket.setsockopt(zmq.MAXMSGSIZE, receive_bytes)
    # A peer that was suspended or cut off is forgotten, so that its queue is freed.
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5 * _HEARTBEAT_MS)


def try_send(socket: zmq.Socket[bytes], request: protocol.Request) -> bool:
    """Sends without waiting. False: nobody is connected, as when a server does not let this key in."""
    try:
        socket.send(protocol.encode(request), zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True


def ask_each(
    requests: Mapping[str, tuple[str, str, protocol.Request]], timeout_s: float
) -> dict[str, protocol.Answer]:
    """Asks several runs at once: key → (control endpoint, server key, request).

    Returns:
        The first valid answer of each that answered within `timeout_s`.
    """
    answers: dict[str, protocol.Answer] = {}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        poller, waiting = zmq.Poller(), {}
        for key, (endpoint, server_key, request) in requests.items():
            try:
                socket = control_socket(context, endpoint, server_key)
            except (zmq.ZMQError, ValueError):
                continue  # an endpoint no socket can have: nobody answers there
            try_send(socket, request)
            poller.register(socket, zmq.POLLIN)
            waiting[socket] = key
        _collect(poller, waiting, answers, timeout_s)
    finally:
        context.destroy(linger=0)
    return answers


def client_keys(keys: Path) -> tuple[bytes, bytes]:
    """This user's CURVE key pair (public, secret) in `keys`; made when there is none yet.

    Its public half lies in `keys/allowed`, the list of clients that a run of this user lets in.
    """
    secret_file = keys / "client.key_secret"
    if not secret_file.exists():
        _make_client_keys(keys, secret_file)
    public, secret = zmq.auth.load_certificate(secret_file)
    if secret is None:
        raise ValueError(f"{secret_file} holds no secret key; remove it to have a new pair made")
    return public, secret


def allowed_clients(keys: Path) -> Path:
    """The folder of the public keys that are let in, this user's own among them."""
    client_keys(keys)
    return keys / "allowed"


def _connected(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, server_key: str
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    bound(socket, send_queue=1_000, receive_bytes=protocol.MAX_FRAME_BYTES + _FRAME_SLACK_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
    try:
        if server_key:
            socket.curve_publickey, socket.curve_secretkey = client_keys(folders.keys_folder())
            socket.curve_serverkey = server_key.encode()
        socket.connect(endpoint)
    except BaseException:
        socket.close(0)
        raise
    return socket


def _collect(
    poller: zmq.Poller,
    waiting: dict[zmq.Socket[bytes], str],
    answers: dict[str, protocol.Answer],
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        for socket, _ in poller.poll(int(1_000 * left) + 1):
            parts = socket.recv_multipart()
            try:
                answers[waiting[socket]] = protocol.decode_answer(parts[-1])
            except protocol.ProtocolError as error:
                answers[waiting[socket]] = protocol.Refusal(reason=f"the answer is {error}")
            poller.unregister(socket)
            del waiting[socket]
            socket.close(0)


def _make_client_keys(keys: Path, secret_file: Path) -> None:
    # Made aside and moved: two programs that start at once end up with one of the two pairs, never a mix.
    allowed = keys / "allowed"
    allowed.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=keys) as aside:
        public_made, secret_made = zmq.auth.create_certificates(aside, "client")
        for made in (public_made, secret_made):
            Path(made).chmod(0o600)
        try:
            os.link(secret_made, secret_file)
        except FileExistsError:
            return
        Path(public_made).replace(allowed / "client.key")
