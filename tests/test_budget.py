"""How often steps are sampled follows from what they cost and from what may be spent."""

from __future__ import annotations

import math

import keras
import pytest

from client_callback import MonitorCallback
from client_callback.budget import CPUS, FIRST_INTERVAL, Budget
from client_callback.instrument.schedule import Schedule
from client_callback.wire import protocol
from tests import models
from tests.recorded import of_kind, samples


def measured(share: float | None, *, step: float, sample: float, hooks: float = 0.0) -> Budget:
    budget = Budget(share, FIRST_INTERVAL)
    for _ in range(20):
        budget.note_call(step, 1, 0)
    for _ in range(5):
        budget.note_call(step + sample, 1, 1)
    budget.note_hooks(hooks * 25, 25)
    return budget


def settled(budget: Budget, *, steps: int = 0, sample_bytes: int = 0) -> int:
    return [budget.choose(steps=steps, sample_bytes=sample_bytes) for _ in range(10)][-1]


def test_the_interval_keeps_hooks_and_samples_inside_the_share():
    budget = measured(0.01, step=0.01, sample=0.004, hooks=20e-6)
    assert settled(budget) == pytest.approx(0.004 / (0.01 * 0.01 - 20e-6), rel=0.34)
    assert budget.overhead < 0.012


def test_cheap_samples_are_still_taken_no_more_than_a_few_times_a_second():
    assert settled(measured(0.5, step=0.001, sample=1e-5)) == pytest.approx(200, rel=0.34)


def test_large_samples_and_long_runs_are_sampled_more_rarely():
    assert settled(measured(0.5, step=0.1, sample=1e-5), sample_bytes=1 << 20) == pytest.approx(320, rel=0.34)
    assert settled(measured(0.5, step=0.1, sample=1e-5), steps=20_000_000) == pytest.approx(1000, rel=0.34)


def test_hooks_that_use_up_the_budget_leave_a_quarter_of_it_for_samples():
    budget = measured(0.001, step=0.001, sample=0.001, hooks=5e-6)
    assert settled(budget) == pytest.approx(0.001 / (0.25 * 1e-6), rel=0.34)
    assert budget.overhead == pytest.approx(5.25e-3, rel=0.05)


def test_what_the_sender_takes_of_the_machine_is_not_there_for_samples():
    budget = measured(0.01, step=0.01, sample=0.004)
    alone = settled(budget)
    budget.note_sender(0.005 * CPUS, 1.0)
    assert settled(budget) == pytest.approx(2 * alone, rel=0.34)
    assert budget.overhead == pytest.approx(0.01, rel=0.35)


def test_a_fixed_interval_stays_and_its_cost_is_told():
    budget = measured(None, step=0.01, sample=0.01)
    assert settled(budget) == FIRST_INTERVAL
    assert budget.overhead == pytest.approx(0.01, rel=0.05)


def test_nothing_is_changed_before_the_cost_is_known():
    budget = Budget(0.01, FIRST_INTERVAL)
    budget.note_call(0.01, 1, 0)
    assert math.isnan(budget.sampling) and settled(budget) == FIRST_INTERVAL


def test_calls_that_all_hold_samples_are_told_apart_by_how_many():
    budget = Budget(0.01, 3)
    for count in (3, 4, 3, 4, 3, 4):
        budget.note_call(0.1 + 0.002 * count, 10, count)
    assert budget.sampling == pytest.approx(0.002)


def test_the_first_samples_come_early_and_then_at_the_interval():
    schedule = Schedule(10, fixed=False)
    due = []
    for step in range(60):
        if schedule.due:
            due.append(step)
        schedule.advance()
    assert due == [0, 1, 3, 7, 15, 25, 35, 45, 55]


def test_a_shorter_interval_takes_effect_at_once():
    schedule = Schedule(1000, fixed=True)
    schedule.advance()
    schedule.every = 5
    due = []
    for _ in range(20):
        if schedule.due:
            due.append(schedule.step)
        schedule.advance()
    assert due == [6, 11, 16]


class Traces(keras.Model):
    """Counts how often its step is traced."""

    traces = 0

    def train_step(self, *args):
        Traces.traces += 1
        return super().train_step(*args)


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is traced there")
def test_another_interval_needs_no_new_trace():
    x = models.inputs(examples=640)
    inputs = keras.Input((12,))
    model = Traces(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    callback = MonitorCallback("interval", statistics_every=100)
    counts = []

    def change(batch: int, logs: object) -> None:
        if batch == 10:
            counts.append(Traces.traces)
            callback._run._instrument.set_interval(3)

    model.fit(
        x,
        x[:, :1],
        batch_size=16,
        verbose=0,
        callbacks=[callback, keras.callbacks.LambdaCallback(on_train_batch_begin=change)],
    )
    assert list(samples(callback.recording)[0]) == [0, *range(13, 40, 3)]
    # On JAX the function that samples is compiled at the first sampled step, and once more beside its gradient kept.
    assert Traces.traces - counts[0] <= (1 if keras.backend.backend() == "jax" else 0)


def test_what_watching_costs_is_told_while_it_trains():
    x = models.inputs(examples=1600)
    model = models.plain_mlp()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = MonitorCallback("overhead", overhead_budget=0.02)
    model.fit(x, models.labels(x), batch_size=16, epochs=12, verbose=0, callbacks=[callback])
    told = of_kind(callback.recording, protocol.Overhead)
    assert told and all(event.budget == 0.02 and 0 <= event.share < 1 for event in told)
    assert all(0 < event.sender < 1 and 0 < event.hooks < 0.01 for event in told)
    steps = list(samples(callback.recording)[0])
    assert steps[:5] == [0, 1, 3, 7, 15]


@pytest.mark.parametrize("budget", [0, 1, -0.1, float("nan"), True, "1 %"])
def test_a_budget_that_is_no_share_is_refused_with_what_is_possible(budget):
    with pytest.raises(ValueError, match=r"overhead_budget: received .* between 0 and 1"):
        MonitorCallback(overhead_budget=budget)


def test_a_hook_that_took_long_once_stands_for_one_call_only():
    budget = Budget(0.01, 100)
    budget.note_hooks(0.1, 1)
    for _ in range(20):
        budget.note_hooks(0.002, 200)
    assert budget.hooks == pytest.approx((0.1 + 20 * 0.002) / (1 + 20 * 200))
