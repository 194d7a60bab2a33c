"""`set` and `accumulate` while a real `fit` runs: other settings, and all that the optimizer has gathered goes on."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adagrad, Adam, Adamax, AdamW, Lamb, Nadam, RMSprop
from keras.optimizers.schedules import CosineDecay

from client_callback.steering.carrying import slots
from client_callback.steering.switch import build, prepare_changed
from client_callback.wire.protocol import OptimizerChanged, StateChanged
from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    X,
    Y,
    assert_equal_weights,
    assert_same_weights,
    dense_model,
    looped,
    not_compiled,
    steered,
)

pytestmark = pytest.mark.every_backend

CHANGED = 5
"""The first step that runs with the other settings."""

on_jax = BACKEND == "jax"
QUICK = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
"""There, a step takes long to trace; used where it makes no difference."""


class Weights(keras.callbacks.Callback):
    """All weights in one vector, after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def on_train_begin(self, logs=None):
        self.seen = [self.now()]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.now())

    def now(self) -> np.ndarray:
        return np.concatenate([w.ravel() for w in self.model.get_weights()])

    def moved(self) -> np.ndarray:
        """‖Δw‖ of each step."""
        return np.linalg.norm(np.diff(self.seen, axis=0), axis=1)


# ── set ───────────────────────────────────────────────────────────────────────────────────────────

NEVER_FELT: dict[str, tuple[Callable, str]] = {
    "clipnorm": (lambda: Adam(0.01), "set clipnorm=1024"),  # a power of two: times and divided by it is exact
    "clipvalue and back": (
        lambda: SGD(0.1, momentum=0.9, clipnorm=1024.0),
        "set clipnorm=none clipvalue=1e9",
    ),
    "slots": (lambda: RMSprop(0.01, momentum=0.5, centered=True), "set clipvalue=1e9 ema_momentum=0.5"),
    "schedule": (lambda: AdamW(CosineDecay(0.1, 20)), "set global_clipnorm=1048576"),
}


TRACED = ["clipnorm", "schedule"]


@pytest.mark.parametrize("name", TRACED if on_jax else NEVER_FELT)
def test_a_setting_that_is_never_felt_leaves_the_training_bit_for_bit_as_it_would_have_been(name):
    make, command = NEVER_FELT[name]
    how = {} if name in TRACED else QUICK
    model, fit = steered(make(), {CHANGED: ["lr x0.5", command] if name == "schedule" else [command]}, **how)
    assert [r.status for r in fit.replies] == ["applied"] * len(fit.replies), fit.replies
    twin, _ = steered(make(), {CHANGED: ["lr x0.5"]} if name == "schedule" else {}, **how)
    assert_equal_weights(model, twin)
    assert int(model.optimizer.iterations) == int(twin.optimizer.iterations) == 2 * STEPS


@not_compiled
def test_the_settings_are_felt_from_exactly_the_step_the_reply_names():
    model, fit = steered(SGD(0.05, momentum=0.9), {CHANGED: ["set momentum=0.5 nesterov=true"]}, **QUICK)
    (reply,) = fit.replies
    assert (reply.status, reply.step, reply.reason) == ("applied", CHANGED, "")
    assert reply.before == {"momentum": 0.9, "nesterov": False}
    assert reply.after == {"momentum": 0.5, "nesterov": True}
    optimizer = SGD(0.05, momentum=0.9)

    def changing(step):
        optimizer.momentum, optimizer.nesterov = (0.5, True) if step >= CHANGED else (0.9, False)
        return optimizer

    assert_same_weights(model, looped(changing))


@not_compiled
def test_momentum_that_was_off_begins_with_slots_of_its_own_and_ends_without():
    model, fit = steered(SGD(0.05), {3: ["set momentum=0.9"], 9: ["set momentum=0"]}, **QUICK)
    assert [r.reason for r in fit.replies] == ["momentums begin at 0", ""]
    off, on = SGD(0.05), SGD(0.05, momentum=0.9)
    assert_same_weights(model, looped(lambda step: on if 3 <= step < 9 else off))
    assert not model.optimizer.momentums


