"""The session: the same events give the same state, and what follows from it is right."""

from __future__ import annotations

import random
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_callback.wire.protocol import (
    AnyEvent,
    EpochBegan,
    EpochEnded,
    Evaluated,
    Optimizer,
    Overhead,
    Reply,
    RunDescription,
    RunEnded,
    RunStarted,
    StateChanged,
    Steps,
    Timer,
    TimersChanged,
    fold,
    resources_event,
    steps_event,
)
from monitor.session import LONGEST_GAP, Session
from tests.story import STARTED_AT, STEP_S, STEPS_PER_EPOCH, steered_story, story

STORY = [*story(600, nan_from=555), *steered_story()[-12:]]


def session_after(events: list[AnyEvent]) -> Session:
    session = Session()
    for event in events:
        session.apply(event)
    return session


def steps(first: int, count: int, began: float, step_s: float = 0.1) -> Steps:
    times = began + step_s * np.arange(1, count + 1)
    return steps_event(first, times, {"loss": np.ones(count, np.float32)}, time=float(times[-1]))


def run_started(**about: object) -> RunStarted:
    return RunStarted(run=RunDescription(run_id="r", name="r", started_at=0.0, **about))


def test_the_same_events_give_equal_sessions_even_with_nan():
    assert session_after(STORY) == session_after([*story(600, nan_from=555), *steered_story()[-12:]])
    assert np.isnan(session_after(STORY).series["loss"].values[-1])
    assert session_after(STORY) != session_after(STORY[:-1])


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_kinds_of_event_may_be_interleaved_in_any_way(rng: random.Random):
    by_kind: dict[type, list[AnyEvent]] = {}
    for event in STORY:
        by_kind.setdefault(type(event), []).append(event)
    queues = [list(reversed(queue)) for queue in by_kind.values()]
    mixed = []
    while queues:
        queue = rng.choice(queues)
        mixed.append(queue.pop())
        queues = [queue for queue in queues if queue]
    assert session_after(mixed) == session_after(STORY)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, len(STORY) - 1), st.integers(1, 60))
def test_events_that_arrive_twice_change_nothing(begin: int, count: int):
    again = [*STORY[: begin + count], *STORY[begin : begin + count], *STORY[begin + count :]]
    assert session_after(again) == session_after(STORY)


def test_folded_steps_give_the_session_of_the_single_ones():
    dense = [event for event in STORY if isinstance(event, Steps)]
    others = [event for event in STORY if not isinstance(event, Steps)]
    assert session_after([*others, fold(dense)]) == session_after(STORY)


def test_throughput_leaves_out_pauses_validation_and_first_steps_of_epochs():
    events: list[AnyEvent] = [run_started(epochs=4, steps_per_epoch=50), EpochBegan(epoch=0)]
    events += [steps(0, 30, 0.0)]
    events += [
        StateChanged(state="paused", step=30, time=3.0),
        StateChanged(state="running", step=30, time=63.0),
    ]
    events += [steps(30, 20, 63.0)]
    events += [EpochEnded(epoch=0, step=50, time=70.0), EpochBegan(epoch=1, step=50, time=70.0)]
    events += [steps(50, 20, 75.0)]
    assert session_after(events).steps_per_second() == pytest.approx(10.0)


def test_one_step_that_was_held_up_from_outside_does_not_change_the_throughput():
    session = session_after([run_started(), steps(0, 50, 0.0), steps(50, 50, 20.0)])
    assert session.steps_per_second() == pytest.approx(10.0)


def test_the_throughput_follows_a_change_of_pace():
    session = session_after([run_started(), steps(0, 1_000, 0.0, 0.01), steps(1_000, 300, 10.0, 0.1)])
    assert session.steps_per_second() == pytest.approx(10.0, rel=0.05)


