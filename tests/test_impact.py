"""What followed an intervention: claimed where there is something, and hardly ever where there is only noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from client_callback.wire.protocol import Reply
from monitor.diagnosis.examples import session_of
from monitor.impact import LOOKS, Impact, Slope, comparisons, impact, sentence
from monitor.session import Session
from tests.test_trends import remembering

AT = 2_200


def applied(text: str, step: int, **more: object) -> Reply:
    return Reply(**{"id": f"{text}@{step}", "text": text, "status": "applied", "step": step, **more})


def session_with(losses: np.ndarray, *replies: Reply) -> Session:
    session = session_of({"loss": losses})
    for number, reply in enumerate(replies):
        session.apply(replace(reply, time=1.0 + number))
    return session


def impacts(session: Session) -> list[Impact]:
    return [impact(session, compared) for compared in comparisons(session)]


def after_one_change(curve: Callable[[np.ndarray], np.ndarray], noise: float = 0.03, *, memory: float = 0.3):
    """The impact of a change at `AT` on a curve of (steps since then), by seed."""
    steps = np.arange(AT + LOOKS[-1])
    level = curve(steps - AT)
    for row in remembering((20, len(steps)), memory, 5):
        yield impacts(session_with(level + noise * row, applied("lr x0.5", AT)))[0]


# ── Only noise ────────────────────────────────────────────────────────────────────────────────────

NOTHING = {
    "flat": lambda t: np.full(len(t), 0.69),
    "round zero, so that no logarithm can be taken": lambda t: np.zeros(len(t)),
    "a straight fall": lambda t: 1.3 - t / 4_000,
    "an exponential fall": lambda t: 0.3 + 0.6 * np.exp(-t / 2_000),
    "a fall like a square root": lambda t: 2.3 / np.sqrt(1 + (t + AT) / 50),
}


@pytest.mark.parametrize("curve", NOTHING)
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_where_nothing_changed_an_effect_is_claimed_in_at_most_a_twentieth(curve: str, memory: float):
    """At any of the looks; the noise is autoregressive, as of batches that resemble each other."""
    steps = np.arange(AT + LOOKS[-1])
    level, runs = NOTHING[curve](steps - AT), 100
    claimed = 0
    for row in remembering((runs, len(steps)), memory, 11):
        session = session_with(level + 0.05 * row, applied("lr x0.5", AT))
        claimed += impacts(session)[0].verdict != "none"
    assert claimed <= 0.05 * runs + 2 * np.sqrt(0.05 * 0.95 * runs)


# ── Effects ───────────────────────────────────────────────────────────────────────────────────────


def held(t: np.ndarray) -> np.ndarray:
    """Steps since the change, 0 before it."""
    return np.maximum(t, 0)


@pytest.mark.parametrize(
    ("curve", "verdicts"),
    [
        (lambda t: 0.3 + 0.39 * np.exp(-held(t) / 4_000), {"faster"}),
        (lambda t: 0.3 + 0.39 * np.exp(-held(t) / 300), {"faster", "level"}),
        (lambda t: np.where(t < 0, 0.69, 0.5), {"level"}),
        (lambda t: np.where(t < 0, 0.69, 2.3 * np.exp(-held(t) / 900)), {"level"}),
        (lambda t: 0.69 * np.exp(held(t) / 800), {"rose"}),
        (lambda t: 3.0 + np.minimum(t, 0) / 1_000, {"calmed", "none"}),
        (lambda t: 4.0 - np.where(t < 0, t, t / 20) / 2_000, {"slower"}),
    ],
)
def test_an_effect_is_found_and_named(curve, verdicts: set[str]):
    found = [one.verdict for one in after_one_change(curve)]
    assert sum(verdict in verdicts for verdict in found) >= 18, found


def test_both_slopes_are_given_per_hundred_steps_with_their_errors():
    for one in after_one_change(lambda t: 0.69 * np.exp(-held(t) / 2_000), 0.01):
        assert one.before is not None and one.after is not None
        assert one.before.value == pytest.approx(0.0, abs=0.002)
        assert one.after.value == pytest.approx(np.expm1(-100 / 2_000), abs=one.after.error)
        assert one.after.low < one.after.value < one.after.high
        assert one.relative


def test_what_was_seen_early_stays_though_later_steps_hide_it():
    """The loss falls within 200 steps and is flat from then on."""
    steps = np.arange(AT + LOOKS[-1])
    losses = np.where(steps < AT, 0.69, 0.4 + 0.29 * np.exp(-np.maximum(steps - AT, 0) / 60))
    (one,) = impacts(
        session_with(losses + 0.02 * remembering((1, len(steps)), 0.2, 3)[0], applied("lr 1", AT))
    )
    assert one.verdict in ("faster", "level")


# ── Which steps are compared ──────────────────────────────────────────────────────────────────────


def flat(steps: int) -> np.ndarray:
    return 0.69 + 0.01 * remembering((1, steps), 0.0, 2)[0]


def compared(session: Session) -> list[tuple[int, int, int, int]]:
    return [(one.start, one.step, one.stop, one.wait) for one in comparisons(session)]


def test_the_steps_end_at_the_neighbouring_interventions():
    session = session_with(
        flat(2_000), applied("lr x0.5", 300), applied("note hello", 500), applied("freeze dense", 700)
    )
    assert compared(session) == [(44, 300, 556, 0), (300, 700, 1_724, 0)]


def test_looks_double_so_that_little_is_claimed_by_looking_often():
    stops = {
        compared(session_with(flat(steps), applied("lr x0.5", 500)))[0][2] for steps in range(564, 2_000, 9)
    }
    assert stops == {564, 628, 756, 1_012, 1_524}


def test_the_end_of_what_was_set_for_some_steps_ends_them_too():
    session = session_with(flat(2_000), applied("lr x0.5 for 200 steps", 500))
    assert compared(session) == [(372, 500, 628, 0)]


def test_only_what_changes_the_training_is_judged():
    texts = ("note x", "pause", "resume", "snapshot", "evaluate", "timers", "checkpoint")
    session = session_with(flat(900), *(applied(text, 500) for text in texts))
    assert comparisons(session) == []
    for status in ("refused", "failed", "ineffective", "planned"):
        assert comparisons(session_with(flat(900), replace(applied("lr 1", 500), status=status))) == []
    changing = ("undo", "rollback start", "reinit dead-units", "class-weight balanced", "set momentum=0.9")
    assert len(comparisons(session_with(flat(900), *(applied(text, 500) for text in changing)))) == 5


def test_what_a_timer_sets_back_is_an_intervention_too():
    ends = applied("lr x0.5 ends", 700, timer=1)
    assert compared(session_with(flat(900), ends)) == [(572, 700, 828, 0)]
    assert comparisons(session_with(flat(900), replace(ends, timer=None))) == []


def test_a_command_of_the_scripts_own_is_judged_but_ends_nobody_elses_steps():
    session = session_with(flat(900), applied("lr x0.5", 300), applied("render", 400))
    assert session.run is not None
    session.run = replace(session.run, actions=("render",))
    assert compared(session) == [(0, 300, 812, 0), (300, 400, 464 + 192, 0)]


@pytest.mark.parametrize(
    ("losses", "replies", "words"),
    [
        (flat(540), [applied("lr 1", 500)], "too early to tell: 24 more steps"),
        (
            flat(900),
            [applied("lr 1", 500), applied("lr 2", 512)],
            "effect cannot be told: only 12 steps after it",
        ),
        (flat(900), [applied("lr 1", 20)], "effect cannot be told: only 20 steps before it to compare with"),
        (flat(900), [applied("lr 1", 500)], "no detectable effect in 256 steps"),
        (
            np.where(np.arange(900) < 520, flat(900), np.nan),
            [applied("lr 1", 500)],
            "loss is not finite from step 520 on",
        ),
        (
            np.where((np.arange(900) > 400) & (np.arange(900) < 490), np.nan, flat(900)),
            [applied("lr 1", 500)],
            "effect cannot be told: losses before it are missing or not finite",
        ),
    ],
)
def test_what_cannot_be_told_is_said(losses: np.ndarray, replies: list[Reply], words: str):
    assert sentence(impacts(session_with(losses, *replies))[0]) == words


def test_nothing_is_claimed_of_running_means():
    session = session_of({"loss": flat(900)}, running=("loss",))
    session.apply(applied("lr 1", 500))
    assert comparisons(session) == []


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────


def slope(value: float, error: float = 0.004) -> Slope:
    return Slope(value, value - error, value + error)


@pytest.mark.parametrize(
    ("verdict", "before", "after", "words"),
    [
        ("faster", -0.002, -0.031, "loss fell 0.2 %/100 steps before, 3.1 % after (±0.4)"),
        ("rose", -0.002, 0.031, "loss fell 0.2 %/100 steps before, rose 3.1 % after (±0.4)"),
        ("faster", 0.0, -0.031, "loss flat before, fell 3.1 %/100 steps after (±0.4)"),
        ("slower", -0.031, 0.0, "loss fell 3.1 %/100 steps before, flat after (±0.4)"),
        ("level", 0.0, 0.0, "loss jumped 0.69 → 0.41; flat before and after (±0.4 %/100 steps)"),
        ("none", -0.002, -0.003, "no detectable effect in 256 steps"),
    ],
)
def test_slopes_are_told_in_a_line(verdict, before: float, after: float, words: str):
    (about,) = comparisons(session_with(flat(900), applied("lr 1", 500)))
    told = Impact(verdict, about, slope(before), slope(after), (0.69, 0.41))
    assert sentence(told) == words


def test_slopes_of_a_loss_that_is_not_positive_are_told_in_its_own_unit():
    (about,) = comparisons(session_with(flat(900), applied("lr 1", 500)))
    told = Impact("faster", about, slope(-0.002, 0.01), slope(-3.12, 0.03), (0.1, 0.1), relative=False)
    assert sentence(told) == "loss flat before, fell 3.12/100 steps after (±0.03)"
    longer = sentence(told._replace(verdict="none"), full=True)
    assert longer.startswith("no detectable effect in 256 steps: loss flat before")
