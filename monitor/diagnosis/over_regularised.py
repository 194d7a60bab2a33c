"""Sees regularisation that outweighs the data: nearly all units dropped, or a penalty that rules the loss.

Sees one of:

- a dropout of 0.8 and more, while the model has not learned much: at 0.9, one unit in ten is left in each step, and
  the noise of that is nine times the signal's own power (the variance of inverted dropout is rate / (1 − rate));
- a dropout of 0.4 and more, after six epochs, where validation, which drops nothing, is ahead of training and still
  far behind what a plain model reaches on the same data: then the noise is what keeps it there;
- an L1 or L2 penalty that is more than half of the loss, or was many times the data's part at the beginning, together
  with kernels that have shrunk to a fraction of what they were;
- a decay of weights in the optimizer that takes more in a step than a healthy update moves.

Hurts because the model is paid for being small rather than for being right. Lower the rate or the strength. Sources:
Srivastava et al. (2014), where retaining 20 % of the units and less leaves training error high; Krogh & Hertz (1992)
for weight decay; Keras' `Dropout` takes the share that is dropped, where others took the share that is kept, which is
how 0.9 gets there. Values that others warn at are not used: a strength means nothing without the size of the weights.

Wrong when a model is so wide that a fifth of its units is plenty: then it learns, and the rule says nothing. Silent
before three epochs or 200 steps.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec
import numpy as np

from client_callback.wire.protocol import Float64, Layer, SignalProbe
from monitor.diagnosis.case import Case, per_run
from monitor.diagnosis.epochs import come, reached, validated_lift
from monitor.diagnosis.examples import Sampled, dense, flat, noisy, session_of, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import LATE_EPOCHS, SHORTFALL
from monitor.session import Session

MOST_DROPPED: Final = 0.8
"""Srivastava et al. (2014), figure 9: from there on training error rises steeply, at any width they tried."""
MUCH_DROPPED: Final = 0.4
"""From here on it may be too much for a small network; Srivastava et al. take 0.5 for wide ones."""
AHEAD: Final = 0.05
"""Lift of validation before training that the noise of dropout makes."""
DOMINATES: Final = 0.5
"""Share of the loss that the penalty makes: from here on it is the greater part."""
SHRUNK: Final = 0.3
"""Of its first norm, that of a kernel under a penalty. Learning makes kernels grow."""
DECAY_PER_STEP: Final = 1e-3
"""Rate × decay: a healthy step moves weights by about as much, ‖Δw‖/‖w‖."""
FINE: Final = 0.8
"""A lift from here on is nobody's trouble, where a plain model does not tell."""
BEHIND: Final = 0.1
"""Lift behind a plain model that is trouble."""
ABSOLUTE_SHARE: Final = 0.8
"""Mean |w| / root mean square of normal weights, for a guess of Σ|w| from ‖w‖."""

MOST_NAMED: Final = 3
"""Layers."""


class _Weight(NamedTuple):
    """What rules this training beside its data."""

    title: str
    evidence: list[Evidence]
    remedies: list[Remedy]
    confidence: float


class _Penalised(NamedTuple):
    """One layer whose kernel is penalised."""

    layer: Layer
    first: float
    """Its kernel's norm when it was first sampled; NaN: it was not."""
    now: float

    def penalty(self, norm: float) -> float:
        """What it adds to the loss with such a norm."""
        l1, l2 = float(self.layer.settings.get("l1") or 0), float(self.layer.settings.get("l2") or 0)
        return l2 * norm**2 + l1 * ABSOLUTE_SHARE * math.sqrt(math.prod(self.layer.kernel_shape)) * norm


def lacks(case: Case) -> str:
    """The layers, and some training."""
    if not case.layers:
        return "the model's layers are not known"
    return case.too_early


def check(case: Case) -> list[Finding]:
    """One finding for each kind, or none."""
    if case.non_finite_from is not None or not _poor(case):
        return []
    weights = [_dropout(case), _penalty(case), _decay(case)]
    return [_finding(case, weight) for weight in weights if weight is not None]


def _poor(case: Case) -> bool:
    """Whether the model has not learned what it could."""
    lift = reached(case)
    if lift is None:
        return not case.solved
    if case.attainable is not None:
        return case.attainable - lift >= BEHIND or lift < 0.5 * FINE
    return lift < FINE


def _finding(case: Case, weight: _Weight) -> Finding:
    lift = reached(case)
    evidence = list(weight.evidence)
    if lift is not None:
        evidence.append(Evidence(f"it has come {come(lift)}", case.step, {"lift": lift}))
    return Finding(
        rule="over-regularised",
        title=weight.title,
        severity="warning",
        confidence=weight.confidence,
        start=0,
        stop=case.step,
        evidence=tuple(evidence),
        explanation="What should keep the model from learning by heart is so strong that it keeps it from learning "
        "at all.",
        remedies=tuple(weight.remedies),
    )


# ── Dropout ───────────────────────────────────────────────────────────────────────────────────────


