"""A model trained on several devices is one run, whose values are those of the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from client_callback.wire import protocol
from tests.recorded import of_kind, samples, series

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.every_backend,
    pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no data parallelism on torch"),
]

JOINED = {
    "gradient_norm", "gradient_mean_abs", "gradient_max_abs", "gradient_zero_share", "update_norm", "weight_norm",
    "update_ratio", "dead_units", "gradient_histogram", "predicted_counts", "target_counts", "confusion",
    "confidence", "input", "input_features", "target",
}  # fmt: skip


POLICIES = ("float32", "mixed_float16")


@pytest.fixture(scope="module")
def fits(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("recordings")
    command = [sys.executable, "-m", "tests.replicated_watch", str(folder), *POLICIES]
    environment = {**os.environ, "UNSTUCK_HOME": str(folder)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(params=POLICIES)
def trained(request, fits) -> dict:
    return {"policy": request.param, **fits[request.param]}


def test_replicas_train_as_without_the_callback(trained):
    assert trained["watched"]["weights"] == trained["bare"]["weights"]
    assert trained["watched"]["history"] == trained["bare"]["history"]
    assert not of_kind(Path(trained["watched"]["recording"]), protocol.Problem)


def test_what_two_replicas_measure_is_recorded_as_the_whole_batch(trained):
    recording, one = (Path(trained[which]["recording"]) for which in ("watched", "one"))
    precise = trained["policy"] == "float32"
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precise else {"rtol": 2e-2, "atol": 2e-3}
    found, expected = series(recording), series(one)
    for name in ("loss", "accuracy", "learning_rate", "grad_norm", *([] if precise else ["loss_scale"])):
        assert len(found[name]) == 24
        np.testing.assert_allclose(found[name], expected[name], **tolerance, err_msg=name)
    steps, tables = samples(recording)
    of_one = samples(one)[1]
    assert list(steps) == list(range(0, 24, 5))
    assert tables.keys() >= JOINED
    for name in JOINED if precise else ():
        np.testing.assert_allclose(tables[name], of_one[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_how_far_the_replicas_differ_is_recorded(trained):
    recording = Path(trained["watched"]["recording"])
    whole = series(recording)
    if keras.backend.backend() == "jax":
        steps, tables = samples(recording)
        parts = tables["replicas"].reshape(len(steps), 2, 2)
        np.testing.assert_allclose(parts[:, :, 0].mean(axis=1), whole["loss"][steps], rtol=5e-3)
        # The whole gradient is the mean of the parts': no longer than the longer, by the triangle inequality.
        assert (parts[:, :, 1].max(axis=1) >= whole["grad_norm"][steps] * 0.99).all()
        return
    assert (whole["loss_spread"] > 0).all()
    assert (whole["grad_norm_spread"] >= 0).all()
    # Both halves are of one size, so neither loss is further than half the spread from their mean; all are positive.
    assert (whole["loss"] - whole["loss_spread"] / 2 > 0).all()
