"""The rules' own examples, and how often the plateau rule errs on curves of known kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client_callback.wire.commands import parse
from client_callback.wire.protocol import steps_event
from monitor.diagnosis import non_finite, plateau
from monitor.diagnosis.case import Case
from monitor.diagnosis.engine import PERIOD_S, RULES, Engine, Silent, diagnose, examine
from monitor.diagnosis.examples import noisy, session_of
from monitor.diagnosis.finding import Evidence, Finding, Rule
from monitor.diagnosis.page import page
from monitor.session import Session
from tests.story import story

HEALTHY = [pytest.param(r, e, id=f"{r.name}: {n}") for r in RULES for n, e in r.healthy.items()]
AILING = [pytest.param(r, e, id=f"{r.name}: {n}") for r in RULES for n, e in r.ailing.items()]


def test_the_page_about_the_rules_is_up_to_date():
    written = Path(__file__).parents[1] / "docs" / "rules.md"
    assert written.read_text(encoding="utf-8") == page(), "make rules"


def test_no_rule_explains_in_the_end_itself():
    causes = {rule.name: rule.explains for rule in RULES}
    for start in causes:
        seen, waiting = set(), [start]
        while waiting:
            following = causes.get(waiting.pop(), frozenset()) - seen
            seen |= following
            waiting += following
        assert start not in seen, start


@pytest.mark.parametrize(("rule", "example"), HEALTHY)
def test_a_rule_finds_nothing_in_its_healthy_examples(rule: Rule, example: Callable[[], Session]):
    case = Case(example())
    assert rule.lacks(case) or rule.check(case) == []


@pytest.mark.parametrize(("rule", "example"), AILING)
def test_a_rule_finds_something_in_its_ailing_examples(rule: Rule, example: Callable[[], Session]):
    session = example()
    case = Case(session)
    assert not rule.lacks(case)
    findings = rule.check(case)
    assert findings
    for finding in findings:
        assert finding.rule == rule.name
        assert finding.title and any(digit.isdigit() for digit in finding.detail)
        assert 0 <= finding.start <= finding.stop <= session.step
        assert finding.start < finding.stop or session.step == 0


@pytest.mark.parametrize(("rule", "example"), AILING)
def test_every_remedy_that_can_be_sent_is_a_valid_command(rule: Rule, example: Callable[[], Session]):
    for finding in rule.check(Case(example())):
        for remedy in finding.remedies:
            if remedy.command is not None:
                parse(remedy.command)


def ever_fires(losses: np.ndarray, every: int = 64) -> bool:
    """Whether the rule, asked again and again while the run grows, ever says that it is stuck *now*."""
    session = Session()
    for first in range(0, len(losses), every):
        part = losses[first : first + every].astype(np.float32)
        session.apply(steps_event(first, np.arange(first, first + len(part)) * 0.01, {"loss": part}, time=0))
        case = Case(session)
        if not plateau.lacks(case) and any(finding.severity != "note" for finding in plateau.check(case)):
            return True
    return False


def test_a_flat_noisy_loss_is_found_within_a_few_hundred_steps_nearly_always():
    found = [ever_fires(noisy(np.full(640, 0.693), 0.03, seed)) for seed in range(40)]
    assert sum(found) >= 38


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
def test_a_loss_that_keeps_falling_is_hardly_ever_called_stuck(noise: float):
    """Asked every 64 steps over 4,000 steps; the loss falls with the square root of the steps."""
    steps = np.arange(4_000)
    alarms = [ever_fires(noisy(0.7 / np.sqrt(1 + steps / 200), noise, seed)) for seed in range(30)]
    assert sum(alarms) <= 1


def test_a_loss_with_memory_is_not_taken_for_a_trendless_one_too_easily():
    """First-order autoregressive noise, as batches that resemble each other give, on a falling loss."""
    alarms = 0
    for seed in range(20):
        shocks = np.random.default_rng(seed).normal(0, 0.02, 3_000)
        noise = np.zeros(3_000)
        for i in range(1, 3_000):
            noise[i] = 0.95 * noise[i - 1] + shocks[i]
        alarms += ever_fires(0.7 / np.sqrt(1 + np.arange(3_000) / 200) + noise)
    assert alarms <= 2


def test_the_shaded_steps_are_those_of_the_plateau():
    steps = np.arange(3_000)
    losses = np.where(steps < 1_500, 0.7, 0.7 * np.exp(-(steps - 1_500) / 500))
    (finding,) = plateau.check(Case(session_of({"loss": noisy(losses, 0.01)})))
    assert finding.start == 0
    assert abs(finding.stop - 1_500) <= 200
    assert finding.severity == "note" and finding.shaded


def test_near_zero_it_says_converged_or_stuck():
    (newest, *_) = plateau.check(Case(plateau.AILING["the loss has come close to zero"]()))
    assert newest.title == "Converged or stuck"


def test_the_first_value_that_is_not_finite_is_named():
    (rule,) = [rule for rule in RULES if rule.name == "non-finite"]
    (finding,) = rule.check(Case(rule.ailing["a gradient is not finite before the loss is"]()))
    assert finding.start == 120
    assert "dense/kernel" in finding.detail and "step 120" in finding.detail
    assert finding.severity == "critical"


def test_the_engine_looks_at_most_every_half_second_and_not_in_the_callers_thread():
    threads = []

    def check(case: Case) -> list[Finding]:
        threads.append(threading.current_thread())
        return non_finite.check(case)

    engine = Engine([non_finite.RULE._replace(check=check)])
    session = session_of({"loss": np.full(400, 1.0)})
    assert engine.look(session, 10.0).verdict == "healthy"
    worse = session_of({"loss": np.full(400, np.nan)})
    assert engine.look(worse, 10.0 + PERIOD_S / 2).verdict == "healthy"
    assert len(threads) == 1
    until = time.monotonic() + 10
    while engine.look(worse, 10.0 + PERIOD_S).verdict == "healthy" and time.monotonic() < until:
        time.sleep(0.001)
    assert engine.look(worse, 10.0 + PERIOD_S).verdict == "stuck"
    assert len(threads) == 2 and threads[0] is threading.current_thread() is not threads[1]
    engine.close()


def test_a_still_session_stays_as_it_was_while_the_other_goes_on():
    events = story(480, epochs=20)
    session, reference = Session(), Session()
    for event in events[: len(events) // 2]:
        session.apply(event)
        reference.apply(event)
    still = session.still()
    expected = examine(reference)
    for event in events[len(events) // 2 :]:
        session.apply(event)
    assert still == reference
    assert examine(still) == expected
    before = still.series["loss"].smoothed(0, 10_000, 32, 8)
    np.testing.assert_array_equal(before, reference.series["loss"].smoothed(0, 10_000, 32, 8))


def finding(rule: str, confidence: float, **changed: object) -> Finding:
    made = Finding(rule, rule, "warning", confidence, 0, 400, (), "")
    return made._replace(**changed)


def saying(said: Finding, explains: tuple[str, ...] = ()) -> Rule:
    return Rule(said.rule, lambda case: [said], lambda case: "", frozenset(explains), {}, {})


def test_a_cause_names_all_that_follows_from_it_and_takes_over_the_gravest():
    rules = [
        saying(finding("stuck", 0.5)),
        saying(finding("dead", 0.9, severity="critical"), ("stuck",)),
        saying(finding("too-fast", 0.8), ("dead",)),
    ]
    (only,) = examine(session_of({"loss": np.full(400, 1.0)}), rules).findings
    assert (only.rule, only.severity, set(only.symptoms)) == ("too-fast", "critical", {"dead", "stuck"})


def test_what_a_trial_showed_of_a_symptom_stands_with_its_cause():
    tried, read = Evidence("in a trial …", 300, by_trial=True), Evidence("the loss is flat", 200)
    rules = [
        saying(finding("stuck", 0.5, evidence=(read, tried))),
        saying(finding("too-fast", 0.9, evidence=(Evidence("it swings"),)), ("stuck",)),
    ]
    (only,) = examine(session_of({"loss": np.full(400, 1.0)}), rules).findings
    assert only.evidence == (Evidence("it swings"), tried)


@pytest.mark.parametrize(
    "cause",
    [
        finding("guess", 0.45),
        finding("guess", 0.9, severity="note"),
        finding("guess", 0.9, start=400, stop=500),
    ],
    ids=["much less sure", "only a note", "set in later"],
)
def test_what_does_not_explain_a_finding_leaves_it_where_it_is(cause: Finding):
    rules = [saying(finding("measured", 0.9)), saying(cause, ("measured",))]
    found = examine(session_of({"loss": np.full(400, 1.0)}), rules).findings
    assert {one.rule for one in found} == {"measured", "guess"}
    assert not any(one.symptoms for one in found)


def test_a_rule_that_fails_silences_no_other():
    def fails(case: Case) -> list[Finding]:
        raise ZeroDivisionError("by zero")

    broken = plateau.RULE._replace(check=fails)
    found = examine(session_of({"loss": np.full(400, np.nan)}), [broken, non_finite.RULE])
    assert [finding.rule for finding in found.findings] == ["non-finite"]
    assert found.silent == (Silent("plateau", "it failed: ZeroDivisionError: by zero", failed=True),)


def test_the_gravest_finding_comes_first():
    losses = np.concatenate([np.full(600, 1.0), np.full(10, np.nan)])
    severities = [finding.severity for finding in diagnose(session_of({"loss": losses}))]
    assert severities == sorted(severities, key=["critical", "warning", "note"].index)


def test_looking_again_at_a_million_steps_is_cheap():
    """The rules must not look at every step again: generous against a busy machine, far below a full scan."""
    session = session_of({"loss": noisy(np.full(1_000_000, 0.7), 0.05)})
    diagnose(session)
    began = time.perf_counter()
    for _ in range(10):
        diagnose(session)
    assert (time.perf_counter() - began) / 10 < 0.05


def test_a_loss_that_fell_far_is_still_stuck_while_accuracy_is_that_of_guessing():
    session = plateau.AILING["the loss explodes first and then sits at ln 2"]()
    newest = plateau.check(Case(session))[0]
    assert newest.title.startswith("Stuck")
    assert newest.detail.startswith(("loss 0.68", "loss 0.69"))
    assert newest.remedies
