"""Trials: several futures from one state on the same batches, and the training goes on as if there had been none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats
from scipy.signal import lfilter

from client_callback import MonitorCallback, Run
from client_callback.instrument import batches
from client_callback.steering.backends import current_backend
from client_callback.steering.handlers import trial
from client_callback.steering.training import Refused
from client_callback.steering.trial_data import altered
from client_callback.steering.trial_statistics import better_beyond_chance, mean_interval, student_quantile
from client_callback.wire import commands
from client_callback.wire.commands import CommandError
from client_callback.wire.protocol import Command, Problem, Reply, StateChanged, TrialEnded
from client_callback.wire.range_test import read_range_test
from tests.recorded import of_kind, series
from tests.steered_fit import BACKEND, build_optimizer, not_compiled

pytestmark = pytest.mark.every_backend

BATCH = 8
EXAMPLES = 140
STEPS = 18
"""Per epoch, the last batch being smaller."""

X = np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0)

TRIAL = 'trial "sgd 0.05 momentum=0.9" "lr x0.1" keep for 6 steps'
AGAIN = 'trial "lr x9" keep for 5 steps'


# ── Fits ──────────────────────────────────────────────────────────────────────────────────────────


def model(dtype: str = "float32") -> keras.Model:
    """With all that a step can change: weights, moving averages, seeds, metrics."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Dropout(0.3, dtype=dtype),
            layers.Dense(3, dtype="float32"),
        ]
    )


def plain(dtype: str = "float32") -> keras.Model:
    """Quickly compiled."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, dtype=dtype, name="hidden"), layers.Dense(3, dtype="float32")]
    )


class OwnStep(keras.Model):
    """A train step of the user's own, a metric of their own, and random numbers of the backend's own."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(3)
        self.inner = layers.Dense(3)
        self.seen = keras.metrics.Sum(name="seen")

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.inner.build(shape)
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        if training and BACKEND == "tensorflow":
            import tensorflow as tf

            x = x + 0.1 * tf.random.normal(tf.shape(x))
        return self.inner(x)

    def train_step(self, *args: Any) -> Any:
        if BACKEND != "jax":
            self.seen.update_state(1.0)
        return super().train_step(*args)


def adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9))


def scaled() -> keras.optimizers.Optimizer:
    inner = keras.optimizers.SGD(0.05, gradient_accumulation_steps=3, use_ema=True)
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)


def arrays() -> dict[str, Any]:
    return {"x": X, "y": Y, "batch_size": BATCH, "shuffle": True}


def endless(steps: int = STEPS) -> dict[str, Any]:
    def generate() -> Iterator[tuple[Any, Any]]:
        order = np.random.default_rng(1)
        while True:
            rows = order.integers(0, EXAMPLES, BATCH)
            yield X[rows], Y[rows]

    return {"x": generate(), "steps_per_epoch": steps}


def unknown_length() -> dict[str, Any]:
    """The loop learns where the data end from the data."""
    if BACKEND == "torch":
        import torch

        class Rows(torch.utils.data.IterableDataset):
            def __iter__(self) -> Iterator[tuple[Any, Any]]:
                yield from zip(X, Y, strict=True)

        return {"x": torch.utils.data.DataLoader(Rows(), batch_size=BATCH)}
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((X, Y))
    return {"x": rows.filter(lambda *_: True).shuffle(EXAMPLES, seed=2).batch(BATCH)}


class At(keras.callbacks.Callback):
    """Sends commands before given steps; goes before the MonitorCallback in the list."""

    async_safe = True

    def __init__(self, watching: MonitorCallback, script: Mapping[int, Sequence[str]]) -> None:
        super().__init__()
        self.watching, self.script, self.calls = watching, dict(script), 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        run = self.watching._run
        for place, text in enumerate(self.script.pop(self.calls, ())):
            assert run is not None and run._link is not None
            run._link._take_command(Command(id=f"{self.calls}.{place}", text=text, who="ada@box"))
        self.calls += 1


@dataclass(frozen=True)
class Way:
    """One way of training."""

    model: Callable[[], keras.Model] = plain
    optimizer: Callable[[], keras.optimizers.Optimizer] = adam
    feed: Callable[[], dict[str, Any]] = arrays
    compiled: dict[str, Any] = field(default_factory=dict)
    every: int = 0
    unbuilt: bool = False
    """Its first step makes the optimizer's slots."""
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")


