from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

from client_callback.link import Link
from client_callback.wire import folders, protocol, runs
from client_callback.wire.journal import JournalWriter
from monitor import demo, plain
from monitor.cli import main
from monitor.diagnosis.engine import Diagnosis
from monitor.diagnosis.finding import Evidence, Finding
from monitor.mistake import Mistake
from monitor.recorded_session import session_at
from monitor.report import as_object
from monitor.sending import NoAnswer, send
from monitor.session import Session
from monitor.sources import RecordedSource
from tests.toy_runs import description, start_training, started, steps, story, wait_until

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "monitor"]


@pytest.fixture
def training():
    """A process that answers commands: halves its rate, refuses another optimizer."""
    process, path = start_training(10_000, 0.02)
    yield path
    process.kill()
    process.communicate()


@pytest.fixture
def recording(tmp_path):
    run, events = story(drains=40, epochs=2)
    path = tmp_path / "toy.unstuck"
    writer = JournalWriter(path, run)
    writer.append(events)
    writer.close()
    return path


def unstuck(*words, **options):
    return subprocess.run(
        [*PROGRAM, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        **options,
    )


def one_line(text):
    assert text.startswith("unstuck: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


# ── send ──────────────────────────────────────────────────────────────────────────────────────────


def test_send_prints_one_object_and_says_by_its_exit_code_whether_it_was_applied(training):
    done = unstuck("send", "toy", "lr", "x0.5", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["status"] == "applied"
    assert (answer["before"], answer["after"]) == ({"learning_rate": 0.1}, {"learning_rate": 0.05})
    assert answer["step"] > 0
    assert answer["reason"] == ""
    assert answer["command"] == "lr x0.5"
    done = unstuck("send", "--json", "toy", "optimizer sgd learning_rate=0.01")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "refused")


def test_send_tells_a_person_what_changed(training, capsys):
    run = runs.list_runs()[0]
    assert main(["send", run.run_id[:5], "lr", "/2"]) == 0
    assert re.fullmatch(r"applied at step \d+: learning_rate 0\.1 → 0\.05\n", capsys.readouterr().out)


@pytest.mark.parametrize(("encoding", "arrow"), [("ascii", "->"), ("utf-8", "→"), ("latin-1", "->")])
def test_an_answer_is_told_in_the_signs_that_the_terminal_has(training, encoding, arrow):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = unstuck("send", "toy", "lr", "/2", env=environment, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"learning_rate 0.1 {arrow} 0.05" in done.stdout


def test_a_recordings_path_and_an_endpoint_stand_for_the_live_run(training, capsys):
    run = runs.list_runs()[0]
    assert main(["send", str(training), "pause"]) == 0
    assert main(["send", run.control, "resume"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["send", "toy", "faster"], 2, "unknown command 'faster'; possible: lr, schedule, optimizer"),
        (["send", "toy", "lr", "fast"], 2, "'fast' is no number"),
        (["send", "toy", "lr"], 2, "lr takes one value, received nothing; write lr VALUE"),
        (["send", "toy", "note " + "a" * 4_100], 2, "too long"),
        (["send", "absent", "stop"], 3, "no live run 'absent'; live: "),
    ],
)
def test_send_says_in_one_line_what_is_wrong(training, capsys, words, code, what):
    assert main(words) == code
    captured = capsys.readouterr()
    assert what in one_line(captured.err)
    assert captured.out == ""
    assert main([*words, "--json"]) == code
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["status"], answer["command"]) == ("failed", " ".join(words[2:]))
    assert what in answer["reason"]
    assert (answer["step"], answer["before"], answer["after"], answer["id"]) == (None, {}, {}, None)


@pytest.fixture
def answering():
    """Has a run answer the next command as told; gives what the command was."""
    links, threads = [], []

    def begin(status, actions=(), **reply):
        run = description(actions=actions)
        links.append(Link(run))
        links[-1].send(started(run))
        taken = []

        def answer():
            assert links[-1].wait_for_command(20)
            taken.extend(links[-1].take_commands())
            links[-1].send(
                protocol.Reply(id=taken[0].id, text=taken[0].text, status=status, step=7, time=1.0, **reply)
            )

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return taken

    yield begin
    for thread in threads:
        thread.join()
    for link in links:
        link.close()


PLAN = (
    protocol.PlanLine(topic="keeps", text="clipnorm 1"),
    protocol.PlanLine(topic="resets", text="moments, which start at zero"),
)


@pytest.mark.parametrize(
    "words", [["lr", "x0.5", "--dry-run"], ["lr x0.5 --dry-run"], ["--dry-run", "lr x0.5"]]
)
def test_a_dry_run_prints_the_plan_line_by_line(answering, capsys, words):
    asked = answering("planned", plan=PLAN)
    assert main(["send", "toy", *words]) == 0
    assert capsys.readouterr().out == "keeps: clipnorm 1\nresets: moments, which start at zero\n"
    assert asked[0].text == "lr x0.5 --dry-run"


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("applied", 0, "applied at step 7"),
        ("ineffective", 0, "ineffective at step 7: all units were dead already"),
        ("planned", 0, "planned at step 7"),
        ("refused", 1, "refused at step 7"),
        ("failed", 1, "failed at step 7"),
    ],
)
def test_only_what_was_refused_or_failed_is_no_success(answering, capsys, status, code, said):
    answering(status, reason="all units were dead already")
    assert main(["send", "toy", "reinit", "dense"]) == code
    assert said in capsys.readouterr().out


