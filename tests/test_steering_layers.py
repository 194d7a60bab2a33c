"""Freezing, numbers of layers and fresh weights: as the answers say, to those weights alone, and undone exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers import SGD, Adafactor, Adam, LossScaleOptimizer

from client_callback import MonitorCallback
from client_callback.steering.handlers.layers import first_updates
from client_callback.steering.trained_variables import unbuilt_like
from client_callback.wire import protocol
from client_callback.wire.protocol import Command, Reply
from tests.recorded import of_kind, series
from tests.steered_fit import (
    BATCH,
    STEPS,
    SteeredFit,
    X,
    Y,
    assert_equal_weights,
    build_optimizer,
    dense_model,
    gradients,
    not_compiled,
    steered,
    updater,
)

pytestmark = pytest.mark.every_backend


def model() -> keras.Model:
    """With what a freeze, a rate and a fresh start can touch."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, activation="tanh", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(5, activation="relu", kernel_regularizer=keras.regularizers.L1(1e-3), name="second"),
            layers.Dense(1, name="last"),
        ]
    )


class Weights(keras.callbacks.Callback):
    """The weights before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, list[np.ndarray]]] = []

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.kept.append({layer.name: layer.get_weights() for layer in self.model.layers})

    def moved(self, step: int) -> set[str]:
        """The layers of which any weight was moved by a step."""
        before, after = self.kept[step], self.kept[step + 1]
        return {
            name
            for name, weights in before.items()
            if any(not np.array_equal(a, b) for a, b in zip(weights, after[name], strict=True))
        }


OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "averages": lambda: Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "scaled": lambda: LossScaleOptimizer(Adam(0.01), initial_scale=8.0),
    "several": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(SGD(0.05, momentum=0.9), {"first/.*": Adam(0.01)})
    ),
}


# ── Freezing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_layers_stand_still_and_the_others_go_on(name: str):
    weights = Weights()
    script = {3: ["freeze first norm"], 6: ["unfreeze *"]}
    _, fit = steered(OPTIMIZERS[name](), script, model=model(), callbacks=[weights])
    frozen, unfrozen = fit.verified
    assert frozen.status == unfrozen.status == "applied", (frozen, unfrozen)
    assert frozen.before == {"first.trainable": True, "norm.trainable": True}
    assert frozen.after == {"first.trainable": False, "norm.trainable": False}
    assert "norm runs in inference mode while frozen" in frozen.reason
    assert frozen.update_after is not None and frozen.update_after.value > 0
    everything = {"first", "norm", "second", "last"}
    assert [weights.moved(step) for step in (2, 3, 5, 6)] == [
        everything,
        {"second", "last"},
        {"second", "last"},
        everything,
    ]


def test_moments_of_frozen_weights_go_on_from_where_they_were():
    momentum, rate, made = 0.9, 0.05, dense_model()
    expected = [weight.astype("float64") for weight in made.get_weights()]
    velocity = [np.zeros_like(weight) for weight in expected]
    for step in range(2 * STEPS):
        found = gradients(expected, step)
        for place in range(4):
            if place < 2 and 3 <= step < 7:
                continue  # frozen
            velocity[place] = momentum * velocity[place] - rate * found[place]
            expected[place] = expected[place] + velocity[place]
    first = made.layers[0].name
    steered(SGD(rate, momentum=momentum), {3: [f"freeze {first}"], 7: [f"unfreeze {first}"]}, model=made)
    for a, b in zip(made.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def frozen_from_the_start() -> keras.Model:
    made = model()
    made.get_layer("first").trainable = False
    return made


def test_weights_that_the_optimizer_never_knew_are_trained_from_fresh_moments():
    made, fit = steered(
        Adam(0.01), {7: ["unfreeze first --dry-run", "unfreeze first"]}, model=frozen_from_the_start()
    )
    planned, applied = fit.replies
    assert [line.topic for line in planned.plan] == ["does", "resets", "recompiles"]
    assert applied.status == "applied" and "the moments of first begin anew" in applied.reason
    before = frozen_from_the_start().get_layer("first").get_weights()
    assert all(
        not np.array_equal(a, b) for a, b in zip(made.get_layer("first").get_weights(), before, strict=True)
    )
    assert [v.path for v in made.optimizer.variables] == _paths_as_built(made)


@pytest.mark.parametrize(
    "optimizer", [Adam(1e-6), Adam(1e-6, beta_2=0.9), SGD(1e-6, momentum=0.9)], ids=["adam", "short", "sgd"]
)
def test_it_is_said_how_large_the_first_updates_after_fresh_moments_are(
    optimizer: keras.optimizers.Optimizer,
):
    done, variable = 3_000, keras.Variable([1.0])
    optimizer.build([variable])
    optimizer.iterations.assign(done)
    moved = []
    update = updater()
    for _ in range(60):
        before = float(keras.ops.convert_to_numpy(variable)[0])
        update(optimizer, [keras.ops.ones(1)], [variable])
        moved.append((before - float(keras.ops.convert_to_numpy(variable)[0])) / 1e-6)
        variable.assign([1.0])
    optimizer.iterations.assign(done)
    said = first_updates(optimizer)
    assert said == pytest.approx(max(moved), rel=0.1) if isinstance(optimizer, Adam) else said == 1.0


@pytest.mark.parametrize("script", [{3: ["freeze first"]}, {3: ["freeze norm", "unfreeze first"]}], ids=str)
def test_the_saved_model_holds_the_optimizer_s_state(script: Mapping[int, Sequence[str]], tmp_path: Path):
    made, fit = steered(
        Adam(0.01), script, model=frozen_from_the_start() if "unfreeze" in str(script) else model()
    )
    assert {reply.status for reply in fit.replies} == {"applied"}
    made.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal_weights(made, loaded)
    assert [v.shape for v in loaded.optimizer.variables] == [v.shape for v in made.optimizer.variables]
    for a, b in zip(loaded.optimizer.variables, made.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))


def _paths_as_built(made: keras.Model) -> list[str]:
    fresh = unbuilt_like(made.optimizer)
    fresh.build(made.trainable_variables)
    return [v.path for v in fresh.variables]


def test_validation_takes_no_frozen_layer_for_another_of_its_shape():
    keras.utils.set_random_seed(3)
    made = keras.Sequential(
        [layers.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b"), layers.Dense(1)]
    )
    made.compile(SGD(0.05), "mse")
    fit = SteeredFit({2: ["freeze a"], STEPS + 2: ["unfreeze a", "freeze b"], 2 * STEPS + 2: ["unfreeze b"]})
    fit.callbacks = [fit]
    weights: list[list[np.ndarray]] = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(made.get_weights()))
    history = made.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=3,
        verbose=0,
        shuffle=False,
        validation_data=(X, Y),
        callbacks=[fit, keep],
    ).history
    assert {reply.status for reply in fit.replies} == {"applied"}
    for found, of_epoch in zip(history["val_loss"], weights, strict=True):
        outputs = X.astype("float64")
        for kernel, bias in zip(of_epoch[::2], of_epoch[1::2], strict=True):
            outputs = outputs @ kernel + bias
        assert found == pytest.approx(((outputs - Y) ** 2).mean(), rel=1e-4)


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────────


def share_of_zeros(y: Any, outputs: Any) -> Any:
    return keras.ops.mean(keras.ops.cast(keras.ops.equal(outputs, 0), "float32"), axis=-1)


def test_a_dropout_rate_takes_effect_and_is_saved(tmp_path: Path):
    keras.utils.set_random_seed(3)
    made = keras.Sequential(
        [layers.Input((4,)), layers.Dense(200, name="wide"), layers.Dropout(0.1, name="drop")]
    )
    made.compile(SGD(0.0001), "mse", metrics=[share_of_zeros])
    fit = SteeredFit({STEPS: ["set drop.rate=0.7"]})
    fit.callbacks = [fit]
    shares = made.fit(
        X, np.zeros((len(X), 200)), batch_size=BATCH, epochs=2, verbose=0, callbacks=[fit]
    ).history["share_of_zeros"]
    assert (fit.replies[0].before, fit.replies[0].after) == ({"drop.rate": 0.1}, {"drop.rate": 0.7})
    assert shares == pytest.approx([0.1, 0.7], abs=0.02)
    made.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras", compile=False).get_layer("drop").rate == 0.7


def test_strengths_of_regularisation_count_in_training_and_validation(tmp_path: Path):
    made = model()
    made.get_layer("drop").rate = 0.0
    made.compile(SGD(1e-12), "mse")
    fit = SteeredFit({STEPS: ["set second.l2=0.5 last.l1=0.25", "set se*.l1=0"]})
    fit.callbacks = [fit]
    history = made.fit(
        X, Y, batch_size=BATCH, epochs=2, verbose=0, shuffle=False, validation_data=(X, Y), callbacks=[fit]
    ).history
    changed, cleared = fit.replies
    assert changed.before == {"second.l2": 0.0, "last.l1": 0.0} and changed.after == {
        "second.l2": 0.5,
        "last.l1": 0.25,
    }
    assert cleared.before == {"second.l1": pytest.approx(1e-3)} and cleared.after == {"second.l1": 0.0}
    second, last = (made.get_layer(name).get_weights()[0].astype("float64") for name in ("second", "last"))
    added = 0.5 * (second**2).sum() + 0.25 * abs(last).sum() - 1e-3 * abs(second).sum()
    assert np.diff(history["loss"])[0] == pytest.approx(added, rel=1e-3)
    made.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("second").kernel_regularizer.get_config() == {"l2": 0.5}
    # The moving statistics differ from epoch to epoch, so that validation is compared with the model as it is.
    made.compile(loss="mse")
    assert history["val_loss"][1] == pytest.approx(made.evaluate(X, Y, batch_size=BATCH, verbose=0), rel=1e-5)


@not_compiled
def test_a_number_that_is_already_so_is_not_set_again():
    _, fit = steered(SGD(0.1), {2: ["set drop.rate=0.5 norm.momentum=0.99"]}, model=model(), epochs=1)
    (reply,) = fit.replies
    assert (reply.status, reply.reason, fit.traces) == ("ineffective", "it was so already", 0)


class Wide(keras.regularizers.Regularizer):
    def __call__(self, weights: Any) -> Any:
        return keras.ops.sum(weights)


def unusual() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, name="lora", lora_rank=2),
            layers.Dense(6, name="custom", kernel_regularizer=Wide()),
            layers.Dropout(0.0, name="drop"),
            layers.LeakyReLU(0.2, name="leaky"),
            layers.Dense(1, name="last"),
        ]
    )


REFUSALS = {
    "freeze lats": "no layer 'lats'; possible: last, ",
    "freeze *": "no weights would be left to train",
    "freeze drop leaky": "drop, leaky has no weights to train; possible: lora, custom, last",
    "unfreeze lora": "lora is held by LoRA",
    "set drop.rate=0.3": "drop.rate: the layer was made with rate 0 and so without a random generator",
    "set drop.rate=1": "drop.rate must be at least 0 and below 1, received 1",
    "set drop.rate=nan": "drop.rate must be at least 0 and below 1, received nan",
    "set leaky.negative_slope=1e400": "leaky.negative_slope must be a finite number from 0 on, received inf",
    "set leaky.negative_slope=much": "leaky.negative_slope must be a number, received 'much'",
    "set leaky.rate=0.2": "leaky has no 'rate' that can be set; possible: negative_slope",
    "set last.rate=0.2": "last has no 'rate' that can be set; possible: l1, l2",
    "set nowhere.rate=0.2": "no layer 'nowhere'; possible: ",
    "set custom.l2=0.1": "custom.l2: the kernel has a regularizer of another kind (Wide)",
    "set lora.l2=0.1": "lora.l2: the layer's kernel is quantized or held by LoRA",
    "set last.l2=-1": "last.l2 must be a finite number from 0 on, received -1",
    "set last.l2=0.1 la*.l2=0.2": "last.l2 is given twice",
    "reinit lora": "lora is held by LoRA",
    "reinit drop": "drop has no weights of its own; possible: lora, custom, last, or dead-units",
    "reinit nowhere": "no layer 'nowhere'; possible: ",
    "reinit dead-units": "no trained Dense or Conv layer of this model has a ReLU",
}


@not_compiled
def test_what_is_not_possible_is_refused_with_what_is_and_changes_nothing():
    made, fit = steered(SGD(0.1), {2: list(REFUSALS)}, model=unusual(), epochs=1)
    for reply, reason in zip(fit.replies, REFUSALS.values(), strict=True):
        assert reply.status == "refused" and reply.reason.startswith(reason), reply
    assert fit.traces == 0
    assert_equal_weights(made, steered(SGD(0.1), {}, model=unusual(), epochs=1)[0])


# ── Fresh weights ─────────────────────────────────────────────────────────────────────────────────


def test_a_layer_begins_anew_with_its_moments_and_statistics():
    made = model()
    weights, kept = Weights(), {}
    begun: list[np.ndarray] = []

    class Looking(SteeredFit):
        def send(self, text: str) -> Reply:
            reply = super().send(text)
            kept.update({layer.name: layer.get_weights() for layer in made.layers})
            begun[:] = [keras.ops.convert_to_numpy(v) for v in made.optimizer.variables if "first" in v.path]
            return reply

    made.compile(Adam(0.01), "mse")
    build_optimizer(made)
    fit = Looking({5: ["reinit first norm"]})
    fit.callbacks = [weights, fit]
    made.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False, callbacks=[weights, fit])
    (reply,) = fit.verified
    assert reply.status == "applied" and "moving statistics of BatchNormalization begin anew" in reply.reason
    assert len(begun) == 4 and not any(moment.any() for moment in begun)
    kernel, bias = kept["first"]
    assert not bias.any() and not np.isclose(kernel, weights.kept[5]["first"][0]).any()
    assert abs(kernel).max() <= np.sqrt(6 / (4 + 6))  # Glorot's bound
    assert [float(v[0]) for v in kept["norm"]] == [1.0, 0.0, 0.0, 1.0]
    for name in ("second", "last"):
        for a, b in zip(kept[name], weights.kept[5][name], strict=True):
            np.testing.assert_array_equal(a, b)
    assert weights.moved(5) == {"first", "norm", "second", "last"}


@not_compiled
def test_a_seed_of_the_initializer_does_not_give_the_same_weights_again():
    keras.utils.set_random_seed(3)
    seeded = keras.initializers.GlorotUniform(seed=1)
    made = keras.Sequential(
        [layers.Input((4,)), layers.Dense(6, kernel_initializer=seeded, name="a"), layers.Dense(1)]
    )
    kernels = [made.get_layer("a").get_weights()[0]]

    class Looking(SteeredFit):
        def send(self, text: str) -> Reply:
            reply = super().send(text)
            kernels.append(made.get_layer("a").get_weights()[0])
            return reply

    made.compile(SGD(0.0001), "mse")
    fit = Looking({2: ["reinit a"], 4: ["reinit a"]})
    fit.callbacks = [fit]
    made.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[fit])
    assert {reply.status for reply in fit.replies} == {"applied"}
    first, second, third = kernels
    assert not np.isclose(first, second).any() and not np.isclose(second, third).any()


def image_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5, activation="relu", name="dense"),
            layers.Dense(1, name="last"),
        ]
    )


IMAGES = np.random.default_rng(1).normal(size=(64, 6, 6, 2)).astype("float32")


class At(keras.callbacks.Callback):
    """Sends commands, and changes the model, before given steps of a watched fit; goes before the MonitorCallback."""

    def __init__(
        self,
        watching: MonitorCallback,
        script: Mapping[int, Sequence[str]],
        change: Mapping[int, Callable[[keras.Model], None]] | None = None,
    ) -> None:
        super().__init__()
        self.watching, self.script, self.change = watching, script, change or {}
        self.step = 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if self.step in self.change:
            self.change[self.step](self.model)
        run = self.watching._run
        for text in self.script.get(self.step, ()):
            assert run is not None and run._link is not None
            run._link._take_command(Command(id=f"{self.step} {text}", text=text, who="ada@box"))
        self.step += 1


def kill(made: keras.Model) -> None:
    """Two units of the dense layer, and one of the convolution through its normalisation."""
    dense, norm = made.get_layer("dense"), made.get_layer("norm")
    dense.bias.assign(np.array([-1e3, 0, 0, -1e3, 0], "float32"))
    norm.beta.assign(np.array([0, -1e3, 0, 0], "float32"))


def test_dead_units_begin_anew_and_the_model_computes_what_it_did(tmp_path: Path):
    made = image_model()
    made.compile(Adam(0.001), "mse")
    build_optimizer(made)
    weights = Weights()
    watching = MonitorCallback("dead", directory=tmp_path, statistics_every=0)
    commands = ["reinit dead-units --dry-run", "reinit dead-units"]
    at = At(watching, {3: commands}, {3: kill})
    made.fit(
        IMAGES, Y, batch_size=BATCH, epochs=1, verbose=0, shuffle=False, callbacks=[at, watching, weights]
    )
    planned, applied = of_kind(watching.recording, Reply)
    assert [line.text for line in planned.plan[:2]] == [
        "fresh incoming weights for 1 of 4 units of conv",
        "fresh incoming weights for 2 of 5 units of dense",
    ]
    assert applied.status == "applied", applied
    assert applied.before == {"conv.dead_units": 1, "dense.dead_units": 2}
    # New weights may be such that a unit is 0 on these batches again.
    assert applied.after["conv.dead_units"] == 0 and applied.after["dense.dead_units"] < 2
    after = weights.kept[3]
    assert [float(values[1]) for values in after["norm"]] == [1.0, 0.0, 0.0, 1.0]
    read, bias = after["dense"]
    assert not read.reshape(4, 4, 5)[:, 1, [1, 2, 4]].any() and read.reshape(4, 4, 5)[:, 0].all()
    last, _ = after["last"]
    assert not last[[0, 3]].any() and last[[1, 2, 4]].all()
    assert bias[[0, 3]].tolist() == [0.0, 0.0]


def test_where_no_unit_is_dead_nothing_is_changed():
    """A unit for each sign of each input: one of two is above 0 for each example."""
    keras.utils.set_random_seed(3)
    made = keras.Sequential(
        [layers.Input((4,)), layers.Dense(8, activation="relu", name="both"), layers.Dense(1)]
    )
    made.get_layer("both").set_weights([np.hstack([np.eye(4), -np.eye(4)]), np.zeros(8)])
    made.compile(SGD(1e-6), "mse")
    watching = MonitorCallback("alive", statistics_every=0)
    at = At(watching, {2: ["reinit dead-units"]})
    made.fit(X, Y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[at, watching])
    (reply,) = of_kind(watching.recording, Reply)
    assert reply.status == "ineffective", reply
    assert reply.reason.endswith("each unit of both is above 0 for some of the next 32 examples")


# ── Undone, and recorded ──────────────────────────────────────────────────────────────────────────

UNDONE = {
    "one": ["unfreeze last"],
    "several": [
        "freeze second",
        "set drop.rate=0.1 second.l2=0.1 norm.momentum=0.5",
        "reinit *",
        "optimizer sgd learning_rate=0.1",
    ],
}


@pytest.mark.parametrize("name", UNDONE)
def test_undo_leaves_a_training_as_if_nothing_had_been_sent(name: str):
    def part() -> keras.Model:
        made = model()
        made.get_layer("last").trainable = False
        return made

    commands = UNDONE[name]
    made, fit = steered(Adam(0.01), {5: [*commands, *["undo"] * len(commands)]}, model=part())
    assert {reply.status for reply in fit.replies} == {"applied"}, fit.replies
    twin, _ = steered(Adam(0.01), {}, model=part())
    assert_equal_weights(made, twin)
    assert len(made.optimizer.variables) == len(twin.optimizer.variables)


BEGUN_ANEW: dict[str, tuple[Callable[[], keras.optimizers.Optimizer], str]] = {
    "moments": (lambda: Adam(0.01), "unfreeze first"),
    "averages": (lambda: Adam(0.01, use_ema=True, ema_overwrite_frequency=3), "unfreeze first"),
    "scaled": (lambda: LossScaleOptimizer(Adam(0.01), initial_scale=8.0), "unfreeze first"),
    "before the first step": (lambda: keras.optimizers.Nadam(0.01), "freeze second"),
}


@pytest.mark.parametrize("name", BEGUN_ANEW)
def test_nothing_is_left_of_an_undone_training_in_what_the_optimizer_came_to_keep_in_it(name: str):
    make, command = BEGUN_ANEW[name]
    first = 0 if name == "before the first step" else STEPS
    again = {first: [command], first + STEPS: ["undo", command]}
    made, fit = steered(
        make(), again, model=frozen_from_the_start(), epochs=3 if first else 2, unbuilt=not first
    )
    assert {reply.status for reply in fit.replies} == {"applied"}, fit.replies
    twin, _ = steered(
        make(), {first: [command]}, model=frozen_from_the_start(), epochs=2 if first else 1, unbuilt=not first
    )
    assert_equal_weights(made, twin)


@not_compiled
def test_what_was_frozen_for_some_steps_is_trained_again_by_the_optimizer_of_then():
    weights = Weights()
    script = {2: ["freeze first for 6 steps"], 4: ["optimizer adafactor learning_rate=0.01"]}
    _, fit = steered(SGD(0.05), script, model=model(), callbacks=[weights])
    assert {reply.status for reply in fit.verified} == {"applied"}, fit.verified
    moved = ["first" in weights.moved(step) for step in range(2 * STEPS - 1)]
    assert moved == [True] * 2 + [False] * 6 + [True] * 7
    assert Adafactor.__name__ == type(fit.model.optimizer).__name__


def test_recording_goes_on_for_the_weights_that_are_trained(tmp_path: Path):
    made = dense_model()
    made.compile(Adam(0.01), "mse")
    build_optimizer(made)
    first, last = (layer.name for layer in made.layers)
    watching = MonitorCallback("frozen", directory=tmp_path, statistics_every=2)
    at = At(watching, {3: [f"freeze {first}"]})
    made.fit(X, Y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[at, watching])
    assert [reply.status for reply in of_kind(watching.recording, Reply)] == ["applied"]
    assert of_kind(watching.recording, protocol.Problem) == []
    columns = series(watching.recording)
    assert len(columns["loss"]) == STEPS and np.isfinite(columns["grad_norm"]).all()
    sampled = [protocol.sample_steps(part).tolist() for part in of_kind(watching.recording, protocol.Samples)]
    assert {step > 3 for part in sampled for step in part} == {True, False}
    layers_of = [
        {label.split("/")[-2] for one in layout.statistics if one.of == "variables" for label in one.labels}
        for layout in of_kind(watching.recording, protocol.Instrumented)
    ]
    assert layers_of[0] == {first, last} and layers_of[-1] == {last}
