"""Finds a learning rate so small that the weights will hardly have moved by the end.

Sees: ‖Δw‖ / ‖w‖ of sampled steps, added up over the run so far and, at the newest pace, over what is planned. A
network that learns moves its kernels by about their own length or more; here even the kernel that moves most gets no
further than a small share of that, while the model still guesses or its loss crawls. Also sees a schedule that took
the rate away before half of the run was over, a range test in which the loss fell fastest at a far higher rate, and,
before anything can have come of it, a rate a thousand times below what the optimizer is usually run at (a note).

Hurts because each step is right and far too short. Try ten to a hundred times the rate; a range test finds the
largest that still works (Smith 2017, arXiv 1506.01186).

Source: Karpathy, CS231n notes, "Ratio of weights:updates" (about 1e-3 a step is healthy); the limits here from
trainings on digits, wine and text: those that learned had travelled 0.9 or more, those that were too slow 0.07 at
most.

Wrong for a few last layers trained on features that are good already, where little way is far enough: it is silent
then, for such a training does not guess. Where the gradient is at fault, because it vanishes or units are dead,
others tell. Where updates are not measured only the rate itself can tell.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, TrialEnded, TrialResult
from monitor.diagnosis import experiments, motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

HARDLY: Final = 0.15
"""Way that kernels go in shares of their length, by the end: with so little nothing was seen to learn."""
LITTLE: Final = 0.4
"""With so little, learning is slow at best."""
STILL: Final = 1e-9
"""A step below that share is no step: the gradient is at fault, not the rate (float32 holds 1e-7 of a weight)."""
FEW_STEPS: Final = 50
"""With fewer steps in all, their number is at fault rather than the rate."""
SMALL_FACTOR: Final = 0.2
"""Of the usual rate. Below, the rate itself is small; above, it is the optimizer that makes little of it."""
MAY_SIT_STILL: Final = frozenset({"sgd", "adagrad", "ftrl", "adadelta"})
"""Optimizers whose steps may be short at a usual rate."""
MUCH_HIGHER: Final = 5.0
"""Times the rate at work that a range test must suggest."""
FAR_OUT: Final = 1e-3
"""Times the usual rate: Adam at 0.000001. A warm-up may begin there, so it is a note."""
TAKEN_AWAY: Final = 1 / 50
"""What a schedule has left of the highest rate by half of the run."""


class Slow(NamedTuple):
    """A training whose weights hardly move."""

    way: float
    """In all, as planned, of the kernel that moves most, in shares of its length."""
    moved: motion.Motion
    factor: float
    """The rate over the usual one. NaN: not known."""


def slow(case: Case) -> Slow | None:
    """`None`: the weights move, or nothing is wrong with the training, or it is not the steps' length."""
    moved = motion.motion(case)
    if moved is None or not moved.fastest > STILL or not case.seasoned or case.non_finite_from is not None:
        return None
    way, factor = moved.travelled + moved.ahead, motion.rate_factor(case)
    name = case.optimizer.name if case.optimizer else ""
    if factor > SMALL_FACTOR and name not in MAY_SIT_STILL:
        return None  # weights that are huge, or too few steps: no matter of the rate
    if (
        way > (LITTLE if factor <= SMALL_FACTOR else HARDLY)
        or case.step - case.changed_at + _left(case) < FEW_STEPS
    ):
        return None
    if not (trouble(case) or crawling(case)) or vanishes(case):
        return None
    return Slow(way, moved, factor)


def crawling(case: Case) -> bool:
    """Whether the loss of a seasoned training has fallen by less than a tenth."""
    progress = case.progress
    return (
        case.seasoned
        and not case.solved
        and math.isfinite(progress.first)
        and progress.first - progress.level < 0.1 * abs(progress.first)
    )


def vanishes(case: Case) -> bool:
    """Whether the first layers get next to nothing of the last one's gradient."""
    decay = motion.gradient_decay(case)
    return decay is not None and decay[1] < 1e-3 * decay[3]


