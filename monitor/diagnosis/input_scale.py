"""Sees inputs far from the size that first weights are made for: huge, tiny, or very different from each other.

Sees: the mean, spread and range of the inputs and of their features, from the data or from sampled batches, and
whether a layer normalises them before the first weights. Initializers and learning rates assume inputs of a size of
about 1; what is a hundred times larger makes outputs, gradients and steps a hundred times larger, and kills ReLU
units or saturates the rest. Features of very different sizes stretch the loss into a ravine that gradient descent
crawls along (LeCun et al. 1998, "Efficient BackProp", 4.3), and so does a mean far from 0.

It also sees what is scaled twice: a layer that divides what is small already, a normalisation right after another.

Hurts because no learning rate suits all weights then. Standardise the inputs, or divide pixels by 255. That inputs
are large is certain; whether it hurts is not: many networks bear pixels from 0 to 255 well. So it is a note unless
the training is in trouble, or has learned little in six epochs and nothing tells what could be had; it is surer where
the first loss was far above that of guessing. Further sources: StackOverflow 39525358 (unscaled inputs: flat at the
majority's share); UMLAUT (CHI'21) warns beyond 1 whatever the training does.

Wrong for counts and sums in which size is what matters, and for inputs that the user's own layers scale. Silent
before embeddings, and where a layer of Keras normalises, unless twice. Which layer feeds which is not known in
networks with branches, so of these nothing is said to normalise twice.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Layer, Summary
from monitor.diagnosis import experiments, motion
from monitor.diagnosis.case import Case, per_case, per_run
from monitor.diagnosis.examples import (
    Sampled,
    dense,
    falling,
    flat,
    noisy,
    session_of,
    trained_on,
    with_trial,
)
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.trouble import falls_short, thrives, trouble
from monitor.session import Session

LARGE: Final = 10.0
"""Root mean square, or deviation of a feature: ten times what initializers assume. Pixels have about 100."""
HUGE: Final = 50.0
"""From here on it is hardly ever harmless but to adaptive optimizers at low rates."""
TINY: Final = 0.02
"""Pixels that were divided by 255 twice have 0.002; once, 0.3."""
APART: Final = 100.0
"""Largest over smallest deviation of a feature, at a largest of more than 3: a condition number of 10⁴."""
NOT_SMALL: Final = 3.0
TOO_FAST: Final = 10.0
"""Times the rate that fits such inputs, from which on it is worth going back to the start."""
OFFSET: Final = 20.0
"""Mean of a feature in its deviations. Pixels' stay below 2 or so."""
FAR_ENTRY: Final = 50.0
"""A single entry so far out (in 10 % to 90 % ranges) makes the spread by itself: that is an outlier's doing."""
FIRST_LOSS: Final = 3.0
"""Times that of guessing."""
SCALING: Final = (
    *("Normalization", "BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"),
    *(
        "Rescaling",
        "Embedding",
        "TextVectorization",
        "CategoryEncoding",
        "Hashing",
        "StringLookup",
        "IntegerLookup",
    ),
    *("Discretization", "HashedCrossing", "RMSNormalization", "SpectralNormalization"),
)
"""Classes of layers after which the size of inputs no longer matters."""
MERGING: Final = ("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract")
"""Classes of layers that several others feed."""
PIXEL: Final = (200.0, 255.0)
"""Least and most that the largest value of pixels is."""


class _Sizes(NamedTuple):
    """Of the first input."""

    mean: float
    std: float
    low: float
    high: float
    std_low: float
    """Least deviation of a feature that varies; NaN: not known."""
    std_high: float
    offset: float
    features: int
    image: bool
    outlier: bool
    step: int | None

    @property
    def size(self) -> float:
        """Root mean square."""
        return math.hypot(self.mean, self.std)


