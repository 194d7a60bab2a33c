"""Sees layers that cannot learn: no gradient reaches them, or they were frozen at random weights.

Sees: which trainable weights have a gradient of exactly 0 in every sampled step while others have one; and which
layers are not trainable although their weights are still those of a random initializer: their spread (and, of
uniform ones, their ends) is just what the initializer draws for such fans, which trained weights practically never
keep.

Hurts because the network has to work with random features, or a branch of it does nothing. Causes of a gradient that
never arrives: `stop_gradient`, rounding or an argmax inside the model, converting to numpy, an output without a
loss, an axis of length 1 under a softmax. Causes of frozen random weights: `trainable = False` set for a pretrained
model whose weights were not loaded. Sources: Keras' guide on transfer learning; PyTorch's and TensorFlow's
documentation of `None` gradients; the rule for dead units covers those that ReLUs switched off.

Wrong where random features are wanted (extreme learning machines, echo states): then the training goes well and it
is a note. Silent where gradients were not sampled three times, unless layers are frozen.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Layer, Summary
from monitor.diagnosis import motion
from monitor.diagnosis.case import Case, Table, per_run
from monitor.diagnosis.examples import Sampled, dense, falling, flat, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.trouble import thrives, trouble
from monitor.session import Session

FEWEST_ROWS: Final = 3
"""Sampled steps in which a gradient must be exactly 0: steps 0, 1 and 3."""
AS_DRAWN: Final = 0.04
"""By which the spread may differ from the initializer's: four standard errors of 5,000 weights; of fewer more."""
FEWEST_WEIGHTS: Final = 60
"""The spread of fewer tells little."""
ZERO_CENTRED: Final = 0.15
"""Mean over deviation of drawn weights: five standard errors of 1,000 weights; of fewer more."""
RELUS: Final = frozenset({"relu", "relu6"})
_TRUNCATED: Final = 0.87962566
"""Deviation of a normal distribution cut off at two deviations: Keras' initializers make up for it."""


class _Layer(NamedTuple):
    name: str
    layer: Layer | None
    rows: int
    """Sampled steps that show it."""


def lacks(case: Case) -> str:
    """Sampled gradients, or frozen layers."""
    if _frozen_at_random(case):
        return ""
    table = motion.table(case, "gradient_max_abs")
    if table is None:
        return "gradients were not sampled, or not since the last change"
    rows = len(table.steps)
    return f"gradients were sampled in only {rows} of {FEWEST_ROWS} steps" if rows < FEWEST_ROWS else ""


def check(case: Case) -> list[Finding]:
    """At most one of each kind."""
    return [*_cut_off(case), *_frozen(case)]


# ── No gradient ─────────────────────────────────────────────────────────────────────────────────────


def _cut_off(case: Case) -> list[Finding]:
    table = motion.table(case, "gradient_max_abs")
    if table is None or len(table.steps) < FEWEST_ROWS:
        return []
    found, learning = _without_gradient(case, table)
    if not found or not learning or _explained(case, found):
        return []
    wrong, named = trouble(case), [one.name for one in found]
    share = len(found) / (len(found) + learning)
    text = (
        f"the gradient of {_listed(named)} was exactly 0 in all {found[0].rows} sampled steps from step "
        f"{int(table.steps[0]):,} on; {learning} other layers have one"
    )
    severity: Severity = "note" if thrives(case) else "warning"
    return [
        Finding(
            rule="frozen-layer",
            title=f"No gradient reaches {_listed(named, 2)}",
            severity=severity,
            confidence=0.9 if wrong else 0.8 if severity == "warning" else 0.4,
            start=int(table.steps[0]),
            stop=case.step,
            evidence=(
                Evidence(text, int(table.steps[0]), {"layers": float(len(found)), "share": share}),
                *((Evidence(wrong, case.step - 1),) if wrong else ()),
            ),
            explanation="These layers stay what they were drawn as: something between them and the loss passes no "
            "gradient back, or the loss does not depend on them.",
            remedies=(
                Remedy(
                    "Look for what has no gradient behind them, and take it out",
                    code="# keras.ops.stop_gradient(x), ops.round(x), ops.argmax(x), ops.cast(x, int), x.numpy(),\n"
                    "# a softmax over an axis of length 1, an output without a loss\n"
                    f"x = layer(x)  # behind {named[-1]}",
                ),
            ),
        )
    ]


