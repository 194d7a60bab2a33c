from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import timeit
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from client_callback import link as link_module
from client_callback import tail as tail_module
from client_callback.link import Link, check_bind
from client_callback.resources import ResourceMonitor
from client_callback.wire import folders, protocol, runs, sockets
from client_callback.wire.bell import Bell
from client_callback.wire.recording import JournalReader
from monitor.sending import NoAnswer, send_to
from tests.toy_runs import canonical, description, samples, start_training, started, steps, story, wait_until


@pytest.fixture
def make_link():
    links = []

    def make(run=None, **options):
        run = run or description()
        links.append(Link(run, **options))
        links[-1].send(started(run))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def context():
    made = []

    class Context(zmq.Context):
        def socket(self, *arguments, **options):
            made.append(super().socket(*arguments, **options))
            return made[-1]

    context = Context()
    yield context
    context.destroy(linger=0)


def run_file(link):
    (found,) = [run for run in runs.list_runs() if run.control == link.endpoint]
    return found


def asker(context, link, *, run=None):
    run = run or run_file(link)
    dealer = sockets.control_socket(context, run.control, run.server_key)

    def ask(request, timeout_s=5.0):
        dealer.send(request if isinstance(request, bytes) else protocol.encode(request))
        if not dealer.poll(int(1_000 * timeout_s)):
            return None
        return protocol.decode_answer(dealer.recv())

    ask.socket = dealer
    return ask


def recorded(path):
    with JournalReader(Path(path)) as reader:
        return [event for _, event in reader.events()]


def reply_to(command, **changes):
    fields = {"id": command.id, "text": command.text, "status": "applied", "step": 5, "time": time.time()}
    return protocol.Reply(**{**fields, **changes})


# ── Recording ─────────────────────────────────────────────────────────────────────────────────────


def test_everything_sent_before_the_end_is_in_the_recording():
    run, events = story(drains=100)
    link = Link(run)
    for event in events:
        link.send(event)
    link.close()
    link.close()
    assert canonical(recorded(link.recording)) == canonical(events)
    assert runs.list_runs() == []
    assert list(folders.runtime_folder().iterdir()) == []


def test_what_is_sent_is_on_disk_a_moment_later(make_link):
    link = make_link()
    wait_until(lambda: len(recorded(link.recording)) == 1)
    delays = []
    for i in range(10):
        sent = time.monotonic()
        link.send(steps(5 * i))
        wait_until(lambda n=i: len(recorded(link.recording)) == n + 2)
        delays.append(time.monotonic() - sent)
    assert sorted(delays)[5] < 0.15


@pytest.mark.parametrize("served", [True, False])
def test_steps_wait_for_the_next_drain_and_an_answer_does_not(make_link, monkeypatch, served):
    monkeypatch.setattr(link_module, "_DRAIN_S", 60.0)
    if not served:
        monkeypatch.setattr(Link, "_open_server", lambda self, bind: None)
    link = make_link()
    link.send(protocol.StateChanged(state="running"))
    wait_until(lambda: len(recorded(link.recording)) == 2)
    link.send(steps(0))
    link.send(samples(0))
    time.sleep(0.3)
    assert len(recorded(link.recording)) == 2
    link.send(reply_to(protocol.Command(id="c1", text="pause")))
    wait_until(lambda: len(recorded(link.recording)) == 5)
    link.send(steps(5))
    link.close()
    assert len(recorded(link.recording)) == 6


def test_a_bell_that_was_rung_wakes_who_comes_later_and_rings_no_more_once_closed():
    bell = Bell()
    for _ in range(100_000):
        bell.ring()
    bell.wait(60.0)
    bell.hush()
    began = time.monotonic()
    bell.wait(0.05)
    assert time.monotonic() - began >= 0.04
    bell.close()
    bell.ring()
    bell.hush()


# ── Resources ─────────────────────────────────────────────────────────────────────────────────────


class Readings:
    """Counts what it is asked for; the second value fails at the third reading."""

    def __init__(self):
        self.count = 0
        self.closed = False

    def read(self):
        self.count += 1
        return {"cpu": 0.1 * self.count, **({} if self.count == 3 else {"gpu0_power": 200.0})}

    def close(self):
        self.closed = True


