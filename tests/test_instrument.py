"""What is recorded of each step is what happened in it, and measuring changes nothing."""

from __future__ import annotations

import gc
import itertools
import pickle
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from client_callback import MonitorCallback
from client_callback.instrument import statistics
from client_callback.wire import protocol
from tests import models
from tests.recorded import all_series, events, layout, of_kind, samples, series
from tests.steered_fit import build_optimizer


def watched_fit(model: keras.Model, x, y, *, every: int = 10, callbacks=(), **options) -> MonitorCallback:
    callback = MonitorCallback("test", statistics_every=every)
    options = {"batch_size": models.BATCH, "verbose": 0, "shuffle": False, **options}
    build_optimizer(model)
    model.fit(x, y, callbacks=[callback, *callbacks], **options)
    return callback


def classifier_loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def custom_loop(model: keras.Model, optimizer, x, y, steps: int, jit: bool = False):
    """An independent training loop: per step the loss, the gradients, and the weights before and after."""
    loss_of = classifier_loss()

    @tf.function(jit_compile=jit)
    def train(xb, yb):
        with tf.GradientTape() as tape:
            loss = loss_of(yb, model(xb, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, gradients

    optimizer.build(model.trainable_variables)
    batches = len(x) // models.BATCH
    rows = []
    for step in range(steps):
        part = slice(step % batches * models.BATCH, (step % batches + 1) * models.BATCH)
        before = [v.numpy().copy() for v in model.trainable_variables]
        loss, gradients = train(x[part], y[part])
        after = [v.numpy().copy() for v in model.trainable_variables]
        rows.append((float(loss), [np.asarray(g, np.float64) for g in gradients], before, after))
    return rows


@pytest.mark.parametrize(
    "compiled", [{}, {"steps_per_execution": 10}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
)
def test_losses_and_gradient_norms_equal_those_of_an_independent_loop(compiled):
    steps = 100
    x = models.inputs()
    y = models.labels(x)
    model = models.plain_mlp()
    model.compile(keras.optimizers.Adam(1e-3), classifier_loss(), metrics=["accuracy"], **compiled)
    epochs = steps // (len(x) // models.BATCH)
    recorded = series(watched_fit(model, x, y, epochs=epochs).recording)
    rows = custom_loop(
        models.plain_mlp(), keras.optimizers.Adam(1e-3), x, y, steps, jit=bool(compiled.get("jit_compile"))
    )
    np.testing.assert_allclose(recorded["loss"], [loss for loss, *_ in rows], rtol=1e-6)
    norms = [np.sqrt(sum((g**2).sum() for g in gradients)) for _, gradients, *_ in rows]
    np.testing.assert_allclose(recorded["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_array_equal(recorded["learning_rate"], np.float32(1e-3))


def test_layer_statistics_equal_those_numpy_computes():
    x = models.inputs()
    y = models.labels(x)
    model = models.plain_mlp()
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
    model.compile(optimizer, classifier_loss())
    callback = watched_fit(model, x, y, every=7)
    steps, tables = samples(callback.recording)
    assert list(steps) == list(range(0, 50, 7))
    rows = custom_loop(models.plain_mlp(), keras.optimizers.AdamW(1e-2, weight_decay=0.1), x, y, 50)
    for row, step in enumerate(steps):
        _, gradients, before, after = rows[step]
        expected = {
            "gradient_norm": [np.linalg.norm(g) for g in gradients],
            "gradient_mean_abs": [np.abs(g).mean() for g in gradients],
            "gradient_max_abs": [np.abs(g).max() for g in gradients],
            "gradient_zero_share": [(g == 0).mean() for g in gradients],
            "gradient_non_finite": [0.0 for _ in gradients],
            "weight_norm": [np.linalg.norm(w) for w in after],
            "update_norm": [np.linalg.norm(b - a) for a, b in zip(after, before, strict=True)],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(tables[name][row], values, rtol=2e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Ftrl", "Lion", "Nadam", "Adadelta"])
def test_update_norms_hold_for_every_way_an_optimizer_applies_its_step(name):
    x = models.inputs(examples=64)
    y = models.labels(x)
    weights = []
    model = models.plain_mlp()
    model.compile(getattr(keras.optimizers, name)(1e-2), classifier_loss())
    remember = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: weights.append(model.get_weights()),
        on_train_end=lambda logs: weights.append(model.get_weights()),
    )
    _, tables = samples(watched_fit(model, x, y, every=1, callbacks=[remember]).recording)
    moved = [
        [np.linalg.norm(b - a) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(weights)
    ]
    np.testing.assert_allclose(tables["update_norm"], moved, rtol=1e-3, atol=1e-6)


def test_gradient_accumulation_moves_weights_only_on_its_boundary():
    x = models.inputs(examples=128)
    model = models.plain_mlp()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), classifier_loss())
    _, tables = samples(watched_fit(model, x, models.labels(x), every=1).recording)
    moved = tables["update_norm"].sum(axis=1) > 0
    assert list(moved) == [False, False, False, True] * 2


def test_metrics_of_each_batch_are_the_batchs_own_and_others_are_marked_running():
    x = models.inputs()
    y = (models.labels(x, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy", "mae", keras.metrics.AUC(name="auc")])
    outputs = []
    remember = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: outputs.append(
            model(x[batch * models.BATCH : (batch + 1) * models.BATCH]).numpy()[:, 0]
        )
    )
    callback = watched_fit(model, x, y, callbacks=[remember])
    recorded = series(callback.recording)
    batches = y.reshape(-1, models.BATCH)
    accuracies = [((p > 0.5) == (t > 0.5)).mean() for p, t in zip(outputs, batches, strict=True)]
    np.testing.assert_allclose(recorded["accuracy"], accuracies, atol=1e-6)
    errors = [np.abs(p - t).mean() for p, t in zip(outputs, batches, strict=True)]
    np.testing.assert_allclose(recorded["mae"], errors, rtol=1e-5)
    kinds = {one.name: one.kind for one in all_series(callback.recording) if one.kind != "timing"}
    assert kinds == {
        "loss": "batch",
        "learning_rate": "batch",
        "grad_norm": "batch",
        "accuracy": "batch",
        "mae": "batch",
        "auc": "running",
    }


def compiled_model(kind: str) -> tuple[keras.Model, np.ndarray]:
    if kind == "cnn":
        return models.cnn(), models.inputs(shape=(8, 8, 1), examples=160)
    if kind == "lstm":
        return models.lstm(), models.inputs(shape=(6, 4), examples=160)
    return models.mlp(), models.inputs(examples=160)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cnn", {}),
        ("mlp", {"jit_compile": True}),
        ("lstm", {"steps_per_execution": 4}),
    ],
    ids=str,
)
def test_training_is_bit_identical_with_and_without_the_callback(kind, options):
    histories, weights = [], []
    for watched in (False, True):
        model, x = compiled_model(kind)
        y = models.labels(x)
        schedule = keras.optimizers.schedules.CosineDecay(1e-2, 20)
        model.compile(
            keras.optimizers.Adam(schedule),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            **options,
        )
        callbacks = [MonitorCallback("test", statistics_every=3)] if watched else []
        history = model.fit(
            x, y, batch_size=16, epochs=2, verbose=0, validation_data=(x[:32], y[:32]), callbacks=callbacks
        )
        histories.append(history.history)
        weights.append([v.numpy() for v in [*model.variables, *model.optimizer.variables]])
    assert histories[0] == histories[1]
    for plain, watched in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, watched)


def test_mixed_precision_trains_bit_identically_and_its_gradients_are_unscaled():
    x = models.inputs(examples=160)
    y = models.labels(x)
    norms, weights = [], []
    for policy, watched in (("mixed_float16", False), ("mixed_float16", True), ("float32", True)):
        keras.config.set_dtype_policy(policy)
        try:
            model = models.plain_mlp()
        finally:
            keras.config.set_dtype_policy("float32")
        model.compile(keras.optimizers.Adam(1e-3), classifier_loss())
        if watched:
            norms.append(series(watched_fit(model, x, y).recording)["grad_norm"])
        else:
            model.fit(x, y, batch_size=models.BATCH, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for plain, watched in zip(weights[0], weights[1], strict=True):
        np.testing.assert_array_equal(plain, watched)
    np.testing.assert_allclose(norms[0], norms[1], rtol=2e-2)


def test_sparse_gradients_of_embeddings_add_up_repeated_rows():
    tokens = np.random.default_rng(0).integers(0, 6, size=(64, 9))
    y = tokens.sum(axis=1) % 2
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((9,), dtype="int32"),
                keras.layers.Embedding(40, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), classifier_loss(), jit_compile=jit)
        with tf.GradientTape() as tape:
            loss = classifier_loss()(y[:16], model(tokens[:16]))
        sparse, *rest = tape.gradient(loss, model.trainable_variables)
        dense = tf.convert_to_tensor(sparse).numpy()
        recording = watched_fit(model, tokens, y, every=1).recording
        norm = np.sqrt((dense**2).sum() + sum((g.numpy() ** 2).sum() for g in rest))
        assert series(recording)["grad_norm"][0] == pytest.approx(norm, rel=1e-5)
        _, tables = samples(recording)
        assert tables["gradient_norm"][0, 0] == pytest.approx(np.linalg.norm(dense), rel=1e-5)
        assert tables["gradient_zero_share"][0, 0] == pytest.approx((dense == 0).mean(), abs=1e-6)
        assert tables["gradient_mean_abs"][0, 0] == pytest.approx(np.abs(dense).mean(), rel=1e-5)
        assert tables["update_norm"][0, 0] == pytest.approx(0.1 * np.linalg.norm(dense), rel=1e-4)


def test_predictions_of_a_classifier_are_counted_by_class_and_confidence():
    x = models.inputs(examples=64)
    y = models.labels(x)
    model = models.plain_mlp()
    model.compile(keras.optimizers.SGD(0.0), classifier_loss())
    recording = watched_fit(model, x, y, every=1).recording
    _, tables = samples(recording)
    logits = model.predict(x[:16], verbose=0)
    confidence = keras.ops.convert_to_numpy(keras.ops.softmax(logits)).max(axis=1)
    np.testing.assert_array_equal(tables["predicted_counts"][0], np.bincount(logits.argmax(1), minlength=3))
    np.testing.assert_array_equal(tables["target_counts"][0], np.bincount(y[:16], minlength=3))
    np.testing.assert_array_equal(tables["confidence"][0], np.histogram(confidence, 20, (0, 1))[0])
    assert layout(recording).task == "classification"


def test_binary_confidence_is_split_by_true_class():
    x = models.inputs(examples=64)
    y = models.labels(x, 2)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
    recording = watched_fit(model, x, y, every=1).recording
    _, tables = samples(recording)
    probability = model.predict(x[:16], verbose=0)[:, 0]
    for true_class in (0, 1):
        chosen = probability[y[:16] == true_class]
        np.testing.assert_array_equal(
            tables[f"confidence_{true_class}"][0], np.histogram(chosen, 20, (0, 1))[0]
        )
    np.testing.assert_array_equal(tables["predicted_counts"][0], np.bincount(probability > 0.5, minlength=2))
    assert layout(recording).task == "binary"


def test_regression_has_histograms_of_predictions_targets_and_residuals():
    x = models.inputs(examples=64)
    y = x[:, :1] * 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    recording = watched_fit(model, x, y, every=1).recording
    _, tables = samples(recording)
    predicted = model.predict(x[:16], verbose=0)
    for name, values in {
        "predictions": predicted,
        "targets": y[:16],
        "residuals": y[:16] - predicted,
    }.items():
        np.testing.assert_allclose(tables[f"{name}_range"][0], [values.min(), values.max()], rtol=1e-5)
        assert tables[name][0].sum() == 16
        assert np.abs(tables[name][0] - np.histogram(values, 30)[0]).sum() <= 2, (
            "at most one value on an edge"
        )
    assert layout(recording).task == "regression"


def test_inputs_are_summarised_and_what_is_not_finite_is_counted():
    x = models.inputs(examples=32)
    x[3, 4], x[5, 6], x[7, 8] = np.nan, np.inf, -np.inf
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())
    _, tables = samples(watched_fit(model, x, models.labels(x), every=1).recording)
    finite = x[:16][np.isfinite(x[:16])]
    expected = [finite.mean(), finite.std(), finite.min(), finite.max(), 3]
    np.testing.assert_allclose(tables["input"][0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf], [0.0, 0.0], [1e30, -1e30], [3.0]], ids=str)
def test_histograms_take_any_values(values):
    values = np.array(values, np.float32)
    counts, span = statistics.moving_histogram(values)
    finite = values[np.isfinite(values)]
    assert float(np.sum(counts)) == len(finite)
    if len(finite):
        np.testing.assert_array_equal(span, [finite.min(), finite.max()])


def test_the_model_afterwards_is_as_if_the_callback_had_never_been_there(tmp_path):
    x = models.inputs(examples=64)
    y = models.labels(x)
    model = models.mlp()
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 20)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    owners = [model, model.optimizer, model._loss_tracker, model._compile_metrics, model._compile_loss]
    before = [{name for name, value in vars(owner).items() if callable(value)} for owner in owners]
    watched_fit(model, x, y)
    after = [{name for name, value in vars(owner).items() if callable(value)} for owner in owners]
    assert [new - old for new, old in zip(after, before, strict=True)] == [
        {"train_function"} - before[0] if model.train_function else set(),
        set(),
        set(),
        set(),
        set(),
    ]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    assert keras.models.clone_model(model).count_params() == model.count_params()


