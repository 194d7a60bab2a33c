"""Sees a model that is too small or too simple for its data: the training loss stays well above what they allow.

Sees: what the model has reached beside what a plain model reaches on the same data, and its shape. By construction
too narrow are a hidden layer, in series with the rest, with fewer units than it takes bits to name the classes, and
one with a single unit (all that the model can use is then one weighted sum of what comes in). A model without any
hidden layer draws flat borders only; a dense network with fewer weights than the plain model's effective degrees of
freedom cannot follow it. With such a reason a shortfall is enough; without one the loss must have stopped falling far
from what that reaches, and then other causes fit as well, so that the rule is less sure.

Hurts because no rate and no patience helps: the model cannot express what is to be learned. More units, more layers.
Source: Goodfellow, Bengio & Courville, "Deep Learning" (2016), 5.2. What a plain model (kernel ridge regression)
reaches on examples that it was not given is a lower bound of what can be learned.

Wrong for an autoencoder, whose narrow layer is its purpose, and when the layers are narrow side by side (which is
looked for: the next kernel must take as many inputs). Where the optimizer, the activation or dead units are to blame,
those rules explain this one. A trial in which a single batch was learned shows that size is not what keeps it: then
only a reason in its shape is told of.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Layer, SignalProbe
from monitor.diagnosis import experiments
from monitor.diagnosis.case import BARELY, Case, per_run
from monitor.diagnosis.epochs import come, reached
from monitor.diagnosis.examples import dense, falling, flat, noisy, session_of, trained_on, with_trial
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.session import Session

SHORTFALL: Final = 0.15
"""Lift behind a plain model, with a reason in the model's shape."""
FAR: Final = 0.25
"""The same without one."""
FINE: Final = 0.85
"""A lift from here on is nobody's trouble, where no plain model tells."""
NARROW_FEATURES: Final = 3
"""A hidden layer of one unit loses nothing where the inputs have no more."""
NOT_A_WIDTH: Final = ("Embedding", "Normalization", "Conv", "Attention", "EinsumDense")
"""Class names, or their parts, of layers whose units are no bottleneck: others are beside them, or places are."""


class _Reason(NamedTuple):
    """What in the model's shape says that it is too small."""

    layer: Layer
    text: str
    certain: float
    """Confidence that it gives."""


def lacks(case: Case) -> str:
    """Some training, and how good the model is."""
    if case.too_early:
        return case.too_early
    if reached(case) is None:
        return "how good it is beside guessing is not known"
    return ""


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    lift = reached(case)
    if lift is None or case.non_finite_from is not None or _reproduces_its_input(case):
        return []
    reason = _reason(case)
    behind = None if case.attainable is None else case.attainable - lift
    trend = case.progress.trend
    tried = experiments.one_batch(case)
    if reason is None and tried is not None and tried[0]:
        return []  # what learns a batch by heart is not too small for that
    confidence = _confidence(
        reason, lift, behind, settled=trend in ("flat", "rising"), falling=trend == "falling"
    )
    if not confidence:
        return []
    return [
        Finding(
            rule="underfitting",
            title=reason.text if reason else "Underfitting: it has stopped short of what the data allow",
            severity="warning",
            confidence=round(confidence, 2),
            start=case.progress.start if math.isfinite(case.progress.level) else 0,
            stop=case.step,
            evidence=(*_evidence(case, lift, reason), *([tried[1]] if tried else [])),
            explanation="The model is too small or too simple to express what is to be learned, so training it "
            "longer does not help.",
            remedies=_remedies(case, reason),
        )
    ]


def _confidence(
    reason: _Reason | None, lift: float, behind: float | None, *, settled: bool, falling: bool
) -> float:
    """0: nothing to say."""
    if reason is None:
        # A model that still guesses has not been stopped by its size: it has not begun.
        return 0.4 if settled and behind is not None and behind >= FAR and lift >= 2 * BARELY else 0.0
    short = behind >= SHORTFALL if behind is not None else lift < FINE
    if reason.certain >= 0.8 and behind is not None and not short:
        # Too narrow by construction, but a plain model is no better: it is a lower bound.
        return 0.5 if settled and lift < FINE and behind > -SHORTFALL else 0.0
    if not short:
        return 0.0
    return reason.certain - (0.1 if behind is None else 0.0) - (0.05 if falling else 0.0)


