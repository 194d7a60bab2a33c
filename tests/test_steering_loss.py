"""Weights of classes and of outputs: the loss is the weighted one, computed by hand, and nothing else is another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from keras.losses import SparseCategoricalCrossentropy
from keras.optimizers import SGD

from client_callback import MonitorCallback
from client_callback.wire.protocol import Command, Reply
from tests.recorded import of_kind, series
from tests.steered_fit import BATCH, STEPS, SteeredFit, X, assert_equal_weights, not_compiled

pytestmark = pytest.mark.every_backend

CLASSES = np.random.default_rng(5).integers(0, 3, len(X))
BINARY = (CLASSES > 0).astype("float32")
TINY = 1e-9
"""A rate at which the weights stay what they are, as far as the loss can tell."""


def classifier(units: int = 3, activation: str | None = "softmax") -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential([layers.Input((4,)), layers.Dense(units, activation=activation, name="out")])


class Subclassed(keras.Model):
    """Its output is known only inside its train step."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(3)
        self.out = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(x)


class OwnStep(keras.Model):
    """Its train step does not compute the loss where Keras does."""

    def train_step(self, *args: Any) -> Any:
        compute_loss, self.compute_loss = self.compute_loss, super().compute_loss
        try:
            return super().train_step(*args)
        finally:
            self.compute_loss = compute_loss


def fitted(
    made: keras.Model,
    loss: Any,
    targets: Any,
    script: Mapping[int, Sequence[str]],
    *,
    rate: float = TINY,
    epochs: int = 2,
    counts: Mapping[int, float] | None = None,
    **given: Any,
) -> tuple[SteeredFit, dict[str, list[float]]]:
    made.compile(SGD(rate), loss)
    fit = SteeredFit(script)
    fit.callbacks, fit.label_counts = [fit], counts or {}
    history = made.fit(
        X,
        targets,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        shuffle=False,
        validation_data=(X, targets),
        callbacks=[fit],
        **given,
    )
    return fit, history.history


# ── Classes ───────────────────────────────────────────────────────────────────────────────────────


def crossentropies(made: keras.Model) -> np.ndarray:
    """Of each example, by hand."""
    kernel, bias = (weight.astype("float64") for weight in made.get_weights())
    outputs = X @ kernel + bias
    if outputs.shape[1] == 1:
        signed = np.where(BINARY > 0, 1, -1) * outputs[:, 0]
        return np.log1p(np.exp(-signed))
    return np.log(np.exp(outputs).sum(1)) - outputs[np.arange(len(X)), CLASSES]


WEIGHED: dict[str, tuple[Callable[[], keras.Model], Any, np.ndarray, Mapping[str, Any]]] = {
    "numbers": (classifier, "sparse_categorical_crossentropy", CLASSES, {}),
    "columns": (classifier, "sparse_categorical_crossentropy", CLASSES[:, None], {}),
    "one-hot": (classifier, "categorical_crossentropy", np.eye(3)[CLASSES], {}),
    "subclassed": (Subclassed, SparseCategoricalCrossentropy(from_logits=True), CLASSES, {}),
    "binary": (lambda: classifier(1, "sigmoid"), "binary_crossentropy", BINARY, {}),
    "times the given": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {"sample_weight": np.linspace(0.5, 2, len(X))},
    ),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_the_loss_is_weighted_by_the_class_of_each_example(name: str):
    make, loss, targets, given = WEIGHED[name]
    made = make()
    fit, history = fitted(made, loss, targets, {STEPS: ["class-weight 0=3 1=0.5"]}, **given)
    (reply,) = fit.verified
    assert reply.status == "applied", reply
    assert (reply.before, reply.after) == ({"class_weight": "none"}, {"class_weight": "0=3 1=0.5"})
    assert "metrics and val_loss stay unweighted" in reply.reason
    labels = BINARY.astype(int) if name == "binary" else CLASSES
    each = crossentropies(made) * given.get("sample_weight", 1.0)
    assert history["loss"][0] == pytest.approx(each.mean(), rel=1e-4)
    assert history["loss"][1] == pytest.approx((each * np.array([3, 0.5, 1])[labels]).mean(), rel=1e-4)
    assert history["val_loss"] == pytest.approx([crossentropies(made).mean()] * 2, rel=1e-4)
    assert "compute_loss" not in vars(made)  # they last as long as the fit


