"""Unmodified scripts, run by the real command line, and what is said of their trainings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TWO_FITS = """
import sys
import numpy as np
from keras import Sequential, layers

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = (x[:, 0] > 0).astype(int)
model = Sequential([layers.Dense(8, activation="relu"), layers.Dense(1, activation="sigmoid")])
model.compile("adam", "binary_crossentropy")
print("arguments", sys.argv[1:], __name__)
model.fit(x, y, 8, 2, 0)
print("between")
history = model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[])
print("losses", len(history.history["loss"]))
"""


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitor", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "two_fits.py"
    file.write_text(TWO_FITS)
    return file


def test_each_fit_of_a_script_is_watched_and_the_script_does_what_it_always_does(script: Path):
    done = doctor("--json", str(script), "--epochs", "7")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # nothing of the script's is among it
    assert "arguments ['--epochs', '7'] __main__" in done.stderr and "losses 3" in done.stderr
    assert {fit["fit"]: fit["step"] for fit in told["fits"]} == {1: 16, 2: 12}
    assert told["verdict"] in ("healthy", "suspect", "stuck") and told["run"] == told["fits"][0]["run"]
    assert all(Path(fit["recording"]).is_file() for fit in told["fits"])


def test_a_budget_ends_the_fit_and_the_script_with_it(script: Path):
    done = doctor("--steps", "5", str(script), "--json")
    assert done.returncode == 0, done.stderr
    assert f"for doctor itself write unstuck doctor --json {script}" in done.stderr
    assert "arguments" in done.stdout and "between" not in done.stdout
    assert "after 5 steps" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.py"], 2, "there is no script 'nowhere.py'"),
        (["--steps", "0", "a.py"], 2, "'0' is not a positive whole number"),
        (["--python", "/nowhere/python", __file__], 2, "/nowhere/python cannot be run"),
    ],
)
def test_a_mistake_is_answered_with_what_was_received(words: list[str], code: int, said: str):
    done = doctor(*words)
    assert done.returncode == code
    assert said in done.stderr


def test_a_script_that_trains_nothing_shows_its_error_and_says_so(tmp_path: Path):
    file = tmp_path / "fails.py"
    file.write_text("print('before')\n1 / 0\n")
    done = doctor(str(file))
    assert done.returncode == 1
    assert "before" in done.stdout and "ZeroDivisionError" in done.stderr
    assert "trained nothing that could be watched: it ended with exit code 1" in done.stderr
