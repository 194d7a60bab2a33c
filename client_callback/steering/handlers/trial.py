"""`trial`: candidates compared on the batches to come, or a range of learning rates tried; nothing else happens.

`trials` does the trying; here it is planned, told, and the winner adopted: as a command of its own, carried out like
any other, so that it is recorded, verified and can be undone.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from client_callback.steering.handlers.shared import used_optimizer
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.history import History
from client_callback.steering.learning_rate import check_rate
from client_callback.steering.snapshots import Snapshot
from client_callback.steering.state import State, has_variables
from client_callback.steering.training import Batches, Outcome, Refused, Training
from client_callback.steering.trial_statistics import FEWEST_SCORED, better_beyond_chance, scored_steps
from client_callback.steering.trials import Tried, bench, compare, geometric, sweep
from client_callback.wire import commands
from client_callback.wire.protocol import Command, PlanLine, Scalar, TrialEnded, TrialResult
from client_callback.wire.range_test import RangeTest, read_range_test

MOST_BATCH_BYTES = 1 << 30
"""Of memory that the batches of a trial may take: they wait there until training comes to them."""
_TIMED_STEPS = 50
"""Of the training, whose median tells how long a step takes."""


class Trials:
    """The trials of one training.

    Args:
        training: what they are made on.
        history: knows the states they can begin from.
        handlings: of the commands that can be tried.
    """

    def __init__(self, training: Training, history: History, handlings: Handlings) -> None:
        self._training = training
        self._history = history
        self._handlings = handlings
        self.command: Command | None = None
        """The one being carried out; set by whoever does."""
        self._adoption: Command | None = None

    def handlings(self) -> Handlings:
        """Those of trials."""
        return {
            commands.Trial: Handling(carry_out=self._compare, plan=self._plan_comparison, of_optimizer=True),
            commands.RangeTest: Handling(carry_out=self._sweep, plan=self._plan_sweep, of_optimizer=True),
        }

    def take_adoption(self) -> Command | None:
        """The command that puts the winner of the last trial in, if it is to be adopted; once."""
        adoption, self._adoption = self._adoption, None
        return adoption

    # ── Candidates ──────────────────────────────────────────────────────────────────────────────────

    def _compare(self, training: Training, instruction: commands.Trial, time: float) -> Outcome:
        start = self._start(instruction.start)
        batches = self._pull(instruction.steps)
        steps = len(batches.batches)
        tried = [
            Tried(text, one) for text, one in zip(instruction.texts, instruction.candidates, strict=True)
        ]
        state = None if start is None else self._history.snapshots.load(start)
        with bench(training, batches, state, f"trial of {len(tried)} for {steps} steps") as place:
            compare(place, tried, self._handlings, time)
        ranked = sorted(tried, key=lambda one: _rank(one, steps))
        tells = _tells(ranked, steps)
        adopted = ranked[0].text if instruction.adopt and tells and ranked[0].instruction is not None else ""
        results = tuple(_result(one, steps) for one in ranked)
        self._end(time, state, results, adopted=adopted, tells=tells)
        if adopted:
            self._adopt(ranked[0], start)
        reason = [*_about_length(instruction.steps, batches), *_ranking(ranked, steps, tells=tells)]
        if instruction.adopt:
            reason.append(_about_adoption(ranked, adopted, tells=tells))
        after: dict[str, Scalar] = {"best": results[0].text}
        return Outcome(after={**after, **({"adopted": adopted} if adopted else {})}, reason="; ".join(reason))

    def _plan_comparison(self, training: Training, instruction: commands.Trial) -> list[PlanLine]:
        self._check()
        start = self._start(instruction.start)
        traces = 0
        lines: list[PlanLine] = []
        for text, one in zip(instruction.texts, instruction.candidates, strict=True):
            if one is None or isinstance(one, commands.TryData):
                continue
            try:
                planned = self._handlings[type(one)].plan(training, one)
            except Refused as refusal:
                raise Refused(f"candidate {text!r}: {refusal}") from refusal
            traces += any(line.topic == "recompiles" for line in planned)
            lines += [
                PlanLine(topic=line.topic, text=f"{text}: {line.text}")
                for line in planned
                if line.topic == "warning"
            ]
        traces += any(not isinstance(one, commands.SwitchOptimizer) for one in instruction.candidates)
        count = len(instruction.candidates)
        what = f"tries {count} candidate{'s' * (count > 1)} for {{}} steps each, {_origin(start)}"
        lines = [*self._plan_trying(what, instruction.steps, passes=count, traces=max(1, traces)), *lines]
        if instruction.adopt:
            adopt = "then goes on with the best, if it is better than the others beyond chance"
            lines.insert(1, PlanLine(topic="does", text=adopt))
        return lines

    def _adopt(self, winner: Tried, start: Snapshot | None) -> None:
        assert self.command is not None  # noqa: S101 (it is being carried out)
        text = command_text(winner.instruction)
        if start is not None:
            text += (
                f" from {shlex.quote(start.name or ('start' if start.kind == 'start' else str(start.step)))}"
            )
        who = f"trial of {self.command.who}" if self.command.who else "a trial"
        self._adoption = Command(id=f"{self.command.id[:62]}.1", text=text, who=who)

    # ── Range of rates ──────────────────────────────────────────────────────────────────────────────

    def _sweep(self, training: Training, instruction: commands.RangeTest, time: float) -> Outcome:
        start = self._start(instruction.start)
        batches = self._pull(instruction.steps)
        rates = geometric(instruction.low, instruction.high, len(batches.batches))
        text = f"lr {instruction.low:g}..{instruction.high:g}"
        state = None if start is None else self._history.snapshots.load(start)
        with bench(training, batches, state, f"trial {text}") as place:
            losses = np.array(sweep(place, rates))
        found = read_range_test(rates[: len(losses)], losses, given_up=len(losses) < len(rates))
        note = _about_rates(found, instruction)
        tried = Tried(text, None, losses.tolist(), note=note if len(losses) < len(rates) else "")
        result = TrialResult(
            text=text,
            losses=_floats(losses),
            score=_result(tried, len(rates)).score,
            low=math.nan,
            high=math.nan,
            note=note,
        )
        self._end(time, state, (result,), rates=_floats(rates), tells=False)
        after: dict[str, Scalar] = (
            {} if found.suggested is None else {"suggested": _readable(found.suggested)}
        )
        return Outcome(after=after, reason="; ".join([*_about_length(instruction.steps, batches), note]))

    def _plan_sweep(self, training: Training, instruction: commands.RangeTest) -> list[PlanLine]:
        self._check()
        for rate in (instruction.low, instruction.high):
            check_rate(rate)
        what = (
            f"trains for {{}} steps while the rate grows from {instruction.low:g} to {instruction.high:g}, "
            f"{_origin(self._start(instruction.start))}"
        )
        return self._plan_trying(what, instruction.steps, passes=1, traces=1)

    # ── Both ────────────────────────────────────────────────────────────────────────────────────────

    def _check(self) -> None:
        used_optimizer(self._training)
        if not has_variables(self._training.model):
            raise Refused("a trial needs the model's variables, and Keras makes them with the first batch")

    def _start(self, start: str) -> Snapshot | None:
        """The snapshot to begin from. `None`: the present state."""
        return None if start == "now" else self._history.find(start)

    def _pull(self, steps: int) -> Batches:
        """The batches for a trial; Refused when there are too few or they take too much memory."""
        self._steps(steps)
        return self._training.pull_batches(steps, MOST_BATCH_BYTES)

    def _steps(self, steps: int) -> tuple[int, int]:
        """(steps that can be made, bytes of each one's batch)."""
        batch = self._training.pull_batches(1, MOST_BATCH_BYTES)
        if not batch.batches:
            raise Refused("the data has no more batches in this epoch")
        possible = steps if batch.left is None else min(steps, batch.left)
        if possible < min(steps, FEWEST_SCORED):
            raise Refused(
                f"the epoch has only {possible} batches left, and a trial takes none of the next; send it again "
                "when that has begun"
            )
        if possible * batch.nbytes > MOST_BATCH_BYTES:
            raise Refused(
                f"{possible} batches of {_size(batch.nbytes)} take more than {_size(MOST_BATCH_BYTES)}; possible are "
                f"{MOST_BATCH_BYTES // batch.nbytes} steps"
            )
        return possible, batch.nbytes

    def _plan_trying(self, what: str, steps: int, *, passes: int, traces: int) -> list[PlanLine]:
        possible, nbytes = self._steps(steps)
        lines = [
            PlanLine(topic="does", text=what.format(possible)),
            PlanLine(topic="keeps", text="weights, optimizer, metrics and seeds: all as before, bit for bit"),
            PlanLine(
                topic="keeps", text="the batches: training sees each once and in its order, after the trial"
            ),
        ]
        if possible < steps:
            short = f"the epoch has {possible} batches left, so {possible} steps instead of {steps}"
            lines.append(PlanLine(topic="warning", text=short))
        times = "once" if traces == 1 else f"{traces} times"
        lines.append(
            PlanLine(topic="recompiles", text=f"a train step is traced {times}, for the trial alone")
        )
        memory = f"{_size(possible * nbytes)} of memory for the batches, and a copy of the state on the host"
        return [*lines, PlanLine(topic="cost", text=f"{self._duration(possible * passes, traces)}; {memory}")]

    def _duration(self, steps: int, traces: int) -> str:
        step = self._training.step
        known = self._training.recent.values("step_time", step - _TIMED_STEPS, step)
        known = known[np.isfinite(known)]
        if not len(known):
            return f"{steps} steps of yet unknown length"
        seconds = steps * float(np.median(known))
        trace = self._training.trace_seconds
        traced = f" and {traces} trace{'s' * (traces > 1)}" if trace is None else ""
        return f"about {seconds + traces * (trace or 0.0):.2g} s ({steps} steps{traced})"

    def _end(
        self,
        time: float,
        start: State | None,
        results: tuple[TrialResult, ...],
        *,
        tells: bool,
        adopted: str = "",
        rates: bytes = b"",
    ) -> None:
        assert self.command is not None  # noqa: S101 (it is being carried out)
        event = TrialEnded(
            step=self._training.step,
            time=time,
            id=self.command.id,
            text=self.command.text,
            start=self._training.step if start is None else start.step,
            results=results,
            rates=rates,
            adopted=adopted,
            tells=tells,
        )
        self._training.emit(event)


def command_text(instruction: Any) -> str:
    """A candidate as the command that would carry it out."""
    if isinstance(instruction, commands.SetRate):
        return f"lr {instruction.value!r}"
    if isinstance(instruction, commands.ScaleRate):
        return f"lr x{instruction.factor!r}"
    words = [f"{name}={_word(value)}" for name, value in instruction.arguments.items()]
    return shlex.join(["optimizer", instruction.name, *words])


def _word(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _rank(one: Tried, steps: int) -> tuple[bool, float]:
    """Lower is better; given up comes last, the later the better."""
    score = one.score(steps).mean
    return (math.isnan(score), -len(one.losses) if math.isnan(score) else score)


def _tells(ranked: Sequence[Tried], steps: int) -> bool:
    """Whether the best is better than the others beyond chance; one that was given up is worse in any case."""
    scored = [losses for one in ranked if (losses := one.scored(steps)) is not None]
    if len(ranked) < 2 or not scored:
        return False
    return len(scored) == 1 or better_beyond_chance(scored[0], scored[1:])


def _result(one: Tried, steps: int) -> TrialResult:
    score = one.score(steps)
    return TrialResult(
        text=one.text,
        losses=_floats(np.array(one.losses)),
        score=score.mean,
        low=score.low,
        high=score.high,
        note=one.note,
    )


def _floats(values: Any) -> bytes:
    return np.asarray(values, "<f4").tobytes()


# ── What is said ──────────────────────────────────────────────────────────────────────────────────


def _about_length(wanted: int, batches: Batches) -> list[str]:
    steps = len(batches.batches)
    return [f"{steps} steps instead of {wanted}: {batches.short}"] if steps < wanted else []


def _ranking(ranked: Sequence[Tried], steps: int, *, tells: bool) -> list[str]:
    """Best first."""
    texts = []
    for one in ranked:
        mean, low, high = one.score(steps)
        spread = "" if math.isnan(low) else f" ({low:.4g} to {high:.4g})"
        texts.append(f"{one.text!r} {one.note}" if math.isnan(mean) else f"{one.text!r} {mean:.4g}{spread}")
    listed = f"mean loss of the last {scored_steps(steps)} of {steps} steps: {', '.join(texts)}"
    if len(ranked) < 2:
        return [listed]
    finished = sum(one.scored(steps) is not None for one in ranked)
    verdict = f"{ranked[0].text!r} is better beyond chance" if tells else "no difference beyond chance"
    return [listed, verdict if finished else "none came to its end"]


def _about_adoption(ranked: Sequence[Tried], adopted: str, *, tells: bool) -> str:
    if adopted:
        return f"{adopted!r} is adopted"
    if len(ranked) < 2:
        return "nothing is adopted: there is nothing to compare with, such as keep"
    if tells:
        return "nothing is adopted: the best is to keep everything as it is"
    return "nothing is adopted, everything is as it was"


def _about_rates(found: RangeTest, instruction: commands.RangeTest) -> str:
    parts = []
    if found.steepest is None:
        parts.append("the loss fell at no rate beyond its noise")
    else:
        parts.append(f"the loss fell fastest at {found.steepest:.3g}")
    if found.diverges_at is None:
        parts.append(f"did not diverge up to {instruction.high:g}")
    else:
        tenth = f", a tenth of which is {found.diverges_at / 10:.3g}"
        parts.append(f"rose above where it began at {found.diverges_at:.3g}{tenth}")
    text = " and ".join(parts)
    return text if found.suggested is None else f"{text}; try lr {found.suggested:.3g} (Smith 2017)"


def _readable(rate: float) -> float:
    return float(f"{rate:.3g}")


def _origin(start: Snapshot | None) -> str:
    return "all from the present state" if start is None else f"all from the state before step {start.step}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
