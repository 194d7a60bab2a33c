from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from client_callback.link import Link
from client_callback.wire import protocol, runs, sockets
from client_callback.wire.commands import CommandError
from client_callback.wire.journal import JournalWriter
from client_callback.wire.recording import JournalReader, RecordingError
from monitor.sources import LiveSource, RecordedSource
from monitor.sources import live as live_module
from monitor.sources.source import Order, slice_resources, slice_samples, slice_steps
from tests.toy_runs import (
    canonical,
    collect,
    description,
    has_ended,
    reading,
    samples,
    start_training,
    started,
    steps,
    story,
    wait_until,
)


@pytest.fixture
def closing():
    """Closes what a test made, newest first."""
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


def begin(run=None, **options):
    run = run or description()
    link = Link(run, **options)
    link.send(started(run))
    return link


def send_drains(link, count, first=0, pause_s=0.0):
    for i in range(first, first + count):
        link.send(steps(5 * i))
        link.send(samples(5 * i))
        if pause_s:
            time.sleep(pause_s)


def end(link, step=0):
    link.send(protocol.RunEnded(outcome="finished", step=step))
    link.close()


def recorded(path):
    with JournalReader(Path(path)) as reader:
        return [event for _, event in reader.events()]


def same_as_recorded(events, path):
    return canonical(events) == canonical(recorded(path))


# ── Order ─────────────────────────────────────────────────────────────────────────────────────────


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=60),
    joined_after=st.integers(0, 120),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_each_step_is_delivered_once_however_late_the_frames_were_folded(
    tmp_path_factory, sizes, joined_after, data
):
    run = description()
    events, step = [started(run)], 0
    for number, size in enumerate(sizes):
        events += [steps(step, size), samples(step), reading(number)]
        step += size
    path = tmp_path_factory.mktemp("order") / "toy.unstuck"
    writer = JournalWriter(path, run)
    order, found = Order(), []
    for number, event in enumerate(events, 1):
        frame = writer.append([event])[0]
        if number <= joined_after:
            found.append(order.take(frame))
        if data.draw(st.booleans()):
            for kind in list(writer._foldable):
                rows = writer._foldable[kind]
                if len(rows) > 1:
                    writer._fold(rows, list(rows))
                    rows.clear()
    found += [order.take(frame) for frame in writer.frames(order.last_seq, 1 << 30)]
    writer.close()
    assert canonical([event for event in found if event]) == canonical(events)


@given(st.integers(0, 12), st.integers(0, 12))
def test_the_parts_of_an_event_make_the_whole(a, b):
    low, high = sorted((a, b))
    for whole, cut, rows in (
        (steps(100, 12), slice_steps, 12),
        (samples(*range(5, 17)), slice_samples, 12),
        (protocol.fold([reading(number) for number in range(3, 15)]), slice_resources, 12),
    ):
        parts = [cut(whole, 0, low), cut(whole, low, high), cut(whole, high, rows)]
        assert canonical([part for part in parts if part]) == canonical([whole])
        for part in parts:
            if part:
                assert protocol.decode_event(protocol.encode(part)) == part


# ── Live ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_joiner_has_everything_and_the_rest_as_it_comes(closing):
    link = begin()
    send_drains(link, 700)
    wait_until(lambda: len(recorded(link.recording)) > 3)
    source = closing(LiveSource(runs.list_runs()[0]))
    collect(source, lambda events: events and events[-1].step > 3_000)
    send_drains(link, 50, first=700)
    found = []
    threading.Timer(0.2, end, (link, 3_750)).start()
    source2 = closing(LiveSource(runs.list_runs()[0]))
    found = collect(source2, has_ended)
    assert same_as_recorded(found, link.recording)
    assert wait_until(source2.finished.is_set)
    assert source2.connection == ""
    assert isinstance(found[0], protocol.RunStarted)
    assert isinstance(found[-1], protocol.RunEnded)


def test_a_monitor_that_stops_listening_ends_up_with_the_journals_frames(closing, monkeypatch):
    monkeypatch.setattr(live_module, "_BUFFER_BYTES", 20_000)
    link = begin()
    source = closing(LiveSource(runs.list_runs()[0]))
    wait_until(lambda: source.connection == "")
    send_drains(link, 3_000, pause_s=0.0005)  # nobody polls: the buffer is full, the stream overflows
    assert source._ready_bytes < 20_000 + 4 * sockets.ANSWER_BYTES
    threading.Timer(0.3, lambda: link.send(protocol.RunEnded(outcome="finished", step=15_000))).start()
    found = collect(source, has_ended)
    link.close()
    assert same_as_recorded(found, link.recording)


