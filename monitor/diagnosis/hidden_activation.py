"""Sees hidden layers whose activations make the network linear, let its gradients fade, or sit at their ends.

Sees: the activation of every hidden layer, and in a training that is in trouble also what the layers give and how
much gradient comes back to the first of them. Without any non-linearity before the output all layers together are one
linear map, however many there are: this is certain by construction, and harmless only where a linear model is enough.
The slope of a sigmoid is a quarter at most, so n of them in a row let through 4⁻ⁿ of the gradient; a softmax between
layers leaves next to nothing of what differs from example to example; at the ends of a sigmoid or tanh the slope is
practically 0. Normalisation between the layers mends most of that, and then only what is measured counts.

Hurts because the first layers hardly learn, or because what they learn cannot bend a border. Take relu, gelu or swish
with the initializer that fits it (He's). Sources: Glorot and Bengio (2010), "Understanding the difficulty of training
deep feedforward neural networks"; He et al. (2015); AutoTrainer (ICSE'21) and DeepDiagnosis (ICSE'22) name the same.

Wrong for a linear autoencoder and for gates in attention (layers that multiply are no stack). Stacks are told of only
in trouble, since three tanh layers often train well; deep ones also where six epochs brought little and nothing tells
what could be had. Silent where the layers are not known, or are of the user's own
classes, which may do anything between.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import msgspec

from client_callback.wire.protocol import Float64, Layer, Output
from monitor.diagnosis import motion
from monitor.diagnosis.case import Case, per_run
from monitor.diagnosis.examples import Sampled, dense, falling, flat, session_of, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.trouble import falls_short, thrives, trouble
from monitor.session import Session

WEIGHTED: Final = ("Dense", "EinsumDense", "Conv", "DepthwiseConv", "SeparableConv")
"""How the class names of layers begin that are a linear map and an activation."""
LINEAR: Final = (
    *(
        "InputLayer",
        "Flatten",
        "Reshape",
        "Permute",
        "RepeatVector",
        "Dropout",
        "SpatialDropout",
        "AlphaDropout",
    ),
    *("GaussianNoise", "GaussianDropout", "BatchNormalization", "ZeroPadding", "Cropping", "UpSampling"),
    *("AveragePooling", "GlobalAveragePooling", "Add", "Subtract", "Average", "Concatenate", "Rescaling"),
    *("Normalization", "Embedding", "ActivityRegularization", "Identity", "Activation"),
)
"""How the class names of further layers begin that add no non-linearity by themselves."""
BETWEEN: Final = ("BatchNormalization", "LayerNormalization", "Dropout", "SpatialDropout", "GaussianNoise")
"""What may stand between a layer and the activation that belongs to it."""
RECURRENT: Final = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")
NORMALISING: Final = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization")
MULTIPLYING: Final = ("Multiply", "Dot", "Attention", "AdditiveAttention", "MultiHeadAttention")
"""Where sigmoid and softmax are gates, not a stack."""
SQUASHING: Final = frozenset({"sigmoid", "hard_sigmoid", "sparse_sigmoid"})
"""Slopes of a quarter at most."""
FADING: Final = SQUASHING | {"tanh", "hard_tanh", "softsign"}
FEWEST_SIGMOIDS: Final = 2
"""4⁻² of the gradient: a sixteenth. One layer of sigmoids is what the textbooks of old trained."""
FEWEST_TANHS: Final = 4
"""Tanh's slope is 1 in the middle, so it takes more of them, or saturation."""
SATURATED: Final = 0.5
"""Share of outputs at the ends, as TheDeepChecker and SageMaker Debugger have it."""
DEEP: Final = 4
"""Hidden layers: with fewer, hard data are as good an explanation of little learned."""
FADED: Final = 0.02
"""Mean |gradient| of an early kernel as a share of the last one's: sound networks show 0.1 to 10."""


class _Sign(NamedTuple):
    title: str
    meaning: str
    confidence: float
    severity: Severity
    layers: tuple[Layer, ...]
    evidence: tuple[Evidence, ...]


