"""Every test writes under a folder of its own and leaves Keras' global state as it was."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where everything the product writes goes in this test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("UNSTUCK_HOME", str(folder))
    return folder