def test_all_that_an_answer_holds_is_in_its_json(answering, capsys):
    measured = protocol.Measured(value=0.25, step=6)
    answering("planned", plan=PLAN, timer=3, update_before=measured, update_after=measured)
    assert main(["send", "toy", "lr x0.5 at step 9", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["timer"] == 3 and answer["plan"][0] == {"topic": "keeps", "text": "clipnorm 1"}
    assert answer["update_before"] == answer["update_after"] == {"value": 0.25, "step": 6}
    assert list(answer)[:6] == ["status", "step", "before", "after", "reason", "id"]


def test_a_trials_flag_is_part_of_the_command(answering):
    asked = answering("applied")
    assert main(["send", "toy", "trial", "keep", "adam 1e-4", "for", "9", "steps", "--adopt"]) == 0
    assert asked[0].text == "trial keep 'adam 1e-4' for 9 steps --adopt"


def test_commands_of_the_script_are_sent_to_a_run_that_has_them(answering, capsys):
    asked = answering("applied", actions=("render",))
    assert main(["send", "toy", "render", "big"]) == 0
    assert asked[0].text == "render big"
    assert main(["send", "toy", "rendre"]) == 2
    assert one_line(capsys.readouterr().err).endswith("note, render\n")


def test_what_takes_long_is_told_to_be_waited_for(capsys):
    link = Link(description())
    assert main(["send", "toy", "trial", "keep", "for", "9", "steps", "--wait", "0.1"]) == 4
    assert "it answers when that is done: --wait S (wait_s=S) waits longer" in one_line(
        capsys.readouterr().err
    )
    link.close()


def test_send_gives_up_in_time(capsys):
    link = Link(description())
    began = time.monotonic()
    assert main(["send", "toy", "stop", "--wait", "0.4"]) == 4
    assert time.monotonic() - began < 5
    assert "did not answer within 0.4 s; it may still apply 'stop'" in one_line(capsys.readouterr().err)
    assert main(["send", "toy", "stop", "--wait", "0.1", "--json"]) == 4
    assert "did not answer" in json.loads(capsys.readouterr().out)["reason"]
    with pytest.raises(NoAnswer):
        send("toy", "stop", wait_s=0.1)
    assert [command.who for command in link.take_commands()] == [
        f"{runs.user_name()}@{runs.host_name()} send"
    ] * 3
    link.close()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["send"],
        ["send", "toy"],
        ["send", "toy", "stop", "--wait", "-1"],
        ["send", "toy", "stop", "--wait", "soon"],
        ["replay", "x", "--speed", "0"],
        ["replay", "x", "--from", "-3"],
        ["export", "x"],
        ["export", "x", "--to", "parquet"],
        ["demo", "cats"],
    ],
)
def test_words_that_are_no_command_line_are_refused_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: unstuck" in capsys.readouterr().err


