"""Sessions made of plain numbers, for the examples that rules carry.

The rules' HEALTHY and AILING examples are built with these and become tests. No rule here, and no randomness
that is not seeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from client_callback.wire.protocol import (
    DataDescribed,
    EpochBegan,
    EpochEnded,
    Float64,
    InputData,
    Instrumented,
    Layer,
    Optimizer,
    Output,
    RunDescription,
    RunEnded,
    RunStarted,
    Scalar,
    Series,
    SignalProbe,
    Statistic,
    Summary,
    TargetData,
    TrialEnded,
    TrialResult,
    samples_event,
    steps_event,
)
from monitor.session import Session, Task

SECONDS_PER_STEP = 0.01


class Sampled(NamedTuple):
    """The rows of one statistic."""

    steps: Sequence[int]
    rows: Mapping[str, npt.ArrayLike]
    """Label → `[steps]`, or `[steps, columns]`; a single number stands for all of them."""
    columns: tuple[str, ...] = ()
    of: Literal["variables", "layers", "features", "classes", "histogram", "values"] = "variables"


def with_trial(
    session: Session, ends: Mapping[str, float], *, start: int = 300, tells: bool = True
) -> Session:
    """A session in which a trial from step `start` brought each candidate's loss from 1 to so much, in 40 steps."""
    results = [
        TrialResult(
            text=text,
            losses=np.append(np.linspace(1.0, end, 30), np.full(10, end)).astype("<f4").tobytes(),
            score=end,
            low=end - 0.02,
            high=end + 0.02,
        )
        for text, end in sorted(ends.items(), key=lambda entry: entry[1])
    ]
    session.apply(
        TrialEnded(id="1", text="trial", start=start, step=start, results=tuple(results), tells=tells)
    )
    return session


def session_of(
    series: Mapping[str, Float64],
    *,
    optimizer: str = "adam",
    settings: Mapping[str, Scalar] | None = None,
    running: tuple[str, ...] = (),
    timing: tuple[str, ...] = (),
    tables: Mapping[str, Sampled] | None = None,
    layers: tuple[Layer, ...] = (),
    output: Output | None = None,
    task: Task = "unknown",
    data: DataDescribed | None = None,
    backend: str = "tensorflow",
    epochs: Sequence[Mapping[str, float]] = (),
    planned_epochs: int | None = None,
    ended: bool = False,
) -> Session:
    """A session in which each series has the given values, one per step from step 0.

    Args:
        series: Name → values, all of one length.
        optimizer: Name of the optimizer at work.
        settings: Its arguments.
        running: The series that are means since their epoch began.
        timing: The series that tell how the steps ran.
        tables: Statistic → its sampled rows; all of them are taken at the same steps.
        layers: Of the model, in call order.
        output: What it computes.
        task: What it is trained for.
        data: What it is trained on.
        backend: Of Keras.
        epochs: What Keras reported at the end of each epoch; the steps are divided evenly among them.
        planned_epochs: How many there were to be; by default those that ended.
        ended: Whether the run came to its end.
    """
    session = Session()
    named = Optimizer(name=optimizer, class_name=optimizer.capitalize(), settings=dict(settings or {}))
    run = RunDescription(
        run_id="example",
        name="example",
        started_at=0.0,
        backend=backend,
        layers=layers,
        outputs=() if output is None else (output,),
        optimizer=named,
        epochs=planned_epochs if planned_epochs is not None else len(epochs) or None,
    )
    session.apply(RunStarted(run=run))
    tables = tables or {}
    session.apply(
        Instrumented(
            series=tuple(
                Series(name=n, kind="running" if n in running else "timing" if n in timing else "batch")
                for n in series
            ),
            statistics=tuple(
                Statistic(name=name, of=table.of, labels=tuple(table.rows), columns=table.columns)
                for name, table in tables.items()
            ),
            task=task,
        )
    )
    if data is not None:
        session.apply(data)
    count = len(next(iter(series.values()), ()))
    per_epoch = count // len(epochs) if epochs else count
    for epoch, logs in enumerate(epochs):
        session.apply(EpochBegan(step=epoch * per_epoch, epoch=epoch))
        session.apply(EpochEnded(step=(epoch + 1) * per_epoch, epoch=epoch, logs=dict(logs)))
    time = count * SECONDS_PER_STEP
    columns = {name: values.astype(np.float32) for name, values in series.items()}
    times = np.arange(1, count + 1, dtype=np.float64) * SECONDS_PER_STEP
    if count:
        session.apply(steps_event(0, times, columns, time=time))
    for name, table in tables.items():
        session.apply(samples_event(np.array(table.steps, np.int64), {name: _matrix(table)}, time=time))
    if ended:
        session.apply(RunEnded(step=count, outcome="finished"))
    return session


def _matrix(table: Sampled) -> npt.NDArray[np.float32]:
    """float32 `[steps, labels · columns]`."""
    rows, width = len(table.steps), max(1, len(table.columns))
    parts = []
    for values in table.rows.values():
        given = np.asarray(values, np.float32)
        by_row = given[:, None] if given.ndim == 1 and width == 1 else given
        parts.append(np.broadcast_to(by_row, (rows, width)))
    return np.concatenate(parts, axis=1)


def noisy(values: Float64, noise: float, seed: int = 0) -> Float64:
    """The values with Gaussian noise of that standard deviation."""
    return np.asarray(values + np.random.default_rng(seed).normal(0.0, noise, len(values)))


def with_value(values: Float64, step: int, value: float) -> Float64:
    """The values with another one from that step on."""
    changed = values.copy()
    changed[step:] = value
    return changed