BETAS = [
    (Adam(0.01), {"beta_1": 0.5, "beta_2": 0.9}, {"_momentums": "beta_1", "_velocities": "beta_2"}),
    (Adam(0.01, amsgrad=True), {"beta_2": 0.9999}, {"_velocities": "beta_2", "_velocity_hats": "beta_2"}),
    (Adamax(0.01), {"beta_1": 0.99}, {"_m": "beta_1"}),
    (Lamb(0.01), {"beta_1": 0.5}, {"_momentums": "beta_1"}),
    (Nadam(0.01), {"beta_2": 0.5}, {"_velocities": "beta_2"}),
]


@pytest.mark.parametrize(
    ("optimizer", "changes", "corrected"), BETAS[:1] if on_jax else BETAS, ids=lambda v: type(v).__name__
)
def test_with_another_beta_the_bias_corrected_moments_stay(optimizer, changes, corrected):
    """Else the next update would be divided by the root of 65 times too little, or too much."""
    model = dense_model()
    model.compile(optimizer, "mse", **QUICK)
    model.fit(X, Y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    new = build(prepare_changed(model, optimizer, changes)).new
    assert int(new.iterations) == STEPS
    before, after = slots(optimizer), slots(new)
    assert before.keys() == after.keys()
    for key, variable in before.items():
        old, now = (np.asarray(keras.ops.convert_to_numpy(v.value)) for v in (variable, after[key]))
        beta = corrected.get(key[0])
        if beta is None:
            np.testing.assert_array_equal(old, now)
        else:
            shares = [1 - getattr(one, beta) ** STEPS for one in (optimizer, new)]
            np.testing.assert_allclose(old / shares[0], now / shares[1], rtol=1e-5)


@not_compiled
def test_a_smaller_beta_after_few_steps_does_not_make_the_next_update_jump():
    weights = Weights()
    steered(Adam(0.01), {CHANGED: ["set beta_2=0.9"]}, callbacks=[weights], **QUICK)
    moved = weights.moved()
    assert 0.7 < moved[CHANGED] / moved[CHANGED - 1] < 1.4


@not_compiled
def test_what_is_so_already_changes_nothing_and_says_so():
    optimizer = Adam(0.01)
    model, fit = steered(
        optimizer, {CHANGED: ["set epsilon=1e-7", "accumulate 1", "set clipnorm=none beta_1=0.9"]}, **QUICK
    )
    assert [(r.status, r.reason) for r in fit.replies] == [("ineffective", "it was so already")] * 3
    assert model.optimizer is optimizer and fit.traces == 0


def test_a_layers_number_and_the_optimizers_go_in_together_with_one_trace_and_out_with_one_undo():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dropout(0.2, seed=1, name="drop"),
            keras.layers.Dense(1, name="last"),
        ]
    )
    optimizer = SGD(0.05)
    script = {3: ["set momentum=0.9 drop.rate=0.4 last.l2=0.01", "undo"]}
    model, fit = steered(optimizer, script, model=model, epochs=1)
    changed, undone = fit.replies
    assert changed.status == undone.status == "applied", fit.replies
    assert changed.before == {"momentum": 0.0, "drop.rate": 0.2, "last.l2": 0.0}
    assert changed.after == {"momentum": 0.9, "drop.rate": 0.4, "last.l2": 0.01}
    assert fit.traces == 2 and model.optimizer is optimizer and model.layers[0].rate == 0.2


