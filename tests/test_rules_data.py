"""What the rules on labels, losses, layers and inputs say beyond their examples: numbers against numpy and Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_callback.description import describe_model
from monitor.diagnosis import (
    bad_initialisation,
    frozen_layer,
    hidden_activation,
    input_scale,
    label_encoding,
    wrong_output_activation,
)
from monitor.diagnosis.case import Case
from monitor.diagnosis.engine import examine
from monitor.diagnosis.examples import labelled, trained, trained_on
from monitor.diagnosis.targets import Targets, fitting, targets_of


def described(values: np.ndarray) -> Targets:
    session = trained(1, "sigmoid", "binary_crossentropy", data=trained_on(targets=labelled(values)))
    targets = targets_of(Case(session))
    assert targets is not None
    return targets


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 2.0, 7.5, 255.0]), min_size=20, max_size=60),
)
def test_mean_spread_and_range_tell_whether_there_are_just_two_values(values: list[float]):
    targets = described(np.array(values))._replace(classes={})
    assert targets.two_valued == (len(set(values)) == 2)


@pytest.mark.parametrize(
    ("values", "units", "activation", "labels"),
    [
        (np.repeat([1, 2], 100), 1, "sigmoid", "y = (y > 1).astype(int)"),
        (np.repeat([0, 255], 100), 1, "sigmoid", "y = (y > 0).astype(int)"),
        (np.repeat([1, 2, 3], 100), 3, "softmax", "y = y - 1"),
        (np.repeat([0, 5, 9], 100), 3, "softmax", "y = numpy.unique(y, return_inverse=True)[1]"),
        (np.linspace(0.5, 30.25, 200), 1, "linear", ""),
    ],
)
def test_the_fitting_output_and_encoding_follow_from_the_labels(values, units, activation, labels):
    fit = fitting(described(values))
    assert (fit.units, fit.activation, fit.labels) == (units, activation, labels)
    if labels:
        changed = eval(labels.removeprefix("y = "), {"numpy": np, "y": values})
        assert sorted(set(changed)) == list(range(max(units, 2)))


@pytest.mark.parametrize(
    "initializer",
    [
        "glorot_uniform",
        "glorot_normal",
        "he_uniform",
        "he_normal",
        "lecun_uniform",
        "lecun_normal",
        "orthogonal",
    ],
)
def test_frozen_weights_are_recognised_as_their_initializer_drew_them(initializer: str):
    keras.utils.set_random_seed(3)
    first = keras.layers.Dense(40, kernel_initializer=initializer, trainable=False)
    convolution = keras.layers.Conv1D(24, 3, kernel_initializer=initializer, trainable=False)
    model = keras.Sequential([keras.Input((16, 30)), first, convolution])
    for layer in describe_model(model).layers:
        assert frozen_layer._is_frozen_at_random(layer), layer.name
    first.kernel.assign(first.kernel * 1.3 + 0.02)
    assert not frozen_layer._is_frozen_at_random(describe_model(model).layers[0])


@pytest.mark.parametrize(
    ("initializer", "activation"),
    [("he_normal", "relu"), ("glorot_uniform", "linear"), ("lecun_normal", "tanh")],
)
def test_the_gain_of_usual_initializers_is_about_one(initializer: str, activation: str):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(256, activation, kernel_initializer=initializer) for _ in range(3)]
    model = keras.Sequential([keras.Input((256,)), *layers])
    session = trained(1, "sigmoid", "binary_crossentropy", layers=describe_model(model).layers)
    gains = [kernel.gain for kernel in bad_initialisation._kernels(Case(session))]
    assert gains == pytest.approx([1.0] * 3, abs=0.05)
    x = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    measured = np.sqrt((np.asarray(model(x)) ** 2).mean())
    if activation != "tanh":
        assert measured == pytest.approx(np.prod(gains), rel=0.25)


@pytest.mark.parametrize("rule", [input_scale.RULE, hidden_activation.RULE], ids=lambda rule: rule.name)
def test_what_is_only_suspicious_is_a_warning_in_trouble_and_never_critical_by_itself(rule):
    for example in rule.ailing.values():
        case = Case(example())
        for finding in rule.check(case):
            assert finding.severity != "critical"


def test_labels_outside_the_loss_come_before_all_that_follows_from_them():
    session = label_encoding.AILING["labels are 1 and 2 for a sigmoid"]()
    first, *others = examine(session).findings
    assert first.rule == "label-encoding" and first.severity == "critical"
    assert "plateau" in first.symptoms
    assert not any(finding.rule == "plateau" for finding in others)


def test_a_softmax_over_one_unit_is_said_although_the_loss_falls():
    session = wrong_output_activation.AILING["a softmax over one unit"]()
    assert examine(session).verdict == "stuck"
    assert examine(session).findings[0].rule == "wrong-output-activation"
