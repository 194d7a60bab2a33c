"""Every test writes under a folder of its own and leaves Keras' global state as it was."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where everything the product writes goes in this test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("UNSTUCK_HOME", str(folder))
    return folder
