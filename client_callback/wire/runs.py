"""Which runs are live: the run files, and finding a run by what is typed.

A training writes its run file, the terminal lists them; whether a run lives is judged by its socket. Where
files go is `folders`'; what a recording holds is `journal`'s; what goes over the sockets is `protocol`'s.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket as sockets_of_the_system
import tempfile
from pathlib import Path

import msgspec

from client_callback.wire import protocol, sockets
from client_callback.wire.folders import RECORDING_SUFFIX, runtime_folder

_MAX_RUN_FILE_BYTES = 1 << 16
_UNIX = "ipc://"


class RunNotFound(LookupError):  # noqa: N818  (part of the public interface)
    """No live run, or more than one, answers to what was asked for. The text says which there are."""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one run: lies in the runtime folder (0600) as long as the run lives."""

    run_id: protocol.Name
    name: protocol.Name
    pid: int = 0
    host: protocol.Name = ""
    user: protocol.Name = ""
    started_at: float = 0.0
    stream: protocol.Name
    """Endpoint of the live stream."""
    control: protocol.Name
    """Endpoint for requests: hello, back-fill, commands."""
    recording: protocol.Text = ""
    """Path of the recording. Empty: not recorded."""
    server_key: protocol.Name = ""
    """Public CURVE key. Empty: a Unix socket, guarded by its folder's mode."""
    version: protocol.Count = protocol.PROTOCOL_VERSION
    """Of the protocol the run speaks."""

    @property
    def local(self) -> bool:
        """Whether the run is on this machine."""
        return self.host in ("", host_name())


def new_run_id() -> str:
    """8 hexadecimal digits."""
    return secrets.token_hex(4)


def host_name() -> str:
    """This machine's name, as run files hold it."""
    return sockets_of_the_system.gethostname()


def user_name() -> str:
    """This user's name; the number where the system knows no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


# ── Run files ─────────────────────────────────────────────────────────────────────────────────────


def write_run_file(run: RunFile, folder: Path | None = None) -> Path:
    """Writes (or replaces) the run's file in one step, readable by this user alone."""
    target = (folder or runtime_folder()) / f"{run.run_id}.json"
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".run-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(run))
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def restore_run_file(run: RunFile) -> None:
    """Writes the run's file again if it has vanished."""
    folder = runtime_folder()
    if not (folder / f"{run.run_id}.json").exists():
        write_run_file(run, folder)


def list_runs(*, timeout_s: float = 1.0) -> list[RunFile]:
    """The live runs of this machine, newest first; removes the files of those that are gone."""
    found: dict[str, RunFile] = {}
    for path, run in _run_files():
        if run.local and _refused(run):
            _remove(path, run)
        elif run.local:
            found[run.run_id] = run
    questions = {r.run_id: (r.control, r.server_key, _hello()) for r in found.values()}
    answers = sockets.ask_each(questions, timeout_s) if questions else {}
    for path, run in _run_files():
        # A process that lives but does not answer just now is busy (compiling, suspended), not gone.
        if run.run_id in found and run.run_id not in answers and not process_lives(run.pid):
            _remove(path, run)
            del found[run.run_id]
    return sorted(found.values(), key=lambda run: run.started_at, reverse=True)


def find_run(selector: str, *, timeout_s: float = 1.0) -> RunFile:
    """The live run meant by an id, a unique prefix, a name (the newest), an endpoint or a recording's path.

    Raises:
        RunNotFound: none or several; the message names the live runs.
    """
    return choose_run(selector, list_runs(timeout_s=timeout_s))


def choose_run(selector: str, live: list[RunFile]) -> RunFile:
    """As `find_run`, among `live`, which is sorted newest first."""
    exact = [r for r in live if selector in (r.run_id, r.control, r.stream)]
    exact += [r for r in live if selector == r.name] or [r for r in live if _is_recording(selector, r)]
    if exact:
        return exact[0]
    starting = [
        r for r in live if selector and (r.run_id.startswith(selector) or r.name.startswith(selector))
    ]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise RunNotFound(f"{selector!r} is not unique: {_described(starting)}")
    raise RunNotFound(f"no live run {selector!r}; {_live_runs(live)}")


def run_of_process(pid: int) -> RunFile | None:
    """The newest live run of one process; None when it has none (yet)."""
    own = [run for _, run in _run_files() if run.local and run.pid == pid and not _refused(run)]
    return max(own, key=lambda run: run.started_at, default=None)


def process_lives(pid: int) -> bool:
    """Whether a process of this number exists on this machine."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def is_gone(run: RunFile) -> bool:
    """Whether it is certain that the run's process is no more; False where this machine cannot tell."""
    return run.local and (not process_lives(run.pid) or _refused(run))


def remove_run_file(run_id: str, folder: Path | None = None) -> None:
    """Removes the run's file; it need not exist."""
    ((folder or runtime_folder()) / f"{run_id}.json").unlink(missing_ok=True)


def _hello() -> protocol.Hello:
    return protocol.Hello()


def _run_files() -> list[tuple[Path, RunFile]]:
    files = []
    for path in runtime_folder().glob("*.json"):
        try:
            if path.stat().st_size <= _MAX_RUN_FILE_BYTES:
                files.append((path, msgspec.json.decode(path.read_bytes(), type=RunFile)))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue  # just removed, or nothing that a run wrote
    return files


def _refused(run: RunFile) -> bool:
    """Whether the system itself says that nobody listens on the run's Unix socket."""
    if not run.control.startswith(_UNIX):
        return False
    with sockets_of_the_system.socket(sockets_of_the_system.AF_UNIX) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(run.control.removeprefix(_UNIX))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def _remove(path: Path, run: RunFile) -> None:
    path.unlink(missing_ok=True)
    for endpoint in (run.control, run.stream):
        if endpoint.startswith(_UNIX):
            socket = Path(endpoint.removeprefix(_UNIX))
            socket.unlink(missing_ok=True)
            if socket.parent != path.parent:
                with contextlib.suppress(OSError):  # not empty: it is somebody else's too
                    socket.parent.rmdir()


def _is_recording(selector: str, run: RunFile) -> bool:
    if not run.recording or (os.sep not in selector and not selector.endswith(RECORDING_SUFFIX)):
        return False
    return Path(selector).expanduser().resolve() == Path(run.recording).resolve()


def _live_runs(live: list[RunFile]) -> str:
    return f"live: {_described(live)}" if live else "no run is live on this machine"


def _described(runs: list[RunFile]) -> str:
    return ", ".join(f"{run.run_id} ({run.name})" for run in runs[:10]) + (" …" if len(runs) > 10 else "")