def lacks(case: Case) -> str:
    """Layers between input and output."""
    if not case.layers:
        return "the layers are not known"
    return "" if _hidden(case) or _recurrent(case) else "there are no hidden layers of a kind it knows"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    hidden = _hidden(case)
    sign = _linear(case, hidden)
    if sign is None and trouble(case):
        signs = [
            _softmax(hidden),
            _stack(case, hidden),
            _saturated(case, hidden),
            _growing(case),
            _bare(case, hidden),
        ]
        sign = max((one for one in signs if one), key=lambda one: one.confidence, default=None)
    elif sign is None and falls_short(case) and len(hidden) >= DEEP:
        sign = _stack(case, hidden)
    if sign is None or _gated(case):
        return []
    wrong = trouble(case) or falls_short(case)
    evidence = [*sign.evidence, *([Evidence(wrong, case.step - 1)] if wrong else [])]
    return [
        Finding(
            rule="hidden-activation",
            title=sign.title,
            severity=sign.severity,
            confidence=sign.confidence,
            start=0,
            stop=case.step,
            evidence=tuple(evidence),
            explanation=sign.meaning,
            remedies=_remedies(sign.layers),
        )
    ]


# ── Signs ───────────────────────────────────────────────────────────────────────────────────────────


def _linear(case: Case, hidden: list[Layer]) -> _Sign | None:
    """No non-linearity at all before the output."""
    if not hidden or not _graph_known(case) or not _all_linear(case):
        return None
    wrong = trouble(case)
    severity: Severity = "note" if thrives(case) else "warning"
    # A linear model is seldom as bad as guessing: then something else is likelier to be the reason.
    confidence = 0.6 if not wrong or case.guessing else 0.85
    count = f"{len(hidden)} hidden layer{'s' if len(hidden) > 1 else ''}"
    return _Sign(
        "No non-linearity between the layers",
        "Linear layers one after another are together a single linear layer, so the network can only draw straight "
        "borders and flat surfaces.",
        confidence,
        severity,
        tuple(hidden),
        (
            Evidence(
                f"{count} ({_names(hidden)}), none with an activation", None, {"hidden": float(len(hidden))}
            ),
        ),
    )


def _softmax(hidden: list[Layer]) -> _Sign | None:
    found = [layer for layer in hidden if layer.activation == "softmax"]
    if not found:
        return None
    return _Sign(
        "A softmax between the layers",
        "A softmax makes all units of a layer share out a single 1, so hardly anything of what differs between "
        "examples comes through to the next layer.",
        0.75 if len(found) > 1 else 0.65,
        "warning",
        tuple(found),
        (
            Evidence(
                f"{_names(found)}: softmax over {found[0].units} units in a hidden layer",
                None,
                {"softmax layers": float(len(found))},
            ),
        ),
    )


def _stack(case: Case, hidden: list[Layer]) -> _Sign | None:
    fading = [layer for layer in hidden if layer.activation in FADING]
    sigmoids = [layer for layer in fading if layer.activation in SQUASHING]
    decay = motion.gradient_decay(case)
    share = decay[1] / decay[3] if decay else math.nan
    faded = share < FADED
    if _normalises(case) and not faded:
        return None
    if len(sigmoids) >= FEWEST_SIGMOIDS:
        confidence = min(0.3 + 0.1 * len(sigmoids), 0.8)
        bound = (
            f"at most 4^-{len(sigmoids)} = {4.0 ** -len(sigmoids):.1g} of the gradient passes their slopes"
        )
    elif len(fading) >= FEWEST_TANHS:
        confidence, bound = (0.4 if faded else 0.3), "each lets through less the farther it is from 0"
    else:
        return None
    evidence = [
        Evidence(
            f"{len(fading)} hidden layers of {' and '.join(sorted({layer.activation for layer in fading}))} "
            f"({_names(fading)}): {bound}",
            None,
            {"fading layers": float(len(fading))},
        )
    ]
    if decay is not None:
        first, of_first, last, of_last, step = decay
        text = f"mean |gradient| of {first} was {of_first:.1e} in the first sampled steps, of {last} {of_last:.1e}"
        evidence.append(Evidence(text, step, {"share": share}))
        confidence = min(confidence + 0.15, 0.92) if faded else max(confidence - 0.1, 0.3)
    return _Sign(
        f"{len(fading)} {fading[0].activation} layers in a row",
        "The slopes of these activations are small, and they multiply from layer to layer, so hardly any gradient "
        "reaches the first layers.",
        confidence,
        "warning",
        tuple(fading),
        tuple(evidence),
    )