def test_the_next_fit_is_unweighted():
    made = classifier()
    fitted(made, "sparse_categorical_crossentropy", CLASSES, {3: ["class-weight 0=3"]})
    alone = made.fit(X, CLASSES, batch_size=BATCH, verbose=0, shuffle=False).history["loss"][0]
    assert alone == pytest.approx(crossentropies(made).mean(), rel=1e-4)


@not_compiled
def test_balanced_weights_give_each_class_the_same_share():
    counts = {0: 150.0, 1: 50.0, 2: 25.0}
    script = {2: ["class-weight balanced"], 4: ["class-weight none"]}
    fit, _ = fitted(classifier(), "sparse_categorical_crossentropy", CLASSES, script, epochs=1, counts=counts)
    balanced, none = fit.verified
    assert balanced.after == {"class_weight": "0=0.5 1=1.5 2=3"}
    assert (none.status, none.after) == ("applied", {"class_weight": "none"})
    assert none.reason == "the recorded loss is unweighted again"


def test_labels_are_counted_as_training_goes_on(tmp_path: Path):
    """What `balanced` needs comes from the statistics of a watched fit."""
    made = classifier()
    made.compile(SGD(TINY), "sparse_categorical_crossentropy")
    watching = MonitorCallback("balanced", directory=tmp_path, statistics_every=1)

    class At(keras.callbacks.Callback):
        async_safe = True
        step = 0

        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            if self.step in (2, 2 * STEPS):
                link = watching._run._link
                link._take_command(Command(id=str(self.step), text="class-weight balanced", who="ada@box"))
            self.step += 1

    made.fit(X, CLASSES, batch_size=BATCH, epochs=3, verbose=0, shuffle=False, callbacks=[At(), watching])
    early, applied = of_kind(watching.recording, Reply)
    assert early.status == "refused" and early.reason.startswith("only 16 labels were counted so far")
    assert applied.status == "applied", applied
    weights = len(X) / (3 * np.bincount(CLASSES))
    assert applied.after == {"class_weight": " ".join(f"{label}={w:.6g}" for label, w in enumerate(weights))}
    weighted = (crossentropies(made) * weights[CLASSES]).reshape(STEPS, BATCH).mean(1)
    np.testing.assert_allclose(series(watching.recording)["loss"][2 * STEPS :], weighted, rtol=1e-4)


def test_it_is_told_when_the_train_step_computes_no_loss_that_could_be_weighted():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    made = OwnStep(inputs, layers.Dense(3, activation="softmax")(inputs))
    fit, _ = fitted(made, "sparse_categorical_crossentropy", CLASSES, {2: ["class-weight 0=3"]}, epochs=1)
    (reply,) = fit.verified
    assert reply.status == "ineffective", reply
    assert reply.reason.startswith("the train step does not call compute_loss, so the loss is not weighted")


def own_loss(y: Any, outputs: Any) -> Any:
    return keras.ops.mean(outputs, axis=-1)