def _reason(case: Case) -> _Reason | None:
    features = case.inputs.features if case.inputs else 0
    seen = case.baseline.classes if case.baseline else 0
    classes = max(seen, case.output.units if case.output and seen else 0)
    signal = case.data.signal if case.data else None
    return _of_shape(case, features, classes) or _of_size(case, signal.freedom if signal else 0.0)


@per_run
def _of_shape(case: Case, features: int, classes: int) -> _Reason | None:
    """What is too narrow for so many features of an input and so many classes; 0: not known."""
    layers = case.trained_layers
    if not layers:
        return None
    hidden = layers[:-1]
    bits = math.log2(classes) if classes > 2 else 0.0
    for layer, following in zip(hidden, layers[1:], strict=True):
        if any(part in layer.class_name for part in NOT_A_WIDTH) or len(layer.kernel_shape) != 2:
            continue
        in_series = len(following.kernel_shape) >= 2 and following.kernel_shape[-2] == layer.units
        if not in_series or not layer.units:
            continue
        if layer.units == 1 and features > NARROW_FEATURES:
            return _Reason(layer, f"Bottleneck: all goes through the one unit of {layer.name}", 0.85)
        if layer.units < bits:
            text = f"Bottleneck: {layer.name} has {layer.units} units for {classes} classes"
            return _Reason(layer, text, 0.85 if layer.units <= 2 else 0.7)
        if layer.units == 2 and features > 2 * NARROW_FEATURES:
            return _Reason(layer, f"Bottleneck: all goes through the 2 units of {layer.name}", 0.65)
    if not hidden and len(layers[0].kernel_shape) == 2 and layers[0].class_name == "Dense":
        return _Reason(layers[0], "Linear model: there is no hidden layer", 0.75)
    return None


@per_run
def _of_size(case: Case, freedom: float) -> _Reason | None:
    """A dense network with fewer weights than that."""
    layers = case.trained_layers
    hidden = layers[:-1]
    if not hidden or any(layer.class_name != "Dense" for layer in layers):
        return None
    weights = sum(math.prod(layer.kernel_shape) + layer.units for layer in layers)
    narrowest = min(hidden, key=lambda layer: layer.units)
    return _Reason(narrowest, f"Too small: it has {weights} weights", 0.7) if weights < freedom else None


def _reproduces_its_input(case: Case) -> bool:
    """Whether it is an autoencoder, as far as its shape tells."""
    inputs, output = case.inputs, case.output
    features = inputs.features if inputs else 0
    return case.task in ("regression", "unknown") and output is not None and 1 < output.units == features


def _evidence(case: Case, lift: float, reason: _Reason | None) -> list[Evidence]:
    found = []
    if reason is not None:
        shape = " × ".join(map(str, reason.layer.kernel_shape))
        found.append(
            Evidence(f"the kernel of {reason.layer.name} is {shape}", None, {"units": reason.layer.units})
        )
    numbers = {"lift": lift}
    text = f"it has come {come(lift)}"
    if case.attainable is not None and case.data is not None and case.data.signal is not None:
        numbers["attainable"] = case.attainable
        signal = case.data.signal
        text += f", {case.plain_model} {case.attainable:.0%} on {signal.examples:,} examples"
        if signal.freedom:
            numbers["freedom"] = signal.freedom
            text += f" with what counts as {signal.freedom:.0f} weights"
    found.append(Evidence(text, case.step, numbers))
    if math.isfinite(case.progress.level):
        word = {"flat": " and no longer falls", "falling": ", falling still"}.get(case.progress.trend, "")
        found.append(
            Evidence(f"loss {case.progress.level:.4g}{word}", case.step, {"loss": case.progress.level})
        )
    return found