@dataclass(frozen=True)
class Trained:
    """What became of it."""

    history: dict[str, list[float]]
    variables: list[np.ndarray]
    """Of the model and its optimizer."""
    recording: Path | None
    model: keras.Model

    def replies(self) -> dict[str, Reply]:
        return {reply.id: reply for reply in of_kind(self.recording, Reply)}

    def trials(self) -> dict[str, TrialEnded]:
        return {one.id: one for one in of_kind(self.recording, TrialEnded)}

    def reply(self) -> Reply:
        (reply,) = self.replies().values()
        return reply


def trained(way: Way, script: Mapping[int, Sequence[str]] | None, *, epochs: int = 2) -> Trained:
    """`script`: call of the train function → commands before it. `None`: nobody watches."""
    made = way.model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(way.optimizer(), loss, metrics=["accuracy"], **way.compiled)
    if not way.unbuilt:
        build_optimizer(made)
    callbacks: list[keras.callbacks.Callback] = []
    watching = MonitorCallback("trials", statistics_every=way.every)
    if script is not None:
        callbacks = [At(watching, script), watching]
    history = made.fit(
        **{"shuffle": False, **way.feed()}, epochs=epochs, verbose=0, callbacks=callbacks
    ).history
    variables = [current_backend().host(v) for v in [*made.variables, *made.optimizer.variables]]
    return Trained(history, variables, watching.recording, made)


def losses(result: Any) -> np.ndarray:
    return np.frombuffer(result.losses, "<f4")


# ── Nothing is disturbed ──────────────────────────────────────────────────────────────────────────

