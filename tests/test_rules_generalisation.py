"""How often the plateau rule errs, by simulation; what examples cannot show of overfitting, lengths and penalties."""

from __future__ import annotations

import numpy as np
import pytest

from client_callback.wire.protocol import (
    EpochBegan,
    EpochEnded,
    Instrumented,
    RunEnded,
    Series,
    TrialEnded,
    TrialResult,
    steps_event,
)
from monitor.diagnosis import (
    over_regularised,
    overfitting,
    plateau,
    too_short,
    underfitting,
    validation_too_good,
)
from monitor.diagnosis.case import Case
from monitor.diagnosis.epochs import reached, sides
from monitor.diagnosis.examples import dense, noisy, session_of, trained_on
from monitor.session import Session

SEEDS = 40


def with_memory(count: int, memory: float, spread: float, seed: int) -> np.ndarray:
    """First-order autoregressive noise of that standard deviation."""
    shocks = np.random.default_rng(seed).normal(0.0, spread * (1 - memory**2) ** 0.5, count)
    noise = np.zeros(count)
    for i in range(1, count):
        noise[i] = memory * noise[i - 1] + shocks[i]
    return noise


def ever_stuck(losses: np.ndarray, every: int, per_epoch: int, *, running: bool = False) -> bool:
    """Whether it is ever said to be stuck, asked again and again while the run grows."""
    session = Session()
    session.apply(Instrumented(series=(Series(name="loss", kind="running" if running else "batch"),)))
    for first in range(0, len(losses), every):
        part = losses[first : first + every].astype(np.float32)
        done = first + len(part)
        if first % per_epoch == 0:
            session.apply(EpochBegan(step=first, epoch=first // per_epoch))
        session.apply(steps_event(first, np.arange(first, done) * 0.01, {"loss": part}, time=0.0))
        if done % per_epoch == 0:
            mean = float(losses[done - per_epoch : done].mean())
            session.apply(EpochEnded(step=done, epoch=done // per_epoch - 1, logs={"loss": mean}))
        case = Case(session)
        if not plateau.lacks(case) and any(finding.severity != "note" for finding in plateau.check(case)):
            return True
    return False


def a_fifth_less_with_each_doubling(count: int, scale: float) -> np.ndarray:
    return 0.7 * (1 + np.arange(count) / scale) ** np.log2(0.8)


@pytest.mark.parametrize(
    ("steps", "memory", "per_epoch", "running"),
    [
        pytest.param(2_000, 0.0, 250, False, id="windows of steps"),
        pytest.param(2_000, 0.9, 250, False, id="windows of steps, noise with a memory"),
        pytest.param(240, 0.0, 10, False, id="short runs"),
        pytest.param(240, 0.5, 10, False, id="short runs, noise with a memory"),
        pytest.param(300, 0.0, 10, True, id="epochs"),
        pytest.param(300, 0.9, 10, True, id="epochs, noise with a memory"),
    ],
)
def test_the_stated_rate_of_false_alarms_holds(steps: int, memory: float, per_epoch: int, running: bool):
    """The bound allows for the chance that so few seeds leave: two standard errors above the stated rate."""
    curve = a_fifth_less_with_each_doubling(steps, per_epoch)
    alarms = sum(
        ever_stuck(
            curve * (1 + with_memory(steps, memory, 0.1, seed)),
            max(10, steps // 25),
            per_epoch,
            running=running,
        )
        for seed in range(SEEDS)
    )
    rate = plateau.FALSE_ALARMS
    assert alarms / SEEDS <= rate + 2 * (rate * (1 - rate) / SEEDS) ** 0.5


@pytest.mark.parametrize("running", [False, True])
def test_a_flat_run_of_25_short_epochs_is_found_nearly_always(running: bool):
    found = [
        ever_stuck(noisy(np.full(125, 0.693), 0.01, seed), 5, 5, running=running) for seed in range(SEEDS)
    ]
    assert sum(found) >= 0.9 * SEEDS


@pytest.mark.parametrize(
    ("optimizer", "other"),
    [("adam", '"sgd 0.05 momentum=0.9"'), ("rmsprop", '"sgd'), ("sgd", '"adam 0.001"')],
)
def test_a_plateau_is_answered_with_a_trial_of_another_optimizer(optimizer: str, other: str):
    (finding,) = plateau.check(
        Case(session_of({"loss": noisy(np.full(400, 0.7), 0.02)}, optimizer=optimizer))
    )
    command = finding.remedies[0].command
    assert command is not None and command.startswith('trial keep "lr x0.1" ') and other in command
    assert command.endswith("for 100 steps --adopt")


def test_what_guesses_still_is_tried_from_the_start():
    session = session_of(
        {"loss": noisy(np.full(400, 0.693), 0.02), "accuracy": noisy(np.full(400, 0.5), 0.1)},
        task="binary",
        data=trained_on(classes=(200, 200)),
        epochs=[{}] * 8,
    )
    (finding,) = plateau.check(Case(session))
    assert finding.remedies[0].command == (
        'trial keep "lr x0.1" "sgd 0.05 momentum=0.9" for 50 steps from start --adopt'
    )


@pytest.mark.parametrize(
    ("best", "tells", "named"), [("lr x3", True, True), ("lr x3", False, False), ("keep", True, False)]
)
def test_a_trial_that_tells_decides_the_remedy(best: str, tells: bool, named: bool):
    session = session_of({"loss": noisy(np.full(400, 0.7), 0.02)})
    results = tuple(
        TrialResult(text=text, losses=np.zeros(40, np.float32).tobytes(), score=score, low=score, high=score)
        for text, score in ((best, 0.5), ("other", 0.7))
    )
    session.apply(TrialEnded(id="t", text="trial", start=380, results=results, tells=tells, step=400))
    command = plateau.check(Case(session))[0].remedies[0].command
    assert (command == 'trial keep "lr x3" for 40 steps --adopt') == named


# ── Both sides at the same moment ─────────────────────────────────────────────────────────────────


def test_training_is_measured_where_validation_is_and_not_as_the_mean_of_its_epoch():
    """Loss 100 − step: Keras' mean over an epoch of 20 is that of ten steps before its end."""
    session = session_of(
        {"loss": 100.0 - np.arange(80.0)},
        epochs=[{"loss": 90.0 - 20 * epoch, "val_loss": 80.0 - 20 * epoch} for epoch in range(4)],
    )
    both = sides(Case(session))
    assert both is not None
    assert both.steps.tolist() == [19, 39, 59, 79]
    np.testing.assert_allclose(both.training[:3], [80.5, 60.5, 40.5])  # between the last step and the next
    assert both.validation.tolist() == [80.0, 60.0, 40.0, 20.0]


def test_where_only_epochs_are_known_their_means_on_both_sides_are_taken():
    session = session_of(
        {"loss": np.zeros(40)},
        running=("loss",),
        epochs=[{"loss": 4.0, "val_loss": 1.0}, {"loss": 2.0, "val_loss": 1.0}],
    )
    both = sides(Case(session))
    assert both is not None and both.training.tolist() == [3.0, 2.0]


def test_the_better_side_tells_what_the_model_has_reached():
    session = session_of(
        {"loss": np.ones(40), "accuracy": np.full(40, 0.6)},
        epochs=[{"accuracy": 0.6, "val_accuracy": 0.9}] * 4,
        task="binary",
        data=trained_on(classes=(100, 100)),
    )
    assert reached(Case(session)) == pytest.approx(0.8, abs=1e-6)


# ── Rules ─────────────────────────────────────────────────────────────────────────────────────────


def test_overfitting_without_a_cost_is_a_note():
    """Validation loss rises by a third, accuracy stays where it was and close to training's."""
    count = 30
    epochs = np.arange(count)
    held = np.where(epochs < 10, 0.3 - 0.02 * epochs, 0.1 + 0.0017 * (epochs - 10))
    session = session_of(
        {"loss": np.repeat(0.3 * np.exp(-epochs / 5), 20), "accuracy": np.full(600, 1.0)},
        epochs=[{"accuracy": 1.0, "val_loss": float(v), "val_accuracy": 0.97} for v in held],
        task="binary",
        data=trained_on(classes=(200, 200)),
    )
    (finding,) = overfitting.check(Case(session))
    assert finding.severity == "note"
    assert finding.start == 220  # the step after the end of epoch 10, the best


def test_validation_that_only_wobbles_is_hardly_ever_called_overfitting():
    """Training improves on, validation stays: asked after every epoch of 30."""
    alarms = 0
    for seed in range(60):
        held = 0.5 * np.random.default_rng(seed).normal(1.0, 0.05, 30)
        training = np.repeat(0.5 * np.exp(-np.arange(30) / 30), 10)
        for count in range(5, 31):
            session = session_of(
                {"loss": training[: 10 * count]}, epochs=[{"val_loss": float(v)} for v in held[:count]]
            )
            if any(finding.severity != "note" for finding in overfitting.check(Case(session))):
                alarms += 1
                break
    assert alarms <= 3


def test_a_training_that_somebody_stopped_is_not_too_short():
    session = too_short.AILING["a plain model reaches more"]()
    assert too_short.check(Case(session))
    session.apply(RunEnded(step=session.step, outcome="stopped"))
    assert "planned" in too_short.lacks(Case(session)) or not too_short.lacks(Case(session))
    early = too_short.HEALTHY["it still falls, and half of the epochs are to come"]()
    early.apply(RunEnded(step=early.step, outcome="stopped"))
    assert too_short.lacks(Case(early)) == "it was stopped after 150 of the 300 planned steps"


def test_the_penalty_is_that_of_keras():
    """Σ l2·w² of two kernels, from their norms."""
    kernel = np.random.default_rng(0).normal(0, 0.1, (64, 32))
    session = over_regularised.AILING["a penalty that is most of the loss"]()
    (one,) = over_regularised._penalised(Case(session))
    norm = float(np.linalg.norm(kernel))
    assert one.penalty(norm) == pytest.approx(0.05 * (kernel**2).sum())


def test_an_l1_penalty_is_estimated_from_the_norm():
    kernel = np.random.default_rng(0).normal(0, 0.1, (64, 32))
    layer = dense("hidden", 32, settings={"l1": 0.01})
    one = over_regularised._Penalised(layer, 1.0, 1.0)
    assert one.penalty(float(np.linalg.norm(kernel))) == pytest.approx(0.01 * np.abs(kernel).sum(), rel=0.05)


def test_a_rate_of_dropout_that_a_command_has_changed_is_the_one_that_counts():
    from client_callback.wire.protocol import Reply

    session = over_regularised.AILING["nine of ten units are dropped"]()
    changed = Reply(
        id="a",
        text="set dropout.rate=0.2",
        status="applied",
        step=250,
        before={"dropout.rate": 0.9},
        after={"dropout.rate": 0.2},
    )
    session.apply(changed)
    assert over_regularised.check(Case(session)) == []


def test_light_dropout_does_not_explain_a_wide_gap():
    (heavy,) = validation_too_good.check(
        Case(validation_too_good.AILING["most units are dropped in training"]())
    )
    (none,) = validation_too_good.check(
        Case(validation_too_good.AILING["training labels are wrong, those of validation are not"]())
    )
    assert heavy.confidence < none.confidence
    assert "dropout.rate=0.2" in (heavy.remedies[0].command or "")


def test_a_bottleneck_outranks_what_follows_from_it():
    assert {"plateau", "too-short"} <= underfitting.RULE.explains
    (finding,) = underfitting.check(Case(underfitting.AILING["two units before ten classes"]()))
    assert finding.confidence >= 0.8 and "hidden" in finding.title
    assert "name='hidden'" in finding.remedies[0].code
