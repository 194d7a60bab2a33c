"""How soon the terminal program answers: `--help`, and the first curve of a long recording in a real terminal."""

from __future__ import annotations

import os
import pty
import resource
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

from tests.bench.recordings import STEPS, random_columns, record_columns

BRAILLE = tuple(chr(code).encode() for code in range(0x2801, 0x2900))
TIMEOUT_S = 60.0


def run() -> list[tuple[str, float, float]]:
    """(label, seconds, seconds of the reference): CPU time of `--help`, wall time to the first curve."""
    python = min(_cpu_seconds([sys.executable, "-c", "pass"]) for _ in range(5))
    helping = min(_cpu_seconds([sys.executable, "-m", "monitor", "--help"]) for _ in range(5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.unstuck"
        record_columns(path, random_columns())
        starting = min(_wall_seconds([sys.executable, "-c", "import textual.app"]) for _ in range(3))
        first = min(_seconds_to_first_curve(path) for _ in range(3))
    return [
        ("`unstuck --help`, CPU time, against an empty Python", helping, python),
        (f"first curve of {STEPS:,} steps x 5, against importing Textual", first, starting),
    ]


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _wall_seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def _seconds_to_first_curve(path: Path) -> float:
    """Starts the program on a pseudo-terminal and waits for the first braille character."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "monitor", "replay", str(path), "--from", str(STEPS - 1)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(slave)
    try:
        seen = b""
        while not any(character in seen for character in BRAILLE):
            if time.perf_counter() - began > TIMEOUT_S:
                raise TimeoutError(f"no curve within {TIMEOUT_S:.0f} s; the terminal shows {seen[-500:]!r}")
            if select.select([master], [], [], 0.1)[0]:
                seen = seen[-8:] + os.read(master, 1 << 16)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        os.close(master)
