"""A run as lines of text, for pipes, logs and terminals that cannot draw.

`unstuck watch` and `unstuck demo` print through `follow` when there is no terminal. About one line a second
while steps come, and one for every epoch, answer, change of state, problem and end.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import msgspec

from client_callback.wire import protocol
from client_callback.wire.protocol import AnyEvent, Optimizer, RunEnded, Scalar
from monitor.session import Session
from monitor.sources import LiveSource, RecordedSource
from monitor.trial_results import range_test_of

STATUS_S = 1.0
_POLL_S = 0.1
_SPELLED = str.maketrans({"→": "->", "…": "...", "–": "-", "×": "x", "±": "+-"})
"""For terminals and files whose encoding has no such signs."""


def follow(source: LiveSource | RecordedSource, out: TextIO) -> RunEnded | None:
    """Prints what happens until nothing more will; the run's end, or None when it has none."""
    lines = Lines()
    connection, said_at = "", 0.0
    while True:
        over = _is_over(source)
        update = source.poll()
        for event in update.events:
            for line in lines.of(event):
                say(out, line)
        if source.connection not in (connection, "connecting"):
            connection = source.connection
            say(out, f"-- {connection or 'connected again'}")
        now = time.monotonic()
        if lines.has_news and (now - said_at >= STATUS_S or over):
            said_at = now
            say(out, lines.status())
        if lines.ended or (over and not update.events):
            return lines.ended
        if not update.events:
            _check_reader(out)
            time.sleep(_POLL_S)


class Lines:
    """Knows just enough of the run to say in a line how it stands."""

    def __init__(self) -> None:
        self.ended: RunEnded | None = None
        self.has_news = False
        """Whether steps came since the last status line."""
        self._epoch: int | None = None
        self._epochs: int | None = None
        self._step = 0
        self._values: dict[str, float] = {}
        self._timings: frozenset[str] = frozenset()
        self._paces = Session()
        """Knows of the steps only when they ended, and what else the training was busy with meanwhile."""

    def of(self, event: AnyEvent) -> Iterator[str]:
        """The lines that tell this event; steps only change the status."""
        if isinstance(event, protocol.Steps):
            self._take_steps(event)
            return
        if isinstance(event, protocol.EpochBegan | protocol.StateChanged):
            self._paces.apply(event)
        write = WRITERS.get(type(event))
        if write:
            if self.has_news and isinstance(event, protocol.EpochEnded | RunEnded):
                yield self.status()
            yield from write(self, event)

    def status(self) -> str:
        """How the run stands."""
        self.has_news = False
        parts = [f"step {self._step}"]
        if self._epoch is not None:
            parts.append(f"epoch {self._epoch + 1}" + (f"/{self._epochs}" if self._epochs else ""))
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        speed = self._paces.steps_per_second()
        if speed is not None:
            parts.append(f"{speed:.4g} steps/s")
        examples = self._paces.examples_per_second()
        if examples is not None:
            parts.append(f"{examples:.4g} examples/s")
        return "  ".join(parts)

    def _take_steps(self, event: protocol.Steps) -> None:
        if not event.count:
            return
        self.has_news = True
        self._step = event.first + event.count
        values = protocol.step_columns(event)
        self._values = {name: float(values[name][-1]) for name in values if name not in self._timings}
        examples = {name: column for name, column in event.columns.items() if name == "examples"}
        self._paces.apply(msgspec.structs.replace(event, columns=examples))

    def _write_start(self, event: protocol.RunStarted) -> Iterator[str]:
        run = event.run
        self._epochs = run.epochs
        optimizer = f", {describe_optimizer(run.optimizer)}" if run.optimizer else ""
        yield f"run {run.run_id} ({run.name}): {run.model or 'model'}, {run.parameters:,} parameters{optimizer}"

    def _write_instrumented(self, event: protocol.Instrumented) -> Iterator[str]:
        self._timings = frozenset(series.name for series in event.series if series.kind == "timing")
        yield from (f"-- not recorded: {reason}" for reason in event.missing)

    def _write_epoch_began(self, event: protocol.EpochBegan) -> Iterator[str]:
        self._epoch = event.epoch
        yield from ()

    def _write_epoch(self, event: protocol.EpochEnded) -> Iterator[str]:
        logs = "  ".join(f"{name} {value:.4g}" for name, value in event.logs.items())
        yield f"-- epoch {event.epoch + 1} ended at step {event.step}: {logs}"

    def _write_state(self, event: protocol.StateChanged) -> Iterator[str]:
        if event.state in ("paused", "recompiling", "trial") or event.reason:
            yield f"-- {event.state} at step {event.step}" + (f": {event.reason}" if event.reason else "")

    def _write_optimizer(self, event: protocol.OptimizerChanged) -> Iterator[str]:
        yield f"-- optimizer from step {event.step} on: {describe_optimizer(event.optimizer)}"

    def _write_reply(self, event: protocol.Reply) -> Iterator[str]:
        yield f"-- {event.text}: {describe_reply(event)}"

    def _write_timers(self, event: protocol.TimersChanged) -> Iterator[str]:
        waiting = "; ".join(describe_timer(timer) for timer in event.timers) or "none"
        yield f"-- timers: {waiting}" + (f" ({event.reason})" if event.reason else "")

    def _write_evaluated(self, event: protocol.Evaluated) -> Iterator[str]:
        logs = "  ".join(f"{name} {value:.4g}" for name, value in event.logs.items())
        yield f"-- evaluated at step {event.step}: {logs}"

    def _write_trial(self, event: protocol.TrialEnded) -> Iterator[str]:
        yield f"-- {event.text}: from step {event.start}"
        yield from (f"--   {line}" for line in describe_trial(event))

    def _write_control(self, event: protocol.ControlChanged) -> Iterator[str]:
        yield f"-- {event.who or 'nobody'} steers" + (f": {event.reason}" if event.reason else "")

    def _write_problem(self, event: protocol.Problem) -> Iterator[str]:
        yield f"-- problem: {event.what}"

    def _write_end(self, event: RunEnded) -> Iterator[str]:
        self.ended = event
        yield f"run {event.outcome} at step {event.step}" + (f": {event.reason}" if event.reason else "")


