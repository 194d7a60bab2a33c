"""Whatever is sent, in whatever order: the training never raises, and undoing everything leads back to the start."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from client_callback.steering.state import State, capture
from client_callback.wire.protocol import Reply
from tests.steered_fit import BACKEND, BATCH, STEPS, SteeredFit, X, build_optimizer

pytestmark = [pytest.mark.every_backend, pytest.mark.timeout(300)]

LABELS = (X[:, 0] > 0).astype("int64")
EXAMPLES = {"torch": 40, "tensorflow": 5, "jax": 3}[BACKEND]
"""Where each change is compiled anew, few."""

SOUND = [
    "lr 0.02",
    "lr x0.5",
    "lr /3",
    "lr 1e-3 over 3 steps",
    "lr x0.5 for 2 steps",
    "lr x2 unless loss rises 1% in 3 steps",
    "lr x0.5 at step 12",
    "lr x0.1 when plateau",
    "lr 0.05 hold",
    "schedule cosine decay_steps=10",
    "schedule step decay_steps=2 decay_rate=0.5",
    "schedule warmup warmup_steps=4",
    "schedule constant",
    "schedule reduce-on-plateau patience=1",
    "optimizer sgd learning_rate=0.05 momentum=0.9",
    "optimizer adam",
    "optimizer adamw learning_rate=match weight_decay=0.01",
    "optimizer rmsprop learning_rate=0.001 from start",
    "set clipnorm=1",
    "set momentum=0.5",
    "set beta_1=0.8 epsilon=1e-6",
    "set dropout.rate=0.5",
    "set hidden.l2=0.01",
    "accumulate 3",
    "accumulate 1",
    "freeze hidden",
    "unfreeze *",
    "class-weight 0=1 1=3",
    "class-weight none",
    "reinit hidden",
    "snapshot here",
    "rollback here",
    "rollback start",
    "rollback last",
    "undo",
    "undo settings",
    "redo",
    "cancel all",
    "timers",
    "pause",
    "resume",
    "note hello",
    "evaluate",
]
WRONG = [
    "",
    "lr",
    "lr nan",
    "lr -1",
    "lr 1e300",
    "lr x1e-60",
    "optimizer none_such",
    "optimizer adam beta_1=2",
    "optimizer sgd learning_rate=-1",
    "schedule linear",
    "schedule cosine decay_steps=0",
    "schedule cosine",
    "set nothing=1",
    "set clipnorm=-1",
    "set dropout.rate=1.5",
    "set nowhere.rate=0.5",
    "freeze nowhere",
    "freeze *",
    "class-weight 7=1",
    "class-weight 0=-1",
    "loss-weight nowhere=1",
    "accumulate 0",
    "reinit nowhere",
    "rollback nowhere",
    "cancel 99",
    "checkpoint /nowhere/at/all.keras",
    "checkpoint model.txt",
    "trial keep for 0 steps",
    "extend 3 epochs",
    "lr x0.5 for 0 steps",
    "lr x0.5 at step 0",
    "lr x0.5 unless nothing rises 1% in 5 steps",
    "render",
]


def model(kind: str) -> keras.Model:
    keras.utils.set_random_seed(3)
    made = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, activation="relu", name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(2, name="classes", dtype="float32"),
        ]
    )
    optimizers = {
        "adam": lambda: Adam(0.01),
        "schedule": lambda: SGD(CosineDecay(0.05, 30), momentum=0.9),
        "accumulation": lambda: Adam(0.01, gradient_accumulation_steps=2),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(optimizers[kind](), loss, metrics=["accuracy"])
    build_optimizer(made)
    return made


class Undone(SteeredFit):
    """At the end, before the last step, takes everything back."""

    start: State | None = None
    """As the training was before the first of the changes that are to be taken back."""

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.note_start()
        if self.step == LAST:
            self.script[LAST] = ["cancel all"]
        super().on_train_batch_begin(batch, logs)
        if self.step == LAST:
            while self.steering.history.done:
                assert self.send("undo").status == "applied", self.replies[-1]
            self.end = capture(self.model, self.step)

    def send(self, text: str) -> Reply:
        self.note_start()
        return super().send(text)

    def note_start(self) -> None:
        if not self.steering.history.done and self.step < LAST:
            self.start = capture(self.model, self.step)


FIRST, LAST = 1, 2 * STEPS - 1

scripts = st.dictionaries(
    st.integers(FIRST, LAST - 1), st.lists(st.sampled_from(SOUND + WRONG), min_size=1, max_size=3), max_size=5
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(script=scripts, kind=st.sampled_from(["adam", "schedule", "accumulation"]))
def test_any_commands_in_any_order_never_raise_and_undoing_all_of_them_leads_back(script, kind):
    made, fit = model(kind), Undone(script)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = made.fit(
            X,
            LABELS,
            batch_size=BATCH,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(X[:8], LABELS[:8]),
            callbacks=[fit],
        )
    assert len(history.history["loss"]) == 2 and fit.step == 2 * STEPS
    assert all(reply.reason for reply in fit.replies if reply.status in ("refused", "failed", "ineffective"))
    assert not [reply for reply in fit.replies if reply.status == "failed"], fit.replies
    if any(reply.text == "undo" and reply.step == LAST for reply in fit.replies):
        assert fit.start.settings == fit.end.settings
        for variable in fit.start.variables:
            key = id(variable)
            np.testing.assert_array_equal(fit.start.values[key], fit.end.values[key], err_msg=variable.path)


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_command_is_refused_with_what_is_possible_and_touches_nothing(text):
    made, fit = shared_fit()
    before = capture(made, fit.step)
    reply = fit.send(text)
    assert reply.status == "refused" and len(reply.reason) > 15, reply
    after = capture(made, fit.step)
    assert before.settings == after.settings and not fit.steering.history.done
    for key, value in before.values.items():
        np.testing.assert_array_equal(value, after.values[key])


_shared: list[tuple[keras.Model, SteeredFit]] = []


def shared_fit() -> tuple[keras.Model, SteeredFit]:
    """One training, held between two batches for all of the cases: they change nothing of it."""
    if not _shared:
        made = model("adam")
        fit = SteeredFit({})
        made.fit(X, LABELS, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[fit])
        _shared.append((made, fit))
    return _shared[0]