WAYS = {
    # Before the first trace, in the middle, again while batches wait and it is paused.
    "arrays, shuffled": (
        Way(model=model, every=4, unbuilt=True),
        {0: [AGAIN], 5: [TRIAL], 8: ["pause", AGAIN, "resume"]},
    ),
    "an endless generator, a train step of one's own": (
        Way(model=OwnStep, feed=endless),
        {4: [TRIAL], 13: [AGAIN]},
    ),
    "loss scale, accumulation and averages": (
        Way(model=lambda: plain("mixed_float16"), optimizer=scaled),
        {4: [TRIAL]},
    ),
    "several steps per execution": (
        Way(model=plain, compiled={"steps_per_execution": 4}, backends=("tensorflow", "jax")),
        {1: [TRIAL], 2: [AGAIN]},
    ),
    "data of unknown length": (Way(model=plain, feed=unknown_length), {4: [AGAIN], 14: [AGAIN]}),
    "after other commands": (
        Way(backends=("tensorflow", "torch")),
        {
            2: ["class-weight 0=1 1=2.5", "freeze hidden"],
            4: ["lr x0.5 over 20 steps", "accumulate 2", TRIAL],
            8: [f"{AGAIN} from start"],
        },
    ),
    "eagerly": (
        Way(model=OwnStep, compiled={"run_eagerly": True}, backends=("tensorflow", "torch")),
        {4: [AGAIN]},
    ),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("name", [name for name, (way, _) in WAYS.items() if BACKEND in way.backends])
def test_training_goes_on_as_if_there_had_been_no_trial(name: str):
    way, script = WAYS[name]
    others = {step: [text for text in texts if is_change(text)] for step, texts in script.items()}
    tried, alone = trained(way, script), trained(way, others if any(others.values()) else None)
    statuses = {reply.id: (reply.status, reply.reason) for reply in tried.replies().values()}
    assert {status for status, _ in statuses.values()} == {"applied"}, statuses
    assert len(tried.trials()) == sum(text.startswith("trial") for texts in script.values() for text in texts)
    assert of_kind(tried.recording, Problem) == []
    assert tried.history == alone.history
    for one, other in zip(tried.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    # One row for each step that was trained for good; and what stays as it is does the same in the trial.
    loss = series(tried.recording)["loss"]
    assert len(loss) == 2 * STEPS
    for one in tried.trials().values():
        for result in one.results:
            if result.text == "keep" and one.start == one.step and name not in DRAWING_ELSEWHERE:
                np.testing.assert_array_equal(losses(result), loss[one.start :][: len(losses(result))])


def is_change(text: str) -> bool:
    return not text.startswith(("trial", "pause", "resume"))


DRAWING_ELSEWHERE = (
    {"an endless generator, a train step of one's own", "eagerly"} if BACKEND == "tensorflow" else set()
)
"""Operations of TensorFlow's that are random by themselves have a state for each function."""


# ── What is told ──────────────────────────────────────────────────────────────────────────────────


@not_compiled
def test_candidates_are_ranked_and_those_that_diverge_are_given_up():
    done = trained(Way(), {3: ['trial "lr x1e-6" "lr x1e6" keep for 15 steps']}, epochs=1)
    (told,) = done.trials().values()
    best, second, last = told.results
    assert [result.text for result in told.results] == ["keep", "lr x1e-6", "lr x1e6"]
    assert [len(losses(result)) for result in (best, second)] == [15, 15]
    for result in (best, second):
        scored = losses(result)[-5:].astype(np.float64)
        assert result.score == pytest.approx(scored.mean())
        assert result.low < result.score < result.high
    assert losses(best)[0] == losses(second)[0] == losses(last)[0]  # one state, one batch, one seed
    assert last.note.startswith("diverged") and len(losses(last)) < 15 and np.isnan(last.score)
    reply = done.reply()
    assert reply.status == "applied" and reply.after == {"best": "keep"}
    assert reply.reason.startswith("mean loss of the last 5 of 15 steps: 'keep' ")
    assert told.tells == ("'keep' is better beyond chance" in reply.reason)
    states = [(event.step, event.state) for event in of_kind(done.recording, StateChanged)]
    assert (3, "trial") in states and states[states.index((3, "trial")) + 1] == (3, "running")


def test_other_data_tell_where_a_fault_is_and_nothing_of_it_stays():
    text = "trial keep zero-inputs standard-inputs one-batch for 15 steps"
    way = Way(optimizer=lambda: keras.optimizers.Adam(0.05))
    done, alone = trained(way, {3: [text]}, epochs=1), trained(way, None, epochs=1)
    (told,) = done.trials().values()
    found = {result.text: result for result in told.results}
    assert set(found) == {"keep", "zero-inputs", "standard-inputs", "one-batch"}
    assert not any(result.note for result in told.results), told.results
    assert losses(found["one-batch"])[0] == losses(found["keep"])[0]
    assert told.results[0].text == "one-batch" and told.results[-1].text == "zero-inputs"
    assert done.history == alone.history
    for one, other in zip(done.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_are_altered_as_numpy_does_it():
    parts = [(X[:8], Y[:8]), (X[8:16] * [1, 1, 1, 1, 1, 0] * 40 + 7, Y[8:16]), (X[16:19], Y[16:19])]
    given = [tuple(keras.ops.convert_to_tensor(part) for part in (x.astype("float32"), y)) for x, y in parts]
    whole = np.concatenate([x for x, _ in parts]).astype("float32").astype("float64")
    standard = [keras.ops.convert_to_numpy(x) for x, _ in altered(given, "standard-inputs", plain())]
    expected = (whole - whole.mean(axis=0)) / whole.std(axis=0)
    np.testing.assert_allclose(np.concatenate(standard), expected, rtol=1e-4, atol=1e-5)
    for (x, y), (zero, same) in zip(given, altered(given, "zero-inputs", plain()), strict=True):
        assert same is y and zero.shape == x.shape and not keras.ops.convert_to_numpy(zero).any()
    assert all(one is given[0] for one in altered(given, "one-batch", plain()))


def test_whole_numbers_are_standardised_where_they_are_amounts():
    pixels = np.rint(np.clip(X * 40 + 128, 0, 255)).astype("uint8")
    way = Way(feed=lambda: {"x": pixels, "y": Y, "batch_size": BATCH})
    text = "trial keep standard-inputs for 15 steps"
    done, alone = trained(way, {3: [text]}, epochs=1), trained(way, None, epochs=1)
    (told,) = done.trials().values()
    found = {result.text: result for result in told.results}
    assert not any(result.note for result in told.results), told.results
    assert found["standard-inputs"].score < 0.5 * found["keep"].score
    assert done.history == alone.history


def test_names_cannot_be_standardised():
    reads = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(9, 2), layers.Flatten()])
    given = [(keras.ops.convert_to_tensor(np.arange(8, dtype="int32").reshape(2, 4)), None)]
    with pytest.raises(Refused, match="int32 may be the names an Embedding looks up"):
        altered(given, "standard-inputs", reads)
    with pytest.raises(Refused, match="bool cannot be standardised"):
        altered([(keras.ops.convert_to_tensor(Y > 0), None)], "standard-inputs", plain())
    with pytest.raises(CommandError, match="one-batch tries other data, which cannot be adopted"):
        commands.parse("trial keep one-batch for 10 steps --adopt")


def test_the_winner_is_adopted_as_a_command_that_can_be_undone():
    text = 'trial "lr x1e-3" "sgd 0.1 momentum=0.9" for 40 steps --adopt'
    slow = Way(optimizer=lambda: keras.optimizers.Adam(1e-6), feed=lambda: endless(48))
    done = trained(slow, {3: [text], 8: ["undo"]}, epochs=1)
    replies = done.replies()
    (told,) = done.trials().values()
    assert told.adopted == "sgd 0.1 momentum=0.9" and told.tells, replies["3.0"].reason
    adoption = replies["3.0.1"]
    assert adoption.text == "optimizer sgd learning_rate=0.1 momentum=0.9" and adoption.status == "applied"
    assert adoption.step == 3 and adoption.after["optimizer"] == "sgd" and adoption.update_after is not None
    rates = series(done.recording)["learning_rate"]
    np.testing.assert_allclose(rates, [1e-6] * 3 + [0.1] * 5 + [1e-6] * 40, rtol=1e-6)
    assert replies["8.0"].undoes == "3.0.1" and isinstance(done.model.optimizer, keras.optimizers.Adam)


@not_compiled
def test_a_winner_that_began_from_an_earlier_state_is_adopted_together_with_it():
    slow = Way(optimizer=lambda: keras.optimizers.Adam(1e-6), feed=lambda: endless(48))
    text = 'trial "sgd 0.1 momentum=0.9" "lr x2" for 40 steps from start --adopt'
    done = trained(slow, {4: [text]}, epochs=1)
    replies = done.replies()
    (told,) = done.trials().values()
    assert told.start == 0 and told.step == 4
    assert replies["4.0.1"].text == "optimizer sgd learning_rate=0.1 momentum=0.9 from start"
    assert replies["4.0.1"].status == "applied", replies["4.0.1"].reason
    assert isinstance(done.model.optimizer, keras.optimizers.SGD)


@not_compiled
def test_without_a_difference_beyond_chance_nothing_is_adopted():
    way = Way(optimizer=lambda: keras.optimizers.SGD(1e-3))
    script = {2: ['trial "lr x1" keep for 8 steps --adopt'], 3: ['trial "lr x2" for 8 steps --adopt']}
    done = trained(way, script, epochs=1)
    assert [one.adopted for one in done.trials().values()] == ["", ""]
    assert not any(one.tells for one in done.trials().values())
    assert set(done.replies()) == {"2.0", "3.0"}
    assert "nothing is adopted, everything is as it was" in done.replies()["2.0"].reason
    assert "nothing to compare with" in done.replies()["3.0"].reason


@not_compiled
def test_a_range_test_tells_where_the_loss_falls_fastest_and_where_it_rises():
    def optimizer() -> keras.optimizers.Optimizer:
        return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(1e-3, 99))

    text = "trial lr 1e-3..1e6 for 16 steps"
    done = trained(Way(optimizer=optimizer), {1: [f"{text} --dry-run", text]}, epochs=1)
    planned, reply = done.replies()["1.0"], done.replies()["1.1"]
    assert planned.status == "planned" and "0.001 to 1e+06" in planned.plan[0].text
    assert reply.status == "applied", reply.reason
    (told,) = done.trials().values()
    (result,) = told.results
    rates = np.frombuffer(told.rates, "<f4")
    np.testing.assert_allclose(rates, np.geomspace(1e-3, 1e6, 16), rtol=1e-6)
    assert 5 <= len(losses(result)) < 16 and np.isnan(result.score)  # it diverged, and was stopped there
    assert "rose above where it began at" in reply.reason
    used = series(done.recording)["learning_rate"]
    assert used.max() <= 1.001e-3  # none of those rates trained for good


