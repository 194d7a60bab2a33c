"""What the screen looks like, as pictures: read them before accepting a change.

`pytest tests/test_looks.py --snapshot-update` draws them anew; the report says what differs.
"""

from __future__ import annotations

import time

import pytest
from textual.pilot import Pilot

from monitor.app import UnstuckApp
from tests.story import MemorySource, steered_story, story


def app_showing(steps: int = 2_400, **about: object) -> UnstuckApp:
    return UnstuckApp(MemorySource(story(steps, nan_from=about.pop("nan_from", None))), **about)


async def drawn(pilot: Pilot) -> None:
    """Waits until every panel that is displayed has been drawn from the whole story."""
    end = time.monotonic() + 20
    panels = pilot.app._dashboard.panels.values()
    while not (pilot.app.session.run and all(panel._strips for panel in panels if panel.display)):
        assert time.monotonic() < end
        await pilot.pause(0.02)
    await pilot.pause()


@pytest.mark.parametrize(
    ("size", "about"),
    [
        pytest.param((120, 40), {}, id="large"),
        pytest.param((80, 24), {}, id="small"),
        pytest.param((80, 24), {"ascii_only": True}, id="small, ascii"),
        pytest.param((120, 40), {"steps": 1_400}, id="stuck"),
        pytest.param((120, 40), {"nan_from": 2_000}, id="not a number"),
    ],
)
def test_the_dashboard_looks_as_it_did(snap_compare, size, about):
    assert snap_compare(app_showing(**about), terminal_size=size, run_before=drawn)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["question_mark"], id="help"),
        pytest.param(["o"], id="optimizer prompt"),
        pytest.param(["S"], id="stop"),
        pytest.param(["plus", "plus", "shift+left"], id="zoomed, with cursor"),
        pytest.param(["shift+tab"], id="findings"),
    ],
)
def test_what_keys_open_in_a_small_terminal_looks_as_it_did(snap_compare, keys):
    async def press(pilot: Pilot) -> None:
        await drawn(pilot)
        for key in keys:
            await pilot.press(key)
        for cursor in pilot.app.screen.query("Input"):
            cursor.cursor_blink = False
        await drawn(pilot)

    assert snap_compare(app_showing(1_400), terminal_size=(80, 24), run_before=press)


@pytest.mark.parametrize(
    ("size", "ascii_only", "card"),
    [
        pytest.param((120, 40), False, False, id="interventions"),
        pytest.param((80, 24), True, False, id="interventions, small, ascii"),
        pytest.param((120, 40), False, True, id="card"),
        pytest.param((80, 24), True, True, id="card, small, ascii"),
    ],
)
def test_steering_looks_as_it_did(snap_compare, size, ascii_only, card):
    async def look(pilot: Pilot) -> None:
        await drawn(pilot)
        if card:
            pilot.app.action_send("optimizer sgd learning_rate=0.01 momentum=0.9")
            while not pilot.app.screen.query("#preflight-text"):
                await pilot.pause(0.02)
            await pilot.pause(0.1)
        else:
            pilot.app._look(selected="interventions")
            pilot.app._dashboard.maximise("interventions")
            pilot.app._look()
        await drawn(pilot)

    app = UnstuckApp(MemorySource(steered_story()), ascii_only=ascii_only)
    assert snap_compare(app, terminal_size=size, run_before=look)
