"""Several ways to go on, tried from one state on the same batches; then everything is as it was.

The batches are those that training comes to next (`instrument.batches` takes them ahead and hands them on later), so
none is lost and none is seen twice by what trains for good. Each candidate begins from the same weights, optimizer,
metrics and seeds, is set up by the very handler that would carry out the command, and trains by a train function of
its own, with the instrument off. Afterwards `state.restore` puts everything back, bit for bit. Called by
`handlers.trial` between two batches; knows nothing of commands' texts and answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from client_callback.steering.backends import current_backend
from client_callback.steering.handling import Handlings
from client_callback.steering.learning_rate import set_rates
from client_callback.steering.settings import read_settings, settings_of
from client_callback.steering.state import State, capture, restore
from client_callback.steering.training import Batches, Refused, Training, stand_in
from client_callback.steering.trial_data import altered
from client_callback.steering.trial_runners import Runner, Surroundings, make_runner
from client_callback.steering.trial_statistics import Interval, mean_interval, scored_steps
from client_callback.wire.commands import Instruction, TryData
from client_callback.wire.protocol import Float64

DIVERGED_AT = 4.0
"""Times the loss at the start, or in a range test the lowest: as in fastai's range test."""
PATIENCE_SHARE = 0.1
"""Of the steps: so many in a row above that, and a candidate is given up. Single batches may be hard."""
MOST_PATIENCE = 10
LEAST_PATIENCE = 3
_SMOOTHING = 0.8
"""Of the running mean of a range test's losses, which decides whether it goes on."""


@dataclass
class Tried:
    """How one candidate did."""

    text: str
    instruction: Instruction | TryData | None
    """`None`: everything as it is."""
    losses: list[float] = field(default_factory=list)
    """Of each step's batch, NaN where not finite."""
    note: str = ""
    """Why it was given up; empty when it was not."""

    def scored(self, steps: int) -> Float64 | None:
        """Its losses over the part of `steps` that counts. `None`: it was given up before the end."""
        if self.note or len(self.losses) < steps:
            return None
        return np.array(self.losses[steps - scored_steps(steps) :])

    def score(self, steps: int) -> Interval:
        """The mean of those; NaN when it was given up."""
        losses = self.scored(steps)
        return Interval(math.nan, math.nan, math.nan) if losses is None else mean_interval(losses)


class Bench:
    """A training that may be trained at will until `bench` puts it back.

    Args:
        training: whose batches and model these are.
        batches: to train on.
        start: the state that every candidate begins from.
        surroundings: what the backend keeps beside it.
        make: makes a train function of the model as it is then.
    """

    def __init__(
        self,
        training: Training,
        batches: Batches,
        start: State,
        surroundings: Surroundings,
        make: Callable[[], Callable[..., Any]],
    ) -> None:
        self.training = stand_in(training, told=lambda event: False)
        self._batches = batches
        self._start = start
        self._surroundings = surroundings
        self._make = make
        self._made: list[tuple[Mapping[str, Any], Runner]] = []

    @property
    def steps(self) -> int:
        """How many batches there are."""
        return len(self._batches.batches)

    def begin(self) -> None:
        """The state that every candidate begins from."""
        restore(self.training.model, self._start, _directly)
        self._surroundings.put_back()

    def losses(self, data: TryData | None = None) -> Iterator[float]:
        """Trains on one batch after the other, or on what `data` makes of them, and tells the loss of each."""
        batches = self._batches.batches
        if data is not None:
            batches = altered(batches, data.kind, self.training.model)
        runner = self._runner()
        for batch in batches:
            yield runner.train(self._batches.alone(batch))

    def _runner(self) -> Runner:
        """One for all candidates that a compiled step does not tell apart."""
        model = self.training.model
        traced = {name for name, setting in settings_of(model).items() if setting.traced}
        settings = {name: value for name, value in read_settings(model).items() if name in traced}
        for known, runner in self._made:
            if known == settings:
                return runner
        self._made.append((settings, make_runner(model, self._make())))
        return self._made[-1][1]


@contextmanager
def bench(training: Training, batches: Batches, start: State | None, reason: str) -> Iterator[Bench]:
    """Inside, the training may be trained at will; afterwards it is as it was, bit for bit.

    Args:
        training: between two batches.
        batches: those that come next.
        start: the state to begin from. `None`: as it is now.
        reason: what the monitors are told meanwhile.
    """
    model = training.model
    with training.unmeasured(reason) as make, current_backend().state(model):
        present, surroundings = capture(model, training.step), Surroundings(model)
        try:
            yield Bench(training, batches, start or present, surroundings, make)
        finally:
            restore(model, present, _directly)
            surroundings.put_back()


def compare(place: Bench, candidates: Sequence[Tried], handlings: Handlings, time: float) -> None:
    """Trains each candidate on all the batches, and notes what became of it."""
    before = place.training.last_values.get("loss", math.nan)
    for one in candidates:
        place.begin()
        try:
            if one.instruction is not None and not isinstance(one.instruction, TryData):
                handlings[type(one.instruction)].carry_out(place.training, one.instruction, time)
            _train(place, one, -math.inf if math.isnan(before) else before)
        except Refused as refusal:
            one.note = f"not possible: {refusal}"
        except Exception as error:  # noqa: BLE001 (foreign code, such as too little memory: the others go on)
            one.note = f"failed: {type(error).__name__}: {error}"[:1_000]
    if all(one.note and not one.losses for one in candidates):
        raise Refused("; ".join(f"{one.text!r} is {one.note}" for one in candidates))


def sweep(place: Bench, rates: Float64) -> list[float]:
    """Trains on one batch at each of the rates; returns the losses, fewer where it diverged before the end."""
    place.begin()
    optimizer = cast(Any, place.training.model).optimizer
    losses: list[float] = []
    smooth = lowest = math.nan
    set_rates(optimizer, float(rates[0]))
    for loss, following in zip(place.losses(), [*rates[1:], None], strict=False):
        losses.append(loss)
        smooth = loss if len(losses) == 1 else _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
        lowest = smooth if len(losses) == 1 else min(lowest, smooth)
        if math.isnan(loss) or smooth > _limit(lowest):
            break
        if following is not None:
            set_rates(optimizer, float(following))
    return losses


def geometric(low: float, high: float, count: int) -> Float64:
    """Rates from `low` to `high`, each the same multiple of the one before, float64 `[count]`."""
    return np.geomspace(low, high, count)


def _train(place: Bench, one: Tried, before: float) -> None:
    """`before`: the loss that training had, -∞ where it is not known; a single first batch may be an easy one."""
    above = 0
    patience = min(MOST_PATIENCE, max(LEAST_PATIENCE, round(place.steps * PATIENCE_SHARE)))
    data = one.instruction if isinstance(one.instruction, TryData) else None
    for loss in place.losses(data):
        one.losses.append(loss)
        step = len(one.losses)
        if math.isnan(loss):
            one.note = f"diverged: its loss was not finite after {step} steps"
            return
        level = max(one.losses[0], before)
        above = above + 1 if loss > _limit(level) else 0
        if above >= patience:
            one.note = (
                f"diverged: its loss stayed above {_limit(level):.3g} for {above} steps, until step {step}"
            )
            return


def _limit(level: float) -> float:
    """`DIVERGED_AT` times a positive level; as far above one that is not."""
    return level + (DIVERGED_AT - 1) * abs(level)


def _directly(change: Callable[[], None]) -> None:
    """What trains for good is not traced anew: every setting that it holds will be as it was."""
    change()