@not_compiled
def test_after_a_layer_was_frozen_its_moments_wait_in_the_new_optimizer_too():
    keras.utils.set_random_seed(3)
    model = dense_model()
    model.layers[0].name = "first"
    script = {3: ["freeze first"], 5: ["set clipnorm=1024"], 8: ["unfreeze first"]}
    model, fit = steered(Adam(0.01), script, model=model, **QUICK)
    assert [r.status for r in fit.replies] == ["applied"] * 3, fit.replies
    twin = dense_model()
    twin.layers[0].name = "first"
    twin, _ = steered(Adam(0.01), {3: ["freeze first"], 8: ["unfreeze first"]}, model=twin, **QUICK)
    assert_equal_weights(model, twin)


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("mixed_float16")
def test_mixed_precision_keeps_its_scale_its_counter_and_its_moments():
    make = lambda: Adam(0.01)  # noqa: E731
    model, fit = steered(make(), {CHANGED: ["set clipnorm=1024"]})
    assert [r.status for r in fit.replies] == ["applied"], fit.replies
    twin, _ = steered(make(), {})
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.optimizer.inner_optimizer.clipnorm == 1024
    assert int(model.optimizer.step_counter) == int(twin.optimizer.step_counter)
    assert_equal_weights(model, twin)


def test_a_saved_file_goes_on_with_the_new_settings(tmp_path):
    model, _ = steered(Adam(0.01), {CHANGED: ["set beta_1=0.5 clipvalue=0.1"]}, **QUICK)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert (loaded.optimizer.beta_1, loaded.optimizer.clipvalue) == (0.5, 0.1)
    for one in (model, loaded):
        one.fit(X, Y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    assert_equal_weights(model, loaded)


WRONG = {
    "set learning_rate=0.1": "`lr VALUE`",
    "set momentum=0.9": "adam has no setting 'momentum'; possible: beta_1, beta_2, epsilon",
    "set name=other": "adam has no setting 'name'",
    "set beta_1=1": "beta_1 must be at least 0 and below 1",
    "set beta_2=nan": "beta_2 must be finite",
    "set epsilon=none": "epsilon must be a number, received None",
    "set amsgrad=1": "amsgrad must be true or false",
    "set clipvalue=1": "clipnorm=2 is set, and Keras takes one kind of clipping; write `set clipnorm=none clipv",
    "set clipnorm=none clipvalue=1 global_clipnorm=1": "Only one of",
    "set clipnorm=0": "clipnorm must be positive",
    "set gradient_accumulation_steps=1": "must be an integer >= 2",
    "set ema_momentum=3 use_ema=true": "`ema_momentum` must be in the range",
    "set beta_1=0.5 nowhere.rate=0.5": "no layer 'nowhere'",
}


@not_compiled
def test_wrong_settings_leave_everything_untouched_and_say_what_is_possible():
    optimizer = Adam(0.01, clipnorm=2.0)
    script = {CHANGED: [*WRONG, *(f"{text} --dry-run" for text in WRONG)]}
    model, fit = steered(optimizer, script, **QUICK)
    for reply, says in zip(fit.replies, [*WRONG.values()] * 2, strict=True):
        assert reply.status == "refused" and says in reply.reason, reply
    assert model.optimizer is optimizer and fit.traces == 0
    assert not [e for e in fit.events if isinstance(e, StateChanged | OptimizerChanged)]
    twin, _ = steered(Adam(0.01, clipnorm=2.0), {}, **QUICK)
    assert_equal_weights(model, twin)


@not_compiled
def test_what_counts_only_when_an_optimizer_is_made_is_refused_with_what_to_write():
    _, fit = steered(Adagrad(0.1), {2: ["set initial_accumulator_value=1"]}, epochs=1, **QUICK)
    assert fit.replies[0].status == "refused"
    assert "`optimizer adagrad initial_accumulator_value=1` makes it anew" in fit.replies[0].reason


@not_compiled
def test_averages_that_another_callback_needs_stay_on():
    swap = keras.callbacks.SwapEMAWeights()
    script = {CHANGED: ["set use_ema=false", "set ema_momentum=0.5"]}
    _, fit = steered(SGD(0.1, use_ema=True), script, callbacks=[swap], **QUICK)
    assert [r.status for r in fit.replies] == ["refused", "applied"], fit.replies


class Forgetful(SGD):
    """Its configuration lacks an argument without a default."""

    def __init__(self, secret, **arguments):
        super().__init__(**arguments)
        self.secret = secret


@not_compiled
def test_an_optimizer_that_cannot_be_made_again_is_left_alone():
    model, fit = steered(Forgetful("x", learning_rate=0.1), {2: ["set momentum=0.9"]}, epochs=1, **QUICK)
    assert fit.replies[0].status == "refused" and "missing 1 required positional" in fit.replies[0].reason
    assert isinstance(model.optimizer, Forgetful)


# ── accumulate ────────────────────────────────────────────────────────────────────────────────────


def test_the_weights_move_once_for_every_so_many_batches():
    weights = Weights()
    model, fit = steered(SGD(0.1), {CHANGED: ["accumulate 3"]}, callbacks=[weights])
    (reply,) = fit.replies
    assert (reply.status, reply.reason) == ("applied", ""), reply
    assert reply.after == {"gradient_accumulation_steps": 3}
    assert np.flatnonzero(weights.moved()).tolist() == [0, 1, 2, 3, 4, 7, 10, 13]
    assert fit.verified[0].status == "applied" and fit.verified[0].update_after.step == 7
    first, second = SGD(0.1), SGD(0.1, gradient_accumulation_steps=3)
    assert_same_weights(model, looped(lambda step: first if step < CHANGED else second))


@not_compiled
def test_an_accumulation_that_would_outlast_the_fit_is_refused_and_one_at_work_is_carried_over():
    too_long = [
        "accumulate 17",
        "set gradient_accumulation_steps=17",
        "optimizer adam gradient_accumulation_steps=17",
    ]
    script = {2: too_long, 15: ["optimizer adam", "accumulate 1"]}
    _, fit = steered(SGD(0.1, gradient_accumulation_steps=4), script, **QUICK)
    for reply in fit.replies[:3]:
        assert reply.status == "refused", reply
        assert reply.reason == "an update for every 17 batches would never come: this fit has 14 left"
    assert [reply.status for reply in fit.replies[3:]] == ["applied"] * 2, fit.replies


@not_compiled
def test_another_length_keeps_what_was_accumulated_or_drops_it_aloud_and_counts_updates_on():
    script = {2: ["accumulate 4"], 4: ["accumulate 6"], 9: ["accumulate 3"], 13: ["accumulate 1"]}
    weights = Weights()
    model, fit = steered(Adam(0.01), script, callbacks=[weights], **QUICK)
    assert [r.reason for r in fit.replies] == [
        "",
        "",
        "",
        "the gradients accumulated over the last 2 batches are dropped",
    ], fit.replies
    # Two of the six were there at step 4; of the three from step 9, one.
    assert np.flatnonzero(weights.moved()).tolist() == [0, 1, 7, 10, 13, 14, 15]
    assert int(model.optimizer.iterations) == 7
    assert model.optimizer.gradient_accumulation_steps is None


@not_compiled
def test_a_schedule_goes_on_by_batches_while_gradients_are_accumulated():
    _, fit = steered(
        SGD(CosineDecay(0.1, 20)), {3: ["accumulate 2"], 9: ["accumulate 1"]}, read_rates=True, **QUICK
    )
    assert "CosineDecay goes on from its step 3 in this fit" in fit.replies[0].reason
    schedule = CosineDecay(0.1, 20)
    np.testing.assert_allclose(fit.rates, [float(schedule(step)) for step in range(16)], rtol=1e-5)


# ── Back ──────────────────────────────────────────────────────────────────────────────────────────

UNDONE: dict[str, tuple[Callable, str]] = {
    "set": (lambda: Adam(0.01), "set beta_2=0.5 clipvalue=0.1"),
    "slots": (lambda: SGD(CosineDecay(0.1, 40), clipnorm=1.0), "set momentum=0.9"),
    "accumulate": (lambda: AdamW(0.01), "accumulate 3"),
    "length": (lambda: SGD(0.1, momentum=0.9, gradient_accumulation_steps=4), "accumulate 3"),
    "averages": (lambda: RMSprop(0.01, use_ema=True), "set ema_momentum=0.5 rho=0.5"),
    "switch": (lambda: Nadam(0.01), "optimizer sgd learning_rate=match momentum=0.9"),
}


UNDONE_TRACED = ["set", "accumulate"]


@pytest.mark.parametrize("name", UNDONE_TRACED if on_jax else UNDONE)
def test_after_undo_the_next_steps_are_bit_for_bit_those_of_a_training_that_never_changed(name):
    make, command = UNDONE[name]
    how = {} if name in UNDONE_TRACED else QUICK
    model, fit = steered(make(), {STEPS: [command], 2 * STEPS: ["undo"]}, epochs=3, **how)
    assert [r.status for r in fit.replies] == ["applied"] * 2, fit.replies
    twin, _ = steered(make(), {}, epochs=2, **how)
    assert_equal_weights(model, twin)
    for a, b in zip(model.optimizer.variables, twin.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v.value) for v in (a, b)))


