"""Steering from the terminal: the card before risky commands, and what is seen of everything that was done."""

from __future__ import annotations

import re

import numpy as np
import pytest
from msgspec.structs import replace

from client_callback.wire.commands import COMMANDS, Vocabulary, parse
from client_callback.wire.protocol import ControlChanged, Optimizer, PlanLine, Reply, TrialResult
from monitor.panels.curves import marks
from monitor.panels.learning_rate import rate_owner
from monitor.panels.panel import plain
from monitor.panels.preflight import PreflightScreen, needs_preflight
from monitor.panels.screens import ConfirmScreen
from monitor.panels.trials import trial_rows
from monitor.session import Session
from monitor.vocabulary import continuations, possible_endings, vocabulary, without_dry_run
from tests.story import ACTIONS, PLAN, MemorySource, steered_story, story, trial, tried_rates
from tests.test_app import LARGE, SMALL, press, running, shown, until

SWITCH = "optimizer sgd momentum=0.9"


def steered() -> MemorySource:
    return MemorySource(steered_story())


def is_card(app) -> bool:
    return isinstance(app.screen, PreflightScreen)


# ── The card before a risky command ───────────────────────────────────────────────────────────────


async def test_a_risky_command_shows_what_it_would_do_and_a_key_or_a_click_sends_or_leaves_it():
    async with running(size=SMALL) as (app, pilot):
        sent = []
        for answer, sends in (
            (0, True),
            (1, False),
            ("enter", True),
            ("y", True),
            ("n", False),
            ("escape", False),
        ):
            app.action_send(SWITCH)
            sent.append(f"{SWITCH} --dry-run")
            await until(pilot, lambda: is_card(app) and "send it" in shown(app))
            assert app.source.sent == sent
            text = shown(app)
            assert SWITCH in text.splitlines()[app.screen.query_one("#preflight").region.y]
            for line in PLAN:
                assert line.topic in text and line.text.split()[-1] in text
            if isinstance(answer, int):
                await pilot.click(app.screen.query(".button")[answer])
            else:
                await press(pilot, answer)
            await until(pilot, lambda: not is_card(app))
            sent += [SWITCH] if sends else []
            assert app.source.sent == sent


async def test_what_is_refused_beforehand_shows_as_for_any_command():
    async with running() as (app, pilot):
        app.action_send("optimizer adamw")
        await until(pilot, lambda: "optimizer adamw: refused. [unknown] optimizer" in shown(app))
        assert not is_card(app) and "dry-run" not in shown(app)
        await until(pilot, lambda: app.view.checking == ())


async def test_dry_runs_are_recorded_and_do_not_clutter_the_list():
    async with running() as (app, pilot):
        before = app.screen.panels["interventions"].badge(app.session, app.view)
        app.action_send(SWITCH)
        await until(pilot, lambda: is_card(app))
        await press(pilot, "escape")
        assert app.session.replies[-1].status == "planned"
        assert app.screen.panels["interventions"].badge(app.session, app.view) == before
        assert SWITCH not in shown(app)


async def test_a_plan_that_arrives_while_one_types_waits_until_the_line_is_closed():
    async with running() as (app, pilot):
        app.source.answers = False
        app.action_send(SWITCH)
        await until(pilot, lambda: "being checked" in shown(app))
        await press(pilot, "colon")
        line = app.screen.command_line
        await until(pilot, lambda: app.focused is line.line)
        line.line.value = "note x"
        app.source.waiting.append(Reply(id="command-1", text="", status="planned", plan=PLAN))
        await until(pilot, lambda: app.view.checking == ())
        await pilot.pause(0.3)
        assert not is_card(app) and line.display
        await press(pilot, "enter")
        await until(pilot, lambda: is_card(app))
        assert app.source.sent == [f"{SWITCH} --dry-run", "note x"]


async def test_a_dry_run_that_was_typed_shows_the_card_too():
    async with running() as (app, pilot):
        app.action_send("lr 1e-4 --dry-run")
        await until(pilot, lambda: is_card(app))
        await press(pilot, "enter")
        assert app.source.sent == ["lr 1e-4 --dry-run", "lr 1e-4"]


async def test_a_plan_longer_than_the_screen_can_be_scrolled_and_keeps_its_keys_in_view():
    async with running(size=SMALL, ascii_only=True) as (app, pilot):
        app.source.answers = False
        app.action_send(SWITCH)
        plan = tuple(PlanLine(topic="keeps", text=f"thing number {i} ± 1 → 2") for i in range(60))
        app.source.waiting.append(Reply(id="command-1", text="", status="planned", plan=plan))
        await until(pilot, lambda: is_card(app) and "send it" in shown(app))
        assert "thing number 59" not in shown(app)
        assert shown(app).isascii() and "+- 1 -> 2" in shown(app)
        await press(pilot, *["pagedown"] * 30)
        assert "send it" in shown(app) and "thing number 59" in shown(app)