def test_the_time_of_recent_steps_is_divided_where_it_can_be_told_apart():
    session = session_after(story(600))
    assert tuple(session.time_shares()) == pytest.approx((0.31, 0.65, 0.04), rel=1e-3)
    assert session.examples_per_second() == pytest.approx(32 / STEP_S, rel=0.02)
    whole = np.full(50, 0.09, np.float32)
    columns = {"input_wait": whole * np.nan, "step_time": whole, "callback_time": whole / 9}
    joined = session_after([run_started(), steps_event(0, np.arange(50.0), columns, time=50.0)])
    assert joined.time_shares() == (None, pytest.approx(0.9), pytest.approx(0.1))
    plain = session_after([run_started(), steps(0, 50, 0.0)])
    assert plain.time_shares() is None
    assert plain.examples_per_second() is None


def test_how_steps_ran_is_no_metric():
    session = session_after(story(100))
    assert session.metric_series() == ["loss", "accuracy", "grad_norm", "learning_rate"]
    assert {"input_wait", "step_time", "callback_time", "examples"} < session.series.keys()


def test_readings_of_the_machine_are_found_by_step():
    readings = [resources_event(i, {"cpu": 0.1 * i}, step=10 * i, time=float(i)) for i in range(5)]
    session = session_after([run_started(), fold(readings[:3]), *readings[2:]])
    assert session == session_after([run_started(), *readings])
    assert session.resources["cpu"].values.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [session.reading_at(step) for step in (0, 9, 15, 39, 500, None)] == [0, 1, 1, 4, 4, 4]
    assert session_after([run_started()]).reading_at(None) is None


def test_a_reading_from_far_beyond_is_refused_and_not_allocated():
    far = resources_event(2 * LONGEST_GAP, {"cpu": 0.5}, step=1, time=1.0)
    session = session_after([run_started(), far])
    assert session.resources == {}
    assert "readings from 20000000 on" in session.problems[0].what


def test_the_overhead_is_the_newest_in_whatever_order_it_arrives():
    costs = [
        Overhead(share=share, hooks=0.0, sampling=float("nan"), every=10, time=time)
        for time, share in enumerate((0.03, 0.02, 0.01))
    ]
    assert session_after([costs[2], costs[0], costs[1]]).overhead is costs[2]


def test_a_single_step_has_no_throughput():
    session = session_after([run_started(epochs=1, steps_per_epoch=2), steps(0, 1, 0.0)])
    assert session.steps_per_second() is None
    assert session.eta_s() is None


def test_the_remaining_time_counts_validation_in():
    session = session_after(story(400, epochs=4))
    remaining_s = 400 * STEP_S + 2 * (0.2 + STEP_S)
    assert session.eta_s() == pytest.approx(remaining_s, rel=0.05)
    assert session.progress() == pytest.approx(0.5)


def test_the_length_of_an_epoch_is_learned_from_the_first():
    events: list[AnyEvent] = [run_started(epochs=10), EpochBegan(epoch=0), steps(0, 70, 0.0)]
    assert session_after(events).steps_per_epoch is None
    assert session_after(events).progress() is None
    events += [EpochEnded(epoch=0, step=70, time=7.0), EpochBegan(epoch=1, step=70, time=7.0)]
    assert session_after(events).steps_per_epoch == 70
    assert session_after(events).total_steps == 700


def test_a_fit_that_goes_on_from_a_later_epoch_counts_only_its_own_steps():
    events: list[AnyEvent] = [run_started(epochs=10, steps_per_epoch=5), EpochBegan(epoch=6)]
    assert session_after(events).total_steps == 20


def test_validation_lies_on_the_last_step_of_its_epoch():
    points = session_after(story(600)).validation["val_loss"]
    assert points.steps.tolist() == [STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH - 1, 3 * STEPS_PER_EPOCH - 1]


