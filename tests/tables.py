"""A made-up run whose sampled statistics have several numbers per label, as events."""

from __future__ import annotations

import numpy as np

from client_callback.wire.protocol import AnyEvent, Instrumented, Statistic, samples_event
from tests.story import story

LAYERS = ("body/conv", "body/dense", "head")
BINS = tuple(str(power) for power in range(-30, 4))
ACTIVATIONS = ("zeros", "saturated", "mean", "std", "dead")
MOMENTS = ("mean", "std", "min", "max", "non_finite")
CLASSES = tuple(str(digit) for digit in range(10))
FEATURES = ("age", "height", "weight")

STATISTICS = (
    Statistic(
        name="update_ratio",
        of="variables",
        labels=tuple(f"{layer}/{part}" for layer in LAYERS for part in ("kernel", "bias")),
    ),
    Statistic(name="dead_units", of="layers", labels=LAYERS),
    Statistic(name="gradient_histogram", of="layers", labels=LAYERS, columns=BINS),
    Statistic(name="activations", of="layers", labels=LAYERS, columns=ACTIVATIONS),
    Statistic(name="gradient_pair", of="values", labels=("cosine", "signal", "noise", "noise_scale")),
    Statistic(name="confusion", of="classes", labels=CLASSES, columns=CLASSES),
    Statistic(name="inputs", of="features", labels=FEATURES, columns=MOMENTS),
    Statistic(name="fingerprint", of="values", labels=("sum",)),
)


def row(step: int) -> dict[str, np.ndarray]:
    """Each statistic at that step, float32 `[width]`."""
    bins = np.arange(len(BINS))
    confusion = np.diag(np.arange(40.0, 50.0))
    confusion[7, 9], confusion[3, 5] = 12.0, 4.0
    tables = {
        "update_ratio": np.array([1e-3, 0.9, 2e-3, 0.8, 3e-3, 0.7]),
        "dead_units": np.array([min(1.0, step / 500), 0.25, 0.0]),
        "gradient_histogram": np.stack([np.exp(-((bins - 8 - 6 * i) ** 2) / 20) for i in range(3)]) * 1e4,
        "activations": np.array([[0.5, 0.1, 0.2, 1.0, 0.3], [0.4, 0.0, 0.1, 1.1, 0.0], [0, 0, -3, 2, 0]]),
        "gradient_pair": np.array([0.1 + step / 5_000, 1e-3, 2e-2, 400.0 - step / 10]),
        "confusion": confusion,
        "inputs": np.array([[40, 12, 18, 90, 0], [170, 0, 170, 170, 0], [70, 9, 41, 120, 3]]),
        "fingerprint": np.array([float(step)]),
    }
    return {name: table.astype(np.float32).ravel() for name, table in tables.items()}


def story_with_tables() -> list[AnyEvent]:
    """The usual story with these statistics sampled as well."""
    told = story()
    announced = next(event for event in told if isinstance(event, Instrumented))
    layout = Instrumented(
        series=announced.series,
        statistics=announced.statistics + STATISTICS,
        missing=announced.missing,
        task="classification",
        time=told[0].time + 1.0,
    )
    steps = np.arange(1, 2_400, 50)
    rows = [row(int(step)) for step in steps]
    columns = {name: np.stack([values[name] for values in rows]) for name in rows[0]}
    return [*told, layout, samples_event(steps, columns, time=told[-1].time)]