def lacks(case: Case) -> str:
    """How far steps move the weights, or the rate of each step."""
    if _far_out(case):
        return ""
    if motion.motion(case) is None and case.per_step("learning_rate") is None:
        return "neither updates of the weights nor learning rates were recorded since the last change"
    return case.too_early


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    if case.too_early:
        return [_by_rate_alone(case)] if _far_out(case) else []
    found = slow(case)
    if found is not None:
        return [_hardly_moving(case, found)]
    taken = _taken_away(case)
    if taken is not None:
        return [taken]
    shows = _far_out(case) and motion.motion(case) is None and (crawling(case) or trouble(case))
    return [_by_rate_alone(case)] if shows else []


def _far_out(case: Case) -> bool:
    """Whether the rate alone, before anything came of it, is below what the optimizer is ever run at."""
    name = case.optimizer.name if case.optimizer else ""
    return motion.rate_factor(case) <= FAR_OUT and name not in MAY_SIT_STILL - {"sgd"}


def _by_rate_alone(case: Case) -> Finding:
    """Before anything came of it, or where how far the weights move is not measured."""
    name = case.optimizer.class_name if case.optimizer else "the optimizer"
    rate, factor = case.learning_rate or 0.0, motion.rate_factor(case)
    usual = motion.in_words(motion.USUAL_RATES[case.optimizer.name] if case.optimizer else 1e-3)
    shows = crawling(case) or bool(trouble(case))
    return Finding(
        rule="learning-rate-low",
        title="The learning rate is far below the usual",
        severity="warning" if shows else "note",
        confidence=0.8 if shows else 0.4,
        start=case.changed_at,
        stop=case.step,
        evidence=(
            Evidence(
                f"the rate of {rate:.3g} is {factor:.2g} times what {name} is usually run at",
                None,
                {"learning_rate": rate, "of_the_usual": factor},
            ),
        ),
        explanation="With such a rate it takes thousands of times as many steps to get anywhere.",
        remedies=(Remedy(f"Raise the rate to {usual}", f"lr {usual}"),),
    )


def _hardly_moving(case: Case, found: Slow) -> Finding:
    rate, pairs = case.learning_rate, motion.pairs(case)
    evidence = [
        Evidence(
            f"a step moves kernels by {found.moved.newest:.1e} of their length (median; about 1e-3 is often healthy)",
            case.step - 1,
            {"update_ratio": found.moved.newest},
        ),
        Evidence(
            f"over {case.step:,} steps even the fastest went at most {found.moved.travelled:.1%} of its length, and "
            f"{found.way:.1%} by the planned end",
            case.step - 1,
            {"travelled": found.moved.travelled, "way": found.way},
        ),
    ]
    tested = _suggested(case)
    if tested is not None:
        evidence.append(tested[1])
    if rate is not None and math.isfinite(found.factor):
        name = case.optimizer.class_name if case.optimizer else "the optimizer"
        evidence.append(
            Evidence(
                f"the rate of {rate:.3g} is {found.factor:.2g} times what {name} is usually run at",
                case.step - 1,
                {"learning_rate": rate, "of_the_usual": found.factor},
            )
        )
    coherent = pairs is not None and pairs.cosine > 0.5
    if pairs is not None and coherent:
        text = f"successive gradients point the same way (cosine {pairs.cosine:.2f}): far more of the same is safe"
        evidence.append(Evidence(text, case.step - 1, {"cosine": pairs.cosine}))
    confidence = 0.45 if not found.factor <= SMALL_FACTOR else 0.85 if found.way <= HARDLY else 0.65
    if found.way <= HARDLY and coherent:
        confidence += 0.07
    if tested is not None:
        confidence = max(confidence, 0.9)
    optimizer = case.optimizer.name if case.optimizer else ""
    if optimizer in ("adadelta", "adagrad", "ftrl"):
        confidence = min(confidence, 0.55)  # there it is Keras' default that is small: `unsuitable-optimizer`
    return Finding(
        rule="learning-rate-low",
        title="The learning rate is too low",
        severity="warning",
        confidence=confidence,
        start=case.changed_at,
        stop=case.step,
        evidence=tuple(evidence),
        explanation="Each step changes the weights by so little that they will hardly have left their starting "
        "values when the training is over.",
        remedies=_raise(case, found),
    )