REFUSED: dict[str, tuple[Callable[[], keras.Model], Any, Any, Mapping[int, float], str, str]] = {
    "class": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {},
        "class-weight 3=2",
        "no class 3; possible: 0 to 2",
    ),
    "few": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {0: 50.0, 1: 49.0, 2: 0.0},
        "class-weight balanced",
        "only 99 labels were counted so far, and balanced needs 100",
    ),
    "none": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {},
        "class-weight balanced",
        "no labels were counted, and balanced needs 100",
    ),
    "unseen": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {0: 90.0, 1: 30.0, 2: 0.0},
        "class-weight balanced",
        "among 120 labels there was none of class 2",
    ),
    "regression": (
        lambda: classifier(1, None),
        "mse",
        BINARY,
        {},
        "class-weight 1=2",
        "the loss tells of no classes: it is a regression, or of an unknown kind",
    ),
    "unknown": (
        lambda: classifier(1, None),
        own_loss,
        BINARY,
        {},
        "class-weight 1=2",
        "the loss tells of no classes",
    ),
    "labels": (
        lambda: classifier(3, "sigmoid"),
        "binary_crossentropy",
        np.eye(3)[CLASSES],
        {},
        "class-weight 1=2",
        "each example may be of several of the 3 classes",
    ),
    "output": (
        classifier,
        "sparse_categorical_crossentropy",
        CLASSES,
        {},
        "loss-weight out=2",
        "the loss has one part only, and a weight would scale it as `lr` scales the step; use lr",
    ),
}


@not_compiled
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_possible_is_refused_with_what_is(name: str):
    make, loss, targets, counts, text, reason = REFUSED[name]
    fit, _ = fitted(make(), loss, targets, {1: [text]}, epochs=1, counts=counts)
    assert fit.replies[0].status == "refused" and fit.replies[0].reason.startswith(reason), fit.replies[0]
    assert fit.traces == 0


# ── Outputs ───────────────────────────────────────────────────────────────────────────────────────


def two_outputs(*, named: bool) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    outputs = {name: layers.Dense(1, name=name)(inputs) for name in ("p", "q")}
    return keras.Model(inputs, outputs if named else list(outputs.values()))


TARGETS = {"p": X[:, :1], "q": X[:, 1:2]}
WAYS: dict[str, tuple[bool, Any]] = {
    "by name": (True, {"p": "mse", "q": "mae"}),
    "in order": (False, ["mse", "mae"]),
    "one for all": (False, "mse"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_loss_is_the_weighted_sum_of_those_of_the_outputs(name: str, tmp_path: Path):
    named, loss = WAYS[name]
    made = two_outputs(named=named)
    script = {
        STEPS: [
            "loss-weight r=1",
            "loss-weight p=0 q=0",
            "loss-weight p=1",
            "class-weight 1=2",
            "loss-weight p=0.25",
        ]
    }
    fit, history = fitted(made, loss, TARGETS if named else list(TARGETS.values()), script)
    unknown, nothing, same, classes, applied = fit.replies
    assert unknown.reason == "no output 'r' with a loss; possible: p, q"
    assert nothing.reason.startswith("no output would count any more")
    assert (same.status, same.reason) == ("ineffective", "it was so already")
    assert classes.status == "refused" and "several outputs" in classes.reason
    assert applied.status == "applied"
    assert (applied.before, applied.after) == ({"p.loss_weight": 1.0}, {"p.loss_weight": 0.25})
    for prefix in ("", "val_"):
        p, q, whole = (np.array(history[f"{prefix}{part}loss"]) for part in ("p_", "q_", ""))
        np.testing.assert_allclose(whole, np.array([1, 0.25]) * p + q, rtol=1e-4)
    made.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded._compile_loss._user_loss_weights == ({"p": 0.25, "q": 1.0} if named else [0.25, 1.0])


# ── Undone ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["class-weight 0=3", "loss-weight p=3"])
def test_undo_leaves_a_training_as_if_nothing_had_been_sent(text: str):
    def trained(script: Mapping[int, Sequence[str]]) -> tuple[keras.Model, SteeredFit]:
        if text.startswith("class"):
            made: keras.Model = classifier()
            return made, fitted(made, "sparse_categorical_crossentropy", CLASSES, script, rate=0.1)[0]
        made = two_outputs(named=True)
        return made, fitted(made, {"p": "mse", "q": "mae"}, TARGETS, script, rate=0.1)[0]

    made, fit = trained({5: [text, "undo"]})
    assert {reply.status for reply in fit.replies} == {"applied"}
    assert_equal_weights(made, trained({})[0])