@not_compiled
def test_redo_brings_back_the_changed_optimizer_with_its_moments():
    script = {STEPS: ["set beta_1=0.5"], 2 * STEPS: ["undo"], 3 * STEPS: ["redo"]}
    model, fit = steered(Adam(0.01), script, epochs=4, **QUICK)
    assert [r.status for r in fit.replies] == ["applied"] * 3, fit.replies
    twin, _ = steered(Adam(0.01), {STEPS: ["set beta_1=0.5"]}, epochs=3, **QUICK)
    assert_equal_weights(model, twin)


def test_setting_back_only_the_settings_goes_on_with_the_present_moments():
    """As if the settings had been set back by hand."""
    back = {12: ["undo settings"]}
    model, fit = steered(Adam(0.01), {CHANGED: ["set beta_1=0.5 clipvalue=0.1"], **back}, **QUICK)
    assert [r.status for r in fit.replies] == ["applied"] * 2, fit.replies
    assert "the weights stay" in fit.replies[1].reason
    twin, _ = steered(
        Adam(0.01),
        {CHANGED: ["set beta_1=0.5 clipvalue=0.1"], 12: ["set beta_1=0.9 clipvalue=none"]},
        **QUICK,
    )
    assert_equal_weights(model, twin)
    assert int(model.optimizer.iterations) == 2 * STEPS