async def test_what_is_not_risky_is_sent_at_once_and_stopping_has_its_own_question():
    async with running() as (app, pilot):
        texts = ["lr x0.5", "undo", "note later", "pause", "evaluate", "snapshot good"]
        for text in texts:
            app.action_send(text)
        assert app.source.sent == texts
        for text in ("stop", "stop now"):
            app.action_send(text)
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await press(pilot, "y")
            assert app.source.sent[-1] == text


def test_which_commands_are_risky():
    risky = {"optimizer", "set", "accumulate", "schedule", "freeze", "unfreeze", "reinit", "class-weight"}
    risky |= {"loss-weight", "rollback"}
    for spec in COMMANDS.values():
        for example in spec.examples:
            asks = spec.name in risky or "--adopt" in example
            assert needs_preflight(parse(example)) == asks, example
    assert needs_preflight(parse("freeze dense at epoch 5"))
    assert needs_preflight(parse("lr 1e-4 from start"))


# ── What was done ─────────────────────────────────────────────────────────────────────────────────


async def test_timers_and_buttons_stand_above_all_answers():
    async with running(steered(), size=(100, 30)) as (app, pilot):
        app._look(selected="interventions")
        await press(pilot, "z", "z")
        lines = [line.strip() for line in shown(app).splitlines()[2:6]]
        assert lines[0] == "▸ render   ▸ save-images"
        assert lines[1] == "#2 pause  waits for epoch 15"
        assert lines[2] == "#3 lr x2  unless loss is above 0.25 before step 2600"
        assert lines[3].startswith("✓ undo")


async def test_every_answer_has_its_sign_and_what_followed_it():
    async with running(steered(), size=(100, 90)) as (app, pilot):
        app._look(selected="interventions")
        await press(pilot, "z")
        text = shown(app)
        for words in (
            r"○ lr 1e-3 .*\n.*ReduceLROnPlateau set it back",
            r"› pause at epoch 15 .*\n.*as timer #2",
            r"↶ optimizer sgd learning_rate=0.01 .*\n.*undone",
            r"✓ undo .*\n.*sgd → adam.*\n.*too early to tell: 64 more.*\n.*‖Δw‖/‖w‖ of a step 3.1e-3 → 2.2e-4",
            r"✗ optimizer sdg",
            r"lr 1e-3 → 5e-4.*\n.*↳ no detectable effect in 256 steps",
            r"fell \d+ %/100 steps after \(±\d+\)",
        ):
            assert re.search(words, text), words


async def test_the_scripts_own_commands_are_buttons_and_palette_entries():
    async with running(steered()) as (app, pilot):
        x = shown(app).splitlines()[-10].index("save-images")
        await pilot.click(offset=(x, LARGE[1] - 10))
        await until(pilot, lambda: app.source.sent == ["save-images"])
        found = {command.title: command for command in app.get_system_commands(app.screen)}
        found["Action render"].callback()
        assert app.source.sent == ["save-images", "render"]
        app.action_send("render 3")
        assert app.source.sent[-1] == "render 3"


async def test_who_else_steers_is_said_until_it_is_us():
    async with running(steered(), size=SMALL) as (app, pilot):
        assert "eve@box terminal steers; control take" in shown(app).splitlines()[1]
        await press(pilot, "c", "u")
        assert app.source.sent == ["control take", "undo"]
        own = ControlChanged(who="ada@box terminal", client=app.source.client, time=app.session.time + 1)
        app.source.waiting.append(own)
        await until(pilot, lambda: "steers" not in shown(app))


# ── Trials ────────────────────────────────────────────────────────────────────────────────────────


def lines_of(ended, width: int, height: int = 30, *, ascii_only: bool = False) -> list[str]:
    rows = trial_rows(ended, width, height, ascii_only=ascii_only)
    return ["".join(plain(segment.text, ascii_only) for segment in row) for row in rows]


@pytest.mark.parametrize("width", [30, 36, 60, 84, 116])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_candidates_are_ranked_with_interval_and_curve(width: int, ascii_only: bool):
    lines = lines_of(trial(0, 0.0), width, ascii_only=ascii_only)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert not ascii_only or text.isascii()
    ranks = [text.index(f"{rank} {name}") for rank, name in ((1, "sgd 0.05"), (2, "keep"), (3, "lr x10"))]
    assert ranks == sorted(ranks)
    assert re.search(r"0\.311 (±|\+-)0\.012", text) and "diverged" in text
    assert "given up after 40 steps" in " ".join(text.split())


def test_a_chart_of_all_candidates_is_drawn_where_there_is_room():
    assert len(lines_of(trial(0, 0.0), 84)) > len(lines_of(trial(0, 0.0), 84, height=9)) + 5


def test_it_is_said_when_the_best_may_be_so_by_chance_and_what_was_adopted():
    unsure = replace(trial(0, 0.0), tells=False)
    assert "the best cannot be told from the others" in lines_of(unsure, 60)
    adopted = replace(trial(0, 0.0), adopted="keep")
    assert "training goes on with keep" in lines_of(adopted, 60)


