"""One command to a live run, and its answer: what `unstuck send` does, as a Python function.

Scripts and notebooks call `send`; the terminal sends through its source instead. Nothing is applied here.
"""

from __future__ import annotations

import time

import zmq

from client_callback.wire import protocol, runs, sockets
from client_callback.wire.commands import COMMANDS, CommandError
from client_callback.wire.protocol import Reply
from client_callback.wire.runs import RunFile, RunNotFound
from monitor.outgoing import new_command, sender, takes_long

__all__ = ["CommandError", "NoAnswer", "RunNotFound", "send", "send_to"]

_ASK_AGAIN_S = 2.0
_TAKE_CONTROL = "control take"


class NoAnswer(TimeoutError):  # noqa: N818  (part of the public interface)
    """The run did not answer in time. The command may still be applied."""


def send(
    run: str, command: str, *, wait_s: float = 10.0, who: str | None = None, take_control: bool = False
) -> Reply:
    """Sends `command` to a live run and returns its answer.

    Args:
        run: its id, a unique prefix, its name, an endpoint, or its recording's path.
        command: as typed in the terminal, such as `lr x0.5`.
        wait_s: how long to wait for the answer. Training answers between two batches, and only when the command has
            been carried out: `trial` and `evaluate` take as long as they take.
        who: recorded with the answer; by default user@host and `send`.
        take_control: first take control from the monitor that has it; it is kept until 15 s after the last command.
            When that is refused, its answer is returned and the command is not sent.

    Raises:
        CommandError: the command cannot be understood; nothing was sent.
        RunNotFound: no live run, or several, answer to `run`.
        NoAnswer: none within `wait_s`.
    """
    who = who or sender("send")
    if not _names_own_action(command):
        new_command(command, who)  # what cannot be understood is said before any run is looked for
    return send_to(runs.find_run(run), command, wait_s=wait_s, who=who, take_control=take_control)


def send_to(
    run: RunFile, command: str, *, wait_s: float = 10.0, who: str | None = None, take_control: bool = False
) -> Reply:
    """As `send`, to a run that has been found already."""
    who = who or sender("send")
    actions = _actions_of(run, wait_s) if _names_own_action(command) else ()
    request = new_command(command, who, actions=actions)
    if take_control:
        taken = _deliver(run, new_command(_TAKE_CONTROL, who), wait_s)
        if taken.status not in ("applied", "ineffective"):
            return taken
    return _deliver(run, request, wait_s)


def _names_own_action(command: str) -> bool:
    """Whether the command may be one that the run's script defined itself."""
    words = command.split(maxsplit=1)
    return bool(words) and words[0].strip("'\"").lower() not in COMMANDS


def _actions_of(run: RunFile, wait_s: float) -> protocol.Names:
    """The commands that the run's script defined. Raises NoAnswer."""
    question = (run.control, run.server_key, protocol.Hello())
    answer = sockets.ask_each({run.run_id: question}, wait_s).get(run.run_id)
    if isinstance(answer, protocol.Welcome):
        return answer.run.actions
    if isinstance(answer, protocol.Refusal):
        raise NoAnswer(f"run {run.run_id} ({run.name}) did not understand: {answer.reason}")
    raise NoAnswer(
        f"run {run.run_id} ({run.name}) did not say within {wait_s:g} s which commands it has; nothing was sent"
    )


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
        + ("; it answers when that is done: --wait S (wait_s=S) waits longer" if takes_long(command) else "")
    )
