"""Fits that die, restart, recompile, stall or come in unusual shapes: they train as they would without us."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from client_callback import MonitorCallback, Run
from client_callback.wire import protocol
from tests import models
from tests.recorded import events, layout, of_kind, samples, series

ROOT = Path(__file__).parent.parent


def classifier() -> keras.Model:
    model = models.plain_mlp()
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, **options) -> None:
    x = models.inputs(examples=160)
    options = {"batch_size": 16, "verbose": 0, "shuffle": False, **options}
    model.fit(x, models.labels(x), callbacks=list(callbacks), **options)


def hooks_left(model: keras.Model) -> set[str]:
    mine = {"train_step", "compute_loss", "apply", "update_state", "scale_loss", "assign_add"}
    owners = [model, model.optimizer, model._loss_tracker, model._compile_metrics, model._compile_loss]
    return {name for owner in owners for name in vars(owner) if name in mine}


def test_a_fit_after_one_that_died_is_watched_whole_though_its_traceback_is_kept():
    model = classifier()

    def interrupt(epoch, logs):
        raise KeyboardInterrupt

    dead = MonitorCallback("dead")
    with pytest.raises(KeyboardInterrupt) as kept:
        fit(model, dead, keras.callbacks.LambdaCallback(on_epoch_end=interrupt))
    alive = MonitorCallback("alive")
    fit(model, alive, epochs=2)
    assert len(series(alive.recording)["loss"]) == 20
    assert of_kind(alive.recording, protocol.RunEnded)[0].outcome == "finished"
    assert of_kind(dead.recording, protocol.RunEnded)[0].outcome == "interrupted"
    assert not hooks_left(model)
    assert kept.value is not None


def test_two_callbacks_in_one_fit_are_one_watch_and_leave_nothing_behind():
    model = classifier()
    first, second = MonitorCallback("first"), MonitorCallback("second")
    with pytest.warns(RuntimeWarning, match="another MonitorCallback of this fit"):
        fit(model, first, second)
    assert len(series(first.recording)["loss"]) == 10
    assert second.recording is None
    assert not hooks_left(model)


def test_a_model_that_a_callback_compiles_anew_trains_on_with_what_it_was_given():
    iterations = []
    for watched in (False, True):
        model = classifier()
        fit(model)

        def recompile(logs, model=model):
            model.compile(keras.optimizers.SGD(0.01), model.loss)

        again = keras.callbacks.LambdaCallback(on_train_end=recompile)
        fit(model, again, *([MonitorCallback("test")] if watched else []))
        fit(model)
        iterations.append(int(model.optimizer.iterations))
    assert iterations == [10, 10]


def test_a_scheduled_optimizer_that_a_callback_replaces_is_left_as_it_was():
    model = classifier()
    replaced = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 100))
    model.compile(replaced, model.loss)
    recompile = keras.callbacks.LambdaCallback(on_train_end=lambda logs: model.compile("sgd", model.loss))
    before = set(vars(replaced))
    fit(model, recompile, MonitorCallback("test"))
    assert "_get_current_learning_rate" not in set(vars(replaced)) - before


def test_a_recording_that_another_program_locks_for_a_while_loses_nothing():
    with Run("locked") as run:
        run.log(loss=0.0)
        held = sqlite3.connect(run.recording, isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
        for step in range(1, 30):
            run.log(loss=float(step))
            time.sleep(0.05)
        held.execute("ROLLBACK")
        held.close()
    np.testing.assert_array_equal(series(run.recording)["loss"], np.arange(30))
    assert not of_kind(run.recording, protocol.Problem)


def test_an_error_of_the_users_own_is_raised_though_the_script_lies_in_a_folder_of_our_name(home, tmp_path):
    folder = tmp_path / "unstuck"
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import keras, numpy as np, tensorflow as tf
        from client_callback import MonitorCallback

        class Fails(keras.layers.Layer):
            def call(self, x):
                with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 100.0)]):
                    return tf.identity(x)

        x = np.zeros((160, 4), "float32")
        x[100] = 1e3
        model = keras.Sequential([keras.Input((4,)), Fails(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], batch_size=16, shuffle=False, verbose=0, callbacks=[MonitorCallback()])
        """)
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=None, cwd=ROOT, timeout=100
    )
    assert done.returncode == 1
    assert "InvalidArgumentError" in done.stderr


