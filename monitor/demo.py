"""Starting a demo's training as a process of its own, which lives on when the terminal is closed.

`unstuck demo` calls here. What the demos train is in `demos/` (`monitor/_demos` once installed); watching
them is the same as watching any other run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from client_callback.wire import folders, runs
from client_callback.wire.runs import RunFile
from monitor.demo_names import AILMENTS
from monitor.mistake import Mistake

_TAIL_LINES = 15
_POLL_S = 0.1
_STOP_S = 10.0
_EXTRAS = {
    "keras": "client",
    "tensorflow": "tensorflow",
    "sklearn": "demos",
}


class Training(NamedTuple):
    """A demo under way."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    """What it prints."""


def start(name: str, *, repaired: bool = False) -> Training:
    """Starts the training of demo `name`, of an ailment its repaired twin; it does not end with this process.

    Raises:
        Mistake: there is no such demo, or what it needs is not installed.
    """
    if repaired and name not in AILMENTS:
        raise Mistake(
            f"{name!r} is no ailment, so it has no repaired twin; `unstuck demo --list` tells the ailments", 2
        )
    module, search_path = _module("ailments" if name in AILMENTS else name)
    arguments = [name, *(["--repaired"] if repaired else [])] if name in AILMENTS else []
    _check_installed()
    log = folders.logs_folder() / f"demo-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONUNBUFFERED": "1"}
    if search_path:
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [search_path, os.environ.get("PYTHONPATH", "")])
        )
    with os.fdopen(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Training(name, process, log)


def wait_for_run(training: Training) -> RunFile:
    """The run of the training as soon as it can be watched.

    Raises:
        Mistake: the training ended before; says why, with the end of what it printed.
    """
    sys.stderr.write(
        f"starting the training of {training.name!r}; loading its libraries takes some seconds\n"
    )
    while True:
        run = runs.run_of_process(training.process.pid)
        if run:
            return run
        if training.process.poll() is not None:
            raise Mistake(_why_it_died(training), 1)
        time.sleep(_POLL_S)


def wait_for_exit(training: Training) -> None:
    """Waits until the process has done what it does after training."""
    training.process.wait()
    last = _tail(training.log, 1)
    if last:
        sys.stdout.write(f"{last}\n")


def stop(training: Training) -> None:
    """Ends the training's process: as Ctrl-C would, and by force when that takes too long."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if training.process.poll() is None:
            training.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.process.wait(_STOP_S)


def how_to_go_on(training: Training, run: RunFile) -> str:
    """What to tell who has left the display."""
    recording = f"\nreplay it:      unstuck replay {run.recording}" if run.recording else ""
    if training.process.poll() is not None:
        return f"The training has ended.{recording}"
    return (
        f"The training goes on (process {run.pid}, output in {training.log}).\n"
        f"watch it again: unstuck watch {run.run_id}\n"
        f"stop it:        unstuck send {run.run_id} stop{recording}"
    )


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Within it, a request to terminate this process ends the training too, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _module(name: str) -> tuple[str, str]:
    """The demo's module, and the folder that must be on the path for it ("" when it is installed)."""
    here = Path(__file__).resolve().parent
    for folder, package, search_path in (
        (here / "_demos", "monitor._demos", ""),
        (here.parent / "demos", "demos", str(here.parent)),
    ):
        if (folder / f"{name}.py").exists() or (folder / name / "__main__.py").exists():
            return f"{package}.{name}", search_path
    raise Mistake(f"the demo {name!r} is not part of this installation (looked in {here})", 1)


def _check_installed() -> None:
    missing = [module for module in _EXTRAS if importlib.util.find_spec(module) is None]
    if "KERAS_BACKEND" in os.environ and "tensorflow" in missing:
        missing.remove("tensorflow")
    if missing:
        raise Mistake(_how_to_install(missing), 1)


def _how_to_install(missing: list[str]) -> str:
    extras = ",".join(_EXTRAS.get(module, "all") for module in missing)
    return f'the demo needs {", ".join(missing)}; install it with: pip install "unstuck[{extras}]"'


def _why_it_died(training: Training) -> str:
    printed = _tail(training.log, _TAIL_LINES)
    absent = re.findall(r"No module named '(\w+)", printed)
    if absent:
        return _how_to_install(absent[-1:])
    code = training.process.returncode
    return f"the training ended (exit code {code}) before it could be watched; its last words:\n{printed}"


def _tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
