"""Runs a training script unmodified, with a monitor in every `fit`, and tells what became of it.

`unstuck doctor` calls `examine_script`. The script runs as a process of its own (`client_callback.attach` puts the
callback into `fit`); what is judged are the recordings that it leaves. No Keras here, and no rule.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from client_callback.wire.recording import RecordingError
from monitor.diagnosis.engine import Diagnosis, examine
from monitor.mistake import Mistake
from monitor.recorded_session import session_at
from monitor.session import Session

_GRAVITY = {"stuck": 0, "suspect": 1, "healthy": 2}


class Examined(NamedTuple):
    """One `fit` of the script."""

    number: int
    """From 1, in the order they ended."""
    recording: Path
    session: Session
    diagnosis: Diagnosis


class Outcome(NamedTuple):
    """What a script did."""

    code: int
    """It ended with; 0 also where its budget ended it."""
    fits: tuple[Examined, ...]
    """Those with at least one recorded step, the worst first, of equally bad ones the last first."""


def examine_script(
    script: str,
    arguments: Sequence[str],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    python: str | None = None,
    output: TextIO | None = None,
) -> Outcome:
    """Runs the script to its end, or until its budget is spent, and looks at each `fit`.

    Args:
        script: path of a Python file.
        arguments: for the script.
        steps: calls of the train function after which it is ended. `None`: no limit.
        seconds: of training, likewise.
        python: interpreter to run it with. `None`: this one.
        output: where what it prints goes. `None`: to the standard output.

    Raises:
        Mistake: there is no such script or interpreter, or it ran no `fit`.
    """
    if not Path(script).is_file():
        raise Mistake(f"there is no script {script!r}", 2)
    with tempfile.TemporaryDirectory(prefix="unstuck-") as folder:
        told = Path(folder) / "recordings"
        command = [python or sys.executable, "-m", "client_callback.attach", "--told", str(told)]
        command += [] if steps is None else ["--steps", str(steps)]
        command += [] if seconds is None else ["--seconds", str(seconds)]
        code = _run([*command, script, *arguments], output)
        paths = _paths(told)
    fits = [one for number, path in enumerate(paths, 1) if (one := _examined(number, path)) is not None]
    if not fits:
        why = f"it ended with exit code {code}" if code else "it ended"
        raise Mistake(
            f"{script} trained nothing that could be watched: {why} without a step of a Keras fit", 1
        )
    fits.sort(key=lambda fit: (_GRAVITY[fit.diagnosis.verdict], -fit.number))
    return Outcome(code, tuple(fits))


def _run(command: list[str], output: TextIO | None) -> int:
    """Runs it with this package within reach of the interpreter; returns its exit code."""
    here = str(Path(__file__).resolve().parent.parent)
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), here]))
    try:
        with subprocess.Popen(command, stdout=output, env=environment) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    # It got the same signal, ends its fit and leaves a recording, which is still worth a look.
                    continue
    except OSError as error:
        raise Mistake(f"{command[0]} cannot be run: {error.strerror or error}", 2) from None


def _paths(told: Path) -> list[Path]:
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    return [Path(json.loads(line)) for line in lines]


def _examined(number: int, recording: Path) -> Examined | None:
    with contextlib.suppress(RecordingError):
        session = session_at(recording)
        if session.step:
            return Examined(number, recording, session, examine(session))
    return None