@pytest.mark.parametrize("eagerly", [False, True])
def test_an_error_in_the_very_first_batch_is_the_users_to_see(eagerly):
    def broken(batch):
        raise RuntimeError("a corrupt record")

    data = tf.data.Dataset.range(4).map(
        lambda i: (tf.py_function(broken, [i], tf.float32), tf.zeros([1])), num_parallel_calls=1
    )
    data = data.map(lambda x, y: (tf.ensure_shape(x, [12]), y)).batch(2)
    model = classifier()
    model.run_eagerly = eagerly
    with pytest.raises(Exception, match="corrupt record"):
        model.fit(data, verbose=0, shuffle=False, callbacks=[MonitorCallback("test")])


def test_where_nothing_is_measured_steps_are_still_batches_and_the_rate_is_that_of_the_step(monkeypatch):
    monkeypatch.setattr("client_callback.instrument.backends.BACKENDS", {})
    model = models.plain_mlp()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.1, 0.01])
    model.compile(
        keras.optimizers.SGD(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=5,
    )
    callback = MonitorCallback("test")
    with pytest.warns(RuntimeWarning, match="only what Keras logs"):
        fit(model, callback, epochs=2)
    recorded = series(callback.recording)
    assert len(recorded["loss"]) == 20
    np.testing.assert_allclose(recorded["learning_rate"], [0.1] * 10 + [0.01] * 10, rtol=1e-6)
    assert {one.kind for one in layout(callback.recording).series} == {"running"}
    assert [event.step for event in of_kind(callback.recording, protocol.EpochBegan)] == [0, 10]


class BuildsItself(keras.Model):
    """As in the tutorials: no `call`, networks of its own, an optimizer for each."""

    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
        self.own = keras.optimizers.Adam(0.01)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.inner(x) - y) ** 2)
        variables = self.inner.trainable_variables
        self.own.apply(tape.gradient(loss, variables), variables)
        return {"distance": loss}


def test_a_model_that_builds_itself_in_its_first_step_is_recorded():
    model = BuildsItself()
    model.compile()
    x = models.inputs(examples=64)
    callback = MonitorCallback("gan", statistics_every=1)
    model.fit(x, x[:, :1], batch_size=16, verbose=0, callbacks=[callback])
    assert len(series(callback.recording)["distance"]) == 4
    assert samples(callback.recording)[1]["weight_norm"].shape == (4, 4)


def test_an_unbuilt_model_is_measured_from_its_first_batch():
    x = models.inputs(examples=64)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(3, activation="relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    with Run("unbuilt", model=model, statistics_every=1) as run:
        for start in range(0, 64, 16):
            model.train_on_batch(x[start : start + 16], x[start : start + 16, :1])
            run.log()
    assert np.isfinite(series(run.recording)["grad_norm"]).all()
    _, tables = samples(run.recording)
    assert (tables["update_norm"] > 0).any(axis=0).all()


def test_running_eagerly_describes_the_layout_once():
    model = classifier()
    model.run_eagerly = True
    callback = MonitorCallback("eager", statistics_every=1)
    fit(model, callback, epochs=2)
    assert len(of_kind(callback.recording, protocol.Instrumented)) == 1


def test_finished_steps_are_recorded_while_the_data_stall(home):
    arrived = []

    def batches():
        x = models.inputs(examples=16)
        for number in range(12):
            if number == 10:
                deadline = time.monotonic() + 5
                while len(arrived) < 9 and time.monotonic() < deadline:
                    path = next(iter(home.rglob("*.unstuck")), None)
                    arrived[:] = range(sum(e.count for e in of_kind(path, protocol.Steps)) if path else 0)
                    time.sleep(0.05)
            yield x, models.labels(x)

    model = classifier()
    data = tf.data.Dataset.from_generator(
        batches,
        output_signature=(tf.TensorSpec([16, 12], tf.float32), tf.TensorSpec([16], tf.int64)),
    )
    model.fit(data, steps_per_epoch=12, verbose=0, shuffle=False, callbacks=[MonitorCallback("stalls")])
    assert len(arrived) >= 9, "steps that had ended were not in the recording while the generator waited"


def test_sparse_inputs_cost_only_their_own_statistics():
    indices = [[row, row % 12] for row in range(32)]
    x = tf.sparse.SparseTensor(indices, np.ones(32, np.float32), [32, 12])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,), sparse=True), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((x, np.ones((32, 1), np.float32))).batch(8)
    callback = MonitorCallback("sparse", statistics_every=1)
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
    assert np.isfinite(series(callback.recording)["grad_norm"]).all()
    _, tables = samples(callback.recording)
    assert "gradient_norm" in tables
    assert "input" not in tables