def lacks(case: Case) -> str:
    """Inputs, and that nothing scales them inside."""
    if _scaled_twice(case):
        return ""
    if case.inputs_are_names:
        return "the inputs are names that an embedding looks up: their size means nothing"
    if _scaled_inside(case):
        return "a layer of the model scales the inputs"
    return "" if _sizes(case) is not None else "the inputs are not known"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    sizes, twice = _sizes(case), _scaled_twice(case)
    found = None
    if sizes is not None and not _scaled_inside(case):
        found = _large(sizes) or _tiny(sizes) or _apart(sizes)
    if sizes is None or found is None:
        return [_of_twice(case, twice)] if twice is not None else []
    title, text, confidence = found
    wrong = trouble(case) or falls_short(case)
    evidence = [Evidence(text, sizes.step, _numbers(sizes))]
    first = _first_loss(case)
    if first is not None:
        evidence.append(first)
    tried = experiments.compared(case, experiments.STANDARD_INPUTS)
    if tried is not None and tried.better:
        evidence.append(tried.told("its inputs are what keeps it"))
        confidence = max(confidence, 0.85)
        wrong = wrong or ("" if thrives(case) else "standardised inputs do better")
    if wrong:
        evidence.append(Evidence(wrong, case.step - 1))
        confidence += (0.08 if first is not None else 0.0) + (0.07 if _follows_size(case) else 0.0)
        confidence -= 0.25 if sizes.outlier else 0.0
        severity: Severity = "warning"
    else:
        severity, confidence = "note", (0.2 if thrives(case) else 0.35)
    return [
        Finding(
            rule="input-scale",
            title=title,
            severity=severity,
            confidence=min(confidence, 0.92),
            start=sizes.step or 0,
            stop=case.step,
            evidence=tuple(evidence),
            explanation="First weights and usual learning rates are made for inputs of a size of about 1; with "
            "others the first steps are far too large or too small for some of the weights.",
            remedies=_remedies(case, sizes),
        )
    ]


class _Twice(NamedTuple):
    title: str
    text: str
    meaning: str
    code: str
    harms: bool


def _scaled_twice(case: Case) -> _Twice | None:
    """Inputs that were scaled before the model scales them, or a layer that normalises what is normalised."""
    return _normalised_twice(case) or _shrunk_twice(case)


@per_run
def _normalised_twice(case: Case) -> _Twice | None:
    before: Layer | None = None
    branches = any(
        layer.class_name in MERGING for layer in case.layers
    )  # then call order is not who follows whom
    for number, layer in enumerate(case.layers, 1):
        normalises = layer.class_name.endswith("Normalization") and not layer.kernel_shape and not branches
        if normalises and before is not None:
            return _Twice(
                f"{before.name} and {layer.name} normalise the same",
                f"{layer.name} ({layer.class_name}), layer {number} of {len(case.layers)}, comes right after "
                f"{before.name} ({before.class_name})",
                "What is normalised already gains nothing from it; the second layer only costs time.",
                f"# leave out {layer.name}",
                harms=False,
            )
        before = layer if normalises else None
    return None


def _shrunk_twice(case: Case) -> _Twice | None:
    factor = next((layer for layer in case.layers[:2] if layer.class_name == "Rescaling"), None)
    sizes, scale = _sizes(case), factor.settings.get("scale") if factor is not None else None
    if factor is None or sizes is None or not isinstance(scale, int | float):
        return None
    most = max(abs(sizes.low), abs(sizes.high))
    if not (0 < most * abs(scale) < TINY and sizes.size < LARGE):
        return None
    return _Twice(
        f"Scaled twice: {factor.name} divides what is small already",
        f"inputs go from {sizes.low:.4g} to {sizes.high:.4g}, and {factor.name} multiplies them by {scale:.4g}",
        "After both, hardly anything of the inputs is left beside the biases, and the first layer learns slowly.",
        f"# leave out {factor.name}, or do not divide x before",
        harms=True,
    )


def _of_twice(case: Case, twice: _Twice) -> Finding:
    wrong = trouble(case) if twice.harms else ""
    return Finding(
        rule="input-scale",
        title=twice.title,
        severity="warning" if wrong else "note",
        confidence=0.8 if wrong else 0.4,
        start=0,
        stop=case.step,
        evidence=(Evidence(twice.text), *([Evidence(wrong, case.step - 1)] if wrong else [])),
        explanation=twice.meaning,
        remedies=(Remedy("Scale once", code=twice.code),),
    )


def _large(sizes: _Sizes) -> tuple[str, str, float] | None:
    if sizes.size < LARGE and not (math.isfinite(sizes.std_high) and sizes.std_high >= LARGE):
        return None
    most = max(sizes.size, sizes.std_high if math.isfinite(sizes.std_high) else 0.0)
    title = f"Inputs from {sizes.low:.4g} to {sizes.high:.4g}, not scaled"
    return title, _in_words(sizes), 0.8 if most >= HUGE else 0.65


def _tiny(sizes: _Sizes) -> tuple[str, str, float] | None:
    most = max(abs(sizes.low), abs(sizes.high))
    if not 0 < sizes.size < TINY or most > 10 * TINY:  # sparse inputs have a few large entries
        return None
    return f"Tiny inputs: none beyond {most:.2g}", _in_words(sizes), 0.65


