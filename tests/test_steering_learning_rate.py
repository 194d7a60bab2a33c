"""The learning rate is changed while a real `fit` runs, and takes effect at the very step the reply names."""

from __future__ import annotations

import pickle

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from client_callback.wire.protocol import OptimizerChanged, Problem
from tests.steered_fit import (
    BACKEND,
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

CHANGED = 5
"""The first step that runs with another rate."""

WAYS = pytest.mark.parametrize(
    "how",
    {
        "tensorflow": [{}, {"jit_compile": True}, {"run_eagerly": True}],
        "jax": [{}, {"run_eagerly": True}],
        "torch": [{}],
    }[BACKEND],
    ids=str,
)


def cosine() -> CosineDecay:
    return CosineDecay(0.1, 20)


def cosine_at(step: int) -> float:
    return 0.1 * 0.5 * (1 + np.cos(np.pi * min(step, 20) / 20))


@WAYS
def test_a_plain_rate_changes_at_exactly_the_step_the_reply_names(how):
    model, fit = steered(SGD(0.1), {CHANGED: ["lr 0.02"]}, **how)
    (reply,) = fit.replies
    assert (reply.status, reply.step) == ("applied", CHANGED)
    assert reply.before == {"learning_rate": 0.1} and reply.after == {"learning_rate": 0.02}
    expected = looped(always(SGD(0.1)), lambda step: 0.02 if step >= CHANGED else 0.1)
    assert_same_weights(model, expected)


@WAYS
def test_under_a_schedule_a_set_rate_replaces_it_and_says_so(how):
    model, fit = steered(SGD(cosine()), {CHANGED: ["lr 0.02"]}, **how)
    (reply,) = fit.replies
    assert reply.status == "applied", reply
    assert reply.before["learning_rate"] == pytest.approx(cosine_at(CHANGED), rel=1e-6)
    assert reply.after == {"learning_rate": 0.02}
    assert "CosineDecay no longer decides" in reply.reason
    expected = looped(always(SGD(0.1)), lambda step: 0.02 if step >= CHANGED else cosine_at(step))
    assert_same_weights(model, expected)


@WAYS
def test_under_a_schedule_scaling_keeps_its_shape_and_adds_up(how):
    model, fit = steered(SGD(cosine()), {CHANGED: ["lr x0.5"], 9: ["lr /2"]}, **how)
    assert [reply.status for reply in fit.replies] == ["applied", "applied"]
    assert "CosineDecay keeps its shape, times 0.25" in fit.replies[1].reason
    factors = [1.0] * CHANGED + [0.5] * (9 - CHANGED) + [0.25] * 16
    expected = looped(always(SGD(0.1)), lambda step: cosine_at(step) * factors[step])
    assert_same_weights(model, expected)


@not_compiled
def test_scaling_a_rate_that_replaced_a_schedule_scales_that_rate():
    _, fit = steered(SGD(cosine()), {CHANGED: ["lr 0.02", "lr x3"]}, read_rates=True)
    assert fit.replies[1].after == {"learning_rate": pytest.approx(0.06, rel=1e-6)}
    assert fit.rates[-1] == pytest.approx(0.06, rel=1e-6)


def test_a_callable_is_replaced_and_scaled_like_a_schedule():
    def one_tenth():
        return 0.1

    model, fit = steered(SGD(one_tenth), {CHANGED: ["lr x0.5"], 9: ["lr 0.02"]})
    assert [reply.status for reply in fit.replies] == ["applied", "applied"]
    assert "one_tenth no longer decides" in fit.replies[1].reason
    rates = [0.1] * CHANGED + [0.05] * (9 - CHANGED) + [0.02] * 16
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes one step per execution on torch")
@pytest.mark.parametrize("rate", [0.01, cosine()], ids=["constant", "schedule"])
def test_with_several_steps_per_execution_the_change_starts_with_the_next_execution(rate):
    model, fit = steered(SGD(rate), {4: ["lr 0.02"]}, steps_per_execution=4)
    assert fit.replies[0].step == 4
    own = (lambda _: 0.01) if rate == 0.01 else cosine_at
    expected = looped(always(SGD(0.1)), lambda step: 0.02 if step >= 4 else own(step))
    assert_same_weights(model, expected)


@pytest.mark.parametrize("rate", [0.05, cosine()], ids=["constant", "schedule"])
def test_under_mixed_precision_the_optimizer_inside_the_loss_scaler_is_steered(rate):
    with_scaler = dense_model(dtype=keras.DTypePolicy("mixed_float16"))
    scaler = keras.optimizers.LossScaleOptimizer(SGD(rate), initial_scale=128.0)
    script = {CHANGED: ["lr 0.02"], 9: ["lr x0.5"]}
    _, fit = steered(scaler, script, model=with_scaler, read_rates=True)
    assert [reply.status for reply in fit.replies] == ["applied", "applied"], fit.replies
    assert fit.rates[CHANGED:9] == pytest.approx([0.02] * 4)
    assert fit.rates[9:] == pytest.approx([0.01] * 7)


def test_with_gradient_accumulation_the_rate_counts_at_the_update():
    model, fit = steered(SGD(cosine(), gradient_accumulation_steps=4), {6: ["lr 0.02"]})
    assert fit.replies[0].status == "applied"
    accumulating = SGD(0.1, gradient_accumulation_steps=4)
    expected = looped(lambda _: accumulating, lambda step: 0.02 if step >= 6 else cosine_at(step))
    assert_same_weights(model, expected)


def test_every_optimizer_of_a_multi_optimizer_is_steered():
    optimizers = [SGD(0.1, name="body"), SGD(cosine(), name="head")]
    by_layer = keras.optimizers.OptimizerMap(optimizers[0], {".*bias": optimizers[1]})
    _, fit = steered(keras.optimizers.MultiOptimizer(by_layer), {CHANGED: ["lr x0.5"], 7: ["lr 0.02"]})
    first, second = fit.replies
    assert first.status == second.status == "applied", fit.replies
    assert first.before == {
        "learning_rate_body": 0.1,
        "learning_rate_head": pytest.approx(cosine_at(CHANGED)),
    }
    assert first.after["learning_rate_body"] == pytest.approx(0.05)
    assert second.after == {"learning_rate_body": 0.02, "learning_rate_head": 0.02}


@pytest.mark.parametrize("how", [{}, *([{"jit_compile": True}] if BACKEND == "tensorflow" else [])], ids=str)
def test_an_untouched_run_under_a_schedule_is_bit_identical_to_one_without_steering(how):
    model, _ = steered(Adam(cosine()), {}, unbuilt=True, **how)
    plain = dense_model()
    plain.compile(Adam(cosine()), "mse", **how)
    plain.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_equal_weights(model, plain)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced there")
def test_a_change_under_a_schedule_needs_no_new_trace():
    model, traces = dense_model(), []
    original = model.train_step
    model.train_step = lambda *args: traces.append(1) or original(*args)
    script = {CHANGED: ["lr 0.02"], 7: ["lr x0.5"], 9: ["lr 0.3"]}
    _, fit = steered(SGD(cosine()), script, model=model)
    assert [reply.status for reply in fit.replies] == ["applied"] * 3
    assert len(traces) == 1 and fit.traces == 0


def test_while_it_runs_the_control_is_in_no_configuration_and_no_file(tmp_path):
    class Keeper(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.config = self.model.optimizer.get_config()
            self.paths = [variable.path for variable in self.model.optimizer.variables]
            self.model.save(tmp_path / f"{epoch}.keras")

    keeper, plain = Keeper(), Keeper()
    steered(Adam(cosine(), name="adam"), {CHANGED: ["lr 0.02"]}, callbacks=[keeper], unbuilt=True)
    reloaded = keras.models.load_model(tmp_path / "1.keras")
    reference = dense_model()
    reference.compile(Adam(cosine(), name="adam"), "mse")
    reference.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[plain])
    assert keeper.config == plain.config
    # On JAX the step sees no variable that the optimizer does not list: ours come last.
    ours = ["unstuck_rate_override", "unstuck_rate_multiplier", "unstuck_schedule_offset"]
    if BACKEND == "jax":
        assert keeper.paths[-3:] == ours
        del keeper.paths[-3:]
    # Layers are numbered anew for every model.
    assert [p.rpartition("_")[2] for p in keeper.paths] == [p.rpartition("_")[2] for p in plain.paths]
    assert isinstance(reloaded.optimizer._learning_rate, CosineDecay)
    assert int(reloaded.optimizer.iterations) == 2 * STEPS
    assert len(reloaded.optimizer.variables) == len(reference.optimizer.variables)


@pytest.mark.parametrize(
    "wrap", [lambda one: one, keras.optimizers.LossScaleOptimizer], ids=["bare", "scaled"]
)
def test_weights_saved_without_steering_are_loaded_in_the_middle_of_a_steered_fit(wrap, tmp_path):
    class Restores(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.load_weights(tmp_path / "plain.weights.h5")
                self.iterations = int(self.model.optimizer.iterations)

    model, restores = dense_model(), Restores()
    model.compile(wrap(Adam(cosine())), "mse")
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    model.save_weights(tmp_path / "plain.weights.h5")
    again, fit = steered(wrap(Adam(cosine())), {10: ["lr x0.5"]}, callbacks=[restores], read_rates=True)
    assert restores.iterations == STEPS
    assert fit.rates[STEPS:] == pytest.approx([cosine_at(s) * (1 if s < 10 else 0.5) for s in range(8, 16)])
    again.save_weights(tmp_path / "steered.weights.h5")
    model.load_weights(tmp_path / "steered.weights.h5")
    assert int(model.optimizer.iterations) == 2 * STEPS


def test_after_the_fit_the_model_is_as_if_it_had_never_been_steered(tmp_path):
    model, _ = steered(SGD(cosine(), momentum=0.9), {CHANGED: ["lr 0.5"]})
    plain = SGD(0.1)
    assert set(vars(model.optimizer)) <= {*vars(plain), "momentums"}
    assert not [v for v in model.optimizer.variables if "unstuck" in v.path]
    assert float(model.optimizer.learning_rate) == pytest.approx(cosine_at(16), rel=1e-5)
    pickled = pickle.loads(pickle.dumps(model))
    assert_equal_weights(pickled, model)
    keras.models.clone_model(model)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, reloaded):  # and the next fit, without steering, follows the schedule again
        one.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert_same_weights(model, reloaded)


def test_a_second_fit_of_an_already_compiled_model_can_be_steered_too():
    model = dense_model()
    model.compile(SGD(cosine()), "mse")
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    fit = SteeredFit({0: ["lr 0.02"]})
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=[fit])
    expected = looped(always(SGD(0.1)), lambda step: 0.02 if step >= STEPS else cosine_at(step))
    assert_same_weights(model, expected)


