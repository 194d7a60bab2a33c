"""Finds a learning rate so high that steps overshoot.

Sees: that steps are long beside the weights (‖Δw‖ / ‖w‖ of a tenth and more at the beginning), or that the rate is
far above what the optimizer is usually run at, together with harm that long steps do (before it can show: a note):
the loss has jumped to several
times its first value, stands above that of guessing, or became NaN after growing; units died after the first step;
successive gradients point against each other; or a trial, on the same batches, went better at a lower rate.

Hurts because a step that is longer than the stretch over which the gradient holds makes things worse instead of
better, and may throw the weights where no gradient is left. Try a tenth of the rate, a warm-up, or a schedule. If
units have died, no rate helps from here: back to the start, with the gentler rate.

Source: SageMaker Debugger and Karpathy's CS231n notes call an update ratio of 1e-1 too high and 1e-3 healthy; Cohen
et al. 2021 (arXiv 2103.00065) on steps at the edge of stability; Goyal et al. 2017 (arXiv 1706.02677) on warm-up.

Wrong when something else makes gradients huge (unscaled inputs or targets, weights drawn too large) under SGD, whose
steps are as long as the gradient: at a usual rate this rule then stands behind `exploding-gradient`. A training that
goes well gets no alarm, however high its rate, unless a trial has shown that a lower one does better.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire import commands
from client_callback.wire.protocol import Float64, TrialEnded, TrialResult
from monitor.diagnosis import experiments, motion
from monitor.diagnosis.case import FEWEST_STEPS, Case
from monitor.diagnosis.examples import (
    Sampled,
    dense,
    falling,
    flat,
    output_of,
    session_of,
    with_trial,
    with_value,
)
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

LONG: Final = 0.1
"""‖Δw‖ / ‖w‖ of a step, median over the kernels: a hundred times what CS231n's notes call healthy."""
LONG_FOR_LONG: Final = 0.01
"""The same in the newest rows: weights that turn over every hundred steps do not settle."""
HIGH_FACTOR: Final = 8.0
"""Times the usual rate: Adam at 0.01 counts."""
HIGH_FACTOR_SGD: Final = 50.0
"""Of plain SGD's 0.01, with what momentum adds: 0.05 with momentum 0.9 is usual still."""
JUMP: Final = 3.0
"""Times the first loss, or that of guessing, as the mean over a 64th of the run."""
ABOVE_GUESSING: Final = 1.15
"""Times the loss of guessing, at which a seasoned training still stands."""
DIED: Final = 0.5
"""Share of a layer's units that died after the first step."""
FAR_OUT: Final = 100.0
"""Times the usual rate: Adam at 0.1."""
FAR_OUT_SGD: Final = 1_000.0
"""Plain SGD may well be run at 1 on normalised networks."""
ORDINARY: Final = 2e-3
"""‖Δw‖ / ‖w‖ of a step that is no longer than usual."""
AGAINST: Final = -0.3
"""Mean cosine of successive gradients; noise alone gives about 0. Where only the output's bias still learns, batches
without replacement gave -0.2 to -0.35, so this counts beside other harm alone."""
ROSE: Final = 3.0
"""Times the rate at first, from which on it is told that it has risen."""
RESTLESS: Final = 0.25
"""Standard deviation of the loss about its trend, in shares of its level, of a training that does not settle."""


class _Harm(NamedTuple):
    evidence: Evidence
    weight: float
    """What it adds to the confidence."""


