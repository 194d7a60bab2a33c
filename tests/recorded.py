"""What a recording holds, as arrays, for tests to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np

from client_callback.wire import protocol
from client_callback.wire.recording import JournalReader

_E = TypeVar("_E", bound=protocol.Event)


def events(path: Path | None) -> list[protocol.AnyEvent]:
    assert path is not None, "the run was not recorded"
    reader = JournalReader(path)
    try:
        return [protocol.decode_event(frame.payload) for frame in reader.frames()]
    finally:
        reader.close()


def of_kind(path: Path | None, kind: type[_E]) -> list[_E]:
    return [event for event in events(path) if isinstance(event, kind)]


def series(path: Path | None) -> dict[str, np.ndarray]:
    """Series name → values by step, without timings. Checks that no step is missing or twice."""
    timings = {one.name for one in all_series(path) if one.kind == "timing"}
    return {name: values for name, values in columns(path).items() if name not in timings}


def all_series(path: Path | None) -> tuple[protocol.Series, ...]:
    layouts = of_kind(path, protocol.Instrumented)
    return layouts[-1].series if layouts else ()


def columns(path: Path | None) -> dict[str, np.ndarray]:
    """Series name → values by step, timings among them."""
    parts = of_kind(path, protocol.Steps)
    at = 0
    for part in parts:
        assert part.first == at, f"steps jump from {at} to {part.first}"
        at += part.count
    found: dict[str, np.ndarray] = {}
    for part in parts:
        for name, values in protocol.step_columns(part).items():
            found.setdefault(name, np.full(at, np.nan, np.float32))[part.first : part.step] = values
    return found


def samples(path: Path | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(steps, statistic → rows)."""
    parts = of_kind(path, protocol.Samples)
    steps = np.concatenate([protocol.sample_steps(part) for part in parts])
    names = parts[0].columns
    return steps, {
        name: np.concatenate([protocol.sample_columns(part)[name] for part in parts]) for name in names
    }


def layout(path: Path | None) -> protocol.Instrumented:
    return of_kind(path, protocol.Instrumented)[-1]