def _dropout(case: Case) -> _Weight | None:
    hampered = _hampered(case)
    least = MUCH_DROPPED if hampered else MOST_DROPPED
    heavy = [(layer, rate) for layer in _drops(case) for rate in [_rate(case, layer)] if rate >= least]
    if not heavy:
        return None
    names = ", ".join(layer.name for layer, _ in heavy)
    most = max(rate for _, rate in heavy)
    values = " ".join(f"{layer.name}.rate=0.2" for layer, _ in heavy)
    back = " from start" if case.guessing else ""  # what was done under so much noise may be beyond repair
    return _Weight(
        f"Too much dropout: {most:.0%} of the units in {names}",
        [
            Evidence(f"{layer.name} drops {rate:.0%} of what it gets in each step", None, {"rate": rate})
            for layer, rate in heavy
        ]
        + hampered,
        [
            Remedy("Drop fewer units", f"set {values}{back}"),
            Remedy(
                "`rate` is the share that is dropped, not the one that is kept",
                code="\n".join(f"keras.layers.{layer.class_name}(0.2)," for layer, _ in heavy),
            ),
        ],
        0.85 if most >= MOST_DROPPED else 0.55,
    )


def _hampered(case: Case) -> list[Evidence]:
    """What shows that noise which acts in training only keeps the model from what can be had. Empty: nothing."""
    training, validation, attainable = case.lift, validated_lift(case), case.attainable
    if training is None or validation is None or attainable is None or case.epochs_since_change < LATE_EPOCHS:
        return []
    if validation < training + AHEAD or attainable < validation + SHORTFALL:
        return []
    text = (
        f"validation, which drops nothing, has come {come(validation)}, training {max(training, 0):.0%}, "
        f"{case.plain_model} {attainable:.0%}"
    )
    return [Evidence(text, case.step, {"lift": training, "val_lift": validation, "attainable": attainable})]


@per_run
def _drops(case: Case) -> list[Layer]:
    return [layer for layer in case.layers if "Dropout" in layer.class_name]


def _rate(case: Case, layer: Layer) -> float:
    """Share that it drops, as it is now: a command may have changed it."""
    key = f"{layer.name}.rate"
    told = next((r.after[key] for r in reversed(case.session.replies) if key in r.after), None)
    value = told if isinstance(told, int | float) else layer.settings.get("rate")
    return float(value) if isinstance(value, int | float) else 0.0


# ── Penalties ─────────────────────────────────────────────────────────────────────────────────────


def _penalty(case: Case) -> _Weight | None:
    penalised = _penalised(case)
    level = case.progress.level
    if not penalised or not math.isfinite(level):
        return None
    first = sum(one.penalty(one.first) for one in penalised if math.isfinite(one.first))
    now = sum(one.penalty(one.now) for one in penalised if math.isfinite(one.now))
    shrunk = float(np.median([one.now / one.first for one in penalised if one.first > 0] or [math.nan]))
    share_first = first / case.first_loss if case.first_loss > 0 else math.nan
    share = now / level if level > 0 else math.nan
    rules_now, ruled = share >= DOMINATES, share_first >= DOMINATES and shrunk <= SHRUNK
    if not (rules_now or ruled or shrunk <= SHRUNK / 3):
        return None
    strengths = "; ".join(
        f"{one.layer.name} has {name} {one.layer.settings[name]:g}"
        for one in penalised[:MOST_NAMED]
        for name in ("l1", "l2")
        if one.layer.settings.get(name)
    )
    if len(penalised) > MOST_NAMED:
        strengths += f"; and {len(penalised) - MOST_NAMED} more layers"
    beginning = (
        f"made {share_first:.0%} of the loss at the beginning and " if math.isfinite(share_first) else ""
    )
    evidence = [
        Evidence(
            f"the penalty {beginning}makes {share:.0%} of it now ({strengths})",
            case.step,
            {"share_first": share_first, "share": share, "penalty": now},
        )
    ]
    if math.isfinite(shrunk):
        evidence.append(
            Evidence(f"their kernels have {shrunk:.0%} of their first norms", case.step, {"shrunk": shrunk})
        )
    values = " ".join(
        f"{one.layer.name}.{name}={min(1e-4, float(one.layer.settings[name] or 0) / 100):.1g}"
        for one in penalised
        for name in ("l1", "l2")
        if one.layer.settings.get(name)
    )
    back = " from start" if shrunk <= SHRUNK else ""
    return _Weight(
        "The penalty on weights outweighs the data",
        evidence,
        [
            Remedy("Weaken it" + (", and give the weights back" if back else ""), f"set {values}{back}"),
            Remedy("Or in the script", code="kernel_regularizer=keras.regularizers.L2(1e-4)"),
        ],
        0.85 if (shrunk <= SHRUNK and (case.guessing or ruled)) or share >= 0.8 else 0.7,
    )


@per_run
def _with_penalty(case: Case) -> dict[str, Layer]:
    """By name."""
    return {
        layer.name: layer
        for layer in case.trained_layers
        if float(layer.settings.get("l1") or 0) > 0 or float(layer.settings.get("l2") or 0) > 0
    }


