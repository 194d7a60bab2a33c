from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from client_callback.wire import protocol
from client_callback.wire.journal import JournalWriter
from client_callback.wire.recording import JournalReader
from monitor import export
from tests.tables import story_with_tables
from tests.toy_runs import description, samples, started, steps, story


@pytest.fixture
def record(tmp_path):
    def record(run, events):
        path = tmp_path / "toy.unstuck"
        writer = JournalWriter(path, run)
        writer.append(events)
        writer.close()
        return path

    return record


def table(path, what, to="csv"):
    text = io.StringIO()
    with JournalReader(path) as reader:
        count = export.write_table(reader, what, to, text)
    if to == "csv":
        rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    else:
        rows = [json.loads(line, parse_constant=pytest.fail) for line in text.getvalue().splitlines()]
    assert len(rows) == count
    return rows


def test_every_step_is_a_row_with_its_epoch(record):
    run, events = story(drains=40, epochs=2)
    rows = table(record(run, events), "steps")
    assert list(rows[0]) == ["step", "epoch", "time", "loss", "learning_rate", "grad_norm", "accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(400))
    assert [int(row["epoch"]) for row in rows] == [0] * 200 + [1] * 200
    assert [float(row["loss"]) for row in rows] == list(range(400))
    assert rows[0]["learning_rate"] == ""
    assert float(rows[10]["time"]) == pytest.approx(1_001.1)


def test_numbers_are_written_so_that_they_come_back_bit_by_bit(record):
    chance = np.random.default_rng(1)
    values = np.concatenate(
        [
            chance.random(500, np.float32) * 10.0 ** chance.integers(-30, 30, 500),
            [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38],
        ]
    ).astype(np.float32)
    run, events = story(drains=1)
    event = protocol.steps_event(0, np.arange(len(values), dtype=float), {"loss": values}, time=1.0)
    path = record(run, [events[0], event])
    back = np.array([row["loss"] for row in table(path, "steps")], np.float32)
    assert back.tobytes() == values.tobytes() or np.array_equal(back, values, equal_nan=True)
    read = [row["loss"] for row in table(path, "steps", "jsonl")]
    finite = np.isfinite(values)
    assert np.array_equal(np.array(read, object)[finite].astype(np.float32), values[finite])
    assert [value for value, ok in zip(read, finite, strict=True) if not ok] == [None] * 3


def test_a_series_that_comes_later_has_empty_cells_before(record):
    run, events = story(drains=1)
    path = record(run, [events[0], steps(0, 3, names=("loss",)), steps(3, 2, names=("loss", "auc"))])
    rows = table(path, "steps")
    assert [row["auc"] for row in rows] == ["", "", "", "4.0", "5.0"]
    assert [row["epoch"] for row in rows] == [""] * 5
    assert [row["auc"] for row in table(path, "steps", "jsonl")] == [None, None, None, 4.0, 5.0]


def test_the_statistics_of_layers_are_one_row_per_sampled_step_and_variable(record):
    run, events = story(drains=3, epochs=1)
    rows = table(record(run, events), "layers")
    assert list(rows[0]) == ["step", "variable", "gradient_norm"]
    assert [(int(r["step"]), r["variable"], float(r["gradient_norm"])) for r in rows] == [
        (step, variable, float(step)) for step in (0, 5, 10) for variable in ("dense/kernel", "dense/bias")
    ]


def test_histograms_are_no_statistics_of_layers(record):
    run, _ = story()
    statistics = (
        protocol.Statistic(name="gradient_norm", of="variables", labels=("a", "b")),
        protocol.Statistic(name="predicted", of="histogram", labels=("0", "1", "2")),
    )
    event = protocol.samples_event(
        np.array([4]), {"gradient_norm": np.ones((1, 2), "f4"), "predicted": np.ones((1, 3), "f4")}, time=1.0
    )
    path = record(run, [started(run), protocol.Instrumented(statistics=statistics), event, samples(9)])
    assert [row["variable"] for row in table(path, "layers")] == ["a", "b", "a", "b"]


def test_every_sampled_number_is_a_row_with_the_names_of_what_it_stands_for(record):
    path = record(description(), [started(description()), *story_with_tables()[1:]])
    rows = table(path, "statistics")
    assert list(rows[0]) == ["step", "statistic", "label", "column", "value"]
    found = {(int(r["step"]), r["statistic"], r["label"], r["column"]): float(r["value"]) for r in rows}
    assert len(found) == len(rows)
    assert found[51, "confusion", "7", "9"] == 12
    assert found[51, "inputs", "weight", "non_finite"] == 3
    assert found[2_351, "dead_units", "body/conv", ""] == 1
    assert found[51, "activations", "head", "mean"] == -3
    assert found[0, "gradient_norm", "conv_1/kernel", ""] > 0
    assert table(path, "statistics", "jsonl")[0]["column"] == ""


def test_tables_with_columns_are_no_statistics_of_variables(record):
    path = record(description(), [started(description()), *story_with_tables()[1:]])
    assert list(table(path, "layers")[0]) == [
        *("step", "variable", "gradient_norm", "gradient_zero_share", "update_ratio"),
    ]


def test_numbers_without_names_are_counted(record):
    event = protocol.samples_event(np.array([4]), {"secret": np.array([[1.5, 2.5]], "f4")}, time=1.0)
    rows = table(record(description(), [started(description()), event]), "statistics")
    assert [(row["label"], row["value"]) for row in rows] == [("0", "1.5"), ("1", "2.5")]


def test_readings_of_the_machine_are_rows_and_no_events(record):
    run, events = story(drains=40, epochs=2)
    path = record(run, events)
    rows = table(path, "resources")
    assert list(rows[0]) == ["time", "step", "cpu", "memory"]
    assert [float(row["cpu"]) for row in rows] == list(range(40))
    assert [int(row["step"]) for row in rows] == list(range(10, 410, 10))
    assert "resources" not in {row["kind"] for row in table(path, "events")}


def test_epochs_carry_what_keras_reported(record):
    run, events = story(drains=2, epochs=2)
    path = record(run, events)
    rows = table(path, "epochs")
    assert [(row["epoch"], row["step"], row["loss"], row["val_loss"]) for row in rows] == [
        ("0", "10", "10.0", "nan"),
        ("1", "20", "20.0", "nan"),
    ]
    assert [row["val_loss"] for row in table(path, "epochs", "jsonl")] == [None, None]


def test_events_are_rows_with_their_details(record):
    run, events = story(drains=2, epochs=1)
    path = record(run, events)
    rows = table(path, "events")
    assert [row["kind"] for row in rows] == [
        "run_started",
        "instrumented",
        "epoch_began",
        "reply",
        "epoch_ended",
        "run_ended",
    ]
    details = json.loads(rows[3]["details"])
    assert (details["text"], details["after"]) == ("lr x0.5", {"learning_rate": 0.05})
    assert table(path, "events", "jsonl")[3]["details"] == details


def test_an_empty_recording_has_a_header_and_no_rows(record):
    run, events = story()
    path = record(run, events[:1])
    for what in ("steps", "epochs", "layers", "statistics", "resources"):
        assert table(path, what) == []
        assert table(path, what, "jsonl") == []


def test_the_summary_tells_the_run_in_numbers(record):
    run, events = story(drains=4, epochs=3)
    with JournalReader(record(run, events)) as reader:
        summary = export.summary(reader)
    assert (summary["steps"], summary["epochs"], summary["outcome"]) == (60, 3, "finished")
    assert [command["step"] for command in summary["commands"]] == [20, 40, 60]
    assert summary["series"] == ["loss", "accuracy"]
    assert summary["duration_s"] == pytest.approx(6.1)
    assert summary["missing"] == []
