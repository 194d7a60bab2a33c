"""One command to a live run, and its answer: what `unstuck send` does, as a Python function.

Scripts and notebooks call `send`; the terminal sends through its source instead. Nothing is applied here.
"""

from __future__ import annotations

import time

import zmq

from client_callback.wire import protocol, runs, sockets
from client_callback.wire.commands import CommandError
from client_callback.wire.protocol import Reply
from client_callback.wire.runs import RunFile, RunNotFound
from monitor.outgoing import new_command

__all__ = ["CommandError", "NoAnswer", "RunNotFound", "send", "send_to"]

_ASK_AGAIN_S = 2.0


class NoAnswer(TimeoutError):  # noqa: N818  (part of the public interface)
    """The run did not answer in time. The command may still be applied."""


def send(run: str, command: str, *, wait_s: float = 10.0, who: str | None = None) -> Reply:
    """Sends `command` to a live run and returns its answer: applied, refused or failed.

    Args:
        run: its id, a unique prefix, its name, an endpoint, or its recording's path.
        command: as typed in the terminal, such as `lr x0.5`.
        wait_s: how long to wait for the answer. Training answers between two batches.
        who: recorded with the answer; by default user@host and `send`.

    Raises:
        CommandError: the command cannot be understood; nothing was sent.
        RunNotFound: no live run, or several, answer to `run`.
        NoAnswer: none within `wait_s`.
    """
    request = new_command(command, who or "", by="send")
    return _deliver(runs.find_run(run), request, wait_s)


def send_to(run: RunFile, command: str, *, wait_s: float = 10.0, who: str | None = None) -> Reply:
    """As `send`, to a run that has been found already."""
    return _deliver(run, new_command(command, who or "", by="send"), wait_s)


def _deliver(run: RunFile, request: protocol.Command, wait_s: float) -> Reply:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = sockets.control_socket(context, run.control, run.server_key)
        return _ask(socket, request, wait_s, run)
    finally:
        context.destroy(linger=0)


def _ask(socket: zmq.Socket[bytes], command: protocol.Command, wait_s: float, run: RunFile) -> Reply:
    deadline, ask_at = time.monotonic() + wait_s, 0.0
    while (now := time.monotonic()) < deadline:
        if now >= ask_at:
            sockets.try_send(socket, command)  # the same id: applied once, however often it is asked
            ask_at = now + _ASK_AGAIN_S
        if not socket.poll(max(1, int(1_000 * (min(deadline, ask_at) - now)))):
            continue
        try:
            answer = protocol.decode_answer(socket.recv_multipart()[-1])
        except protocol.ProtocolError as error:
            raise NoAnswer(f"run {run.run_id} ({run.name}) answered in another language: {error}") from error
        if isinstance(answer, Reply) and answer.id == command.id:
            return answer
        if isinstance(answer, protocol.Refusal):
            raise NoAnswer(f"run {run.run_id} ({run.name}) did not understand: {answer.reason}")
    raise NoAnswer(
        f"run {run.run_id} ({run.name}) did not answer within {wait_s:g} s; it may still apply {command.text!r}"
    )
