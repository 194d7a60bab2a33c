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
    pytest.mark.every_backend,
    pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no data parallelism on torch"),
]

JOINED = {
    "gradient_norm", "gradient_mean_abs", "gradient_max_abs", "gradient_zero_share", "update_norm", "weight_norm",
    "update_ratio", "dead_units", "gradient_histogram", "predicted_counts", "target_counts", "confusion",
    "confidence", "input", "input_features",
}  # fmt: skip


def run(tmp_path: Path, policy: str, devices: int) -> dict:
    folder = tmp_path / str(devices)
    command = [sys.executable, "-m", "tests.replicated_watch", str(folder), policy, str(devices)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_two_replicas_are_recorded_as_the_whole_batch_and_train_as_without_the_callback(tmp_path, policy):
    two = run(tmp_path, policy, 2)
    assert two["watched"]["weights"] == two["bare"]["weights"]
    assert two["watched"]["history"] == two["bare"]["history"]
    recording = Path(two["watched"]["recording"])
    one = Path(run(tmp_path, policy, 1)["watched"]["recording"])
    assert not of_kind(recording, protocol.Problem)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if policy == "float32" else {"rtol": 2e-2, "atol": 2e-3}
    found, expected = series(recording), series(one)
    for name in (
        "loss",
        "accuracy",
        "learning_rate",
        "grad_norm",
        *(["loss_scale"] if policy != "float32" else []),
    ):
        assert len(found[name]) == 24
        np.testing.assert_allclose(found[name], expected[name], **tolerance, err_msg=name)
    steps, tables = samples(recording)
    of_one = samples(one)[1]
    assert list(steps) == list(range(0, 24, 5))
    assert tables.keys() >= JOINED
    if policy == "float32":
        for name in JOINED:
            np.testing.assert_allclose(tables[name], of_one[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_how_far_the_replicas_differ_is_recorded(tmp_path):
    recording = Path(run(tmp_path, "float32", 2)["watched"]["recording"])
    whole = series(recording)
    if keras.backend.backend() == "jax":
        steps, tables = samples(recording)
        parts = tables["replicas"].reshape(len(steps), 2, 2)
        np.testing.assert_allclose(parts[:, :, 0].mean(axis=1), whole["loss"][steps], rtol=1e-4)
        # The whole gradient is the mean of the parts': no longer than the longer, by the triangle inequality.
        assert (parts[:, :, 1].max(axis=1) >= whole["grad_norm"][steps] * 0.999).all()
        return
    assert (whole["loss_spread"] > 0).all()
    assert (whole["grad_norm_spread"] >= 0).all()
    # Both halves are of one size, so neither loss is further than half the spread from their mean; all are positive.
    assert (whole["loss"] - whole["loss_spread"] / 2 > 0).all()