def test_the_state_follows_the_training_to_its_end():
    session = Session()
    assert session.state == "waiting"
    session.apply(run_started())
    assert session.state == "running"
    session.apply(StateChanged(state="paused", reason="by ada", time=1.0))
    assert (session.state, session.state_reason) == ("paused", "by ada")
    session.apply(RunEnded(outcome="failed", reason="ValueError: no", time=2.0))
    assert (session.state, session.state_reason) == ("failed", "ValueError: no")
    assert session.eta_s() == 0.0


def replied(*answers: tuple[str, str]) -> list[AnyEvent]:
    return [
        Reply(id=str(number), text=text, status=status, after={"learning_rate": 0.25}, time=1.0 + number)
        for number, (text, status) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([], None),
        ([("lr 1e-3", "applied"), ("lr 5e-4", "applied"), ("lr 7", "refused")], 5e-4),
        ([("lr 1e-3", "applied"), ("pause", "applied"), ("note rate", "applied")], 1e-3),
        ([("optimizer sgd learning_rate=0.01", "applied")], 0.01),
        ([("lr 1e-3", "applied"), ("optimizer adam", "applied")], None),
        ([("lr 1e-3", "applied"), ("lr x0.5", "applied")], None),
        ([("a command of a later version", "applied")], None),
        ([("lr 1e-3", "ineffective")], 1e-3),
        ([("lr 1e-3 hold", "applied"), ("snapshot", "applied"), ("evaluate", "applied")], 1e-3),
        ([("lr 1e-3 over 100 steps", "applied")], None),
        ([("lr 1e-3", "applied"), ("schedule cosine decay_steps=9", "applied")], None),
        ([("lr 1e-3", "applied"), ("undo", "applied")], None),
        ([("lr 1e-3", "applied"), ("redo", "applied")], None),
        ([("lr 1e-3", "applied"), ("rollback start", "applied")], None),
        ([("lr 1e-3", "applied"), ("rollback start", "refused")], 1e-3),
        ([("optimizer sgd learning_rate=match", "applied")], None),
        ([("lr 1e-3", "applied"), ("optimizer sgd learning_rate=0.1 --dry-run", "planned")], 1e-3),
        ([("lr 1e-3", "applied"), ("trial lr 1e-5..1 for 60 steps", "applied")], 1e-3),
        ([("lr 1e-3", "applied"), ("trial keep sgd for 60 steps", "applied")], 1e-3),
        ([("lr 1e-3", "applied"), ("lr x0.5 ends", "applied")], None),
        ([("lr 1e-3 for 500 steps", "applied")], None),
        ([("lr 1e-3 unless loss rises 20% in 200 steps", "applied")], None),
    ],
)
def test_the_requested_rate_is_the_one_that_an_applied_command_named(answers, asked):
    session = session_after([run_started(), steps(0, 1, 0.0), *replied(*answers)])
    assert session.requested_learning_rate == asked


def test_a_rate_that_is_gone_to_slowly_counts_once_it_is_reached():
    asked = replied(("lr 1e-3 over 100 steps", "applied"))
    assert session_after([run_started(), steps(0, 101, 0.0), *asked]).requested_learning_rate == 1e-3
    assert session_after([run_started(), steps(0, 90, 0.0), *asked]).requested_learning_rate is None


def test_a_rate_for_some_steps_counts_while_its_timer_is_active():
    text = "lr 1e-3 for 500 steps"
    timer = Timer(number=1, id="0", text=text, state="active", until=600)
    events = [
        run_started(),
        steps(0, 1, 0.0),
        msgspec.structs.replace(replied((text, "applied"))[0], timer=1),
    ]
    assert session_after([*events, TimersChanged(timers=(timer,))]).requested_learning_rate == 1e-3
    over = [TimersChanged(timers=(timer,), time=1.0), TimersChanged(time=2.0)]
    assert session_after([*events, *over]).requested_learning_rate is None


def test_an_evaluation_that_was_asked_for_lies_on_the_step_before_it():
    session = session_after([run_started(), Evaluated(logs={"val_loss": 0.5}, step=120, time=1.0)])
    assert session.validation["val_loss"].steps.tolist() == [119]
    assert session.validation["val_loss"].values.tolist() == [0.5]


