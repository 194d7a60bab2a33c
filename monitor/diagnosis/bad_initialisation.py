"""Sees first weights that keep a network from learning: all alike, far too large, or far too small.

Sees: the mean and spread of each kernel as it was when the run began, its fans, its initializer and the activation
behind it; and how far the first loss lies above that of guessing. Constant kernels are certain by construction: units
that begin alike and are fed back alike stay alike, and behind zeros nothing passes either way. Size is judged by what
the layers do together: He's (2015) and Glorot's (2010) initializers keep the size of signals from layer to layer, a
kernel with k times their spread multiplies it by k, and the factors of all layers multiply. Weights of the usual
initializers that fit no longer were trained or loaded, and are left in peace.

Hurts because too large signals saturate what follows and give huge first losses and gradients, too small ones leave
nothing to learn from. Take the default initializer, or he_normal before relu. Sources: Glorot and Bengio (2010); He
et al. (2015); Goodfellow, Bengio & Courville (2016), 8.4, on symmetry; Karpathy, "A Recipe for Training Neural
Networks" (2019), on the loss at step 0.

Wrong for scales chosen on purpose (fixed features, hyper-networks): size alone is told of only in trouble or where
the first loss shows it, and not where layers are normalised. A last layer of zeros is sound (it begins with a guess)
and no finding. Silent where kernels are not known, and of biases, which dead-units sees.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Layer, Summary
from monitor.diagnosis import motion
from monitor.diagnosis.case import Case, per_run
from monitor.diagnosis.examples import dense, flat, noisy, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.trouble import thrives, trouble
from monitor.session import Session

ALIKE: Final = 1e-6
"""Deviation of a kernel as a share of its mean, from which on its entries are the same number."""
KEEPING_SIZE: Final = frozenset(
    {"GlorotUniform", "GlorotNormal", "HeUniform", "HeNormal", "LecunUniform", "LecunNormal", "Orthogonal"}
)
"""Initializers that cannot be of a wrong size: where they seem so, the weights were trained or loaded."""
MUCH_TOO_LARGE: Final = 4.0
"""Times He's spread in a single layer: fans of 784 and a deviation of 0.2 make 4; Keras' own 0.05 stays below up to
a fan of 12,000."""
GROWS: Final = 30.0
"""Factor by which all layers together enlarge a signal: softmax and sigmoid are at their ends then."""
SHRINKS: Final = 1e-2
"""The same for one that gets lost: a hundredth is left."""
FEWEST_SHRINKING: Final = 3
"""Layers; with fewer, the first steps of any optimizer make up for it."""
FIRST_LOSS: Final = 5.0
"""Times that of guessing. Sound starts are within a factor of 2 (ln K, or the targets' variance plus 1)."""
ORDINARY_INPUT: Final = 5.0
"""Root mean square of inputs; beyond, a large first loss is theirs."""
NO_UNITS: Final = ("Embedding", "Normalization", "Attention", "MultiHeadAttention")
"""How class names of layers begin whose kernels may well be constant, or whose fans say nothing."""
UNBOUNDED: Final = frozenset(
    {"relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "linear", "mish"}
)


class _Kernel(NamedTuple):
    """A trained layer's first weights."""

    layer: Layer
    values: Summary
    fan_in: int
    gain: float
    """Factor by which it enlarges the size of signals, after its activation. 1: it keeps it."""
    constant: bool
    """Whether all its entries are the same number."""


class _Sign(NamedTuple):
    title: str
    meaning: str
    confidence: float
    severity: Severity
    kernels: tuple[_Kernel, ...]
    evidence: tuple[Evidence, ...]


def lacks(case: Case) -> str:
    """First weights."""
    return "" if _kernels(case) else "the first weights of its layers are not known"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    kernels = _kernels(case)
    sign = _alike(case, kernels) or _large(case, kernels) or _small(case)
    if sign is None:
        return []
    wrong = trouble(case)
    return [
        Finding(
            rule="bad-initialisation",
            title=sign.title,
            severity=sign.severity,
            confidence=sign.confidence,
            start=0,
            stop=case.step,
            evidence=(*sign.evidence, *((Evidence(wrong, case.step - 1),) if wrong else ())),
            explanation=sign.meaning,
            remedies=_remedies(sign.kernels),
        )
    ]


def _alike(case: Case, kernels: list[_Kernel]) -> _Sign | None:
    """Constant kernels before the output."""
    hidden = _constant_hidden(case)
    if not hidden:
        return None
    first = kernels[hidden[0]]
    value = first.values.mean
    # Units that begin alike part company only where what follows treats them differently, and lets something back.
    stays = all(kernels[n + 1].constant for n in hidden) or (
        value == 0 and first.layer.activation not in ("sigmoid", "hard_sigmoid", "softplus", "exponential")
    )
    if not stays and not trouble(case):
        return None
    evidence = [
        Evidence(
            f"all {math.prod(first.layer.kernel_shape):,} weights of {first.layer.name} began at {value:.4g} "
            f"(deviation {first.values.std:.1g}); so it was in {len(hidden)} of {len(kernels) - 1} hidden layers",
            None,
            {"mean": value, "std": first.values.std, "layers": float(len(hidden))},
        )
    ]
    meaning = (
        "Behind weights of 0 every signal is 0, forwards and backwards, so little but the last bias can learn."
        if value == 0
        else "Units that begin with the same weights get the same gradient and stay the same, so a layer of many "
        "units can do no more than one."
    )
    return _Sign(
        f"The weights of {first.layer.name} all began at {value:.4g}",
        meaning,
        0.96 if stays else 0.75,
        "critical" if stays and not thrives(case) else "warning" if not thrives(case) else "note",
        tuple(kernels[n] for n in hidden),
        tuple(evidence),
    )


def _large(case: Case, kernels: list[_Kernel]) -> _Sign | None:
    large = _enlarging(case)
    if not large:
        return None
    worst = max(large, key=lambda kernel: kernel.gain)
    first = _first_loss(case)
    wrong = trouble(case)
    if not wrong and (first is None or thrives(case)):
        return None
    evidence = [_of_size(worst)]
    if len(large) > 1:
        growth = _growth(kernels)
        evidence.append(Evidence(f"{len(large)} layers together enlarge signals {growth:.2g} times"))
    confidence = 0.65
    if first is not None:
        evidence.append(first)
        confidence = 0.88
    return _Sign(
        f"The first weights of {worst.layer.name} are {worst.gain:.2g} times too large",
        "Weights this large blow signals up from layer to layer, so the training begins with wild, saturated outputs "
        "and gradients that are far too large.",
        confidence if wrong else 0.6,
        "warning",
        tuple(large),
        tuple(evidence),
    )


def _small(case: Case) -> _Sign | None:
    small = _shrinking(case)
    if not small or not trouble(case):
        return None
    left = math.prod(kernel.gain for kernel in small)
    worst = min(small, key=lambda kernel: kernel.gain)
    return _Sign(
        f"The first weights are too small: {left:.1g} of a signal is left",
        "Weights this small shrink signals and gradients from layer to layer, so what comes out hardly depends on "
        "what went in.",
        0.75 if left < SHRINKS / 100 else 0.6,
        "warning",
        tuple(small),
        (
            _of_size(worst),
            Evidence(
                f"{len(small)} layers together leave {left:.1g} of a signal's size", None, {"left": left}
            ),
        ),
    )


def _first_loss(case: Case) -> Evidence | None:
    """That it was far above that of guessing, and not because of the inputs or a penalty."""
    guess, first = motion.guessing_loss(case), case.first_loss
    size = motion.input_size(case)
    if not (math.isfinite(guess) and guess > 0) or (math.isfinite(size) and size > ORDINARY_INPUT):
        return None
    lost = case.non_finite_from == 0
    if not lost and not first - case.penalty > FIRST_LOSS * guess:
        return None
    text = f"the loss at step 0 was {first:.4g}, that of guessing is {guess:.4g}"
    return Evidence(text, 0, {"first loss": first, "guessing": guess})


def _of_size(kernel: _Kernel) -> Evidence:
    fitting = kernel.values.std / kernel.gain
    name = kernel.layer.settings.get("kernel_initializer") or "an initializer of its own"
    text = (
        f"the weights of {kernel.layer.name} began with a deviation of {kernel.values.std:.3g} ({name}); for "
        f"{kernel.fan_in:,} inputs {fitting:.3g} keeps the size of signals"
    )
    return Evidence(text, None, {"std": kernel.values.std, "fitting": fitting, "gain": kernel.gain})


def _remedies(kernels: tuple[_Kernel, ...]) -> tuple[Remedy, ...]:
    lines = []
    for kernel in kernels[:8]:
        name = "he_normal" if "relu" in kernel.layer.activation else "glorot_uniform"
        units = kernel.layer.units or kernel.layer.kernel_shape[-1]
        activation = kernel.layer.activation
        given = f', activation="{activation}"' if activation not in ("", "linear") else ""
        lines.append(
            f'keras.layers.{kernel.layer.class_name}({units}, …{given}, kernel_initializer="{name}")'
            f"  # {kernel.layer.name}"
        )
    code = Remedy("Initializers that fit the layers", code="\n".join(lines))
    return (
        (code, Remedy("Stop: it is best begun anew", "stop"))
        if all(kernel.constant for kernel in kernels)
        else (code,)
    )


@per_run
def _kernels(case: Case) -> list[_Kernel]:
    found = []
    for layer in case.trained_layers:
        values = layer.kernel
        if values is None or not math.isfinite(values.std) or layer.class_name.startswith(NO_UNITS):
            continue
        if layer.class_name.startswith(("LSTM", "GRU", "SimpleRNN", "Bidirectional", "RNN")):
            continue  # a sequence repeats them, so that a factor per layer means little
        fan_in = _fan_in(layer)
        if fan_in < 1:
            continue
        # relu lets half of the squares through, so it needs √2 more; the linear part of a tanh keeps the size.
        passed = math.sqrt(0.5) if layer.activation in ("relu", "relu6") else 1.0
        spread = math.hypot(values.std, values.mean)
        found.append(
            _Kernel(layer, values, fan_in, spread * math.sqrt(fan_in) * passed, _is_constant(values))
        )
    return found


@per_run
def _constant_hidden(case: Case) -> list[int]:
    """Places of the constant kernels before the output, of layers with several units."""
    kernels = _kernels(case)[:-1]
    return [n for n, kernel in enumerate(kernels) if kernel.constant and kernel.layer.units > 1]


@per_run
def _enlarging(case: Case) -> list[_Kernel]:
    """Those that are much too large, where signals grow through all layers together."""
    chosen = [kernel for kernel in _kernels(case) if not kernel.constant]
    if _growth(chosen) < (GROWS if len(chosen) > 1 else MUCH_TOO_LARGE) or _normalised(case):
        return []
    return [kernel for kernel in chosen if kernel.gain > MUCH_TOO_LARGE and not _keeps_size(kernel)]


@per_run
def _shrinking(case: Case) -> list[_Kernel]:
    """Those that are too small, where hardly anything of a signal is left behind them all."""
    small = [
        kernel
        for kernel in _kernels(case)
        if kernel.gain < 0.5 and not kernel.constant and not _keeps_size(kernel)
    ]
    shrunk = len(small) >= FEWEST_SHRINKING and math.prod(kernel.gain for kernel in small) <= SHRINKS
    return small if shrunk and not _normalised(case) else []


def _growth(kernels: list[_Kernel]) -> float:
    """By which those that are not constant enlarge signals together."""
    return math.prod(kernel.gain for kernel in kernels if not kernel.constant)


def _fan_in(layer: Layer) -> int:
    shape = layer.kernel_shape
    if layer.class_name.startswith("Depthwise"):
        return math.prod(shape[:-2])
    if "Transpose" in layer.class_name and len(shape) > 2:
        return math.prod(shape[:-2]) * shape[-1]
    return math.prod(shape[:-1])


def _is_constant(values: Summary) -> bool:
    return values.high - values.low <= ALIKE * max(abs(values.mean), ALIKE)


def _normalised(case: Case) -> bool:
    """Whether layers bring signals back to an ordinary size."""
    return any(
        layer.class_name.endswith("Normalization")
        for layer in case.layers
        if layer.class_name != "Normalization"
    )


def _keeps_size(kernel: _Kernel) -> bool:
    return kernel.layer.settings.get("kernel_initializer") in KEEPING_SIZE


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _drawn(deviation: float, mean: float = 0.0) -> Summary:
    return Summary(mean=mean, std=deviation, low=mean - 3 * deviation, high=mean + 3 * deviation)


def _network(
    kernel: Summary | None, name: str, activation: str = "relu", depth: int = 2, **more: Any
) -> Session:
    """Ten classes; hidden layers of 64 units with these weights, or as Keras draws them."""
    changed: dict[str, Any] = {"settings": {"kernel_initializer": name}} | (
        {"kernel": kernel} if kernel else {}
    )
    given: dict[str, Any] = {
        "layers": (
            *(dense(f"hidden_{n}", 64, activation, **changed) for n in range(depth)),
            dense("last", 10, "softmax", **more.pop("last", changed)),
        ),
        "accuracy": 0.1,
        "task": "classification",
        "data": trained_on(classes=(100,) * 10),
    }
    return trained(10, "softmax", "sparse_categorical_crossentropy", **(given | more))


def _from(first: float, then: float) -> Any:
    values = noisy(np.full(400, then), 0.02)
    values[:10] = np.linspace(first, then, 10)
    return values


HEALTHY = {
    "as Keras draws them": lambda: _network(None, "GlorotUniform", losses=flat(2.3)),
    "He's before relu": lambda: _network(_drawn(0.177), "HeNormal", losses=flat(2.3)),
    "Keras' own normal deviation of 0.05": lambda: _network(_drawn(0.05), "RandomNormal", losses=flat(2.3)),
    "large weights that are no longer Glorot's: loaded ones": lambda: _network(
        _drawn(1.5), "GlorotUniform", losses=_from(40.0, 2.3)
    ),
    "a last layer of zeros": lambda: _network(
        None, "GlorotUniform", last={"kernel": _drawn(0.0), "settings": {"kernel_initializer": "Zeros"}}
    ),
    "large weights in a training that goes well": lambda: _network(
        _drawn(1.0), "RandomNormal", losses=_from(30.0, 0.1), accuracy=0.97
    ),
}
AILING = {
    "all weights are 0": lambda: _network(_drawn(0.0), "Zeros", losses=flat(2.3)),
    "all weights are alike": lambda: _network(_drawn(0.0, 0.1), "Constant", losses=flat(2.3)),
    "a hidden layer of zeros behind relu": lambda: _network(
        _drawn(0.0), "Zeros", losses=flat(2.3), last={"settings": {"kernel_initializer": "GlorotUniform"}}
    ),
    "a deviation of 8": lambda: _network(_drawn(8.0), "RandomNormal", losses=_from(9_000.0, 2.4)),
    "a deviation of 1, and it stays at guessing": lambda: _network(
        _drawn(1.0), "RandomNormal", "tanh", losses=_from(14.0, 2.4)
    ),
    "ten layers of tanh and a deviation of 0.03": lambda: _network(
        _drawn(0.03), "RandomNormal", "tanh", depth=10, losses=flat(2.3)
    ),
}

EXPLAINS = frozenset(
    {
        *("dead-units", "vanishing-gradient", "exploding-gradient", "non-finite", "oscillation", "plateau"),
        *("input-ignored", "underfitting", "frozen-layer", "too-short", "hidden-activation"),
    }
)

RULE = Rule("bad-initialisation", check, lacks, EXPLAINS, HEALTHY, AILING)