def _without_gradient(case: Case, table: Table) -> tuple[list[_Layer], int]:
    """The layers none of whose weights ever had a gradient, and how many others did."""
    values = table.column()
    if not np.isfinite(values).all():
        return [], 0
    reached = (values != 0).any(axis=0)
    weights_of = _weights_of(case, table.labels)
    found = (
        [
            _Layer(path.split("/")[-1], motion.layer_of(case, path + "/kernel"), len(values))
            for path, places in weights_of.items()
            if not reached[places].any()
        ]
        if not reached.all()
        else []
    )
    return found, len(weights_of) - len(found)


@per_run
def _weights_of(case: Case, labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Path of a layer → places of its weights among the labels."""
    found: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        found.setdefault(label.rsplit("/", 1)[0], []).append(place)
    return found


def _explained(case: Case, found: list[_Layer]) -> bool:
    """Whether the layers get no gradient because units after them are dead or weights after them are 0."""
    layers = list(case.layers)
    names = {one.layer.name for one in found if one.layer is not None}
    if not names:
        return False
    last = max(place for place, layer in enumerate(layers) if layer.name in names)
    if any(layer.kernel is not None and layer.kernel.low == layer.kernel.high == 0 for layer in layers):
        return True
    outputs = motion.table(case, "activations")
    if outputs is None:
        return False
    silent = outputs.column("zero_share")[:, :]
    for place, label in enumerate(outputs.labels):
        layer = motion.layer_of(case, label)
        if layer is None or layer.activation not in RELUS or layer not in layers[: last + 3]:
            continue
        if np.nanmin(silent[:, place], initial=1.0) >= 1.0:
            return True
    return False


# ── Frozen at random ────────────────────────────────────────────────────────────────────────────────


def _frozen(case: Case) -> list[Finding]:
    found = _frozen_at_random(case)
    if not found:
        return []
    wrong = trouble(case)
    names = [layer.name for layer in found]
    first = found[0]
    kernel = first.kernel
    weights = sum(layer.parameters for layer in found)
    share = weights / max(sum(layer.parameters for layer in case.layers), 1)
    text = (
        f"{_listed(names)} {'are' if len(names) > 1 else 'is'} not trainable ({weights:,} weights, {share:.0%} of "
        f"all), and the weights of {first.name} are as {first.settings.get('kernel_initializer')} draws them"
    )
    if kernel is not None:
        text += f": mean {kernel.mean:.2g}, deviation {kernel.std:.4g} (expected {_expected(first):.4g})"
    return [
        Finding(
            rule="frozen-layer",
            title=f"{_listed(names, 2)} frozen at random weights",
            severity="warning" if wrong else "note",
            confidence=(0.85 if share > 0.2 or len(names) > 1 else 0.7) if wrong else 0.4,
            start=0,
            stop=case.step,
            evidence=(
                Evidence(text, None, {"share": share, "std": kernel.std if kernel else math.nan}),
                *((Evidence(wrong, case.step - 1),) if wrong else ()),
            ),
            explanation="These layers were set not to train before they had learned anything, so what follows has to "
            "work with random features.",
            remedies=(
                Remedy(
                    "Let them train", f"unfreeze {' '.join(names[:8])}" if len(names) <= 8 else "unfreeze *"
                ),
                Remedy(
                    "Or load their trained weights first", code='model.load_weights("pretrained.weights.h5")'
                ),
            ),
        )
    ]


@per_run
def _frozen_at_random(case: Case) -> list[Layer]:
    return [layer for layer in case.layers if _is_frozen_at_random(layer)]


def _is_frozen_at_random(layer: Layer) -> bool:
    kernel, expected = layer.kernel, _expected(layer)
    if (
        layer.trainable
        or kernel is None
        or not expected > 0
        or math.prod(layer.kernel_shape) < FEWEST_WEIGHTS
    ):
        return False
    number = math.prod(layer.kernel_shape)
    few = math.sqrt(5_000 / min(number, 5_000))
    if abs(kernel.std / expected - 1) > AS_DRAWN * few or abs(kernel.mean) > ZERO_CENTRED * few * kernel.std:
        return False
    end = _end(layer, expected)
    return max(-kernel.low, kernel.high) <= end * (1 + 1e-4) if math.isfinite(end) else True


def _expected(layer: Layer) -> float:
    """Deviation that its initializer draws. NaN: not known."""
    shape, name = layer.kernel_shape, str(layer.settings.get("kernel_initializer", ""))
    if len(shape) < 2:
        return math.nan
    places = math.prod(shape[:-2])
    fan_in, fan_out = places * shape[-2], places * shape[-1]
    variances = {
        "Glorot": 2 / max(fan_in + fan_out, 1),
        "He": 2 / max(fan_in, 1),
        "Lecun": 1 / max(fan_in, 1),
    }
    for start, variance in variances.items():
        if name.startswith(start):
            return math.sqrt(variance)
    if name.startswith("Orthogonal"):
        return 1 / math.sqrt(max(math.prod(shape[:-1]), shape[-1]))
    return math.nan


def _end(layer: Layer, expected: float) -> float:
    """Beyond which its initializer draws nothing. Infinite: it does."""
    name = str(layer.settings.get("kernel_initializer", ""))
    if name.endswith("Uniform"):
        return expected * math.sqrt(3)
    return 2 * expected / _TRUNCATED if name.endswith("Normal") else math.inf


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────


def _layers(**first: Any) -> tuple[Layer, ...]:
    return (
        dense("first", 32, **first),
        dense("second", 32, inputs=32),
        dense("last", 10, "softmax", inputs=32),
    )


def _gradients(first: float, second: float, last: float = 0.1, steps: tuple[int, ...] = (0, 1, 3, 7)) -> Any:
    rows = {f"net/{name}/{part}": value for name, value in (("first", first), ("second", second), ("last", last))
            for part in ("kernel", "bias")}  # fmt: skip
    return {"gradient_max_abs": Sampled(steps, rows)}


def _network(accuracy: float = 0.4, **more: Any) -> Session:
    given: dict[str, Any] = {
        "layers": _layers(),
        "accuracy": accuracy,
        "task": "classification",
        "data": trained_on(classes=(100,) * 10),
    }
    losses = flat(1.7) if accuracy < 0.9 else falling()
    return trained(10, "softmax", "sparse_categorical_crossentropy", losses, **(given | more))


def _outputs(zeros: float) -> dict[str, Sampled]:
    columns = ("zero_share", "saturated_share", "mean", "std", "zero_units")
    rows = {"net/first": (0.5, math.nan, 0, 1, 0), "net/second": (zeros, math.nan, 0, 0, 32 * zeros)}
    return {"activations": Sampled((0, 1, 3, 7), {name: [row] * 4 for name, row in rows.items()}, columns)}


_LOADED = Summary(mean=0.01, std=0.24, low=-1.1, high=1.3)

HEALTHY = {
    "all layers get a gradient": lambda: _network(tables=_gradients(0.01, 0.02)),
    "no layer gets one: then something else is wrong": lambda: _network(tables=_gradients(0, 0, 0)),
    "a gradient is 0 in single steps": lambda: _network(
        tables={
            "gradient_max_abs": Sampled((0, 1, 3), {"net/first/kernel": (0, 0.1, 0), "net/last/kernel": 1.0})
        }
    ),
    "dead units pass none": lambda: _network(tables=_gradients(0, 0) | _outputs(1.0)),
    "weights of 0 pass none": lambda: _network(
        tables=_gradients(0, 0), layers=_layers(kernel=Summary(mean=0, std=0, low=0, high=0))
    ),
    "frozen weights that were loaded": lambda: _network(layers=_layers(trainable=False, kernel=_LOADED)),
}
AILING = {
    "a gradient is stopped behind the second layer": lambda: _network(
        tables=_gradients(0, 0) | _outputs(0.5)
    ),
    "a branch that the loss does not depend on": lambda: _network(tables=_gradients(0, 0.1)),
    "the first layer is frozen as it was drawn": lambda: _network(layers=_layers(trainable=False)),
    "frozen random features in a training that goes well": lambda: _network(
        0.95, layers=_layers(trainable=False)
    ),
}

EXPLAINS = frozenset({"plateau", "input-ignored", "underfitting", "too-short", "vanishing-gradient"})

RULE = Rule("frozen-layer", check, lacks, EXPLAINS, HEALTHY, AILING)