def _saturated(case: Case, hidden: list[Layer]) -> _Sign | None:
    table = motion.table(case, "activations")
    if table is None:
        return None
    names = {layer.name: layer for layer in hidden if layer.activation in FADING}
    if not names:
        return None
    shares, at_first = table.recent("saturated_share"), table.early("saturated_share", 1)
    worst, layer = -1, None
    for place, label in enumerate(table.labels):
        found = names.get(label.split("/")[-1])
        if found is not None and shares[place] >= SATURATED and (worst < 0 or shares[place] > shares[worst]):
            worst, layer = place, found
    if layer is None:
        return None
    from_the_start = bool(at_first[worst] >= SATURATED)  # then inputs or weights are too large
    return _Sign(
        f"{shares[worst]:.0%} of what {layer.name} gives is at the ends of its {layer.activation}",
        f"Where a {layer.activation} is at its end its slope is practically 0, and no gradient passes.",
        0.5 if from_the_start else 0.6,
        "warning",
        (layer,),
        (
            Evidence(
                f"saturated share of {layer.name}: {shares[worst]:.0%} in the newest sampled steps, "
                f"{at_first[worst]:.0%} in the first",
                int(table.steps[-1]),
                {"saturated": float(shares[worst]), "first": float(at_first[worst])},
            ),
        ),
    )


def _growing(case: Case) -> _Sign | None:
    """A recurrent layer that repeats an unbounded activation at every step of the sequence."""
    found = [
        layer for layer in _recurrent(case) if layer.activation in ("relu", "linear", "elu", "leaky_relu")
    ]
    if not found:
        return None
    layer = found[0]
    return _Sign(
        f"{layer.name} repeats an unbounded activation at every step",
        "What a recurrent layer gives goes in again at the next step; without a bound it grows from step to step, or "
        "dies out.",
        0.7 if case.non_finite_from is not None else 0.5,
        "warning",
        tuple(found),
        (
            Evidence(
                f"{layer.name} ({layer.class_name}, {layer.units} units) has {layer.activation} in place of tanh"
            ),
        ),
    )


def _bare(case: Case, hidden: list[Layer]) -> _Sign | None:
    """Only pooling bends anything."""
    if len(hidden) < 2 or not _graph_known(case) or not _only_pools(case):
        return None
    return _Sign(
        "Hidden layers without activation",
        "Without activations the layers stay linear but for what pooling does, so the network can express little "
        "more than a linear model.",
        0.5,
        "warning",
        tuple(hidden),
        (Evidence(f"{len(hidden)} hidden layers ({_names(hidden)}), none with an activation"),),
    )


def _remedies(layers: tuple[Layer, ...]) -> tuple[Remedy, ...]:
    if any(_is(layer, RECURRENT) for layer in layers):
        lines = [f'keras.layers.{layer.class_name}({layer.units}, activation="tanh")' for layer in layers]
        return (
            Remedy("tanh, Keras' default for recurrent layers", code="\n".join(lines)),
            Remedy("Meanwhile, clip the gradients", "set clipnorm=1"),
        )
    lines = [
        f'keras.layers.{layer.class_name}({layer.units or "…"}, …, activation="relu", '
        f'kernel_initializer="he_normal")  # {layer.name}'
        for layer in layers[:8]
    ]
    if len(layers) > len(lines):
        lines.append(f"# and so the {len(layers) - len(lines)} layers after these")
    return (
        Remedy("relu with the initializer that fits it (or gelu, swish)", code="\n".join(lines)),
        Remedy(
            "Where the activation must stay: normalise between the layers",
            code="keras.layers.BatchNormalization()",
        ),
    )


# ── Which layers are which ──────────────────────────────────────────────────────────────────────────


