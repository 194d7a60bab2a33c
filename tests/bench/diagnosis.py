"""How long all rules together take for one look at a long session of a deep model, and the copy they look at.

The session grows between two looks as one does that is watched: by so many steps and a row of each table.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from client_callback.wire.protocol import samples_event, steps_event
from monitor.diagnosis.case import Memory
from monitor.diagnosis.engine import RULES, examine
from monitor.diagnosis.examples import (
    SECONDS_PER_STEP,
    Sampled,
    dense,
    falling,
    flat,
    output_of,
    session_of,
    trained_on,
)
from monitor.session import Session

STEPS = 100_000
LAYERS = 100
SAMPLES = 400
"""Rows of each table: a hundred thousand steps sampled every 250."""
REPEATS = 31
GROWTH = 100
"""Steps from one look to the next."""
ACTIVATIONS = ("zero_share", "saturated_share", "mean", "std", "zero_units")


def run() -> list[tuple[str, float, float]]:
    """Label, median seconds, and of numpy's min and max over the losses."""
    label = f"{len(RULES)} rules, {{}}, {LAYERS} layers, {STEPS:,} steps"
    copies, looks, reference = _looks(long_session())
    _, looks_at_stuck, _ = _looks(long_session(stuck=True))
    return [
        (label.format("healthy"), looks, reference),
        (label.format("stuck"), looks_at_stuck, reference),
        ("the still copy of the session that they look at", copies, reference),
    ]


def long_session(*, stuck: bool = False) -> Session:
    """A deep classifier, with all tables that rules read."""
    names = [f"dense_{number}" for number in range(LAYERS)]
    layers = (*(dense(name, 64) for name in names[:-1]), dense(names[-1], 10, "softmax"))
    variables = [f"net/{name}/{part}" for name in names for part in ("kernel", "bias")]
    steps = range(0, STEPS, STEPS // SAMPLES)
    rng = np.random.default_rng(0)

    def table(
        labels: list[str], scale: float, columns: tuple[str, ...] = (), of: str = "variables"
    ) -> Sampled:
        shape = (SAMPLES, len(columns)) if columns else (SAMPLES,)
        return Sampled(steps, {label: scale * rng.lognormal(size=shape) for label in labels}, columns, of)  # type: ignore[arg-type]

    loss = flat(2.3, STEPS, 0.1) if stuck else falling(STEPS, rate=30_000, noise=0.1) + 0.2
    classes = [str(number) for number in range(10)]
    return session_of(
        {
            "loss": loss,
            "accuracy": np.clip(flat(0.1, STEPS, 0.05) if stuck else 1 - loss / 2.4, 0, 1),
            "grad_norm": np.exp(rng.normal(size=STEPS)),
            "learning_rate": np.full(STEPS, 1e-3),
        },
        layers=layers,
        output=output_of(names[-1], 10, "softmax", "sparse_categorical_crossentropy"),
        task="classification",
        data=trained_on(classes=[100] * 10),
        tables={
            "update_ratio": table(variables, 1e-3),
            "update_norm": table(variables, 1e-3),
            "weight_norm": table(variables, 5.0),
            "gradient_norm": table(variables, 0.1),
            "gradient_mean_abs": table(variables, 1e-3),
            "gradient_max_abs": table(variables, 1e-2),
            "gradient_zero_share": table(variables, 0.05),
            "gradient_non_finite": table(variables, 0.0),
            "gradient_pair": table(["cosine", "signal", "noise"], 0.1, (), "values"),
            "dead_units": table(names, 0.05, (), "layers"),
            "activations": table(names, 0.1, ACTIVATIONS, "layers"),
            "target_counts": table(classes, 3.0, (), "classes"),
            "predicted_counts": table(classes, 3.0, (), "classes"),
            "confusion": table(classes, 0.3, tuple(classes), "classes"),
            "input": table(["mean", "std", "min", "max", "non_finite"], 0.1, (), "values"),
            "fingerprint": table(["fingerprint_0", "fingerprint_1", "same_as_first"], 1.0, (), "values"),
            "prediction_spread": table(["between", "mean_abs", "low", "high", "row_sum"], 0.1, (), "values"),
        },
        epochs=[{"loss": float(part.mean()), "val_loss": float(part.mean())} for part in np.split(loss, 100)],
    )  # fmt: skip


def _looks(session: Session) -> tuple[float, float, float]:
    """Median seconds of the copies, of the looks at them, and of numpy's min and max over the losses."""
    memory = Memory()
    taken = []
    for _ in range(REPEATS + 1):
        _grow(session)
        began = time.perf_counter()
        still = session.still()
        copied = time.perf_counter()
        examine(still, memory=memory)
        looked = time.perf_counter()
        losses = still.series["loss"].values
        losses.min(), losses.max()
        taken.append((copied - began, looked - copied, time.perf_counter() - looked))
    # Only the first look finds nothing that earlier ones remember.
    copies, looks, references = (statistics.median(seconds) for seconds in zip(*taken[1:], strict=True))
    return copies, looks, references


def _grow(session: Session) -> None:
    """By more of what came last."""
    first = len(session.times)
    times = session.times.values[-1] + SECONDS_PER_STEP * np.arange(1.0, GROWTH + 1)
    newest = {name: column.values[-GROWTH:].copy() for name, column in session.series.items()}
    session.apply(steps_event(first, times, newest, time=float(times[-1])))
    rows = {name: table.matrix[-1:].copy() for name, table in session.statistics.items()}
    session.apply(samples_event(np.array([first]), rows, time=float(times[-1])))
