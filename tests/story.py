"""A made-up training told as events, and a source that delivers it from memory.

The story: the loss falls for 500 steps, sits at ln 2 until step 1,500, and falls again after an intervention.
Deterministic, with nothing of the clock in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np

from client_callback.wire.commands import parse
from client_callback.wire.protocol import (
    TIMINGS,
    AnyEvent,
    ControlChanged,
    EpochBegan,
    EpochEnded,
    Evaluated,
    Instrumented,
    Layer,
    Measured,
    Optimizer,
    OptimizerChanged,
    Overhead,
    PlanLine,
    Reply,
    RunDescription,
    RunStarted,
    Series,
    SnapshotKept,
    SnapshotsChanged,
    StateChanged,
    Statistic,
    Timer,
    TimersChanged,
    TrialEnded,
    TrialResult,
    Variable,
    resources_event,
    samples_event,
    steps_event,
)
from monitor.sources import Update

STARTED_AT = 1_700_000_000.0
STEPS_PER_EPOCH = 200
STEP_S = 0.01
DRAIN = 10
STEPS_PER_READING = 100
LAYERS = ("conv_1", "conv_2", "dense", "output")
VARIABLES = tuple(f"{layer}/{part}" for layer in LAYERS for part in ("kernel", "bias"))
EDGES = tuple(i / 20 for i in range(21))


ACTIONS = ("render", "save-images")
"""Commands of the script's own, in `steered_story`."""

PLAN = (
    PlanLine(topic="does", text="adam → sgd with momentum 0.9"),
    PlanLine(
        topic="rate",
        text="0.01 as written; adam's 5e-4 moves the weights as far as sgd's 0.031 would (update RMS)",
    ),
    PlanLine(topic="rate", text="ReduceLROnPlateau goes on setting it"),
    PlanLine(topic="keeps", text="clipnorm 1, accumulation of 2 batches, weight-decay exclusions"),
    PlanLine(topic="resets", text="momentum and velocity start at zero; iterations at 0"),
    PlanLine(topic="recompiles", text="the train step is traced anew: about 0.6 s"),
    PlanLine(topic="cost", text="a snapshot of 1.2 MB is kept to go back to"),
    PlanLine(topic="warning", text="learning_rate=0.01 is 20 times the present one"),
)


def story(steps: int = 2_400, *, epochs: int = 20, nan_from: int | None = None) -> list[AnyEvent]:
    """All events up to that step; with `nan_from`, the loss is NaN from there on."""
    return list(_told(steps, epochs, nan_from))


