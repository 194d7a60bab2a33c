"""Opening a recording of a million steps, against reading the same columns with `np.load`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from client_callback.wire import protocol
from client_callback.wire.journal import JournalWriter
from client_callback.wire.recording import JournalReader

STEPS = 1_000_000
NAMES = ("loss", "accuracy", "precision", "learning_rate", "grad_norm")
_DRAIN = 100


def run() -> list[tuple[str, float, float]]:
    """(label, seconds, seconds of the reference) of each measurement."""
    with tempfile.TemporaryDirectory() as folder:
        path, reference = Path(folder) / "run.unstuck", Path(folder) / "columns.npz"
        columns = random_columns()
        writing = _seconds(lambda: record_columns(path, columns))
        saving = _seconds(lambda: np.savez(reference, **columns))
        loading = min(_seconds(lambda: _load(reference)) for _ in range(3))
        opening = min(_seconds(lambda: _open(path)) for _ in range(3))
    return [
        ("record 1 M steps x 5 in drains of 100, against np.savez", writing, saving),
        ("open them and build columns, against np.load", opening, loading),
    ]


def random_columns() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    columns = {name: chance.random(STEPS, np.float32) for name in NAMES}
    return {"time": np.linspace(0.0, 5_000.0, STEPS), **columns}


def record_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    run = protocol.RunDescription(run_id="bench", name="bench", started_at=0.0)
    writer = JournalWriter(path, run)
    writer.append([protocol.RunStarted(run=run)])
    for first in range(0, STEPS, _DRAIN):
        part = {name: values[first : first + _DRAIN] for name, values in columns.items()}
        times = part.pop("time")
        writer.append([protocol.steps_event(first, times, part, time=float(times[-1]))])
    writer.append([protocol.RunEnded(outcome="finished", step=STEPS)])
    writer.close()


def _open(path: Path) -> dict[str, np.ndarray]:
    with JournalReader(path) as reader:
        events = [event for _, event in reader.events() if isinstance(event, protocol.Steps)]
    parts = [protocol.step_columns(event) for event in events]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in NAMES}
    columns["time"] = np.concatenate([protocol.step_times(event) for event in events])
    assert all(len(values) == STEPS for values in columns.values())
    return columns


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    for label, seconds, reference in run():
        print(f"{label}: {seconds:.3f} s, reference {reference:.3f} s, ratio {seconds / reference:.1f}")
