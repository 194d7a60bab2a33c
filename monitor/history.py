"""The commands typed before, kept between sessions in one small file of the user's.

The app asks for them when the command line opens and adds what was entered. What the commands mean is not
known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from client_callback.wire import folders

LONGEST: Final = 200
"""Lines kept."""


class Line(NamedTuple):
    """A command, and when it was entered or sent: seconds since 1970."""

    time: float
    text: str


class History:
    """What was typed, in this session and in earlier ones; `complain` is told when the file cannot be used."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._typed: list[Line] | None = None

    def with_sent(self, sent: Iterable[Line]) -> list[str]:
        """Everything typed, and what else was sent to this run: each text once, the last one last."""
        return in_order([*sent, *self._lines()])

    def add(self, line: Line) -> None:
        """Keeps a line for this session and for later ones."""
        self._lines().append(line)
        try:
            add(line)
        except OSError as error:
            self._complain(f"The history of commands cannot be kept: {error}")

    def _lines(self) -> list[Line]:
        if self._typed is None:
            self._typed = []
            try:
                self._typed = read()
            except OSError as error:
                self._complain(f"The history of commands cannot be read: {error}")
        return self._typed


def read() -> list[Line]:
    """What was entered before, in this session or others; oldest first. Raises OSError."""
    try:
        written = _path().read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for row in written.splitlines() if (line := _parsed(row))]


def add(line: Line) -> None:
    """Puts a line at the end, and lets go of the oldest. Raises OSError."""
    path = _path()
    lines = [*read(), Line(line.time, " ".join(line.text.split()))][-LONGEST:]
    part = path.with_name(f"history.{os.getpid()}")
    with os.fdopen(
        os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.writelines(f"{time:.3f}\t{text}\n" for time, text in lines)
    part.replace(path)


def in_order(lines: Iterable[Line]) -> list[str]:
    """Every text once, where it came last; oldest first."""
    latest: dict[str, float] = {}
    for time, text in lines:
        latest[text] = max(time, latest.get(text, time))
    return sorted(latest, key=lambda text: latest[text])[-LONGEST:]


def _path() -> Path:
    return folders.settings_folder() / "history"


def _parsed(row: str) -> Line | None:
    time, _, text = row.partition("\t")
    try:
        return Line(float(time), text) if text else None
    except ValueError:
        return None  # written by somebody else
