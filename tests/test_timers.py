"""What waits, ends and is watched by itself: to the very step, undone to the bit, never two in each other's way."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers import SGD, Adam

from client_callback.recent import KEPT_STEPS, BlockMeans, RecentSteps
from client_callback.steering import timers as waiting
from client_callback.steering.backends import current_backend
from client_callback.steering.guards import LONGEST, Guard
from client_callback.steering.settings import read_settings
from client_callback.steering.state import variables_of
from client_callback.steering.timers import NEVER, without_suffixes
from client_callback.steering.training import Refused
from client_callback.wire.commands import Unless
from client_callback.wire.plateau import BLOCKS
from client_callback.wire.protocol import Reply, TimersChanged
from monitor.diagnosis import plateau
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import session_of
from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    SteeredFit,
    X,
    Y,
    dense_model,
    not_compiled,
    steered,
)

pytestmark = pytest.mark.every_backend


@pytest.fixture(autouse=True)
def looks_at_every_step(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)


def quick(rate: float, script: dict[int, list[str]], **options) -> tuple[keras.Model, SteeredFit]:
    """Without compiling, where that takes longer than the training."""
    return steered(SGD(rate), script, run_eagerly=BACKEND == "tensorflow", **options)


def timers(fit: SteeredFit) -> list[TimersChanged]:
    return [event for event in fit.events if isinstance(event, TimersChanged)]


def answers(fit: SteeredFit) -> dict[str, Reply]:
    """Every answer by its id, as it was in the end."""
    return {reply.id: reply for reply in [*fit.replies, *fit.verified]}


# ── When ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "rates"),
    [
        ({2: ["lr x0.5 for 3 steps"]}, "1, 1, .5, .5, .5, 1"),
        ({2: ["lr x0.5 at step 6"]}, "1, 1, 1, 1, 1, 1, .5"),
        ({3: ["lr x0.5 at step 3"]}, "1, 1, 1, .5"),
        ({2: ["lr x0.5 at epoch 2"]}, "1, 1, 1, 1, 1, 1, 1, 1, .5"),
        ({2: ["lr x0.5 at epoch 2 for 1 steps"]}, "1, 1, 1, 1, 1, 1, 1, 1, .5, 1"),
        (
            {1: ["lr x0.5 for 3 steps", "lr x4 at step 4 for 2 steps", "lr x8 at epoch 2 for 2 steps"]},
            "1, .5, .5, .5, 4, 4, 1, 1, 8, 8, 1",
        ),
        ({2: ["lr x0.5 for 30 steps"], 4: ["cancel 1"]}, "1, 1, .5"),
        ({2: ["lr x0.5 at step 9"], 4: ["cancel all"]}, "1"),
        ({2: ["lr x0.5 for 4 steps"], 4: ["lr 0.3125"]}, "1, 1, .5, .5, 5"),
        ({2: ["lr x0.5 unless loss rises 1% in 3 steps"]}, "1"),
    ],
    ids=[
        "for",
        "at step",
        "at this step",
        "at epoch",
        "at epoch for",
        "one after another",
        "cancelled",
        "cancelled while it waits",
        "overwritten",
        "refused: too little is known",
    ],
)
def test_what_is_done_by_itself_is_done_before_the_very_step(script, rates):
    """`rates`: of each step, as a multiple of the first; the last one stays."""
    _, fit = quick(0.0625, script, read_rates=True)
    expected = [0.0625 * float(rate) for rate in rates.split(",")]
    expected += expected[-1:] * (2 * STEPS - len(expected))
    assert fit.rates == expected
    assert not timers(fit) or timers(fit)[-1].timers == ()


def test_what_waits_is_listed_and_answered_when_its_moment_comes():
    _, fit = quick(0.1, {2: ["lr x0.5 at epoch 2 for 3 steps", "timers"]})
    planned, listed = fit.replies
    assert (planned.status, planned.timer, planned.reason) == ("planned", 1, "waits for epoch 2 (timer 1)")
    assert (listed.after, listed.reason) == ({"timers": 1}, f"1: {planned.text}, waits for epoch 2")
    begun, ended = answers(fit)["c0.1"], answers(fit)["c0.end"]
    assert (begun.step, begun.text, begun.status) == (STEPS, "lr x0.5 for 3 steps", "applied")
    assert begun.who == "timer 1 of ada@box" and begun.timer == 1
    assert begun.after == {"learning_rate": 0.05} and begun.update_after is not None
    assert "set back before step 11" in begun.reason
    assert (ended.step, ended.text, ended.timer) == (STEPS + 3, "lr x0.5 ends", 1)
    assert (ended.before, ended.after) == ({"learning_rate": 0.05}, {"learning_rate": 0.1})
    waiting, active, *_ = (event.timers for event in timers(fit))
    assert [(one.state, one.starts, one.until) for one in waiting + active] == [
        ("waiting", "epoch 2", None),
        ("active", "", STEPS + 3),
    ]
    assert timers(fit)[-1].timers == ()


def test_epochs_are_counted_as_keras_prints_them_with_those_before_initial_epoch():
    model, fit = dense_model(), SteeredFit({1: ["lr 0.01 at epoch 4", "note x at epoch 2"]})
    model.compile(SGD(0.1), "mse")
    model.fit(X, Y, batch_size=BATCH, initial_epoch=2, epochs=4, shuffle=False, verbose=0, callbacks=[fit])
    assert answers(fit)["c0.1"].step == STEPS


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs single steps there")
def test_with_several_steps_per_execution_it_ends_at_the_first_boundary_and_says_so():
    _, fit = steered(SGD(0.1), {4: ["lr x0.5 for 2 steps"]}, steps_per_execution=4)
    assert "set back before step 6 (at the first boundary of 4 steps from there on)" in fit.replies[0].reason
    assert answers(fit)["c0.end"].step == 8


def test_a_moment_at_which_it_is_not_possible_any_more_says_so_then():
    _, fit = quick(0.1, {2: ["undo at step 3", "lr x0.5 at step 4 unless loss rises 5% in 9 steps"]})
    undone, guarded = answers(fit)["c0.1"], answers(fit)["c1.1"]
    assert undone.status == "refused" and "nothing to undo" in undone.reason
    assert guarded.status == "refused" and "loss is known of 4 steps" in guarded.reason
    assert timers(fit)[-1].timers == ()


def read(fit: SteeredFit) -> dict[str, object]:
    with current_backend().state(fit.model):
        return read_settings(fit.model)


class Reading(SteeredFit):
    """Reads all settings before the command and at the end."""

    def on_train_batch_begin(self, batch, logs=None):
        if self.step == 2:
            self.before = read(self)
        super().on_train_batch_begin(batch, logs)
        self.after = read(self)


@pytest.mark.parametrize(
    "text",
    [
        "lr x0.5 over 2 steps",
        "lr x0.5 over 20 steps",
        "lr 0.3 hold",
        "schedule cosine decay_steps=20",
        "schedule reduce-on-plateau patience=0 monitor=loss",
        "optimizer adam",
        "set momentum=0.5",
        "set dropout.rate=0.6",
        "accumulate 2",
        "freeze dense",
    ],
)
@not_compiled
def test_whatever_is_set_for_a_time_is_set_back(text):
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, name="dense"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(1, name="last"),
        ]
    )
    model.compile(SGD(0.05, momentum=0.9), "mse", run_eagerly=BACKEND == "tensorflow")
    fit = Reading({2: [f"{text} for 6 steps"]})
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    ended = answers(fit)["c0.end"]
    assert ended.status == "applied" and ended.step == 8 and ended.before != ended.after
    same = {name for name, value in fit.before.items() if fit.after[name] == value}
    assert set(fit.before) - same == set()


@not_compiled
def test_of_what_is_set_back_only_that_is_touched():
    """One layer frozen for a time, another for good in the meantime."""
    model, fit = quick(0.1, {2: ["freeze first for 6 steps"], 4: ["freeze second"]}, model=named())
    assert answers(fit)["c0.end"].after == {"first.trainable": True}
    assert [layer.trainable for layer in model.layers] == [True, False, True]


def named() -> keras.Model:
    names = ["first", "second", "third"]
    return keras.Sequential([layers.Input((4,)), *(layers.Dense(1, name=name) for name in names)])


@not_compiled
def test_another_optimizer_for_a_time_gives_way_to_the_old_one_with_its_moments():
    script = {2: ["optimizer sgd learning_rate=1e-30 for 3 steps"]}
    model, fit = steered(Adam(0.01), script)
    assert answers(fit)["c0.end"].after["optimizer"] == "adam"
    assert int(model.optimizer.iterations) == 2 * STEPS - 3
    moments = [np.array(v) for v in model.optimizer._momentums]
    assert any(moment.any() for moment in moments)


def test_at_the_end_of_the_run_what_is_over_is_set_back_and_the_rest_is_told():
    model, fit = quick(0.1, {12: ["lr x0.5 for 4 steps", "note x", "pause when plateau"]})
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)
    assert answers(fit)["c0.end"].status == "applied"
    assert (
        timers(fit)[-1].timers == ()
        and "the run ended with timer 2 (pause when plateau)" in timers(fit)[-1].reason
    )


def test_without_timers_nothing_is_waited_for_and_with_one_its_step():
    seen = {}

    class Looking(SteeredFit):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            seen[self.step] = self.steering.attention_at

    fit = Looking({1: ["pause at step 7"], 3: ["cancel all"]})
    model = dense_model()
    model.compile(SGD(0.1), "mse")
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    assert [seen[step] for step in (0, 1, 2, 4, 5)] == [NEVER, 7, 7, NEVER, NEVER]


# ── What stands against it ────────────────────────────────────────────────────────────────────────


IN_THE_WAY = {
    "lr 0.3 at step 3": "step 3 has passed; the next one is step 10",
    "lr 0.3 at step 16": "no step 16: this fit ends with step 15",
    "lr 0.3 at epoch 1": "epoch 1 has passed; the next to begin is epoch 3",
    "lr 0.3 at epoch 2": "epoch 2 has begun",
    "lr 0.3 at epoch 3": "no epoch 3: this fit ends with epoch 2",
    "lr 0.3 at epoch 99 for 3 steps": "no epoch 99",
    "lr x2 for 2 steps": "timer 1 (lr x0.5 for 5 steps) may take back the same (rate)",
    "lr x2 at step 13 for 2 steps": "`cancel 1` frees it",
    "lr x2 when plateau for 2 steps": "`cancel 1` frees it",
    "lr x2 unless loss rises 5% in 2 steps": "`cancel 1` frees it",
    "optimizer adam for 2 steps": "`cancel 1` frees it",
    "lr x2 at step 15 unless acc rises 5% in 2 steps": "no series 'acc' is recorded; possible: loss",
    "cancel 7": "no timer 7; possible: 1, all",
}


def test_what_cannot_come_true_is_refused_with_what_is_in_the_way():
    _, fit = quick(0.1, {10: ["lr x0.5 for 5 steps", *IN_THE_WAY]})
    for reply, why in zip(fit.replies[1:], IN_THE_WAY.values(), strict=True):
        assert reply.status == "refused" and why in reply.reason, reply


def test_after_a_cancel_the_way_is_free_and_apart_in_time_nothing_is_in_it():
    texts = ["lr x0.5 for 3 steps", "lr x2 at step 13 for 2 steps", "cancel 1", "lr x3 for 3 steps"]
    _, fit = quick(0.1, {10: texts})
    assert [reply.status for reply in fit.replies] == ["applied", "planned", "applied", "applied"]
    assert fit.replies[2].before == {"timers": 2} and "what is in effect stays" in fit.replies[2].reason
    assert fit.replies[2].timer is None


def test_without_anything_to_cancel_and_without_effect_there_is_no_timer():
    _, fit = quick(0.1, {2: ["cancel all", "lr x1 for 3 steps", "timers"]}, epochs=1)
    assert fit.replies[0].status == "refused" and "no timer to cancel" in fit.replies[0].reason
    assert fit.replies[1].status == "ineffective" and fit.replies[1].timer is None
    assert fit.replies[2].after == {"timers": 0} and not timers(fit)


def test_a_plain_command_is_not_overwritten_and_both_answers_say_so():
    model, fit = quick(0.1, {2: ["lr x0.5 for 4 steps"], 4: ["lr 0.3"]})
    assert float(model.optimizer.learning_rate) == pytest.approx(0.3)
    assert "timer 1 (lr x0.5 for 4 steps) will not set back learning_rate" in answers(fit)["c1"].reason
    ended = answers(fit)["c0.end"]
    assert ended.status == "ineffective" and "learning_rate was set to something else since" in ended.reason


@pytest.mark.parametrize("back", ["undo", "undo settings", "rollback start"])
def test_undoing_a_command_ends_its_timer(back):
    model, fit = quick(0.1, {2: ["lr x0.5 for 9 steps"], 4: [back, "timers"]})
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)
    assert fit.replies[2].after == {"timers": 0} and "c0.end" not in answers(fit)
    assert timers(fit)[-1].reason.startswith("timer 1 (lr x0.5 for 9 steps) ended: ")


def test_that_something_was_set_back_can_be_undone():
    model, fit = quick(0.1, {2: ["lr x0.5 for 3 steps"], 6: ["undo"]})
    assert fit.replies[1].undoes == "c0.end"
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_a_rollback_to_when_it_was_in_effect_leaves_the_timer_running():
    model, fit = quick(0.1, {2: ["lr x0.5 for 9 steps"], 4: ["snapshot here"], 6: ["rollback here"]})
    assert answers(fit)["c0.end"].step == 11
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)


def test_a_dry_run_tells_what_the_timer_would_do_and_starts_none():
    _, fit = quick(
        0.1,
        {9: ["lr x2 at step 12 for 2 steps --dry-run", "lr x2 unless loss falls 5% in 4 steps --dry-run"]},
    )
    told = " ".join(line.text for reply in fit.replies for line in reply.plan)
    assert "waits for step 12" in told and "after 2 steps what was set is set back" in told
    assert "everything is undone if loss falls 5 % in 4 steps" in told
    assert not timers(fit)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("lr x0.5 at step 5 for 3 steps", "lr x0.5 for 3 steps"),
        ("optimizer sgd momentum=0.9 when plateau", "optimizer sgd momentum=0.9"),
        ("render 'a b' at epoch 3", "render 'a b'"),
        ("lr  3e-4", "lr  3e-4"),
    ],
)
def test_a_command_without_its_moment(text, short):
    assert without_suffixes(text, "at", "when") == short


@pytest.mark.parametrize(
    ("script", "rates"),
    [
        ({2: ["lr x0.5 for 4 steps"], 4: ["set momentum=0.5"]}, "1, 1, .5, .5, .5, .5, 1"),
        ({2: ["lr x0.5 for 4 steps"], 4: ["accumulate 2"]}, "1, 1, .5, .5, .5, .5, 1"),
        ({2: ["lr x0.5 over 1 steps for 4 steps"], 4: ["set momentum=0.5"]}, "1, 1, 1, .5, .5, .5, 1"),
        ({2: ["lr x0.5 for 4 steps"], 3: ["lr 0.03125 over 2 steps"]}, "1, 1, .5, .5, .5, .5, 1"),
        ({2: ["lr x0.5 for 4 steps"], 3: ["lr 0.03125 hold"]}, "1, 1, .5"),
        ({2: ["lr x0.5 for 4 steps"], 4: ["optimizer adam learning_rate=0.03125"]}, "1, 1, .5"),
        ({2: ["optimizer adam learning_rate=0.5 for 4 steps"], 4: ["lr 1"]}, "1, 1, 8, 8, 16, 16, 1"),
        ({0: ["lr 0.5625 over 8 steps"], 2: ["accumulate 2 for 4 steps"]}, "1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (
            {0: ["lr 0.5625 over 8 steps"], 3: ["accumulate 2"], 6: ["undo settings"]},
            "1, 2, 3, 4, 5, 6, 7, 8, 9",
        ),
        ({2: ["lr x0.5 for 4 steps"], 3: ["undo"], 5: ["redo"]}, "1, 1, .5, 1, 1, .5, .5, .5, 1"),
        (
            {1: ["snapshot a"], 2: ["lr x0.5 for 4 steps"], 3: ["rollback a"], 5: ["undo"]},
            "1, 1, .5, 1, 1, .5, .5, .5, 1",
        ),
        ({2: ["lr x0.5 for 4 steps"], 4: ["set momentum=0.5"], 7: ["undo"]}, "1, 1, .5, .5, .5, .5, 1, .5"),
        (
            {2: ["lr x0.5 for 4 steps"], 4: ["set momentum=0.5"], 7: ["undo", "undo"]},
            "1, 1, .5, .5, .5, .5, 1, .5, .5, 1",
        ),
        ({1: ["optimizer adam"], 2: ["lr x0.5 from start for 2 steps"]}, "1, .016, .5, .5, 1"),
    ],
    ids=[
        "other momentum",
        "accumulating",
        "the same of a ramp",
        "a ramp to the same",
        "held",
        "another class of optimizer",
        "another rate of what goes",
        "accumulating for a time in a ramp",
        "accumulating in a ramp undone",
        "undone and redone",
        "a rollback undone",
        "its end undone",
        "its end and what came in between undone",
        "after going back",
    ],
)
@not_compiled
def test_what_comes_in_between_leaves_to_the_timer_what_it_does_not_set(script, rates):
    """`rates`: as above."""
    _, fit = quick(0.0625, script, read_rates=True)
    expected = [0.0625 * float(rate) for rate in rates.split(",")]
    expected += expected[-1:] * (2 * STEPS - len(expected))
    assert fit.rates == pytest.approx(expected, rel=1e-5)


@not_compiled
def test_values_of_layers_are_set_back_whatever_optimizer_there_is():
    script = {2: ["freeze first for 4 steps"], 4: ["optimizer adam"]}
    model, fit = quick(0.1, script, model=named())
    assert answers(fit)["c0.end"].after == {"first.trainable": True}
    assert model.optimizer.name == "adam" and model.layers[0].trainable


@pytest.mark.parametrize(
    ("script", "of", "told"),
    [
        ({2: ["lr x0.5 for 4 steps"], 3: ["lr 0.03125 hold"]}, "c1", "will not set back learning_rate"),
        (
            {2: ["lr x0.5 for 4 steps"], 4: ["optimizer adam learning_rate=0.03125"]},
            "c1",
            "will not set back learning_rate",
        ),
        ({2: ["lr x0.5 for 4 steps"], 3: ["undo"], 5: ["redo"]}, "c2", "set back before step 8 (timer 1)"),
        ({2: ["lr x0.5 for 2 steps"], 5: ["undo"]}, "c1", "without its timer, it stays until undone"),
        (
            {2: ["lr x0.5 for 4 steps"], 3: ["snapshot a"], 7: ["rollback a"]},
            "c2",
            "learning_rate is as timer 1 (lr x0.5 for 4 steps) had set it, without its timer",
        ),
    ],
    ids=["held", "another optimizer", "redone", "its end undone", "rollback"],
)
@not_compiled
def test_what_becomes_of_a_timer_is_told(script, of, told):
    _, fit = quick(0.0625, script)
    assert told in answers(fit)[of].reason


@not_compiled
def test_a_rate_that_goes_with_its_optimizer_is_not_told_to_stay():
    _, fit = quick(0.0625, {2: ["optimizer adam for 4 steps"], 4: ["lr 0.03"]})
    assert "will not" not in answers(fit)["c1"].reason
    assert "stays" not in answers(fit)["c0.end"].reason.replace("weights stay", "")


# ── Guards ────────────────────────────────────────────────────────────────────────────────────────


def guarded(values: np.ndarray, change: str = "rises", *, share: float = 0.2, noise: float = 0.1) -> str:
    """What a guard says of a loss that stood at 1 for 200 steps and goes on with `values`, looked at now and then."""
    recent = RecentSteps()
    recent.add(0, {"loss": noisy(1.0, 1_000, noise=noise).astype(np.float32)})
    guard = Guard(Unless("loss", change, share, 200), recent, 200)
    for first in range(0, len(values), 7):
        recent.add(200 + first, {"loss": values[first : first + 7].astype(np.float32)})
        if why := guard.fired(recent, min(207 + first, 200 + len(values))):
            return why
    return ""


def noisy(level: float | np.ndarray, seed: int = 0, steps: int = 200, noise: float = 0.1) -> np.ndarray:
    return level + noise * np.random.default_rng(seed).normal(size=steps)


@pytest.mark.parametrize(
    ("values", "change", "fires"),
    [
        (noisy(1.0), "rises", False),
        (noisy(1.4), "rises", True),
        (noisy(0.6), "rises", False),
        (noisy(0.6), "falls", True),
        (noisy(1.4), "falls", False),
        (np.where(np.arange(200) % 3, noisy(1.0), 50.0), "rises", False),
        (np.where(np.arange(200) < 100, noisy(1.0), noisy(1.5)), "rises", True),
        (np.where(np.arange(200) == 50, np.nan, noisy(1.0)), "rises", True),
        (np.where(np.arange(200) == 50, np.inf, noisy(1.0)), "falls", True),
        (np.concatenate([noisy(1.0), noisy(3.0)]), "rises", False),
    ],
    ids=[
        "same",
        "higher",
        "lower",
        "fell",
        "did not fall",
        "every third batch far off",
        "later",
        "NaN",
        "infinite",
        "after its time",
    ],
)
def test_a_guard_fires_when_the_level_is_another_and_not_when_batches_are_noisy(values, change, fires):
    assert bool(guarded(values, change)) == fires


def test_a_guard_seldom_fires_on_noise_alone():
    false = sum(bool(guarded(noisy(1.0, seed, noise=0.4), share=0.3, noise=0.4)) for seed in range(100))
    assert false <= 3


def test_a_guard_tells_both_levels():
    why = guarded(noisy(1.4, noise=0.001), noise=0.001)
    assert why == "loss rose by 40 %, from 1 (median of 200 steps before) to 1.4 (of 16 steps after)"


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (np.ones(7), "known of 7 steps"),
        (np.full(50, np.nan), "known of 0 steps"),
        (np.zeros(50), "is at 0"),
    ],
)
def test_without_a_level_there_is_no_guard(losses, why):
    recent = RecentSteps()
    recent.add(0, {"loss": losses.astype(np.float32)})
    with pytest.raises(Refused, match=why):
        Guard(Unless("loss", "rises", 0.2, 50), recent, len(losses))


def test_what_a_guard_undoes_is_as_if_it_had_never_been():
    """The guarded change spoils one epoch; then all is as before it, and the last epoch trains from there."""

    def variables(script: dict[int, list[str]], epochs: int) -> tuple[list[np.ndarray], SteeredFit]:
        model, fit = steered(Adam(0.01), script, epochs=epochs)
        return [current_backend().host(one) for one in variables_of(model)], fit

    steps = 2 * STEPS
    text = f"lr x100 unless loss rises 20% in {steps} steps"
    found, fit = variables({steps: [text]}, 6)
    undone = answers(fit)["c0.undo"]
    assert undone.status == "applied" and undone.undoes == "c0" and undone.timer == 1
    assert undone.after["learning_rate"] == pytest.approx(0.01) and "loss rose by" in undone.reason
    assert undone.step == 2 * steps and timers(fit)[-1].timers == ()  # it takes 16 steps to be sure
    for one, other in zip(found, variables({}, 4)[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_not_finite_is_undone_at_once_with_all_that_came_after():
    script = {10: ["lr 1e30 unless loss falls 90% in 99 steps"], 11: ["lr 1e29"]}
    model, fit = quick(0.01, script, epochs=3)
    undone = answers(fit)["c0.undo"]
    assert undone.step <= 13 and "loss is not finite any more" in undone.reason
    assert "'lr 1e29'" in undone.reason
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_at_the_end_of_the_run_a_guard_has_seen_every_step(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_S", 1e6)
    model, fit = quick(0.01, {12: ["lr 1e30 unless loss rises 20% in 99 steps"]})
    assert answers(fit)["c0.undo"].step == 2 * STEPS
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_guard_that_does_not_fire_ends_and_the_change_stays():
    model, fit = quick(0.01, {8: ["lr x0.5 unless loss rises 500% in 4 steps"]})
    assert float(model.optimizer.learning_rate) == pytest.approx(0.005)
    assert list(answers(fit)) == ["c0"]
    last = timers(fit)[-1]
    assert last.step == 12 and last.timers == () and "its watch is over, loss was never above" in last.reason


def test_without_snapshots_a_guard_sets_back_the_settings_and_says_so():
    fit = SteeredFit({8: ["lr 1e30 unless loss rises 20% in 8 steps"]}, snapshot_memory=0)
    model = dense_model()
    model.compile(SGD(0.01), "mse")
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    assert "only the settings" in fit.replies[0].reason
    undone = answers(fit)["c0.undo"]
    assert undone.after == {"learning_rate": pytest.approx(0.01)} and "the weights stay" in undone.reason


# ── Plateaus ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [200, 256, 700, 1_031, 3_000, 20_011])
@pytest.mark.parametrize("name", list({**plateau.HEALTHY, **plateau.AILING}))
def test_the_training_finds_a_plateau_when_the_terminal_does(name, steps):
    example = {**plateau.HEALTHY, **plateau.AILING}[name]().series["loss"].values
    losses = np.resize(example, steps).astype(np.float32)
    recent = RecentSteps()
    for first in range(0, steps, 129):
        recent.add(first, {"loss": losses[first : first + 129]})
    if steps < recent.losses.needed:  # of a shorter run the terminal judges by other means
        assert not recent.losses.plateau()
        return
    found = plateau.check(Case(session_of({"loss": losses})))
    block = recent.losses.needed // BLOCKS
    assert recent.losses.plateau() == any(one.stop == steps // block * block for one in found)


def test_a_loss_that_stays_brings_the_command_that_waits_for_it():
    script = {3: ["lr x2 when plateau for 2 steps", "note x"]}
    _, fit = steered(SGD(1e-30), script, epochs=40)
    assert fit.replies[0].reason == "waits for a plateau (timer 1)"
    assert 256 <= answers(fit)["c0.1"].step <= 300
    assert answers(fit)["c0.end"].step == answers(fit)["c0.1"].step + 2


def test_a_plateau_of_running_means_is_refused():
    fit = SteeredFit({})
    fit.set_model(dense_model())
    fit.recent.add(0, {"loss": np.ones(9, np.float32)}, running=["loss"])
    reply = fit.send("pause when plateau")
    assert reply.status == "refused" and "loss of single steps" in reply.reason


def test_the_newest_steps_are_kept_and_memory_stays_bounded():
    recent = RecentSteps()
    for first in range(0, 3 * KEPT_STEPS, 100):
        recent.add(first, {"loss": np.arange(first, first + 100, dtype=np.float32)})
    recent.add(3 * KEPT_STEPS + 50, {"accuracy": np.ones(10, np.float32)})  # some steps were lost
    assert recent.names == ["accuracy"]
    np.testing.assert_array_equal(recent.values("loss", 9_995, 10_105), np.arange(9_995, 10_105))
    assert len(recent.values("loss", 0, NEVER)) <= KEPT_STEPS + 300
    assert len(recent.values("accuracy", 0, NEVER)) == 10
    assert len(recent.losses._sums) <= 2 * 128 + 1


def test_means_of_blocks_do_not_depend_on_how_the_steps_come():
    losses = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    losses[::7] = np.nan
    once, often = BlockMeans(), BlockMeans()
    once.add(0, losses)
    for first in range(0, len(losses), 13):
        often.add(first, losses[first : first + 13])
    np.testing.assert_allclose(once._sums, often._sums, atol=1e-9)
    np.testing.assert_array_equal(once._counts, often._counts)
    assert LONGEST < KEPT_STEPS


def test_a_model_without_a_loss_of_its_own_loop_takes_no_guard():
    fit = SteeredFit({})
    fit.set_model(dense_model())
    fit.model.compile(SGD(0.1), "mse")
    fit.steering.install()
    reply = fit.send("lr 0.5 unless loss rises 5% in 9 steps")
    assert reply.status == "refused" and "loss is known of 0 steps" in reply.reason
    assert keras.ops.convert_to_numpy(fit.model.optimizer.learning_rate) == pytest.approx(0.1)