def lacks(case: Case) -> str:
    """How far steps move the weights, or the rate."""
    if _lower_won(case) is not None:
        return ""
    if motion.motion(case) is None and math.isnan(motion.rate_factor(case)):
        return "neither updates of the weights nor the rate of a known optimizer were recorded"
    few = case.step - case.changed_at < FEWEST_STEPS and not _far_out(case)
    return f"too early to tell: fewer than {FEWEST_STEPS} steps since the last change" if few else ""


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    won = _lower_won(case)
    if won is not None:
        return [_finding(case, [_of_trial(*won)], 0.9, won[0].start)]
    if case.step - case.changed_at < FEWEST_STEPS:
        return [_before_it_shows(case)] if _far_out(case) else []
    if not (trouble(case) or _wild(case)) or case.solved:
        return []
    factor, moved = motion.rate_factor(case), motion.motion(case)
    long = moved is not None and moved.first >= LONG
    restless = moved is not None and moved.newest >= LONG_FOR_LONG
    scaled = case.optimizer is not None and case.optimizer.name in motion.SCALED_BY_GRADIENT
    high = factor >= (HIGH_FACTOR_SGD if scaled else HIGH_FACTOR)
    harm = _harm(case, settles=not restless)
    if moved is not None and moved.first < ORDINARY and moved.newest < ORDINARY and not _wild(case):
        return []  # whatever the rate, steps are short
    if not harm or not (long or high or (restless and not scaled)):
        return []
    evidence = [_of_steps(case, moved, factor), *(one.evidence for one in harm)]
    confidence = 0.45 + 0.1 * (long and high) + sum(one.weight for one in harm)
    if not long and not high:
        confidence = min(confidence, 0.55)
    elif scaled and not high:
        confidence = min(confidence, 0.6)  # at a usual rate it is the gradient that is too large
    onset = min((one.evidence.step for one in harm if one.evidence.step is not None), default=0)
    return [_finding(case, evidence, min(confidence, 0.9), onset)]


def _far_out(case: Case) -> bool:
    """Whether the rate alone, before anything came of it, is beyond what the optimizer is ever run at."""
    scaled = case.optimizer is not None and case.optimizer.name in motion.SCALED_BY_GRADIENT
    return motion.rate_factor(case) >= (FAR_OUT_SGD if scaled else FAR_OUT)


def _before_it_shows(case: Case) -> Finding:
    rate = motion.in_words(motion.gentler_rate(case))
    return Finding(
        rule="learning-rate-high",
        title="The learning rate is far above the usual",
        severity="note",
        confidence=0.4,
        start=case.changed_at,
        stop=case.step,
        evidence=(_of_steps(case, None, motion.rate_factor(case)),),
        explanation="At such a rate steps are likely to overshoot what they aim at.",
        remedies=(Remedy(f"Lower the rate to {rate}", f"lr {rate}"),),
    )


def _wild(case: Case) -> bool:
    """Whether the loss stands far above where it began, for all that is known of what it should be."""
    level, reference = case.progress.level, motion.reference_loss(case)
    return case.step - case.changed_at >= FEWEST_STEPS and level > JUMP * reference > 0


def _harm(case: Case, *, settles: bool) -> list[_Harm]:
    found = [_jump(case), _above_guessing(case), _died(case)]
    if not settles:
        found.append(_restless(case))
    if any(found):
        found.append(_against(case))
    return [one for one in found if one is not None]


def _jump(case: Case) -> _Harm | None:
    reference, highest = motion.reference_loss(case), motion.highest_loss(case)
    if highest is None or not highest[0] > JUMP * reference > 0:
        return None
    value, step = highest
    text = (
        f"the loss rose to {value:.4g} about step {step:,}, from {reference:.4g} at the start or by guessing"
    )
    if case.non_finite_from is not None:
        text += f", and was not finite from step {case.non_finite_from:,} on"
    return _Harm(Evidence(text, step, {"highest_loss": value, "first_loss": reference}), 0.25)


def _above_guessing(case: Case) -> _Harm | None:
    guess, level = motion.guessing_loss(case), case.progress.level
    if not case.seasoned or not level - case.penalty > ABOVE_GUESSING * guess > 0:
        return None
    text = f"loss {level:.4g} after {case.step:,} steps, where guessing gives {guess:.4g}"
    return _Harm(Evidence(text, case.step - 1, {"loss": level, "guessing": guess}), 0.15)


def _died(case: Case) -> _Harm | None:
    mostly = 0.7 if (case.batch_size or 0) >= 16 else 0.97
    dead = [d for d in motion.dead_layers(case, mostly) if d.share - d.at_first >= 0.2 and d.at_first < DIED]
    if not dead:
        return None
    worst = max(dead, key=lambda one: one.share)
    text = (
        f"{worst.share:.0%} of the units of {worst.layer.name} are dead, most since step {worst.since:,}; "
        f"{worst.at_first:.0%} were silent at first"
    )
    return _Harm(Evidence(text, worst.since, {"dead_units": worst.share}), 0.25)