@not_compiled
def test_a_plan_tells_what_a_trial_takes():
    done = trained(Way(), {12: [f"{TRIAL.replace('6 steps', '40 steps')} --dry-run"]}, epochs=1)
    plan = {line.topic: line.text for line in reversed(done.reply().plan)}
    assert plan["does"] == "tries 3 candidates for 6 steps each, all from the present state"
    assert plan["recompiles"] == "a train step is traced 2 times, for the trial alone"
    assert "18 steps" in plan["cost"] and "KiB of memory for the batches" in plan["cost"]
    assert any("6 batches left, so 6 steps instead of 40" in line.text for line in done.reply().plan)


# ── Refused ───────────────────────────────────────────────────────────────────────────────────────

REFUSALS = {
    "trial keep for 9 steps": "the epoch has only 3 batches left",
    'trial "nosuch 1" keep for 3 steps': "candidate 'nosuch 1': no optimizer 'nosuch'; possible: ",
    'trial "sgd momentum=yes" for 3 steps': "candidate 'sgd momentum=yes': momentum must be a number",
    "trial keep for 3 steps from nowhere": "no snapshot 'nowhere'; possible: ",
    "trial lr 1e-60..1 for 5 steps": "the learning rate would be 1e-60",
}


def test_what_cannot_be_tried_is_refused_and_nothing_is_disturbed(monkeypatch):
    script = {STEPS - 3: list(REFUSALS), STEPS: ["trial keep for 9 steps"]}
    with monkeypatch.context() as patch:
        patch.setattr(trial, "MOST_BATCH_BYTES", 2_100)
        done = trained(Way(), {**script, 2: ["trial keep for 15 steps"]})
    replies = {reply.text: reply for reply in done.replies().values()}
    for text, reason in REFUSALS.items():
        first = next(reply for reply in done.replies().values() if reply.text == text)
        assert first.status == "refused" and reason in first.reason, first.reason
    assert replies["trial keep for 9 steps"].status == "applied"  # of the next epoch
    too_large = replies["trial keep for 15 steps"]
    assert too_large.status == "refused" and "possible are 9 steps" in too_large.reason, too_large.reason
    assert done.history == trained(Way(), None).history