# ── runs, watch ───────────────────────────────────────────────────────────────────────────────────


def test_runs_lists_what_is_live(capsys):
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no run is live on this machine\n"
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    link = Link(description("heart", run_id="0123abcd"))
    assert main(["runs"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "NAME", "PID", "USER", "SINCE", "RECORDING"]
    assert row.split()[:3] == ["0123abcd", "heart", str(os.getpid())]
    assert main(["runs", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["run_id"], run["recording"]) == ("0123abcd", str(link.recording))
    link.close()


def test_watch_without_any_run_says_how_to_start_one(capsys):
    assert main(["watch"]) == 3
    assert "unstuck demo" in one_line(capsys.readouterr().err)
    assert main(["watch", "heart"]) == 3
    assert "no run is live" in one_line(capsys.readouterr().err)


def test_watch_without_a_terminal_prints_the_newest_run_until_it_ends():
    older = Link(description("older", started_at=time.time() - 100))
    process, path = start_training(60, 0.02, "newer")
    done = unstuck("watch")
    process.communicate()
    older.close()
    assert done.returncode == 0
    assert "2 runs are live; watching the newest" in done.stderr
    lines = done.stdout.splitlines()
    assert "(newer)" in lines[0]
    assert lines[-1] == "run finished at step 300"
    assert lines[-2].startswith("step 300  loss 299  accuracy 300")
    assert path.exists()


def test_watch_of_a_recording_that_is_over_shows_all_of_it_at_once(recording):
    done = unstuck("watch", recording, "--no-tui")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "run finished at step 400"


def test_a_reader_that_has_seen_enough_is_no_error(recording):
    done = subprocess.run(
        f"{sys.executable} -m monitor export {recording} --to csv | head -1",
        check=False,
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.startswith("step,epoch,time")
    assert done.stderr == ""


def test_watching_ends_with_its_reader_though_the_run_is_quiet():
    link = Link(description())
    link.send(started(description()))
    done = subprocess.run(
        f"{sys.executable} -m monitor watch toy | head -1",
        check=False,
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    link.close()
    assert done.stdout.startswith("run ")
    assert done.stderr == ""


def test_signs_that_a_pipes_encoding_lacks_end_nothing(recording):
    done = unstuck("watch", recording, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "-- lr x0.5: applied at step 200: learning_rate 0.1 -> 0.05" in done.stdout


@pytest.mark.parametrize(
    ("term", "keys"), [("xterm-256color", False), ("dumb", True), ("", True), (None, True)]
)
def test_where_nothing_can_be_drawn_or_no_keys_come_lines_are_printed(recording, term, keys):
    terminal, inner = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "TERM"}
    process = subprocess.Popen(
        [*PROGRAM, "watch", str(recording)],
        cwd=ROOT,
        env=environment if term is None else {**environment, "TERM": term},
        stdin=inner if keys else subprocess.DEVNULL,
        stdout=inner,
        stderr=inner,
    )
    seen = b""
    while b"run finished at step 400" not in seen:
        seen += os.read(terminal, 10_000)
    assert process.wait(30) == 0
    os.close(inner)
    os.close(terminal)
    assert b"\x1b" not in seen


@pytest.mark.parametrize(
    ("encoding", "term", "braille"),
    [("utf-8", "xterm", True), ("ascii", "xterm", False), ("utf-8", "linux", False)],
)
def test_a_terminal_without_braille_is_drawn_on_in_ascii(recording, encoding, term, braille):
    terminal, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, "watch", str(recording)],
        cwd=ROOT,
        env={**os.environ, "TERM": term, "PYTHONIOENCODING": encoding},
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    seen = b""
    while b"400/400" not in seen and b"finished" not in seen:
        seen += os.read(terminal, 10_000)
    os.write(terminal, b"q")
    while process.poll() is None:
        seen += os.read(terminal, 10_000) if select.select([terminal], [], [], 0.1)[0] else b""
    os.close(inner)
    os.close(terminal)
    assert process.returncode == 0
    drawn = seen.decode("utf-8", errors="replace")
    assert any("\u2801" <= sign <= "\u28ff" for sign in drawn) == braille
    assert braille or drawn.isascii(), [sign for sign in drawn if not sign.isascii()]


def test_the_speed_in_lines_leaves_validation_out():
    lines = plain.Lines()
    events = [
        protocol.EpochBegan(epoch=0, time=1_000.0),
        steps(0, 50),
        protocol.StateChanged(state="validating", step=50, time=1_005.0),
        protocol.StateChanged(state="running", step=50, time=1_065.0),
        protocol.EpochBegan(epoch=1, step=50, time=1_065.0),
        steps(50, 50, at=1_060.0),
    ]
    assert [line for event in events for line in lines.of(event)] == []
    assert lines.status().endswith("  10 steps/s")


def test_lines_tell_examples_a_second_and_no_times_of_steps():
    lines = plain.Lines()
    series = (protocol.Series(name="loss"), protocol.Series(name="examples", kind="timing"))
    events = [protocol.Instrumented(series=series), steps(0, 50, names=("loss", "examples"))]
    assert [line for event in events for line in lines.of(event)] == []
    assert lines.status() == "step 50  loss 49  10 steps/s  255 examples/s"


def test_a_terminal_asks_which_of_several_runs_is_meant(tmp_path):
    links = [Link(description(name)) for name in ("heart", "digits")]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(PROGRAM[0], [*PROGRAM, "watch"])
    seen = b""
    while b"Which run? [1-2" not in seen:
        seen += os.read(terminal, 1_000)
    os.write(terminal, b"cats\n")
    while b"no live run 'cats'; live: " not in seen or seen.count(b"Which run?") < 2:
        seen += os.read(terminal, 1_000)
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)
    assert b"digits" in seen
    for link in links:
        link.close()


# ── Recordings ────────────────────────────────────────────────────────────────────────────────────


def test_replay_without_a_terminal_prints_what_happened(recording, capsys):
    assert main(["replay", str(recording), "--from", "390", "--speed", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "run finished at step 400"
    assert "-- lr x0.5: applied at step 200: learning_rate 0.1 → 0.05" in lines
    assert "-- epoch 1 ended at step 200: loss 200  val_loss nan" in lines


def test_export_writes_a_table_to_a_file_or_to_standard_output(recording, tmp_path, capsys):
    assert main(["export", str(recording), "--to", "csv"]) == 0
    text = capsys.readouterr().out
    assert len(list(csv.DictReader(io.StringIO(text)))) == 400
    output = tmp_path / "steps.csv"
    assert main(["export", str(recording), "--to", "csv", "-o", str(output)]) == 0
    assert output.read_text() == text
    assert main(["export", str(recording), "--to", "jsonl", "--what", "layers"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"step": 0, "variable": "dense/kernel", "gradient_norm": 0.0}


def test_export_never_writes_over_the_recording(recording, capsys):
    before = recording.read_bytes()
    assert main(["export", str(recording), "--to", "csv", "-o", str(recording)]) == 2
    assert "is the recording itself" in one_line(capsys.readouterr().err)
    assert recording.read_bytes() == before
    assert main(["export", str(recording), "--to", "csv", "-o", "/absent/folder/x"]) == 1
    assert "cannot be written" in one_line(capsys.readouterr().err)


def test_info_says_what_a_recording_holds(recording, capsys):
    assert main(["info", str(recording)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^steps +400$", text, re.MULTILINE)
    assert main(["info", str(recording), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "finished"


def test_info_leaves_out_what_is_not_known(tmp_path, capsys):
    optimizer = protocol.Optimizer(
        name="sgd",
        class_name="SGD",
        settings={"learning_rate": 0.01, "weight_decay": None},
        rate_owners=("ReduceLROnPlateau", "a callback"),
    )
    run = description(optimizer=optimizer)
    writer = JournalWriter(tmp_path / "toy.unstuck", run)
    writer.append([started(run), protocol.RunEnded(outcome="finished", time=run.started_at)])
    writer.close()
    assert main(["info", str(tmp_path / "toy.unstuck")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["optimizer"] == (
        "name=sgd class_name=SGD settings=(learning_rate=0.01) rate_owners=ReduceLROnPlateau; a callback"
    )
    assert lines["outcome"] == "finished"
    assert "reason" not in lines and "model" not in lines


@pytest.mark.parametrize("words", [["info"], ["replay"], ["export", "--to", "csv"]])
def test_what_is_no_recording_is_said_in_one_line(words, tmp_path, capsys):
    other = tmp_path / "notes.txt"
    other.write_text("loss 0.69")
    assert main([words[0], str(other), *words[1:]]) == 1
    assert "is no recording of unstuck" in one_line(capsys.readouterr().err)
    assert main([words[0], str(tmp_path / "absent"), *words[1:]]) == 1
    assert "No such file" in one_line(capsys.readouterr().err)


def test_a_damaged_recording_is_exported_as_far_as_it_goes(recording, capsys):
    content = recording.read_bytes()
    at = content.index(np.arange(200, 204, dtype="<f4").tobytes())  # losses in the middle of the run
    recording.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    assert main(["export", str(recording), "--to", "csv"]) == 0
    captured = capsys.readouterr()
    assert 0 < captured.out.count("\n") < 401
    assert "is damaged: its checksum does not fit" in captured.err


def test_lines_of_a_killed_training_end_where_its_recording_ends(tmp_path):
    path = tmp_path / "toy.unstuck"
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True
    )
    run = description(started_at=1_000.0, pid=int(ended.stdout))
    writer = JournalWriter(path, run)
    writer.append([started(run), steps(0)])
    writer.close()
    out = io.StringIO()
    with contextlib.closing(RecordedSource(path, 1_000.0)) as source:
        assert plain.follow(source, out) is None
    assert out.getvalue().splitlines()[-1].startswith("step 5  loss 4")


# ── diagnose ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stuck(tmp_path):
    """A recording of 600 steps at ln 2, whose loss is NaN from step 500 on; and the events in it."""
    losses = 0.693 + np.random.default_rng(0).normal(0.0, 0.02, 600)
    losses[500:] = np.nan
    run = description("heart", started_at=1_000.0)
    times = 1_000.0 + 0.1 * np.arange(1, 601)
    events = [
        started(run),
        protocol.Instrumented(series=(protocol.Series(name="loss"),), time=1_000.0),
        protocol.EpochBegan(epoch=0, time=1_000.0),
        *(
            protocol.steps_event(
                first,
                times[first : first + 50],
                {"loss": losses[first : first + 50].astype(np.float32)},
                time=float(times[first + 49]),
            )
            for first in range(0, 600, 50)
        ),
        protocol.EpochEnded(epoch=0, step=600, time=1_061.0, logs={"loss": math.nan}),
    ]
    writer = JournalWriter(tmp_path / "stuck.unstuck", run)
    writer.append([*events, protocol.RunEnded(outcome="finished", step=600, time=1_062.0)])
    writer.close()
    return tmp_path / "stuck.unstuck", events


def test_diagnose_prints_a_report_that_fits_a_terminal(stuck):
    done = unstuck("diagnose", stuck[0])
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("STUCK: ")
    assert lines[1].startswith("heart (") and "600 steps" in lines[1]
    assert "1. CRITICAL: Values are not finite [non-finite]" in lines
    assert any(line.startswith("   since step 500, 9") for line in lines)
    assert "       unstuck send heart lr /10 from start" in lines
    assert "       keras.optimizers.Adam(learning_rate=1e-4, global_clipnorm=1.0)" in lines
    assert "The run is over: what can be sent is for its next time." in lines
    assert all(len(line) <= 80 for line in lines)


def test_diagnose_as_json_has_stable_names_and_no_nan(stuck):
    done = unstuck("diagnose", stuck[0], "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert set(told) == {"verdict", "findings", "silent", "step", "run"}
    assert (told["verdict"], told["step"]) == ("stuck", 600)
    assert len(told["run"]) == 8
    best = told["findings"][0]
    assert set(best) == {
        *("rule", "title", "severity", "confidence", "onset_step"),
        *("evidence", "explanation", "remedies", "symptoms"),
    }
    assert (best["rule"], best["severity"], best["onset_step"]) == ("non-finite", "critical", 500)
    assert set(best["evidence"][0]) == {"text", "step", "numbers"}
    assert {"lr /10 from start", "pause", "stop"} <= {one.get("command") for one in best["remedies"]}
    assert all(set(one) in ({"command", "text"}, {"advice", "code"}) for one in best["remedies"])
    assert all(set(one) == {"rule", "reason"} and one["reason"] for one in told["silent"])


def test_numbers_that_json_cannot_hold_are_null():
    evidence = Evidence("loss nan", None, {"loss": math.nan, "norm": math.inf, "rate": np.float32(0.5)})
    finding = Finding("non-finite", "Not finite", "critical", 1.0, 0, 1, (evidence,), "It is not.")
    diagnosis = Diagnosis("stuck", (finding,), ())
    (told,) = as_object(diagnosis, Session())["findings"]
    assert told["evidence"] == [
        {"text": "loss nan", "step": None, "numbers": {"loss": None, "norm": None, "rate": 0.5}}
    ]


def test_diagnose_at_a_step_knows_nothing_of_what_came_later(stuck, capsys):
    assert main(["diagnose", str(stuck[0]), "--at", "500", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 500
    assert {one["rule"] for one in told["findings"]}.isdisjoint({"non-finite"})
    assert main(["diagnose", str(stuck[0]), "--at", "501", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["rule"] == "non-finite"
    assert main(["diagnose", str(stuck[0]), "--at", "0"]) == 0
    assert "could not be judged:" in capsys.readouterr().out
    assert main(["diagnose", str(stuck[0]), "--at", "601"]) == 2
    assert "has 600 steps so far" in one_line(capsys.readouterr().err)


def told_steps(run):
    done = unstuck("diagnose", run.run_id, "--json")
    return json.loads(done.stdout)["step"] if done.returncode == 0 else 0


@pytest.mark.parametrize("recorded", [True, False])
def test_diagnose_of_a_live_run_reads_its_recording_or_asks_it(stuck, capsys, recorded):
    run = description("heart")
    link = Link(run, record=recorded)
    link.send(started(run))
    for event in stuck[1][1:]:
        link.send(event)
    wait_until(lambda: told_steps(run) == 600)
    assert main(["diagnose", "heart"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "1. CRITICAL: Values are not finite [non-finite]" in captured.out
    assert f"unstuck send {run.run_id} pause" in captured.out
    assert "The run is over" not in captured.out
    assert main(["diagnose", run.run_id, "--at", "400", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["run"]) == (400, run.run_id)
    link.close()


def test_diagnose_says_what_it_cannot_read_or_find(tmp_path, capsys):
    other = tmp_path / "notes.txt"
    other.write_text("loss 0.69")
    assert main(["diagnose", str(other)]) == 1
    assert "is no recording of unstuck" in one_line(capsys.readouterr().err)
    assert main(["diagnose", str(tmp_path / "absent.unstuck")]) == 1
    assert "No such file" in one_line(capsys.readouterr().err)
    assert main(["diagnose", "absent"]) == 3
    assert "no live run 'absent'" in one_line(capsys.readouterr().err)
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", "x", "--at", "-1"])
    assert caught.value.code == 2


@pytest.mark.parametrize("step", [0, 1, 7, 200, 399, 400])
def test_a_session_at_a_step_is_that_of_a_replay_that_has_got_there(recording, step):
    replayed = Session()
    with contextlib.closing(RecordedSource(recording, start_step=step)) as source:
        for event in source.poll().events:
            replayed.apply(event)
    there = session_at(recording, step)
    assert len(there.times) == step
    assert there.series == replayed.series and there.statistics == replayed.statistics
    assert (there.step, there.epochs, there.epoch_ends) == (step, replayed.epochs, replayed.epoch_ends)
    assert [reply.id for reply in there.replies] == [reply.id for reply in replayed.replies]
    assert (there.ended is not None) == (step == 400)


def test_a_session_without_a_step_is_all_of_it(recording):
    assert session_at(recording, None) == session_at(recording, 400) == session_at(recording, 10_000)


# ── The program itself ────────────────────────────────────────────────────────────────────────────


def test_help_loads_next_to_nothing():
    script = (
        "import sys, monitor.cli as c\ntry: c.main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint({"numpy", "zmq", "textual", "rich", "keras", "msgspec", "sqlite3"})
    assert "exit codes" in done.stdout


def test_listing_runs_loads_no_drawing():
    script = "import sys, monitor.cli as c\nc.main(['runs'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert set(done.stderr.split()).isdisjoint({"textual", "rich", "keras", "tensorflow", "sklearn"})


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"unstuck \d+\.\d+.*\n", capsys.readouterr().out)


# ── demo ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_demo_is_watched_and_stopped_with_its_watcher():
    process = subprocess.Popen(
        [*PROGRAM, "demo", "digits", "--no-tui"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    lines = []
    while not any(line.startswith("step ") for line in lines):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    (run,) = runs.list_runs()
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "training was stopped too" in rest
    assert "Traceback" not in errors
    assert "(digits)" in lines[0]
    wait_until(lambda: runs.is_gone(run))
    assert runs.list_runs() == []
    (log,) = folders.logs_folder().iterdir()
    assert log.stat().st_mode & 0o077 == 0


def test_the_demos_are_listed(capsys):
    assert main(["demo", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:2] == ["heart", "digits"] and "learning-rate-high" in names


def test_what_has_no_twin_cannot_be_repaired(capsys):
    assert main(["demo", "heart", "--repaired"]) == 2
    assert "no repaired twin" in one_line(capsys.readouterr().err)


def test_an_ailment_is_a_demo_and_has_a_repaired_twin():
    done = unstuck("demo", "batch-size", "--repaired", "--no-tui")
    assert done.returncode == 0, done.stderr
    assert "held-out R²: 0." in done.stdout


def test_a_demo_stops_with_the_reader_of_its_lines():
    done = subprocess.run(
        f"{sys.executable} -m monitor demo digits | head -2",
        check=False,
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert "(digits)" in done.stdout
    assert "training was stopped too; recording: " in done.stderr
    assert "Traceback" not in done.stderr
    assert runs.list_runs() == []


def test_leaving_a_demo_says_where_its_recording_is(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    link = Link(description())
    text = demo.how_to_go_on(demo.Training("heart", process, tmp_path / "log"), runs.list_runs()[0])
    process.communicate(b"\n")
    link.close()
    assert f"unstuck replay {link.recording}" in text
    assert "goes on" in text


def test_a_demo_that_dies_says_why(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "keras.py").write_text("raise RuntimeError('no such device')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    training = demo.start("digits")
    with pytest.raises(Mistake, match=r"exit code 1(.|\n)*no such device") as caught:
        demo.wait_for_run(training)
    assert caught.value.code == 1


def test_a_demo_without_its_libraries_names_what_to_install(tmp_path, monkeypatch):
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "sklearn.py").write_text("raise ModuleNotFoundError(\"No module named 'sklearn'\")")
    monkeypatch.setenv("PYTHONPATH", str(missing))
    training = demo.start("digits")
    with pytest.raises(Mistake, match=re.escape('pip install "unstuck[demos]"')):
        demo.wait_for_run(training)
