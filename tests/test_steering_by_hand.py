"""Weights move as the optimizers' formulas say, worked out in numpy, through every command; nothing else does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from tests.steered_fit import (
    BACKEND,
    BATCH,
    STEPS,
    SteeredFit,
    X,
    Y,
    assert_equal_weights,
    dense_model,
    gradients,
    steered,
)

pytestmark = pytest.mark.every_backend


def by_hand(sgd_rates: list[float], adam_rates: list[float]) -> list[np.ndarray]:
    """The weights after w ← w − ηg at these rates, then Adam (Kingma and Ba, 2015, algorithm 1) at those."""
    weights = [weight.astype("float64") for weight in dense_model().get_weights()]
    for step, rate in enumerate(sgd_rates):
        weights = [w - rate * g for w, g in zip(weights, gradients(weights, step), strict=True)]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    for t, rate in enumerate(adam_rates, start=1):
        found = gradients(weights, len(sgd_rates) + t - 1)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, found, strict=True)]
        second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, found, strict=True)]
        alpha = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        moved = zip(weights, first, second, strict=True)
        weights = [w - alpha * m / (np.sqrt(v) + 1e-7) for w, m, v in moved]
    return weights


def assert_weights(model: keras.Model, expected: list[np.ndarray]) -> None:
    for one, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_a_rate_is_set_scaled_and_given_to_another_optimizer_as_the_formulas_say():
    script = {3: ["lr 0.02"], 6: ["lr x3"], 9: ["optimizer adam learning_rate=0.004"], 12: ["lr /2"]}
    model, fit = steered(SGD(0.1), script)
    assert [reply.status for reply in fit.replies] == ["applied"] * 4, fit.replies
    assert_weights(model, by_hand([0.1] * 3 + [0.02] * 3 + [0.06] * 3, [0.004] * 3 + [0.002] * 4))


def test_a_schedule_is_scaled_carried_to_another_optimizer_and_replaced_as_the_formulas_say():
    script = {3: ["lr x0.5"], 9: ["optimizer adam"], 12: ["lr 0.004"]}
    model, fit = steered(SGD(CosineDecay(0.1, 20)), script)
    assert [reply.status for reply in fit.replies] == ["applied"] * 3, fit.replies
    cosine = [0.05 * (1 + np.cos(np.pi * step / 20)) * (1.0 if step < 3 else 0.5) for step in range(12)]
    assert_weights(model, by_hand(cosine[:9], cosine[9:] + [0.004] * 4))


@pytest.mark.parametrize("rate", [0.1, CosineDecay(0.1, 20)], ids=["constant", "schedule"])
def test_a_loop_of_train_on_batch_is_steered_too(rate):
    model, fit = dense_model(), SteeredFit({})
    model.compile(SGD(rate), "mse")
    fit.set_model(model)
    fit.steering.install()
    script = {3: "lr 0.02", 6: "lr x3", 9: "optimizer adam learning_rate=0.004"}
    for step in range(2 * STEPS):
        if step in script:
            assert fit.send(script[step]).status == "applied", fit.replies
        start = step % STEPS * BATCH
        model.train_on_batch(X[start : start + BATCH], Y[start : start + BATCH])
        fit.step += 1
    fit.steering.uninstall()
    before = [rate if rate == 0.1 else float(rate(step)) for step in range(3)]
    assert_weights(model, by_hand(before + [0.02] * 3 + [0.06] * 3, [0.004] * 7))


def test_a_loop_that_does_not_use_the_models_optimizer_is_not_said_to_be_changed():
    """On JAX, one that keeps the optimizer's variables itself: even their number stays as it was."""
    model, fit = dense_model(), SteeredFit({})
    model.compile(SGD(CosineDecay(0.1, 20), momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    taken_along = len(model.optimizer.variables)
    fit.set_model(model)
    fit.steering.install()
    if BACKEND == "jax":
        assert len(model.optimizer.variables) == taken_along
    fit.step = 4
    for text in ("lr 0.1", "lr x2", "optimizer adam"):
        reply = fit.send(text)
        assert reply.status == "refused" and "has made no update in 4 steps" in reply.reason
    fit.steering.uninstall()
    assert len(model.optimizer.variables) == taken_along and fit.traces == 0


def test_a_command_leaves_the_running_metrics_of_the_epoch_as_they_are():
    class Histories(keras.callbacks.Callback):
        """As the epoch's own values are, with no batch left out."""

        def on_epoch_end(self, epoch, logs=None):
            self.logs = dict(logs)

    seen = []
    for script in ({}, {3: ["lr x1"], 5: ["optimizer sgd learning_rate=0.01"]}):
        histories = Histories()
        _, fit = steered(SGD(0.01), script, epochs=1, metrics=["mae"], callbacks=[histories])
        assert [reply.status for reply in fit.replies] == (["ineffective", "applied"] if script else [])
        seen.append(histories.logs)
    assert set(seen[0]) == {"loss", "mae"}
    assert seen[1] == pytest.approx(seen[0], rel=1e-6)


def test_with_validation_between_them_epochs_go_on_where_the_commands_left_off():
    model, fit = dense_model(), SteeredFit({3: ["lr 0.02"], STEPS: ["lr x3"], 9: ["optimizer adam"]})
    model.compile(SGD(CosineDecay(0.1, 20)), "mse")
    model.fit(
        X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y), callbacks=[fit]
    )
    assert [reply.status for reply in fit.replies] == ["applied"] * 3, fit.replies
    cosine = [0.05 * (1 + np.cos(np.pi * step / 20)) for step in range(16)]
    expected = by_hand(cosine[:3] + [0.02] * 5 + [0.06], [0.001] * 7)
    assert_weights(model, expected)
    # A second fit, not steered, and a third that is.
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0)
    again = SteeredFit({2: ["optimizer sgd learning_rate=0.01", "lr x2"]})
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[again])
    assert [reply.status for reply in again.replies] == ["applied"] * 2


