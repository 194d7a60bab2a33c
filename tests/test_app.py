"""The terminal program, driven by keys and mouse through Textual's Pilot, over events from memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from textual import events
from textual.pilot import Pilot

from client_callback.wire.journal import JournalWriter
from client_callback.wire.protocol import Overhead, Problem, Reply, RunStarted, StateChanged, steps_event
from monitor.app import UnstuckApp
from monitor.dashboard import CHARTS, OTHERS
from monitor.keys import KEYS
from monitor.panels import PANELS
from monitor.panels.command_line import CommandLine
from monitor.panels.curves import marks
from monitor.panels.gradients import layer_statistics
from monitor.panels.screens import ConfirmScreen, HelpScreen, help_lines
from monitor.panels.text import wrapped
from monitor.session import Session
from monitor.sources import RecordedSource
from tests.story import STARTED_AT, MemorySource, story
from tests.tables import story_with_tables

LARGE, SMALL = (120, 40), (80, 24)


@asynccontextmanager
async def running(source=None, size=LARGE, **settings):
    source = source or MemorySource(story())
    app = UnstuckApp(source, **settings)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.session.run is not None and shown(app)[: size[0]].strip() != "")
        yield app, pilot


async def until(pilot: Pilot, condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"waited {within_s} s in vain; on the screen:\n{shown(pilot.app)}"
        await pilot.pause(0.02)


def shown(app: UnstuckApp) -> str:
    """The text on the screen."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips[: app.size.height])


async def press(pilot: Pilot, *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
    await pilot.pause()


async def type_line(pilot: Pilot, text: str) -> None:
    await press(pilot, "colon", *text.replace(" ", "\0").replace("\0", " "), "enter")


@pytest.mark.parametrize("size", [LARGE, SMALL, (60, 16), (200, 60)])
async def test_nothing_is_cut_off_at_any_size(size):
    async with running(size=size) as (app, _pilot):
        lines = shown(app).splitlines()
        assert len(lines) == size[1]
        assert "heart" in lines[0] and "2,400" in lines[0]
        assert "quit" in lines[-1]
        for panel in app.screen.panels.values():
            if panel.display:
                assert panel.region.bottom <= size[1] and panel.region.right <= size[0]
                assert panel.content_size.width > 0 and panel.content_size.height > 0


async def test_a_large_terminal_shows_everything_at_once():
    async with running() as (app, _pilot):
        text = shown(app)
        for words in (
            *("loss", "accuracy", "learning rate", "gradient norm by layer", "predictions", "interventions"),
            *("findings", "● running", "epoch 12/20", "step 2,400/4,000", "60 %", "100 steps/s", "ETA"),
            *("lr 0.01 as asked", "sgd", "all steps", "conv_1", "optimizer sdg", "Plateau"),
        ):
            assert words in text, words


async def test_tab_goes_through_all_panels_of_a_small_terminal():
    async with running(size=SMALL) as (app, pilot):
        seen = []
        for _ in OTHERS:
            seen.append([name for name in OTHERS if app.screen.panels[name].display])
            await press(pilot, "tab")
        assert seen == [[name] for name in OTHERS]
        await press(pilot, "shift+tab")
        assert app.screen.panels[OTHERS[-1]].display


async def test_m_goes_through_the_metrics_and_the_loss_in_a_small_terminal():
    async with running(size=SMALL) as (app, pilot):
        first_lines = []
        for _ in range(3):
            first_lines.append(shown(app).splitlines()[2].split()[1])
            await press(pilot, "m")
        assert first_lines == ["loss", "accuracy", "grad_norm"]
        assert shown(app).splitlines()[2].split()[1] == "loss"


async def test_the_rate_is_halved_and_doubled_by_one_key():
    async with running() as (app, pilot):
        await press(pilot, "left_square_bracket", "right_square_bracket")
        assert app.source.sent == ["lr x0.5", "lr x2"]
        await until(pilot, lambda: "lr x0.5: applied. lr 0.01 → 5e-3" in shown(app))
        await until(pilot, lambda: "asked" not in shown(app).splitlines()[1])


async def test_a_rate_that_was_named_and_is_not_in_effect_is_said():
    async with running() as (app, pilot):
        await type_line(pilot, "lr 5e-3")
        await until(pilot, lambda: "5e-3 asked → 0.01 in effect" in shown(app))


async def test_a_command_that_is_not_answered_yet_is_shown_as_sent():
    async with running() as (app, pilot):
        app.source.answers = False
        await press(pilot, "left_square_bracket")
        await until(pilot, lambda: re.search(r"… lr x0\.5 +sent", shown(app)) is not None)


async def test_p_pauses_and_resumes():
    async with running() as (app, pilot):
        await press(pilot, "p")
        app.source.waiting.append(StateChanged(state="paused", step=2_400, time=app.session.time + 1))
        await until(pilot, lambda: "● paused" in shown(app))
        await press(pilot, "p")
        assert app.source.sent == ["pause", "resume"]


async def test_stopping_asks_first_and_escape_is_no():
    async with running() as (app, pilot):
        await press(pilot, "S")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "escape")
        assert app.source.sent == []
        await type_line(pilot, "stop")
        assert isinstance(app.screen, ConfirmScreen)
        await press(pilot, "y")
        assert app.source.sent == ["stop"]


