from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client_callback.wire import protocol
from client_callback.wire.journal import FOLD_BYTES, JournalWriter
from client_callback.wire.recording import JournalReader, RecordingError
from tests.toy_runs import canonical, description, reading, samples, started, steps, story


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toy.unstuck"


def write(path, events, run=None, *, close=True, at_once=3):
    writer = JournalWriter(path, run or description())
    for start in range(0, len(events), at_once):
        writer.append(events[start : start + at_once])
    if close:
        writer.close()
    return writer


def read(path):
    with JournalReader(path) as reader:
        return [event for _, event in reader.events()], list(reader.missing)


def test_a_recording_gives_back_every_event_although_it_was_folded(path):
    run, events = story(drains=700)
    write(path, events, run)
    with JournalReader(path) as reader:
        frames = list(reader.frames())
        assert reader.run == run
        assert reader.ended
        assert reader.last_seq == len(events)
    found, missing = read(path)
    assert canonical(found) == canonical(events)
    assert missing == []
    assert len(frames) < len(events) / 10
    assert [frame.seq for frame in frames] == sorted({frame.seq for frame in frames})


def test_an_epoch_never_changes_places_with_the_steps_around_it(path):
    run, events = story(drains=300, epochs=3)
    write(path, events, run)
    found, _ = read(path)
    completed = 0
    for event in found:
        if isinstance(event, protocol.Steps):
            completed = event.first + event.count
        elif isinstance(event, protocol.EpochBegan | protocol.EpochEnded):
            assert event.step == completed


def test_readings_of_the_machine_are_folded_whatever_happens_between_them(path):
    events = [started(description())]
    for number in range(2_000):
        events += [
            protocol.EpochBegan(epoch=number, step=5 * number),
            steps(5 * number),
            reading(number, step=5 * number + 5),
            protocol.Overhead(share=0.01, hooks=0.0, sampling=0.0, every=10, step=5 * number + 5),
        ]
    write(path, events)
    found, missing = read(path)
    assert missing == []
    assert sum(isinstance(event, protocol.Resources) for event in found) < 250
    assert canonical(found) == canonical(events)


def test_an_overhead_does_not_keep_steps_from_being_folded(path):
    overhead = protocol.Overhead(share=0.01, hooks=0.0, sampling=0.0, every=10)
    events = [started(description())]
    for i in range(600):
        events += [steps(5 * i), *([overhead] if i % 100 == 0 else [])]
    write(path, events)
    found, _ = read(path)
    assert canonical(found) == canonical(events)
    assert sum(isinstance(event, protocol.Steps) for event in found) < 150


def test_folding_stops_where_columns_change_or_steps_are_missing(path):
    events = [started(description())]
    events += [steps(5 * i) for i in range(300)]
    events += [steps(1500 + 5 * i, names=("loss",)) for i in range(300)]
    events += [steps(9000 + 5 * i, names=("loss",)) for i in range(300)]
    write(path, events)
    found, _ = read(path)
    assert canonical(found) == canonical(events)
    assert len(found) < 200


def test_large_frames_are_left_alone_and_folded_ones_stay_near_a_megabyte(path):
    count = 3 * FOLD_BYTES // 16
    events = [started(description()), steps(0, count), steps(count, count)]
    first = 2 * count
    events += [steps(first + 4_000 * i, 4_000) for i in range(200)]
    write(path, events)
    with JournalReader(path) as reader:
        sizes = [len(frame.payload) for frame in reader.frames()]
    assert max(sizes) < 4 * FOLD_BYTES
    assert len(sizes) < 30
    assert canonical(read(path)[0]) == canonical(events)


def test_folding_writes_every_byte_only_a_few_times(path):
    writer = JournalWriter(path, description())
    written = []
    insert = writer._insert
    writer._insert = lambda frame, event, n: (written.append(len(frame.payload)), insert(frame, event, n))
    appended = 0
    for i in range(20_000):
        event = steps(5 * i)
        appended += len(protocol.encode(event))
        writer.append([event])
    writer.close()
    assert sum(written) < 4 * appended


def test_reading_goes_on_from_any_number_and_within_any_limit(path):
    run, events = story(drains=20)
    writer = write(path, events, run, close=False)
    with JournalReader(path) as reader:
        after, found = 0, []
        while part := list(reader.frames(after, 2_000)):
            found += part
            after = part[-1].seq
        assert [f.seq for f in found] == [f.seq for f in reader.frames()]
        assert [f.seq for f in writer.frames(0, 1 << 30)] == [f.seq for f in found]
        assert len(list(reader.frames(0, 1))) == 1
        assert len(writer.frames(0, 1)) == 1
    writer.close()