@not_compiled
def test_a_rate_that_was_set_in_between_stays_when_the_settings_go_back():
    _, fit = steered(
        SGD(CosineDecay(0.1, 20), momentum=0.9),
        {3: ["set momentum=0.5"], 6: ["lr x0.5"], 9: ["undo settings", "lr x0.5", "undo settings"]},
        read_rates=True,
        **QUICK,
    )
    assert [r.status for r in fit.replies] == ["applied"] * 5, fit.replies
    schedule = CosineDecay(0.1, 20)
    factors = [1.0] * 6 + [0.5] * 3 + [1.0] * 7
    expected = [float(schedule(step)) * factor for step, factor in enumerate(factors)]
    np.testing.assert_allclose(fit.rates, expected, rtol=1e-5)


@not_compiled
def test_going_back_to_accumulation_drops_or_keeps_what_belongs_to_the_present():
    weights = Weights()
    script = {6: ["accumulate 4"], 9: ["undo settings"]}
    _, fit = steered(SGD(0.1, gradient_accumulation_steps=2), script, callbacks=[weights], **QUICK)
    assert "accumulated over the last 3 batches are dropped" in fit.replies[1].reason
    assert np.flatnonzero(weights.moved()).tolist() == [1, 3, 5, 10, 12, 14]


@not_compiled
def test_another_class_goes_on_with_the_moments_it_had_and_says_so():
    model, fit = steered(
        Adam(CosineDecay(0.1, 20)),
        {CHANGED: ["optimizer sgd"], 9: ["undo settings"]},
        read_rates=True,
        **QUICK,
    )
    assert "Adam goes on with the moments that it had when it was replaced" in fit.replies[1].reason
    assert int(model.optimizer.iterations) == CHANGED + 2 * STEPS - 9
    schedule = CosineDecay(0.1, 20)
    np.testing.assert_allclose(fit.rates, [float(schedule(step)) for step in range(16)], rtol=1e-5)
