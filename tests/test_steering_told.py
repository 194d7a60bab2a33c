"""What lines of text, tables and `info` tell of steering: trials, timers, evaluations, control, plans."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from msgspec.structs import replace

from client_callback.wire.journal import JournalWriter
from client_callback.wire.protocol import Reply, RunStarted, TimersChanged, TrialEnded
from client_callback.wire.recording import JournalReader
from monitor import export
from monitor.plain import Lines, describe_reply
from tests.story import PLAN, steered_story, trial


def lines_of(*events) -> list[str]:
    lines = Lines()
    return [line for event in events for line in lines.of(event)]


def test_everything_that_steering_brings_is_told_in_lines():
    told = "\n".join(lines_of(*steered_story()))
    for words in (
        "-- timers: #2 pause at epoch 15, waits for epoch 15; #3 lr x2, unless loss is above 0.25 before step 2600",
        "-- evaluated at step 2400: val_loss 0.4  val_accuracy 0.8",
        "-- lr 1e-3: ineffective at step 2400: ReduceLROnPlateau set it back",
        "--   1. sgd 0.05 momentum=0.9: loss 0.31",
        "--   3. lr x10: diverged; given up after 40 steps",
        "--   suggested rate: 0.02",
        "--   diverges at 0.31",
        "-- eve@box terminal steers",
        "-- pause at epoch 15: planned at step 2400",
    ):
        assert words in told, words


def test_the_end_of_all_timers_an_adoption_and_a_doubtful_best_are_told():
    assert lines_of(TimersChanged(reason="lr x2 is over")) == ["-- timers: none (lr x2 is over)"]
    adopted = lines_of(replace(trial(0, 0.0), adopted="keep", tells=False))
    assert adopted[-2:] == [
        "--   the best cannot be told from the others",
        "--   training goes on with keep",
    ]


def test_the_answer_to_a_dry_run_names_what_it_would_do():
    told = describe_reply(Reply(id="a", text="x", status="planned", plan=PLAN, step=7))
    assert told.startswith("planned at step 7: does: adam → sgd with momentum 0.9; rate: ")


@pytest.fixture
def reader(tmp_path):
    events = steered_story()
    assert isinstance(events[0], RunStarted)
    writer = JournalWriter(tmp_path / "story.unstuck", events[0].run)
    writer.append(events)
    writer.close()
    with JournalReader(tmp_path / "story.unstuck") as opened:
        yield opened


def test_the_table_of_events_holds_the_losses_of_trials_as_numbers(reader):
    out = io.StringIO()
    export.write_table(reader, "events", "jsonl", out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    ended = [row["details"] for row in rows if row["kind"] == "trial_ended"]
    assert len(ended[0]["results"][0]["losses"]) == 100
    assert ended[0]["results"][2]["score"] is None
    assert ended[1]["rates"][0] == pytest.approx(1e-5)
    assert {row["kind"] for row in rows} >= {
        "timers_changed",
        "snapshots_changed",
        "evaluated",
        "control_changed",
    }
    table = io.StringIO()
    export.write_table(reader, "events", "csv", table)
    (cell,) = [
        row["details"]
        for row in csv.DictReader(io.StringIO(table.getvalue()))
        if row["kind"] == "trial_ended" and "rates" in row["details"] and "1e-5..1" in row["details"]
    ]
    assert len(json.loads(cell)["rates"]) == 60


def test_info_sums_up_trials_timers_snapshots_and_evaluations(reader):
    summary = export.summary(reader)
    assert [found["command"][:8] for found in summary["trials"]] == ['trial "s', "trial lr"]
    first, second = summary["trials"]
    assert first["results"][0]["candidate"].startswith("sgd") and math.isnan(first["results"][2]["loss"])
    assert second["suggested"] == pytest.approx(0.02, rel=0.3)
    assert [timer["number"] for timer in summary["timers"]] == [2, 3]
    assert [kept["step"] for kept in summary["snapshots"]] == [0, 1_500, 2_000]
    assert summary["evaluations"] == [{"step": 2_400, "val_loss": 0.4, "val_accuracy": 0.8}]
    assert {"step": 2_400, "command": "lr 1e-3", "status": "ineffective"} in summary["commands"]


def test_a_trial_without_results_is_told():
    assert lines_of(TrialEnded(id="t", text="trial keep for 5 steps", start=3)) == [
        "-- trial keep for 5 steps: from step 3"
    ]
