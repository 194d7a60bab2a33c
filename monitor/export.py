"""A recording as tables that other programs read: CSV, or JSON with one object per line.

`unstuck export` and `unstuck info` call here. Frames are streamed from the file, never held as a whole; the
file is read twice, because the columns are known only at its end. Nothing is computed that was not recorded.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Literal, TypeVar

import msgspec
import numpy as np

from client_callback.wire import protocol
from client_callback.wire.recording import JournalReader
from monitor.trial_results import range_test_of

Format = Literal["csv", "jsonl"]
What = Literal["steps", "epochs", "layers", "statistics", "resources", "events"]
Row = Sequence[Any]
Table = tuple[list[str], Iterator[Row]]

_E = TypeVar("_E", bound=protocol.Event)

_STEP_COLUMNS = ("loss", "learning_rate", "grad_norm")
_json = msgspec.json.Encoder()


def write_table(reader: JournalReader, what: What, to: Format, file: IO[str]) -> int:
    """Writes one table of the recording to `file`; returns how many rows it has, the header not counted.

    Numbers are written in full: float32 values with as many digits as tell them apart. NaN and infinities
    are `nan`, `inf`, `-inf` in CSV, and null in JSON, which has no such numbers.
    """
    columns, rows = TABLES[what](reader)
    if to == "jsonl":
        return _write_lines(file, columns, rows)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count


def _write_lines(file: IO[str], columns: list[str], rows: Iterator[Row]) -> int:
    count = 0
    for row in rows:
        values = map(_plain, row)
        file.write(_json.encode(dict(zip(columns, values, strict=True))).decode() + "\n")
        count += 1
    return count


def _plain(value: object) -> object:
    """What JSON can hold. A float32 keeps its own digits: 0.1, not 0.10000000149011612."""
    if isinstance(value, np.floating):
        return float(str(value))
    return dict(value) if isinstance(value, _Details) else value


def steps_table(reader: JournalReader) -> Table:
    """One row per step: `step,epoch,time,loss,learning_rate,grad_norm` and every other series."""
    metrics: dict[str, None] = {}
    epochs: list[tuple[int, int]] = []
    for _, event in reader.events():
        if isinstance(event, protocol.Steps):
            metrics.update(dict.fromkeys(event.columns))
        elif isinstance(event, protocol.EpochBegan):
            epochs.append((event.step, event.epoch))
    series = [*_STEP_COLUMNS, *(name for name in metrics if name not in _STEP_COLUMNS)]
    return ["step", "epoch", "time", *series], _step_rows(reader, series, epochs)


def _step_rows(reader: JournalReader, series: list[str], epochs: list[tuple[int, int]]) -> Iterator[Row]:
    first_steps = [step for step, _ in epochs]
    for event in _of(reader, protocol.Steps):
        recorded = protocol.step_columns(event)
        columns = [list(recorded[n]) if n in recorded else [None] * event.count for n in series]
        for at, (time, *values) in enumerate(zip(protocol.step_times(event), *columns, strict=True)):
            step = event.first + at
            began = bisect_right(first_steps, step) - 1
            epoch = epochs[began][1] if began >= 0 else None
            yield [step, epoch, float(time), *values]


def epochs_table(reader: JournalReader) -> Table:
    """One row per ended epoch: `epoch,step,time` and everything Keras reported; `step`: completed by then."""
    names: dict[str, None] = {}
    for event in _of(reader, protocol.EpochEnded):
        names.update(dict.fromkeys(event.logs))

    def rows() -> Iterator[Row]:
        for event in _of(reader, protocol.EpochEnded):
            yield [event.epoch, event.step, event.time, *(event.logs.get(name) for name in names)]

    return ["epoch", "step", "time", *names], rows()


def layers_table(reader: JournalReader) -> Table:
    """One row per sampled step and variable: `step,variable` and every statistic of variables."""
    names: dict[str, None] = {}
    for event in _of(reader, protocol.Instrumented):
        names.update(dict.fromkeys(s.name for s in event.statistics if _of_variables(s)))
    return ["step", "variable", *names], _layer_rows(reader, list(names))


def _layer_rows(reader: JournalReader, names: list[str]) -> Iterator[Row]:
    labels: dict[str, tuple[str, ...]] = {}
    for _, event in reader.events():
        if isinstance(event, protocol.Instrumented):
            labels = {s.name: s.labels for s in event.statistics if _of_variables(s)}
        elif isinstance(event, protocol.Samples):
            columns = {n: v for n, v in protocol.sample_columns(event).items() if n in labels}
            variables = dict.fromkeys(label for name in columns for label in labels[name])
            for at, step in enumerate(protocol.sample_steps(event)):
                cells = {name: dict(zip(labels[name], columns[name][at], strict=False)) for name in columns}
                for variable in variables:
                    yield [int(step), variable, *(cells.get(name, {}).get(variable) for name in names)]


def _of_variables(statistic: protocol.Statistic) -> bool:
    """Whether it has one number per variable; `statistics_table` has them all."""
    return statistic.of == "variables" and not statistic.columns


def statistics_table(reader: JournalReader) -> Table:
    """One row per number of every sampled statistic: `step,statistic,label,column,value`.

    `column` is empty where a label has one number. Of a statistic whose names are not recorded, or that has more
    numbers than names, those without one are numbered from 0.
    """

    def rows() -> Iterator[Row]:
        layouts: dict[str, protocol.Statistic] = {}
        for _, event in reader.events():
            if isinstance(event, protocol.Instrumented):
                layouts.update({statistic.name: statistic for statistic in event.statistics})
            elif isinstance(event, protocol.Samples):
                columns = protocol.sample_columns(event)
                names = {name: _cell_names(layouts.get(name), m.shape[1]) for name, m in columns.items()}
                for at, step in enumerate(protocol.sample_steps(event).tolist()):
                    for name, matrix in columns.items():
                        for (label, column), value in zip(names[name], matrix[at], strict=True):
                            yield [step, name, label, column, value]

    return ["step", "statistic", "label", "column", "value"], rows()


def _cell_names(layout: protocol.Statistic | None, width: int) -> list[tuple[str, str]]:
    """(label, column) of each number in a row."""
    if layout is None or layout.width != width:
        return [(str(i), "") for i in range(width)]
    return [(label, column) for label in layout.labels for column in layout.columns or ("",)]


def resources_table(reader: JournalReader) -> Table:
    """One row per reading of the machine: `time,step` and every number read; `step`: completed by then."""
    names: dict[str, None] = {}
    for event in _of(reader, protocol.Resources):
        names.update(dict.fromkeys(event.columns))

    def rows() -> Iterator[Row]:
        for event in _of(reader, protocol.Resources):
            read = protocol.resource_columns(event)
            columns = [list(read[n]) if n in read else [None] * event.count for n in names]
            times, steps = protocol.resource_times(event).tolist(), protocol.resource_steps(event).tolist()
            yield from zip(times, steps, *columns, strict=True)

    return ["time", "step", *names], rows()


def events_table(reader: JournalReader) -> Table:
    """One row per event that holds no columns of numbers: `seq,time,step,kind` and `details` as JSON."""

    def rows() -> Iterator[Row]:
        for frame, event in reader.events():
            if not isinstance(event, protocol.Columnar):
                details = _details(event)
                kind = details.pop("kind")
                del details["step"], details["time"]
                yield [frame.seq, event.time, event.step, kind, _Details(details)]

    return ["seq", "time", "step", "kind", "details"], rows()


def _details(event: protocol.AnyEvent) -> dict[str, Any]:
    """Its fields as JSON can hold them; columns of a trial become lists, null where they are not finite."""
    details: dict[str, Any] = msgspec.to_builtins(event)
    if isinstance(event, protocol.TrialEnded):
        details["rates"] = _numbers(event.rates)
        for result, packed in zip(details["results"], event.results, strict=True):
            result["losses"] = _numbers(packed.losses)
    return details


def _numbers(column: bytes) -> list[float | None]:
    return [float(str(x)) if np.isfinite(x) else None for x in np.frombuffer(column, "<f4")]


class _Details(dict[str, Any]):
    """A part of an event: an object in JSON lines, its JSON text in a CSV's cell."""

    def __str__(self) -> str:
        return _json.encode(dict(self)).decode()