class OwnLoss(keras.Model):
    """`compute_loss` with parameters of its own, and `make_train_function` without `force`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((y - y_pred) ** 2)

    def make_train_function(self):
        return super().make_train_function(force=True)


def test_overridden_methods_of_a_model_are_called_as_it_defines_them():
    keras.utils.set_random_seed(0)
    inner = keras.Input((12,))
    model = OwnLoss(inner, keras.layers.Dense(1)(inner))
    model.compile("sgd")
    x = models.inputs(examples=64)
    callback = MonitorCallback("own", statistics_every=1)
    model.train_function = None
    model.fit(x, x[:, :1], batch_size=16, verbose=0, callbacks=[callback])
    assert np.isfinite(series(callback.recording)["loss"]).all()
    assert "predictions" in samples(callback.recording)[1]


class OwnStep(keras.Model):
    """As Keras' guide writes a train step, in a model that holds its layers in another."""

    def __init__(self):
        super().__init__()
        self.inside = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1, name="end")])

    def call(self, x, training=False):
        return self.inside(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            metric.update_state(loss) if metric.name == "loss" else metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


def test_a_train_step_of_the_users_own_is_measured_inside_and_its_output_is_the_last_layer():
    model = OwnStep()
    model.compile("adam", "mse", metrics=["mae"])
    x = models.inputs(examples=64)
    callback = MonitorCallback("own", statistics_every=1)
    model.fit(x, x[:, :1], batch_size=16, verbose=0, callbacks=[callback])
    assert of_kind(callback.recording, protocol.Problem) == []
    found = series(callback.recording)
    assert all(np.isfinite(found[name]).all() for name in ("loss", "mae", "grad_norm"))
    (output,) = of_kind(callback.recording, protocol.ModelBuilt)[-1].outputs
    assert (output.layer, output.units, output.activation) == ("end", 1, "linear")


def test_how_far_an_embedding_moves_is_known_where_its_update_has_no_known_shape():
    """Adadelta's update of a sparse gradient is of single rows, and TensorFlow does not know how many."""
    tokens = np.random.default_rng(0).integers(0, 50, (16, 8))
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Embedding(50, 4, name="words"),
            keras.layers.GlobalMaxPooling1D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adadelta(1.0), "sparse_categorical_crossentropy")
    before = model.get_layer("words").get_weights()[0]
    callback = MonitorCallback("words", statistics_every=1)
    model.fit(tokens, tokens[:, 0] % 4, batch_size=16, verbose=0, callbacks=[callback])
    assert of_kind(callback.recording, protocol.Problem) == []
    moved = np.linalg.norm(model.get_layer("words").get_weights()[0] - before)
    place = next(
        place
        for statistic in layout(callback.recording).statistics
        if statistic.name == "update_norm"
        for place, label in enumerate(statistic.labels)
        if "words" in label
    )
    np.testing.assert_allclose(samples(callback.recording)[1]["update_norm"][0, place], moved, rtol=1e-4)


def test_a_batch_without_weight_counts_as_zero_as_keras_does():
    x = models.inputs(examples=64)
    model = classifier()
    model.compile("sgd", model.loss, weighted_metrics=["accuracy"])
    weight = np.ones(64, np.float32)
    weight[16:32] = 0
    callback = MonitorCallback("weights")
    model.fit(
        x,
        models.labels(x),
        sample_weight=weight,
        batch_size=16,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    accuracy = series(callback.recording)["accuracy"]
    assert accuracy[1] == 0
    assert np.isfinite(accuracy).all()


def test_a_list_of_callbacks_driven_by_hand_is_recorded():
    model = classifier()
    x = models.inputs(examples=32)
    callback = MonitorCallback("by hand")
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    for batch in range(2):
        callbacks.on_train_batch_begin(batch)
        logs = model.train_on_batch(x[:16], models.labels(x[:16]), return_dict=True)
        callbacks.on_train_batch_end(batch, logs)
    callbacks.on_epoch_end(0)
    callbacks.on_train_end()
    assert len(series(callback.recording)["grad_norm"]) == 2
    assert isinstance(events(callback.recording)[-1], protocol.RunEnded)
