"""Opening a recording of a million steps, against reading the same columns with `np.load`.

Once in drains of even length, and once in short epochs, taken into a session as the terminal does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from client_callback.wire import protocol
from client_callback.wire.journal import JournalWriter
from client_callback.wire.recording import JournalReader
from monitor.charts import Curve, draw_curves
from monitor.session import Session

STEPS = 1_000_000
NAMES = ("loss", "accuracy", "precision", "learning_rate", "grad_norm")
_DRAIN = 100
_EPOCH = 75


def run() -> list[tuple[str, float, float]]:
    """(label, seconds, seconds of the reference) of each measurement."""
    with tempfile.TemporaryDirectory() as folder:
        path, reference = Path(folder) / "run.unstuck", Path(folder) / "columns.npz"
        columns = random_columns()
        writing = _seconds(lambda: record_columns(path, columns))
        saving = _seconds(lambda: np.savez(reference, **columns))
        loading = min(_seconds(lambda: _load(reference)) for _ in range(3))
        opening = min(_seconds(lambda: _open(path)) for _ in range(3))
        epochs = Path(folder) / "epochs.unstuck"
        record_epochs(epochs, columns)
        applying = min(_seconds(lambda: _apply(epochs)) for _ in range(3))
        session = _apply(epochs)
        drawing = min(_seconds(lambda: _draw(session)) for _ in range(9))
        plain = min(_seconds(lambda: _draw(session, epochs=False)) for _ in range(9))
    return [
        ("record 1 M steps x 5 in drains of 100, against np.savez", writing, saving),
        ("open them and build columns, against np.load", opening, loading),
        (f"the same in epochs of {_EPOCH}, into a session, against np.load", applying, loading),
        ("one chart of all its epochs, against the chart without them", drawing, plain),
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


def record_epochs(path: Path, columns: dict[str, np.ndarray]) -> None:
    """As a training of short epochs does: each with its beginning, its steps and its end."""
    run = protocol.RunDescription(run_id="bench", name="bench", started_at=0.0, steps_per_epoch=_EPOCH)
    writer = JournalWriter(path, run)
    writer.append([protocol.RunStarted(run=run)])
    for epoch, first in enumerate(range(0, STEPS, _EPOCH)):
        part = {name: values[first : first + _EPOCH] for name, values in columns.items()}
        times = part.pop("time")
        stop, time_ = first + len(times), float(times[-1])
        writer.append(
            [
                protocol.EpochBegan(epoch=epoch, step=first, time=float(times[0])),
                protocol.steps_event(first, times, part, time=time_),
                protocol.EpochEnded(epoch=epoch, step=stop, time=time_, logs={"loss": 0.5, "val_loss": 0.6}),
            ]
        )
    writer.append([protocol.RunEnded(outcome="finished", step=STEPS)])
    writer.close()


def _apply(path: Path) -> Session:
    session = Session()
    with JournalReader(path) as reader:
        for _, event in reader.events():
            session.apply(event)
    assert len(session.times) == STEPS
    assert len(session.epochs) == -(-STEPS // _EPOCH)
    return session


def _draw(session: Session, *, epochs: bool = True) -> None:
    firsts = [first for _, first in session.epochs if first > 0] if epochs else []
    curve = Curve("loss", "cyan", session.series["loss"])
    draw_curves([curve], width=120, height=40, start=0, stop=STEPS, epochs=firsts)


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