def test_the_machine_is_read_soon_and_then_about_once_a_second(make_link):
    link = make_link(resources=ResourceMonitor())
    wait_until(lambda: len(recorded(link.recording)) >= 4)
    link.send(protocol.RunEnded(outcome="finished", time=time.time()))
    link.close()
    events = recorded(link.recording)
    assert isinstance(events[0], protocol.RunStarted) and isinstance(events[-1], protocol.RunEnded)
    readings = [event for event in events if isinstance(event, protocol.Resources)]
    assert [event.first for event in readings] == list(range(len(readings)))
    assert readings[0].time - events[0].time < 0.9
    assert np.all(np.diff([event.time for event in readings]) > 0.9)
    assert {"memory", "memory_machine"} <= readings[0].columns.keys()
    assert "cpu" in readings[1].columns


def test_a_value_that_is_read_no_more_stays_a_column_without_a_number(make_link, monkeypatch):
    monkeypatch.setattr(link_module, "_READ_S", 0.0)
    source = Readings()
    link = make_link(resources=source)
    wait_until(lambda: source.count >= 5)
    link.close()
    assert source.closed
    columns = canonical(recorded(link.recording))[0]
    assert columns["reading"][:4] == [0, 1, 2, 3]
    assert columns["cpu"][:3] == pytest.approx([0.1, 0.2, 0.3])
    assert columns["gpu0_power"][:4] == pytest.approx([200.0, 200.0, np.nan, 200.0], nan_ok=True)


def test_nothing_is_read_before_the_run_begins_nor_after_it_ended(monkeypatch):
    monkeypatch.setattr(link_module, "_READ_S", 0.0)
    monkeypatch.setattr(link_module, "_FIRST_READ_S", 0.0)
    monkeypatch.setattr(link_module, "_DRAIN_S", 0.001)
    run, source = description(), Readings()
    link = Link(run, resources=source)
    time.sleep(0.1)
    assert source.count == 0
    link.send(started(run))
    wait_until(lambda: source.count > 3)
    link.send(protocol.RunEnded(outcome="finished"))
    wait_until(lambda: isinstance(recorded(link.recording)[-1], protocol.RunEnded))
    counted = source.count
    time.sleep(0.1)
    link.close()
    assert source.count <= counted + 1
    assert isinstance(recorded(link.recording)[-1], protocol.RunEnded)


def test_a_killed_training_leaves_all_but_its_last_moments():
    process, path = start_training(10_000, 0.002)
    try:
        lines = [process.stdout.readline() for _ in range(300)]
    finally:
        process.kill()
    killed_at = time.time()
    lines += process.communicate()[0].splitlines(keepends=True)
    told = [(int(line.split()[0]), float(line.split()[1])) for line in lines if line.endswith("\n")]
    expected = max(step for step, at in told if at < killed_at - 0.2)
    with JournalReader(path) as reader:
        found = [event for _, event in reader.events()]
        assert not reader.ended
        assert reader.missing == []
    last = max(e.first + e.count for e in found if isinstance(e, protocol.Steps))
    assert last >= expected
    assert runs.list_runs() == []


def test_recording_and_run_files_are_private(make_link):
    link = make_link()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in Path(os.environ["UNSTUCK_HOME"]).rglob("*")}
    for path, mode in modes.items():
        if path.is_dir():
            assert mode == 0o700, path
        elif path.is_file():
            assert mode == 0o600, path
    assert any(path.suffix == ".json" for path in modes)
    assert link.recording in modes


def test_a_folder_that_cannot_be_made_costs_the_recording_only(tmp_path, context):
    (tmp_path / "file").write_text("in the way")
    run = description()
    with pytest.warns(RuntimeWarning, match="not recorded.*Training goes on") as caught:
        link = Link(run, directory=tmp_path / "file" / "recordings")
    assert len(caught) == 1
    assert link.recording is None
    link.send(started(run))
    link.send(steps(0))
    ask = asker(context, link)
    frames = wait_until(lambda: len(f := ask(protocol.Backfill(after=0)).frames) == 3 and f)
    events = [protocol.decode_event(frame.payload) for frame in frames]
    assert isinstance(events[0], protocol.RunStarted)
    assert "not recorded" in events[1].what
    link.close()


def test_warnings_that_are_errors_do_not_reach_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Link(description(), directory=tmp_path / "file").close()
    assert "not recorded" in capsys.readouterr().err