def test_a_second_fit_without_the_callback_trains_as_ever_and_records_nothing():
    x = models.inputs(examples=64)
    y = models.labels(x)
    weights = []
    for watched in (False, True):
        model = models.mlp()
        model.compile("adam", "sparse_categorical_crossentropy")
        if watched:
            recording = watched_fit(model, x, y).recording
        else:
            model.fit(x, y, batch_size=models.BATCH, verbose=0, shuffle=False)
        model.fit(x, y, batch_size=models.BATCH, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    assert len(series(recording)["loss"]) == 4
    for plain, seen in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, seen)


def test_a_model_saved_in_the_middle_of_a_watched_fit_loads(tmp_path):
    x = models.inputs(examples=64)
    model = models.mlp()
    model.compile("adam", "sparse_categorical_crossentropy")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    watched_fit(model, x, models.labels(x), epochs=2, callbacks=[checkpoint])
    loaded = keras.models.load_model(tmp_path / "2.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


class GradientsByHand(keras.Model):
    """A train step that uses neither the loss tracker nor compute_loss."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"mse": loss}


def test_a_custom_train_step_is_recorded_as_far_as_possible_and_the_rest_is_named():
    keras.utils.set_random_seed(0)
    x = models.inputs(examples=64)
    inner = keras.Input((12,))
    model = GradientsByHand(inner, keras.layers.Dense(1)(inner))
    model.compile("sgd")
    callback = watched_fit(model, x, x[:, :1])
    recorded = series(callback.recording)
    assert set(recorded) == {"learning_rate", "grad_norm", "mse"}
    assert np.isfinite(recorded["mse"]).all()
    missing = " ".join(layout(callback.recording).missing)
    assert "loss of each step" in missing
    assert "predictions" in missing


class TwoOptimizers(keras.Model):
    """As in a GAN: two networks, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(1), keras.layers.Dense(1)
        self.first_optimizer = keras.optimizers.SGD(0.1)
        self.second_optimizer = keras.optimizers.Adam(0.1)
        self.first_loss = keras.metrics.Mean(name="first_loss")
        self.second_loss = keras.metrics.Mean(name="second_loss")

    @property
    def metrics(self):
        return [self.first_loss, self.second_loss]

    def call(self, x):
        return self.second(self.first(x))

    def train_step(self, data):
        x, y = data
        for layer, optimizer, metric in (
            (self.first, self.first_optimizer, self.first_loss),
            (self.second, self.second_optimizer, self.second_loss),
        ):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - y) ** 2)
            variables = layer.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


