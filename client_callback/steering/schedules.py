"""The schedules that `schedule KIND ARGUMENT=…` can put on a running optimizer.

Keras' own where it has them, and here those that it has not. `make_schedule` checks what a command gave and builds
one; it knows no optimizer. All count steps from 0 and are computed inside the compiled step, one step per batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops
from keras.optimizers import schedules
from keras.optimizers.schedules import LearningRateSchedule

from client_callback.steering.training import Refused
from client_callback.wire.protocol import Scalar

MOST_STEPS = 1 << 31
"""Keras counts `iterations` in 32 bits."""

_FLOAT32 = np.finfo(np.float32)

Arguments = Mapping[str, Any]


# ── Those that Keras has not ──────────────────────────────────────────────────────────────────────


class LinearWarmup(LearningRateSchedule):  # type: ignore[misc] # Keras has no types
    """From `initial_learning_rate` to `warmup_target` in a straight line, then constant.

    η(t) = η₀ + (η₁ − η₀) · min(t / warmup_steps, 1). The gradual warmup of Goyal et al., "Accurate, Large Minibatch
    SGD: Training ImageNet in 1 Hour", 2017, section 2.2.

    Args:
        initial_learning_rate: η₀, of the first step.
        warmup_target: η₁.
        warmup_steps: steps until it is reached.
    """

    def __init__(self, initial_learning_rate: float, warmup_target: float, warmup_steps: int) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Any:
        """The rate of step `step`, a float32 scalar tensor."""
        share = ops.minimum(ops.cast(step, "float32") / float(self.warmup_steps), 1.0)
        # In this form both ends are exact.
        return self.initial_learning_rate * (1.0 - share) + self.warmup_target * share

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(vars(self))


class Cyclical(LearningRateSchedule):  # type: ignore[misc] # Keras has no types
    """Up and down in straight lines between two rates, the upper one shrinking with every step.

    η(t) = η₀ + (η₁ − η₀) · max(0, 1 − |t / s − 2c + 1|) · γᵗ, with c = ⌊1 + t / 2s⌋: the policies `triangular`
    (γ = 1) and `exp_range` (γ < 1) of Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017,
    section 3.1.

    Args:
        initial_learning_rate: η₀, the lower bound, of the first step.
        maximal_learning_rate: η₁, the upper bound.
        step_size: s, steps of half a cycle.
        gamma: γ, by which the upper bound's distance shrinks each step.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        maximal_learning_rate: float,
        step_size: int,
        gamma: float = 1.0,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.maximal_learning_rate = maximal_learning_rate
        self.step_size = step_size
        self.gamma = gamma

    def __call__(self, step: Any) -> Any:
        """The rate of step `step`, a float32 scalar tensor."""
        step = ops.convert_to_tensor(step)
        # The remainder in whole numbers: float32 would lose the place within a cycle after some million steps.
        place = ops.cast(ops.mod(step, 2 * self.step_size), "float32")
        height = 1.0 - ops.abs(place / float(self.step_size) - 1.0)
        if self.gamma != 1.0:
            height = height * ops.power(self.gamma, ops.cast(step, "float32"))
        return self.initial_learning_rate + (self.maximal_learning_rate - self.initial_learning_rate) * height

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(vars(self))


