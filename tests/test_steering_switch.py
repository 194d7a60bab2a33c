"""The optimizer is switched while a real `fit` runs: everything around it is kept, and there is a way back."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adam, AdamW
from keras.optimizers.schedules import CosineDecay

from client_callback.steering.optimizers import optimizer_catalogue
from client_callback.wire.protocol import OptimizerChanged, StateChanged
from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    SteeredFit,
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

SWITCHED = 5
"""The first step that runs with the other optimizer."""


def then(first: keras.optimizers.Optimizer, second: keras.optimizers.Optimizer, at: int = SWITCHED):
    return lambda step: second if step >= at else first


@pytest.mark.parametrize(
    "how",
    {
        "tensorflow": [{}, {"jit_compile": True}, {"run_eagerly": True}],
        "jax": [{}],
        "torch": [{}],
    }[BACKEND],
    ids=str,
)
def test_the_new_optimizer_trains_from_exactly_the_step_the_reply_names(how):
    script = {SWITCHED: ["optimizer SGD learning_rate=0.05 momentum=0.9"]}
    model, fit = steered(Adam(0.01), script, **how)
    (reply,) = fit.replies
    assert (reply.status, reply.step, reply.reason) == ("applied", SWITCHED, ""), reply
    assert reply.before["optimizer"] == "adam" and reply.before["learning_rate"] == 0.01
    assert reply.after["optimizer"] == "sgd" and reply.after["learning_rate"] == 0.05
    assert reply.after["momentum"] == 0.9 and reply.before["beta_1"] == 0.9
    assert "clipnorm" not in reply.after  # the same on both sides
    expected = looped(then(Adam(0.01), SGD(0.05, momentum=0.9)))
    # XLA and graph round differently, and the first Adam steps divide by small numbers.
    assert_same_weights(model, expected, 1e-5)


def test_an_optimizer_of_the_same_shape_takes_over_although_the_old_train_function_is_still_held():
    """JAX would take its trace, in which the old one's `beta_1` is a number."""
    model, fit = steered(Adam(0.01), {SWITCHED: ["optimizer adam learning_rate=0.01 beta_1=0.3"]})
    assert fit.held[0] is not None and fit.replies[0].status == "applied"
    assert_same_weights(model, looped(then(Adam(0.01), Adam(0.01, beta_1=0.3))), 1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="there, traces are kept by the function")
def test_a_train_step_put_on_the_model_itself_is_traced_anew_too():
    model = dense_model()
    traced, original = [], model.train_step
    model.train_step = lambda *given: traced.append(fit.step) or original(*given)
    model.compile(Adam(0.01), "mse")
    fit = SteeredFit({3: ["optimizer adam beta_1=0.3"], SWITCHED: ["undo settings"]})
    fit.callbacks = [fit]
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[fit])
    assert traced == [0, 3, SWITCHED]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes one step per execution on torch")
def test_with_several_steps_per_execution_the_switch_comes_between_executions():
    model, _ = steered(Adam(0.01), {4: ["optimizer sgd learning_rate=0.05"]}, steps_per_execution=4)
    assert_same_weights(model, looped(then(Adam(0.01), SGD(0.05), at=4)), 1e-5)


