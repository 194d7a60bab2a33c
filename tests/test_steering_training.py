"""`evaluate`, `checkpoint`, `stop`, `extend` and the script's own commands, on real fits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers import SGD, Adam
from keras.optimizers.schedules import ExponentialDecay

from client_callback import MonitorCallback, Run
from client_callback.steering.backends import current_backend
from client_callback.steering.state import variables_of
from client_callback.wire.protocol import (
    Command,
    EpochEnded,
    Evaluated,
    Reply,
    RunStarted,
    StateChanged,
    TimersChanged,
)
from tests.recorded import of_kind
from tests.steered_fit import BACKEND, BATCH, STEPS, SteeredFit, X, Y, build_optimizer, dense_model, steered

pytestmark = pytest.mark.every_backend

VALIDATION = (X[:24] + 0.1, Y[:24])


class Sending(keras.callbacks.Callback):
    """Stands before a `MonitorCallback` and has commands arrive there before given steps."""

    def __init__(self, monitor: MonitorCallback, script: dict[int, list[str]]) -> None:
        super().__init__()
        self.async_safe = True
        self._monitor, self._script, self._step = monitor, script, 0

    def on_train_batch_begin(self, batch, logs=None):
        for place, text in enumerate(self._script.pop(self._step, ())):
            command = Command(id=f"s{self._step}-{place}", text=text, who="ada@box")
            self._monitor._run._link._take_command(command)
        self._step += 1


def monitored(
    script: dict[int, list[str]], *, model: keras.Model | None = None, callbacks=(), fit=None, **options
) -> tuple[keras.Model, Path, dict[str, list[float]]]:
    """A watched fit in which commands arrive; (model, recording, history)."""
    model = model or dense_model()
    if getattr(model, "optimizer", None) is None:
        # Without compiling, where that takes longer than the training.
        model.compile(SGD(0.05), "mse", run_eagerly=BACKEND == "tensorflow")
    monitor = MonitorCallback("steered", statistics_every=0, **options)
    arguments = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **(fit or {})}
    history = model.fit(X, Y, callbacks=[*callbacks, Sending(monitor, script), monitor], **arguments)
    return model, monitor.recording, history.history


def replies(recording: Path) -> dict[str, Reply]:
    return {reply.id: reply for reply in of_kind(recording, Reply)}


# ── evaluate ──────────────────────────────────────────────────────────────────────────────────────


def random_model() -> keras.Model:
    """Everything that an evaluation might disturb: metrics, statistics, seeds."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(6, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    model.compile(Adam(0.01), "mse", metrics=["mae"])
    build_optimizer(model)
    return model


def test_a_training_that_is_evaluated_in_between_is_bit_for_bit_that_of_a_twin():
    """Before the fit's own first validation and after it, and twice in one place."""
    fit = {"validation_data": VALIDATION, "epochs": 3}
    script = {3: ["evaluate", "evaluate"], STEPS + 2: ["evaluate"], 2 * STEPS: ["evaluate"]}
    model, recording, history = monitored(script, model=random_model(), fit=fit)
    twin, _, alone = monitored({}, model=random_model(), fit=fit)
    assert history == alone
    for one, other in zip(variables_of(model), variables_of(twin), strict=True):
        np.testing.assert_array_equal(current_backend().host(one), current_backend().host(other))
    first, again, _, at_epoch_end = (reply for reply in replies(recording).values())
    assert first.status == "applied" and first.after == again.after
    assert set(first.after) == {"val_loss", "val_mae"}
    assert at_epoch_end.after == {name: history[name][1] for name in ("val_loss", "val_mae")}
    told = of_kind(recording, Evaluated)
    assert [one.step for one in told] == [3, 3, STEPS + 2, 2 * STEPS] and told[0].logs == first.after
    states = [one.state for one in of_kind(recording, StateChanged) if one.step == 3]
    assert states == ["validating", "running"] * 2