def _penalised(case: Case) -> list[_Penalised]:
    layers = _with_penalty(case)
    norms = case.table("weight_norm") if layers else None
    if norms is None:
        return []
    found = []
    firsts, newest = norms.early("", 1), norms.recent("", 1)
    for label, first, now in zip(norms.labels, firsts.tolist(), newest.tolist(), strict=True):
        *path, last = label.split("/")
        owner = next((part for part in reversed(path) if part in layers), None)
        if last.split(":")[0] == "kernel" and owner is not None:
            found.append(_Penalised(layers[owner], first, now))
    return found


# ── The optimizer's decay ─────────────────────────────────────────────────────────────────────────


def _decay(case: Case) -> _Weight | None:
    optimizer = case.optimizer
    decay = optimizer.settings.get("weight_decay") if optimizer else None
    rate = case.per_step("learning_rate")
    present = (
        float(rate.values[-1])
        if rate is not None
        else (optimizer.settings.get("learning_rate") if optimizer else None)
    )
    if not isinstance(decay, int | float) or not isinstance(present, int | float) or optimizer is None:
        return None
    per_step = float(decay) * float(present)
    if not per_step >= DECAY_PER_STEP:
        return None
    return _Weight(
        "The optimizer's weight decay outweighs the data",
        [
            Evidence(
                f"{optimizer.class_name} takes {per_step:.1%} of every weight in each step "
                f"(rate {present:.3g} × weight_decay {decay:.3g})",
                case.step,
                {"per_step": per_step},
            )
        ],
        [
            Remedy("Weaken it, and give the weights back", "set weight_decay=0.001 from start"),
            Remedy("Or in the script", code=f"keras.optimizers.{optimizer.class_name}(weight_decay=1e-3)"),
        ],
        0.8,
    )


# ── Examples ──────────────────────────────────────────────────────────────────────────────────────


def _run(
    accuracy: float,
    *,
    rate: float = 0.0,
    l2: float = 0.0,
    norms: Float64 | None = None,
    losses: Float64 | None = None,
    validated: float | None = None,
    settings: dict[str, float] | None = None,
    epochs: int = 4,
) -> Session:
    hidden = dense("hidden", 32)
    hidden = msgspec.structs.replace(hidden, settings={**hidden.settings, **({"l2": l2} if l2 else {})})
    drop = (Layer(name="dropout", class_name="Dropout", settings={"rate": rate}),) if rate else ()
    losses = flat(1.1, 300) if losses is None else losses
    logs = (
        {"loss": 1.0}
        if validated is None
        else {"loss": 1.0, "val_loss": 0.5, "val_accuracy": validated, "accuracy": accuracy}
    )
    sampled = Sampled((0, 100, 200), {"hidden/kernel": np.array([5.0, 5.0, 5.0]) if norms is None else norms})
    return session_of(
        {"loss": losses, "accuracy": noisy(np.full(len(losses), accuracy), 0.03)},
        optimizer="adamw",
        settings=settings,
        epochs=[logs] * epochs,
        task="classification",
        layers=(hidden, *drop, dense("out", 3, "softmax", inputs=32)),
        data=trained_on(
            classes=(100,) * 3,
            signal=SignalProbe(kind="accuracy", score=0.95, chance=1 / 3, examples=300),
        ),
        tables={"weight_norm": sampled},
    )


HEALTHY = {
    "a dropout of a half, and it learns": lambda: _run(0.93, rate=0.5),
    "training looks bad under much dropout, validation is good": lambda: _run(0.7, rate=0.85, validated=0.96),
    "half of the units are dropped, and validation is as good as a plain model": lambda: _run(
        0.75, rate=0.5, validated=0.92, epochs=8
    ),
    "half of the units are dropped, and validation is no better": lambda: _run(
        0.75, rate=0.5, validated=0.74, epochs=8
    ),
    "a usual penalty": lambda: _run(0.7, l2=1e-4, norms=np.array([5.0, 5.5, 6.0])),
    "the penalty is most of a tiny loss": lambda: _run(0.99, l2=1e-3, losses=flat(0.03, 300, 0.002)),
    "the usual decay of AdamW": lambda: _run(0.5, settings={"weight_decay": 0.004, "learning_rate": 0.001}),
    "it learns nothing, for other reasons": lambda: _run(0.33, rate=0.3),
}
AILING = {
    "nine of ten units are dropped": lambda: _run(0.45, rate=0.9),
    "half of the units are dropped, and validation is ahead, far from what can be had": lambda: _run(
        0.65, rate=0.5, validated=0.75, epochs=8
    ),
    "a penalty that shrank the weights to nothing": lambda: _run(
        0.34,
        l2=1.0,
        norms=np.array([5.0, 1.0, 0.01]),
        losses=noisy(1.1 + 25 * np.exp(-np.arange(300) / 20), 0.02),
    ),
    "a penalty that is most of the loss": lambda: _run(0.6, l2=0.05, losses=flat(1.7, 300)),
    "a decay of one": lambda: _run(0.34, settings={"weight_decay": 1.0, "learning_rate": 0.01}),
}

EXPLAINS = frozenset({"underfitting", "validation-too-good", "too-short", "plateau", "input-ignored"})

RULE = Rule("over-regularised", check, lacks, EXPLAINS, HEALTHY, AILING)