@not_compiled
def test_the_first_update_after_a_switch_is_that_of_a_fresh_adam():
    """Were `iterations` copied, bias correction would make it several times as large."""
    weights = {}

    class Weights(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights[int(batch)] = np.concatenate([w.ravel() for w in self.model.get_weights()])

    model, _ = steered(
        SGD(1e-3), {SWITCHED: ["optimizer adam learning_rate=0.01"]}, epochs=1, callbacks=[Weights()]
    )
    largest = np.abs(weights[SWITCHED] - weights[SWITCHED - 1]).max()
    assert largest == pytest.approx(0.01, rel=1e-2)
    assert int(model.optimizer.iterations) == STEPS - SWITCHED


@not_compiled
def test_without_a_learning_rate_the_new_optimizers_own_default_is_used_and_named():
    _, fit = steered(Adam(0.5), {SWITCHED: ["optimizer sgd"]}, read_rates=True)
    assert fit.replies[0].after["learning_rate"] == 0.01
    assert fit.rates[-1] == pytest.approx(0.01)


def test_without_a_learning_rate_a_schedule_goes_on_where_it_was():
    def cosine():
        return CosineDecay(0.1, 20)

    script = {SWITCHED: ["lr x0.5", "optimizer sgd momentum=0.5"], 9: ["lr x2"], 12: ["lr 0.004"]}
    model, fit = steered(SGD(cosine()), script, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied"] * 4, fit.replies
    assert "CosineDecay goes on from its step 5 in this fit" in fit.replies[1].reason
    assert fit.replies[1].before["learning_rate"] == fit.replies[1].after["learning_rate"]
    schedule = cosine()
    factors = [1.0] * 5 + [0.5] * 4 + [1.0] * 3
    rates = [float(schedule(step)) * factor for step, factor in enumerate(factors)] + [0.004] * 4
    np.testing.assert_allclose(fit.rates, rates, rtol=1e-5)
    expected = looped(then(SGD(0.1), SGD(0.1, momentum=0.5)), lambda step: rates[step])
    assert_same_weights(model, expected)


@not_compiled
def test_a_learning_rate_given_ends_the_schedule_and_says_so():
    script = {SWITCHED: ["optimizer adam learning_rate=1", "lr 0.01"]}
    _, fit = steered(SGD(CosineDecay(0.1, 20)), script, read_rates=True)
    assert "CosineDecay no longer decides" in fit.replies[0].reason
    assert fit.replies[0].after["learning_rate"] == 1.0  # a whole number where Keras wants a float
    assert fit.rates[-1] == pytest.approx(0.01)


@not_compiled
def test_an_optimizer_that_caps_the_rate_itself_says_so():
    _, fit = steered(SGD(0.1), {SWITCHED: ["optimizer adafactor"], 6: ["lr 0.9"]}, epochs=1)
    assert all("Adafactor never steps faster than 1/√step" in reply.reason for reply in fit.replies)


@not_compiled
def test_two_switches_in_a_row_keep_the_schedules_place():
    script = {3: ["optimizer adam"], 7: ["optimizer sgd"]}
    _, fit = steered(SGD(CosineDecay(0.1, 20)), script, read_rates=True)
    schedule = CosineDecay(0.1, 20)
    np.testing.assert_allclose(fit.rates, [float(schedule(step)) for step in range(16)], rtol=1e-5)


def test_every_optimizer_of_the_catalogue_can_be_switched_to_and_saved(tmp_path):
    names = sorted(optimizer_catalogue())
    saved = []

    class Saves(keras.callbacks.Callback):
        """After the first step of each."""

        def on_train_batch_end(self, batch, logs=None):
            if len(saved) < len(names):
                saved.append(type(self.model.optimizer).__name__.lower())
                assert all(np.isfinite(w).all() for w in self.model.get_weights())
                reload_and_compare(self.model, tmp_path / "model.keras")

    script = {step: [f"optimizer {name}"] for step, name in enumerate(names)}
    _, fit = steered(Adam(0.01), script, epochs=2, callbacks=[Saves()])
    assert [reply.status for reply in fit.replies] == ["applied"] * len(names), fit.replies
    assert saved == names


def reload_and_compare(model: keras.Model, path) -> keras.Model:
    """Saves, loads with warnings as errors, and compares optimizer and state."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, about TensorFlow
        model.save(path)
        loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for a, b in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a.value, b.value)))
    return loaded


def test_a_file_saved_after_the_switch_goes_on_with_the_live_optimizer(tmp_path):
    model, _ = steered(Adam(0.01), {SWITCHED: ["optimizer adamw weight_decay=0.1 amsgrad=true"]})
    loaded = reload_and_compare(model, tmp_path / "model.keras")
    for one in (model, loaded):
        one.fit(X, Y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    assert_equal_weights(model, loaded)


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("mixed_float16")
def test_mixed_precision_keeps_its_loss_scaling_its_scale_and_its_counter(tmp_path):
    seen = {}

    class Scale(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            scaler = self.model.optimizer
            if batch == 2:
                scaler.dynamic_scale.assign(64.0)
            if batch == SWITCHED:
                seen["before"] = (float(scaler.dynamic_scale), int(scaler.step_counter))

    model, fit = steered(
        SGD(0.01), {SWITCHED: ["optimizer adam learning_rate=0.02"]}, epochs=1, callbacks=[Scale()]
    )
    assert fit.replies[0].status == "applied", fit.replies
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, Adam)
    assert seen["before"] == (64.0, SWITCHED)
    assert float(model.optimizer.dynamic_scale) == 64.0
    assert int(model.optimizer.step_counter) == STEPS
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
    reload_and_compare(model, tmp_path / "model.keras")


@pytest.mark.usefixtures("mixed_float16")
def test_a_switch_before_the_very_first_step_works_although_nothing_is_built_yet(tmp_path):
    model, fit = steered(
        SGD(0.01, gradient_accumulation_steps=2), {0: ["optimizer adam"]}, epochs=1, unbuilt=True
    )
    assert fit.replies[0].status == "applied", fit.replies
    from_the_start, _ = steered(Adam(gradient_accumulation_steps=2), {}, epochs=1)
    assert_equal_weights(model, from_the_start)
    reload_and_compare(model, tmp_path / "model.keras")


@not_compiled
@pytest.mark.usefixtures("mixed_float16")
def test_a_loss_scale_of_ones_own_is_refused_where_keras_scales_the_loss():
    _, fit = steered(SGD(0.01), {2: ["optimizer adam loss_scale_factor=8"]}, epochs=1)
    assert fit.replies[0].status == "refused"
    assert "already scales the loss" in fit.replies[0].reason


def test_a_loss_scaler_given_to_compile_is_kept_with_its_settings(tmp_path):
    scaler = keras.optimizers.LossScaleOptimizer(SGD(0.01), initial_scale=32.0, dynamic_growth_steps=9)
    model, _ = steered(scaler, {SWITCHED: ["optimizer adam"]})
    assert model.optimizer is not scaler
    assert (model.optimizer.initial_scale, model.optimizer.dynamic_growth_steps) == (32.0, 9)
    assert (
        float(model.optimizer.dynamic_scale) == 64.0
    )  # grown once, after nine steps, counted over the switch
    reload_and_compare(model, tmp_path / "model.keras")


@pytest.mark.parametrize(
    "at", [4, 7] if BACKEND == "jax" else [4, 5, 6, 7]
)  # there a step takes long to compile
def test_a_switch_within_an_accumulation_loses_no_gradient(at):
    """Exactly as if the whole of the running accumulation had been the new optimizer's."""
    old = SGD(CosineDecay(0.1, 20), gradient_accumulation_steps=4)
    model, fit = steered(old, {at: ["optimizer sgd momentum=0.9 clipnorm=0.5"]}, read_rates=True)
    assert fit.replies[0].status == "applied" and "dropped" not in fit.replies[0].reason
    assert model.optimizer.gradient_accumulation_steps == 4
    schedule = CosineDecay(0.1, 20)
    np.testing.assert_allclose(fit.rates, [float(schedule(step)) for step in range(16)], rtol=1e-5)
    first = SGD(0.1, gradient_accumulation_steps=4)
    second = SGD(0.1, momentum=0.9, clipnorm=0.5, gradient_accumulation_steps=4)
    assert_same_weights(model, looped(then(first, second, at=4), lambda step: float(schedule(step))))


@not_compiled
def test_accumulated_gradients_are_dropped_aloud_when_the_new_length_has_passed_already():
    old = SGD(0.1, gradient_accumulation_steps=4)
    _, fit = steered(
        old,
        {
            7: ["optimizer sgd gradient_accumulation_steps=2"],
            9: ["optimizer sgd gradient_accumulation_steps=none"],
        },
    )
    assert "accumulated over the last 3 batches are dropped" in fit.replies[0].reason
    assert fit.replies[0].before["gradient_accumulation_steps"] == 4
    assert fit.replies[0].after["gradient_accumulation_steps"] == 2
    assert fit.replies[1].after["gradient_accumulation_steps"] is None


def test_clipping_decay_exclusions_and_averages_are_carried_over():
    old = AdamW(
        0.01,
        global_clipnorm=0.7,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=5,
        loss_scale_factor=4.0,
    )
    old.exclude_from_weight_decay(var_names=["bias"])
    model, fit = steered(old, {SWITCHED: ["optimizer sgd weight_decay=0.01"]})
    new = model.optimizer
    assert new is not old and new.global_clipnorm == 0.7 and new.loss_scale_factor == 4.0
    assert (new.use_ema, new.ema_momentum, new.ema_overwrite_frequency) == (True, 0.9, 5)
    decayed = [v.name for v in model.trainable_variables if new._use_weight_decay(v)]
    assert decayed == ["kernel", "kernel"]
    assert "moving averages of the weights start anew" in fit.replies[0].reason


@not_compiled
def test_another_kind_of_clipping_replaces_the_old_one():
    model, fit = steered(
        SGD(0.1, clipnorm=1.0), {SWITCHED: ["optimizer sgd clipvalue=0.5", "optimizer sgd clipvalue=none"]}
    )
    assert [r.status for r in fit.replies] == ["applied", "applied"]
    assert fit.replies[0].after["clipnorm"] is None and fit.replies[0].after["clipvalue"] == 0.5
    assert model.optimizer.clipnorm is None and model.optimizer.clipvalue is None


@pytest.mark.skipif(BACKEND == "torch", reason="there it asks for the batch before it begins one")
def test_averages_are_never_zeros_even_when_no_step_follows_the_switch():
    """A dataset of unknown length calls `on_train_batch_begin` once more than it has batches."""

    def batches():
        for first in range(0, len(X), BATCH):
            yield X[first : first + BATCH], Y[first : first + BATCH]

    model = dense_model()
    model.compile(SGD(0.01, use_ema=True), "mse")
    fit = SteeredFit({STEPS: ["optimizer adam"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(batches(), epochs=1, verbose=0, callbacks=[fit])
    assert [r.status for r in fit.replies] == ["applied"] and fit.step == STEPS
    assert all(np.abs(w).max() > 0 for w in model.get_weights()[::2])


@not_compiled
def test_averages_that_another_callback_needs_cannot_be_switched_off():
    swap = keras.callbacks.SwapEMAWeights()
    _, fit = steered(
        SGD(0.1, use_ema=True),
        {SWITCHED: ["optimizer adam use_ema=false", "optimizer adam"]},
        callbacks=[swap],
    )
    assert fit.replies[0].status == "refused" and "SwapEMAWeights" in fit.replies[0].reason
    assert fit.replies[1].status == "applied"


def test_an_embeddings_sparse_gradients_reach_the_new_optimizer():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(SGD(0.1), "mse")
    fit = SteeredFit({2: ["optimizer adam"], 4: ["optimizer rmsprop"], 6: ["optimizer lion"]})
    model.fit(np.arange(192).reshape(64, 3) % 9, Y, batch_size=8, epochs=1, verbose=0, callbacks=[fit])
    assert [r.status for r in fit.replies] == ["applied"] * 3, fit.replies


@not_compiled
def test_a_recompiling_event_comes_before_and_the_new_optimizer_after():
    _, fit = steered(Adam(0.01), {SWITCHED: ["optimizer sgd"]})
    recompiling, changed = (e for e in fit.events if isinstance(e, StateChanged | OptimizerChanged))
    assert isinstance(recompiling, StateChanged) and recompiling.state == "recompiling"
    assert isinstance(changed, OptimizerChanged) and changed.optimizer.name == "sgd"
    assert (changed.step, changed.time) == (SWITCHED, 1.0)


@not_compiled
def test_after_a_switch_while_paused_the_state_is_paused_again():
    _, fit = steered(Adam(0.01), {SWITCHED: ["pause", "optimizer sgd", "resume"]})
    states = [event.state for event in fit.events if isinstance(event, StateChanged)]
    assert states == ["recompiling", "paused"]


WRONG = {
    "optimizer adam ema_overwrite_frequency=" + "9" * 30: "below 2^53",
    "optimizer adamm": "no optimizer 'adamm'; possible: adadelta, adafactor",
    "optimizer lossscaleoptimizer": "possible: adadelta",
    "optimizer multioptimizer": "possible: adadelta",
    "optimizer sgd beta_1=0.9": "sgd has no argument 'beta_1'; possible: learning_rate, momentum, nesterov",
    "optimizer sgd momentum=lots": "momentum must be a number, received 'lots'",
    "optimizer sgd momentum=2": "`momentum` must be a float between [0, 1]",
    "optimizer sgd momentum=none": "momentum must be a number, received None",
    "optimizer sgd nesterov=1": "nesterov must be true or false, received 1",
    "optimizer adam beta_1=true": "beta_1 must be a number, received True",
    "optimizer adam beta_2=1": "beta_2 must be at least 0 and below 1",
    "optimizer adam epsilon=nan": "epsilon must be finite",
    "optimizer adam learning_rate=fast": "learning_rate must be a number",
    "optimizer adam learning_rate=0": "the learning rate would be 0",
    "optimizer adam learning_rate=-1": "the learning rate would be -1",
    "optimizer adam learning_rate=inf": "the learning rate would be inf",
    "optimizer adam learning_rate=none": "learning_rate must be a number",
    "optimizer adam learning_rate=1" + "0" * 400: "the learning rate would be inf",
    "optimizer adamw weight_decay=none": "`weight_decay` must be a float",
    "optimizer adam clipnorm=-1": "clipnorm must be positive",
    "optimizer adam clipnorm=1 clipvalue=1": "Only one of `clipnorm`",
    "optimizer adam gradient_accumulation_steps=1": "must be an integer >= 2",
    "optimizer adam gradient_accumulation_steps=2.5": "must be a whole number or none",
    "optimizer adam ema_momentum=3 use_ema=true": "`ema_momentum` must be in the range",
    "optimizer adam name=5": "name must be text or none",
}


def test_wrong_commands_leave_weights_optimizer_and_rate_untouched_and_say_what_is_possible():
    optimizer = Adam(0.01)
    model, fit = steered(optimizer, {SWITCHED: list(WRONG)})
    for reply, says in zip(fit.replies, WRONG.values(), strict=True):
        assert reply.status == "refused" and says in reply.reason, reply
        assert not reply.before and not reply.after
    assert model.optimizer is optimizer and fit.traces == 0
    assert not [e for e in fit.events if isinstance(e, StateChanged | OptimizerChanged)]
    plain, _ = steered(Adam(0.01), {})
    assert_equal_weights(model, plain)


def failing_build(monkeypatch):
    monkeypatch.setattr(SGD, "build", lambda *_: (_ for _ in ()).throw(MemoryError("no room for the slots")))


def failing_trace(monkeypatch):
    fails = lambda *_: keras.ops.reshape(keras.ops.zeros(3), (2,))  # noqa: E731
    monkeypatch.setattr(type(SGD()), "_backend_update_step", fails)


def failing_verification(monkeypatch):
    monkeypatch.setattr("client_callback.steering.switch.read_rate", lambda _: float("nan"))


@pytest.mark.parametrize("fails", [failing_build, failing_trace, failing_verification])
@pytest.mark.parametrize(
    "rate", [0.01, CosineDecay(0.01, 20)][BACKEND == "jax" :], ids=lambda rate: type(rate).__name__
)
def test_when_a_switch_fails_the_old_optimizer_trains_on_as_if_nothing_had_been_sent(
    fails, rate, tmp_path, monkeypatch
):
    optimizer = Adam(rate)
    fails(monkeypatch)
    model, fit = steered(optimizer, {SWITCHED: ["optimizer sgd momentum=0.9"], 9: ["lr x0.5"]})
    failed, applied = fit.replies
    assert failed.status == "failed" and failed.reason, failed
    assert applied.status == "applied"
    assert model.optimizer is optimizer
    monkeypatch.undo()
    plain, _ = steered(Adam(rate), {9: ["lr x0.5"]})
    assert_equal_weights(model, plain)
    reload_and_compare(model, tmp_path / "model.keras")


def test_when_the_exchange_itself_fails_the_error_is_told_and_the_state_is_running_again():
    class FailsOnce(SteeredFit):
        failures = 1

        def rebuild(self, change):
            change()
            if self.failures:
                self.failures -= 1
                raise RuntimeError("the instrument does not fit")
            self.model.make_train_function(force=True)

    model = dense_model()
    optimizer = Adam(0.01)
    model.compile(optimizer, "mse")
    fit = FailsOnce({SWITCHED: ["optimizer sgd"]})
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    assert fit.replies[0].status == "failed"
    assert "RuntimeError: the instrument does not fit" in fit.replies[0].reason
    assert [e.state for e in fit.events if isinstance(e, StateChanged)] == ["recompiling", "running"]
    assert model.optimizer is optimizer and model._compile_config.config["optimizer"] is optimizer
    plain, _ = steered(Adam(0.01), {})
    assert_equal_weights(model, plain)


@not_compiled
def test_a_multi_optimizer_is_not_replaced_by_one_for_all():
    by_layer = keras.optimizers.OptimizerMap(SGD(0.1), {".*bias": Adam(0.1)})
    _, fit = steered(keras.optimizers.MultiOptimizer(by_layer), {SWITCHED: ["optimizer adam"]})
    assert fit.replies[0].status == "refused" and "each variable its own" in fit.replies[0].reason


class Custom(keras.Model):
    """A train step of one's own, as Keras' guides write it for each backend."""

    def __init__(self):
        super().__init__()
        self.body = dense_model()

    def call(self, x):
        return self.body(x)

    def train_step(self, *args):
        return {
            "tensorflow": self.on_tensorflow,
            "jax": self.on_jax,
            "torch": self.on_torch,
        }[BACKEND](*args)

    def on_tensorflow(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - self(x)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}

    def on_jax(self, state, batch):
        import jax

        trainable, other, slots, metrics = state
        x, y = batch

        def loss_of(weights):
            return keras.ops.mean((y - self.stateless_call(weights, other, x)[0]) ** 2)

        loss, found = jax.value_and_grad(loss_of)(trainable)
        trainable, slots = self.optimizer.stateless_apply(slots, found, trainable)
        return {"loss": loss}, (trainable, other, slots, metrics)

    def on_torch(self, batch):
        import torch

        x, y = batch
        self.zero_grad()
        loss = torch.mean((y - self(x)) ** 2)
        loss.backward()
        with torch.no_grad():
            weights = self.trainable_variables
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
        return {"loss": loss}


@pytest.mark.parametrize("rate", [0.01, CosineDecay(0.01, 1000, alpha=1.0)], ids=["constant", "schedule"])
def test_a_custom_train_step_trains_with_the_new_optimizer(rate):
    script = {SWITCHED: ["optimizer sgd learning_rate=0.05"]}
    model, fit = steered(Adam(rate), script, model=Custom())
    assert fit.replies[0].status == "applied"
    assert_same_weights(model, looped(then(Adam(0.01), SGD(0.05))), 1e-5)


@not_compiled
def test_an_optimizer_of_the_users_own_can_be_named_once_registered():
    @keras.saving.register_keras_serializable("tests")
    class Halving(SGD):
        def __init__(self, learning_rate=0.04, strength=0.5, **rest):
            super().__init__(learning_rate, **rest)
            self.strength = strength

        def get_config(self):
            return {**super().get_config(), "strength": self.strength}

    try:
        assert optimizer_catalogue()["halving"][:3] == ("learning_rate", "strength", "momentum")
        _, fit = steered(Adam(0.01), {SWITCHED: ["optimizer halving strength=0.25 momentum=0.5"]})
        assert fit.replies[0].after["strength"] == 0.25 and fit.replies[0].after["learning_rate"] == 0.04
    finally:
        keras.saving.get_custom_objects().clear()