def test_a_suspended_monitor_ends_up_with_the_journals_frames(tmp_path):
    script = """
import sys, contextlib
from client_callback.wire import protocol, runs
from monitor.sources import LiveSource
from tests.toy_runs import collect, has_ended
with contextlib.closing(LiveSource(runs.list_runs()[0])) as source:
    print("connecting", flush=True)
    events = collect(source, has_ended, 60)
with open(sys.argv[1], "wb") as file:
    file.write(protocol.msgspec.msgpack.encode([protocol.encode(e) for e in events]))
"""
    link = begin()
    out = tmp_path / "events"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as monitor:
        monitor.stdout.readline()
        send_drains(link, 100, pause_s=0.002)
        monitor.send_signal(signal.SIGSTOP)
        # More than its queues and the kernel hold; the sockets forget it meanwhile.
        for i in range(600):
            link.send(steps(500 + 1_000 * i, 1_000))
            time.sleep(0.001)
        monitor.send_signal(signal.SIGCONT)
        link.send(protocol.RunEnded(outcome="finished"))
        assert monitor.wait(60) == 0
    link.close()
    events = [protocol.decode_event(e) for e in msgspec.msgpack.decode(out.read_bytes(), type=list[bytes])]
    assert same_as_recorded(events, link.recording)


def test_of_a_killed_training_everything_that_was_recorded_is_shown(closing, monkeypatch):
    monkeypatch.setattr(live_module, "_SILENT_S", 1.5)
    process, path = start_training(10_000, 0.01)
    source = closing(LiveSource(runs.list_runs()[0]))
    found = collect(source, lambda events: events and events[-1].step > 100)
    process.kill()
    process.communicate()
    wait_until(source.finished.is_set)
    found += source.poll().events
    assert same_as_recorded(found, path)
    assert "gone without having ended" in source.connection
    with pytest.raises(CommandError, match="run has ended"):
        source.send("stop")


def test_a_suspended_training_is_told_and_goes_on(closing, monkeypatch):
    monkeypatch.setattr(live_module, "_SILENT_S", 1.2)
    process, path = start_training(200, 0.01)
    try:
        source = closing(LiveSource(runs.list_runs()[0]))
        found = collect(source, lambda events: events and events[-1].step > 50)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: "no sign of life" in source.connection)
        assert not source.finished.is_set()
        process.send_signal(signal.SIGCONT)
        threading.Thread(target=process.communicate).start()
        found += collect(source, has_ended)
        assert same_as_recorded(found, path)
    finally:
        process.kill()
        process.wait()


def test_a_run_that_is_not_recorded_is_shown_from_memory(closing):
    link = begin(record=False)
    send_drains(link, 300)
    source = closing(LiveSource(runs.list_runs()[0]))
    collect(source, lambda events: events and events[-1].step >= 1_496)
    threading.Timer(0.1, end, (link, 1_500)).start()
    assert has_ended(collect(source, has_ended))


def test_a_command_comes_back_as_an_event_and_is_applied_once(closing):
    link = begin()
    source = closing(LiveSource(runs.list_runs()[0], "ada@box terminal"))
    id_ = source.send("lr x0.5")
    assert link.wait_for_command(10)
    (command,) = link.take_commands()
    assert (command.id, command.text, command.who) == (id_, "lr x0.5", "ada@box terminal")
    time.sleep(2.2)  # longer than it takes the source to ask again
    assert link.take_commands() == []
    link.send(protocol.Reply(id=id_, text="lr x0.5", status="applied", step=3))
    events = collect(source, lambda events: any(isinstance(e, protocol.Reply) for e in events))
    assert sum(isinstance(event, protocol.Reply) for event in events) == 1
    end(link)


def test_a_command_that_is_not_answered_fails_and_a_late_answer_is_shown(closing):
    link = begin()
    source = closing(LiveSource(runs.list_runs()[0], answer_timeout_s=0.5))
    id_ = source.send("pause")
    replied = lambda events: [e for e in events if isinstance(e, protocol.Reply)]  # noqa: E731
    (reply,) = replied(collect(source, replied))
    assert (reply.id, reply.status) == (id_, "failed")
    assert "no answer in 0 s" in reply.reason or "it may still be applied" in reply.reason
    link.send(protocol.Reply(id=id_, text="pause", status="applied"))
    assert replied(collect(source, replied))[0].status == "applied"
    end(link)


def test_what_cannot_be_understood_is_not_sent(closing):
    link = begin()
    source = closing(LiveSource(runs.list_runs()[0]))
    with pytest.raises(CommandError, match="unknown command 'faster'"):
        source.send("faster")
    with pytest.raises(CommandError, match="too long"):
        source.send("note " + "a" * 5_000)
    assert not link.wait_for_command(0.2)
    end(link)


def test_commands_under_way_are_answered_when_the_run_ends(closing):
    link = begin()
    source = closing(LiveSource(runs.list_runs()[0]))
    wait_until(lambda: source.connection == "")
    source.send("pause")
    assert link.wait_for_command(10)
    end(link)
    events = collect(source, lambda events: any(isinstance(e, protocol.Reply) for e in events))
    (reply,) = [event for event in events if isinstance(event, protocol.Reply)]
    assert reply.status == "failed"