def falling(steps: int = 400, start: float = 2.3, rate: float = 150.0, noise: float = 0.02) -> Float64:
    """A loss that falls exponentially."""
    return noisy(start * np.exp(-np.arange(steps) / rate), noise)


def flat(level: float, steps: int = 400, noise: float = 0.02) -> Float64:
    """A loss that stays."""
    return noisy(np.full(steps, level), noise)


def dense(name: str, units: int, activation: str = "relu", *, inputs: int = 64, **changed: Any) -> Layer:
    """A dense layer as Keras makes it: Glorot's uniform kernel."""
    limit = (6 / (inputs + units)) ** 0.5
    layer = Layer(
        name=name,
        class_name="Dense",
        parameters=(inputs + 1) * units,
        activation=activation,
        units=units,
        settings={"use_bias": True, "kernel_initializer": "GlorotUniform"},
        kernel_shape=(inputs, units),
        kernel=Summary(mean=0.0, std=limit / 3**0.5, low=-limit, high=limit),
    )
    return msgspec.structs.replace(layer, **changed)


def output_of(layer: str, units: int, activation: str, loss: str, **changed: Any) -> Output:
    """The output that a layer computes, with the loss it is trained with."""
    output = Output(name=layer, layer=layer, activation=activation, units=units, loss=loss)
    return msgspec.structs.replace(output, **changed)


def trained_on(
    *,
    inputs: Mapping[str, Any] | None = None,
    classes: Sequence[int] = (),
    targets: Mapping[str, Any] | None = None,
    signal: SignalProbe | None = None,
    **changed: Any,
) -> DataDescribed:
    """Standardised inputs of 64 features, and labels of so many examples each (or targets of mean 0 and spread 1).

    Args:
        inputs: fields of `InputData` that are others.
        classes: examples of class 0, 1, …; empty: the targets are numbers.
        targets: fields of `TargetData` that are others.
        signal: what a plain model reaches.
        changed: fields of `DataDescribed` that are others.
    """
    plain = InputData(
        dtype="float32",
        shape=(64,),
        values=Summary(mean=0.0, std=1.0, low=-4.0, high=4.0),
        features=64,
        std_low=0.9,
        std_high=1.1,
        offset=0.1,
        farthest=2.0,
    )
    if classes:
        spread = np.repeat(np.arange(len(classes)), classes)
        shares = np.array(classes) / sum(classes)
        labels = TargetData(
            dtype="int64",
            shape=(),
            values=Summary(
                mean=float(spread.mean()), std=float(spread.std()), low=0.0, high=len(classes) - 1.0
            ),
            integral=True,
            classes={str(number): count for number, count in enumerate(classes)},
            in_order=float((shares**2).sum()),
        )
    else:
        labels = TargetData(dtype="float32", shape=(), values=Summary(mean=0.0, std=1.0, low=-4.0, high=4.0))
    data = DataDescribed(
        source="arrays",
        examples=sum(classes) or 1_000,
        batch_size=32,
        shuffled=True,
        inputs=(msgspec.structs.replace(plain, **(inputs or {})),),
        targets=(msgspec.structs.replace(labels, **(targets or {})),),
        signal=signal,
    )
    return msgspec.structs.replace(data, **changed)


def labelled(values: npt.ArrayLike, **changed: Any) -> dict[str, Any]:
    """Fields of `TargetData` for these targets, [N] or [N, …], as the training describes them.

    Whole numbers are classes where there are 50 examples of each.
    """
    array = np.asarray(values, np.float64)
    finite = array[np.isfinite(array)]
    rows = array.reshape(len(array), -1)
    integral = bool((finite == np.rint(finite)).all())
    one_hot = rows.shape[1] > 1 and bool(np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all())
    numbers = rows.argmax(axis=1) if one_hot else rows[:, 0]
    found, counts = np.unique(numbers, return_counts=True)
    are_classes = one_hot or (rows.shape[1] == 1 and integral and 50 * len(found) <= len(rows))
    fields = {
        "dtype": "float32",
        "shape": array.shape[1:],
        "values": Summary(
            mean=float(finite.mean()),
            std=float(finite.std()),
            low=float(finite.min()),
            high=float(finite.max()),
            non_finite=1 - finite.size / array.size,
        ),
        "integral": integral,
        "one_hot": one_hot,
        "classes": (
            {str(int(number)): int(count) for number, count in zip(found, counts, strict=True)}
            if are_classes
            else {}
        ),
        "in_order": float((numbers[1:] == numbers[:-1]).mean()) if are_classes else None,
    }
    return fields | changed


def trained(
    units: int,
    activation: str,
    loss: str,
    losses: Float64 | None = None,
    *,
    accuracy: float | Float64 | None = None,
    hidden: str = "relu",
    **more: Any,
) -> Session:
    """A network of two hidden layers that was trained for ten epochs; by default its loss stays.

    Args:
        units: of its output.
        activation: of its output.
        loss: as `Output.loss`.
        losses: one per step.
        accuracy: of each step, or of all, about. `None`: it is not measured.
        hidden: activation of the other layers.
        more: for `session_of`.
    """
    losses = flat(0.69) if losses is None else losses
    series = {"loss": losses}
    if accuracy is not None:
        series["accuracy"] = noisy(np.broadcast_to(accuracy, len(losses)), 0.03)
    layers = (
        dense("first", 32, hidden),
        dense("second", 32, hidden, inputs=32),
        dense("last", units, activation, inputs=32),
    )
    output = Output(name="last", layer="last", activation=activation, units=units, loss=loss)
    given: dict[str, Any] = {"layers": layers, "output": output, "epochs": [{"loss": 0.69}] * 10}
    return session_of(series, **(given | more))
