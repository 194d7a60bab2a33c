"""Runs without a model: the events a training would make, and waiting for what they lead to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from client_callback.wire import protocol, runs


def description(name="toy", **changes):
    fields = {"run_id": runs.new_run_id(), "name": name, "started_at": time.time(), "pid": os.getpid()}
    return protocol.RunDescription(**{**fields, "host": runs.host_name(), **changes})


def started(run):
    return protocol.RunStarted(run=run, time=run.started_at)


def steps(first, count=5, *, at=1_000.0, names=("loss", "accuracy")):
    """Steps `first` to `first + count`, 0.1 s apart; the value of a step is its number."""
    numbers = np.arange(first, first + count)
    columns = {name: numbers.astype(np.float32) + i for i, name in enumerate(names)}
    times = at + 0.1 * (numbers + 1)
    return protocol.steps_event(first, times, columns, time=float(times[-1]))


def samples(*numbers, at=1_000.0, labels=2):
    values = np.repeat(np.array(numbers, np.float32)[:, None], labels, axis=1)
    return protocol.samples_event(
        np.array(numbers), {"gradient_norm": values}, time=at + 0.1 * (numbers[-1] + 1)
    )


def reading(number, *, at=1_000.0, step=0):
    """Reading `number`, taken after as many seconds; its value is its number."""
    return protocol.resources_event(
        number, {"cpu": number, "memory": 2.0 * number}, step=step, time=at + number
    )


def story(drains=40, epochs=2, per_drain=5):
    """The events of a whole run, from its start to its end."""
    run = description(started_at=1_000.0, epochs=epochs)
    statistic = protocol.Statistic(
        name="gradient_norm", of="variables", labels=("dense/kernel", "dense/bias")
    )
    events = [
        started(run),
        protocol.Instrumented(series=(protocol.Series(name="loss"),), statistics=(statistic,), time=1_000.0),
    ]
    step = 0
    for epoch in range(epochs):
        events.append(protocol.EpochBegan(epoch=epoch, step=step, time=1_000.0 + 0.1 * step))
        for _ in range(drains):
            events += [steps(step, per_drain), samples(step)]
            step += per_drain
            if step % 10 == 0:
                events.append(reading(step // 10 - 1, at=1_001.0, step=step))
        at = 1_000.05 + 0.1 * step
        events.append(
            protocol.Reply(
                id=f"c{epoch}",
                text="lr x0.5",
                status="applied",
                step=step,
                time=at,
                before={"learning_rate": 0.1},
                after={"learning_rate": 0.05},
            )
        )
        logs = {"loss": float(step), "val_loss": float("nan")}
        events.append(protocol.EpochEnded(epoch=epoch, step=step, time=at, logs=logs))
    events.append(protocol.RunEnded(outcome="finished", step=step, time=1_000.1 + 0.1 * step))
    return run, events


def canonical(events):
    """The same for any two ways to cut the same steps, samples and readings into events."""
    columns: dict = {}
    others = []
    for event in events:
        if isinstance(event, protocol.Steps):
            columns.setdefault("step", []).append(np.arange(event.first, event.first + event.count))
            columns.setdefault("time", []).append(protocol.step_times(event))
            for name, values in protocol.step_columns(event).items():
                columns.setdefault(name, []).append(values)
        elif isinstance(event, protocol.Resources):
            columns.setdefault("reading", []).append(np.arange(event.first, event.first + event.count))
            columns.setdefault("read at", []).append(protocol.resource_times(event))
            columns.setdefault("read after", []).append(protocol.resource_steps(event))
            for name, values in protocol.resource_columns(event).items():
                columns.setdefault(name, []).append(values)
        elif isinstance(event, protocol.Samples):
            columns.setdefault("sampled", []).append(protocol.sample_steps(event))
            for name, values in protocol.sample_columns(event).items():
                columns.setdefault(name, []).append(values)
        else:
            others.append(protocol.encode(event))
    return {name: np.concatenate(parts).tolist() for name, parts in columns.items()}, others


def wait_until(condition, timeout_s=15.0):
    """What `condition` returns as soon as that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def collect(source, until, timeout_s=20.0):
    """Polls the source until `until(events)` is true; all events since the last reset."""
    events: list = []

    def polled():
        update = source.poll()
        if update.reset:
            events.clear()
        events.extend(update.events)
        return until(events)

    wait_until(polled, timeout_s)
    return events


def has_ended(events):
    return any(isinstance(event, protocol.RunEnded) for event in events)


def start_training(*arguments, **popen):
    """A process that trains nothing and records it; prints its recording's path first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.toy_training", *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        **popen,
    )
    path = process.stdout.readline().strip()
    return process, Path(path) if path else None
