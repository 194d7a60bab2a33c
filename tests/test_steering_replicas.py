"""Steering under `tf.distribute` and `keras.distribution`: replicas stay the same, whatever is changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from tests.steered_fit import BACKEND, looped

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.every_backend,
    pytest.mark.skipif(BACKEND == "torch", reason="Keras trains on one device there"),
]

CONFIGS = {
    "plain": {
        "schedule": False,
        "optimizer": {},
        "script": {"3": ["lr x0.5"], "6": ["optimizer sgd momentum=0.9"]},
    },
    "schedule": {
        "schedule": True,
        "optimizer": {},
        "script": {"3": ["lr x0.5"], "6": ["optimizer sgd momentum=0.9"]},
    },
    "override": {"schedule": True, "optimizer": {}, "script": {"3": ["lr 0.01"]}},
    "averages": {"schedule": False, "optimizer": {"use_ema": True}, "script": {"6": ["optimizer lion"]}},
    "settings": {
        "schedule": True,
        "optimizer": {},
        "script": {"3": ["set beta_2=0.9 clipnorm=0.5 amsgrad=true"], "9": ["undo settings"]},
    },
    # On TensorFlow, Keras cannot accumulate gradients on replicas: the first trace fails.
    "accumulating": {
        "schedule": False,
        "optimizer": {},
        "script": {"6": ["accumulate 2", "optimizer adam learning_rate=match"]},
    },
}


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    program = [sys.executable, "-m", "tests.replicated_fit", json.dumps(list(CONFIGS.values()))]
    done = subprocess.run(
        program, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CONFIGS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", ["plain", "schedule", "override", "averages", "settings"])
def test_replicas_are_equal_after_rate_and_optimizer_were_changed(results, name):
    result = results[name]
    assert [reply["status"] for reply in result["replies"]] == ["applied"] * len(result["replies"]), result[
        "replies"
    ]
    assert result["weights_apart"] == 0.0 and result["slots_apart"] == 0.0


def test_two_replicas_train_as_one_device_does(results):
    rates = [0.05] * 3 + [0.025] * 3 + [0.01] * 10
    first, second = Adam(0.05), SGD(0.01, momentum=0.9)
    alone = looped(lambda step: first if step < 6 else second, lambda step: rates[step])
    for one, other in zip(results["plain"]["weights"], alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_schedule_keeps_its_place_on_two_replicas(results):
    schedule = CosineDecay(0.05, 20)
    expected = [float(schedule(step)) * (0.5 if step >= 3 else 1.0) for step in range(16)]
    np.testing.assert_allclose(results["schedule"]["rates"], expected, rtol=1e-5)
    assert results["override"]["rates"][3:] == pytest.approx([0.01] * 13)


def test_accumulation_that_keras_cannot_do_on_replicas_is_refused_before_it_could_end_the_fit(results):
    result = results["accumulating"]
    expected = "refused" if BACKEND == "tensorflow" else "applied"
    assert [reply["status"] for reply in result["replies"]] == [expected, "applied"], result["replies"]
    assert result["optimizer"] == "adam" and result["weights_apart"] == 0.0


@pytest.mark.skipif(BACKEND != "jax", reason="there, new variables could be laid out in another way")
def test_only_another_optimizer_has_the_step_compiled_anew(results):
    traces = {name: result["traces"] for name, result in results.items()}
    assert traces == {
        "plain": 2,
        "schedule": 2,
        "override": 1,
        "averages": 2,
        "settings": 3,
        "accumulating": 2,
    }
