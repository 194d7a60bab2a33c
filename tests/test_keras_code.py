"""The code that `unstuck export --to keras` writes repeats a session, on a fresh model and without the project."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from itertools import product

import keras
import numpy as np
import pytest
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import CosineDecay

from client_callback import MonitorCallback
from client_callback.wire import protocol
from client_callback.wire.journal import JournalWriter
from client_callback.wire.protocol import Reply
from client_callback.wire.replay import changed_training
from monitor.cli import main
from monitor.keras_code.changes import Change
from monitor.keras_code.helpers import Surroundings, helpers_of
from monitor.keras_code.module import module
from monitor.keras_code.schedules import SOURCES
from tests.steered_fit import (
    BACKEND,
    BATCH,
    X,
    Y,
    assert_equal_weights,
    assert_same_weights,
    build_optimizer,
    dense_model,
)
from tests.test_replay_commands import Sends, replies_in
from tests.toy_runs import description, started

pytestmark = pytest.mark.every_backend

EPOCHS = 2


class Rates(keras.callbacks.Callback):
    """Rate and weights before each step; comes last."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))


LABELS = np.arange(len(X)) % 3


def fitted(optimizer, *callbacks, make=dense_model, loss="mse", targets=Y, unbuilt=False):
    """`unbuilt`: its first step makes the optimizer's slots."""
    keras.utils.clear_session()  # the same names each time
    model = make()
    model.compile(optimizer, loss)
    if not unbuilt:
        build_optimizer(model)
    keras.utils.set_random_seed(5)
    model.fit(
        X, targets, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return model


def interventions(code):
    """An instance of the callback that the code defines."""
    module = {"__name__": "interventions"}
    exec(compile(code, "interventions.py", "exec"), module)
    return module["Interventions"]()


def _of_schedules(name):
    return name in ("steer", "use_schedule", "SteeredSchedule", *SOURCES)


def exported(recording, tmp_path):
    file = tmp_path / "interventions.py"
    assert main(["export", str(recording), "--to", "keras", "-o", str(file)]) == 0
    return file.read_text()


SESSIONS = {
    "optimizer": (
        lambda: Adam(0.01, clipnorm=0.5),
        {
            2: ["lr x0.5", "lr x0.99"],
            4: ["optimizer sgd learning_rate=0.05 momentum=0.9"],
            8: ["optimizer adamw"],
            10: ["lr /3"],
        },
    ),
    "schedule": (
        lambda: SGD(CosineDecay(0.1, 24)),
        {2: ["lr x0.3"], 4: ["optimizer sgd momentum=0.5"], 7: ["lr x0.9"], 10: ["lr 0.02"], 12: ["lr x0.5"]},
    ),
    "back": (
        lambda: Adam(0.01),
        {
            2: ["lr x2"],
            3: ["optimizer sgd learning_rate=0.05", "snapshot good"],
            5: ["lr 0.001"],
            6: ["undo"],
            8: ["redo"],
            9: ["rollback good", "lr x0.9"],
            11: ["lr x3 from start"],
            13: ["undo settings"],
        },
    ),
    "layers": (
        lambda: Adam(0.01),
        {2: ["freeze dense"], 5: ["unfreeze *"], 8: ["freeze dense_1", "set dense.l2=0.01"], 12: ["undo"]},
    ),
    "accumulated": (
        lambda: Adam(0.01, gradient_accumulation_steps=3),
        {4: ["optimizer adam learning_rate=0.02 beta_1=0.5"], 10: ["lr x0.5"]},
    ),
    "averaged": (
        lambda: SGD(0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4),
        {5: ["optimizer adam learning_rate=0.01"]},
    ),
    "ramps": (
        lambda: Adam(0.01),
        {2: ["lr 0.002 over 6 steps"], 5: ["lr x2"], 9: ["lr x3 over 4 steps"], 14: ["lr 0.01"]},
    ),
    "scheduled ramps": (
        lambda: SGD(CosineDecay(0.1, 24)),
        {2: ["lr x0.5 over 6 steps"], 9: ["lr 0.02 over 4 steps"]},
    ),
    "schedules": (
        lambda: Adam(0.01),
        {
            2: ["schedule cosine decay_steps=20"],
            4: ["lr x0.5"],
            5: ["schedule one-cycle maximal_learning_rate=0.02 total_steps=12"],
            8: ["schedule cyclical maximal_learning_rate=0.03 step_size=3 gamma=0.9"],
            11: ["schedule constant"],
            12: ["schedule warmup warmup_steps=4 warmup_target=0.01"],
            15: ["undo"],
        },
    ),
    "settings": (
        lambda: Adam(0.01),
        {
            2: ["set beta_1=0.5 weight_decay=0.01 clipnorm=0.3"],
            5: ["accumulate 2"],
            10: ["accumulate 1"],
            12: ["set epsilon=1e-3"],
        },
    ),
    "timers": (
        lambda: Adam(0.01),
        {
            2: ["lr x3 for 4 steps", "lr 0.02 at step 7"],
            8: ["optimizer sgd learning_rate=0.05 for 3 steps"],
            12: ["freeze dense for 2 steps"],
        },
    ),
}
"""Name → (optimizer, step → commands)."""

ON_EVERY_BACKEND = {"optimizer", "schedule", "back", "layers"}


@pytest.mark.parametrize("name", SESSIONS if BACKEND == "tensorflow" else sorted(ON_EVERY_BACKEND))
def test_the_code_repeats_what_was_done_at_the_same_steps(name, tmp_path, capsys):
    optimizer, script = SESSIONS[name]
    monitor, before = MonitorCallback(statistics_every=0), Rates()
    steered = fitted(optimizer(), Sends(monitor, script), monitor, before)
    replies = replies_in(monitor.recording)
    assert replies and all(
        reply.status in ("applied", "planned") or changed_training(reply) for reply in replies
    )
    code = exported(monitor.recording, tmp_path)
    assert capsys.readouterr().err == ""
    assert "client_callback" not in code and "monitor" not in code
    after = Rates()
    repeated = fitted(optimizer(), interventions(code), after, unbuilt=True)
    exactly = "ramps" not in name  # XLA and graphs round the line differently
    assert after.rates == (before.rates if exactly else pytest.approx(before.rates, rel=1e-6))
    (assert_equal_weights if exactly else assert_same_weights)(repeated, steered)


def test_weights_in_the_loss_are_repeated(tmp_path):
    """Of classes, of outputs, and a layer's dropout rate."""
    script = {
        2: ["class-weight 0=1 1=4.5", "set dropout.rate=0.6"],
        6: ["class-weight none"],
        9: ["undo settings"],
    }
    losses = {"sparse_categorical_crossentropy": (classifier, LABELS), "mse": (two_outputs, [Y, Y])}
    for loss, (make, targets) in losses.items():
        texts = script if make is classifier else {3: ["loss-weight a=0.2 b=3"], 7: ["undo"]}
        monitor = MonitorCallback(statistics_every=0)
        steered = fitted(SGD(0.1), Sends(monitor, texts), monitor, make=make, loss=loss, targets=targets)
        assert {reply.status for reply in replies_in(monitor.recording)} == {"applied"}
        code = interventions(exported(monitor.recording, tmp_path))
        repeated = fitted(SGD(0.1), code, make=make, loss=loss, targets=targets)
        assert_equal_weights(repeated, steered)
        assert "compute_loss" not in vars(repeated)


def classifier():
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(6),
        keras.layers.Dropout(0.2, seed=1),
        keras.layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def two_outputs():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(6)(inputs)
    return keras.Model(
        inputs, [keras.layers.Dense(1, name="a")(hidden), keras.layers.Dense(1, name="b")(hidden)]
    )


def test_what_cannot_be_repeated_is_a_comment_and_is_told(tmp_path, capsys):
    run = description(backend="tensorflow", actions=("render",))
    writer = JournalWriter(tmp_path / "toy.unstuck", run)
    told = {
        1: "reinit dead-units",
        2: "render big",
        3: "pause",
        4: 'note "import os; \n os.abort()"',
        5: "lr -1",
    }
    replies = [
        Reply(
            id=f"c{step}", text=text, who="ada@box", status="refused" if step == 5 else "applied", step=step
        )
        for step, text in told.items()
    ]
    writer.append([started(run), *replies, protocol.RunEnded(outcome="finished")])
    writer.close()
    code = exported(tmp_path / "toy.unstuck", tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "unstuck: not repeated: step 1: reinit dead-units: its weights are drawn at random",
        "unstuck: not repeated: step 2: render big: it is the script's own",
    ]
    assert lines[0].removeprefix("unstuck: ") in code and "# pause (ada@box)" in code
    assert "lr -1" not in code
    tree = ast.parse(code)
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == ["Interventions"]
    assert "abort" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.skipif(not importlib.util.find_spec("ruff"), reason="the formatter is not installed here")
def test_the_code_is_formatted_and_holds_nothing_that_is_not_used(tmp_path):
    """All helpers, each in all its forms."""
    settings = ('(self.layer("dense"), "trainable")', '(self.kernel(self.layer("dense")), "regularizer")')
    forms = list(product(("tensorflow", "jax", "torch"), *[(False, True)] * 6, ((), settings)))[::5]
    (tmp_path / "nothing.py").write_text(module(description(), [], [], Surroundings(*forms[0])))
    for number, form in enumerate(forms):
        run = Surroundings(*form)
        names = tuple(name for name in helpers_of(run) if run.scheduled or not _of_schedules(name))
        code = module(
            description(backend=run.backend, name='odd """ \\ name', steps_per_execution=1 + number % 2),
            [
                Change(3, "lr x0.5 (ada@box): " + "a long comment " * 20, ('self.set_rate("x")',), names),
                Change(4, "note (ada@box)\nimport os"),
            ],
            ["not repeated: step 3: an extraordinarily long command, for a reason that is long as well"],
            run,
        )
        (tmp_path / f"form_{number}.py").write_text(code)
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["format", "--check"], ["check", "--select", "E,F,I,B,UP", "--ignore", "B905"]):
        done = subprocess.run(
            [*ruff, *check, "--line-length", "100", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
