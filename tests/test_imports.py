"""What an import loads: the terminal starts without a training framework, the wire without Keras."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = (
        f"import json, sys; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["monitor", "monitor.cli", "monitor.app", "monitor.sources", "monitor.sending", "monitor.plain"]
)
def test_the_terminal_loads_no_training_framework(module):
    assert not loaded_by(f"import {module}") & FRAMEWORKS


@pytest.mark.parametrize("module", ["protocol", "commands", "journal", "recording", "runs", "sockets"])
def test_the_wire_loads_no_keras_and_no_terminal(module):
    assert not loaded_by(f"import client_callback.wire.{module}") & (FRAMEWORKS | {"textual", "rich"})


def test_importing_the_callbacks_package_loads_no_keras_until_a_name_is_used():
    assert not loaded_by("import client_callback") & FRAMEWORKS
    assert "keras" in loaded_by("from client_callback import MonitorCallback")


def test_the_callback_loads_nothing_of_the_terminal():
    assert not loaded_by("from client_callback import MonitorCallback, Run") & {"textual", "monitor"}


def test_help_loads_neither_textual_nor_numpy():
    assert not loaded_by("from monitor.cli import _parser; _parser().format_help()") & {"textual", "numpy"}