WRITERS: dict[type[AnyEvent], Callable[[Lines, Any], Iterator[str]]] = {
    protocol.RunStarted: Lines._write_start,
    protocol.Instrumented: Lines._write_instrumented,
    protocol.EpochBegan: Lines._write_epoch_began,
    protocol.EpochEnded: Lines._write_epoch,
    protocol.StateChanged: Lines._write_state,
    protocol.OptimizerChanged: Lines._write_optimizer,
    protocol.Reply: Lines._write_reply,
    protocol.TimersChanged: Lines._write_timers,
    protocol.Evaluated: Lines._write_evaluated,
    protocol.TrialEnded: Lines._write_trial,
    protocol.ControlChanged: Lines._write_control,
    protocol.Problem: Lines._write_problem,
    protocol.RunEnded: Lines._write_end,
}


def describe_reply(reply: protocol.Reply) -> str:
    """What became of a command: `applied at step 120: learning_rate 0.001 → 0.0005`."""
    changed = [
        f"{name} {_short(reply.before[name])} → {_short(after)}"
        if name in reply.before
        else f"{name} {_short(after)}"
        for name, after in reply.after.items()
        if name not in reply.before or reply.before[name] != after
    ]
    planned = "; ".join(f"{line.topic}: {line.text}" for line in reply.plan)
    detail = "; ".join([part for part in (", ".join(changed), planned, reply.reason) if part])
    return f"{reply.status} at step {reply.step}" + (f": {detail}" if detail else "")


def describe_timer(timer: protocol.Timer) -> str:
    """`#2 lr x0.5, until step 1700`."""
    parts = [f"#{timer.number} {timer.text}"]
    if timer.state == "waiting":
        parts.append(f"waits for {timer.starts}" if timer.starts else "waits")
    if timer.until is not None:
        parts.append(f"until step {timer.until}")
    if timer.unless:
        parts.append(f"unless {timer.unless}")
    return ", ".join(parts)


def describe_trial(event: protocol.TrialEnded) -> Iterator[str]:
    """A line for each candidate, the best first; or what the range test suggests."""
    test = range_test_of(event)
    if test is not None:
        yield f"suggested rate: {test.suggested:.2g}" if test.suggested else "the loss falls at no rate"
        yield f"diverges at {test.diverges_at:.2g}" if test.diverges_at else "diverges at no rate tried"
        return
    for number, result in enumerate(event.results, 1):
        bounds = f" ({result.low:.4g} to {result.high:.4g})" if math.isfinite(result.score) else ""
        score = f"loss {result.score:.4g}{bounds}" if math.isfinite(result.score) else "diverged"
        yield f"{number}. {result.text}: {score}" + (f"; {result.note}" if result.note else "")
    if not event.tells and len(event.results) > 1:
        yield "the best cannot be told from the others"
    if event.adopted:
        yield f"training goes on with {event.adopted}"


def describe_optimizer(optimizer: Optimizer) -> str:
    """`Adam learning_rate=0.001`, or the schedule's name where one decides the rate."""
    rate = optimizer.schedule or _rate(optimizer.settings)
    return optimizer.class_name + (f" learning_rate={rate}" if rate else "")


def _rate(settings: Mapping[str, Scalar]) -> str:
    return _short(settings["learning_rate"]) if "learning_rate" in settings else ""


def _short(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_over(source: LiveSource | RecordedSource) -> bool:
    if isinstance(source, LiveSource):
        return source.finished.is_set()
    return source.at_end and not source.playing


def say(out: TextIO, line: str) -> None:
    """Writes a line at once, in signs that `out` can hold where there are such."""
    try:
        line.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        line = line.translate(_SPELLED)
    out.write(line + "\n")
    out.flush()


def _check_reader(out: TextIO) -> None:
    """Raises BrokenPipeError when nobody reads `out` any more; without it, only the next line would tell."""
    try:
        descriptor = out.fileno()
    except OSError:
        return  # no file of the system's, as when the output is collected in memory
    poll = select.poll()
    poll.register(descriptor, 0)
    if any(signs & (select.POLLERR | select.POLLHUP) for _, signs in poll.poll(0)):
        raise BrokenPipeError