def _against(case: Case) -> _Harm | None:
    pairs = motion.pairs(case)
    if pairs is None or pairs.rows < 4 or pairs.cosine > AGAINST:
        return None
    text = f"successive gradients point against each other (mean cosine {pairs.cosine:.2f}): steps overshoot"
    return _Harm(Evidence(text, case.step - 1, {"cosine": pairs.cosine}), 0.1)


def _restless(case: Case) -> _Harm | None:
    progress = case.progress
    if progress.trend == "falling" or not progress.noise > RESTLESS * abs(progress.level):
        return None
    text = f"the loss does not settle: {progress.level:.3g} ± {progress.noise:.2g} from step to step"
    return _Harm(Evidence(text, case.step - 1, {"loss": progress.level, "noise": progress.noise}), 0.1)


def _of_steps(case: Case, moved: motion.Motion | None, factor: float) -> Evidence:
    parts: list[str] = []
    numbers: dict[str, float] = {}
    rate = case.learning_rate
    if rate is not None and math.isfinite(factor) and case.optimizer is not None:
        with_momentum = " with its momentum" if case.optimizer.settings.get("momentum") else ""
        parts.append(
            f"the rate of {rate:.3g}{with_momentum} is {factor:.3g} times what {case.optimizer.class_name} is "
            "usually run at"
        )
        numbers |= {"learning_rate": rate, "of_the_usual": factor}
        if (began := _rate_at_first(case)) is not None and rate >= ROSE * began:
            parts.append(
                f"it was {began:.3g} at step {case.changed_at:,}: a schedule or a callback raises it"
            )
            numbers["first_rate"] = began
    if moved is not None:
        parts.append(
            f"a step moved kernels by up to {moved.first:.1%} of their length at first (healthy: about 0.1 %)"
        )
        numbers["update_ratio"] = moved.first
    return Evidence("; ".join(parts), moved.start if moved else case.changed_at, numbers)


def _rate_at_first(case: Case) -> float | None:
    """Since the last change by a command. `None`: not recorded."""
    rates = case.per_step("learning_rate")
    if rates is None or len(rates) <= case.changed_at:
        return None
    first = float(rates.values[case.changed_at])
    return first if first > 0 else None


def _lower_won(case: Case) -> tuple[TrialEnded, TrialResult] | None:
    """The newest trial since the last change that a lower rate won against the present one, and that candidate."""
    rate = case.learning_rate
    for trial, best, instruction in experiments.winners(case):
        lower = (isinstance(instruction, commands.ScaleRate) and instruction.factor < 1) or (
            isinstance(instruction, commands.SetRate) and rate is not None and instruction.value < rate
        )
        if lower:
            return trial, best
    return None


def _of_trial(trial: TrialEnded, best: TrialResult) -> Evidence:
    others = ", ".join(f"{one.text} {one.score:.4g}" for one in trial.results[1:4])
    text = f"in a trial on the same batches from step {trial.start:,}, {best.text} came to {best.score:.4g}; {others}"
    return Evidence(text, trial.start, {"loss": best.score})


def _finding(case: Case, evidence: list[Evidence], confidence: float, onset: int) -> Finding:
    return Finding(
        rule="learning-rate-high",
        title="The learning rate is too high",
        severity="critical" if case.non_finite_from is not None else "warning",
        confidence=confidence,
        start=max(0, min(onset, case.step - 1)),
        stop=case.step,
        evidence=tuple(evidence),
        explanation="Each step changes the weights by so much that it jumps past what it aims at, and the model gets "
        "worse instead of better.",
        remedies=_remedies(case),
    )


def _remedies(case: Case) -> tuple[Remedy, ...]:
    rate = motion.gentler_rate(case)
    name = case.optimizer.class_name if case.optimizer else "Adam"
    lost = case.non_finite_from is not None or bool(motion.dead_layers(case, 0.7)) or _wild(case)
    written = motion.in_words(rate)
    adaptive = case.optimizer is not None and case.optimizer.name not in motion.SCALED_BY_GRADIENT
    gentle_sgd = Remedy(
        "Back to the start, with small steps that follow the gradient's size",
        "optimizer sgd learning_rate=1e-4 from start",
    )
    back = Remedy(
        f"From these weights no rate helps: back to the start, with {written}", f"lr {written} from start"
    )
    in_script = Remedy(
        "In the script", code=f"model.compile(optimizer=keras.optimizers.{name}(learning_rate={written}), …)"
    )
    if not lost:
        warm_up = f"schedule warmup warmup_steps=200 warmup_target={written}"
        return Remedy("A tenth of the rate", "lr /10"), back, Remedy("Or begin gently", warm_up), in_script
    return (back, *((gentle_sgd,) if adaptive else ()), in_script)


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)
_COLUMNS = ("zero_share", "saturated_share", "mean", "std", "zero_units")