TABLES: dict[What, Callable[[JournalReader], Table]] = {
    "steps": steps_table,
    "epochs": epochs_table,
    "layers": layers_table,
    "statistics": statistics_table,
    "resources": resources_table,
    "events": events_table,
}


def summary(reader: JournalReader) -> dict[str, Any]:
    """What a recording holds, as `unstuck info` shows it."""
    run = reader.run
    steps, epochs, frames, last_time = 0, 0, 0, run.started_at
    replies: list[dict[str, Any]] = []
    ended: protocol.RunEnded | None = None
    series: dict[str, None] = {}
    optimizer = run.optimizer
    overhead: protocol.Overhead | None = None
    trials: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    latest: dict[type[protocol.AnyEvent], Any] = {}
    for _, event in reader.events():
        frames += 1
        last_time = max(last_time, event.time)
        if isinstance(event, protocol.Steps):
            steps = max(steps, event.first + event.count)
            series.update(dict.fromkeys(event.columns))
        elif isinstance(event, protocol.EpochEnded):
            epochs += 1
        elif isinstance(event, protocol.Reply):
            replies.append({"step": event.step, "command": event.text, "status": event.status})
        elif isinstance(event, protocol.OptimizerChanged):
            optimizer = event.optimizer
        elif isinstance(event, protocol.TrialEnded):
            trials.append(_trial(event))
        elif isinstance(event, protocol.Evaluated):
            evaluations.append({"step": event.step, **event.logs})
        elif isinstance(event, protocol.TimersChanged | protocol.SnapshotsChanged):
            latest[type(event)] = event
        elif isinstance(event, protocol.Overhead):
            overhead = event
        elif isinstance(event, protocol.RunEnded):
            ended = event
    return {
        "path": str(reader.path),
        "run_id": run.run_id,
        "name": run.name,
        "model": run.model,
        "parameters": run.parameters,
        "backend": run.backend,
        "host": run.host,
        "user": run.user,
        "started_at": run.started_at,
        "duration_s": round(last_time - run.started_at, 3),
        "outcome": ended.outcome if ended else None,
        "reason": ended.reason if ended else "no end recorded: still running, or its process was killed",
        "steps": steps,
        "epochs": epochs,
        "series": list(series),
        "optimizer": _optimizer(optimizer) if optimizer else None,
        "overhead": overhead.share if overhead else None,
        "commands": replies,
        "trials": trials,
        "evaluations": evaluations,
        "timers": _told(latest.get(protocol.TimersChanged), "timers"),
        "snapshots": _told(latest.get(protocol.SnapshotsChanged), "snapshots"),
        "frames": frames,
        "bytes": reader.path.stat().st_size,
        "missing": reader.missing,
    }


def _optimizer(optimizer: protocol.Optimizer) -> dict[str, Any]:
    """As events tell it; that its rate is not held goes without saying."""
    told: dict[str, Any] = msgspec.to_builtins(optimizer)
    return {name: value for name, value in told.items() if name != "held" or value}


def _trial(event: protocol.TrialEnded) -> dict[str, Any]:
    """The best candidate first; of a range test, the rate it suggests."""
    about: dict[str, Any] = {"step": event.step, "command": event.text, "start": event.start}
    test = range_test_of(event)
    if test is not None:
        return {**about, "suggested": test.suggested, "diverges_at": test.diverges_at}
    ranked = [{"candidate": r.text, "loss": r.score, "low": r.low, "high": r.high} for r in event.results]
    return {**about, "results": ranked, "tells": event.tells, "adopted": event.adopted}


def _told(event: protocol.AnyEvent | None, field: str) -> list[Any]:
    """One of the lists that the newest event of its kind holds."""
    return list(msgspec.to_builtins(event)[field]) if event else []


def _of(reader: JournalReader, kind: type[_E]) -> Iterator[_E]:
    return (event for _, event in reader.events() if isinstance(event, kind))
