"""Sees an output whose activation cannot give what the loss or the targets ask for.

Sees: the activation, the units, the loss, whether that takes logits, and the range of the targets. Wrong by
construction are: a softmax over one unit, which is always 1; a cross-entropy on outputs that are no probabilities
(none, relu, tanh, …, without `from_logits=True`): Keras cuts them off at 0 and 1, and what is cut off gets no
gradient; a bounded output for targets beyond its bounds (of several outputs each one). Not wrong in itself, and told
only of a training that is in trouble: a softmax or sigmoid before a loss that applies another (`from_logits=True`); a
softmax for several classes at once; a sigmoid under a hinge; outputs of a relu that are 0 for all examples.

Hurts because the right answers are out of reach or get no gradient. Keras 3 on TensorFlow computes a cross-entropy
from the logits behind a softmax or sigmoid where it finds them: with a softmax over one unit the loss then falls
while accuracy stays (StackOverflow 66407123, 34311586, 45442843), and a doubled softmax does no harm; both are known
here. Further sources: StackOverflow 69787272, 51185079, 59758722 (relu on the output); Bishop (2006), 5.2.

Wrong when an activation follows inside the user's own loss. Where one follows in a model's own `call`, the sampled
predictions show it: they are shares then. Silent on losses of the user's own, but for a softmax over one unit.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from client_callback.wire.protocol import Layer, Output
from monitor.diagnosis.case import REGRESSION, Case
from monitor.diagnosis.examples import Sampled, falling, flat, labelled, trained, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.targets import (
    BINARY,
    CATEGORICAL,
    CROSS_ENTROPIES,
    HINGE,
    SPARSE,
    Targets,
    fitting,
    further,
    of_rows,
    refit,
    targets_of,
)
from monitor.diagnosis.trouble import thrives, trouble
from monitor.session import Session

PROBABILITIES: Final = frozenset({"softmax", "sigmoid", "hard_sigmoid", "sparsemax", "sparse_sigmoid"})
"""Activations whose outputs lie from 0 to 1."""
NO_PROBABILITIES: Final = frozenset(
    {
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish"),
        *("softplus", "softsign", "tanh", "exponential", "hard_silu", "hard_swish", "hard_tanh", "prelu"),
    }
)
BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "softmax": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, math.inf),
    "exponential": (0.0, math.inf),
}
"""What these activations can give."""
BEYOND: Final = 0.25
"""Standard deviations that the targets must go beyond a bound: fewer is a label at the very end."""
SOFT_ROWS: Final = 1.05
"""Ones in a row of labels, on average, from which on several classes occur at once."""
FEWEST_SHARES: Final = 4
"""Sampled steps whose predictions must all be shares before they count as such."""


class _Misfit(NamedTuple):
    title: str
    text: str
    meaning: str
    confidence: float
    severity: Severity
    remedies: tuple[Remedy, ...]
    step: int | None = None


def lacks(case: Case) -> str:
    """What the output is."""
    output = case.output
    if output is None or not output.activation:
        return "the activation of the output is not known"
    return "" if output.units else "the number of output units is not known"


def check(case: Case) -> list[Finding]:
    """At most one finding."""
    output, targets = case.output, targets_of(case)
    if output is None:
        return []
    looks = (_single_softmax, _no_probabilities, _out_of_reach, _silent, _twice, _several, _unsigned)
    of_first = ((output, look(case, output, targets)) for look in looks)
    of_further = (
        (other, look(case, other, theirs))
        for other, theirs in further(case)
        for look in (_single_softmax, _out_of_reach)
    )
    output, misfit = next((one for one in itertools.chain(of_first, of_further) if one[1]), (output, None))
    if misfit is None:
        return []
    evidence = [Evidence(misfit.text, misfit.step, {"units": float(output.units)})]
    wrong = trouble(case)
    if wrong:
        evidence.append(Evidence(wrong, case.step - 1))
    return [
        Finding(
            rule="wrong-output-activation",
            title=misfit.title,
            severity=misfit.severity,
            confidence=misfit.confidence,
            start=misfit.step or 0,
            stop=case.step,
            evidence=tuple(evidence),
            explanation=misfit.meaning,
            remedies=misfit.remedies,
        )
    ]


# ── By construction ─────────────────────────────────────────────────────────────────────────────────


def _single_softmax(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if output.activation != "softmax" or output.units != 1:
        return None
    layer = _layer(case, output)
    if layer is not None and layer.settings.get("axis", -1) not in (-1, None):
        return None  # over another axis, which may be longer
    lowered = (
        " (the loss may fall all the same: it is computed from the logits)" if output.logits_found else ""
    )
    return _Misfit(
        "A softmax over one unit is always 1",
        f"{_named(output)} has 1 unit and a softmax{lowered}",
        "A softmax shares out a certainty of 1 among the units; a single unit gets all of it, whatever the input is.",
        0.98,
        "critical",
        (refit(fitting(targets, output.units), output.layer),),
    )


def _no_probabilities(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if output.loss not in CROSS_ENTROPIES or output.from_logits or output.activation not in NO_PROBABILITIES:
        return None
    if output.units == 1 and output.loss in CATEGORICAL | SPARSE:
        return None  # no activation helps there
    if targets is not None and not targets.class_like and not targets.one_hot and not _within(targets):
        return None  # quantities: the loss is what does not fit
    if _are_shares(case, output):
        return None
    activation = "sigmoid" if output.loss in BINARY else "softmax"
    given = "no activation" if output.activation == "linear" else f"a {output.activation}"
    logits = _loss_of_logits(output)
    units = f'keras.layers.Dense({output.units}, activation="{activation}")  # in place of {_named(output)}'
    fitting_one = Remedy(f"A {activation} on the output", code=units)
    remedies = (logits, fitting_one) if output.activation == "linear" else (fitting_one, logits)
    wrong = trouble(case)
    return _Misfit(
        f"{output.loss} takes probabilities, and the output has {given}",
        f"{_named(output)}: {output.units} units, {given}; {output.loss} without from_logits",
        "The loss takes the logarithm of a probability; outputs below 0 or above 1 are cut off there and then no "
        "gradient comes back from them.",
        0.92 if wrong else 0.85,
        "critical" if wrong else "note" if thrives(case) else "warning",
        remedies,
    )


def _out_of_reach(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    bounds = BOUNDS.get(output.activation)
    if bounds is None or targets is None or output.loss not in REGRESSION:
        return None
    if (targets.described and targets.classes) or not targets.std > 0:
        return None  # classes: how they are encoded is the question
    margin = BEYOND * targets.std
    above, below = targets.high > bounds[1] + margin, targets.low < bounds[0] - margin
    if not (above or below):
        return None
    hopeless = targets.mean > bounds[1] or targets.mean < bounds[0]
    range_ = f"{bounds[0]:g} to {bounds[1]:g}" if math.isfinite(bounds[1]) else f"{bounds[0]:g} upwards"
    units = f"keras.layers.Dense({output.units})  # in place of {_named(output)}"
    return _Misfit(
        f"The targets are out of reach of a {output.activation}",
        f"{_named(output)} gives {range_}; targets are {targets.span} with mean {targets.mean:.4g}",
        "The output cannot give the numbers it should, however long it is trained.",
        0.95 if hopeless else 0.85,
        "critical" if hopeless else "note" if thrives(case) else "warning",
        (Remedy("No activation on the output", code=units),),
        targets.step,
    )


# ── Only where it would explain the trouble ─────────────────────────────────────────────────────────


def _silent(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    """A relu that gives 0 for all examples has no gradient, and stays so."""
    table = case.table("activations")
    if output.activation not in ("relu", "relu6") or table is None or not trouble(case):
        return None
    place = next((i for i, name in enumerate(table.labels) if name.split("/")[-1] == output.layer), None)
    if place is None or not table.recent("zero_share")[place] >= 1.0:
        return None
    zero = table.column("zero_share")[:, place] >= 1.0
    first = int(table.steps[len(zero) - int(np.argmin(zero[::-1])) if not zero.all() else 0])
    return _Misfit(
        "A relu on the output has fallen silent",
        f"{_named(output)} is 0 for every example of the sampled batches since step {first:,}",
        "A relu that is 0 for every example passes no gradient back, so nothing before it can learn any more.",
        0.9,
        "critical",
        (refit(fitting(targets, output.units), output.layer),),
        first,
    )


def _twice(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if not output.from_logits or output.logits_found or output.loss not in CROSS_ENTROPIES:
        return None
    if output.activation not in PROBABILITIES or not trouble(case):
        return None
    return _Misfit(
        f"A {output.activation} before a loss that applies another",
        f"{_named(output)} has a {output.activation}, and {output.loss} has from_logits=True",
        "Squashed twice, even the surest answer is an unsure one, and the gradients get small.",
        0.7,
        "warning",
        (Remedy("Leave from_logits out", code=f'model.compile(optimizer=optimizer, loss="{output.loss}")'),),
    )


def _several(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if output.activation != "softmax" or output.loss not in BINARY or output.units < 2 or targets is None:
        return None
    rows = targets.mean * output.units
    if targets.one_hot or targets.width != output.units or not targets.integral or rows < SOFT_ROWS:
        return None
    if not trouble(case) and thrives(case):
        return None
    return _Misfit(
        "A softmax for several classes at once",
        f"a row of labels has {rows:.3g} ones on average, and {_named(output)} has a softmax over "
        f"{output.units} units",
        "A softmax shares out one certainty among all units, so it cannot say yes to several of them.",
        0.75,
        "warning",
        (refit(fitting(targets, output.units), output.layer),),
    )


def _unsigned(case: Case, output: Output, targets: Targets | None) -> _Misfit | None:
    if output.loss not in HINGE or BOUNDS.get(output.activation, (-1.0,))[0] < 0 or not trouble(case):
        return None
    return _Misfit(
        f"A {output.activation} under a hinge",
        f"{_named(output)} gives no negative numbers; {output.loss} asks for −1 and 1",
        "The sign of the output tells the class here, and this output has but one sign.",
        0.75,
        "warning",
        (Remedy("A tanh, or none", code=f'keras.layers.Dense({output.units}, activation="tanh")'),),
    )


def _are_shares(case: Case, output: Output) -> bool:
    """Whether the sampled predictions lie from 0 to 1, and add up to 1 for each example, without exception.

    Then an activation follows where the model's graph does not show it.
    """
    table = case.table("prediction_spread")
    if table is None or len(table.steps) < FEWEST_SHARES:
        return False
    low, high, total = (of_rows(table, name) for name in ("low", "high", "row_sum"))
    if not (low.min() > 0 and high.max() < 1):
        return False
    return output.loss in BINARY or bool(np.abs(total - 1).max() < 0.01)


def _within(targets: Targets) -> bool:
    return targets.low >= 0 and targets.high <= 1


def _loss_of_logits(output: Output) -> Remedy:
    name = "".join(part.capitalize() for part in output.loss.split("_"))
    code = f"model.compile(optimizer=optimizer, loss=keras.losses.{name}(from_logits=True), metrics=[…])"
    return Remedy("Tell the loss that it gets logits", code=code)


def _layer(case: Case, output: Output) -> Layer | None:
    return next((layer for layer in case.layers if layer.name == output.layer), None)


def _named(output: Output) -> str:
    return output.layer or "the last layer"


# ── Examples ────────────────────────────────────────────────────────────────────────────────────────

_KINDS: Final = {
    "two": labelled(np.repeat([0, 1], 500)),
    "ten": labelled(np.repeat(np.arange(10), 60)),
    "rows": labelled(np.eye(10)[np.repeat(np.arange(10), 60)]),
    "several": labelled(np.arange(10)[None] % (2 + np.arange(600)[:, None] % 5) == 0),
    "prices": labelled(np.linspace(0.15, 5.0, 1_000)),
    "signed": labelled(np.linspace(-2.0, 2.0, 1_000) ** 3 / 4),
    "shares": labelled(np.linspace(0.0, 1.0, 1_000)),
}


def _example(units: int, activation: str, loss: str, targets: str, **more: Any) -> Session:
    return trained(units, activation, loss, data=trained_on(targets=_KINDS[targets]), **more)


def _of_logits(activation: str, **found: bool) -> Session:
    session = _example(
        10, activation, "sparse_categorical_crossentropy", "ten", accuracy=0.1, task="classification"
    )
    if session.run is not None:
        changed = msgspec.structs.replace(session.run.outputs[0], from_logits=True, **found)
        session.run = msgspec.structs.replace(session.run, outputs=(changed,))
    return session


HEALTHY = {
    "a sigmoid for two classes": lambda: _example(1, "sigmoid", "binary_crossentropy", "two"),
    "a softmax for ten classes": lambda: _example(10, "softmax", "sparse_categorical_crossentropy", "ten"),
    "no activation for prices": lambda: _example(1, "linear", "mean_squared_error", "prices"),
    "a relu for prices": lambda: _example(1, "relu", "mean_squared_error", "prices"),
    "a sigmoid for shares": lambda: _example(1, "sigmoid", "mean_squared_error", "shares"),
    "logits for a loss that takes them": lambda: _of_logits("linear"),
    "a softmax before a loss of logits, which finds those behind it": lambda: _of_logits(
        "softmax", logits_found=True
    ),
    "a softmax that only the predictions show": lambda: _example(
        10,
        "linear",
        "sparse_categorical_crossentropy",
        "ten",
        tables={
            "prediction_spread": Sampled(
                (0, 1, 3, 7),
                {"between": 0.1, "mean_abs": 0.1, "low": 0.01, "high": 0.4, "row_sum": 1.0},
                of="values",
            )
        },
    ),
    "a sigmoid for several classes at once": lambda: _example(
        10, "sigmoid", "binary_crossentropy", "several"
    ),
    "no activation under binary cross-entropy on quantities, where the loss is wrong": lambda: _example(
        1, "linear", "binary_crossentropy", "prices"
    ),
}
AILING = {
    "a softmax over one unit": lambda: _example(1, "softmax", "binary_crossentropy", "two", losses=falling()),
    "a softmax over one unit for prices": lambda: _example(1, "softmax", "mean_squared_error", "prices"),
    "a relu under the cross-entropy": lambda: _example(
        10, "relu", "sparse_categorical_crossentropy", "ten", accuracy=0.1, task="classification"
    ),
    "no activation under the cross-entropy": lambda: _example(
        10, "linear", "categorical_crossentropy", "rows"
    ),
    "no activation under binary cross-entropy": lambda: _example(1, "linear", "binary_crossentropy", "two"),
    "a sigmoid for prices up to 5": lambda: _example(1, "sigmoid", "mean_squared_error", "prices"),
    "a relu for numbers of either sign": lambda: _example(1, "relu", "mean_squared_error", "signed"),
    "a relu on the output that is 0 for all": lambda: _example(
        1,
        "relu",
        "mean_squared_error",
        "two",
        losses=flat(0.5),
        accuracy=0.5,
        task="binary",
        tables={
            "activations": Sampled(
                (0, 30, 60),
                {"net/last": [(0.4, math.nan, 0.5, 0.2, 0), *[(1.0, math.nan, 0, 0, 1)] * 2]},
                ("zero_share", "saturated_share", "mean", "std", "zero_units"),
                of="layers",
            )
        },
    ),
    "a softmax before a loss of logits": lambda: _of_logits("softmax"),
    "a softmax for several classes at once": lambda: _example(
        10, "softmax", "binary_crossentropy", "several"
    ),
    "a sigmoid under a hinge": lambda: _example(1, "sigmoid", "hinge", "two", accuracy=0.5, task="binary"),
}

EXPLAINS = frozenset(
    {
        *("plateau", "oscillation", "input-ignored", "underfitting", "too-short", "dead-units"),
        *("class-imbalance", "non-finite", "vanishing-gradient"),
    }
)

RULE = Rule("wrong-output-activation", check, lacks, EXPLAINS, HEALTHY, AILING)