def test_steering_adds_no_variable_names_to_the_users_own():
    keras.utils.clear_session(free_memory=False)
    steered(SGD(cosine()), {})
    assert keras.Variable(0.0).name == "variable"


@not_compiled
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("lr 1e-60", "would be 1e-60"),
        ("lr 1e60", "would be 1e+60"),
        ("lr x1e-50", "would be"),
        ("lr x1e45", "would be"),
    ],
)
@pytest.mark.parametrize("rate", [0.1, cosine()], ids=["constant", "schedule"])
def test_a_rate_that_float32_cannot_hold_is_refused_and_changes_nothing(command, says, rate):
    model, fit = steered(SGD(rate), {CHANGED: [command]}, epochs=1)
    (reply,) = fit.replies
    assert reply.status == "refused" and says in reply.reason and "float32 holds" in reply.reason
    plain, _ = steered(SGD(rate), {}, epochs=1)
    assert_equal_weights(model, plain)


def test_scaling_a_schedule_that_has_reached_zero_is_refused_with_the_way_out():
    _, fit = steered(SGD(CosineDecay(0.1, 4)), {6: ["lr x2", "lr 0.01"]}, read_rates=True)
    assert fit.replies[0].status == "refused" and "lr VALUE" in fit.replies[0].reason
    assert fit.replies[1].status == "applied" and fit.rates[-1] == pytest.approx(0.01)


