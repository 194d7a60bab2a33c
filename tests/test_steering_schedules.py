"""Ramps, schedules and held rates, put on a running `fit`: each step uses the rate that the formula gives."""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from client_callback.steering.plateau import ARGUMENTS
from client_callback.steering.schedules import KINDS, Cyclical, LinearWarmup, OneCycle
from client_callback.wire.commands.parsers import SCHEDULES
from client_callback.wire.protocol import OptimizerChanged, Problem, Reply
from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    SteeredFit,
    X,
    Y,
    always,
    assert_equal_weights,
    assert_same_weights,
    dense_model,
    looped,
    not_compiled,
    steered,
)

pytestmark = pytest.mark.every_backend

BEGUN = 5
"""The first step that a command decides."""

ALL = 2 * STEPS


def cosine_at(step, rate=0.1, steps=20):
    return rate * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def one_cycle_at(step, top=0.2, total=9, share=0.3, div=25.0, final=1e4):
    """As torch's `OneCycleLR` with cosine annealing: phases by their last step."""
    first = top / div
    phases = [(share * total - 1, first, top), (total - 1, top, first / final)]
    begin = 0.0
    for end, low, high in phases:
        if step <= end or end == total - 1:
            done = min((step - begin) / (end - begin), 1.0)
            return high + (low - high) / 2 * (1 + math.cos(math.pi * done))
        begin = end
    raise AssertionError


def cyclic_at(step, low=0.02, high=0.1, size=3, gamma=1.0):
    """As torch's `CyclicLR` computes it, with both halves of a cycle of one length."""
    cycle = math.floor(1 + step / (2 * size))
    x = 1 + step / (2 * size) - cycle
    scale = x / 0.5 if x <= 0.5 else (x - 1) / (0.5 - 1)
    return low + (high - low) * scale * gamma**step