def test_another_version_and_another_run_are_told(closing, tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        endpoint = f"ipc://{tmp_path}/r"
        router.bind(endpoint)
        run = runs.RunFile(
            run_id="a", name="a", control=endpoint, stream=f"ipc://{tmp_path}/s", pid=os.getpid()
        )
        source = closing(LiveSource(run))
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, protocol.encode(protocol.Refusal(reason="speaks version 9"))])
        wait_until(lambda: source.connection == "speaks version 9")
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"\xff nonsense"])
        wait_until(lambda: "not a valid answer" in source.connection)
        peer, _ = router.recv_multipart()
        other = protocol.Welcome(version=1, run=description("other"), last_seq=0)
        router.send_multipart([peer, protocol.encode(other)])
        wait_until(lambda: source.connection == "another run (other) uses this endpoint now")


def test_nonsense_on_the_stream_is_passed_over(closing, tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.XPUB) as stream:
        router.bind(f"ipc://{tmp_path}/r")
        stream.bind(f"ipc://{tmp_path}/s")
        run = description("a", run_id="a")
        source = closing(
            LiveSource(
                runs.RunFile(
                    run_id="a", name="a", control=f"ipc://{tmp_path}/r", stream=f"ipc://{tmp_path}/s"
                )
            )
        )
        assert stream.recv() == b"\x01"
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, protocol.encode(protocol.Welcome(version=1, run=run, last_seq=0))])
        wait_until(lambda: source.connection == "")
        for parts in (
            [b""],
            [b"h", b"\xff"],
            [b"f", b"short", b""],
            [b"x"] * 9,
            [b"f", (1).to_bytes(8, "big"), os.urandom(99)],
            [b"f", (2).to_bytes(8, "big"), protocol.encode(started(run))],
        ):
            stream.send_multipart(parts)
        assert collect(source, bool) == [started(run)]


# ── Recorded ──────────────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recording(tmp_path):
    run, events = story(drains=40, epochs=2)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    for event in events:
        writer.append([event])
    writer.close()
    return path


def steps_in(events):
    return canonical(events)[0].get("step", [])


def test_a_replay_delivers_everything_in_its_own_time(closing, recording, clock):
    source = closing(RecordedSource(recording, clock=clock))
    found = []
    while source.playing:
        found += source.poll().events
        shown = steps_in(found)
        assert shown == list(range(source.position))
        assert canonical(found)[0].get("sampled", []) == list(range(0, source.position, 5))
        if found and not source.at_end:
            # A reading folded across an epoch comes neither before its time nor much after.
            assert len(canonical(found)[0].get("reading", [])) == pytest.approx(clock.now - 50.0, abs=1.01)
        if source.playing:
            assert source.position == pytest.approx(10 * (clock.now - 50.0), abs=1.01)
        clock.now += 0.37
    assert same_as_recorded(found, recording)
    assert source.at_end
    assert source.position == source.last_step == 400
    assert not source.live


def test_a_replay_is_as_fast_as_asked(closing, recording, clock):
    source = closing(RecordedSource(recording, 8.0, clock=clock))
    source.poll()
    clock.now += 2.0
    source.poll()
    assert source.position == 160
    source.speed = 1.0
    clock.now += 2.0
    source.poll()
    assert source.position == 180
    with pytest.raises(ValueError, match="speed=0"):
        source.speed = 0


def test_a_paused_replay_stands_still_and_goes_on_where_it_was(closing, recording, clock):
    source = closing(RecordedSource(recording, clock=clock))
    source.poll()
    clock.now += 2.0
    source.poll()
    source.pause()
    clock.now += 100.0
    assert source.poll().events == []
    assert source.position == 20
    source.play()
    clock.now += 1.0
    source.poll()
    assert source.position == 30


