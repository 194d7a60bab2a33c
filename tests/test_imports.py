"""What an import loads: the terminal starts without a training framework, the wire without Keras."""

from __future__ import annotations

import json
import subprocess
import sys

FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = (
        f"import json, sys; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_terminal_loads_no_training_framework():
    names = ("cli", "app", "sources", "sending", "plain")
    assert not loaded_by("import monitor, " + ", ".join(f"monitor.{name}" for name in names)) & FRAMEWORKS


def test_the_wire_loads_no_keras_and_no_terminal():
    names = ("protocol", "commands", "journal", "recording", "runs", "sockets")
    loaded = loaded_by("import " + ", ".join(f"client_callback.wire.{name}" for name in names))
    assert not loaded & (FRAMEWORKS | {"textual", "rich"})


def test_importing_the_callbacks_package_loads_no_keras_until_a_name_is_used_and_nothing_of_the_terminal():
    assert not loaded_by("import client_callback") & FRAMEWORKS
    loaded = loaded_by("from client_callback import MonitorCallback, Run")
    assert "keras" in loaded and not loaded & {"textual", "monitor"}


def test_help_loads_neither_textual_nor_numpy():
    assert not loaded_by("from monitor.cli import _parser; _parser().format_help()") & {"textual", "numpy"}