FORMULAS = {
    "step": ("decay_steps=3 decay_rate=0.5", lambda k: 0.1 * 0.5 ** (k // 3)),
    "exponential": ("decay_steps=3 decay_rate=0.5", lambda k: 0.1 * 0.5 ** (k / 3)),
    "inverse-time": ("decay_steps=4 decay_rate=2", lambda k: 0.1 / (1 + 2 * k / 4)),
    "polynomial": (
        "decay_steps=8 end_learning_rate=0.01 power=2",
        lambda k: 0.09 * (1 - min(k, 8) / 8) ** 2 + 0.01,
    ),
    "cosine": ("decay_steps=20", cosine_at),
    "cosine-restarts": (
        "first_decay_steps=4 m_mul=0.5 t_mul=1",
        lambda k: cosine_at(k % 4, steps=4) * 0.5 ** (k // 4),
    ),
    "cyclical": (
        "maximal_learning_rate=0.1 initial_learning_rate=0.02 step_size=3 gamma=0.9",
        lambda k: cyclic_at(k, gamma=0.9),
    ),
    "one-cycle": ("maximal_learning_rate=0.2 total_steps=9", one_cycle_at),
    "warmup": ("warmup_steps=4", lambda k: 0.1 / 4 + (0.1 - 0.1 / 4) * min(k / 4, 1)),
}
"""Kind → (arguments, rate of the k-th step after the command), at a present rate of 0.1."""


# ── The formulas ──────────────────────────────────────────────────────────────────────────────────


def test_what_a_command_may_say_is_what_the_schedules_take():
    taken = {kind: set(found.possible) for kind, found in KINDS.items()}
    taken |= {"constant": {"learning_rate"}, "reduce-on-plateau": set(ARGUMENTS)}
    assert {kind: set(names) for kind, names in SCHEDULES.items()} == taken


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (OneCycle(0.2, 50), lambda t: one_cycle_at(t, total=50)),
        (OneCycle(0.2, 50, 0.5, 10.0, 100.0), lambda t: one_cycle_at(t, 0.2, 50, 0.5, 10.0, 100.0)),
        (Cyclical(0.02, 0.1, 7), lambda t: cyclic_at(t, size=7)),
        (Cyclical(0.02, 0.1, 7, 0.99), lambda t: cyclic_at(t, size=7, gamma=0.99)),
        (LinearWarmup(0.01, 0.1, 30), lambda t: float(np.interp(t, [0, 30], [0.01, 0.1]))),
    ],
    ids=["one-cycle", "one-cycle with all", "triangular", "exp_range", "warmup"],
)
def test_schedules_that_keras_has_not_follow_their_sources(schedule, expected):
    found = [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(61)]
    np.testing.assert_allclose(found, [expected(step) for step in range(61)], rtol=2e-5, atol=1e-8)
    again = type(schedule).from_config(schedule.get_config())
    assert float(again(17)) == float(schedule(17))


def test_a_cycle_keeps_its_place_after_millions_of_steps():
    assert float(Cyclical(0.02, 0.1, 7)(14_000_000 + 7)) == pytest.approx(0.1)


# ── On a running fit ──────────────────────────────────────────────────────────────────────────────


@not_compiled
def test_every_kind_decides_from_the_very_step_on():
    """One after another, an epoch each, always from a rate of 0.1."""
    texts = [f"schedule {kind} {arguments}" for kind, (arguments, _) in FORMULAS.items()]
    script = {
        STEPS * place: ["schedule constant learning_rate=0.1", text] for place, text in enumerate(texts)
    }
    model, fit = steered(SGD(0.1), script, read_rates=True, epochs=len(texts))
    expected = [rate(step) for _, rate in FORMULAS.values() for step in range(STEPS)]
    assert fit.rates == pytest.approx(expected, rel=1e-4)
    loop = looped(always(SGD(0.1)), lambda step: expected[step], epochs=len(texts))
    assert_same_weights(model, loop, 1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(expected[-1], rel=1e-4)
    constant, replies = fit.replies[::2], fit.replies[1::2]
    assert [reply.status for reply in constant] == ["ineffective"] + ["applied"] * (len(texts) - 1)
    for reply, (_, rate) in zip(replies, FORMULAS.values(), strict=True):
        assert reply.status == "applied", reply
        assert reply.before == {"learning_rate": 0.1, "schedule": None}
        assert reply.after["learning_rate"] == pytest.approx(rate(0), rel=1e-5) and reply.after["schedule"]
    assert [reply.status for reply in fit.verified] == ["applied"] * (2 * len(texts) - 1)


def owned_by_a_callable():
    return 0.1


OWNERS = {"number": 0.1, "schedule": CosineDecay(0.1, 20), "callable": owned_by_a_callable}


@pytest.mark.parametrize("own", OWNERS)
def test_whatever_decided_before_a_schedule_takes_over_and_lr_ends_it(own):
    """On JAX, these two runs stand for all kinds."""
    script = {
        BEGUN: ["schedule one-cycle maximal_learning_rate=0.2 total_steps=9"],
        9: ["lr x0.5"],
        12: ["lr 0.02"],
    }
    model, fit = steered(SGD(OWNERS[own]), script)
    assert [reply.status for reply in fit.replies] == ["applied"] * 3, fit.replies
    assert "OneCycle keeps its shape, times 0.5" in fit.replies[1].reason
    assert "OneCycle no longer decides" in fit.replies[2].reason
    before = [cosine_at(step) if own == "schedule" else 0.1 for step in range(BEGUN)]
    cycle = [one_cycle_at(step - BEGUN) * (0.5 if step >= 9 else 1) for step in range(BEGUN, 12)]
    rates = [*before, *cycle, *[0.02] * 4]
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]), 1e-5)
    if own == "number":  # its variable decides again
        assert fit.traces == (0 if BACKEND == "torch" else 1) and model.optimizer._learning_rate == 0.02


@not_compiled
def test_a_schedule_of_the_same_kind_begins_anew_and_it_is_said():
    again = "schedule exponential decay_steps=1 decay_rate=0.5 initial_learning_rate=0.2"
    _, fit = steered(
        SGD(CosineDecay(0.1, 20)),
        {2: ["schedule exponential decay_steps=1 decay_rate=0.9"], 4: [again]},
        read_rates=True,
    )
    assert [reply.status for reply in fit.replies] == ["applied"] * 2, fit.replies
    assert fit.replies[1].reason == "another ExponentialDecay decides the rate"
    assert fit.rates[4:7] == pytest.approx([0.2, 0.1, 0.05])