def _suggested(case: Case) -> tuple[float, Evidence] | None:
    """The rate that a range test suggests, if it is far above the one at work."""
    tested, rate = experiments.range_test(case), case.learning_rate
    if tested is None or rate is None:
        return None
    trial, found = tested
    if found.suggested is None or found.suggested < MUCH_HIGHER * rate:
        return None
    text = f"in a range test from step {trial.start:,} the loss fell fastest at {found.suggested:.2g}, not {rate:.2g}"
    numbers = {"suggested": found.suggested, "learning_rate": rate}
    return found.suggested, Evidence(text, trial.start, numbers, by_trial=True)


def _raise(case: Case, found: Slow) -> tuple[Remedy, ...]:
    optimizer, rate = case.optimizer, case.learning_rate or 1e-5
    usual = motion.USUAL_RATES.get(optimizer.name, 1e-3) if optimizer else 1e-3
    tested = _suggested(case)
    wanted = tested[0] if tested else usual if found.factor <= SMALL_FACTOR else 10 * rate
    class_name = optimizer.class_name if optimizer else "Adam"
    return (
        Remedy(f"Raise the rate to {wanted:.3g}", f"lr {motion.in_words(wanted)}"),
        *(
            []
            if tested
            else [Remedy("Find the largest rate that works", f"trial lr {rate:.1e}..1 for 60 steps")]
        ),
        Remedy(
            "In the script",
            code=f"model.compile(optimizer=keras.optimizers.{class_name}(learning_rate={wanted:.3g}), …)",
        ),
    )


def _taken_away(case: Case) -> Finding | None:
    """A schedule, or a callback, that made the rate tiny while there was much left to learn."""
    rates = case.per_step("learning_rate")
    begin = case.changed_at
    if rates is None or case.progress.trend not in ("flat", "unclear") or not case.seasoned or case.solved:
        return None
    done = len(rates) - begin
    if case.session.ended or not case.session.total_steps:
        planned = done
    else:
        planned = max(done, case.session.total_steps - begin)
    half = begin + planned // 2
    places = np.linspace(begin, len(rates) - 1, motion.BLOCKS).astype(np.int64)  # a rate has no noise
    seen = rates.values[places].astype(np.float64)
    highest = float(np.fmax.reduce(seen))  # NaN does not count
    now = float(rates.values[min(half, len(rates) - 1)])
    if not (highest > 0 and now <= TAKEN_AWAY * highest) or _warming_up(seen):
        return None
    behind = case.shortfall is not None and case.shortfall > 0.1
    if not (case.guessing or behind or (case.lift is not None and case.lift < 0.8)):
        return None
    below = int(places[np.argmax(seen <= TAKEN_AWAY * highest)])
    return Finding(
        rule="learning-rate-low",
        title="The schedule has taken the learning rate away",
        severity="warning",
        confidence=0.6,
        start=min(below, case.step - 1),
        stop=case.step,
        evidence=(
            Evidence(
                f"the rate fell from {highest:.3g} to {now:.3g} by step {min(half, len(rates) - 1):,} of "
                f"{begin + planned:,} planned",
                begin,
                {"highest_rate": highest, "learning_rate": now},
            ),
            Evidence(
                f"loss {case.progress.level:.4g}, trend {case.progress.trend}",
                case.step - 1,
                {"loss": case.progress.level},
            ),
        ),
        explanation="The learning rate has become so small that the rest of the training cannot change the model any "
        "more, and it has not learned what there is to learn.",
        remedies=(
            Remedy("Set the rate back", f"lr {motion.in_words(highest)}"),
            Remedy("Let it fall over the whole run", f"schedule cosine decay_steps={max(planned, 1)}"),
        ),
    )


def _warming_up(seen: Float64) -> bool:
    """Whether the rate rises in the end."""
    return bool(seen[-1] > 2 * np.nanmin(seen))


def _left(case: Case) -> int:
    return 0 if case.session.ended else max(0, (case.session.total_steps or 0) - case.step)


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)