def test_what_was_planned_and_then_carried_out_is_one_answer_at_its_later_place():
    waiting = Reply(id="a", text="lr 1 at step 9", status="planned", timer=1, time=1.0)
    other = Reply(id="b", text="pause", status="applied", time=2.0)
    done = Reply(id="a", text="lr 1 at step 9", status="applied", timer=1, time=3.0)
    session = session_after([waiting, other, done])
    assert session.replies == [other, done]
    assert session == session_after([waiting, other, done, waiting, other, done])


def test_answers_of_dry_runs_are_kept_and_told_apart():
    dry = Reply(id="a", text="lr 1 --dry-run", status="planned", time=1.0)
    waiting = Reply(id="b", text="lr 1 at step 9", status="planned", timer=1, time=2.0)
    refused = Reply(id="c", text="optimizer sdg --dry-run", status="refused", time=3.0)
    session = session_after([dry, waiting, refused])
    assert session.replies == [dry, waiting, refused]
    assert session.answered() == [waiting, refused]


def test_what_was_undone_and_not_done_again_is_known():
    done = [Reply(id=i, text="lr x0.5", status="applied", time=t) for i, t in (("a", 1.0), ("b", 2.0))]
    undos = [
        Reply(id=f"u{i}", text="undo", status="applied", undoes=i, time=3.0 + t) for t, i in enumerate("ba")
    ]
    redo = Reply(id="r", text="redo", status="applied", time=9.0)
    assert session_after([*done, *undos]).taken_back() == {"a", "b"}
    assert session_after([*done, *undos, redo]).taken_back() == {"b"}


def test_under_a_schedule_no_rate_counts_as_requested():
    cosine = Optimizer(name="adam", class_name="Adam", schedule="CosineDecay")
    events = [run_started(optimizer=cosine), steps(0, 1, 0.0), *replied(("lr 1e-3", "applied"))]
    assert session_after(events).requested_learning_rate is None


def test_epochs_are_kept_in_order_and_each_once_however_they_arrive():
    begun = [EpochBegan(epoch=epoch, step=75 * epoch) for epoch in (0, 3, 1, 2, 3, 0)]
    assert session_after(begun).epochs == [(0, 0), (1, 75), (2, 150), (3, 225)]


def test_tens_of_thousands_of_short_epochs_cost_a_fraction_of_a_second():
    epochs, length = 13_334, 75
    events = [
        event
        for epoch in range(epochs)
        for event in (
            EpochBegan(epoch=epoch, step=length * epoch, time=7.5 * epoch),
            EpochEnded(epoch=epoch, step=length * (epoch + 1), time=7.5 * epoch + 7.4),
        )
    ]
    began = time.process_time()
    session = session_after(events)
    assert time.process_time() - began < 1.0
    assert len(session.epochs) == epochs


def test_the_second_answer_to_a_command_replaces_the_first():
    late = Reply(id="x", text="lr 1", status="applied", after={"learning_rate": 1.0}, time=9.0)
    session = session_after([Reply(id="x", text="lr 1", status="failed", reason="no answer", time=5.0), late])
    assert session.replies == [late]


def test_the_optimizer_is_the_one_switched_to():
    adam = Optimizer(name="adam", class_name="Adam")
    assert session_after([run_started(optimizer=adam)]).optimizer == adam
    assert session_after(story(1_510)).optimizer.name == "sgd"


def test_steps_from_far_beyond_are_refused_and_not_allocated():
    session = session_after([run_started(), steps(0, 10, 0.0), steps(LONGEST_GAP * 2, 1, 5.0)])
    assert len(session.times) == 10
    assert session.step == 10
    assert "not shown" in session.problems[0].what


def test_the_epoch_and_the_time_are_the_newest():
    session = session_after(STORY)
    assert session.epoch == 2
    assert session.time >= STARTED_AT