@given(st.lists(st.integers(-20, 450), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_seeking_shows_the_same_as_having_played_to_there(tmp_path_factory, targets):
    run, events = story(drains=40, epochs=2)
    path = tmp_path_factory.mktemp("seek") / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append(events)
    writer.close()
    source = RecordedSource(path, clock=Clock())
    source.pause()
    shown = []
    for asked in targets:
        source.seek(asked)
        target = max(0, min(asked, 400))
        assert source.position == target
        update = source.poll()
        shown = update.events if update.reset else shown + update.events
        assert source.position == target
        assert steps_in(shown) == list(range(target))
        others = [e for e in shown if not isinstance(e, protocol.Columnar)]
        assert others == [e for e in others if e.step <= target]
        expected = [e for e in events if not isinstance(e, protocol.Columnar)]
        assert len(others) == sum(event.step <= target for event in expected)
    source.close()


def test_steps_and_events_can_be_visited_one_by_one(closing, recording, clock):
    source = closing(RecordedSource(recording, start_step=100, clock=clock))
    source.pause()
    first = source.poll()
    assert not first.reset
    assert steps_in(first.events) == list(range(100))
    source.step_by(1)
    assert steps_in(source.poll().events) == [100]
    source.step_by(-1)
    back = source.poll()
    assert back.reset
    assert steps_in(back.events) == list(range(100))
    assert source.event_steps == [0, 200, 400]
    source.seek(source.event_steps[1])
    assert any(isinstance(event, protocol.Reply) for event in source.poll().events)


def test_an_overhead_measured_amid_folded_steps_holds_nothing_up(closing, tmp_path, clock):
    run, _ = story()
    overhead = protocol.Overhead(share=0.01, hooks=0.0, sampling=0.0, every=10, time=1_020.0)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    drains = [steps(5 * i) for i in range(100)]
    for event in [started(run), *drains[:40], overhead, *drains[40:]]:
        writer.append([event])
    writer.close()
    source = closing(RecordedSource(path, clock=clock))
    source.poll()
    for _ in range(19):
        clock.now += 1.0
        source.poll()
    assert source.position == 190
    clock.now += 1.5
    assert overhead in source.poll().events
    source.seek(500)
    source.poll()
    assert source.at_end


def test_playing_on_after_a_seek_starts_there(closing, recording, clock):
    source = closing(RecordedSource(recording, clock=clock))
    source.poll()
    source.seek(300)
    source.poll()
    clock.now += 1.0
    source.poll()
    assert source.position == 310
    source.seek(50)
    assert source.poll().reset
    clock.now += 1.0
    source.poll()
    assert source.position == 60


def test_playing_at_the_end_begins_again(closing, recording, clock):
    source = closing(RecordedSource(recording, start_step=10_000, clock=clock))
    assert has_ended(source.poll().events)
    source.poll()
    assert not source.playing
    source.play()
    update = source.poll()
    assert update.reset
    assert source.position == 0
    assert source.playing


def test_nobody_waits_through_a_pause_of_the_training(closing, tmp_path, clock):
    run = description(started_at=1_000.0)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append([started(run), steps(0), steps(5, at=100_000.0)])
    writer.close()
    source = closing(RecordedSource(path, clock=clock))
    for _ in range(8):
        source.poll()
        clock.now += 1.0
    assert source.position == 10


def test_a_recording_that_is_still_written_is_followed(closing, tmp_path, clock):
    run, events = story(drains=10, epochs=1)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append(events[:6])
    source = closing(RecordedSource(path, start_step=10_000, clock=clock))
    found = source.poll().events
    for event in events[6:]:
        writer.append([event])
        clock.now += 5.0
        found += source.poll().events
    while not has_ended(found):
        clock.now += 5.0
        found += source.poll().events
    writer.close()
    assert canonical(found) == canonical(events)


def test_a_recording_cannot_be_steered(closing, recording):
    source = closing(RecordedSource(recording))
    with pytest.raises(CommandError, match="cannot be steered"):
        source.send("lr x0.5")
    with pytest.raises(CommandError, match="unknown command"):
        source.send("faster")


def test_a_recording_without_its_first_frame_begins_with_the_description(closing, tmp_path, clock):
    run, events = story(drains=3, epochs=1)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append(events)
    writer.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE frames SET payload = x'00' WHERE seq = 1")
        connection.commit()
    source = closing(RecordedSource(path, start_step=10_000, clock=clock))
    first = source.poll().events[0]
    assert isinstance(first, protocol.RunStarted)
    assert first.run == run
    assert "frame 1 is damaged" in source.connection


def test_a_clock_that_was_set_back_does_not_hold_the_replay(closing, tmp_path, clock):
    run = description(started_at=1_000.0)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append([started(run), steps(0, 10), steps(10, 10, at=500.0), steps(20, 10)])
    writer.close()
    source = closing(RecordedSource(path, clock=clock))
    found = []
    for _ in range(20):
        found += source.poll().events
        clock.now += 0.5
    assert steps_in(found) == list(range(30))


def test_statistics_of_steps_that_are_missing_are_shown_all_the_same(closing, tmp_path, clock):
    run = description(started_at=1_000.0)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append([started(run), samples(0, 5, 10), protocol.RunEnded(outcome="finished", time=1_002.0)])
    writer.close()
    source = closing(RecordedSource(path, clock=clock))
    found = []
    while not has_ended(found):
        found += source.poll().events
        clock.now += 0.5
    assert np.allclose(canonical(found)[0]["sampled"], [0, 5, 10])


def test_another_file_is_no_source(tmp_path):
    with pytest.raises(RecordingError, match="No such file"):
        RecordedSource(tmp_path / "absent.unstuck")
