"""The real program in a real pseudo-terminal, on a real `fit` in another process."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pyte

from client_callback.wire import protocol
from tests.live_fit import live_fit
from tests.recorded import of_kind


class Terminal:
    """A program on a pseudo-terminal, and what its screen shows."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, columns: int, rows: int) -> None:
        self.process = process
        self._master = master
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; the screen shows\n{self.text}"
            if select.select([self._master], [], [], 0.05)[0]:
                self._read()

    def wait_for_exit(self) -> int:
        self.wait_for(lambda: self.process.poll() is not None)
        return self.process.returncode

    def _read(self) -> None:
        try:
            self._stream.feed(os.read(self._master, 1 << 16))
        except OSError:  # Linux says so when the program has closed its side
            self.process.wait(timeout=10)


@contextmanager
def terminal(*arguments: str, columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-m", "monitor", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master, columns, rows)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def replies(path: str) -> list[protocol.Reply]:
    return of_kind(Path(path), protocol.Reply)


def steps(path: str) -> int:
    return sum(event.count for event in of_kind(Path(path), protocol.Steps))


def command(screen: Terminal, text: str) -> None:
    """Opens the command line and sends `text`."""
    screen.type(":")
    screen.wait_for(lambda: screen.text.splitlines()[-1].startswith(" :"))
    screen.type(f"{text}\r")


def test_a_person_watches_steers_and_leaves_while_the_training_goes_on(home):
    with live_fit(home) as (training, run), terminal("watch", run.run_id) as screen:
        screen.wait_for(lambda: "running" in screen.text and "loss" in screen.text)
        screen.wait_for(lambda: any(0x2801 <= ord(character) <= 0x28FF for character in screen.text))
        assert "live" in screen.text.splitlines()[0], "the run's name stands in the first line"

        screen.type("]")
        screen.wait_for(lambda: replies(run.recording))
        assert (
            replies(run.recording)[0].after["learning_rate"]
            == replies(run.recording)[0].before["learning_rate"] * 2
        )

        command(screen, "optimizer sgd learning_rate=0.01")
        screen.wait_for(lambda: "send it" in screen.text)
        assert replies(run.recording)[1].status == "planned"
        screen.type("\r")
        screen.wait_for(lambda: len(replies(run.recording)) == 3)
        assert replies(run.recording)[2].status == "applied"
        screen.wait_for(lambda: "send it" not in screen.text and "sgd" in screen.text)

        command(screen, "optimizer sdg")
        screen.wait_for(lambda: len(replies(run.recording)) == 4)
        assert replies(run.recording)[3].status == "refused"

        screen.type("?")
        screen.wait_for(lambda: "Halve the learning rate" in screen.text)
        screen.type("\x1b")
        screen.wait_for(lambda: "Halve the learning rate" not in screen.text)

        screen.type("q")
        assert screen.wait_for_exit() == 0
        before = steps(run.recording)
        screen.wait_for(lambda: steps(run.recording) > before + 20)
        assert training.poll() is None


def test_a_recording_is_replayed_with_the_same_curves(home):
    with live_fit(home, "--epochs", "6") as (training, run):
        assert training.wait(timeout=60) == 0
    with terminal("replay", run.recording, "--speed", "50", columns=120, rows=40) as screen:
        screen.wait_for(lambda: "300/300" in screen.text)
        screen.type("g")
        screen.wait_for(lambda: "go to step" in screen.text)
        screen.type("100\r")
        screen.wait_for(lambda: "100/300" in screen.text)
        screen.type("q")
        assert screen.wait_for_exit() == 0
