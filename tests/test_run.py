"""The callback and the run object against a hostile world: nothing they meet stops or slows a training."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback, Run
from client_callback.wire import protocol
from tests import models
from tests.recorded import events, layout, of_kind, samples, series


def small_fit(callback: MonitorCallback, **options) -> keras.callbacks.History:
    x = models.inputs(examples=64)
    model = models.plain_mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.fit(x, models.labels(x), batch_size=16, verbose=0, callbacks=[callback], **options)


def test_a_loop_of_ones_own_is_recorded_step_by_step():
    with Run("own", epochs=2) as run:
        for _ in range(2):
            for step in range(3):
                run.log(loss=1.0 / (step + 1), accuracy=np.float32(step))
            run.end_epoch(val_loss=0.5)
    recorded = series(run.recording)
    np.testing.assert_allclose(recorded["loss"], [1, 1 / 2, 1 / 3] * 2, rtol=1e-6)
    np.testing.assert_array_equal(recorded["accuracy"], [0, 1, 2] * 2)
    assert [e.logs for e in of_kind(run.recording, protocol.EpochEnded)] == [{"val_loss": 0.5}] * 2
    assert "nothing is measured inside the train step" in " ".join(layout(run.recording).missing)
    assert of_kind(run.recording, protocol.RunEnded)[0].outcome == "finished"


def test_train_on_batch_is_measured_inside_the_step_and_extra_values_are_kept():
    x = models.inputs(examples=64)
    y = models.labels(x)
    model = models.plain_mlp()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with Run("batches", model=model, statistics_every=1) as run:
        for start in range(0, 64, 16):
            model.train_on_batch(x[start : start + 16], y[start : start + 16])
            run.log(temperature=start)
    recorded = series(run.recording)
    assert np.isfinite(recorded["grad_norm"]).all()
    np.testing.assert_array_equal(recorded["temperature"], [0, 16, 32, 48])
    steps, tables = samples(run.recording)
    assert list(steps) == [0, 1, 2, 3]
    assert "update_norm" in tables


def test_a_loop_that_raises_is_recorded_as_failed():
    with pytest.raises(ZeroDivisionError), Run("own") as run:
        run.log(loss=1.0)
        1 / 0  # noqa: B018
    ended = of_kind(run.recording, protocol.RunEnded)[0]
    assert ended.outcome == "failed"
    assert "ZeroDivisionError" in ended.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name: received ''"),
        ({"statistics_every": -1}, "statistics_every: received -1"),
        ({"statistics_every": 2.5}, "statistics_every: received 2.5"),
        ({"bind": "tcp://0.0.0.0:5555"}, "0.0.0.0"),
    ],
)
def test_arguments_out_of_range_are_told_before_anything_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        MonitorCallback(**arguments)


def test_an_unwritable_folder_costs_the_recording_and_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    callback = MonitorCallback("blocked", directory=blocked / "recordings")
    with pytest.warns(RuntimeWarning, match="not recorded") as caught:
        history = small_fit(callback)
    assert len([w for w in caught if issubclass(w.category, RuntimeWarning)]) == 1
    assert len(history.history["loss"]) == 1
    assert callback.recording is None


def test_a_bug_of_ours_ends_the_watching_and_not_the_training(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("client_callback.recorder.StepRecorder.count_call", broken)
    callback = MonitorCallback("bug")
    with pytest.warns(RuntimeWarning, match="watching this training stopped.*a bug"):
        history = small_fit(callback, epochs=2)
    assert len(history.history["loss"]) == 2
    assert of_kind(callback.recording, protocol.RunEnded)[0].outcome == "interrupted"


def test_without_a_recording_nothing_is_written(home):
    callback = MonitorCallback("silent", record=False)
    small_fit(callback)
    assert callback.recording is None
    assert not list(home.rglob("*.unstuck"))


def test_statistics_can_be_turned_off():
    callback = MonitorCallback("plain", statistics_every=0)
    small_fit(callback)
    assert not of_kind(callback.recording, protocol.Samples)
    assert len(series(callback.recording)["loss"]) == 4


def test_a_forked_child_of_the_training_writes_nothing():
    x = models.inputs(examples=64)
    model = models.plain_mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with Run("parent", model=model) as run:
        run.log(loss=1.0)
        child = os.fork()
        if child == 0:
            run.log(loss=2.0)
            run.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        run.log(loss=3.0)
    np.testing.assert_array_equal(series(run.recording)["loss"], [1.0, 3.0])
    assert len(x) == 64


def test_the_process_ends_at_once_after_an_abandoned_run(home, tmp_path):
    script = tmp_path / "abandons.py"
    script.write_text(
        textwrap.dedent("""
        from client_callback import Run
        run = Run("left")
        run.begin()
        run.log(loss=1.0)
        print(run.recording)
        raise SystemError("the script dies")
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    ended = events(Path(done.stdout.split()[-1]))[-1]
    assert isinstance(ended, protocol.RunEnded)
    assert ended.outcome == "failed"
    assert "the script dies" in ended.reason


def test_a_pause_ends_when_nobody_can_end_it_any_more(monkeypatch):
    with Run("cut off") as run:
        run.pause()
        run._link._closing.set()
        run._link._thread.join(10)
        with pytest.warns(RuntimeWarning, match="the pause ends"):
            run.log(loss=1.0)
        assert not run.paused