@pytest.mark.parametrize(
    ("fit", "why"),
    [
        ({}, "no validation data; give it some: model.fit(..., validation_data=(x, y))"),
        (
            {"validation_data": (pair for pair in [VALIDATION] * 9), "validation_steps": 1},
            "come from a generator, whose batches would be missing",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_what_is_possible(fit, why):
    _, recording, _ = monitored({2: ["evaluate", "evaluate --dry-run"]}, fit=fit)
    for reply in replies(recording).values():
        assert reply.status == "refused" and why in reply.reason


def test_weighted_split_and_cut_validation_is_that_of_the_fit():
    fit = {
        "validation_split": 0.25,
        "sample_weight": np.linspace(0, 1, len(X)),
        "validation_batch_size": 3,
        "validation_steps": 2,
    }
    _, recording, history = monitored({6: ["evaluate"]}, fit=fit)  # the first step of the second epoch
    (reply,) = replies(recording).values()
    assert reply.after == {"val_loss": history["val_loss"][0]}


def test_an_error_in_an_evaluation_is_told_and_the_training_goes_on():
    class Breaks(keras.metrics.Mean):
        broken = False

        def update_state(self, *args, **options):
            if Breaks.broken:
                raise RuntimeError("a broken metric")
            return super().update_state(keras.ops.mean(args[0]))

    def run(script):
        Breaks.broken = False
        model = dense_model()
        model.compile(SGD(0.05), "mse", metrics=[Breaks(name="odd")], run_eagerly=BACKEND == "tensorflow")

        class Breaking(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                Breaks.broken = script != {} and batch == 3

            def on_train_batch_end(self, batch, logs=None):
                Breaks.broken = False

        class Mending(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                Breaks.broken = False

        monitor = MonitorCallback("breaks", statistics_every=0)
        callbacks = [Breaking(), Sending(monitor, script), monitor, Mending()]
        fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "validation_data": VALIDATION}
        return model.fit(X, Y, callbacks=callbacks, **fit).history, monitor.recording

    history, recording = run({3: ["evaluate"]})
    (reply,) = replies(recording).values()
    assert reply.status == "failed" and "a broken metric" in reply.reason
    assert history == run({})[0]


# ── checkpoint ────────────────────────────────────────────────────────────────────────────────────


def compiled(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = dense_model()
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("kind", ["plain", "schedule", "switched"])
def test_a_checkpoint_loads_without_the_package_and_trains_on_as_the_training_would(kind, tmp_path):
    """The second epoch from the file is that of the fit itself."""
    path = tmp_path / "saved.keras"
    optimizer = Adam(ExponentialDecay(0.02, 5, 0.9)) if kind == "schedule" else Adam(0.01)
    script = {STEPS: [f"checkpoint {path}"]}
    if kind == "switched":
        script[2] = ["optimizer sgd learning_rate=0.05 momentum=0.5"]
    model, recording, _ = monitored(script, model=compiled(optimizer))
    (reply,) = [one for one in replies(recording).values() if "path" in one.after]
    assert reply.after == {"path": str(path), "bytes": path.stat().st_size}
    assert [one.name for one in tmp_path.glob("*saved*")] == ["saved.keras"]
    with zipfile.ZipFile(path) as archive:
        assert b"unstuck" not in archive.read("config.json")
        assert b"client_callback" not in archive.read("config.json")
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer).__name__ == ("SGD" if kind == "switched" else "Adam")
    assert int(loaded.optimizer.iterations) == (STEPS - 2 if kind == "switched" else STEPS)
    loaded.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_without_a_path_it_lies_beside_the_recording_and_never_over_another_file(tmp_path, monkeypatch):
    texts = ["checkpoint", "checkpoint", "checkpoint ~/w.weights.h5", "checkpoint ~/w.weights.h5"]
    monkeypatch.setenv("HOME", str(tmp_path))
    _, recording, _ = monitored({STEPS: texts})
    first, second, weights, taken = replies(recording).values()
    assert first.after["path"] == str(recording.with_name(f"{recording.stem}-step-{STEPS}.keras"))
    assert second.after["path"].endswith(f"-step-{STEPS}-2.keras")
    assert weights.after["path"] == str(tmp_path / "w.weights.h5")
    assert taken.status == "refused" and "exists already" in taken.reason
    fresh = compiled(SGD(0.05))
    fresh.load_weights(tmp_path / "w.weights.h5")
    saved = keras.models.load_model(first.after["path"])
    for one, other in zip(fresh.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


WRONG_PATHS = {
    "checkpoint model.h5": "'model.h5' tells no format; possible: NAME.keras",
    "checkpoint .keras": "tells no format",
    "checkpoint missing/model.keras": "there is no folder",
    "checkpoint taken.keras": "exists already and is not overwritten",
    "checkpoint /proc/model.keras": "/proc/model.keras cannot be written",
    "checkpoint ~nobody-of-that-name/model.keras": "~nobody-of-that-name",
    f"checkpoint {'x' * 300}.keras": "too long",
    "checkpoint missing/model.keras at step 5": "there is no folder",
}


def test_a_file_that_cannot_be_written_is_refused_with_what_is_possible(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.keras").write_text("mine")
    _, fit = steered(SGD(0.05), {3: [*WRONG_PATHS, "checkpoint"]}, epochs=1)
    for reply, why in zip(fit.replies, WRONG_PATHS.values(), strict=False):
        assert reply.status == "refused" and why in reply.reason, reply
    assert fit.replies[-1].after["path"] == str(tmp_path / f"{fit.model.name}-step-3.keras")
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == sorted(
        [f"{fit.model.name}-step-3.keras", "taken.keras"]
    )
    assert (tmp_path / "taken.keras").read_text() == "mine"


# ── stop, extend ──────────────────────────────────────────────────────────────────────────────────


class Batches(keras.callbacks.Callback):
    """Counts the batches of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.tested = 0

    def on_test_batch_begin(self, batch, logs=None):
        self.tested += 1


@pytest.mark.parametrize(
    ("command", "fit", "batches", "why"),
    [
        ("stop", {"validation_data": VALIDATION}, 3, "its validation runs first, which `stop now` skips"),
        ("stop now", {"validation_data": VALIDATION}, 0, "without its validation"),
        ("stop now at step 3", {"validation_data": VALIDATION}, 0, "without its validation"),
        ("stop", {}, 0, "ends after the current batch"),
    ],
)
def test_stop_now_skips_the_validation(command, fit, batches, why):
    counted = Batches()
    model, recording, history = monitored({2: [command], 3: ["note x"]}, callbacks=[counted], fit=fit)
    reply = next(one for one in replies(recording).values() if one.status == "applied" and one.after)
    assert why in reply.reason
    assert counted.tested == batches and ("val_loss" in history) == bool(batches)
    assert len(of_kind(recording, EpochEnded)) == 1
    assert "_should_eval" not in vars(model)
    model.fit(X, Y, verbose=0, validation_data=VALIDATION, callbacks=[counted])
    assert counted.tested == batches + 1


def test_a_validation_that_keras_does_not_decide_about_is_stopped_after_one_batch():
    counted, model = Batches(), dense_model()

    class Insisting(keras.callbacks.Callback):
        """Whoever asks elsewhere than Keras' own `fit` does, validates all the same."""

        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(*VALIDATION, batch_size=BATCH, verbose=0, callbacks=[counted, *self.others])

    insisting = Insisting()
    monitor = MonitorCallback("insists", statistics_every=0)
    insisting.others = [monitor]
    model.compile(SGD(0.05), "mse")
    model.fit(
        X, Y, batch_size=BATCH, verbose=0, callbacks=[insisting, Sending(monitor, {2: ["stop now"]}), monitor]
    )
    assert counted.tested == 1


def test_extend_says_with_which_numbers_to_go_on():
    _, recording, _ = monitored({2: ["extend 10 epochs"]}, fit={"initial_epoch": 3, "epochs": 5})
    (reply,) = replies(recording).values()
    assert reply.status == "refused"
    assert "model.fit(..., initial_epoch=5, epochs=15)" in reply.reason


def test_in_a_loop_of_ones_own_what_belongs_to_a_fit_is_refused():
    texts = ["extend 2 epochs", "evaluate", "stop now", "note x at step 1"]
    with Run("own", model=compiled(SGD(0.05))) as run:
        for text in texts[:3]:
            run._link._take_command(Command(id=text, text=text))
        run.log(loss=1.0)
    found = replies(run.recording)
    assert "your own loop decides" in found["extend 2 epochs"].reason
    assert "evaluate in your own loop" in found["evaluate"].reason
    assert run.stopped and "stopped after one batch" in found["stop now"].reason


# ── Commands of the script's own ──────────────────────────────────────────────────────────────────


def shrink(model, factor="0.5"):
    """Changes the weights."""
    model.layers[0].kernel.assign(model.layers[0].kernel * float(factor))
    return {"factor": float(factor), "norm": np.float32(2.5), "odd": object()}


def fails(model):
    model.layers[0].kernel.assign(model.layers[0].kernel * 0)
    raise ValueError("no display")


ACTIONS = {
    "render": lambda: "frame.png",
    "count-up": lambda a, b="1": int(a) + int(b),
    "shrink": shrink,
    "fails": fails,
    "quiet": lambda *words, model: None,
    "late": lambda path, *, model: f"{path} {model.name}",
}


def test_the_scripts_own_commands_are_called_between_batches_and_answer_what_they_return():
    texts = [
        "render",
        "count-up 3",
        "count-up 3 4 --dry-run",
        "quiet a b",
        "late 'a b'",
        "count-up",
        "render x",
    ]
    model = compiled(SGD(0.05))
    _, recording, _ = monitored({2: texts}, model=model, actions=ACTIONS)
    render, count, planned, quiet, late, few, many = replies(recording).values()
    assert of_kind(recording, RunStarted)[0].run.actions == tuple(ACTIONS)
    assert (render.status, render.after) == ("applied", {"render": "frame.png"})
    assert count.after == {"count-up": 4} and planned.status == "planned" and "3 4" in planned.plan[0].text
    assert (quiet.status, quiet.after) == ("applied", {}) and late.after == {"late": f"a b {model.name}"}
    assert few.status == "refused" and "count-up takes (a, b='1')" in few.reason
    assert many.status == "refused" and "render takes ()" in many.reason


def test_what_an_action_changes_can_be_undone_and_what_changes_nothing_leaves_nothing_to_undo():
    script = {STEPS: ["lr x2", "shrink 0.25", "render", "undo", "undo"]}
    model, recording, _ = monitored(script, actions=ACTIONS)
    shrunk, undone, rate = (replies(recording)[f"s{STEPS}-{place}"] for place in (1, 3, 4))
    assert shrunk.after == {"factor": 0.25, "norm": 2.5} and "returned object" in shrunk.reason
    assert undone.undoes == shrunk.id and "learning_rate" not in undone.after
    assert rate.after == {"learning_rate": pytest.approx(0.05)}
    twin, _, _ = monitored({})
    for one, other in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_action_that_raises_has_failed_and_everything_is_as_it_was():
    model, recording, _ = monitored({2: ["fails", "render at step 4", "rendr"]}, actions=ACTIONS)
    failed, waits, unknown, later = replies(recording).values()
    assert failed.status == "failed" and "ValueError: no display" in failed.reason
    assert waits.status == "planned" and (later.id, later.step) == (f"{waits.id}.1", 4)
    assert "unknown command 'rendr'" in unknown.reason and unknown.reason.endswith("quiet, late")
    for one, other in zip(model.get_weights(), monitored({})[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def freezes(model, and_raises=""):
    model.layers[0].trainable = False
    if and_raises:
        raise ValueError("no display")


def switches(model, name="sgd", and_raises=""):
    made = {"sgd": SGD(0.0), "adam": Adam(ExponentialDecay(0.05, 9, 0.5)), "none": None, "text": "adam"}
    model.optimizer = made[name]
    if and_raises:
        raise ValueError("no display")


TRACED = {
    "freezes": freezes,
    "switches": switches,
    "freezes-all": lambda model: setattr(model, "trainable", False),
    "compiles": lambda model: model.compile(Adam(0.01), "mae", metrics=["mse"]),
}


class Moved(keras.callbacks.Callback):
    """Of each step: whether it moved the first layer, and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[np.ndarray]] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.kept.append(self.model.get_weights())

    def __getitem__(self, step: int) -> tuple[bool, bool]:
        before, after = self.kept[step : step + 2]
        return not np.array_equal(before[0], after[0]), not np.array_equal(before[2], after[2])


def acted(script: dict[int, list[str]], **fit) -> tuple[keras.Model, list[Reply], Moved]:
    """A fit whose step is compiled, and which starts with a control on its rate."""
    model, moved, monitor = (
        compiled(SGD(ExponentialDecay(0.05, 9, 0.5))),
        Moved(),
        SteeredFit(script, actions=TRACED),
    )
    model.fit(X, Y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[monitor, moved], **fit)
    return model, monitor.replies, moved


def test_what_an_action_changes_of_the_compiled_step_takes_effect_and_is_undone():
    script = {2: ["freezes"], 4: ["undo"], 6: ["switches"], 8: ["undo"], 10: ["switches adam", "freezes"]}
    model, found, moved = acted({**script, 14: ["undo", "redo"]})
    assert {reply.status for reply in found} == {"applied"}, found
    both, neither, last = (True, True), (False, False), (False, True)
    assert [moved[step] for step in (1, 2, 4, 6, 8, 10, 14)] == [both, last, both, neither, both, last, last]
    assert (
        isinstance(model.optimizer, Adam) and model.get_compile_config()["optimizer"]["class_name"] == "Adam"
    )


def test_an_action_that_cannot_take_effect_leaves_the_training_as_it_was():
    expected = {
        "compiles": "refused: compile replaces the loss",
        "freezes-all": "refused: no weights would be left",
        "switches none": "refused: model.optimizer was set to None",
        "switches text": "refused: model.optimizer was set to 'adam'",
        "freezes yes": "failed: everything is as it was before: ValueError: no display",
        "switches adam yes": "failed: everything is as it was before: ValueError: no display",
    }
    model, found, _ = acted({3: list(expected)}, validation_data=VALIDATION)
    for reply in found:
        assert f"{reply.status}: {reply.reason}".startswith(expected[reply.text])
    assert len(found) == len(expected) and isinstance(model.optimizer, SGD)
    for one, other in zip(model.get_weights(), acted({})[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_model_actions_work_and_there_is_nothing_to_undo():
    with Run("own", actions={"render": lambda: 7}) as run:
        run._link._take_command(Command(id="a", text="render"))
        run._link._take_command(Command(id="b", text="undo"))
        run.log(loss=1.0)
    found = replies(run.recording)
    assert (found["a"].status, found["a"].after) == ("applied", {"render": 7})
    assert found["b"].status == "refused"


@pytest.mark.parametrize(
    ("actions", "why"),
    [
        ({"a b": print}, "'a b' is no name"),
        ({"": print}, "'' is no name"),
        ({3: print}, "3 is no name"),
        ({"stop": print}, "'stop' is a command already"),
        ({"LR": print}, "'LR' is a command already"),
        ({"render": "print"}, "'render' is to be a function, received 'print'"),
        ([print], "actions: received"),
    ],
)
def test_actions_that_cannot_be_are_told_before_anything_starts(actions, why):
    for make in (MonitorCallback, Run):
        with pytest.raises(ValueError, match=why.replace("(", r"\(")):
            make(actions=actions)


# ── Timers in a watched fit ───────────────────────────────────────────────────────────────────────


def test_timers_are_told_in_the_recording_and_act_at_their_steps_in_a_watched_fit():
    script = {1: ["lr x0.5 at step 3 for 4 steps", "note x"], 9: ["lr x2 at epoch 3", "lr x4 for 99 steps"]}
    fit = {"validation_data": VALIDATION, "epochs": 3}
    model, recording, _ = monitored(script, fit=fit)
    steps = {id_: reply.step for id_, reply in replies(recording).items()}
    assert (steps["s1-0.1"], steps["s1-0.end"], steps["s9-0.1"]) == (3, 7, 2 * STEPS)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.4)
    assert [one.reason.split(")")[-1] for one in of_kind(recording, TimersChanged)] == [
        " waits for step 3",
        " is in effect: set back before step 7",
        " ended: its time is over",
        " waits for epoch 3",
        " is in effect: set back before step 108",
        " came to its moment: applied",
        "",
    ]


def test_a_guard_in_a_watched_fit_knows_the_losses_and_undoes():
    script = {
        STEPS: ["lr 1e25 unless loss rises 50% in 30 steps"],
        2: ["lr x2 unless los rises 5% in 3 steps"],
    }
    model, recording, _ = monitored(script, fit={"epochs": 3})
    undone = replies(recording)[f"s{STEPS}-0.undo"]
    assert undone.status == "applied" and "not finite" in undone.reason
    assert "no series 'los' is recorded; possible: " in replies(recording)["s2-0"].reason
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_read_only_run_names_what_is_possible():
    _, recording, _ = monitored({2: ["lr 0.2", "timers", "lr 0.2 --dry-run"]}, control=False)
    refused, listed, planned = replies(recording).values()
    assert "possible: note, timers, and any command with --dry-run" in refused.reason
    assert listed.status == "applied" and planned.status == "planned"


def test_a_run_that_dies_tells_its_timers_as_ended():
    with pytest.raises(RuntimeError, match="dead"), Run("dies", model=compiled(SGD(0.05))) as run:
        run._link._take_command(Command(id="a", text="stop at step 6"))
        run.log(loss=1.0)
        raise RuntimeError("dead")
    waits, ended = of_kind(run.recording, TimersChanged)
    assert [one.starts for one in waits.timers] == ["step 6"]
    assert ended.timers == () and "the run ended with timer 1 (stop at step 6)" in ended.reason


def test_steered_without_a_fit_there_is_nothing_to_evaluate():
    fit = SteeredFit({})
    assert fit.send("evaluate").status == fit.send("checkpoint").status == "refused"