@per_run
def _ends(case: Case) -> set[str]:
    """Names of the output layers; where these are not known, of the last one with a kernel."""
    outputs = case.session.run.outputs if case.session.run else ()
    names = {output.layer for output in outputs if output.layer}
    if not names:
        names = {
            layer.name for layer in case.layers if layer.kernel_shape and layer is _last_with_kernel(case)
        }
    known = list(case.layers)
    for place, layer in enumerate(known):  # an activation of its own after the last kernel
        if layer.name in names and not layer.kernel_shape:
            before = [other for other in known[:place] if other.kernel_shape]
            names = names | {before[-1].name} if before else names
    return names


def _last_with_kernel(case: Case) -> Layer | None:
    return next((layer for layer in reversed(case.layers) if layer.kernel_shape), None)


@per_run
def _hidden(case: Case) -> list[Layer]:
    """Each with the activation that is applied to what it gives, also where that is a layer of its own."""
    ends, found, layers = _ends(case), [], case.layers
    for place, layer in enumerate(layers):
        if not (_is(layer, WEIGHTED) and layer.kernel_shape) or layer.name in ends:
            continue
        if layer.activation == "linear":
            following = next((other for other in layers[place + 1 :] if not _is(other, BETWEEN)), None)
            if following is not None and following.activation and not following.kernel_shape:
                layer = msgspec.structs.replace(layer, activation=following.activation)  # noqa: PLW2901
        found.append(layer)
    return found


def _graph_known(case: Case) -> bool:
    """Whether activations in a model's own `call` can be ruled out: there outputs have no layer's name."""
    return case.output is None or not case.output.name.startswith("output")


@per_run
def _recurrent(case: Case) -> list[Layer]:
    return [layer for layer in case.layers if layer.class_name in RECURRENT]


@per_run
def _normalises(case: Case) -> bool:
    return any(_is(layer, NORMALISING) for layer in case.layers)


@per_run
def _all_linear(case: Case) -> bool:
    """Whether all layers before the output are."""
    ends = _ends(case)
    return all(_is_linear(layer) for layer in case.layers if layer.name not in ends)


@per_run
def _only_pools(case: Case) -> bool:
    """Whether nothing before the output is non-linear by more than choosing the largest."""
    ends = _ends(case)
    return all(
        _is_linear(layer) or "MaxPooling" in layer.class_name
        for layer in case.layers
        if layer.name not in ends
    )


@per_run
def _gated(case: Case) -> bool:
    return any(layer.class_name in MULTIPLYING for layer in case.layers)


def _is(layer: Layer, kinds: tuple[str, ...]) -> bool:
    return layer.class_name.startswith(kinds)


def _is_linear(layer: Layer) -> bool:
    known = _is(layer, WEIGHTED + LINEAR) or layer.class_name == "TimeDistributed"
    return known and layer.activation in ("", "linear") and not layer.class_name.startswith("MultiHead")


def _names(layers: list[Layer]) -> str:
    names = [layer.name for layer in layers]
    return ", ".join(names[:3]) + (f" … {names[-1]}" if len(names) > 3 else "")


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _network(
    activation: str,
    count: int,
    *,
    lift: float = 0.0,
    loss: Float64 | None = None,
    between: tuple[Layer, ...] = (),
    **more: Any,
) -> Session:
    """Ten classes; hidden layers of one kind; the training has come so far from guessing, and stays there."""
    layers = [dense(f"hidden_{n}", 32, activation, inputs=64 if n == 0 else 32) for n in range(count)]
    given: dict[str, Any] = {
        "layers": (*layers[:1], *between, *layers[1:], dense("last", 10, "softmax", inputs=32)),
        "accuracy": 0.1 + 0.9 * lift,
        "task": "classification",
        "data": trained_on(classes=(100,) * 10),
    }
    losses = flat(2.3 * (1 - lift)) if loss is None else loss
    return trained(10, "softmax", "sparse_categorical_crossentropy", losses, **(given | more))


def _gradients(count: int, decay: float) -> dict[str, Sampled]:
    rows = {f"net/hidden_{n}/kernel": 1e-2 * decay ** (count - n) for n in range(count)}
    return {"gradient_mean_abs": Sampled((0, 1, 3, 7), rows | {"net/last/kernel": 1e-2})}


