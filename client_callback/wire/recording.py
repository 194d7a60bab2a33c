"""Reading a recording: whole, still being written, left by a killed process, or damaged.

Replays, exports and monitors that lost their training read here; `journal` writes. Only ever opens files
for reading. What a file cannot give any more is counted in `missing`, with the reason.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from client_callback.wire import protocol
from client_callback.wire.journal import APPLICATION_ID, FORMAT_VERSION, checksum
from client_callback.wire.protocol import AnyEvent, Frame, RunDescription

_SELECT = "SELECT seq, first_seq, events, checksum, payload FROM frames WHERE seq > ? ORDER BY seq"
_HIGHEST_SEQ = (1 << 53) - 1
_MAX_DAMAGES = 1_000
"""After so many separate damages the rest of a file is given up."""
_FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises; the second when SQLite quotes damaged text in its message."""
_START = b"SQLite format 3\x00"


class RecordingError(ValueError):
    """A file that cannot be read as a recording. The text says what it is and what is supported."""


class JournalReader:
    """One recording, opened for reading; raises `RecordingError` when it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missing: list[str] = []
        """What could not be read so far, one sentence each."""
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._connection = self._open()
        try:
            self._check_identity()
            self.run = self._read_run()
        except BaseException:
            self.close()
            raise

    @property
    def last_seq(self) -> int:
        """Number of the newest frame, 0 when there is none."""
        return self._newest()[0]

    @property
    def ended(self) -> bool:
        """Whether the run came to its end; False while it is written and when its process was killed."""
        return self._newest()[1] == b"run_ended"

    def frames(self, after: int = 0, limit_bytes: int | None = None) -> Iterator[Frame]:
        """The frames after `after`, in order, as far as `limit_bytes` go (at least one).

        Damaged ones are left out and noted in `missing`.
        """
        size = 0
        for seq, first_seq, events, sum_, payload in self._rows(after):
            reason = _damage(seq, first_seq, sum_, payload)
            if reason:
                self._note_missing(seq, first_seq, events, reason)
                continue
            if limit_bytes is not None and size and size + len(payload) > limit_bytes:
                return
            size += len(payload)
            yield Frame(seq=seq, first_seq=first_seq, payload=payload)

    def events(self, after: int = 0) -> Iterator[tuple[Frame, AnyEvent]]:
        """As `frames`, with the event each one holds; leaves out and notes what does not decode."""
        for frame in self.frames(after):
            try:
                yield frame, protocol.decode_event(frame.payload)
            except protocol.ProtocolError as error:
                self._note_missing(frame.seq, frame.first_seq, 1, str(error))

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        self._connection.close()
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── Opening ───────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> sqlite3.Connection:
        self._check_file()
        try:
            return _connect(self.path, "mode=ro")
        except _FAILURES as error:
            if not _cannot_open(error):
                raise RecordingError(f"{self.path} is no recording of unstuck: {error}") from error
        # A folder that cannot be written: SQLite wants to put its shared memory beside the file.
        log = self.path.with_name(self.path.name + "-wal")
        try:
            if not (log.exists() and log.stat().st_size):
                return _connect(self.path, "immutable=1")
            self._temporary = tempfile.TemporaryDirectory(prefix="unstuck-")
            copy = Path(self._temporary.name) / self.path.name
            shutil.copyfile(log, copy.with_name(copy.name + "-wal"))
            shutil.copyfile(self.path, copy)
            return _connect(copy, "mode=rw")
        except (*_FAILURES, OSError) as error:
            if self._temporary:
                self._temporary.cleanup()
            raise RecordingError(f"{self.path} cannot be read: {error}") from error

    def _check_file(self) -> None:
        try:
            if self.path.is_dir():
                raise RecordingError(f"{self.path} is a folder; a recording is one file (*.unstuck)")
            with self.path.open("rb") as file:
                start = file.read(len(_START))
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be read: {error.strerror or error}") from error
        log = self.path.with_name(self.path.name + "-wal")
        if start != _START and not (not start and log.exists()):
            raise RecordingError(f"{self.path} is no recording of unstuck: it starts with {start!r}")

    def _check_identity(self) -> None:
        try:
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            tables = set(self._connection.execute("SELECT name, type FROM sqlite_master"))
        except _FAILURES as error:
            raise RecordingError(
                f"{self.path} is damaged at its start and cannot be opened: {error}"
            ) from error
        if application != APPLICATION_ID:
            raise RecordingError(f"{self.path} is an SQLite file, but no recording of unstuck")
        if version != FORMAT_VERSION:
            newer = "; a newer unstuck wrote it: upgrade this one" if version > FORMAT_VERSION else ""
            raise RecordingError(
                f"{self.path} has format version {version}, version {FORMAT_VERSION} is supported{newer}"
            )
        if (b"frames", b"table") not in tables:
            raise RecordingError(f"{self.path} is damaged: it has no table of frames")

    def _read_run(self) -> RunDescription:
        try:
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'run'").fetchone()
            return msgspec.msgpack.decode(row[0], type=RunDescription)
        except (*_FAILURES, msgspec.DecodeError, TypeError):
            self.missing.append("the description of the run is damaged; its first frame serves instead")
        for _, event in self.events():
            if isinstance(event, protocol.RunStarted):
                return event.run
            break
        raise RecordingError(
            f"{self.path} is damaged: neither its description nor its first frame can be read"
        )

    # ── Reading round damage ──────────────────────────────────────────────────────────────────────

    def _rows(self, after: int) -> Iterator[tuple[int, int, int, int, bytes]]:
        for _ in range(_MAX_DAMAGES):
            try:
                for row in self._connection.execute(_SELECT, (after,)):
                    yield row
                    after = row[0]
                return
            except _FAILURES as error:
                beyond = self._readable_after(after)
                if beyond is None:
                    self._note_once(f"nothing could be read after frame {after}: {error}")
                    return
                self._note_once(f"frames {after + 1} to {beyond} could not be read: {error}")
                after = beyond
        self._note_once(f"too many damages; given up after frame {after}")

    def _readable_after(self, after: int) -> int | None:
        """The smallest number > `after` behind which a frame can be read again."""
        bad, distance = after, 1
        while not self._readable(after + distance):
            bad, distance = after + distance, 2 * distance
            if bad > _HIGHEST_SEQ:
                return None
        good = after + distance
        while good - bad > 1:
            middle = (good + bad) // 2
            if self._readable(middle):
                good = middle
            else:
                bad = middle
        return good

    def _readable(self, after: int) -> bool:
        try:
            self._connection.execute(f"{_SELECT} LIMIT 1", (after,)).fetchone()
        except _FAILURES:
            return False
        return True

    def _newest(self) -> tuple[int, bytes]:
        try:
            row = self._connection.execute(
                "SELECT seq, kind FROM frames ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        except _FAILURES:
            last = max((frame.seq for frame in self.frames()), default=0)
            return last, b""
        return (row[0], row[1]) if row else (0, b"")

    def _note_missing(self, seq: int, first_seq: int, events: object, reason: str) -> None:
        between = isinstance(first_seq, int) and 0 < first_seq < seq
        which = f"frame {seq} ({events} events from {first_seq} on)" if between else f"frame {seq}"
        self._note_once(f"{which} is damaged: {reason}")

    def _note_once(self, sentence: str) -> None:
        if sentence not in self.missing and len(self.missing) < _MAX_DAMAGES:
            self.missing.append(sentence)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        isolation_level=None,
        timeout=2.0,
        check_same_thread=False,
    )
    try:
        connection.text_factory = bytes  # damaged text must not raise
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, protocol.MAX_FRAME_BYTES + (1 << 20))
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA mmap_size = 0")  # a file cut short under a mapping kills the process
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except _FAILURES as error:
        if isinstance(error, UnicodeDecodeError) or "malformed" in str(error):
            return connection  # perhaps only in part: `_check_identity` says more
        connection.close()
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _cannot_open(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
    )


def _damage(seq: object, first_seq: object, sum_: object, payload: object) -> str:
    if not (isinstance(seq, int) and isinstance(first_seq, int) and isinstance(payload, bytes)):
        return "its columns have other types than they should"
    if not 0 < first_seq <= seq <= _HIGHEST_SEQ:
        return f"it calls itself {first_seq} to {seq}"
    if checksum(seq, first_seq, payload) != sum_:
        return "its checksum does not fit"
    return ""