@not_compiled
def test_many_scalings_stop_before_the_multiplier_overflows():
    _, fit = steered(SGD(CosineDecay(1e-30, 100)), {1: ["lr x1e20"] * 4})
    assert [reply.status for reply in fit.replies] == ["applied", "refused", "refused", "refused"]


def test_a_schedule_assigned_in_the_middle_of_a_fit_is_steered_too():
    class AssignsSchedule(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 3:
                self.model.optimizer.learning_rate = CosineDecay(0.1, 20)

    model, fit = steered(SGD(0.1), {CHANGED: ["lr 0.02"], 8: ["lr x2"]}, callbacks=[AssignsSchedule()])
    assert [reply.status for reply in fit.replies] == ["applied", "applied"], fit.replies
    # TensorFlow goes on with the variable that the step was traced with.
    followed = [0.1, 0.1] if BACKEND == "tensorflow" else [cosine_at(step) for step in (3, 4)]
    rates = [0.1] * 3 + followed + [0.02] * 3 + [0.04] * 8
    assert_same_weights(model, looped(always(SGD(0.1)), lambda step: rates[step]))


@not_compiled
def test_the_event_tells_who_decides_the_rate_now():
    _, fit = steered(SGD(cosine()), {CHANGED: ["lr x0.5", "lr 0.02"]})
    kept, replaced = [event.optimizer for event in fit.events if isinstance(event, OptimizerChanged)]
    assert kept.schedule == "CosineDecay" and kept.settings["learning_rate"] == "CosineDecay"
    assert replaced.schedule is None and replaced.settings["learning_rate"] == 0.02


@not_compiled
def test_other_owners_of_the_rate_are_named_with_the_time_they_act():
    class WarmUp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations < 2:
                self.model.optimizer.learning_rate = 0.1

    def halve(epoch, logs):
        setattr(halve.model.optimizer, "learning_rate", 0.1)  # noqa: B010

    def look(epoch, logs):
        assert float(halve.model.optimizer.learning_rate) > 0

    owners = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=50),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
        WarmUp(),
        keras.callbacks.LambdaCallback(on_epoch_end=halve),
    ]
    halve.model = dense_model()
    model = halve.model
    harmless = [keras.callbacks.TerminateOnNaN(), keras.callbacks.LambdaCallback(on_epoch_end=look)]
    _, fit = steered(SGD(0.1), {CHANGED: ["lr 0.02"]}, model=model, callbacks=[*owners, *harmless])
    reason = fit.replies[0].reason
    assert reason == (
        "ReduceLROnPlateau may set the rate again at the end of an epoch without improvement; "
        "LearningRateScheduler may set the rate again when the next epoch begins; "
        "WarmUp may set the rate again before the next batch; "
        "LambdaCallback may set the rate again at the end of this epoch"
    )


def test_an_optimizer_that_cannot_be_controlled_costs_one_problem_and_no_training(monkeypatch):
    monkeypatch.setattr("client_callback.steering.rate_control.RateControl.attach", lambda _: 1 / 0)
    model, fit = steered(SGD(cosine()), {CHANGED: ["lr 0.02"]})
    (problem,) = [event for event in fit.events if isinstance(event, Problem)]
    assert "ZeroDivisionError" in problem.what
    assert fit.replies[0].status == "failed" and "ZeroDivisionError" in fit.replies[0].reason
    assert int(model.optimizer.iterations) == 2 * STEPS


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a step compiled outside of Keras")
def test_a_loop_compiled_before_the_run_began_is_not_said_to_be_changed():
    import tensorflow as tf

    model, optimizer = dense_model(), SGD(cosine())
    model.compile(optimizer, "mse")

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(Y - model(X)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    step()
    fit = SteeredFit({})
    fit.set_model(model)
    fit.steering.install()
    step()
    reply = fit.send("lr 0.02")
    assert reply.status == "refused" and "compiled before the run began" in reply.reason