@not_compiled
def test_a_loop_of_ones_own_has_no_batches_that_could_be_taken_ahead():
    made = plain()
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with Run("own", model=made) as run:
        made.train_on_batch(X[:BATCH], Y[:BATCH])
        run._link._take_command(Command(id="a", text=TRIAL))
        run.log(loss=1.0)
    reply = of_kind(run.recording, Reply)[0]
    assert reply.status == "refused" and "only between two of a fit" in reply.reason


@not_compiled
def test_an_error_of_the_data_reaches_training_where_it_would_have_without_a_trial():
    def broken() -> dict[str, Any]:
        def generate() -> Iterator[tuple[Any, Any]]:
            for start in range(0, 8 * BATCH, BATCH):
                yield X[start : start + BATCH], Y[start : start + BATCH]
            raise RuntimeError("the disk is gone")

        return {"x": generate(), "steps_per_epoch": STEPS}

    made = plain()
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watching = MonitorCallback("broken", statistics_every=0)
    ends: list[int] = []
    counting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
    callbacks = [At(watching, {2: ["trial keep for 12 steps"]}), watching, counting]
    with pytest.raises(Exception, match="the disk is gone"):
        made.fit(**broken(), shuffle=False, verbose=0, callbacks=callbacks)
    (told,) = of_kind(watching.recording, TrialEnded)
    assert len(losses(told.results[0])) == 6  # of those from step 2 on that there were
    assert ends == list(range(8))