def _remedies(case: Case, reason: _Reason | None) -> tuple[Remedy, ...]:
    features = case.inputs.features if case.inputs else 0
    width = int(min(256, max(32, 2 ** math.ceil(math.log2(max(features, 16))))))
    if reason is not None and case.trained_layers[:-1]:
        layer = reason.layer
        activation = "relu" if layer.class_name == "Dense" else layer.activation or "tanh"
        code = f"keras.layers.{layer.class_name}({width}, activation={activation!r}, name={layer.name!r}),"
        return (Remedy(f"Give {layer.name} more units", code=code),)
    if reason is not None:
        code = f"keras.layers.Dense({width}, activation='relu'),  # before {reason.layer.name}"
        return (Remedy("Add a hidden layer with a non-linear activation", code=code),)
    widest = max((layer.units for layer in case.trained_layers[:-1]), default=width)
    code = f"keras.layers.Dense({max(2 * widest, 32)}, activation='relu'),"
    return (Remedy("More units in each layer, or one layer more", code=code),)


# ── Examples ──────────────────────────────────────────────────────────────────────────────────────


def _run(
    hidden: tuple[Layer, ...],
    accuracy: float,
    *,
    score: float | None = 0.95,
    losses: Float64 | None = None,
    classes: int = 10,
    inputs: int = 64,
    freedom: float = 0.0,
) -> Session:
    last = hidden[-1].units if hidden else inputs
    signal = None
    if score:
        signal = SignalProbe(
            kind="accuracy", score=score, chance=1 / classes, examples=1_000, freedom=freedom
        )
    losses = flat(1.6, 400) if losses is None else losses
    return session_of(
        {"loss": losses, "accuracy": noisy(np.full(len(losses), accuracy), 0.05)},
        epochs=[{"loss": 1.6}] * 4,
        task="classification",
        layers=(*hidden, dense("out", classes, "softmax", inputs=last)),
        data=trained_on(classes=(100,) * classes, signal=signal),
    )


HEALTHY = {
    "a wide network that has learned": lambda: _run((dense("hidden", 64),), 0.96),
    "two units that are enough": lambda: _run((dense("hidden", 2),), 0.97),
    "a linear model as good as a plain one with a kernel": lambda: _run((), 0.93),
    "few weights that still fall, and are as good as a plain model": lambda: _run(
        (dense("hidden", 16, inputs=2),), 0.9, losses=falling(400), inputs=2, freedom=300.0
    ),
    "a wide network that still falls": lambda: _run((dense("hidden", 64),), 0.5, losses=falling(400)),
    "a gate of one unit beside the rest": lambda: _run(
        (dense("gate", 1, "sigmoid"), dense("hidden", 64)), 0.6, score=None
    ),
    "in a trial it learned a batch by heart": lambda: with_trial(
        _run((dense("hidden", 64),), 0.5), {"one-batch": 0.01, "keep": 0.9}
    ),
    "data that nobody can learn": lambda: _run((dense("hidden", 64),), 0.12, score=0.12),
}
AILING = {
    "two units before ten classes": lambda: _run((dense("hidden", 2),), 0.4),
    "one unit between wide layers": lambda: _run(
        (dense("first", 64), dense("narrow", 1, inputs=64)), 0.3, score=None
    ),
    "fewer weights than a plain model makes use of": lambda: _run(
        (dense("hidden", 16, inputs=2),), 0.7, losses=falling(400, 2.3, 1_000), inputs=2, freedom=300.0
    ),
    "no hidden layer where a plain model sees more": lambda: _run((), 0.5),
    "wide, flat, and far from what a plain model reaches": lambda: _run((dense("hidden", 64),), 0.5),
}

RULE = Rule(
    "underfitting", check, lacks, frozenset({"plateau", "too-short", "input-ignored"}), HEALTHY, AILING
)
