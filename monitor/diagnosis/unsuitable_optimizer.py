"""Finds an optimizer that sits still where another moves.

Sees: plain SGD at a usual rate, or Adadelta, Adagrad or Ftrl at Keras' small defaults, whose steps move the weights
by next to nothing while gradients are there; or the end of a trial, from one state and on the same batches, that
another optimizer won beyond chance.

Hurts because the size of these optimizers' steps depends on the gradient's (SGD) or on a rate that the papers set
ten to a thousand times higher (Adadelta: 1, where Keras has 0.001; Adagrad: 0.01). Try Adam or SGD with momentum,
best by a trial.

Source: Zeiler 2012 (arXiv 1212.5701); Duchi et al. 2011; Keras' own documentation of Adadelta says that 1.0 matches
the paper. Schmidt et al. 2021 (arXiv 2007.01547) find no optimizer that is best everywhere, so the trial decides.

Wrong where the rate alone is too small: with a rate below a fifth of the usual one `learning-rate-low` tells. Silent
where gradients vanish on their way, and where updates are not measured.
"""

from __future__ import annotations

import math
from typing import Final

from client_callback.wire import commands
from client_callback.wire.protocol import TrialEnded, TrialResult
from monitor.diagnosis import experiments, learning_rate_low, motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import falling, flat, with_trial
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.learning_rate_low import Slow
from monitor.session import Session

STILL_AT_DEFAULT: Final = frozenset({"adadelta", "adagrad", "ftrl"})
"""Those whose default in Keras is a tenth and less of what their papers use."""
USUAL: Final = 0.5
"""Of the rate in the papers: from there on those others are not to blame for their defaults."""
UNLIKE: Final = 10.0
"""Times that one kernel moves faster than another: one rate cannot fit both, which adaptive optimizers mend."""


def lacks(case: Case) -> str:
    """The optimizer, and either how far its steps go or a trial."""
    if case.optimizer is None:
        return "the optimizer is not known"
    if _won(case) is not None:
        return ""
    if motion.motion(case) is None:
        return "updates of the weights were not sampled, or not since the last change"
    return case.too_early


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    won, found = _won(case), learning_rate_low.slow(case)
    if won is not None:
        return [_by_trial(case, *won)]
    name, settings = (case.optimizer.name, case.optimizer.settings) if case.optimizer else ("", {})
    if found is None or not math.isfinite(found.factor):
        return []
    if name == "sgd" and not settings.get("momentum") and found.factor > learning_rate_low.SMALL_FACTOR:
        return [_sits_still(case, found, 0.7 if found.way > learning_rate_low.HARDLY else 0.8)]
    if name in STILL_AT_DEFAULT and found.factor < USUAL:
        return [_sits_still(case, found, 0.85)]
    return []


def _won(case: Case) -> tuple[TrialEnded, TrialResult] | None:
    """The newest trial since the last change that another optimizer won, and that candidate."""
    for trial, best, instruction in experiments.winners(case):
        if isinstance(instruction, commands.SwitchOptimizer) and (
            case.optimizer is not None and instruction.name != case.optimizer.name
        ):
            return trial, best
    return None


def _by_trial(case: Case, trial: TrialEnded, best: TrialResult) -> Finding:
    others = ", ".join(
        f"{one.text} {one.score:.4g}" if math.isfinite(one.score) else f"{one.text}: {one.note or 'diverged'}"
        for one in trial.results[1:4]
    )
    name = case.optimizer.class_name if case.optimizer else "the optimizer"
    return Finding(
        rule="unsuitable-optimizer",
        title=f"{name} does worse here than another optimizer",
        severity="warning",
        confidence=0.9,
        start=min(trial.start, case.step - 1),
        stop=case.step,
        evidence=(
            Evidence(
                f"in a trial on the same batches from step {trial.start:,}, {best.text} came to a loss of "
                f"{best.score:.4g} ({best.low:.4g} to {best.high:.4g}); {others}",
                trial.start,
                {"loss": best.score},
                by_trial=True,
            ),
        ),
        explanation=f"From the very same weights and on the same batches, another optimizer learns clearly more than "
        f"{name} does.",
        remedies=(Remedy("Go on with the winner of the trial", best.text),),
    )