@not_compiled
def test_batches_that_wait_are_trained_on_even_when_watching_ends():
    class GivesUp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 6:
                watching._run._give_up(RuntimeError("of ours"))

    made = plain()
    made.compile(adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    watching = MonitorCallback("gives up", statistics_every=0)
    callbacks = [At(watching, {2: ["trial keep for 12 steps"]}), GivesUp(), watching]
    with pytest.warns(RuntimeWarning, match="nothing more is recorded"):
        history = made.fit(**arrays(), epochs=2, verbose=0, callbacks=callbacks).history
    assert history == trained(Way(), None).history
    assert made.train_function is None or not hasattr(made.train_function, "__wrapped__")


@pytest.mark.skipif(BACKEND == "torch", reason="Keras trains on one device there")
def test_replicas_go_on_as_if_there_had_been_no_trial():
    program = [sys.executable, "-m", "tests.replicated_trial"]
    done = subprocess.run(
        program, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tried, alone = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _ in tried["replies"]] == ["applied"], tried["replies"]
    del tried["replies"], alone["replies"]
    assert tried.pop("keep") == tried.pop("loss")[4:10]
    alone.pop("loss"), alone.pop("keep")
    assert tried == alone


# ── The numbers ───────────────────────────────────────────────────────────────────────────────────


def remembering(shape: tuple[int, int], memory: float, seed: int) -> np.ndarray:
    """First-order autoregressive noise of unit variance, a series per row."""
    shocks = np.random.default_rng(seed).normal(size=(shape[0], shape[1] + 200))
    return np.sqrt(1 - memory**2) * lfilter([1.0], [1.0, -memory], shocks, axis=1)[:, 200:]


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 3.7, 10.0, 99.0])
def test_the_quantile_of_students_distribution_is_scipys(freedom: float):
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_without_memory_the_interval_is_students():
    values = next(row for row in remembering((99, 12), 0.0, 5) if np.corrcoef(row[1:], row[:-1])[0, 1] < -0.3)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert mean_interval(values)[1:] == pytest.approx((low, high), rel=1e-3)


@pytest.mark.parametrize("memory", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("steps", [15, 25, 60])
def test_the_interval_holds_the_mean_about_as_often_as_it_promises(steps: int, memory: float):
    found = [mean_interval(row) for row in remembering((600, steps), memory, steps)]
    held = np.mean([low <= 0 <= high for _, low, high in found])
    assert 0.88 <= held <= 0.99


@pytest.mark.parametrize("candidates", [2, 4])
def test_equal_candidates_are_seldom_told_apart(candidates: int):
    hard = 3 * remembering((600, 25), 0.0, 9)  # each batch is as hard for all
    noise = [hard + 0.2 * remembering((600, 25), 0.3, seed) for seed in range(candidates)]
    claims = 0
    for rows in zip(*noise, strict=True):
        best, *others = sorted(rows, key=np.mean)
        claims += better_beyond_chance(best, others)
    assert claims / 600 <= 0.09


def test_a_difference_is_told_where_batches_differ_more_than_candidates():
    hard = 3 * remembering((50, 25), 0.0, 9)
    better, worse = (hard + shift + 0.1 * remembering((50, 25), 0.0, 1) for shift in (0.0, 0.3))
    assert all(better_beyond_chance(one, [other]) for one, other in zip(better, worse, strict=True))


def test_a_range_test_reads_a_quadratic_as_theory_has_it():
    """w ← (1 - ηλ) w diverges beyond η = 2/λ, and falls fastest before that."""
    curvature, rates, weight, seen = 10.0, np.geomspace(1e-4, 2, 60), 5.0, []
    for rate in rates:
        seen.append(curvature * weight**2 / 2)
        weight *= 1 - rate * curvature
    stop = int(np.argmax(np.array(seen) > 4 * seen[0]))
    found = read_range_test(rates[:stop], np.array(seen[:stop]), given_up=True)
    assert found.diverges_at is not None and 0.2 < found.diverges_at < 2
    assert found.suggested is not None and 1e-3 < found.suggested <= found.diverges_at / 10


@pytest.mark.parametrize(
    "text",
    [
        "adam",
        "sgd 0.05 momentum=0.9 nesterov=true",
        "adam 1e-4 clipnorm=none",
        "lr x0.1",
        "lr 3e-4",
        "adam match",
    ],
)
def test_a_candidate_as_a_command_is_the_same_instruction(text: str):
    (candidate,) = commands.parse(f'trial "{text}" for 9 steps').instruction.candidates
    assert commands.parse(trial.command_text(candidate)).instruction == candidate


def test_memory_of_a_batch_is_that_of_its_parts():
    assert batches.nbytes((X[:BATCH], Y[:BATCH], None)) == (
        0 if BACKEND == "tensorflow" else 8 * 6 * 4 + 8 * 4
    )
    parts = tuple(keras.ops.convert_to_tensor(part[:BATCH]) for part in (X, Y))
    assert batches.nbytes(parts) == 8 * 6 * 4 + 8 * 4
