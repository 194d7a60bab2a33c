"""What a run says of its model before the first step: layers, weights as they start, outputs and their losses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from client_callback import MonitorCallback
from client_callback.description import describe_run
from client_callback.description.layers import MAX_KERNEL_ENTRIES
from client_callback.wire import protocol
from monitor.session import Session
from tests.recorded import events, of_kind

pytestmark = pytest.mark.every_backend

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
CLASSES = np.arange(16) % 3
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
YES = (CLASSES > 0).astype("float32")


_NAMES = ("first", "norm", "drop", "last")


def described(model: keras.Model, y: object, x: object = X) -> protocol.RunDescription:
    """As recorded by a real fit."""
    callback = MonitorCallback("described", statistics_every=0)
    model.fit(x, y, verbose=0, callbacks=[callback])
    assert not of_kind(callback.recording, protocol.Problem)
    session = Session()
    for event in events(callback.recording):
        session.apply(event)
    assert session.run is not None
    return session.run


def model_of(*stack: keras.layers.Layer, loss: object, **options: object) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile(keras.optimizers.SGD(0.01), loss, **options)
    return model


def test_layers_tell_their_activation_units_settings_and_first_weights():
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, activation=layers.LeakyReLU(), name="inside")]
    )
    model = model_of(
        layers.Dense(
            8,
            "tanh",
            name="first",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(0.25),
        ),
        layers.BatchNormalization(momentum=0.5, name="norm"),
        layers.Dropout(0.3, name="drop"),
        inner,
        layers.Dense(3, use_bias=False, trainable=False, name="last"),
        loss="mse",
    )
    start = {layer.name: np.array(layer.get_weights()[0]) for layer in (model.layers[0], model.layers[-1])}
    run = described(model, ONE_HOT)
    by_name = {layer.name: layer for layer in run.layers}
    assert list(by_name) == [
        "first",
        "norm",
        "drop",
        *(name for name in by_name if name not in _NAMES),
        "last",
    ]
    first, norm, drop, last = (by_name[name] for name in _NAMES)
    assert (first.activation, norm.activation, drop.activation) == ("tanh", "", "")
    assert (by_name["inside"].activation, last.activation) == ("leaky_relu", "linear")
    assert [layer.units for layer in (first, norm, drop, by_name["inside"], last)] == [8, 8, 8, 4, 3]
    assert first.settings["kernel_initializer"] == "HeNormal"
    assert (first.settings["kernel_regularizer"], first.settings["l2"]) == ("L2", 0.25)
    assert (norm.settings["momentum"], drop.settings["rate"]) == (0.5, 0.3)
    assert (last.settings["use_bias"], last.trainable) == (False, False)
    assert (norm.kernel_shape, norm.kernel, drop.kernel) == ((), None, None)
    for layer in (first, last):
        kernel = start[layer.name].astype(np.float64)
        assert layer.kernel_shape == kernel.shape
        found = [layer.kernel.mean, layer.kernel.std, layer.kernel.low, layer.kernel.high]
        np.testing.assert_allclose(
            found, [kernel.mean(), kernel.std(), kernel.min(), kernel.max()], rtol=1e-6
        )


def test_of_a_large_kernel_evenly_spaced_rows_are_read():
    model = model_of(layers.Dense(3 * MAX_KERNEL_ENTRIES // 6, name="wide"), layers.Dense(3), loss="mse")
    kernel = np.array(model.layers[0].get_weights()[0]).astype(np.float64)
    (wide, _) = described(model, ONE_HOT).layers
    rows = kernel[::3]
    np.testing.assert_allclose([wide.kernel.mean, wide.kernel.std], [rows.mean(), rows.std()], rtol=1e-5)


def test_a_kernel_that_is_not_finite_says_so():
    model = model_of(layers.Dense(4), layers.Dense(3), loss="mse")
    kernel, bias = model.layers[0].get_weights()
    kernel[0], kernel[1:] = np.nan, 2.0
    model.layers[0].set_weights([kernel, bias])
    summary = described(model, ONE_HOT).layers[0].kernel
    assert (summary.mean, summary.std, summary.low, summary.high) == (2.0, 0.0, 2.0, 2.0)
    assert summary.non_finite == pytest.approx(1 / 6)


def test_an_output_is_of_the_layer_that_made_its_values():
    model = model_of(layers.Dense(3), layers.Softmax(name="last"), layers.Dropout(0.1), loss="mse")
    (output,) = described(model, ONE_HOT).outputs
    assert (output.layer, output.activation, output.units) == ("last", "softmax", 3)
    assert (output.loss, output.from_logits, output.logits_found) == ("mean_squared_error", False, False)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_each_output_has_the_loss_it_is_trained_with():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax", name="inside")])
    outputs = {
        "kind": layers.Reshape((3,))(inner(inputs)),
        "amount": layers.Dense(1, name="value")(inputs),
        "free": layers.Dense(2, "relu", name="unused")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.01),
        {"kind": "categorical_crossentropy", "amount": keras.losses.BinaryCrossentropy(from_logits=True)},
    )
    found = {
        output.name: output for output in described(model, {"kind": ONE_HOT, "amount": YES[:, None]}).outputs
    }
    assert list(found) == ["amount", "free", "kind"]
    assert [found[name].layer for name in found] == ["value", "unused", "inside"]
    assert [found[name].activation for name in found] == ["linear", "relu", "softmax"]
    assert [found[name].loss for name in found] == ["binary_crossentropy", "", "categorical_crossentropy"]
    assert [found[name].from_logits for name in found] == [True, False, False]


class OwnCall(keras.Model):
    """Its graph is known to nobody but itself."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(5, "relu", name="hidden")
        self.last = layers.Dense(3, "softmax", name="last")

    def call(self, inputs):
        return self.last(self.hidden(inputs))