def _sits_still(case: Case, found: Slow, confidence: float) -> Finding:
    optimizer = case.optimizer
    assert optimizer is not None  # noqa: S101 (`lacks` has seen to it)
    rate = case.learning_rate or math.nan
    evidence = [
        Evidence(
            f"at its rate of {rate:.3g}, {optimizer.class_name} moves kernels by {found.moved.newest:.1e} of their "
            "length a step (about 1e-3 is often healthy)",
            case.step - 1,
            {"learning_rate": rate, "update_ratio": found.moved.newest},
        ),
        Evidence(
            f"at most {found.moved.travelled:.1%} over all {case.step:,} steps, {found.way:.1%} by the planned end",
            case.step - 1,
            {"travelled": found.moved.travelled, "way": found.way},
        ),
    ]
    gradient = _gradient(case)
    if gradient is not None:
        evidence.append(gradient)
    if found.moved.fastest > UNLIKE * found.moved.newest > 0:
        evidence.append(
            Evidence(
                f"the fastest kernel moves {found.moved.fastest / found.moved.newest:.0f} times the median",
                case.step - 1,
                {"fastest": found.moved.fastest},
            )
        )
    return Finding(
        rule="unsuitable-optimizer",
        title=f"{optimizer.class_name} sits still here",
        severity="warning",
        confidence=confidence,
        start=case.changed_at,
        stop=case.step,
        evidence=tuple(evidence),
        explanation=f"There is a gradient to follow, but {optimizer.class_name} makes such short steps of it that "
        "the weights hardly leave their starting values.",
        remedies=_remedies(case),
    )


def _gradient(case: Case) -> Evidence | None:
    norms = case.blocks("grad_norm")
    if norms is None:
        return None
    newest = float(norms.means[-1])
    return Evidence(f"its norm is {newest:.2g} nevertheless", case.step - 1, {"grad_norm": newest})


def _remedies(case: Case) -> tuple[Remedy, ...]:
    name = case.optimizer.name if case.optimizer else ""
    paper = motion.USUAL_RATES.get(name, 0.01)
    rate = Remedy("Or the rate of its paper", f"lr {motion.in_words(paper)}")
    momentum = Remedy("Or give it momentum", "optimizer sgd learning_rate=0.05 momentum=0.9")
    trial = (
        'trial keep "optimizer adam learning_rate=0.001" "optimizer sgd learning_rate=0.05 momentum=0.9" '
        "for 100 steps"
    )
    return (
        Remedy("Switch to Adam", "optimizer adam learning_rate=0.001"),
        momentum if name == "sgd" else rate,
        Remedy("Let a trial decide", trial),
        Remedy("In the script", code="model.compile(optimizer=keras.optimizers.Adam(learning_rate=1e-3), …)"),
    )


def _after_trial(*, tells: bool, ratio: float = 2e-3) -> Session:
    session = learning_rate_low.example(ratio, flat(0.69), rate=0.01, optimizer="sgd")
    return with_trial(session, {"optimizer adam learning_rate=0.001": 0.41, "keep": 0.69}, tells=tells)


HEALTHY = {
    "SGD learns": lambda: learning_rate_low.example(
        1e-4, falling(), rate=0.01, optimizer="sgd", accuracy=0.95
    ),
    "SGD moves the weights, to no avail": lambda: learning_rate_low.example(
        2e-3, flat(0.69), rate=0.01, optimizer="sgd"
    ),
    "the rate is far below what SGD is run at": lambda: learning_rate_low.example(
        4e-6, flat(0.69), rate=5e-5, optimizer="sgd"
    ),
    "no gradient gets to the first layers": lambda: learning_rate_low.example(
        1e-5, flat(0.69), rate=0.01, optimizer="sgd", decay=1e-6
    ),
    "a trial that chance may have decided": lambda: _after_trial(tells=False),
}
AILING = {
    "Adadelta at Keras' default": lambda: learning_rate_low.example(
        1e-5, flat(0.69), rate=1e-3, optimizer="adadelta"
    ),
    "Adagrad at Keras' default": lambda: learning_rate_low.example(
        2e-4, flat(0.69), rate=1e-3, optimizer="adagrad"
    ),
    "plain SGD on small gradients": lambda: learning_rate_low.example(
        4e-5, flat(0.69), rate=0.01, optimizer="sgd"
    ),
    "a trial that Adam has won": lambda: _after_trial(tells=True),
}

EXPLAINS = frozenset({"learning-rate-low", "plateau", "too-short", "underfitting", "input-ignored"})

RULE = Rule("unsuitable-optimizer", check, lacks, EXPLAINS, HEALTHY, AILING)
