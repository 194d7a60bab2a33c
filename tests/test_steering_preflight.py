"""What is said before an optimizer is exchanged, and whether the rate of equal effect has that effect."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import optimizers
from keras.optimizers import SGD, Adam, AdamW
from keras.optimizers.schedules import CosineDecay

from client_callback.steering.equivalent import _gathered, _sample, equivalent_rate, motion
from client_callback.steering.switch import prepare
from client_callback.wire.protocol import Measured
from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    SteeredFit,
    X,
    Y,
    dense_model,
    gradients,
    not_compiled,
    steered,
)

pytestmark = pytest.mark.every_backend


QUICK = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
"""There, a step takes long to trace; whether it is makes no difference here."""


class MeasuredFit(SteeredFit):
    """Knows of each step what the product measures inside of it: the norms of gradients and updates."""

    def on_train_batch_begin(self, batch, logs=None):
        weights = super(SteeredFit, self).model.get_weights()  # current on JAX too
        if self.step:
            self.last_values = {"grad_norm": norm(gradients(self.before, self.step - 1))}
            self.moved.append(norm([new - old for new, old in zip(weights, self.before, strict=True)]))
            self.sampled_update = Measured(value=self.moved[-1] / norm(weights), step=self.step - 1)
        else:
            self.moved: list[float] = []
        self.before = weights
        super().on_train_batch_begin(batch, logs)


def norm(arrays) -> float:
    return float(np.sqrt(sum(np.square(a).sum() for a in arrays)))


def measured(optimizer, script, epochs) -> MeasuredFit:
    model = dense_model()
    model.compile(optimizer, "mse", **QUICK)
    fit = MeasuredFit(script)
    fit.callbacks = [fit]
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[fit])
    return fit


CHAIN = ["sgd", "adam"] if BACKEND == "jax" else ["sgd", "adam", "sgd momentum=0.9", "lion", "lamb", "sgd"]
EACH = 12
"""Steps between two switches."""


def test_with_learning_rate_match_the_next_updates_are_about_as_large_as_those_before():
    script = {
        (place + 1) * EACH: [f"optimizer {name} learning_rate=match"] for place, name in enumerate(CHAIN)
    }
    fit = measured(Adam(0.003), script, epochs=-(-EACH * (len(CHAIN) + 1) // STEPS))
    assert [r.status for r in fit.replies] == ["applied"] * len(CHAIN), fit.replies
    ratios = {}
    for place, name in enumerate(CHAIN):
        at = (place + 1) * EACH
        late = "momentum" in name  # it has to build up first
        after = fit.moved[at + 7 : at + EACH] if late else fit.moved[at : at + 5]
        ratios[name] = np.mean(after) / np.mean(fit.moved[at - 4 : at])
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


def after_an_epoch(optimizer, *, known: bool = False) -> SteeredFit:
    """A training of one epoch; `known`: with its measurements."""
    fit = measured(optimizer, {}, epochs=1)
    if not known:
        fit.last_values, fit.sampled_update = {}, None
    return fit


EXACT = [
    Adam(0.01),
    AdamW(0.01, amsgrad=True, weight_decay=0.0),
    optimizers.Adamax(0.01),
    optimizers.Lion(0.01),
    SGD(0.05, momentum=0.9),
    optimizers.RMSprop(0.01, momentum=0.5),
    optimizers.Lamb(0.01),
]
ROUGH = [
    optimizers.Nadam(0.01),
    optimizers.RMSprop(0.01),
    optimizers.Adadelta(1.0),
    optimizers.Adafactor(0.1),
    optimizers.Muon(0.01),
]


@not_compiled
@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [*((one, 0.02) for one in EXACT), *((one, 3.0) for one in ROUGH)],
    ids=lambda v: type(v).__name__,
)
def test_how_far_the_present_optimizer_moves_the_weights_is_read_from_its_state(optimizer, tolerance):
    fit = after_an_epoch(optimizer)
    weights = fit.model.get_weights()
    moved = norm([new - old for new, old in zip(weights, fit.before, strict=True)])
    found = motion(fit, optimizer).update_rms * np.sqrt(sum(w.size for w in weights))
    assert 1 / (1 + tolerance) < found / moved < 1 + tolerance


@not_compiled
def test_gradients_are_taken_from_the_last_step_or_from_second_moments_or_not_at_all():
    fit = after_an_epoch(Adam(0.01), known=True)
    size = np.sqrt(sum(w.size for w in fit.model.get_weights()))
    present = motion(fit, fit.model.optimizer)
    assert present.gradient_rms == pytest.approx(fit.last_values["grad_norm"] / size)
    assert 0 < present.steady < 1
    fit.last_values = {}
    assert motion(fit, fit.model.optimizer).gradient_source == "its second moments"
    fit = after_an_epoch(SGD(0.1), known=True)
    assert "rate times the gradient" in motion(fit, fit.model.optimizer).update_source
    fit.last_values = {}
    assert motion(fit, fit.model.optimizer).update_source == "as measured in step 6"
    fit.sampled_update = None
    present = motion(fit, fit.model.optimizer)
    assert present.update_rms is None and present.gradient_rms is None


@not_compiled
def test_swats_rate_is_the_projection_of_adams_step_on_the_gradient():
    fit = after_an_epoch(Adam(0.01))
    adam = fit.model.optimizer
    flat = lambda slots: np.concatenate([keras.ops.convert_to_numpy(s.value).ravel() for s in slots])  # noqa: E731
    mean = flat(adam._momentums) / (1 - 0.9**STEPS)
    step = -0.01 * mean / (np.sqrt(flat(adam._velocities) / (1 - 0.999**STEPS)) + 1e-7)
    assert motion(fit, adam).swats_rate == pytest.approx(step @ step / -(step @ mean), rel=1e-3)


@not_compiled
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("steady", [0.0, 0.3, 1.0])
def test_momentum_gathers_what_is_steady_and_less_of_noise(steady, nesterov):
    """Against a simulation of the rule."""
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], 4000)
    gathered, update = np.zeros(4000), np.zeros(4000)
    for _ in range(60):
        gradient = np.sqrt(steady) * signs + np.sqrt(1 - steady) * rng.normal(size=4000)
        gathered = 0.8 * gathered + gradient
        update = 0.8 * gathered + gradient if nesterov else gathered
    found = _gathered(0.8, steady, nesterov=nesterov)
    assert found == pytest.approx(np.sqrt(np.mean(update**2)), rel=0.05)


@not_compiled
def test_a_large_weight_is_sampled_evenly_over_its_columns():
    columns = np.tile(np.arange(1024, dtype="float32"), (512, 1))
    found = _sample(keras.Variable(columns))
    assert len(found) < 2**17 and found.std() == pytest.approx(columns.std(), rel=0.02)


def lines(reply, topic: str) -> str:
    return "\n".join(line.text for line in reply.plan if line.topic == topic)


def test_the_plan_says_what_goes_over_what_is_lost_and_who_decides_the_rate():
    old = Adam(CosineDecay(0.1, 20), clipnorm=0.5, gradient_accumulation_steps=2, use_ema=True)
    old.exclude_from_weight_decay(var_names=["bias"])
    swap = keras.callbacks.SwapEMAWeights()
    rates = keras.callbacks.ReduceLROnPlateau("loss")
    script = {
        5: [
            "optimizer sgd momentum=0.9 --dry-run",
            "optimizer adamw learning_rate=match gradient_accumulation_steps=none --dry-run",
            "optimizer adafactor learning_rate=10 --dry-run",
            "accumulate 4 --dry-run",
            "set beta_1=0.5 --dry-run",
            "set beta_1=0.9 --dry-run",
        ]
    }
    model, fit = steered(old, script, epochs=1, callbacks=[swap, rates], **QUICK)
    assert model.optimizer is old and fit.traces == 0
    assert [r.status for r in fit.replies] == ["planned"] * 6, fit.replies
    sgd, adamw, adafactor, accumulate, beta, nothing = fit.replies
    assert "clipnorm 0.5" in lines(sgd, "keeps") and "accumulated over 1 batch" in lines(sgd, "keeps")
    assert "excluded from weight decay" in lines(sgd, "keeps")
    assert "momentum, velocity of 2 updates; sgd begins with none" in lines(sgd, "resets")
    assert "moving averages of the weights start anew" in lines(sgd, "resets")
    assert "decided by CosineDecay; CosineDecay goes on from its step 5" in lines(sgd, "rate")
    assert "sgd moves them as far at learning_rate" in lines(sgd, "rate")
    assert "SWATS" in lines(sgd, "rate") and "SWATS" not in lines(adamw, "rate")
    assert "updates grow over about 10 steps" in lines(sgd, "warning")
    assert "ReduceLROnPlateau may set the rate again" in lines(sgd, "warning")
    assert "SwapEMAWeights" in lines(sgd, "warning")
    assert lines(sgd, "recompiles") == "the train step is traced anew"
    assert "CosineDecay no longer decides" in lines(adamw, "rate")
    assert "accumulated over the last 1 batch are dropped" in lines(adamw, "resets")
    assert "weight_decay none → 0.004" in lines(adamw, "warning")
    assert "Adafactor never steps faster" in lines(adafactor, "warning")
    assert "times as far as now" in lines(adafactor, "warning")
    assert lines(accumulate, "does") == "gradient_accumulation_steps 2 → 4"
    assert "accumulated over 1 batch" in lines(accumulate, "keeps")
    assert "counts batches, not updates" in lines(accumulate, "warning")
    assert lines(beta, "does") == "beta_1 0.9 → 0.5"
    assert [line.text for line in nothing.plan] == ["nothing: beta_1=0.9 already"]


@not_compiled
def test_what_cannot_be_estimated_is_said_and_match_is_refused():
    tried = ["optimizer sgd learning_rate=match", "optimizer sgd --dry-run"]
    script = {0: tried, 4: ["optimizer adadelta learning_rate=match", "optimizer ftrl learning_rate=match"]}
    model, fit = steered(Adam(0.01), script, epochs=1, **QUICK)
    assert [r.status for r in fit.replies] == ["refused", "planned", "refused", "refused"]
    assert "no update was made yet" in fit.replies[0].reason
    assert "cannot be estimated: no update was made yet" in lines(fit.replies[1], "rate")
    assert "first updates of Adadelta" in fit.replies[2].reason
    assert type(model.optimizer).__name__ == "Adam"


@not_compiled
def test_clipping_of_the_new_optimizer_bounds_what_is_expected_of_it():
    fit = after_an_epoch(Adam(0.01))
    present = motion(fit, fit.model.optimizer)

    def rate(**clipping) -> float:
        cls = optimizers.SGD
        new = prepare(fit.model, fit.model.optimizer, cls, {"learning_rate": 1.0, **clipping}).inner
        return equivalent_rate(present, new, fit.model.trainable_variables)

    assert rate(clipvalue=present.gradient_rms / 10) == pytest.approx(10 * rate())
    assert rate(global_clipnorm=1e9) == rate(clipnorm=1e9) == rate()


@not_compiled
def test_how_long_the_last_trace_took_is_said():
    model = dense_model()
    model.compile(SGD(0.1), "mse", **QUICK)
    fit = SteeredFit({3: ["optimizer adam --dry-run"]})
    fit.trace_seconds = 2.5
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[fit])
    assert "the last time, that step took 2.5 s" in lines(fit.replies[0], "recompiles")