def _apart(sizes: _Sizes) -> tuple[str, str, float] | None:
    if sizes.image or not math.isfinite(sizes.std_high):
        return None
    if sizes.std_low > 0 and sizes.std_high > NOT_SMALL and sizes.std_high / sizes.std_low >= APART:
        return "Features of very different sizes", _in_words(sizes), 0.55
    if sizes.offset >= OFFSET:
        return "Features far from 0 that hardly vary", _in_words(sizes), 0.5
    return None


def _in_words(sizes: _Sizes) -> str:
    text = f"inputs range from {sizes.low:.4g} to {sizes.high:.4g}, mean {sizes.mean:.4g}, deviation {sizes.std:.4g}"
    if math.isfinite(sizes.std_high) and sizes.features > 1 and not sizes.image:
        text += f"; features have deviations of {sizes.std_low:.3g} to {sizes.std_high:.3g}"
        if sizes.offset >= OFFSET:
            text += f" and means up to {sizes.offset:.3g} of these from 0"
    return text


def _numbers(sizes: _Sizes) -> dict[str, float]:
    named = {
        name: getattr(sizes, name) for name in ("mean", "std", "low", "high", "std_low", "std_high", "offset")
    }
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _first_loss(case: Case) -> Evidence | None:
    guess, first = motion.guessing_loss(case), case.first_loss
    if not (math.isfinite(guess) and first - case.penalty > FIRST_LOSS * guess > 0):
        return None
    return Evidence(
        f"the loss at step 0 was {first:.4g}, that of guessing is {guess:.4g}",
        0,
        {"first loss": first, "guessing": guess},
    )


def _follows_size(case: Case) -> bool:
    """Whether the optimizer's steps grow with the gradient, and so with the inputs."""
    return case.optimizer is not None and case.optimizer.name in motion.SCALED_BY_GRADIENT


def _remedies(case: Case, sizes: _Sizes) -> tuple[Remedy, ...]:
    pixels = sizes.low >= 0 and PIXEL[0] <= sizes.high <= PIXEL[1] and sizes.features > 16
    if pixels:
        scale = Remedy(
            "Divide the pixels by 255, in training, validation and use alike",
            code='x_train = x_train.astype("float32") / 255\nx_test = x_test.astype("float32") / 255',
        )
    else:
        scale = Remedy(
            "Standardise each feature, with the numbers of the training data in validation and use too",
            code="mean, std = x_train.mean(axis=0), x_train.std(axis=0) + 1e-8\n"
            "x_train, x_test = (x_train - mean) / std, (x_test - mean) / std",
        )
    inside = (
        "keras.layers.Rescaling(1 / 255)  # as the first layer"
        if pixels
        else "scale = keras.layers.Normalization()\nscale.adapt(x_train)\n# and `scale` as the first layer"
    )
    remedies = [scale, Remedy("Or let a first layer do it", code=inside)]
    # Plain gradient descent crawls along the ravine at any rate that it bears.
    too_fast = (case.learning_rate or 0.0) >= TOO_FAST * motion.fitting_rate(case)
    if sizes.size >= LARGE and not case.session.ended and not _follows_size(case) and too_fast:
        remedies.append(
            Remedy(
                "Without stopping: back to the start with a rate that suits such inputs",
                f"lr {motion.in_words(motion.gentler_rate(case))} from start",
            )
        )
    return tuple(remedies)


# ── What is known of the inputs ─────────────────────────────────────────────────────────────────────


def _scaled_inside(case: Case) -> bool:
    for layer in case.layers:
        if layer.class_name in SCALING:
            return True
        if layer.kernel_shape:
            return False
    return False


@per_case
def _sizes(case: Case) -> _Sizes | None:
    known = case.inputs
    if known is not None and math.isfinite(known.values.std):
        several = known.features > 1 and known.std_high > 0
        return _Sizes(
            known.values.mean,
            known.values.std,
            known.values.low,
            known.values.high,
            known.std_low if several else math.nan,
            known.std_high if several else math.nan,
            known.offset,
            known.features,
            len(known.shape) >= 3,
            known.farthest >= FAR_ENTRY,
            None,
        )
    return _sampled(case)


