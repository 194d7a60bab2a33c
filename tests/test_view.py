"""Which steps are shown: following, zooming, panning and returning, as pure values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.view import SHORTEST_SPAN, View

STEPS = st.integers(0, 5_000_000)


@given(STEPS)
def test_all_steps_are_shown_with_at_most_an_eighth_of_empty_room(steps: int):
    start, stop = View(mode="all").window(steps)
    assert start == 0
    assert max(steps, 20) <= stop <= max(steps, 20) * 1.15


@given(STEPS, st.integers(10, 10_000))
def test_the_live_tail_shows_the_newest_step(steps: int, span: int):
    start, stop = View(mode="live", span=span).window(steps)
    assert stop - start == span
    assert start >= 0
    assert steps <= stop <= max(steps, span) + max(1, span // 10)


def test_the_right_edge_moves_in_jumps():
    windows = {View(mode="live", span=500).window(steps) for steps in range(1_000, 1_100)}
    assert len(windows) <= 3


@given(STEPS, st.lists(st.sampled_from(["in", "out", "left", "right", "freeze"]), max_size=30))
def test_no_sequence_of_keys_leads_away_from_the_steps_there_are(steps: int, keys: list[str]):
    view = View()
    for key in keys:
        if key == "in":
            view = view.zoomed(0.5, None, steps)
        elif key == "out":
            view = view.zoomed(2.0, None, steps)
        elif key == "freeze":
            view = view.frozen(steps)
        else:
            start, stop = view.window(steps)
            view = view.panned((stop - start) // (5 if key == "right" else -5), steps)
        start, stop = view.window(steps)
        assert 0 <= start <= steps
        assert stop - start >= SHORTEST_SPAN


@pytest.mark.parametrize("anchor", [100, 500, 900])
def test_zooming_keeps_the_anchor_where_it_is(anchor: int):
    view = View().zoomed(0.5, anchor, 1_000)
    start, stop = view.window(1_000)
    assert stop - start == 500
    assert (anchor - start) / (stop - start) == pytest.approx(anchor / 1_000, abs=0.01)


def test_zooming_out_far_enough_shows_all_steps_again():
    view = View().zoomed(0.5, 100, 1_000).zoomed(2.0, 100, 1_000)
    assert view.mode == "all"


def test_freezing_keeps_the_steps_and_following_returns_to_what_was_followed():
    live = View(mode="live", span=100, followed="live")
    frozen = live.frozen(1_000)
    assert frozen.window(5_000) == live.window(1_000)
    assert frozen.following().window(5_000) == live.window(5_000)


def test_the_cursor_begins_at_the_newest_step_and_stays_in_view():
    view = View().with_cursor(-1, 1_000)
    assert view.cursor == 989
    near_start = View().zoomed(0.1, 50, 1_000)
    outside = near_start.with_cursor(1, 1_000).panned(700, 1_000)
    moved = outside.with_cursor(1, 1_000)
    start, stop = moved.window(1_000)
    assert start <= moved.cursor < stop
    assert View().with_cursor(1, 0).cursor is None