class OneCycle(LearningRateSchedule):  # type: ignore[misc] # Keras has no types
    """Once up to the highest rate and down to nearly nothing, both along half a cosine; then it stays there.

    From η₁ / div_factor at step 0 to η₁ at step w = warmup_share · total_steps − 1, then to η₁ / div_factor /
    final_div_factor at step total_steps − 1; between two ends a and b, η = b + (a − b) · (1 + cos π·p) / 2 at share p
    of the way. Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates", 2018, in the form of fast.ai and of torch's `OneCycleLR`. Only the rate: momentum stays as it is.

    Args:
        maximal_learning_rate: η₁.
        total_steps: of the whole cycle.
        warmup_share: of the steps, until the highest rate is reached; `pct_start` in torch.
        div_factor: the highest rate by the first.
        final_div_factor: the first rate by the last.
    """

    def __init__(
        self,
        maximal_learning_rate: float,
        total_steps: int,
        warmup_share: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.maximal_learning_rate = maximal_learning_rate
        self.total_steps = total_steps
        self.warmup_share = warmup_share
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor

    def __call__(self, step: Any) -> Any:
        """The rate of step `step`, a float32 scalar tensor."""
        step = ops.cast(step, "float32")
        first = self.maximal_learning_rate / self.div_factor
        last = first / self.final_div_factor
        top, end = self.warmup_share * self.total_steps - 1, self.total_steps - 1.0
        up = _half_cosine(first, self.maximal_learning_rate, step / top)
        down = _half_cosine(self.maximal_learning_rate, last, ops.minimum((step - top) / (end - top), 1.0))
        return ops.where(step <= top, up, down)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(vars(self))


def _half_cosine(begin: float, end: float, share: Any) -> Any:
    return end + (begin - end) * 0.5 * (1.0 + ops.cos(math.pi * share))


# ── What a command may give ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Argument:
    """What one argument may be."""

    what: str
    """In words, for the error."""
    check: Callable[[Any], bool]
    """Of a number, finite and of the right kind."""
    kind: type = float
    required: bool = False


def in_float32(value: float) -> bool:
    """Whether float32 holds it as a positive normal number."""
    return float(_FLOAT32.tiny) <= value <= float(_FLOAT32.max)


def a_rate(*, required: bool = False, zero: bool = False) -> Argument:
    """A learning rate."""
    least, most = float(_FLOAT32.tiny), float(_FLOAT32.max)
    what = f"{'0 or ' if zero else ''}a number from {least:.3g} to {most:.3g}"
    return Argument(what, lambda v: in_float32(v) or (zero and v == 0), required=required)


def a_count(*, required: bool = True, least: int = 1) -> Argument:
    """A number of steps, or of epochs."""
    return Argument(
        f"a whole number from {least} to {MOST_STEPS - 1}",
        lambda v: least <= v < MOST_STEPS,
        kind=int,
        required=required,
    )


def a_share(*, required: bool = False) -> Argument:
    """Above 0 and at most 1."""
    return Argument("a number above 0 and at most 1", lambda v: 0 < v <= 1, required=required)


def a_number(*, least: float = 0.0) -> Argument:
    """A finite number."""
    above = f"from {least:g} on" if least else "above 0"
    return Argument(f"a number {above}", lambda v: in_float32(v) and v >= least)


_FLAG = Argument("true or false", lambda v: True, kind=bool)
_OPEN_SHARE = Argument("a number above 0 and below 1", lambda v: 0 < v < 1)
_ALPHA = Argument("a number from 0 to 1", lambda v: 0 <= v <= 1)


def checked(arguments: Mapping[str, Scalar], possible: Mapping[str, Argument], of: str) -> dict[str, Any]:
    """The arguments as numbers of the right kind.

    Args:
        arguments: as a command gave them.
        possible: those there are.
        of: what they are of, for the error.

    Raises:
        Refused: one is missing, unknown, or not what it may be.
    """
    for name in arguments:
        if name not in possible:
            raise Refused(f"{of} has no argument {name!r}; possible: {', '.join(possible)}")
    missing = [name for name, argument in possible.items() if argument.required and name not in arguments]
    if missing:
        raise Refused(f"{of} needs {' and '.join(missing)}; possible: {', '.join(possible)}")
    return {name: _checked(name, value, possible[name], of) for name, value in arguments.items()}


def _checked(name: str, value: Scalar, argument: Argument, of: str) -> Any:
    refusal = Refused(f"{of}: {name} must be {argument.what}, received {value!r}")
    if argument.kind is bool or argument.kind is str:
        if not isinstance(value, argument.kind) or not argument.check(value):
            raise refusal
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > float(_FLOAT32.max):
        raise refusal
    if (
        not math.isfinite(value)
        or not argument.check(value)
        or (argument.kind is int and value != int(value))
    ):
        raise refusal
    return argument.kind(value)


# ── The kinds ─────────────────────────────────────────────────────────────────────────────────────


def _nothing(arguments: dict[str, Any], present: float) -> None:
    """All is said by the arguments one by one."""


@dataclass(frozen=True)
class Kind:
    """One kind of schedule."""

    cls: type
    possible: Mapping[str, Argument]
    span: str
    """The argument that says over how many steps it does what it does."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    begins_at_present: bool = True
    """Whether its first rate is the present one unless told otherwise."""
    complete: Callable[[dict[str, Any], float], None] = _nothing
    """Adds what follows from the present rate, and refuses what does not fit together."""


def _complete_cosine(arguments: dict[str, Any], present: float) -> None:
    if ("warmup_target" in arguments) != ("warmup_steps" in arguments):
        raise Refused("schedule cosine: warmup_target and warmup_steps belong together; give both or neither")


def _complete_cyclical(arguments: dict[str, Any], present: float) -> None:
    low, high = arguments["initial_learning_rate"], arguments["maximal_learning_rate"]
    if high <= low:
        raise Refused(
            f"schedule cyclical: maximal_learning_rate must be above initial_learning_rate ({low:g}), "
            f"received {high:g}"
        )


def _complete_one_cycle(arguments: dict[str, Any], present: float) -> None:
    schedule = OneCycle(**arguments)
    if schedule.warmup_share * schedule.total_steps <= 1:
        raise Refused(
            f"schedule one-cycle: {schedule.warmup_share:g} of {schedule.total_steps} steps is not more than one; "
            "give a larger warmup_share or more total_steps"
        )
    first = schedule.maximal_learning_rate / schedule.div_factor
    for what, value in (("first", first), ("last", first / schedule.final_div_factor)):
        if not in_float32(value):
            raise Refused(
                f"schedule one-cycle: its {what} rate would be {value:g}, which float32 cannot hold"
            )


def _complete_warmup(arguments: dict[str, Any], present: float) -> None:
    target = arguments.setdefault("warmup_target", present)
    arguments.setdefault("initial_learning_rate", target / arguments["warmup_steps"])
    for name in ("warmup_target", "initial_learning_rate"):
        if not in_float32(arguments[name]):
            raise Refused(f"schedule warmup: {name} would be {arguments[name]:g}; give another")


_DECAY = {"decay_steps": a_count(), "decay_rate": a_share(required=True)}
_INITIAL = {"initial_learning_rate": a_rate()}

KINDS: dict[str, Kind] = {
    "step": Kind(
        schedules.ExponentialDecay, {**_DECAY, **_INITIAL}, "decay_steps", fixed={"staircase": True}
    ),
    "exponential": Kind(
        schedules.ExponentialDecay, {**_DECAY, "staircase": _FLAG, **_INITIAL}, "decay_steps"
    ),
    "inverse-time": Kind(
        schedules.InverseTimeDecay,
        {
            "decay_steps": a_count(),
            "decay_rate": Argument("a number above 0", in_float32, required=True),
            "staircase": _FLAG,
            **_INITIAL,
        },
        "decay_steps",
    ),
    "polynomial": Kind(
        schedules.PolynomialDecay,
        {
            "decay_steps": a_count(),
            # Keras' default of 1e-4 may well lie above the present rate.
            "end_learning_rate": a_rate(required=True, zero=True),
            "power": a_number(),
            "cycle": _FLAG,
            **_INITIAL,
        },
        "decay_steps",
    ),
    "cosine": Kind(
        schedules.CosineDecay,
        {
            "decay_steps": a_count(),
            "alpha": _ALPHA,
            "warmup_target": a_rate(),
            "warmup_steps": a_count(required=False),
            **_INITIAL,
        },
        "decay_steps",
        complete=_complete_cosine,
    ),
    "cosine-restarts": Kind(
        schedules.CosineDecayRestarts,
        {
            "first_decay_steps": a_count(),
            # Below 1 the cycles would come to an end, and Keras to the logarithm of a negative number.
            "t_mul": a_number(least=1.0),
            "m_mul": a_share(),
            "alpha": _ALPHA,
            **_INITIAL,
        },
        "first_decay_steps",
    ),
    "cyclical": Kind(
        Cyclical,
        {
            "maximal_learning_rate": a_rate(required=True),
            "step_size": a_count(),
            "gamma": a_share(),
            **_INITIAL,
        },
        "step_size",
        complete=_complete_cyclical,
    ),
    "one-cycle": Kind(
        OneCycle,
        {
            "maximal_learning_rate": a_rate(required=True),
            "total_steps": a_count(least=3),
            "warmup_share": _OPEN_SHARE,
            "div_factor": a_number(least=1.0),
            "final_div_factor": a_number(least=1.0),
        },
        "total_steps",
        begins_at_present=False,
        complete=_complete_one_cycle,
    ),
    "warmup": Kind(
        LinearWarmup,
        {"warmup_steps": a_count(), "warmup_target": a_rate(), **_INITIAL},
        "warmup_steps",
        begins_at_present=False,
        complete=_complete_warmup,
    ),
}
"""Every kind that is computed in the step. Not `constant`, and not `reduce-on-plateau`, which acts between epochs."""


def make_schedule(kind: str, arguments: Mapping[str, Scalar], present: float) -> LearningRateSchedule:
    """The schedule a command asks for.

    Args:
        kind: of `KINDS`.
        arguments: as the command gave them.
        present: the rate of the next step, which it begins with unless told otherwise.

    Raises:
        Refused: an argument is missing, or not what it may be.
    """
    found = KINDS[kind]
    of = f"schedule {kind}"
    values = {**found.fixed, **checked(arguments, found.possible, of)}
    if found.begins_at_present:
        if "initial_learning_rate" not in values and not in_float32(present):
            raise Refused(f"{of}: the present rate is {present:g}; give initial_learning_rate")
        values.setdefault("initial_learning_rate", present)
    found.complete(values, present)
    return found.cls(**values)


def span_of(kind: str, arguments: Mapping[str, Scalar]) -> int:
    """Steps over which a schedule with these checked arguments is worth looking at."""
    span = int(float(str(arguments[KINDS[kind].span])))
    if kind == "cyclical":
        return 2 * span
    warmup = arguments.get("warmup_steps", 0) if kind == "cosine" else 0
    return span + int(float(str(warmup)))


def rates_along(schedule: LearningRateSchedule, span: int) -> list[tuple[int, float]]:
    """(step, rate) of the first step, three on the way, and the last of `span`.

    Raises:
        Refused: one is no rate.
    """
    places = sorted({round(span * part / 4) for part in range(5)})
    found = [(step, float(ops.convert_to_numpy(schedule(step)))) for step in places]
    for step, value in found:
        if not math.isfinite(value) or value < 0 or value > float(_FLOAT32.max):
            raise Refused(f"the rate of step {step} of this schedule would be {value:g}")
    return found
