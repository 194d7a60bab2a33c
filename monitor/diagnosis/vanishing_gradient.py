"""Finds a gradient that gets lost on its way back to the first layers.

Sees: the mean |gradient| of each kernel in the first sampled steps. Where the first half of the layers gets less
than a thousandth of what the last one gets, without being cut off (then it is exactly 0), each layer on the way has
passed on only a part of it.

Hurts because the first layers stay what they were drawn as, and the last ones can only work with what these happen
to compute. Try activations whose slope is about 1 (relu, elu, swish), an initializer that fits them (he_normal),
batch normalisation, or connections around layers.

Source: Hochreiter 1991; Glorot & Bengio 2010; AutoTrainer (ICSE 2021) takes ‖g_first‖ / ‖g_last‖ < 1e-3 and
‖g_first‖ < 1e-4, SageMaker Debugger a mean |g| below 1e-7.

Wrong for first layers whose inputs are mostly 0, as one-hot or bags of words (embeddings are left out): a training
that goes well gets no alarm. Adaptive optimizers make up for some of it, so the rule is less sure of it there.
Silent with fewer than three kernels, and where gradients are not sampled.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from monitor.diagnosis import motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

LOST: Final = 1e-3
"""Share of the last layer's mean |g| that arrives: AutoTrainer's. Sound ones of 3 to 6 layers showed 0.2 to 1.2."""
ALL_BUT_GONE: Final = 1e-5
SMALL: Final = 1e-4
"""Mean |g| itself; above, the last layer's is huge rather than the first's small."""
BELOW_EPSILON: Final = 1e-7
"""Adam adds that to the root of the mean square: smaller gradients it does not make up for."""
SLOPES_FADE: Final = frozenset({"sigmoid", "hard_sigmoid", "tanh", "softmax", "softsign", "hard_tanh"})


def lacks(case: Case) -> str:
    """Sampled gradients of three kernels or more."""
    found = motion.table(case, "gradient_mean_abs")
    if found is None:
        return "gradients were not sampled, or not since the last change"
    return "" if len(motion.kernels(case, found.labels)) >= 3 else "fewer than three layers have a kernel"


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    decay = motion.gradient_decay(case)
    if decay is None:
        return []
    first, of_first, last, of_last, step = decay
    share = of_first / of_last
    if not (share < LOST and of_first < SMALL and trouble(case)):
        return []
    if any(dead.at_first >= motion.MOSTLY_DEAD for dead in motion.dead_layers(case, motion.MOSTLY_DEAD)):
        return []
    confidence = 0.9 if share < ALL_BUT_GONE else 0.7
    adaptive = case.optimizer is not None and case.optimizer.name not in motion.SCALED_BY_GRADIENT
    if adaptive and of_first > BELOW_EPSILON:
        confidence -= 0.15
    text = (
        f"mean |gradient| of {first} was {of_first:.1e} in the first sampled steps, of {last} {of_last:.1e}: "
        f"{math.log10(of_last / of_first):.1f} orders of magnitude are lost on the way"
    )
    evidence = [Evidence(text, step, {"first": of_first, "last": of_last, "share": share})]
    newest = _newest(case, first)
    if newest is not None:
        evidence.append(newest)
    fading = [layer.name for layer in case.trained_layers[:-1] if layer.activation in SLOPES_FADE]
    if fading:
        evidence.append(Evidence(f"{len(fading)} hidden layers have activations whose slope fades"))
    return [
        Finding(
            rule="vanishing-gradient",
            title="The gradient vanishes on its way to the first layers",
            severity="warning",
            confidence=confidence,
            start=step,
            stop=case.step,
            evidence=tuple(evidence),
            explanation="Each layer passes only a part of the gradient back, so that next to nothing arrives at the "
            "first layers and they do not learn.",
            remedies=_remedies(case, fading),
        )
    ]


def _newest(case: Case, label: str) -> Evidence | None:
    found = motion.table(case, "gradient_mean_abs")
    if found is None:
        return None
    value = float(found.recent()[found.labels.index(label)])
    step = int(found.steps[-1])
    return Evidence(f"{value:.1e} about step {step:,}", step, {"newest": value})


def _remedies(case: Case, fading: list[str]) -> tuple[Remedy, ...]:
    hidden = [layer for layer in case.trained_layers[:-1] if layer.name in fading] or list(
        case.trained_layers[:-1]
    )
    kind, name = (hidden[0].class_name, hidden[0].name) if hidden else ("Dense", "…")
    return (
        Remedy(
            "Activations whose slope does not fade, and an initializer that fits them, in each hidden layer",
            code=f'keras.layers.{kind}(…, activation="relu", kernel_initializer="he_normal", name="{name}")',
        ),
        Remedy(
            "Normalisation between the layers",
            code="keras.layers.BatchNormalization()  # after each hidden layer",
        ),
        Remedy("Fewer layers"),
        Remedy("Adam makes up for some of it", "optimizer adam learning_rate=0.001"),
    )


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)


def _example(
    share: float, *, stuck: bool, last: float = 1e-2, optimizer: str = "sgd", cut: bool = False
) -> Session:
    names = [f"dense_{number}" for number in range(6)]
    sizes = last * np.geomspace(share, 1.0, 6)
    if cut:
        sizes[:3] = 0
    return session_of(
        {
            "loss": flat(0.69) if stuck else falling(),
            "accuracy": flat(0.5 if stuck else 0.97, noise=0.05),
            "examples": np.full(400, 32.0),
        },
        timing=("examples",),
        optimizer=optimizer,
        task="binary",
        layers=(*(dense(name, 32, "sigmoid") for name in names[:-1]), dense(names[-1], 1, "sigmoid")),
        output=output_of(names[-1], 1, "sigmoid", "binary_crossentropy"),
        tables={
            "gradient_mean_abs": Sampled(
                _STEPS, {f"{name}/kernel": size for name, size in zip(names, sizes.tolist(), strict=True)}
            ),
            "target_counts": Sampled(_STEPS, {"0": 16, "1": 16}, (), "histogram"),
        },
        epochs=[{"loss": 0.69}] * 8,
    )


HEALTHY = {
    "each layer gets about as much": lambda: _example(0.3, stuck=True),
    "the first layers get little, and the model learns": lambda: _example(1e-4, stuck=False),
    "the first layers are cut off altogether": lambda: _example(1e-4, stuck=True, cut=True),
    "the last layer's gradient is huge": lambda: _example(1e-4, stuck=True, last=100.0),
}
AILING = {
    "six sigmoid layers": lambda: _example(2e-4, stuck=True),
    "next to nothing arrives": lambda: _example(1e-7, stuck=True),
    "the same under Adam": lambda: _example(1e-6, stuck=True, optimizer="adam"),
}

EXPLAINS = frozenset({"plateau", "input-ignored", "underfitting"})

RULE = Rule("vanishing-gradient", check, lacks, EXPLAINS, HEALTHY, AILING)