def test_a_full_disk_ends_the_recording_and_nothing_else(context, tmp_path):
    script = """
import resource, sys, time, warnings
from client_callback.link import Link
from tests.toy_runs import description, started, steps, wait_until
run = description()
link = Link(run)
link.send(started(run))
print(link.recording, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for i in range(600):
        link.send(steps(200 * i, 200))
        time.sleep(0.001)
    wait_until(lambda: caught)
    print(len(caught), str(caught[0].message), flush=True)
    sys.stdin.readline()
    link.close()
print("done", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    path = process.stdout.readline().strip()
    told = process.stdout.readline()
    assert told.startswith("1 ")
    assert "no longer recorded" in told
    ask = asker(context, None, run=runs.list_runs()[0])
    events, after = [], 0
    while not (events and isinstance(events[-1], protocol.Steps) and events[-1].first == 200 * 599):
        answer = ask(protocol.Backfill(after=after))
        events += [protocol.decode_event(frame.payload) for frame in answer.frames]
        after = answer.frames[-1].seq if answer.frames else after
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"
    process.communicate()
    assert process.returncode == 0
    assert sum(isinstance(event, protocol.Problem) for event in events) == 1
    values, _ = canonical(events)
    assert values["step"] == list(range(120_000))
    assert 0 < len(recorded(path)) < 600


def test_a_disk_that_cannot_keep_up_costs_steps_that_are_told(make_link, monkeypatch):
    monkeypatch.setattr(link_module, "QUEUE_BYTES", 100_000)
    link = make_link()
    for i in range(2_000):
        link.send(steps(200 * i, 200))
    link.send(protocol.RunEnded(outcome="finished", step=400_000))
    link.close()
    events = recorded(link.recording)
    assert isinstance(events[-1], protocol.RunEnded)
    problems = [event.what for event in events if isinstance(event, protocol.Problem)]
    kept = sum(event.count for event in events if isinstance(event, protocol.Steps)) // 200
    assert kept + sum(int(problem.split()[0]) for problem in problems) == 2_000
    assert 1 <= len(problems) <= 5
    assert all("were lost" in problem for problem in problems)


def test_an_event_no_reader_would_accept_is_told_as_a_problem(make_link):
    link = make_link()
    link.send(protocol.Problem(what="a" * 70_000))
    link.send(steps(0))
    link.close()
    started_, told, last = recorded(link.recording)
    assert isinstance(started_, protocol.RunStarted)
    assert "a Problem could not be recorded" in told.what
    assert isinstance(last, protocol.Steps)


def test_sending_and_looking_for_commands_cost_microseconds(make_link):
    link = make_link()
    events = iter([steps(5 * i) for i in range(2_000)])
    assert timeit.timeit(lambda: link.send(next(events)), number=2_000) / 2_000 < 20e-6
    assert timeit.timeit(link.take_commands, number=20_000) / 20_000 < 2e-6


def test_without_a_recording_the_newest_steps_and_the_whole_story_are_kept(make_link, context, monkeypatch):
    monkeypatch.setattr(tail_module, "TAIL_BYTES", 50_000)
    link = make_link(record=False)
    assert link.recording is None
    for i in range(500):
        link.send(steps(5 * i))
        link.send(protocol.EpochEnded(epoch=i, step=5 * i + 5))
    ask = asker(context, link)
    wait_until(lambda: ask(protocol.Hello()).last_seq == 1_001)
    frames = ask(protocol.Backfill(after=0)).frames
    events = [protocol.decode_event(frame.payload) for frame in frames]
    kept = [event for event in events if isinstance(event, protocol.Steps)]
    assert isinstance(events[0], protocol.RunStarted)
    assert sum(isinstance(event, protocol.EpochEnded) for event in events) == 500
    assert 100 < len(kept) < 500
    assert kept[-1].first == 2_495
    assert [f.seq for f in frames] == sorted(f.seq for f in frames)


# ── Processes ─────────────────────────────────────────────────────────────────────────────────────


def test_a_forked_child_neither_records_nor_closes_anything(make_link):
    link = make_link()
    wait_until(lambda: recorded(link.recording))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        child = os.fork()
    if child == 0:
        try:
            link.send(steps(0))
            link.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    link.send(steps(5))
    wait_until(lambda: len(recorded(link.recording)) == 2)
    assert recorded(link.recording)[1].first == 5
    assert len(runs.list_runs()) == 1


def test_a_process_that_never_closes_its_link_ends_and_loses_nothing():
    script = """
