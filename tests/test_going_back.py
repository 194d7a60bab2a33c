"""`undo`, `redo`, `rollback`: the training is as it was, bit for bit; and what is kept stays within its budget.

The batches of an epoch come in the same order every time, so a training that went back at an epoch's end and its
untouched twin see the same ones.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers import Adam
from keras.optimizers.schedules import ExponentialDecay

from client_callback.steering.backends import current_backend
from client_callback.steering.snapshots import MOST_PERIODIC, Snapshots
from client_callback.steering.state import State, capture, variables_of
from client_callback.steering.training import Refused
from client_callback.wire.protocol import Problem, SnapshotsChanged
from tests.steered_fit import BATCH, STEPS, SteeredFit, X, Y, build_optimizer

pytestmark = pytest.mark.every_backend


def random_model() -> keras.Model:
    """Everything that a step can change: weights, moving averages of two kinds, seeds, metrics."""
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1, dtype="float32"),
        ]
    )


def optimizer(kind: str) -> keras.optimizers.Optimizer:
    if kind == "schedule":
        return Adam(ExponentialDecay(0.02, 5, 0.9))
    if kind == "accumulation":
        return Adam(0.01, gradient_accumulation_steps=3, use_ema=True)
    if kind == "loss scale":
        return keras.optimizers.LossScaleOptimizer(Adam(0.01), initial_scale=8.0, dynamic_growth_steps=3)
    return Adam(0.01)


def trained(kind: str, script: dict[int, list[str]], epochs: int) -> tuple[list[np.ndarray], SteeredFit]:
    """Every variable at the end."""
    model, fit = random_model(), SteeredFit(script)
    model.compile(optimizer(kind), "mse", metrics=["mae"])
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[fit])
    assert {reply.status for reply in fit.replies} <= {"applied"}, fit.replies
    found = [current_backend().host(variable) for variable in variables_of(model)]
    return found, fit


@pytest.mark.parametrize(
    ("kind", "back"),
    [
        ("plain", ["undo"] * 3),
        ("schedule", [f"rollback {STEPS}"]),
        ("accumulation", ["undo", "redo", "rollback good"]),
        ("loss scale", ["undo"] * 3),
    ],
)
def test_after_going_back_the_next_steps_are_those_of_a_training_that_was_never_changed(kind, back):
    """Three changes, one of which makes another optimizer; taken back one by one, or all at once."""
    changes = {STEPS + 2: ["lr x0.1"], STEPS + 3: ["optimizer sgd learning_rate=0.1"]}
    script = {STEPS: ["snapshot good", "lr x3"], **changes, 2 * STEPS: back}
    found, twin = trained(kind, script, epochs=3)[0], trained(kind, {}, epochs=2)[0]
    assert len(found) == len(twin)
    for one, other in zip(found, twin, strict=True):
        np.testing.assert_array_equal(one, other)


def test_redo_brings_back_the_change_and_what_was_trained_with_it():
    script = {2: ["lr x3"], STEPS: ["undo", "redo"]}
    for one, other in zip(
        trained("plain", script, 2)[0], trained("plain", {2: ["lr x3"]}, 2)[0], strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_start_is_kept_and_undo_says_what_it_took_back():
    _, fit = trained("plain", {3: ["lr x3"], 5: ["undo"], 6: ["rollback start"]}, epochs=1)
    changed, undone, started = fit.replies
    assert undone.undoes == changed.id and undone.step == 5
    assert (undone.before, undone.after) == ({"learning_rate": 0.03}, {"learning_rate": 0.01})
    assert "2 steps" in undone.reason and "cannot be rewound" in undone.reason
    assert "before step 0" in started.reason
    kept = [event for event in fit.events if isinstance(event, SnapshotsChanged)][-1].snapshots
    assert kept[0].name == "start" and kept[0].step == 0 and kept[0].bytes > 0


def test_undo_of_the_settings_leaves_the_weights_as_they_are():
    """The rate is back; what was trained with the other one stays."""
    found, _ = trained("plain", {2: ["lr x3"], 5: ["undo settings"]}, epochs=1)
    by_hand, _ = trained("plain", {2: ["lr x3"], 5: ["lr /3"]}, epochs=1)
    for one, other in zip(found, by_hand, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_gone_back_to_is_refused_with_what_can():
    model, fit = random_model(), SteeredFit({3: ["undo", "redo", "rollback nowhere", "lr x2", "rollback 2"]})
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    nothing, none_again, nowhere, _, before = fit.replies
    assert nothing.status == "refused" and "possible: last, start" in nothing.reason
    assert none_again.status == "refused" and "nothing to redo" in none_again.reason
    assert nowhere.status == "refused" and "'nowhere'; possible: last, start" in nowhere.reason
    assert before.status == "applied" and "before step 0" in before.reason


def test_a_step_that_has_not_come_yet_cannot_be_gone_back_to():
    wrong = ["rollback 99", "lr 1e-3 from 99", 'trial keep "lr x2" for 3 steps from 99']
    told = ["lr 1e-3 from 5 at step 6", "timers", "cancel all"]
    model, fit = random_model(), SteeredFit({3: [*wrong, *told]})
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    for reply in fit.replies[:3]:
        assert reply.status == "refused", reply
        assert reply.reason == "step 99 has not come yet, the next one is step 3; possible: last, start"
    assert [reply.status for reply in fit.replies[3:]] == ["planned", "applied", "applied"], fit.replies


def test_what_is_foretold_of_going_back_is_said_once_and_in_words_of_commands():
    model, fit = random_model(), SteeredFit({3: ["optimizer sgd learning_rate=1e-3 from start --dry-run"]})
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    plan = fit.replies[0].plan
    assert len([line for line in plan if line.topic == "recompiles"]) == 1
    assert not [line for line in plan if "trained variables" in line.text]


def some_state(step: int, size: int = 1 << 10) -> State:
    values = {place: np.full(size // 8, step + place, np.float32) for place in range(2)}
    return State(step, {}, (), values, {})


def test_beyond_the_memory_states_go_to_disk_and_come_back_as_they_were(tmp_path):
    snapshots = Snapshots(2_500, tmp_path)
    for step in range(6):
        snapshots.add(some_state(step), "change")
    assert [one.file is not None for one in snapshots.kept] == [True] * 4 + [False] * 2
    for step, one in enumerate(snapshots.kept):
        loaded = snapshots.load(one)
        for key, value in some_state(step).values.items():
            np.testing.assert_array_equal(loaded.values[key], value)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 4
    snapshots.close()
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_disk_the_oldest_changes_lose_their_values_and_say_so(tmp_path):
    snapshots = Snapshots(1_100, tmp_path)
    start = snapshots.add(some_state(0), "start")
    first = snapshots.add(some_state(1), "change")
    for step in range(2, 14):
        snapshots.add(some_state(step), "change")
    assert not start.dropped and first.dropped
    with pytest.raises(Refused, match="weights of step 1 are not kept"):
        snapshots.load(first)
    assert snapshots.find("start") is start and snapshots.find("last").step == 13
    snapshots.close()


def test_of_those_taken_now_and_then_the_older_are_further_apart():
    snapshots = Snapshots()
    for step in range(0, 4_000, 10):
        snapshots.add(some_state(step), "periodic")
    steps = [one.step for one in snapshots.kept]
    assert len(steps) == MOST_PERIODIC and steps[-1] == 3_990
    gaps = np.diff(steps)
    assert gaps[-1] <= 40 and gaps[:3].mean() > 5 * gaps[-3:].mean()


def test_a_state_that_cannot_be_written_to_disk_is_dropped_and_training_goes_on(tmp_path):
    snapshots = Snapshots(500, tmp_path / "missing")
    one = snapshots.add(some_state(3), "change")
    assert one.dropped and snapshots.described() == ()


def test_without_memory_settings_are_still_taken_back():
    model, fit = random_model(), SteeredFit({2: ["lr x3"], 3: ["undo"], 4: ["undo settings", "snapshot"]})
    fit.steering.history.snapshots.memory_bytes = 0
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    changed, undone, settings, kept = fit.replies
    assert changed.status == "applied" and undone.status == "refused" and "undo settings" in undone.reason
    assert settings.status == "applied" and settings.after == {"learning_rate": 0.01}
    assert kept.status == "refused" and "snapshot_memory=0" in kept.reason


def test_a_state_holds_every_variable_and_the_hosts_random_numbers():
    model = random_model()
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    state = capture(model, 8)
    assert len(state.values) == len(list(variables_of(model)))
    # 2 dense layers, 4 of batch normalisation, dropout's seed, 2 moments each, Adam's step and rate, the loss
    weights, trainable = 4 + 4, 4 + 2
    assert len(state.values) >= weights + 1 + 2 * trainable + 2 + 2
    assert {"random", "numpy"} <= set(state.generators)


def test_what_was_undone_is_kept_only_until_another_change_is_made():
    _, fit = trained("plain", {2: ["lr x3"], 3: ["undo", "lr x2"], 4: ["undo", "lr x4"]}, epochs=1)
    history = fit.steering.history
    assert [change.text for change in history.done] == ["lr x4"] and not history.undone
    changes = [event for event in fit.events if isinstance(event, SnapshotsChanged)][-1].snapshots
    assert [one.reason for one in changes if one.reason] == ["lr x4"]


def test_redo_comes_after_undo_alone():
    model, fit = (
        random_model(),
        SteeredFit({2: ["lr x3", "undo", "lr x1", "redo"], 4: ["undo settings", "redo"]}),
    )
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    statuses = [reply.status for reply in fit.replies]
    assert statuses == ["applied", "applied", "ineffective", "applied", "applied", "refused"]


@pytest.mark.parametrize("memory", [1 << 30, 1 << 10])
def test_how_far_a_step_moved_the_weights_is_measured_wherever_the_state_before_is_kept(memory):
    model, fit = random_model(), SteeredFit({3: ["lr x3"]}, snapshot_memory=memory)
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    (reply,) = fit.verified
    assert reply.status == "applied" and 1e-3 < reply.update_after.value < 0.5


def test_a_state_beyond_memory_and_disk_is_not_even_read_and_it_is_said():
    model, fit = random_model(), SteeredFit({3: ["lr x3"], 4: ["undo", "undo settings"]}, snapshot_memory=20)
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
    assert [reply.status for reply in fit.replies] == ["applied", "refused", "applied"]
    (problem,) = [event.what for event in fit.events if isinstance(event, Problem)]
    assert "no snapshots are kept" in problem and "snapshot_memory is 0 MiB" in problem


def test_what_waits_for_a_step_is_answered_when_the_training_dies():
    model, fit = random_model(), SteeredFit({3: ["lr x3"]})
    model.compile(Adam(0.01), "mse")
    build_optimizer(model)

    class Dies(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            if batch == 3:
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit, Dies()])
    (reply,) = fit.steering.ended_early()
    assert reply.id == fit.replies[0].id and "ended before a step" in reply.reason