async def test_q_leaves_the_program_and_sends_nothing():
    async with running() as (app, pilot):
        await press(pilot, "q")
        assert not app.is_running
    assert app.source.closed
    assert app.source.sent == []


async def test_the_command_line_completes_remembers_and_answers():
    async with running() as (app, pilot):
        line = app.screen.query_one(CommandLine)
        await press(pilot, "colon")
        assert line.display and "lr  schedule  optimizer  set" in shown(app)
        await press(pilot, *"op", "tab", *"ada", "tab")
        assert line.line.value.startswith("optimizer adam")
        await press(pilot, "w", "space", *"wei", "tab", *"0.1", "enter")
        assert app.source.sent == ["optimizer adamw weight_decay=0.1 --dry-run"]
        assert not line.display
        await until(pilot, lambda: "[unknown] optimizer" in shown(app))
        await press(pilot, "colon", "up")
        assert line.line.value == "optimizer adamw weight_decay=0.1"
        await press(pilot, "up")
        assert line.line.value == "optimizer sgd learning_rate=0.01 momentum=0.9"
        await press(pilot, "escape")
        assert not line.display and app.focused is None


async def test_a_command_that_makes_no_sense_stays_on_the_line_with_the_reason():
    async with running(size=SMALL) as (app, pilot):
        await type_line(pilot, "lr fast")
        line = app.screen.query_one(CommandLine)
        assert line.display and line.line.value == "lr fast"
        assert "'fast' is no number" in shown(app)
        assert app.source.sent == []


async def test_keys_are_letters_while_a_command_is_typed():
    async with running() as (app, pilot):
        await press(pilot, "o", *"q", "p")
        assert app.screen.query_one(CommandLine).line.value == "optimizer qp"
        assert app.source.sent == []


async def test_letters_that_arrive_with_the_key_that_opens_the_line_are_on_it():
    """As one burst over a slow connection, or pasted."""
    async with running() as (app, pilot):
        for key, sign in [("colon", ":"), *zip("pause", "pause", strict=True)]:
            app.post_message(events.Key(key, sign))
        await until(pilot, lambda: app.screen.query_one(CommandLine).line.value == "pause")
        assert app.source.sent == []


async def test_zooming_freezes_and_one_key_returns():
    async with running() as (app, pilot):
        await press(pilot, "plus", "plus")
        assert app.view.mode == "frozen" and app.view.stop - app.view.start < 1_000
        assert re.search(r"frozen 1,\d{3}–2,\d{3}", shown(app))
        before = app.view
        app.source.waiting = story(2_600)[-80:]
        await until(pilot, lambda: len(app.session.times) == 2_600)
        assert (app.view.start, app.view.stop) == (before.start, before.stop)
        await press(pilot, "left")
        assert app.view.start < before.start
        await press(pilot, "f")
        assert app.view.mode == "all"
        await press(pilot, "t")
        assert "live last" in shown(app)
        await press(pilot, "space")
        assert app.view.mode == "frozen"
        await press(pilot, "escape")
        assert app.view.mode == "live"


