"""The whole way: a real `fit` in another process, watched, steered, killed, replayed and exported by the command."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest

from client_callback.wire import protocol
from monitor.session import Session
from monitor.sources import LiveSource, RecordedSource
from tests.live_fit import live_fit
from tests.recorded import events, of_kind, series


def unstuck(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def send(run: str, *command: str) -> dict:
    done = unstuck("send", run, *command, "--json", "--wait", "30")
    reply = json.loads(done.stdout)
    assert done.returncode == (0 if reply["status"] == "applied" else 1)
    return reply


def exported(path: str, what: str = "steps") -> list[dict[str, str]]:
    done = unstuck("export", path, "--to", "csv", "--what", what)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)  # conditions read the whole recording: more often would hold the training up


def steps_recorded(path: str) -> int:
    """What an onlooker sees in a recording that is being written."""
    return sum(event.count for event in of_kind(Path(path), protocol.Steps))


def test_what_a_script_changes_takes_effect_at_the_very_step_the_answer_names(home, tmp_path):
    """On a schedule, and between executions of several steps."""
    saved = tmp_path / "model.keras"
    with live_fit(home, "--save", str(saved), "--schedule", "--steps-per-execution", "7") as (process, run):
        wait_until(lambda: steps_recorded(run.recording) > 20)
        rate = send("live", "lr", "5e-4")
        assert rate["status"] == "applied"
        assert rate["after"]["learning_rate"] == pytest.approx(5e-4, rel=1e-6)
        wait_until(lambda: steps_recorded(run.recording) > rate["step"] + 20)
        switch = send(run.run_id, "optimizer", "sgd", "learning_rate=0.01", "momentum=0.9")
        assert switch["status"] == "applied"
        assert switch["before"]["optimizer"] == "adam"
        assert switch["after"]["optimizer"] == "sgd"
        wait_until(lambda: steps_recorded(run.recording) > switch["step"] + 20)
        refused = send("live", "optimizer", "sdg")
        assert refused["status"] == "refused"
        assert "sgd" in refused["reason"]
        assert send("live", "stop")["status"] == "applied"
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    rows = exported(run.recording)
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    rates = np.array([float(row["learning_rate"]) for row in rows])
    np.testing.assert_allclose(rates[rate["step"] : switch["step"]], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(rates[switch["step"] :], 0.01, rtol=1e-6)
    assert (rates[: rate["step"]] > 9.9e-4).all()
    assert json.loads(output)["optimizer"].lower() == "sgd"
    loaded = keras.models.load_model(saved)
    assert type(loaded.optimizer) is keras.optimizers.SGD
    assert loaded.optimizer.momentum == 0.9
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(loaded.optimizer.iterations) == len(rows) - switch["step"]
    momenta = [v.numpy() for v in loaded.optimizer.variables if "momentum" in v.path]
    assert momenta
    assert any(np.abs(m).max() > 0 for m in momenta)


def test_pause_holds_training_and_resume_lets_it_go_on(home):
    with live_fit(home) as (_, run):
        wait_until(lambda: steps_recorded(run.recording) > 5)
        paused = send("live", "pause")
        assert paused["status"] == "applied"
        assert steps_recorded(run.recording) == paused["step"]
        assert send("live", "pause")["status"] == "refused"
        assert send("live", "lr", "x0.5")["step"] == paused["step"]
        assert steps_recorded(run.recording) == paused["step"]
        assert send("live", "resume")["status"] == "applied"
        wait_until(lambda: steps_recorded(run.recording) > paused["step"] + 5)


def test_a_killed_training_leaves_a_recording_that_misses_at_most_a_fifth_of_a_second(home, tmp_path):
    ledger = tmp_path / "ledger"
    with live_fit(home, "--ledger", str(ledger)) as (process, run):
        wait_until(lambda: steps_recorded(run.recording) > 200)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = [float(line) for line in ledger.read_text().split()]
        path = Path(run.recording)
    recorded = series(path)["loss"]
    assert len(recorded) >= sum(moment < finished[-1] - 0.2 for moment in finished)
    info = json.loads(unstuck("info", run.recording, "--json").stdout)
    assert info["run"]["name"] == "live" if "run" in info else info["name"] == "live"


def collect(source: LiveSource, until: Callable[[Session], bool], session: Session) -> Session:
    def advance() -> bool:
        for event in source.poll().events:
            session.apply(event)
        return until(session)

    wait_until(advance)
    return session


def recorded_session(path: str) -> Session:
    session = Session()
    for event in events(Path(path)):
        session.apply(event)
    return session


@dataclass(frozen=True)
class Watched:
    """A training that two monitors watched to its end."""

    recording: str
    early: Session
    """Of the one that was there all along."""
    late: Session


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSTUCK_HOME", str(folder))
        with live_fit(folder, "--epochs", "25") as (process, run):
            early = LiveSource(run, who="early@test")
            session = collect(early, lambda s: s.step > 100, Session())
            late = LiveSource(run, who="late@test")
            sessions = [
                collect(source, lambda s: s.state == "finished", one)
                for source, one in ((early, session), (late, Session()))
            ]
            process.wait(timeout=60)
            early.close()
            late.close()
    return Watched(run.recording, *sessions)


def test_a_monitor_that_joins_late_and_one_that_was_there_all_along_end_with_the_journals_session(watched):
    expected = recorded_session(watched.recording)
    assert watched.early == expected
    assert watched.late == expected


def test_a_monitor_that_was_stopped_while_training_went_on_ends_with_the_journals_session(home, tmp_path):
    """The monitor is a process of its own; SIGSTOP is what a suspended laptop does to it."""
    with live_fit(home, "--epochs", "40") as (process, run):
        out = tmp_path / "lines"
        with out.open("w") as file:
            watcher = subprocess.Popen(
                [sys.executable, "-m", "tests.watching", run.run_id],
                stdout=file,
                cwd=Path(__file__).parent.parent,
                env={**os.environ, "UNSTUCK_HOME": str(home)},
            )
            try:
                wait_until(lambda: "watching" in out.read_text())
                watcher.send_signal(signal.SIGSTOP)
                before = steps_recorded(run.recording)
                wait_until(lambda: steps_recorded(run.recording) > before + 300, timeout_s=60)
                watcher.send_signal(signal.SIGCONT)
                process.wait(timeout=90)
                watcher.wait(timeout=60)
            finally:
                watcher.kill()
                watcher.wait()
    seen = json.loads(out.read_text().splitlines()[-1])
    recorded = series(Path(run.recording))["loss"]
    assert seen["steps"] == len(recorded)
    assert seen["sum"] == pytest.approx(float(np.sum(recorded.astype(np.float64))), rel=1e-9)
    assert seen["missing"] == []


def test_a_replayed_recording_becomes_the_same_session_as_the_live_one(watched):
    replay = RecordedSource(Path(watched.recording))
    replay.seek(watched.early.step)
    replayed = Session()
    collect(replay, lambda s: s.state == "finished", replayed)
    replay.close()
    assert replayed == watched.early