def _ends_of(activation: str, share: float) -> dict[str, Sampled]:
    rows = {"net/hidden_0": [(0.0, 0.1, 0.5, 0.3, 0), *[(0.0, share, 0.5, 0.5, 0)] * 5]}
    columns = ("zero_share", "saturated_share", "mean", "std", "zero_units")
    return {"activations": Sampled((0, 30, 60, 90, 120, 150), rows, columns, of="layers")}


def _sequence(activation: str) -> Session:
    recurrent = Layer(name="reads", class_name="LSTM", activation=activation, units=32, kernel_shape=(8, 128))
    return session_of(
        {"loss": flat(0.69), "accuracy": flat(0.5)},
        layers=(recurrent, dense("last", 1, "sigmoid", inputs=32)),
        output=Output(name="last", layer="last", activation="sigmoid", units=1, loss="binary_crossentropy"),
        task="binary",
        data=trained_on(classes=(500, 500)),
        epochs=[{"loss": 0.69}] * 10,
    )


def _apart(activation: str, count: int) -> tuple[Layer, ...]:
    pairs = [
        (
            dense(f"hidden_{n}", 32, "linear"),
            Layer(name=f"act_{n}", class_name="Activation", activation=activation),
        )
        for n in range(count)
    ]
    return tuple(layer for pair in pairs for layer in pair)


_POOL = Layer(name="pool", class_name="MaxPooling2D")
_NORM = Layer(name="norm", class_name="BatchNormalization")
_GATE = Layer(name="gate", class_name="Multiply")

HEALTHY = {
    "relu layers": lambda: _network("relu", 3),
    "five sigmoid layers in a training that goes well": lambda: _network("sigmoid", 5, lift=0.95),
    "two sigmoid layers that slowly learn": lambda: _network(
        "sigmoid", 2, lift=0.3, loss=falling(400, 2.3, 1_100)
    ),
    "three tanh layers": lambda: _network("tanh", 3),
    "sigmoid layers with normalisation between them": lambda: _network("sigmoid", 3, between=(_NORM,)),
    "linear layers and activations of their own": lambda: _network(
        "linear", 2, between=(Layer(name="relu", class_name="Activation", activation="relu"),)
    ),
    "sigmoid gates": lambda: _network("sigmoid", 2, between=(_GATE,)),
    "activations may be in the call of the user's own model": lambda: _network(
        "linear", 3, output=Output(name="output", layer="last", activation="softmax", units=10)
    ),
    "no hidden layer": lambda: _network("relu", 0),
    "an LSTM as Keras makes it": lambda: _sequence("tanh"),
    "a layer of the user's own between linear ones": lambda: _network(
        "linear", 2, between=(Layer(name="mine", class_name="MyLayer"),)
    ),
}
AILING = {
    "no activation between the layers": lambda: _network("linear", 3, lift=0.4),
    "no activation between the layers, when training has just begun": lambda: trained(
        10, "softmax", "sparse_categorical_crossentropy", falling(40), hidden="linear", epochs=()
    ),
    "five sigmoid layers": lambda: _network("sigmoid", 5),
    "five sigmoid layers, whose gradient fades": lambda: _network("sigmoid", 5, tables=_gradients(5, 0.2)),
    "five sigmoid layers that have learned little, and nothing tells what could be had": lambda: _network(
        "sigmoid", 5, lift=0.3, loss=falling(400, 2.3, 1_100)
    ),
    "six tanh layers, whose gradient fades": lambda: _network("tanh", 6, tables=_gradients(6, 0.4)),
    "sigmoids that are layers of their own": lambda: _network(
        "linear", 2, layers=(*_apart("sigmoid", 3), dense("last", 10, "softmax", inputs=32))
    ),
    "a softmax between the layers": lambda: _network("softmax", 1),
    "a tanh at its ends": lambda: _network("tanh", 1, tables=_ends_of("tanh", 0.8)),
    "an LSTM of relu": lambda: _sequence("relu"),
    "pooling between convolutions without activation": lambda: _network("linear", 2, between=(_POOL,)),
}

EXPLAINS = frozenset({"vanishing-gradient", "plateau", "input-ignored", "underfitting", "too-short"})

RULE = Rule("hidden-activation", check, lacks, EXPLAINS, HEALTHY, AILING)
