"""A recording: one SQLite file of numbered frames, appended while the training runs, readable at any moment.

The sender thread writes through `JournalWriter`; terminals, replays and exports read through `JournalReader`.
Many small frames are folded into few large ones as the recording grows: a folded frame stands for all
events of its kind between `first_seq` and `seq`, so a reader that had some of them drops what it knows (see
`monitor.sources`). Nothing here knows a socket, nor what the events mean.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from client_callback.wire import protocol
from client_callback.wire.protocol import Columnar, Event, Frame, Overhead, Resources, RunDescription

FORMAT_VERSION = 1
"""Of the file. Raised when an older reader could not read it."""
APPLICATION_ID = 0x756E7374
"""`unst`: what `file` and SQLite show of a recording."""

FOLD_BYTES = 1 << 20
"""A folded frame grows to about this size and is then left alone."""
_FOLD_COUNTS = (256, 16, 16)
"""How many frames of one level become one of the next: every byte is written at most four times."""
_FOLD_LEFT_OVER = 8

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE frames (
    seq INTEGER PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    events INTEGER NOT NULL,
    kind TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    payload BLOB NOT NULL
);
"""
_INSERT = (
    "INSERT OR REPLACE INTO frames (seq, first_seq, events, kind, checksum, payload) VALUES (?,?,?,?,?,?)"
)
_SELECT_AFTER = "SELECT seq, first_seq, payload FROM frames WHERE seq > ? ORDER BY seq"


class _Row(msgspec.Struct):
    """A frame that may still be folded with its neighbours."""

    seq: int
    first_seq: int
    events: int
    size: int
    level: int


class JournalWriter:
    """Appends events to a new recording. One thread at a time; every method may raise `sqlite3.Error`."""

    def __init__(self, path: Path, run: RunDescription) -> None:
        # Made first, so that the file and what SQLite puts beside it are never readable by others.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self.path = path
        self.last_seq = 0
        self._foldable: dict[str, list[_Row]] = {}
        self._newest: dict[str, Event] = {}
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
            self._connection.execute("INSERT INTO meta VALUES ('run', ?)", (protocol.encode(run),))
        except BaseException:
            self._connection.close()
            raise

    def append(self, events: Sequence[Event]) -> list[Frame]:
        """Keeps the events in one transaction; on an error none of them.

        Returns:
            The frames they became, numbered on from `last_seq`.
        """
        frames = [
            Frame(seq=seq, first_seq=seq, payload=protocol.encode(event))
            for seq, event in enumerate(events, self.last_seq + 1)
        ]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for frame, event in zip(frames, events, strict=True):
                self._insert(frame, event, 1)
                self._note(frame, event)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if frames:
            self.last_seq = frames[-1].seq
        return frames

    def frames(self, after: int, limit_bytes: int) -> list[Frame]:
        """The frames after `after`, in order, as far as `limit_bytes` go; at least one if there is any."""
        found: list[Frame] = []
        size = 0
        for seq, first_seq, payload in self._connection.execute(_SELECT_AFTER, (after,)):
            size += len(payload)
            if found and size > limit_bytes:
                break
            found.append(Frame(seq=seq, first_seq=first_seq, payload=payload))
        return found

    def close(self) -> None:
        """Leaves one self-contained file, unless somebody is reading it just now."""
        try:
            self._connection.execute("PRAGMA busy_timeout = 100")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # complete all the same: what is not yet in the file is in the log beside it
        finally:
            self._connection.close()

    def _insert(self, frame: Frame, event: Event, events: int) -> None:
        kind = type(event).__struct_config__.tag
        sum_ = checksum(frame.seq, frame.first_seq, frame.payload)
        self._connection.execute(_INSERT, (frame.seq, frame.first_seq, events, kind, sum_, frame.payload))

    def _note(self, frame: Frame, event: Event) -> None:
        """Remembers the frame as foldable, and folds what has become enough."""
        if isinstance(event, Overhead):
            return  # stands in no order to anything
        if not isinstance(event, Columnar):
            # Steps and samples may change places with each other, never with anything else; resources with all.
            for kind in self._foldable.keys() - {Resources.__name__}:
                self._end_chain(kind)
            return
        kind = type(event).__name__
        if kind in self._newest and not protocol.can_fold(self._newest[kind], event):
            self._end_chain(kind)
        rows = self._foldable.setdefault(kind, [])
        if len(frame.payload) >= FOLD_BYTES:
            rows.clear()
            return
        self._newest[kind] = event
        rows.append(_Row(frame.seq, frame.seq, 1, len(frame.payload), 0))
        for level, count in enumerate(_FOLD_COUNTS):
            group = [row for row in rows if row.level == level]
            if len(group) < count and sum(row.size for row in group) < FOLD_BYTES:
                break
            self._fold(rows, group)

    def _end_chain(self, kind: str) -> None:
        rows = self._foldable.pop(kind)
        self._newest.pop(kind, None)
        group = [row for row in rows if row.level == 0]
        if len(group) >= _FOLD_LEFT_OVER:
            self._fold(rows, group)

    def _fold(self, rows: list[_Row], group: list[_Row]) -> None:
        """Replaces `group`, the last of `rows`, by one row of the next level."""
        if len(group) > 1:
            event = protocol.fold(self._payload(row.seq) for row in group)
            payload = protocol.encode(event)
            first, last = group[0], group[-1]
            frame = Frame(seq=last.seq, first_seq=first.first_seq, payload=payload)
            events = sum(row.events for row in group)
            self._connection.executemany("DELETE FROM frames WHERE seq = ?", [(row.seq,) for row in group])
            self._insert(frame, event, events)
            folded = _Row(last.seq, first.first_seq, events, len(payload), group[0].level + 1)
        else:
            folded = group[0]
            folded.level += 1
        rows[-len(group) :] = [folded]
        if folded.size >= FOLD_BYTES // 2:
            rows.clear()  # whatever comes next is no neighbour of what stood before this one

    def _payload(self, seq: int) -> Columnar:
        (payload,) = self._connection.execute("SELECT payload FROM frames WHERE seq = ?", (seq,)).fetchone()
        event = protocol.decode_event(payload)
        assert isinstance(event, Columnar)  # noqa: S101  (only these are ever noted as foldable)
        return event


def checksum(seq: int, first_seq: int, payload: bytes) -> int:
    """CRC-32 of a frame: SQLite itself does not notice a damaged byte inside a value."""
    return zlib.crc32(payload, zlib.crc32(b"%d %d" % (seq, first_seq)))