def _sampled(case: Case) -> _Sizes | None:
    whole = case.table("input") or case.table("input_0")
    if whole is None:
        return None
    mean, std, low, high = whole.values[0, :4, 0].astype(np.float64).tolist()
    if not all(map(math.isfinite, (mean, std, low, high))):
        return None
    features = case.table("input_features") or case.table("input_0_features")
    std_low = std_high = math.nan
    offset, number = 0.0, 0
    if features is not None:
        spreads, means = features.column("std")[0], features.column("mean")[0]
        varies = np.isfinite(spreads) & (spreads > 0)
        number = len(features.labels)
        if varies.any():
            std_low, std_high = float(spreads[varies].min()), float(spreads[varies].max())
            offset = (
                float((np.abs(means[varies]) / spreads[varies]).max())
                if (case.batch_size or 0) >= 16
                else 0.0
            )
    shape = case.layers[0].kernel_shape if case.layers else ()
    return _Sizes(
        mean, std, low, high, std_low, std_high, offset, number, len(shape) >= 4, False, int(whole.steps[0])
    )


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _network(
    inputs: dict[str, Any], *, lift: float = 0.0, first: float = 2.5, loss: Float64 | None = None, **more: Any
) -> Session:
    """Ten classes; the training has come so far from guessing, and stays there."""
    losses = flat(2.3 * (1 - lift)) if loss is None else loss
    losses[0] = first
    given: dict[str, Any] = {
        "layers": (dense("hidden", 32), dense("last", 10, "softmax", inputs=32)),
        "task": "classification",
        "data": trained_on(inputs=inputs, classes=(100,) * 10),
        "epochs": [{"loss": 2.3}] * 10,
    }
    return session_of(
        {"loss": losses, "accuracy": noisy(losses * 0 + 0.1 + 0.9 * lift, 0.03)}, **(given | more)
    )


def _of(mean: float, std: float, low: float, high: float, **more: float) -> dict[str, Any]:
    spread = {"std_low": std / 2, "std_high": std * 1.5, "offset": abs(mean) / std}
    return {"values": Summary(mean=mean, std=std, low=low, high=high), **(spread | more)}


_PIXELS = _of(33.0, 78.0, 0.0, 255.0)
_SALARIES = _of(900.0, 4_000.0, 0.0, 40_000.0, std_low=0.4, std_high=12_000.0)

HEALTHY = {
    "standardised inputs": lambda: _network(_of(0.0, 1.0, -4.0, 4.0)),
    "pixels from 0 to 1": lambda: _network(_of(0.13, 0.31, 0.0, 1.0)),
    "one-hot inputs": lambda: _network(_of(0.002, 0.04, 0.0, 1.0)),
    "pixels from 0 to 255 that a layer rescales": lambda: _network(
        _PIXELS, layers=(Layer(name="rescaling", class_name="Rescaling"), dense("last", 10, "softmax"))
    ),
    "token numbers before an embedding": lambda: _network(
        _of(800.0, 900.0, 0.0, 9_999.0),
        layers=(Layer(name="words", class_name="Embedding"), dense("last", 10)),
    ),
    "no inputs are known": lambda: session_of({"loss": falling()}),
}
AILING = {
    "pixels from 0 to 255": lambda: _network(_PIXELS, first=60.0),
    "pixels from 0 to 255 in a training that goes well": lambda: _network(_PIXELS, lift=0.95),
    "salaries beside ages, little is learned, and nothing tells what could be had": lambda: _network(
        _SALARIES, lift=0.3, loss=falling(400, 2.3, 1_100)
    ),
    "salaries beside ages": lambda: _network(_SALARIES, optimizer="sgd"),
    "features of different sizes, none huge": lambda: _network(
        _of(0.3, 2.0, -9.0, 9.0, std_low=0.01, std_high=5.0)
    ),
    "in a trial it does better on standardised inputs": lambda: with_trial(
        _network(_SALARIES, optimizer="sgd"), {"standard-inputs": 0.4, "keep": 0.69}
    ),
    "pixels from 0 to 1 that a layer divides by 255": lambda: _network(
        _of(0.13, 0.31, 0.0, 1.0),
        layers=(
            Layer(name="rescaling", class_name="Rescaling", settings={"scale": 1 / 255}),
            dense("last", 10, "softmax"),
        ),
    ),
    "two normalisations in a row": lambda: _network(
        _of(0.0, 1.0, -4.0, 4.0),
        layers=(
            Layer(name="batch", class_name="BatchNormalization"),
            Layer(name="layer", class_name="LayerNormalization"),
            dense("last", 10, "softmax"),
        ),
    ),
    "pixels divided by 255 twice": lambda: _network(_of(0.0005, 0.0012, 0.0, 0.0039)),
    "sampled batches from 0 to 255": lambda: _network(
        {},
        data=None,
        tables={"input": Sampled((0, 1), {"mean": 33, "std": 78, "min": 0, "max": 255, "non_finite": 0})},
    ),
}

EXPLAINS = frozenset(
    {
        *("dead-units", "exploding-gradient", "non-finite", "oscillation", "plateau", "input-ignored"),
        *("underfitting", "vanishing-gradient", "too-short"),
    }
)

RULE = Rule("input-scale", check, lacks, EXPLAINS, HEALTHY, AILING)