def test_a_model_with_two_optimizers_of_its_own_trains_and_its_losses_are_recorded_per_batch():
    keras.utils.set_random_seed(0)
    x = models.inputs(examples=64)
    model = TwoOptimizers()
    model.compile()
    model(x[:1])
    callback = watched_fit(model, x, x[:, :1])
    recorded = series(callback.recording)
    assert set(recorded) == {"first_loss", "second_loss"}
    kinds = {one.kind for one in all_series(callback.recording) if one.name in recorded}
    assert kinds == {"batch"}


def test_several_inputs_outputs_and_sample_weights_are_recorded():
    keras.utils.set_random_seed(0)
    x = models.inputs(examples=64)
    left, right = keras.Input((12,), name="left"), keras.Input((12,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    model = keras.Model(
        {"left": left, "right": right},
        {
            "kind": keras.layers.Dense(3, activation="softmax", name="kind")(joined),
            "size": keras.layers.Dense(1, name="size")(joined),
        },
    )
    model.compile(
        "sgd",
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    y = {"kind": models.labels(x), "size": x[:, :1]}
    weight = np.linspace(0, 1, 64).astype("float32")
    callback = watched_fit(
        model, {"left": x, "right": x}, y, sample_weight={"kind": weight, "size": weight}, every=1
    )
    recorded = series(callback.recording)
    assert {"loss", "kind_loss", "size_loss", "kind_accuracy", "size_mae"} <= set(recorded)
    np.testing.assert_allclose(recorded["loss"], recorded["kind_loss"] + recorded["size_loss"], rtol=1e-5)
    _, tables = samples(callback.recording)
    assert {"input_0", "input_1", "predicted_counts"} <= set(tables)
    assert "outputs 2 to 2" in " ".join(layout(callback.recording).missing)


def test_frozen_layers_and_variables_without_a_gradient_are_named():
    keras.utils.set_random_seed(0)
    x = models.inputs(examples=32)
    inner = keras.Input((12,))
    used = keras.layers.Dense(3, name="used")(inner)
    model = keras.Model(inner, used)
    model.unused = model.add_weight(name="unused", shape=(2,))
    model.compile("sgd", classifier_loss())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gradients do not exist")
        callback = watched_fit(model, x, models.labels(x), every=1)
    _, tables = samples(callback.recording)
    names = next(s.labels for s in layout(callback.recording).statistics if s.name == "gradient_norm")
    at = next(index for index, name in enumerate(names) if "unused" in name)
    assert tables["gradient_norm"][0, at] == 0
    assert tables["gradient_zero_share"][0, at] == 1
    assert "no gradient reaches" in " ".join(layout(callback.recording).missing)


def test_a_bug_in_a_statistic_costs_only_that_statistic(monkeypatch):
    def broken(values):
        raise RuntimeError("a bug")

    monkeypatch.setattr(statistics, "input_statistics", broken)
    x = models.inputs(examples=64)
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())
    with pytest.warns(RuntimeWarning, match="statistic input is not recorded: a bug"):
        callback = watched_fit(model, x, models.labels(x), every=1)
    _, tables = samples(callback.recording)
    assert "input" not in tables
    assert "gradient_norm" in tables
    assert len(series(callback.recording)["loss"]) == 4
    assert any("a bug" in problem.what for problem in of_kind(callback.recording, protocol.Problem))


def test_a_statistic_that_fails_while_training_runs_costs_the_measuring_but_not_the_training(monkeypatch):
    def fails_later(values):
        flat = tf.reshape(values, [-1])
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(flat), 100.0)]):
            return tf.zeros([5])

    monkeypatch.setattr(statistics, "input_statistics", fails_later)
    x = models.inputs(examples=160)
    x[80] = 1e3
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())
    with pytest.warns(RuntimeWarning, match="only what Keras logs"):
        callback = watched_fit(model, x, models.labels(x), every=1, epochs=3)
    recorded = series(callback.recording)
    assert len(recorded["loss"]) >= 25
    assert of_kind(callback.recording, protocol.RunEnded)[0].outcome == "finished"


