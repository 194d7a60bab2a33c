"""Every command × every way of training: applied and verified, or refused with the reason; none without a word."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client_callback.wire.commands import COMMANDS as CATALOGUE
from tests.command_table import BACKEND, CELLS, COMMANDS, run_cell

pytestmark = [pytest.mark.every_backend, pytest.mark.timeout(300)]

ALWAYS = {
    "loss-weight first=0.5": ("refused", "one part only"),
    "extend 3 epochs": ("refused", "initial_epoch=100000, epochs=100003"),
    "lr x0.9 at epoch 100000": ("planned", "waits for epoch 100000"),
    "lr x0.7 --dry-run": ("planned", ""),
    "optimizer sgd --dry-run": ("planned", ""),
    "reinit dead-units": ("ineffective", "above 0 for some of the next"),
}
"""Command → (status, what its reason says) in every cell; what is not named here or in `ELSE` is applied."""

_UNCOUNTED = {"class-weight balanced": ("refused", "statistics|labels")}
_AMBIGUOUS = ("refused", "several outputs")
ELSE: dict[str, dict[str, tuple[str, str]]] = {
    **{name: _UNCOUNTED for name, cell in CELLS.items() if not cell.statistics_every},
    "accumulation, two outputs": {
        "class-weight 0=1 1=2.5": _AMBIGUOUS,
        "class-weight balanced": _AMBIGUOUS,
        "class-weight none": _AMBIGUOUS,
        "loss-weight first=0.5": ("applied", ""),
    },
}
"""The same of single cells."""
if BACKEND == "tensorflow":
    impossible = ("refused", "Keras cannot accumulate gradients on several replicas")
    ELSE["replicas"] = {
        **_UNCOUNTED,
        "accumulate 2": impossible,
        "accumulate 1": ("ineffective", "so already"),
    }


def ways_of_training() -> list[Any]:
    """The first stands for all in the quick tests."""
    names = [name for name, cell in CELLS.items() if BACKEND in cell.backends]
    return [names[0], *(pytest.param(name, marks=pytest.mark.thorough) for name in names[1:])]


@pytest.fixture(scope="module", params=ways_of_training())
def cell(request, tmp_path_factory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSTUCK_HOME", str(folder / "home"))
        if not CELLS[request.param].replicas:
            return request.param, run_cell(request.param, folder)
        program = [sys.executable, "-m", "tests.command_table", request.param, str(folder)]
        root = Path(__file__).parents[1]
        done = subprocess.run(program, capture_output=True, text=True, cwd=root, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return request.param, json.loads(done.stdout.splitlines()[-1])


def test_each_command_is_applied_or_says_why_not(cell):
    name, result = cell
    expected = {**ALWAYS, **ELSE.get(name, {})}
    found = {answer["command"]: answer for answer in result["answers"]}
    assert list(found) == list(dict.fromkeys(COMMANDS))
    other = []
    for command, answer in found.items():
        status, reason = expected.get(command, ("applied", ""))
        if answer["status"] != status or not re.search(reason, answer["reason"]):
            other.append((command, answer["status"], answer["reason"]))
    assert other == []


def test_what_is_applied_to_rate_or_optimizer_is_what_the_next_step_used_and_it_moved_the_weights(cell):
    _, result = cell
    rates = result["rates"]
    checked = 0
    for answer in result["answers"]:
        if answer["status"] != "applied" or answer["update_after"] is None:
            continue
        assert answer["update_after"]["value"] > 0, answer
        wanted = answer["after"].get("learning_rate")
        if wanted is not None and answer["step"] < len(rates):
            assert rates[answer["step"]] == pytest.approx(wanted, rel=1e-2), answer
            checked += 1
    assert checked >= 8


def test_frozen_weights_stay_where_they_are_and_others_move(cell):
    _, result = cell
    first, second = (a["after"] for a in result["answers"] if a["command"].strip() == "look")
    assert first["hidden"] == second["hidden"]
    assert first["norm"] != second["norm"]


def test_every_answer_is_recorded_with_who_asked_and_training_stays_sound(cell):
    _, result = cell
    recorded = {reply["id"]: reply for reply in result["replies"]}
    for answer in result["answers"]:
        assert recorded[answer["id"]]["status"] == answer["status"]
        assert re.search(r"\S+@\S+ send", recorded[answer["id"]]["who"])
    assert result["problems"] == [] and result["ended"] == ["stopped"] and result["finite"]


def test_the_table_has_every_command_of_the_grammar():
    named = {command.split()[0] for command in COMMANDS}
    assert set(CATALOGUE) - named == set()