@pytest.mark.parametrize("width", [36, 84])
def test_a_range_test_shows_the_loss_over_the_rate_and_which_to_try(width: int):
    text = "\n".join(lines_of(tried_rates(0, 0.0), width))
    assert "try lr 0.02" in text and re.search(r"diverges\s+at\s+0\.3", text)
    assert "1e-5" in text and "1e-1" in text


def test_a_trial_without_any_finite_loss_is_told_all_the_same():
    nothing = np.full(3, np.nan, "<f4").tobytes()
    result = TrialResult(text="lr 9", losses=nothing, score=np.nan, low=np.nan, high=np.nan)
    assert "diverged" in "\n".join(lines_of(replace(trial(0, 0.0), results=(result, result)), 84))
    assert lines_of(replace(tried_rates(0, 0.0), results=(result,)), 84)
    assert lines_of(replace(trial(0, 0.0), results=()), 84) == []


# ── The rate's owner, marks, names ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, ""),
        ({"schedule": "CosineDecay"}, "CosineDecay"),
        ({"rate_owners": ("ReduceLROnPlateau",)}, "ReduceLROnPlateau"),
        ({"rate_owners": ("ReduceLROnPlateau",), "held": True}, "you, held against ReduceLROnPlateau"),
        ({"schedule": "CosineDecay", "rate_owners": ("Own",)}, "CosineDecay, Own"),
    ],
)
def test_who_decides_the_rate_is_named(about, words: str):
    session = Session()
    session.switched = Optimizer(name="adam", class_name="Adam", **about)
    assert rate_owner(session) == words


def test_each_kind_of_intervention_has_its_mark_on_the_curves():
    session = Session()
    for event in steered_story():
        session.apply(event)
    assert [(mark.step, mark.glyph) for mark in marks(session)] == [(1_000, "▼"), (1_500, "◆"), (2_400, "↶")]
    for number, (text, glyph) in enumerate([("rollback start", "↶"), ("redo", "↷"), ("freeze a", "◇")]):
        session.apply(Reply(id=text, text=text, status="applied", step=3_000 + number, time=2e9))
        assert marks(session)[-1].glyph == glyph
    session.apply(Reply(id="none", text="lr 1", status="ineffective", step=4_000, time=2e9))
    assert marks(session)[-1].step == 3_002


def test_names_are_completed_with_what_the_run_has():
    session = Session()
    for event in steered_story():
        session.apply(event)
    names = vocabulary(session)
    assert names.snapshots == ("1500", "good") and names.timers == (2, 3) and names.actions == ACTIONS
    assert names.hyperparameters == ("momentum",)
    for text, completed in (
        ("freeze co", "freeze conv_1"),
        ("rollback g", "rollback good"),
        ("cancel ", "cancel 2"),
        ("set mo", "set momentum="),
        ("ren", "render"),
        ("lr x0.5 u", "lr x0.5 unless "),
        ("lr x0.5 unless ", "lr x0.5 unless loss rises "),
        ("render a", "render at "),
        ("lr 1e-4 from ", "lr 1e-4 from good"),
    ):
        assert completed in continuations(text, names)


def test_only_endings_that_fit_are_offered():
    assert [e.split()[0] for e in possible_endings("lr x0.5", ())] == ["at", "when", "for", "unless", "from"]
    assert [e.split()[0] for e in possible_endings("lr x0.5 for 9 steps", ())] == ["at", "when", "from"]
    assert [e.split()[0] for e in possible_endings("pause", ())] == ["at", "when"]
    for text in ("note done", "resume", "lr", "nonsense", "pause at step 5"):
        assert possible_endings(text, ()) == []
    assert continuations("note to be ", Vocabulary()) == []


async def test_the_help_line_leads_through_a_command():
    async with running(steered(), size=SMALL) as (app, pilot):
        await press(pilot, "colon")
        line = app.screen.command_line.line
        for typed, words in (
            ("lr ", "lr VALUE | xFACTOR"),
            ("lr x0.5 ", "then, if wanted: at step N | at epoch N"),
            ("optimizer ", "adam adamw sgd"),
            ("render ", "then, if wanted"),
            ("launch ", "no such command; possible: lr, schedule"),
        ):
            line.value = typed
            await until(pilot, lambda words=words: words in " ".join(shown(app).split()))


def test_the_sign_of_a_dry_run_is_taken_off():
    assert without_dry_run("set a=1 --dry-run") == without_dry_run("set a=1") == "set a=1"
    assert without_dry_run("lr 1 --dry-run at epoch 5") == "lr 1 at epoch 5"


def test_the_story_without_steering_has_no_buttons_and_no_timers():
    session = Session()
    for event in story(100):
        session.apply(event)
    assert session.actions == () and session.timers is None and session.control is None