def test_an_error_of_the_model_itself_reaches_the_user_and_is_recorded():
    x = models.inputs(examples=64)
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())
    callback = MonitorCallback("test")
    with pytest.raises(Exception, match=r"(?i)incompatible|shape|dimension"):
        model.fit(x[:, :5], models.labels(x), verbose=0, callbacks=[callback])
    model.fit(x, models.labels(x), verbose=0)
    ended = of_kind(callback.recording, protocol.RunEnded)
    assert [event.outcome for event in ended] == ["failed"]


def test_a_fit_that_is_interrupted_between_batches_is_recorded_as_such():
    x = models.inputs(examples=64)
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())

    def interrupt(batch, logs):
        if batch == 2:
            raise KeyboardInterrupt

    callback = MonitorCallback("test")
    stop = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            x, models.labels(x), batch_size=models.BATCH, verbose=0, shuffle=False, callbacks=[callback, stop]
        )
    gc.collect()
    deadline = time.monotonic() + 10
    while not (ended := of_kind(callback.recording, protocol.RunEnded)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [event.outcome for event in ended] == ["interrupted"]
    assert "train_step" not in vars(model)
    assert len(series(callback.recording)["loss"]) == 3


def test_each_fit_of_one_callback_is_a_run_with_a_recording_of_its_own():
    x = models.inputs(examples=64)
    y = models.labels(x)
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss())
    callback = MonitorCallback("twice")
    recordings = []
    for _ in range(2):
        model.fit(x, y, batch_size=models.BATCH, verbose=0, callbacks=[callback])
        recordings.append(callback.recording)
    assert len(set(recordings)) == 2
    ids = {of_kind(path, protocol.RunStarted)[0].run.run_id for path in recordings}
    assert len(ids) == 2
    assert [len(series(path)["loss"]) for path in recordings] == [4, 4]


def test_the_events_of_a_fit_come_in_order_with_validation_and_epochs():
    x = models.inputs(examples=64)
    y = models.labels(x)
    model = models.plain_mlp()
    model.compile("sgd", classifier_loss(), metrics=["accuracy"])
    callback = watched_fit(model, x, y, epochs=2, validation_data=(x, y))
    seen = events(callback.recording)
    assert isinstance(seen[0], protocol.RunStarted)
    assert isinstance(seen[-1], protocol.RunEnded)
    assert [e.step for e in seen if isinstance(e, protocol.EpochBegan)] == [0, 4]
    ended = [e for e in seen if isinstance(e, protocol.EpochEnded)]
    assert [e.step for e in ended] == [4, 8]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(ended[0].logs)
    states = [e.state for e in seen if isinstance(e, protocol.StateChanged)]
    assert states == ["recompiling", "running", "validating", "running", "validating", "running"]
    times = np.concatenate([protocol.step_times(e) for e in seen if isinstance(e, protocol.Steps)])
    assert (np.diff(times) >= 0).all()