def example(
    ratio: float,
    loss: Float64,
    *,
    rate: float,
    optimizer: str = "adam",
    accuracy: float = 0.5,
    decay: float = 1.0,
    rates: Float64 | None = None,
) -> Session:
    """A training of 400 steps whose steps move each kernel by that share of its length.

    Args:
        ratio: ‖Δw‖ / ‖w‖.
        loss: of each step.
        rate: the learning rate.
        optimizer: its name.
        accuracy: of each step, with some noise.
        decay: mean |gradient| of the first kernel over that of the last.
        rates: of each step, where they differ.
    """
    labels = ("dense/kernel", "dense_1/kernel", "dense_2/kernel", "dense_3/kernel")
    gradients = [0.01 * decay ** (1 - place / 3) for place in range(4)]
    return session_of(
        {
            "loss": loss,
            "accuracy": flat(accuracy, noise=0.05),
            "learning_rate": np.full(400, rate) if rates is None else rates,
            "examples": np.full(400, 32.0),
        },
        timing=("examples",),
        optimizer=optimizer,
        task="binary",
        layers=(
            dense("dense", 64),
            dense("dense_1", 64),
            dense("dense_2", 64),
            dense("dense_3", 1, "sigmoid"),
        ),
        output=output_of("dense_3", 1, "sigmoid", "binary_crossentropy"),
        tables={
            "update_ratio": Sampled(_STEPS, {**dict.fromkeys(labels, ratio), "dense_3/bias": 10 * ratio}),
            "gradient_mean_abs": Sampled(_STEPS, dict(zip(labels, gradients, strict=True))),
            "gradient_pair": Sampled(
                _STEPS, {"cosine": 0.7, "signal": 1.0, "noise": 40.0, "noise_scale": 40.0}, (), "values"
            ),
            "target_counts": Sampled(_STEPS, {"0": 16, "1": 16}, (), "histogram"),
        },
        epochs=[{"loss": 0.69}] * 8,
        ended=True,
    )


def _crawls() -> Float64:
    return np.asarray(flat(0.693, noise=0.005) - np.arange(400) * 2e-5)


def _range_tested(session: Session) -> Session:
    """After a range test in which the loss fell about a rate of 0.002."""
    rates = np.geomspace(1e-6, 1.0, 60)
    losses = 0.69 - 0.4 / (1 + (2e-3 / rates) ** 3)
    result = TrialResult(
        text="lr 1e-6..1", losses=losses.astype("<f4").tobytes(), score=0.3, low=0.3, high=0.3
    )
    trial = TrialEnded(
        id="1", text="trial", start=300, results=(result,), rates=rates.astype("<f4").tobytes()
    )
    session.apply(trial)
    return session


HEALTHY = {
    "the rate is small and the model learns": lambda: example(1e-4, falling(), rate=1e-5, accuracy=0.95),
    "steps are of ordinary length and the loss is stuck": lambda: example(2e-3, flat(0.69), rate=1e-3),
    "nothing moves because no gradient gets to the first layers": lambda: example(
        1e-5, flat(0.69), rate=1e-5, decay=1e-6
    ),
    "no weight moves at all": lambda: example(0.0, flat(0.69), rate=1e-3),
    "the rate falls to nothing when all is learned": lambda: example(
        2e-3, falling(), rate=1e-3, accuracy=0.98, rates=1e-3 * np.exp(-np.arange(400) / 40)
    ),
}
AILING = {
    "Adam at 0.0000001, before the first step": lambda: session_of({}, settings={"learning_rate": 1e-7}),
    "Adam at 0.000002": lambda: example(1e-5, flat(0.69), rate=2e-6),
    "the loss falls, so slowly that it comes to nothing": lambda: example(3e-5, _crawls(), rate=1e-5),
    "in a range test the loss fell fastest at a thousand times the rate": lambda: _range_tested(
        example(1e-5, flat(0.69), rate=2e-6)
    ),
    "plain SGD at 0.00005": lambda: example(4e-6, _crawls(), rate=5e-5, optimizer="sgd"),
    "the schedule has halved the rate ten times by half of the run": lambda: example(
        2e-3, flat(0.5), rate=1e-3, accuracy=0.75, rates=1e-3 * np.exp(-np.arange(400) / 20)
    ),
}

EXPLAINS = frozenset({"plateau", "too-short", "underfitting", "input-ignored"})

RULE = Rule("learning-rate-low", check, lacks, EXPLAINS, HEALTHY, AILING)