def test_a_recording_is_followed_while_it_is_written(path):
    writer = JournalWriter(path, description())
    writer.append([started(description())])
    with JournalReader(path) as reader:
        assert (reader.last_seq, reader.ended) == (1, False)
        writer.append([steps(0), protocol.RunEnded(outcome="finished", step=5)])
        assert (reader.last_seq, reader.ended) == (3, True)
        assert len(list(reader.frames(1))) == 2
    writer.close()


def test_a_recording_can_be_read_by_its_owner_alone_and_is_one_file_in_the_end(path):
    writer = write(path, [started(description()), steps(0)], close=False)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    writer.close()
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_kept_of_a_transaction_that_failed(path):
    writer = write(path, [started(description())], close=False)
    with pytest.raises(TypeError):
        writer.append([steps(0), protocol.Problem(what=object())])
    assert writer.last_seq == 1
    assert len(writer.frames(0, 1 << 30)) == 1
    writer.close()


def test_the_rest_of_a_writers_log_is_read_where_nothing_can_be_written(path, tmp_path):
    run, events = story(drains=5)
    writer = write(path, events, run, close=False)
    left = tmp_path / "left"
    left.mkdir()
    for file in path.parent.glob("toy.unstuck*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, left)
    writer.close()
    # Root may write anywhere; an unprivileged child shows what everybody else sees.
    script = f"""
import os, shutil, tempfile
from pathlib import Path
from client_callback.wire.recording import JournalReader
os.chmod({str(left)!r}, 0o555)
if os.getuid() == 0:
    for folder in {[str(p) for p in left.parents if str(p).startswith("/tmp/")]!r}:
        os.chmod(folder, 0o755)
    for name in os.listdir({str(left)!r}):
        os.chmod(os.path.join({str(left)!r}, name), 0o444)
    os.setuid(65534)
with JournalReader(Path({str(left / path.name)!r})) as reader:
    print(reader.last_seq, reader.ended)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=root,
        env=_child_environment(tmp_path),
    )
    left.chmod(0o755)
    assert done.stdout.split() == [str(len(events)), "True"], done.stderr


def _child_environment(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    return {**os.environ, "TMPDIR": str(scratch)}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is no recording of unstuck"),
        (b"step,loss\n0,1\n", "is no recording of unstuck"),
        (b"SQLite format 3\x00" + bytes(80), "is no recording of unstuck|damaged at its start"),
    ],
)
def test_another_file_is_refused_with_its_name(path, content, what):
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=what) as caught:
        JournalReader(path)
    assert str(path) in str(caught.value)


def test_what_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(RecordingError, match="No such file"):
        JournalReader(tmp_path / "absent.unstuck")
    with pytest.raises(RecordingError, match="is a folder"):
        JournalReader(tmp_path)


def test_another_database_is_refused(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE frames (seq INTEGER PRIMARY KEY)")
    connection.close()
    with pytest.raises(RecordingError, match="no recording of unstuck"):
        JournalReader(path)


def test_a_newer_format_is_refused_and_says_which_is_supported(path):
    write(path, [started(description())])
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(RecordingError, match=r"format version 7, version 1 is supported.*upgrade"):
        JournalReader(path)


def test_a_byte_changed_inside_a_frame_is_noticed(path):
    run, events = story(drains=4, epochs=1)
    write(path, events, run)
    content = path.read_bytes()
    at = content.rindex(b"accuracy") + 20
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    found, missing = read(path)
    assert len(missing) == 1
    assert "checksum does not fit" in missing[0]
    assert len(found) == len(events) - 1


def test_a_frame_that_holds_no_event_is_left_out_and_told(path):
    write(path, [started(description()), protocol.Problem(what="a" * 70_000), steps(0)])
    found, missing = read(path)
    assert len(found) == 2
    assert "frame 2 is damaged: not a valid event" in missing[0]


def test_damage_in_the_middle_costs_only_what_it_hits(path):
    events = [started(description())] + [samples(i, labels=300) for i in range(2_000)]
    writer = JournalWriter(path, description())
    for event in events:
        writer.append([event, protocol.Problem(what="between")])
    writer.close()
    whole = len(read(path)[0])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(content)
    found, missing = read(path)
    assert missing
    assert whole - 40 < len(found) < whole


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_never_crashes_and_shows_nothing_false(path, seed):
    run, events = story(drains=60)
    write(path, events, run)
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        content = content[: chance.randrange(len(content))]
    for _ in range(chance.choice([1, 5, 100, 1_000])):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)
    known = {protocol.encode(event) for event in events}
    try:
        with JournalReader(path) as reader:
            for _, event in reader.events():
                if isinstance(event, protocol.Steps):
                    numbers = range(event.first, event.first + event.count)
                    assert protocol.step_columns(event)["loss"].tolist() == list(numbers)
                elif not isinstance(event, protocol.Samples):
                    assert protocol.encode(event) in known
            _ = reader.last_seq, reader.ended, reader.run
    except RecordingError as error:
        assert str(path) in str(error)