def test_a_batch_that_fails_after_a_switch_ends_the_fit_with_its_own_error_and_the_state_before_it():
    def batches():
        for first in range(0, 4 * BATCH, BATCH):
            yield X[first : first + BATCH], Y[first : first + BATCH]
        yield X[:BATCH, :3], Y[:BATCH]

    model, fit = dense_model(), SteeredFit({4: ["optimizer adam"]})
    model.compile(SGD(0.1, momentum=0.9), "mse")
    with pytest.raises(Exception, match=r"(?i)shape|dimension|axis"):
        model.fit(batches(), epochs=1, shuffle=False, verbose=0, callbacks=[fit])
    assert [reply.status for reply in fit.replies] == ["applied"]
    plain = dense_model()
    plain.compile(SGD(0.1, momentum=0.9), "mse")
    plain.fit(X[: 4 * BATCH], Y[: 4 * BATCH], batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
    assert_equal_weights(model, plain)


@pytest.mark.parametrize("late", [{}, {3: ["optimizer adam"]}], ids=["from the start", "after a switch"])
def test_a_run_that_gives_up_in_the_middle_leaves_a_fit_that_goes_on(late):
    class GivesUp(SteeredFit):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            if self.step == 5:
                self.steering.uninstall()

    model = dense_model()
    model.compile(Adam(CosineDecay(0.1, 20)), "mse")
    fit = GivesUp(late)
    history = model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[fit])
    assert [reply.status for reply in fit.replies] == ["applied"] * len(late), fit.replies
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.optimizer.iterations) == 2 * STEPS - (3 if late else 0)
    assert not [v for v in model.optimizer.variables if "unstuck" in v.path]
    if not late:
        assert_equal_weights(model, steered(Adam(CosineDecay(0.1, 20)), {})[0])
