"""How long one redraw of a long curve takes, beside the least that looking at all its values would take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from monitor.charts import Curve, draw_curves
from monitor.series import Column

STEPS = 1_000_000
REPEATS = 31


def run() -> list[tuple[str, float, float]]:
    """Label, median seconds of one redraw at 120x40, and of numpy's min and max over the same values."""
    values = _noisy_loss()
    column = Column()
    column.extend(0, values)
    reference = _median(lambda: (values.min(), values.max()))
    rows = []
    for label, start, smoothing, log in (
        ("all of 1M steps", 0, 0, False),
        ("all of 1M steps, smoothed", 0, 5000, False),
        ("all of 1M steps, smoothed, log", 0, 5000, True),
        ("last 200k of 1M steps, smoothed", 800_000, 1000, False),
    ):
        seconds = _median(lambda s=start, w=smoothing, g=log: _redraw(column, s, w, g))  # type: ignore[misc]
        rows.append((label, seconds, reference))
    rows.append(("1M steps into a column, first redraw", _median(lambda: _load(values), 5), reference))
    rows.append(("10 more steps and a redraw, smoothed", _median(lambda: _grow(column, values)), reference))
    return rows


def _noisy_loss() -> np.ndarray:
    steps = np.arange(STEPS)
    noise = np.random.default_rng(0).normal(0, 0.12, STEPS)
    return (2.3 * np.exp(-steps / 200_000) + 0.15 + noise).astype(np.float32)


def _redraw(column: Column, start: int, smoothing: int, log: bool) -> None:
    curve = Curve("loss", "cyan", column)
    draw_curves([curve], width=120, height=40, start=start, stop=len(column), smoothing=smoothing, log=log)


def _load(values: np.ndarray) -> None:
    column = Column()
    column.extend(0, values)
    _redraw(column, 0, 5000, False)


def _grow(column: Column, values: np.ndarray) -> None:
    column.extend(len(column), values[:10])
    _redraw(column, 0, 5000, False)


def _median(action: Callable[[], object], repeats: int = REPEATS) -> float:
    action()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    for label, seconds, reference in run():
        print(f"{label:40} {seconds * 1e3:7.2f} ms   numpy min and max {reference * 1e3:6.3f} ms")