async def test_the_wheel_zooms_and_dragging_pans_where_the_pointer_is():
    async with running() as (app, pilot):
        await pilot._post_mouse_events([_scroll_up()], "#loss", offset=(30, 8))
        await pilot.pause()
        assert app.view.mode == "frozen"
        start = app.view.start
        assert 0 < start < 2_400
        await press(pilot, "plus", "plus")
        start = app.view.start
        await pilot.mouse_down("#loss", offset=(30, 8))
        await pilot.hover("#loss", offset=(34, 8))
        await pilot.mouse_up("#loss", offset=(34, 8))
        await pilot.pause()
        assert app.view.start <= start


async def test_hovering_reads_out_the_values_of_a_step():
    async with running() as (app, pilot):
        await pilot.hover("#loss", offset=(30, 8))
        await until(pilot, lambda: app.view.cursor is not None)
        step = app.view.cursor
        assert f"step {step:,}" in shown(app)
        await press(pilot, "shift+right")
        assert app.view.cursor > step
        await press(pilot, "escape")
        assert app.view.cursor is None


async def test_l_changes_the_axis_of_the_selected_chart_only():
    async with running() as (app, pilot):
        await press(pilot, "l")
        assert app.view.log == {"loss", "learning_rate"}
        await press(pilot, "tab", "l")
        assert app.view.log == {"loss", "accuracy", "learning_rate"}
        await press(pilot, "tab", "l")
        assert app.view.log == {"loss", "accuracy"}


async def test_s_changes_the_smoothing():
    async with running() as (app, pilot):
        await press(pilot, "s")
        assert "mean of 100" in shown(app)


async def test_z_gives_the_screen_to_one_panel_and_back():
    async with running() as (app, pilot):
        await pilot.click("#gradients")
        await press(pilot, "z")
        assert [name for name, panel in app.screen.panels.items() if panel.display] == ["gradients"]
        await press(pilot, "escape")
        assert all(panel.display for panel in app.screen.panels.values())


async def test_h_and_d_go_through_statistics_and_distributions():
    async with running(size=SMALL) as (app, pilot):
        await press(pilot, "h")
        assert app.view.statistic == "gradient_zero_share" and app.screen.panels["gradients"].display
        await press(pilot, "d")
        assert app.view.distribution == "confidence" and "true 0" in shown(app)
        await press(pilot, "d")
        assert "non_finite" in shown(app)
        panel = app.screen.panels["predictions"]
        assert panel.heading(app.session, app.view) == "inputs · step 2,390"


async def test_a_remedy_is_put_on_the_command_line_by_its_number():
    async with running(MemorySource(story(1_400))) as (app, pilot):
        await until(pilot, lambda: "Stuck" in shown(app))
        await press(pilot, "1")
        line = app.screen.query_one(CommandLine)
        assert line.display and line.line.value.startswith('trial keep "lr x0.1" "sgd 0.05 momentum=0.9"')
        assert app.source.sent == []


async def test_long_findings_can_be_scrolled_through_with_keys_and_wheel():
    source = MemorySource([*story(1_400), *(Problem(what=f"problem number {i}", step=i) for i in range(30))])
    async with running(source, size=SMALL) as (app, pilot):
        await press(pilot, "shift+tab")
        assert "more lines" in shown(app) and "a fall beyond" in shown(app)
        await press(pilot, *["pagedown"] * 9)
        assert "problem number 10" in shown(app) and "a fall beyond" not in shown(app)
        await press(pilot, *["pageup"] * 9)
        assert "a fall beyond" in shown(app)


