"""What the examples of the rules about rates, gradients and batches cannot show."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.diagnosis import dead_units, learning_rate_high, learning_rate_low, motion, oscillation
from monitor.diagnosis.case import Case
from monitor.diagnosis.engine import RULES, diagnose
from monitor.diagnosis.examples import Sampled, falling, flat, noisy, session_of

FAMILY = {
    "batch-size",
    "dead-units",
    "exploding-gradient",
    "input-ignored",
    "learning-rate-high",
    "learning-rate-low",
    "oscillation",
    "unsuitable-optimizer",
    "vanishing-gradient",
}


def test_the_way_of_the_weights_is_the_sum_of_all_steps_ratios():
    """Each sampled step stands for those up to the next one."""
    steps, ratios = (0, 1, 3, 7), np.array([0.1, 0.2, 0.05, 0.01])
    table = Sampled(steps, {"dense/kernel": ratios, "dense/bias": 9.0, "dense_1/kernel": ratios / 2})
    moved = motion.motion(Case(session_of({"loss": falling(10)}, tables={"update_ratio": table})))
    assert moved is not None
    every_step = np.repeat(ratios, [1, 2, 4, 3])
    assert moved.travelled == pytest.approx(every_step.sum(), rel=1e-5)
    assert moved.first == pytest.approx(0.15, rel=1e-5)  # the median of both kernels, at its highest


def test_units_that_died_count_from_the_newest_rows_and_since_they_stayed_dead():
    (finding,) = dead_units.check(Case(dead_units.AILING["all units die within the first steps"]()))
    assert finding.severity == "critical" and finding.start == 3  # 58 of 64 there, 40 of 64 before


def test_from_dead_weights_the_first_remedies_go_back_to_the_start():
    """Lowering the rate or switching the optimizer does nothing there: their gradient is exactly 0."""
    session = dead_units.AILING["all units die within the first steps"]()
    (finding,) = dead_units.check(Case(session))
    commands = [remedy.command for remedy in finding.remedies if remedy.command]
    assert commands[:2] == ["lr 0.001 from start", "optimizer sgd learning_rate=1e-4 from start"]
    high = learning_rate_high.AILING["Adam at 0.3: the loss jumps and all units die"]()
    (finding,) = learning_rate_high.check(Case(high))
    assert finding.remedies[0].command is not None
    assert finding.remedies[0].command.endswith("from start")


def test_units_that_long_steps_killed_are_a_symptom_of_the_rate():
    session = learning_rate_high.AILING["Adam at 0.3: the loss jumps and all units die"]()
    first = diagnose(session)[0]
    assert first.rule == "learning-rate-high" and "dead-units" in first.symptoms
    assert first.severity == "critical"


def test_a_low_rate_says_how_far_the_weights_will_have_gone():
    (finding,) = learning_rate_low.check(Case(learning_rate_low.AILING["Adam at 0.000002"]()))
    numbers = {name: value for one in finding.evidence for name, value in one.numbers.items()}
    assert numbers["way"] == pytest.approx(400 * 1e-5, rel=1e-3)
    assert finding.remedies[0].command == "lr 0.001"


@pytest.mark.parametrize("ratio", [1e-8, 1e-5, 1e-3, 0.3])
@pytest.mark.parametrize("cosine", [-0.6, 0.9])
def test_a_training_that_goes_well_gets_no_alarm_whatever_its_steps_look_like(ratio: float, cosine: float):
    """Long steps, dead units, a high rate, gradients against each other: no fault where the model learns."""
    session = learning_rate_high.example(
        ratio, falling(), rate=0.3, accuracy=0.98, dead=1.0 if ratio > 0.1 else 0.2, cosine=cosine
    )
    rules = [rule for rule in RULES if rule.name in FAMILY]
    assert {finding.severity for finding in diagnose(session, rules)} <= {"note"}


def test_noise_alone_is_hardly_ever_taken_for_waves():
    alarms = [
        bool(oscillation.check(Case(session_of({"loss": noisy(np.full(800, 1.0), noise, seed)}))))
        for noise in (0.1, 0.3, 0.6)
        for seed in range(20)
    ]
    assert sum(alarms) <= 1


def test_losses_of_single_examples_are_not_taken_for_waves():
    """Squared errors of one example each: their standard deviation is greater than their mean."""
    alarms = []
    for seed in range(20):
        errors = np.random.default_rng(seed).normal(0, 1, 900) ** 2
        alarms.append(bool(oscillation.check(Case(session_of({"loss": errors})))))
    assert sum(alarms) <= 1


def test_nothing_is_said_of_what_was_measured_before_a_command_changed_the_training():
    case = Case(dead_units.AILING["all units die within the first steps"]())
    vars(case)["changed_at"] = 300  # as a command there would make it; the last sampled step is 255
    assert dead_units.lacks(case)


def test_flat_and_healthy_sessions_without_any_table_are_met_with_silence():
    session = session_of({"loss": flat(0.69)})
    names = {finding.rule for finding in diagnose(session)}
    assert not names & FAMILY
