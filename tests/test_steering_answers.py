"""Every command gets an answer, true to what became of it, and no command can raise into the training."""

from __future__ import annotations

import typing

import keras
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from client_callback.steering import backends, describe_optimizer, optimizer_catalogue
from client_callback.steering.handling import Handling
from client_callback.wire import commands
from tests.steered_fit import (
    BACKEND,
    STEPS,
    SteeredFit,
    assert_equal_weights,
    dense_model,
    steered,
)

pytestmark = pytest.mark.every_backend


DECIDED_WHERE_MONITORS_CONNECT = {commands.TakeControl, commands.ReleaseControl}


def test_every_instruction_of_the_grammar_is_handled():
    handled = set(SteeredFit({}).steering.handlings)
    assert handled == set(typing.get_args(commands.Instruction)) - DECIDED_WHERE_MONITORS_CONNECT


def test_who_has_control_is_not_for_the_training_to_decide():
    reply = SteeredFit({}).send("control take")
    assert reply.status == "refused" and "not for the training" in reply.reason


def test_pause_and_resume_answer_with_the_state_before_and_after():
    _, fit = steered(SGD(0.1), {3: ["pause", "pause", "resume", "resume"]}, epochs=1)
    paused, again, resumed, still = fit.replies
    assert (paused.before, paused.after) == ({"state": "running"}, {"state": "paused"})
    assert again.status == "refused" and again.reason.startswith("already paused at step 3")
    assert (resumed.before, resumed.after) == ({"state": "paused"}, {"state": "running"})
    assert still.status == "refused" and still.reason.startswith("not paused")


def test_stop_ends_the_fit_after_the_current_batch_even_while_paused():
    _, fit = steered(SGD(0.1), {3: ["pause", "stop"]})
    assert fit.replies[1].status == "applied"
    assert (fit.replies[1].before, fit.replies[1].after) == ({"state": "paused"}, {"state": "stopping"})
    assert not fit.paused and fit.step == 4


def test_a_note_is_answered_and_changes_nothing():
    model, fit = steered(SGD(0.1), {3: ['note "warm-up over"']}, epochs=1)
    (reply,) = fit.replies
    assert (reply.status, reply.step, reply.text, reply.who) == (
        "applied",
        3,
        'note "warm-up over"',
        "ada@box",
    )
    assert_equal_weights(model, steered(SGD(0.1), {}, epochs=1)[0])


def test_a_read_only_run_takes_notes_and_refuses_everything_else():
    texts = ["lr 0.2", "lr x2", "optimizer adam", "pause", "resume", "stop", "note hello"]
    model, fit = steered(SGD(CosineDecay(0.1, 20)), {3: texts}, control=False)
    assert [r.status for r in fit.replies] == ["refused"] * 6 + ["applied"]
    assert all("read-only" in r.reason for r in fit.replies[:6])
    assert fit.step == 2 * STEPS
    assert_equal_weights(model, steered(SGD(CosineDecay(0.1, 20)), {})[0])


@pytest.mark.parametrize(
    "text", ["", " ", "lr", "lr -3", "learning 3", 'note "open', "optimizer", "pause now"]
)
def test_a_command_that_cannot_be_understood_is_refused_with_what_is_possible(text):
    fit = SteeredFit({})
    reply = fit.send(text)
    assert reply.status == "refused" and reply.reason


@pytest.mark.parametrize("text", ["lr 0.1", "lr x2", "optimizer adam"])
def test_without_an_optimizer_the_rate_commands_are_refused_and_the_others_work(text):
    for model in (None, dense_model()):
        fit = SteeredFit({})
        if model is not None:
            fit.set_model(model)  # never compiled
        fit.steering.install()
        assert fit.send(text).status == "refused"
        assert "no optimizer that unstuck knows" in fit.replies[0].reason
        assert fit.send("pause").status == "applied"
        fit.steering.uninstall()


def test_on_a_backend_without_an_adapter_the_optimizer_is_left_alone(monkeypatch):
    monkeypatch.delitem(backends.BACKENDS, BACKEND)
    _, fit = steered(SGD(CosineDecay(0.1, 20)), {3: ["lr 0.1", "optimizer adam", "note x"]}, epochs=1)
    assert [r.status for r in fit.replies] == ["refused", "refused", "applied"]
    assert f"cannot be steered on the {BACKEND} backend yet" in fit.replies[0].reason
    told = [event.what for event in fit.events]
    assert told == [fit.replies[0].reason, f"no snapshots are kept: Refused: {fit.replies[0].reason}"]


def test_an_error_inside_a_handler_becomes_a_failed_answer_with_the_error_and_its_cause():
    def breaks(training, instruction, time):
        try:
            raise OSError("x" * 10_000)
        except OSError as error:
            raise KeyError("a bug") from error

    fit = SteeredFit({})
    fit.steering.handlings[commands.Pause] = Handling(carry_out=breaks)
    reply = fit.send("pause")
    assert reply.status == "failed" and reply.reason.startswith("KeyError: 'a bug'; after OSError: xxx")
    assert len(reply.reason) == 4_000


def test_the_catalogue_names_keras_own_optimizers_with_their_arguments():
    catalogue = optimizer_catalogue()
    assert list(catalogue) == sorted(catalogue)
    assert {"adam", "adamw", "sgd", "rmsprop", "lion", "muon", "lamb"} <= set(catalogue)
    assert not {"optimizer", "lossscaleoptimizer", "multioptimizer"} & set(catalogue)
    assert catalogue["sgd"][:3] == ("learning_rate", "momentum", "nesterov")
    assert "kwargs" not in catalogue["sgd"] and "exclude_layers" not in catalogue["muon"]


def test_the_description_names_settings_schedule_and_other_owners_of_the_rate():
    model = dense_model()
    model.compile(Adam(CosineDecay(0.1, 20), clipnorm=1.0), "mse")
    described = describe_optimizer(model, [keras.callbacks.ReduceLROnPlateau(), keras.callbacks.History()])
    assert described is not None
    assert (described.name, described.class_name, described.schedule) == ("adam", "Adam", "CosineDecay")
    assert described.settings["learning_rate"] == "CosineDecay" and described.settings["clipnorm"] == 1.0
    assert described.settings["beta_2"] == 0.999 and "name" not in described.settings
    assert described.rate_owners == ("ReduceLROnPlateau",)


def test_the_description_looks_through_a_loss_scaler_and_into_a_multi_optimizer():
    model = dense_model()
    model.compile(keras.optimizers.LossScaleOptimizer(SGD(0.1)), "mse")
    described = describe_optimizer(model, [])
    assert described is not None and (described.name, described.schedule) == ("sgd", None)
    assert described.settings["learning_rate"] == 0.1 and described.settings["dynamic_loss_scale"] is True
    several = keras.optimizers.OptimizerMap(SGD(0.1, name="a"), {"x": Adam(CosineDecay(0.2, 9), name="b")})
    model.compile(keras.optimizers.MultiOptimizer(several), "mse")
    described = describe_optimizer(model, [])
    assert described is not None and described.name == "multioptimizer"
    assert sorted(described.settings.items()) == [
        ("learning_rate_a", 0.1),
        ("learning_rate_b", "CosineDecay"),
    ]


def test_a_model_without_an_optimizer_has_no_description():
    assert describe_optimizer(None, []) is None
    assert describe_optimizer(dense_model(), []) is None
