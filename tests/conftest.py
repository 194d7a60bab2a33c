"""Every test writes under a folder of its own and leaves Keras' global state as it was."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import pytest

if os.environ["KERAS_BACKEND"] == "jax":
    # Many tests compile the same small steps; each need be compiled but once.
    cache = tempfile.mkdtemp(prefix="unstuck-jax-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On JAX and torch only the files that run on every backend are imported; others may need TensorFlow."""
    if os.environ["KERAS_BACKEND"] == "tensorflow" or not collection_path.is_file():
        return None
    return True if "every_backend" not in collection_path.read_text() else None


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: no collection need go through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where everything the product writes goes in this test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("UNSTUCK_HOME", str(folder))
    return folder