def example(
    ratio: float,
    loss: Float64,
    *,
    rate: float,
    optimizer: str = "adam",
    accuracy: float = 0.5,
    dead: float = 0.1,
    cosine: float = 0.05,
) -> Session:
    """A training of 400 steps, the first of which move kernels by that share of their length.

    Args:
        ratio: ‖Δw‖ / ‖w‖ at first; it falls with the steps as Adam's does.
        loss: of each step.
        rate: the learning rate.
        optimizer: its name.
        accuracy: of each step, with some noise.
        dead: share of dead units from step 7 on.
        cosine: of successive gradients.
    """
    fading = [ratio / (1 + place) for place in range(9)]
    dying = np.array([0.1, 0.1, 0.1, *[dead] * 6])
    rows = [[share, 0.0, 0.3, 0.5, 64 * share] for share in dying.tolist()]
    return session_of(
        {
            "loss": loss,
            "accuracy": flat(accuracy, noise=0.05),
            "learning_rate": np.full(400, rate),
            "examples": np.full(400, 32.0),
        },
        timing=("examples",),
        optimizer=optimizer,
        task="binary",
        layers=(dense("dense", 64), dense("dense_1", 1, "sigmoid")),
        output=output_of("dense_1", 1, "sigmoid", "binary_crossentropy"),
        tables={
            "update_ratio": Sampled(_STEPS, dict.fromkeys(("dense/kernel", "dense_1/kernel"), fading)),
            "activations": Sampled(
                _STEPS, {"dense": rows, "dense_1": [[0, 0, 0.5, 0.1, 0]] * 9}, _COLUMNS, "layers"
            ),
            "gradient_pair": Sampled(
                _STEPS, {"cosine": cosine, "signal": 1.0, "noise": 40.0, "noise_scale": 40.0}, (), "values"
            ),
            "target_counts": Sampled(_STEPS, {"0": 16, "1": 16}, (), "histogram"),
        },
        epochs=[{"loss": 0.69}] * 8,
        ended=True,
    )


def _jumps(level: float) -> Float64:
    return np.concatenate([[0.75], flat(40.0, 19, 5.0), flat(level, 380)])


HEALTHY = {
    "long steps, and the model learns": lambda: example(0.2, falling(), rate=0.01, accuracy=0.97),
    "the loss jumps at first, and the model learns": lambda: example(
        0.2, _jumps(0.1), rate=0.01, accuracy=0.97
    ),
    "steps of ordinary length, stuck for another reason": lambda: example(0.01, flat(0.69), rate=1e-3),
    "the loss begins far above that of guessing and falls": lambda: example(
        0.01, falling(start=40.0), rate=1e-3
    ),
}
AILING = {
    "Adam at 0.3, before the first step": lambda: session_of({}, settings={"learning_rate": 0.3}),
    "Adam at 0.3: the loss jumps and all units die": lambda: example(0.9, _jumps(0.7), rate=0.3, dead=1.0),
    "Adam at 0.01 on large inputs": lambda: example(0.2, _jumps(0.69), rate=0.01, dead=0.98),
    "the loss stays above that of guessing": lambda: example(0.5, flat(1.4, noise=0.4), rate=0.1),
    "SGD at 3: the loss grows until it is NaN": lambda: example(
        0.7, with_value(np.asarray(0.7 * 1.2 ** np.arange(400.0)), 200, math.nan), rate=3.0, optimizer="sgd"
    ),
    "a trial that a tenth of the rate has won": lambda: with_trial(
        example(0.02, flat(0.6), rate=0.01, accuracy=0.65), {"lr x0.1": 0.41, "keep": 0.6}
    ),
}

EXPLAINS = frozenset(
    {
        "non-finite",
        "dead-units",
        "oscillation",
        "plateau",
        "input-ignored",
        "underfitting",
        "vanishing-gradient",
    }
)

RULE = Rule("learning-rate-high", check, lacks, EXPLAINS, HEALTHY, AILING)