@lru_cache
def _told(steps: int, epochs: int, nan_from: int | None) -> list[AnyEvent]:
    rng = np.random.default_rng(7)
    time = STARTED_AT + 2.0
    events: list[AnyEvent] = [
        RunStarted(run=_run(epochs), time=STARTED_AT),
        Instrumented(
            series=(
                *(Series(name=name) for name in ("loss", "accuracy", "grad_norm", "learning_rate")),
                *(Series(name=name, kind="timing") for name in TIMINGS),
            ),
            statistics=_layouts(),
            missing=("auc: it is no mean over examples",),
            task="binary",
            time=STARTED_AT + 0.5,
        ),
    ]
    for first in range(0, steps, DRAIN):
        if first % STEPS_PER_EPOCH == 0:
            events.append(EpochBegan(epoch=first // STEPS_PER_EPOCH, step=first, time=time))
        index = np.arange(first, first + DRAIN)
        level = _level(index)
        loss = level + rng.normal(0, 0.04, DRAIN) * np.sqrt(level)
        if nan_from is not None:
            loss[index >= nan_from] = np.nan
        times = time + STEP_S * np.arange(1, DRAIN + 1)
        time = float(times[-1])
        columns = {
            "loss": loss,
            "accuracy": np.clip(1 - level / 1.5 + rng.normal(0, 0.06, DRAIN), 0, 1),
            "grad_norm": np.exp(rng.normal(0, 0.3, DRAIN)) * np.where(index < 500, 1.0, 0.1),
            "learning_rate": np.where(index < 1000, 1e-3, np.where(index < 1500, 5e-4, 1e-2)),
            # The first step of an epoch cannot be told apart.
            "input_wait": np.where(index % STEPS_PER_EPOCH == 0, np.nan, 0.31 * STEP_S),
            "step_time": np.where(index % STEPS_PER_EPOCH == 0, np.nan, 0.65 * STEP_S),
            "callback_time": np.where(index % STEPS_PER_EPOCH == 0, np.nan, 0.04 * STEP_S),
            "examples": np.full(DRAIN, 32.0),
        }
        packed = {name: values.astype(np.float32) for name, values in columns.items()}
        events.append(steps_event(first, times, packed, time=time))
        events.append(samples_event(np.array([first]), _sampled(rng, first), time=time))
        events += _machine(first, first + DRAIN, time)
        events += _interventions(first + DRAIN, time)
        if (first + DRAIN) % STEPS_PER_EPOCH == 0:
            events += _epoch_end(first + DRAIN, float(level[-1]), time)
            time += 0.2
    return events


def steered_story() -> list[AnyEvent]:
    """The usual story of a script with commands of its own, then with everything else that steering may bring."""
    told = story()
    started = told[0]
    assert isinstance(started, RunStarted)
    layers = tuple(Layer(name=name, class_name="Dense") for name in LAYERS)
    run = msgspec.structs.replace(started.run, actions=ACTIONS, layers=layers)
    time = told[-1].time
    return [RunStarted(run=run, time=started.time), *told[1:], *_steered(2_400, time)]


def trial(step: int, time: float) -> TrialEnded:
    """Three candidates, one of which diverges."""
    rng, steps = np.random.default_rng(3), np.arange(100)
    curves = {
        "sgd 0.05 momentum=0.9": 0.3 + 0.2 * np.exp(-steps / 30),
        "keep": 0.42 + 0.08 * np.exp(-steps / 60),
        "lr x10": 0.5 * np.exp(steps[:40] / 12),
    }
    results = []
    for text, curve in curves.items():
        losses = (curve + rng.normal(0, 0.015, len(curve))).astype("<f4")
        diverged = text == "lr x10"
        score = float("nan") if diverged else float(losses[-25:].mean())
        results.append(
            TrialResult(
                text=text,
                losses=losses.tobytes(),
                score=score,
                low=score - 0.012,
                high=score + 0.012,
                note="given up after 40 steps: the loss is not finite" if diverged else "",
            )
        )
    command = 'trial "sgd 0.05 momentum=0.9" keep "lr x10" for 100 steps'
    return TrialEnded(id="trial", text=command, start=step, results=tuple(results), step=step, time=time)


def tried_rates(step: int, time: float) -> TrialEnded:
    """A range test: the loss falls from 1e-4 on, and fastest near 3e-2; it diverges beyond 0.5."""
    rates = np.geomspace(1e-5, 1.0, 60)
    falls = 0.5 - 0.25 / (1 + np.exp(-3 * np.log(rates / 2e-2)))
    losses = (
        falls + np.where(rates > 0.2, (rates - 0.2) * 2, 0.0) + np.random.default_rng(4).normal(0, 0.006, 60)
    )
    result = TrialResult(
        text="lr 1e-5..1", losses=losses.astype("<f4").tobytes(), score=0.3, low=0.3, high=0.3
    )
    return TrialEnded(
        id="range",
        text="trial lr 1e-5..1 for 60 steps",
        start=step,
        results=(result,),
        rates=rates.astype("<f4").tobytes(),
        step=step,
        time=time,
    )


def _steered(step: int, time: float) -> list[AnyEvent]:
    about = {"who": "ada@gpu01 terminal", "step": step}
    waiting = Timer(number=2, id="later", text="pause at epoch 15", state="waiting", starts="epoch 15")
    active = Timer(
        number=3, id="guarded", text="lr x2", state="active", unless="loss is above 0.25 before step 2600"
    )
    return [
        TimersChanged(timers=(waiting, active), step=step, time=time + 1),
        SnapshotsChanged(
            snapshots=(
                SnapshotKept(step=0, name="start"),
                SnapshotKept(step=1_500),
                SnapshotKept(step=2_000, name="good"),
            ),
            step=step,
            time=time + 1,
        ),
        Evaluated(logs={"val_loss": 0.4, "val_accuracy": 0.8}, step=step, time=time + 2),
        Reply(id="later", text="pause at epoch 15", status="planned", timer=2, time=time + 1, **about),
        Reply(
            id="held",
            text="lr 1e-3",
            status="ineffective",
            reason="ReduceLROnPlateau set it back to 0.01; lr 1e-3 hold sets it again each time",
            time=time + 3,
            **about,
        ),
        Reply(id="dry", text="optimizer sgd --dry-run", status="planned", plan=PLAN, time=time + 3, **about),
        trial(step, time + 4),
        Reply(
            id="trial",
            text=trial(step, time).text,
            status="applied",
            reason="took 2.1 s",
            time=time + 4,
            **about,
        ),
        tried_rates(step, time + 5),
        Reply(id="range", text=tried_rates(step, time).text, status="applied", time=time + 5, **about),
        Reply(
            id="back",
            text="undo",
            status="applied",
            undoes="c",
            before={"optimizer": "sgd"},
            after={"optimizer": "adam"},
            update_before=Measured(value=3.1e-3, step=2_390),
            update_after=Measured(value=2.2e-4, step=2_401),
            time=time + 6,
            **about,
        ),
        ControlChanged(who="eve@box terminal", client="another", step=step, time=time + 7),
    ]


class MemorySource:
    """Delivers events from memory, and answers commands as a training would; the fake edge of app tests."""

    def __init__(self, events: Sequence[AnyEvent], *, live: bool = True) -> None:
        self.live = live
        self.client = "this monitor"
        self.connection = ""
        self.waiting = list(events)
        self.sent: list[str] = []
        self.closed = False
        self.answers = True

    def poll(self) -> Update:
        events, self.waiting = self.waiting, []
        return Update(False, events)

    def send(self, text: str) -> str:
        parse(text, ACTIONS)
        self.sent.append(text)
        command_id = f"command-{len(self.sent)}"
        if self.answers:
            self.waiting.append(answer(command_id, text))
        return command_id

    def close(self) -> None:
        self.closed = True


def answer(command_id: str, text: str) -> Reply:
    """As a training would: rates are applied, unknown optimizers refused, dry runs answered with a plan."""
    about = {
        "id": command_id,
        "text": text,
        "step": 2_400,
        "time": STARTED_AT + 30,
        "who": "ada@box terminal",
    }
    unknown = text.startswith("optimizer") and "sgd" not in text
    if text.endswith(" --dry-run") and not unknown:
        return Reply(status="planned", plan=PLAN, **about)
    if unknown:
        return Reply(status="refused", reason="[unknown] optimizer; possible: adam, sgd", **about)
    if text.startswith("lr"):
        rates = {"before": {"learning_rate": 1e-2}, "after": {"learning_rate": 5e-3}}
        return Reply(status="applied", **rates, **about)
    return Reply(status="applied", **about)


def _run(epochs: int) -> RunDescription:
    return RunDescription(
        run_id="heart-7f3a",
        name="heart",
        started_at=STARTED_AT,
        host="gpu01",
        user="ada",
        backend="tensorflow",
        model="Sequential",
        variables=tuple(Variable(path=v, shape=(9, 16) if "kernel" in v else (16,)) for v in VARIABLES),
        optimizer=Optimizer(name="adam", class_name="Adam", settings={"learning_rate": 1e-3}),
        optimizers={
            "adam": ("learning_rate", "beta_1", "beta_2"),
            "adamw": ("learning_rate", "weight_decay"),
            "sgd": ("learning_rate", "momentum", "nesterov"),
        },
        epochs=epochs,
        steps_per_epoch=STEPS_PER_EPOCH,
        statistics_every=DRAIN,
    )


def _layouts() -> tuple[Statistic, ...]:
    bins = tuple(f"{edge:.2f}" for edge in EDGES[:-1])
    return (
        Statistic(name="gradient_norm", of="variables", labels=VARIABLES),
        Statistic(name="gradient_zero_share", of="variables", labels=VARIABLES),
        Statistic(name="predicted_counts", of="histogram", labels=("0", "1"), unit="count"),
        Statistic(name="target_counts", of="histogram", labels=("0", "1"), unit="count"),
        Statistic(name="confidence_0", of="histogram", labels=bins, edges=EDGES, unit="count"),
        Statistic(name="confidence_1", of="histogram", labels=bins, edges=EDGES, unit="count"),
        Statistic(name="input", of="values", labels=("mean", "std", "min", "max", "non_finite")),
    )


def _level(step: np.ndarray) -> np.ndarray:
    start = np.where(step < 500, 2.3 * np.exp(-step / 160) + 0.69 * (1 - np.exp(-step / 160)), 0.69)
    escaped = np.where(step > 1500, 0.55 * (1 - np.exp(-(step - 1500) / 300)), 0.0)
    return np.asarray(start - escaped)


def _sampled(rng: np.random.Generator, step: int) -> dict[str, np.ndarray]:
    scale = np.array([1e-4, 1e-5, 1e-3, 1e-4, 1e-2, 1e-3, 0.3, 0.1]) * (1.0 if step < 500 else 0.1)
    p = np.clip(0.5 + rng.normal(0, 0.02 if step < 1500 else 0.3, 64), 0, 1)
    positive = rng.random(64) < 0.55
    rows = {
        "gradient_norm": np.exp(rng.normal(0, 0.3, 8)) * scale,
        "gradient_zero_share": rng.random(8) * np.linspace(0.9, 0.2, 8),
        "predicted_counts": np.array([np.sum(p <= 0.5), np.sum(p > 0.5)]),
        "target_counts": np.array([np.sum(~positive), np.sum(positive)]),
        "confidence_0": np.histogram(p[~positive], EDGES)[0],
        "confidence_1": np.histogram(p[positive], EDGES)[0],
        "input": np.array([0.13, 0.31, 0.0, 1.0, 0.0]),
    }
    return {name: row[None].astype(np.float32) for name, row in rows.items()}


def _machine(first: int, step: int, time: float) -> list[AnyEvent]:
    """A reading each second, and twice the overhead."""
    events: list[AnyEvent] = []
    if first % STEPS_PER_READING == 0:
        number = first // STEPS_PER_READING
        values = {
            "cpu": 0.34 + 0.1 * np.sin(number),
            "cpu_machine": 0.41,
            "memory": 2.1e9,
            "memory_machine": 0.38,
            "gpu0_utilisation": 0.87 - 0.2 * np.cos(number),
            "gpu0_memory": 12.3e9,
            "gpu0_memory_share": 0.62,
            "gpu0_temperature": 71.0,
            "gpu0_power": 243.0,
        }
        events.append(resources_event(number, values, step=step, time=time))
    if first in (200, 1_000):
        every, share = (37, 0.006) if first == 1_000 else (10, 0.021)
        cost = {"hooks": 2e-5, "sampling": 1e-3}
        events.append(Overhead(share=share, every=every, budget=0.01, step=step, time=time, **cost))
    return events


def _interventions(step: int, time: float) -> list[AnyEvent]:
    who = "ada@gpu01 terminal"
    if step == 1_000:
        rates = {"before": {"learning_rate": 1e-3}, "after": {"learning_rate": 5e-4}}
        return [Reply(id="a", text="lr x0.5", who=who, status="applied", step=step, time=time, **rates)]
    if step == 1_250:
        reason = "unknown optimizer 'sdg'; possible: adam, adamw, sgd"
        return [
            Reply(
                id="b", text="optimizer sdg", who=who, status="refused", reason=reason, step=step, time=time
            )
        ]
    if step == 1_500:
        sgd = Optimizer(name="sgd", class_name="SGD", settings={"learning_rate": 1e-2, "momentum": 0.9})
        reply = Reply(
            id="c",
            text="optimizer sgd learning_rate=0.01 momentum=0.9",
            who=who,
            status="applied",
            before={"optimizer": "adam", "learning_rate": 5e-4},
            after={"optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9},
            reason="recompiled in 0.6 s",
            step=step,
            time=time,
        )
        return [OptimizerChanged(optimizer=sgd, step=step, time=time), reply]
    return []


def _epoch_end(step: int, level: float, time: float) -> list[AnyEvent]:
    logs = {"loss": level, "val_loss": level * 1.1 + 0.02, "val_accuracy": 1 - level / 1.4}
    return [
        StateChanged(state="validating", step=step, time=time),
        EpochEnded(epoch=step // STEPS_PER_EPOCH - 1, step=step, logs=logs, time=time + 0.2),
        StateChanged(state="running", step=step, time=time + 0.2),
    ]