@pytest.mark.parametrize("own", ["number", "schedule"])
def test_a_ramp_goes_in_a_straight_line_and_stays(own):
    script = {BEGUN: ["lr 0.02 over 4 steps"], 13: ["lr x3 over 2 steps"]}
    model, fit = steered(SGD(OWNERS[own]), script)
    assert [reply.status for reply in fit.replies] == ["applied"] * 2, fit.replies
    present = cosine_at(BEGUN) if own == "schedule" else 0.1
    first = fit.replies[0]
    assert first.after == {"learning_rate": pytest.approx(present), "schedule": "ramp"}
    assert "reaches 0.02 in 4 steps" in first.reason
    before = [cosine_at(step) if own == "schedule" else 0.1 for step in range(BEGUN)]
    rates = [*before, *np.linspace(present, 0.02, 5), *[0.02] * 3, 0.02, 0.04, 0.06]
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]), 1e-5)
    assert fit.traces == (0 if BACKEND == "torch" else 1)  # the second needs none
    told = [event.optimizer.schedule for event in fit.events if isinstance(event, OptimizerChanged)]
    assert told == ["ramp", None, "ramp", None][: len(told)] and len(told) >= 3


def test_a_schedule_that_is_scaled_over_some_steps_keeps_its_shape():
    _, fit = steered(SGD(CosineDecay(0.1, 20)), {BEGUN: ["lr x0.5 over 4 steps"]}, read_rates=True)
    assert fit.replies[0].status == "applied" and "CosineDecay keeps its shape" in fit.replies[0].reason
    factors = [1.0] * BEGUN + [1, 0.875, 0.75, 0.625] + [0.5] * 7
    assert fit.rates == pytest.approx([cosine_at(step) * factors[step] for step in range(ALL)], rel=1e-5)


def test_constant_stops_a_schedule_at_the_present_rate_or_at_one_given():
    script = {BEGUN: ["schedule constant"], 9: ["schedule constant", "schedule constant learning_rate=0.03"]}
    _, fit = steered(SGD(CosineDecay(0.1, 20)), script, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied", "ineffective", "applied"], fit.replies
    stopped = [cosine_at(min(step, BEGUN)) for step in range(9)] + [0.03] * 7
    assert fit.rates == pytest.approx(stopped, rel=1e-5)


WAYS = {
    "momentum": lambda: Adam(0.1),
    "accumulation": lambda: SGD(0.1, gradient_accumulation_steps=4),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1), initial_scale=128.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_schedules_count_batches_whatever_surrounds_the_optimizer(way):
    """Keras' schedules are asked with `_iterations`, which counts batches while gradients are accumulated too."""
    _, fit = steered(WAYS[way](), {BEGUN: ["schedule cosine decay_steps=20"]}, read_rates=True)
    assert fit.replies[0].status == "applied", fit.replies
    assert fit.rates[BEGUN:] == pytest.approx([cosine_at(step) for step in range(ALL - BEGUN)], rel=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes one step per execution on torch")
def test_with_several_steps_per_execution_every_step_has_its_own_rate():
    script = {4: ["schedule cosine decay_steps=20"], 8: ["lr 0.02 over 3 steps"]}
    model, fit = steered(SGD(0.1), script, steps_per_execution=4)
    assert [reply.status for reply in fit.replies] == ["applied"] * 2
    start = cosine_at(4)
    rates = [0.1] * 4 + [cosine_at(step) for step in range(4)] + [*np.linspace(start, 0.02, 4), *[0.02] * 4]
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]), 1e-5)


@not_compiled
def test_every_optimizer_of_a_multi_optimizer_gets_the_schedule_from_its_own_rate():
    optimizers = [SGD(0.1, name="body"), SGD(0.2, name="head")]
    by_layer = keras.optimizers.OptimizerMap(optimizers[0], {".*bias": optimizers[1]})
    script = {BEGUN: ["schedule exponential decay_steps=1 decay_rate=0.5"]}
    _, fit = steered(keras.optimizers.MultiOptimizer(by_layer), script)
    (reply,) = fit.replies
    assert reply.status == "applied"
    assert (reply.after["learning_rate_body"], reply.after["learning_rate_head"]) == (0.1, 0.2)
    last = 0.5 ** (ALL - BEGUN - 1)
    assert float(optimizers[0].learning_rate) == pytest.approx(0.1 * last)
    assert float(optimizers[1].learning_rate) == pytest.approx(0.2 * last)