@pytest.mark.parametrize("built", [False, True], ids=["not built before", "built before"])
def test_of_a_model_with_its_own_call_the_last_layer_made_stands_for_the_output(built):
    model = OwnCall()
    if built:
        model(X[:1])
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    run = described(model, CLASSES)
    (output,) = run.outputs
    assert (output.layer, output.activation, output.units) == ("last", "softmax", 3)
    assert output.loss == "sparse_categorical_crossentropy"
    assert [layer.units for layer in run.layers] == [5, 3]
    assert all(layer.kernel is not None for layer in run.layers)


@pytest.mark.parametrize(
    "options",
    [{}, {"run_eagerly": True}, *([{"jit_compile": True}] if BACKEND != "torch" else [])],
    ids=lambda options: str(*options),
)
def test_a_model_built_in_its_first_step_is_described_as_it_was_before_that(options):
    model = keras.Sequential([layers.Dense(5, "relu", kernel_initializer="ones"), layers.Dense(3)])
    model.compile(keras.optimizers.SGD(1e3), "mse", **options)
    run = described(model, ONE_HOT)
    assert [layer.kernel_shape for layer in run.layers] == [(6, 5), (5, 3)]
    assert (run.layers[0].kernel.low, run.layers[0].kernel.high) == (1.0, 1.0)
    assert (run.parameters, len(run.variables)) == (6 * 5 + 5 + 5 * 3 + 3, 4)
    assert [output.layer for output in run.outputs] == [run.layers[-1].name]


class Unreadable(layers.Layer):
    """Raises wherever it is asked about itself, and counts how often it is called."""

    calls = 0

    def get_config(self):
        raise RuntimeError("not to be read")

    @property
    def activation(self):
        raise RuntimeError("not to be read")

    def call(self, inputs):
        type(self).calls += 1
        return inputs


def test_a_layer_that_cannot_be_read_is_left_as_it_is():
    model = model_of(layers.Dense(3), Unreadable(name="strange"), loss="mse")
    called = Unreadable.calls
    run = describe_run(
        None, model, [], started_at=0.0, epochs=1, steps_per_epoch=1, statistics_every=0, control=True
    )
    assert Unreadable.calls == called
    assert [layer.name for layer in run.layers][-1] == "strange"
    assert run.layers[-1].activation == ""


CASES = {
    "softmax": (lambda: [layers.Dense(3, "softmax")], "categorical_crossentropy", ONE_HOT),
    "softmax, sparse": (lambda: [layers.Dense(3, "softmax")], "sparse_categorical_crossentropy", CLASSES),
    "sigmoid": (lambda: [layers.Dense(1, "sigmoid")], "binary_crossentropy", YES),
    "sigmoid, focal": (lambda: [layers.Dense(1, "sigmoid")], "binary_focal_crossentropy", YES),
    "softmax, focal": (lambda: [layers.Dense(3, "softmax")], "categorical_focal_crossentropy", ONE_HOT),
    "sigmoid where a softmax belongs": (
        lambda: [layers.Dense(3, "sigmoid")],
        "categorical_crossentropy",
        ONE_HOT,
    ),
    "softmax where a sigmoid belongs": (lambda: [layers.Dense(3, "softmax")], "binary_crossentropy", ONE_HOT),
    "own layer": (lambda: [layers.Dense(1), layers.Activation("sigmoid")], "binary_crossentropy", YES),
    "behind identities": (
        lambda: [layers.Dense(1, "sigmoid"), layers.Identity(), layers.Activation("linear")],
        "binary_crossentropy",
        YES,
    ),
    "reshaped": (lambda: [layers.Dense(1, "sigmoid"), layers.Reshape((1,))], "binary_crossentropy", YES),
    "dropped": (
        lambda: [layers.Dense(3, "softmax"), layers.Dropout(0.1)],
        "categorical_crossentropy",
        ONE_HOT,
    ),
    "half precision": (
        lambda: [
            layers.Dense(3, "softmax", dtype="mixed_float16"),
            layers.Activation("linear", dtype="float32"),
        ],
        "categorical_crossentropy",
        ONE_HOT,
    ),
    "hard sigmoid": (lambda: [layers.Dense(1, "hard_sigmoid")], "binary_crossentropy", YES),
    "linear": (lambda: [layers.Dense(1)], "binary_crossentropy", YES),
    "a function of Keras": (lambda: [layers.Dense(1, "sigmoid")], keras.losses.binary_crossentropy, YES),
    "twice": (lambda: [layers.Dense(3, "softmax"), layers.Softmax()], "categorical_crossentropy", ONE_HOT),
}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there Keras looks for them")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_told_whether_keras_finds_the_logits_behind_the_output(case, monkeypatch):
    from keras.src.backend.tensorflow import nn

    stack, loss, y = case
    original, found = nn._get_logits, []

    def watched(output, *others):
        logits, from_logits = original(output, *others)
        found.append(logits is not output)
        return logits, from_logits

    monkeypatch.setattr(nn, "_get_logits", watched)
    (output,) = described(model_of(*stack(), loss=loss), y).outputs
    assert output.logits_found == any(found)