async def test_help_lists_every_key_of_the_table():
    async with running(size=SMALL) as (app, pilot):
        await press(pilot, "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await press(pilot, "escape")
        assert not isinstance(app.screen, HelpScreen)
    for live in (True, False):
        lines = [
            line
            for group in ("Training", "Curves", "Panels", "Replay", "Program")
            for line in help_lines(group, live=live)
        ]
        listed = {key for shown, _ in lines for key in shown.split(" or ")}
        for key in KEYS:
            if key.only in ("", "live" if live else "recorded") and not key.action.startswith("remedy"):
                assert key.shown in listed


async def test_the_palette_offers_every_action_and_every_command():
    async with running() as (app, pilot):
        titles = [command.title for command in app.get_system_commands(app.screen)]
        for key in KEYS:
            if key.only != "recorded" and not key.action.startswith(("remedy", "command_palette")):
                assert key.text in titles
        assert "Command optimizer" in titles and "Show grad_norm" in titles
        await press(pilot, "ctrl+p", *"halve")
        await until(pilot, lambda: "Halve the learning rate" in shown(app))
        await press(pilot, "enter")
        await until(pilot, lambda: app.source.sent == ["lr x0.5"])


async def test_every_action_in_the_table_exists():
    async with running() as (app, _pilot):
        for key in KEYS:
            assert callable(getattr(app, f"action_{key.action.partition('(')[0]}")), key


async def test_hints_and_tabs_can_be_clicked():
    async with running(size=SMALL) as (app, pilot):
        await pilot.click("#hints", offset=(3, 0))
        assert app.source.sent == ["lr x0.5"]
        x = next(line.index("findings") for line in shown(app).splitlines() if "interventions" in line)
        await pilot.click("#tabs", offset=(x + 1, 0))
        assert app.screen.panels["findings"].display


async def test_ascii_mode_shows_nothing_else():
    async with running(ascii_only=True) as (app, pilot):
        for keys in (
            (),
            ("left_square_bracket",),
            ("colon",),
            ("escape",),
            ("question_mark",),
            ("escape", "ctrl+p"),
        ):
            await press(pilot, *keys)
            assert shown(app).isascii(), [c for c in shown(app) if not c.isascii()]


async def test_control_characters_and_markup_from_outside_do_no_harm():
    events = story(600)
    run = events[0].run
    from msgspec.structs import replace

    events[0] = RunStarted(run=replace(run, name="\x1b[2J[bold]x\n\t日本語" * 3), time=events[0].time)
    events.append(Problem(what="\x1b]0;title\x07 [red]no[/] " + "long" * 200, step=600))
    async with running(MemorySource(events), size=SMALL) as (app, pilot):
        await press(pilot, "shift+tab")
        assert "\x1b" not in shown(app) and "[red]no[/]" in shown(app)
        assert "[bold]x" in shown(app)


async def test_a_new_step_sends_a_few_cells_and_not_the_screen():
    async with running(MemorySource(story(2_450))) as (app, pilot):
        regions = []
        for panel in app.screen.panels.values():
            panel.refresh = lambda *dirty, _n=panel.name_, **_: regions.extend((_n, r) for r in dirty)
        last = app.session.times.values[-1]
        columns = {name: column.values[-1:] for name, column in app.session.series.items()}
        app.source.waiting = [steps_event(2_450, np.array([last + 0.01]), columns, time=float(last) + 0.01)]
        await until(pilot, lambda: len(app.session.times) == 2_451)
        cells = sum(region.area for _, region in regions)
        assert cells < 0.15 * LARGE[0] * LARGE[1], regions


async def test_a_reset_of_the_source_starts_a_new_session(tmp_path):
    path = recording(tmp_path, 1_000)
    async with running(RecordedSource(path, start_step=900, clock=lambda: 0.0), size=SMALL) as (app, pilot):
        await until(pilot, lambda: app.session.step == 900)
        await press(pilot, "g", *"300", "enter")
        assert app.session.step == 300
        fresh = Session()
        for event in story(1_000):
            if event.step <= 300:
                fresh.apply(event)
        assert len(app.session.times) == len(fresh.times) == 300


def recording(folder: Path, steps: int) -> Path:
    path = folder / "story.unstuck"
    events = story(steps)
    writer = JournalWriter(path, events[0].run)
    writer.append(events)
    writer.close()
    return path


async def test_a_recording_is_played_held_stepped_and_jumped_through(tmp_path):
    now = [0.0]
    source = RecordedSource(recording(tmp_path, 1_400), clock=lambda: now[0])
    async with running(source, note="story.unstuck") as (app, pilot):
        await press(pilot, "space")
        assert not source.playing and "‖ 1×" in shown(app)
        await press(pilot, *"g500", "enter")
        assert source.position == 500 and "500/1,400" in shown(app)
        await press(pilot, "full_stop", "full_stop", "comma")
        assert app.session.step == 501
        await press(pilot, "greater_than_sign")
        assert source.position == 1_000
        await press(pilot, "less_than_sign")
        assert source.position == 0
        await press(pilot, *"g300", "enter")
        await press(pilot, "right_curly_bracket")
        assert source.speed == 2.0
        await press(pilot, "space")
        now[0] += 1.0
        await until(pilot, lambda: app.session.step > 300)
        assert "▶ 2×" in shown(app)


async def test_a_recording_cannot_be_steered_and_says_so(tmp_path):
    async with running(RecordedSource(recording(tmp_path, 400), start_step=400)) as (app, pilot):
        assert "lr ÷2" not in shown(app)
        for key in ("left_square_bracket", "right_square_bracket", "p", "o", "n", "S", "colon", "1"):
            await press(pilot, key)
            assert len(app.screen_stack) == 2
            assert not app.screen.query_one(CommandLine).display
            await until(pilot, lambda: shown(app).count("A recording cannot be steered") == 1)
            await pilot.click("#notices")
            await until(pilot, lambda: "cannot be steered" not in shown(app))


async def test_answers_never_cover_the_command_line_nor_pile_up():
    async with running(size=SMALL) as (app, pilot):
        for number in range(20):
            app._warn(f"warning {number}")
        app._warn("one more")
        await press(pilot, "colon", *"lr", "space")
        await until(pilot, lambda: "one more" in shown(app))
        lines = shown(app).splitlines()
        assert lines[-1].startswith(" :lr") and "lr VALUE | xFACTOR" in lines[-3]
        assert not any("warning" in line for line in [*lines[:2], *lines[8:]])


async def test_what_was_typed_comes_back_in_the_order_of_time_also_in_later_sessions(home):
    async with running() as (app, pilot):
        for text in ("note one", "lr fast", "note two", "note one"):
            await type_line(pilot, text)
            await press(pilot, "escape")
        await until(pilot, lambda: len(app.source.sent) == 3)
    assert (home / "settings" / "history").stat().st_mode & 0o777 == 0o600
    async with running() as (app, pilot):
        line = app.screen.query_one(CommandLine)
        await press(pilot, "colon")
        seen = []
        for _ in range(5):
            await press(pilot, "up")
            seen.append(line.line.value)
        assert seen[:3] == ["note one", "note two", "lr fast"]
        assert seen[3:] == ["optimizer sgd learning_rate=0.01 momentum=0.9", "optimizer sdg"]


async def test_tab_completes_no_further_than_all_possibilities_agree():
    async with running() as (app, pilot):
        line = app.screen.query_one(CommandLine)
        await press(pilot, "o", "tab", "tab")
        assert line.line.value == "optimizer "
        await press(pilot, "a", "tab")
        assert line.line.value == "optimizer adam"
        await press(pilot, "w", "tab")
        assert line.line.value == "optimizer adamw "


@pytest.mark.parametrize("width", [40, 50, 60, 80])
async def test_the_selected_tab_is_in_view_at_any_width(width):
    async with running(size=(width, 20)) as (app, pilot):
        await until(pilot, lambda: app.screen._tabs._strips)
        for name in OTHERS:
            panel = app.screen.panels[name]
            assert panel.display
            tabs = "".join(segment.text for segment in app.screen._tabs._strips[0])
            assert re.search(rf" ({panel.title}|{panel.short or panel.title}) ", tabs), tabs
            await press(pilot, "tab")


async def test_a_click_on_a_tab_of_a_narrow_terminal_chooses_what_is_read_there():
    async with running(size=(40, 20)) as (app, pilot):
        await press(pilot, "shift+tab")
        tabs = next(line for line in shown(app).splitlines() if "interventions" in line)
        await pilot.click("#tabs", offset=(tabs.index("interventions") + 1, 0))
        assert app.screen.panels["interventions"].display


async def test_the_machine_panel_tells_where_time_goes_and_what_watching_costs():
    async with running(size=SMALL) as (app, pilot):
        await press(pilot, "tab", "tab")
        text = shown(app)
        for words in (
            *("100 steps/s   3,200 examples/s", "input 31 %", "step 65 %", "callbacks 4 %"),
            *("overhead 0.6 % of 1 % · statistics every 37 steps", "machine 41 %", "2.1 GB"),
            *("12.3 GB", "62 %", "71 °C 243 W"),
        ):
            assert words in text, words
        bar = next(line for line in text.splitlines() if "▒▒" in line)
        assert [round(bar.count(sign) / 78, 2) for sign in "█▒░"] == [0.31, 0.65, 0.04]
        assert "overhead" not in text.splitlines()[1]


async def test_readings_are_those_under_the_cursor():
    async with running(size=SMALL) as (app, pilot):
        await press(pilot, "tab", "tab")
        newest = re.search(r"cpu +(\d+) %", shown(app))
        app._look(cursor=150)
        await until(pilot, lambda: re.search(r"cpu +(\d+) %", shown(app)).group(1) == "42")
        assert newest.group(1) != "42"


@pytest.mark.parametrize(
    ("share", "budget", "words"),
    [
        (0.013, 0.01, "overhead 1.3 % of 1 % · statistics every 10 steps"),
        (0.2, None, "overhead 20 % · statistics every 10 steps (fixed)"),
    ],
)
async def test_an_overhead_beyond_its_budget_stands_in_the_status_line(share, budget, words):
    cost = Overhead(share=share, hooks=0.0, sampling=0.0, every=10, budget=budget, time=STARTED_AT + 1e6)
    async with running(MemorySource([*story(), cost]), size=SMALL) as (app, pilot):
        await press(pilot, "tab", "tab")
        assert words in shown(app)
        assert ("overhead 1.3 %" in shown(app).splitlines()[1]) == (budget is not None)


async def test_a_run_without_readings_has_a_machine_panel_that_says_so():
    async with running(MemorySource(story()[:1]), size=SMALL) as (app, pilot):
        await press(pilot, "tab", "tab")
        assert "Nothing measured yet." in shown(app)


async def test_h_goes_through_all_that_is_known_of_layers():
    async with running(MemorySource(story_with_tables())) as (app, pilot):
        seen = {}
        for name in layer_statistics(app.session):
            app._look(statistic=name)
            await pilot.pause()
            panel = app.screen.panels["gradients"]
            seen[panel.border_title] = "\n".join(strip.text for strip in panel._strips)
    assert list(seen) == [
        *("gradient norm by layer", "gradient zero share by layer", "update ratio by layer"),
        *("dead units by layer", "gradient histogram by layer"),
        *(f"activations: {what} by layer" for what in ("zeros", "saturated", "mean", "std", "dead")),
        "gradient pair",
    ]
    assert seen["update ratio by layer"].startswith("0.001 ") and "0.01" in seen["update ratio by layer"]
    assert seen["dead units by layer"].split()[:3] == ["0", "1", "conv"]
    assert "-30" in seen["gradient histogram by layer"] and "head" in seen["gradient histogram by layer"]
    assert re.search(r"noise scale +164\.9 ", seen["gradient pair"])


async def test_the_confusion_is_a_matrix_where_it_fits_and_its_worst_in_words_elsewhere():
    async with running(MemorySource(story_with_tables())) as (app, pilot):
        app._look(distribution="confusion", selected="predictions")
        assert "7 as 9  120, 20 % of 7" in shown(app)
        await press(pilot, "z")
        assert re.search(r" 7( +0){7} +470 +0 +120 ", shown(app))
        assert "7 as 9" not in shown(app)


async def test_features_with_values_that_are_not_finite_come_first():
    async with running(MemorySource(story_with_tables())) as (app, pilot):
        app._look(distribution="inputs", selected="predictions")
        await press(pilot, "z")
        assert re.search(r"weight .*\n.*height .*\n.*age ", shown(app))


async def test_nothing_is_said_of_speed_while_the_training_is_paused():
    async with running() as (app, pilot):
        assert "steps/s" in shown(app) and "ETA" in shown(app)
        app.source.waiting = [StateChanged(state="paused", step=2_400, time=app.session.time + 1)]
        await until(pilot, lambda: "paused" in shown(app))
        assert "steps/s" not in shown(app) and "ETA" not in shown(app)


async def test_a_tick_while_the_program_ends_finds_no_screen_and_does_nothing():
    async with running() as (app, pilot):
        await pilot.pause()
    assert not app.screen_stack
    app.tick()


async def test_z_gives_a_small_terminal_to_the_chart_then_to_the_panel_then_to_both():
    async with running(size=SMALL) as (app, pilot):
        displayed = []
        for _ in range(4):
            displayed.append([name for name, panel in app.screen.panels.items() if panel.display])
            await press(pilot, "z")
        assert displayed == [["loss", OTHERS[0]], ["loss"], [OTHERS[0]], ["loss", OTHERS[0]]]
        await press(pilot, "m")
        assert [name for name, panel in app.screen.panels.items() if panel.display] == ["metric"]
        await press(pilot, "escape")
        assert app.screen.panels[OTHERS[0]].display


@pytest.mark.parametrize(("size", "columns"), [(LARGE, 1), ((150, 40), 2)])
async def test_the_help_has_two_columns_where_there_is_room_and_the_training_comes_first(size, columns):
    async with running(size=size) as (app, pilot):
        await press(pilot, "question_mark")
        groups = app.screen.query(".help-group")
        assert str(groups.first().content).startswith("Training")
        assert len({group.region.x for group in groups}) == columns


def test_a_number_stays_in_one_line_with_its_unit_and_its_error():
    text = "it fell 0.3 % (a fall beyond 12 % is ruled out) within 0.69 ± 0.03 over 40 steps in 2 s"
    for width in range(12, 60):
        lines = wrapped(text, width)
        for unit in ("0.3 %", "12 %", "0.69 ± 0.03", "40 steps", "2 s"):
            assert any(unit in line for line in lines), lines
    assert wrapped("0.69 +- 0.03 over", 13) == ["0.69 +- 0.03", "over"]


def test_raising_and_lowering_the_rate_have_marks_of_their_own():
    session = Session()
    for number, (before, after) in enumerate([(1e-3, 5e-4), (5e-4, 1e-2)]):
        rates = {"before": {"learning_rate": before}, "after": {"learning_rate": after}}
        session.apply(Reply(id=str(number), text="lr /2", status="applied", step=number, **rates))
    assert [mark.glyph for mark in marks(session)] == ["▼", "▲"]


async def test_a_broken_connection_is_said_in_the_status_line():
    async with running(size=SMALL) as (app, pilot):
        app.source.connection = "no sign of life for 12 s"
        await until(pilot, lambda: "no sign of life for 12 s" in shown(app).splitlines()[1])


async def test_the_screen_is_saved_as_a_picture_that_loads_nothing_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with running() as (_app, pilot):
        await press(pilot, "ctrl+s")
        svg = (tmp_path / "heart-step-2400.svg").read_text()
        assert "gradient" in svg and "@font-face" not in svg
        assert re.findall(r"https?://[^\"' )]+", svg) in ([], ["http://www.w3.org/2000/svg"])


async def test_changing_the_theme_recolours_the_panels():
    async with running() as (app, pilot):
        panel = app.screen.panels["loss"]
        before = panel._look("loss").color
        app.theme = "textual-light"
        await until(pilot, lambda: panel._look("loss").color != before)


async def test_resizing_changes_between_both_layouts():
    async with running() as (app, pilot):
        await pilot.resize_terminal(*SMALL)
        await until(pilot, lambda: sum(p.display for p in app.screen.panels.values()) == 2)
        await pilot.resize_terminal(*LARGE)
        await until(pilot, lambda: all(p.display for p in app.screen.panels.values()))
        assert {panel.name_ for panel in PANELS} == {*CHARTS, *OTHERS}


def _scroll_up():
    from textual.events import MouseScrollUp

    return MouseScrollUp