def test_another_optimizer_goes_on_with_the_schedule_of_a_command():
    script = {BEGUN: ["schedule cosine decay_steps=20"], 9: ["optimizer adam"]}
    _, fit = steered(SGD(0.1), script, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied"] * 2, fit.replies
    assert fit.rates[BEGUN:] == pytest.approx([cosine_at(step) for step in range(ALL - BEGUN)], rel=1e-5)


def test_while_a_schedule_of_ours_decides_configuration_and_files_hold_the_optimizers_own(tmp_path):
    class Keeper(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.config = self.model.optimizer.get_config()
            self.model.save(tmp_path / f"{epoch}.keras")

    keeper = Keeper()
    script = {BEGUN: ["schedule warmup warmup_steps=20 warmup_target=0.5"]}
    model, _ = steered(Adam(0.1, name="adam"), script, callbacks=[keeper])
    assert keeper.config["learning_rate"] == pytest.approx(0.1)
    reloaded = keras.models.load_model(tmp_path / "1.keras")
    assert len(reloaded.optimizer.variables) == len(model.optimizer.variables)
    assert int(reloaded.optimizer.iterations) == ALL
    assert not [v for v in model.optimizer.variables if "unstuck" in v.path]
    used = 0.025 + 0.475 * (ALL - BEGUN - 1) / 20
    assert float(model.optimizer.learning_rate) == pytest.approx(used)


# ── Going back ────────────────────────────────────────────────────────────────────────────────────

BACK = {
    "a schedule": ["schedule one-cycle maximal_learning_rate=0.2 total_steps=9"],
    "a ramp": ["lr 0.02 over 4 steps"],
    "a held rate": ["lr 0.02 hold"],
    "a schedule after a ramp": ["lr 0.02 over 4 steps", "schedule cosine decay_steps=20"],
    "a plateau": ["schedule reduce-on-plateau monitor=loss patience=1"],
}


@functools.cache
def untouched(own):
    return steered(Adam(OWNERS[own]), {}, read_rates=True)


@pytest.mark.parametrize(
    ("what", "own"),
    [("a schedule", "schedule"), ("a ramp", "schedule"), *((what, "number") for what in BACK)][
        : 3 if BACKEND == "jax" else None
    ],
)
def test_after_undo_the_next_steps_are_those_of_an_untouched_twin(what, own):
    """Commands at a step and their undo at once: bit for bit as if neither had been."""
    script = {BEGUN: [*BACK[what], *["undo"] * len(BACK[what])]}
    model, fit = steered(Adam(OWNERS[own]), script, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied"] * len(script[BEGUN]), fit.replies
    twin, plain = untouched(own)
    assert fit.rates == plain.rates
    assert_equal_weights(model, twin)


def test_undo_in_the_middle_of_a_schedule_gives_back_an_earlier_place_of_another():
    """The data goes on, so only the rates are compared: they repeat those from the undone step on."""
    script = {
        2: ["schedule cosine decay_steps=20"],
        BEGUN: ["lr x0.5 over 4 steps"],
        8: ["schedule exponential decay_steps=1 decay_rate=0.9"],
        10: ["undo"],
        12: ["undo"],
        14: ["redo"],
    }
    _, fit = steered(SGD(0.1), script, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied"] * 6, fit.replies
    rates = fit.rates
    assert rates[10:12] == [rates[5 + 3], pytest.approx(cosine_at(7) * 0.5)]
    assert rates[12:14] == pytest.approx([cosine_at(3), cosine_at(4)])
    assert rates[14:16] == pytest.approx([cosine_at(8) * 0.5, cosine_at(9) * 0.5])


@not_compiled
def test_undo_settings_takes_a_schedule_off_and_leaves_the_weights():
    script = {BEGUN: ["schedule cosine decay_steps=20"], 9: ["undo settings"]}
    model, fit = steered(SGD(0.1), script, read_rates=True)
    assert fit.rates[9:] == [pytest.approx(0.1)] * 7
    assert fit.replies[1].before["schedule"] == "CosineDecay" and fit.replies[1].after["schedule"] is None
    expected = [0.1] * BEGUN + [cosine_at(step) for step in range(4)] + [0.1] * 7
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: expected[step]), 1e-5)


@not_compiled
def test_a_ramp_or_a_rule_for_some_steps_is_set_back_whatever_it_has_done_since():
    texts = [
        "lr 0.02 over 3 steps for 5 steps",
        "schedule reduce-on-plateau monitor=loss patience=1 factor=0.5 min_delta=100 for 30 steps",
    ]
    for text, length in zip(texts, (5, 30), strict=True):
        _, fit = steered(SGD(0.1), {2: [text]}, read_rates=True, epochs=5)
        assert fit.rates[1 + length] < 0.05 and fit.rates[2 + length :] == [pytest.approx(0.1)] * (
            5 * STEPS - 2 - length
        )


@not_compiled
def test_a_ramp_begun_before_a_timer_ends_goes_on_after_it():
    script = {2: ["lr 0.05 over 2 steps for 6 steps"], 6: ["lr 0.01 over 8 steps"]}
    _, fit = steered(SGD(0.1), script, read_rates=True)
    assert "will not set back learning_rate" in fit.replies[1].reason
    assert fit.rates[6:] == pytest.approx([*np.linspace(0.05, 0.01, 9), 0.01])


# ── Other owners ──────────────────────────────────────────────────────────────────────────────────


class Halves(keras.callbacks.Callback):
    """An owner of the rate that sets it before every batch, after whoever comes first."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate.assign(0.5)


class HalvesEachEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            self.model.optimizer.learning_rate = 0.5


@pytest.mark.parametrize("owner", [Halves, HalvesEachEpoch])
def test_a_held_rate_stays_whatever_a_callback_sets_and_its_owner_is_named(owner):
    model = dense_model()
    model.compile(SGD(0.1), "mse")
    fit, other = SteeredFit({2: ["lr 0.02 hold"], 14: ["lr 0.03"]}), owner()
    fit.callbacks = [fit, other]
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=fit.callbacks)
    held, ended = fit.replies
    assert held.status == "applied" and held.after == {"learning_rate": 0.02, "hold": True}
    assert f"held: what {owner.__name__} may set has no effect" in held.reason
    assert ended.status == "applied" and "no longer held" in ended.reason
    every = owner is Halves
    rates = [0.5 if every else 0.1] * 2 + [0.02] * 12 + [0.5 if every else 0.03] * 2
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]), 1e-5)
    (problem,) = [event for event in fit.events if isinstance(event, Problem)]
    assert f"{owner.__name__} set the rate of {model.optimizer.name} to 0.5" in problem.what
    (held_now, *_) = [e.optimizer.held for e in fit.events if isinstance(e, OptimizerChanged)]
    assert held_now


@not_compiled
def test_a_callback_that_assigns_the_rate_of_a_schedule_of_ours_ends_no_training():
    _, fit = steered(
        SGD(0.1), {BEGUN: ["schedule cosine decay_steps=20"]}, callbacks=[Halves()], read_rates=True
    )
    assert "what Halves may set has no effect: CosineDecay decides" in fit.replies[0].reason
    assert fit.rates[BEGUN:] == pytest.approx([cosine_at(step, 0.5) for step in range(ALL - BEGUN)], rel=1e-5)


def test_a_plateau_reduces_the_rate_between_epochs_and_each_time_is_recorded():
    command = "schedule reduce-on-plateau monitor=loss patience=1 factor=0.5 min_delta=100"
    _, fit = steered(SGD(0.1), {2: [command], 34: ["undo"]}, epochs=5, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied"] * 2, fit.replies
    assert fit.replies[0].after["reduce-on-plateau"].startswith("the rate times 0.5 whenever loss")
    reductions = [event for event in fit.events if isinstance(event, Reply)]
    assert [(r.id, r.text, r.who) for r in reductions] == [
        (f"c0-{n}", text, "reduce-on-plateau of ada@box")
        for n, text in ((1, "lr 0.05"), (2, "lr 0.025"), (3, "lr 0.0125"))
    ]
    assert reductions[0].before == {"learning_rate": 0.1} and "loss" in reductions[0].reason
    expected = [0.1] * 16 + [0.05] * 8 + [0.025] * 8 + [0.0125] * 2 + [0.1] * 6
    assert fit.rates == pytest.approx(expected)  # undo has taken the rule out with what it had done


def test_keras_own_callback_reduces_at_the_same_epochs_as_the_rule_does():
    arguments = {
        "monitor": "loss",
        "factor": 0.5,
        "patience": 1,
        "min_delta": 100.0,
        "cooldown": 1,
        "min_lr": 0.03,
    }
    text = " ".join(f"{name}={value}" for name, value in arguments.items())
    model, fit = steered(
        SGD(CosineDecay(0.1, 20)), {0: ["schedule constant", f"schedule reduce-on-plateau {text}"]}, epochs=6
    )
    assert [reply.status for reply in fit.replies] == ["applied"] * 2
    twin, _ = steered(SGD(0.1), {}, epochs=6, callbacks=[keras.callbacks.ReduceLROnPlateau(**arguments)])
    assert_same_weights(model, twin)


@not_compiled
def test_that_no_epoch_reports_the_value_a_rule_watches_is_said_once():
    _, fit = steered(SGD(0.1), {2: ["schedule reduce-on-plateau"]})
    (problem,) = [event for event in fit.events if isinstance(event, Problem)]
    assert problem.what == "reduce-on-plateau waits: there is no val_loss in this epoch's values, only loss"


# ── Refused, and foretold ─────────────────────────────────────────────────────────────────────────

WRONG = {
    "schedule cosine": "needs decay_steps",
    "schedule cosine decay_steps=0": "decay_steps must be a whole number from 1",
    "schedule cosine decay_steps=2.5": "whole number",
    "schedule cosine decay_steps=many": "received 'many'",
    "schedule cosine decay_steps=1e300": "whole number",
    "schedule cosine decay_steps=10 alpha=2": "alpha must be a number from 0 to 1",
    "schedule cosine decay_steps=10 initial_learning_rate=nan": "initial_learning_rate must be",
    "schedule cosine decay_steps=10 initial_learning_rate=1e-60": "1.18e-38",
    "schedule cosine decay_steps=10 warmup_steps=3": "belong together",
    "schedule step decay_steps=3": "needs decay_rate",
    "schedule step decay_steps=3 decay_rate=2": "at most 1",
    "schedule exponential decay_steps=3 decay_rate=0.5 staircase=1": "true or false",
    "schedule polynomial decay_steps=3": "needs end_learning_rate",
    "schedule polynomial decay_steps=3 end_learning_rate=-1": "0 or a number",
    "schedule cosine-restarts first_decay_steps=3 t_mul=0.5": "from 1 on",
    "schedule cyclical maximal_learning_rate=0.01 step_size=3": "above initial_learning_rate (0.1)",
    "schedule one-cycle maximal_learning_rate=0.1 total_steps=3": "not more than one",
    "schedule one-cycle maximal_learning_rate=1e-37 total_steps=30": "float32 cannot hold",
    "schedule warmup": "needs warmup_steps",
    "schedule constant learning_rate=inf": "learning_rate must be",
    "schedule reduce-on-plateau factor=1": "below 1",
    "schedule reduce-on-plateau patience=-1": "patience must be",
    "schedule reduce-on-plateau mode=up": "auto, min or max",
    "schedule reduce-on-plateau monitor=accuracy": "mode=min or mode=max",
    "lr 1e-60 over 5 steps": "float32 holds",
    "lr x1e-50 hold": "float32 holds",
}


@not_compiled
def test_whatever_is_wrong_is_refused_with_what_is_possible_and_changes_nothing():
    model, fit = steered(SGD(0.1), {BEGUN: list(WRONG)}, epochs=1)
    for reply, says in zip(fit.replies, WRONG.values(), strict=True):
        assert reply.status == "refused" and says in reply.reason, reply
    assert fit.traces == 0
    assert_equal_weights(model, steered(SGD(0.1), {}, epochs=1)[0])


@not_compiled
def test_a_dry_run_tells_the_rates_to_come_and_who_decides():
    texts = [
        "schedule one-cycle maximal_learning_rate=0.2 total_steps=9",
        "lr x0.5 over 10 steps hold",
        "schedule constant",
    ]
    callbacks = [keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=50)]
    _, fit = steered(
        SGD(0.1, name="sgd"), {2: [f"{text} --dry-run" for text in texts]}, epochs=1, callbacks=callbacks
    )
    assert [reply.status for reply in fit.replies] == ["planned"] * 3 and fit.traces == 0
    cycle, ramp, constant = ([(line.topic, line.text) for line in reply.plan] for reply in fit.replies)
    assert cycle[0] == (
        "does",
        "sgd: OneCycle from 0.1: 0.008 now, 0.199 at +2, 0.141 at +4, 0.0122 at +7, 8e-07 at +9",
    )
    assert ("rate", "sgd: a plain number decides the rate now") in cycle
    owner = "ReduceLROnPlateau may set the rate again at the end of an epoch without improvement"
    assert ("rate", owner) in cycle and ("rate", owner) in ramp
    assert ramp[0] == ("does", "sgd: 0.1 → 0.05 in a straight line over 10 steps")
    assert any("stays whatever callbacks set" in text for _, text in ramp)
    assert constant[0] == ("does", "sgd: stays at 0.1")
    anew = [topic for topic, _ in cycle if topic == "recompiles"]
    assert anew == ([] if BACKEND == "torch" else ["recompiles"])