from client_callback.link import Link
from tests.toy_runs import description, started, steps
run = description()
link = Link(run)
link.send(started(run))
for i in range(50):
    link.send(steps(5 * i))
print(link.recording)
"""
    root = Path(__file__).parent.parent
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=root, timeout=30
    )
    assert time.monotonic() - began < 10
    assert done.stderr == ""
    assert canonical(recorded(done.stdout.strip()))[0]["step"] == list(range(250))
    assert runs.list_runs() == []


def test_the_run_file_of_a_killed_training_is_found_stale_and_removed():
    process, _ = start_training(10_000)
    assert [run.pid for run in runs.list_runs()] == [process.pid]
    process.kill()
    process.communicate()
    assert list(folders.runtime_folder().iterdir())
    assert runs.list_runs() == []
    assert list(folders.runtime_folder().iterdir()) == []


def test_a_suspended_training_is_not_taken_for_dead():
    process, _ = start_training(10_000)
    try:
        process.send_signal(signal.SIGSTOP)
        assert len(runs.list_runs(timeout_s=0.3)) == 1
        assert not runs.is_gone(runs.list_runs(timeout_s=0.3)[0])
    finally:
        process.kill()
        process.communicate()


def test_a_runtime_folder_that_vanishes_is_made_anew(make_link, context):
    link = make_link()
    before = run_file(link)
    for path in folders.runtime_folder().iterdir():
        path.unlink()
    folders.runtime_folder().rmdir()
    assert wait_until(runs.list_runs) == [before]
    ask = asker(context, link)
    assert isinstance(ask(protocol.Hello()), protocol.Welcome)


def test_a_long_path_does_not_keep_a_run_from_being_watched(tmp_path, monkeypatch, context):
    monkeypatch.setenv("UNSTUCK_HOME", str(tmp_path / ("deep" * 30)))
    link = Link(description())
    folder = Path(link.endpoint.removeprefix("ipc://")).parent
    assert isinstance(asker(context, link)(protocol.Hello()), protocol.Welcome)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    link.close()
    assert not folder.exists()


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to user"):
        folders.private_folder(folder)


# ── Finding runs ──────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_found_by_id_prefix_name_endpoint_and_recording(make_link):
    older = make_link(description("heart", run_id="aa11bb22", started_at=time.time() - 60))
    newer = make_link(description("heart", run_id="aa99cc33"))
    other = make_link(description("digits", run_id="ff00ff00"))
    assert [run.run_id for run in runs.list_runs()] == ["ff00ff00", "aa99cc33", "aa11bb22"] or len(
        runs.list_runs()
    ) == 3
    assert runs.find_run("aa11bb22").run_id == "aa11bb22"
    assert runs.find_run("aa9").run_id == "aa99cc33"
    assert runs.find_run("heart").control == newer.endpoint
    assert runs.find_run("dig").control == other.endpoint
    assert runs.find_run(older.endpoint).run_id == "aa11bb22"
    assert runs.find_run(str(other.recording)).run_id == "ff00ff00"
    with pytest.raises(runs.RunNotFound, match=r"'aa' is not unique: .*aa99cc33 \(heart\)"):
        runs.find_run("aa")
    with pytest.raises(runs.RunNotFound, match=r"no live run 'zebra'; live: .*digits"):
        runs.find_run("zebra")


def test_no_run_at_all_is_said():
    with pytest.raises(runs.RunNotFound, match="no run is live"):
        runs.find_run("heart")


def test_files_that_are_no_run_files_are_passed_over(make_link):
    link = make_link()
    folder = folders.runtime_folder()
    (folder / "a.json").write_bytes(b"\xff\x00 nonsense")
    (folder / "b.json").write_text(json.dumps({"run_id": 5}))
    (folder / "c.json").write_bytes(b" " * (1 << 17))
    (folder / "d.json").write_bytes(
        msgspec.json.encode(
            runs.RunFile(run_id="x", name="x", control="gopher://x", stream="", host=runs.host_name())
        )
    )
    assert [run.control for run in runs.list_runs()] == [link.endpoint]


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────


def test_a_monitor_is_welcomed_with_the_run_and_gets_the_frames_in_parts(make_link, context, monkeypatch):
    monkeypatch.setattr(sockets, "ANSWER_BYTES", 5_000)
    run = description()
    link = make_link(run)
    for i in range(300):
        link.send(steps(5 * i))
    ask = asker(context, link)
    welcome = wait_until(lambda: (w := ask(protocol.Hello())).last_seq == 301 and w)
    assert welcome.run == run
    assert welcome.recording == str(link.recording)
    found, answers = [], 0
    while not found or found[-1].seq < 301:
        answer = ask(protocol.Backfill(after=found[-1].seq if found else 0))
        found += answer.frames
        answers += 1
    assert answers > 3
    assert canonical([protocol.decode_event(f.payload) for f in found])[0]["step"] == list(range(1_500))


def test_another_version_is_refused_with_what_to_do(make_link, context):
    ask = asker(context, make_link())
    answer = ask(protocol.Hello(version=protocol.PROTOCOL_VERSION + 1))
    assert (
        "speaks protocol version 2, this monitor 3; upgrade unstuck on the side of the training"
        in answer.reason
    )
    answer = ask(protocol.Hello(version=0))
    assert "side of the monitor" in answer.reason


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4_000),
        msgspec.msgpack.encode({"kind": "backfill", "after": -1}),
        msgspec.msgpack.encode({"kind": "command", "id": "", "text": "stop"}),
        msgspec.msgpack.encode({"kind": "command", "id": "a", "text": "x" * 5_000}),
        msgspec.msgpack.encode({"kind": "command", "id": "a", "text": "stop", "client": "x" * 65}),
        msgspec.msgpack.encode({"kind": "present", "client": "x" * 65}),
        msgspec.msgpack.encode({"kind": "present", "client": 1}),
        msgspec.msgpack.encode({"kind": "shutdown"}),
        b"\x91" * 50_000,
    ],
    ids=[
        *("empty", "zeros", "http", "random", "negative", "no-id", "long"),
        *("client", "present", "type", "unknown", "nested"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(make_link, context, request_bytes):
    link = make_link()
    ask = asker(context, link)
    answer = ask(request_bytes)
    assert isinstance(answer, protocol.Refusal)
    assert "request" in answer.reason
    assert isinstance(ask(protocol.Hello()), protocol.Welcome)
    assert link.take_commands() == []


def test_unstructured_bytes_on_every_socket_disturb_nothing(make_link, context):
    link = make_link()
    run = run_file(link)
    dealer = sockets.control_socket(context, run.control, "")
    dealer.send_multipart([b"", b"a", b"b"])
    assert "received 3" in protocol.decode_answer(dealer.recv()).reason
    oversized = sockets.control_socket(context, run.control, "")
    oversized.send(b"x" * (sockets.MAX_REQUEST_BYTES + 1))  # the connection is cut, nothing is stored
    subscriber = context.socket(zmq.XSUB)
    subscriber.connect(run.stream)
    subscriber.send(b"\x07neither subscription nor cancellation")
    subscriber.send(os.urandom(300))
    for endpoint in (run.control, run.stream):
        for content in (os.urandom(2_000), b"\xff" + bytes(8) + b"\x7f" + os.urandom(500), b""):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(endpoint.removeprefix("ipc://"))
                raw.sendall(content)
    link.send(steps(0))
    ask = asker(context, link)
    wait_until(lambda: ask(protocol.Hello()).last_seq >= 2)
    assert not oversized.poll(100)


def test_a_peer_that_asks_and_never_reads_costs_little_and_blocks_nobody(make_link, context):
    link = make_link()
    for i in range(50):
        link.send(steps(20_000 * i, 20_000))
    ask = asker(context, link)
    wait_until(lambda: ask(protocol.Hello()).last_seq == 51)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mute = context.socket(zmq.DEALER)
    mute.rcvhwm = 1
    mute.connect(run_file(link).control)
    for _ in range(500):
        mute.send(protocol.encode(protocol.Backfill(after=0)))
    assert isinstance(ask(protocol.Hello(), 30), protocol.Welcome)
    link.send(steps(1_000_000))
    wait_until(lambda: (a := ask(protocol.Hello())) and a.last_seq == 52)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────


def test_a_command_is_taken_once_and_answered_to_everyone_who_sent_it(make_link, context):
    link = make_link()
    first, second = asker(context, link), asker(context, link)
    command = protocol.Command(id="c1", text="lr x0.5", who="ada")
    assert first(command, 0.2) is None
    assert second(command, 0.2) is None
    assert first(command, 0.2) is None
    assert link.wait_for_command(5.0)
    assert link.take_commands() == [command]
    assert not link.wait_for_command(0.0)
    link.send(reply_to(command))
    for ask in (first, second):
        assert ask.socket.poll(5_000)
        assert protocol.decode_answer(ask.socket.recv()).id == "c1"
    assert asker(context, link)(command).status == "applied"
    assert link.take_commands() == []
    link.close()
    assert [event.id for event in recorded(link.recording) if isinstance(event, protocol.Reply)] == ["c1"]


def test_a_command_after_the_end_is_refused_and_the_end_stays_the_last_frame(make_link, context):
    link = make_link()
    ask = asker(context, link)
    link.send(protocol.RunEnded(outcome="finished"))
    wait_until(lambda: ask(protocol.Hello()).last_seq == 2)
    assert ask(protocol.Command(id="c1", text="stop")).reason == "the run has ended"
    link.close()
    assert isinstance(recorded(link.recording)[-1], protocol.RunEnded)


def test_commands_that_nobody_took_are_answered_when_the_run_closes(make_link, context):
    link = make_link()
    ask = asker(context, link)
    assert ask(protocol.Command(id="c1", text="stop"), 0.2) is None
    link.close()
    assert ask.socket.poll(5_000)
    answer = protocol.decode_answer(ask.socket.recv())
    assert (answer.id, answer.text, answer.status) == ("c1", "stop", "failed")


# ── TCP ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://127.0.0.1", "ipc:///tmp/x", "x", ""]
)
def test_only_loopback_is_offered(bind):
    with pytest.raises(ValueError, match=r"possible: None .*127\.0\.0\.1:PORT"):
        check_bind(bind)


def test_tcp_is_encrypted_and_lets_in_only_known_keys(make_link, context, tmp_path, monkeypatch):
    link = make_link(bind="tcp://127.0.0.1:0")
    run = run_file(link)
    assert run.server_key
    assert run.control.startswith("tcp://127.0.0.1:")
    assert isinstance(asker(context, link)(protocol.Hello()), protocol.Welcome)

    plain = context.socket(zmq.DEALER)
    plain.connect(run.control)
    plain.send(protocol.encode(protocol.Hello()))
    monkeypatch.setenv("UNSTUCK_HOME", str(tmp_path / "stranger"))
    stranger = sockets.control_socket(context, run.control, run.server_key)
    with contextlib.suppress(zmq.Again):  # refused before it could say anything
        stranger.send(protocol.encode(protocol.Hello()), zmq.DONTWAIT)
    listening = sockets.stream_socket(context, run.stream, run.server_key)
    link.send(steps(0))
    assert not plain.poll(700)
    assert not stranger.poll(100)
    assert not listening.poll(100)


def test_whoever_is_not_let_in_is_told_that_nobody_answers(make_link, tmp_path, monkeypatch):
    link = make_link(bind="tcp://127.0.0.1:0")
    run = run_file(link)
    monkeypatch.setenv("UNSTUCK_HOME", str(tmp_path / "stranger"))
    began = time.monotonic()
    assert sockets.ask_each({"a": (run.control, run.server_key, protocol.Hello())}, 0.5) == {}
    with pytest.raises(NoAnswer, match=r"did not answer within 0\.5 s"):
        send_to(run, "stop", wait_s=0.5)
    assert time.monotonic() - began < 5
    assert link.take_commands() == []


def test_a_busy_port_costs_live_watching_only():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = description()
        with pytest.warns(
            RuntimeWarning, match=rf"cannot be watched or steered live at tcp://127.0.0.1:{port}"
        ):
            link = Link(run, bind=f"tcp://127.0.0.1:{port}")
    assert link.endpoint is None
    link.send(started(run))
    link.send(samples(0))
    assert not link.wait_for_command(0.01)
    link.close()
    assert len(recorded(link.recording)) == 3
