"""Sessions made of plain numbers, for the examples that rules carry.

The rules' HEALTHY and AILING examples are built with these and become tests. No rule here, and no randomness
that is not seeded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from client_callback.wire.protocol import (
    Float64,
    Instrumented,
    Optimizer,
    RunDescription,
    RunStarted,
    Series,
    Statistic,
    samples_event,
    steps_event,
)
from monitor.session import Session

SECONDS_PER_STEP = 0.01


def session_of(
    series: Mapping[str, Float64],
    *,
    optimizer: str = "adam",
    running: tuple[str, ...] = (),
    timing: tuple[str, ...] = (),
    gradient_non_finite: Mapping[int, Mapping[str, float]] | None = None,
) -> Session:
    """A session in which each series has the given values, one per step from step 0.

    Args:
        series: Name → values, all of one length.
        optimizer: Name of the optimizer at work.
        running: The series that are means since their epoch began.
        timing: The series that tell how the steps ran.
        gradient_non_finite: Step → variable → how many of its gradient's entries were not finite.
    """
    session = Session()
    run = RunDescription(
        run_id="example",
        name="example",
        started_at=0.0,
        optimizer=Optimizer(name=optimizer, class_name=optimizer.capitalize()),
    )
    session.apply(RunStarted(run=run))
    sampled = gradient_non_finite or {}
    variables = tuple(dict.fromkeys(name for row in sampled.values() for name in row))
    session.apply(
        Instrumented(
            series=tuple(
                Series(name=n, kind="running" if n in running else "timing" if n in timing else "batch")
                for n in series
            ),
            statistics=(Statistic(name="gradient_non_finite", of="variables", labels=variables),),
        )
    )
    count = len(next(iter(series.values())))
    columns = {name: values.astype(np.float32) for name, values in series.items()}
    session.apply(
        steps_event(
            0,
            np.arange(1, count + 1, dtype=np.float64) * SECONDS_PER_STEP,
            columns,
            time=count * SECONDS_PER_STEP,
        )
    )
    if sampled:
        table = np.array([[row.get(name, 0) for name in variables] for row in sampled.values()], np.float32)
        steps = np.array(list(sampled), np.int64)
        session.apply(samples_event(steps, {"gradient_non_finite": table}, time=count * SECONDS_PER_STEP))
    return session


def noisy(values: Float64, noise: float, seed: int = 0) -> Float64:
    """The values with Gaussian noise of that standard deviation."""
    return np.asarray(values + np.random.default_rng(seed).normal(0.0, noise, len(values)))


def with_value(values: Float64, step: int, value: float) -> Float64:
    """The values with another one from that step on."""
    changed = values.copy()
    changed[step:] = value
    return changed
