"""Finds batches that are far too small, or so large that there are hardly any steps.

Sees: how many examples a step has, how many steps an epoch, and the gradient noise scale: the number of examples
from which larger batches stop helping much. Too large: one or two steps an epoch, a hundred or two in all, with the
loss far from where it could be. Too small: one to four examples a step, a noise scale far above that, and weights
that are moved about by each step without the loss falling. With so few examples, layers that normalise by the batch's
own mean and deviation (Wu & He 2018) are blamed too where the model stays behind; and, as a guess, the batch itself
where nothing was learned.

Hurts because a batch beyond the noise scale costs as much as many steps and goes hardly further than one, and
because the gradient of one or two examples points mostly somewhere else. Try 32 examples; while it trains,
accumulate gradients over several batches, or lower the rate.

Source: McCandlish et al. 2018 (arXiv 1812.06162), the simple noise scale; Keskar et al. 2017 (arXiv 1609.04836);
Masters & Luschi 2018 (arXiv 1804.07612), who find 2 to 32 best where the rate fits; Wu & He 2018 (arXiv 1803.08494):
with batch normalisation, errors rise fast below 8 examples.

Wrong where a batch of one is meant and the rate is small enough: what was measured needs steps that are long beside
the weights.
The noise scale rises as a training converges, so one that goes well gets no alarm. Silent where the size of batches
is not known.
"""

from __future__ import annotations

import itertools
import math
from typing import Final, NamedTuple

import numpy as np

from client_callback.wire.protocol import Float64, Layer, SignalProbe
from monitor.diagnosis import motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.epochs import come, reached
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of, trained_on
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule
from monitor.diagnosis.trouble import SHORTFALL, trouble
from monitor.session import Session

SMALL: Final = 4
"""Examples: batches of so few are mostly noise."""
LARGE: Final = 128
"""Examples: a smaller batch could not be split into several of the usual 32."""
FEW_PER_EPOCH: Final = 2
FEW_STEPS: Final = 200
"""In all, as planned. Networks that learn here took a few hundred steps at least."""
FAR: Final = 0.7
"""A lift (0 guessing, 1 perfect) below which there is much left to learn."""
NOISY: Final = 10.0
"""Times the batch, from which the noise scale is far above it: 90 % of a step is noise."""
LONG: Final = 0.01
"""‖Δw‖ / ‖w‖ of the newest steps. With so long steps of noise the weights turn over every hundred steps."""
USUAL: Final = 32
MOST_NAMED: Final = 3
_LARGER: Final = Remedy("In the script", code=f"model.fit(x, y, batch_size={USUAL}, …)")


class _TooSmall(NamedTuple):
    """What shows that the batch is."""

    confidence: float
    evidence: list[Evidence]
    normalised: bool = False
    """Whether what suffers is the normalisation by the batch."""


def lacks(case: Case) -> str:
    """How many examples a step has."""
    return "" if case.batch_size else "the size of batches is not known"


def check(case: Case) -> list[Finding]:
    """One finding, or none."""
    size = case.batch_size or 0.0
    found = _too_large(case, size) if size >= LARGE else _too_small(case, size) if size <= SMALL else None
    return [found] if found is not None else []


def _too_large(case: Case, size: float) -> Finding | None:
    per_epoch, session = case.session.steps_per_epoch, case.session
    if not per_epoch or per_epoch > FEW_PER_EPOCH or case.epochs_since_change < 3 or case.solved:
        return None
    total = max(session.total_steps or 0, case.step)
    if total > FEW_STEPS or case.non_finite_from is not None or not _far_from_done(case):
        return None
    pairs = motion.pairs(case)
    of_all = (case.data.examples if case.data else None) or math.inf
    what = "the whole data set" if size >= of_all or per_epoch == 1 else f"{size:,.0f} examples"
    evidence = [
        Evidence(
            f"a step takes {what} ({min(size, of_all):,.0f} examples): {per_epoch} an epoch, {total:,} in all",
            case.step - 1,
            {"batch_size": size, "steps": total},
        ),
        _where(case),
    ]
    confidence = 0.65 if total > FEW_STEPS / 2 else 0.75
    if pairs is not None and pairs.noise_scale * 4 < size:
        text = f"the gradient noise scale is {pairs.noise_scale:,.2g} examples: larger batches hardly help"
        evidence.append(Evidence(text, case.step - 1, {"noise_scale": pairs.noise_scale}))
        confidence += 0.1
    return Finding(
        rule="batch-size",
        title="The batch is so large that there are hardly any steps",
        severity="warning",
        confidence=confidence,
        start=0,
        stop=case.step,
        evidence=tuple(evidence),
        explanation="The weights change once per batch, so with nearly all data in one batch an epoch is only a step "
        "or two, far too few to learn.",
        remedies=(
            Remedy("Smaller batches", code=f"model.fit(x, y, batch_size={USUAL}, …)"),
            Remedy(
                "With longer steps, which so large a batch allows", code="learning_rate = 4 * learning_rate"
            ),
            Remedy("Or many more epochs", code="model.fit(x, y, epochs=500, …)"),
        ),
    )


def _far_from_done(case: Case) -> bool:
    if case.lift is not None:
        return case.guessing or case.lift < min(FAR, case.attainable or FAR)
    newest = _losses(case)
    return len(newest) > 0 and newest[-1] > 0.5 * abs(case.first_loss)


def _losses(case: Case) -> Float64:
    found = case.blocks("loss")
    means = found.means if found is not None else np.empty(0)
    return np.asarray(means[np.isfinite(means)])


def _where(case: Case) -> Evidence:
    newest = _losses(case)
    level = float(newest[-1]) if len(newest) else math.nan
    text = f"loss {level:.4g} after {case.step:,} steps, {case.first_loss:.4g} at first"
    return Evidence(text, case.step - 1, {"loss": level, "first_loss": case.first_loss})


def _too_small(case: Case, size: float) -> Finding | None:
    if case.non_finite_from is not None or case.solved or case.step - case.changed_at < 100:
        return None
    if case.session.steps_per_epoch == 1 or ((case.data and case.data.examples) or math.inf) <= USUAL:
        return None  # there are no more: nothing varies much from batch to batch
    shown = (
        _nothing_left(case, size)
        or _mostly_noise(case, size)
        or _of_batch_statistics(case)
        or _in_trouble(case, size)
    )
    if shown is None:
        return None
    batches, level = int(USUAL / max(size, 1)), case.progress.level
    now = Evidence(
        f"loss {level:.4g} ± {case.progress.noise:.2g}, trend {case.progress.trend}",
        case.step - 1,
        {"loss": level, "noise": case.progress.noise},
    )
    return Finding(
        rule="batch-size",
        title="The batch is too small for its normalisation"
        if shown.normalised
        else "The batch is too small: steps are mostly noise",
        severity="warning",
        confidence=shown.confidence,
        start=case.changed_at,
        stop=case.step,
        evidence=(
            Evidence(f"batches of {size:.0f}", None, {"batch_size": size}),
            *shown.evidence,
            now,
        ),
        explanation="The mean and the deviation of so few examples say little of all, so what the layers behind the "
        "normalisation get is mostly noise, and of a single example nothing."
        if shown.normalised
        else "The gradient of so few examples points mostly somewhere else than that of all, so the weights are "
        "moved about rather than improved.",
        remedies=_of_normalised() if any(map(_normalises, case.layers)) else _of_noisy(batches),
    )


def _of_noisy(batches: int) -> tuple[Remedy, ...]:
    return (
        Remedy(f"Update once for {batches} batches", f"accumulate {batches}"),
        Remedy("Or a tenth of the rate, which averages over steps", "lr /10"),
        _LARGER,
    )


def _of_normalised() -> tuple[Remedy, ...]:
    """Accumulating gradients leaves each batch's own mean and deviation as they are."""
    alone = Remedy("Or normalise each example by itself", code="keras.layers.LayerNormalization()")
    return _LARGER, alone, Remedy("A tenth of the rate, which averages over steps", "lr /10")


def _normalises(layer: Layer) -> bool:
    return layer.class_name == "BatchNormalization"


def _nothing_left(case: Case, size: float) -> _TooSmall | None:
    """The same of a batch of one whose only example is normalised by itself: that leaves 0, whatever it was."""
    pairs = itertools.pairwise(case.layers) if size == 1 else ()
    alone = [layer.name for before, layer in pairs if before.class_name == "Dense" and _normalises(layer)]
    wrong = trouble(case) if alone else ""
    if not wrong:
        return None
    text = f"{', '.join(alone[:MOST_NAMED])} takes the mean of the batch off its one example, which leaves 0"
    return _TooSmall(0.95, [Evidence(text), Evidence(wrong, case.step - 1)], normalised=True)


def _mostly_noise(case: Case, size: float) -> _TooSmall | None:
    """By what was measured of the gradients."""
    moved, pairs = motion.motion(case), motion.pairs(case)
    if moved is None or pairs is None or pairs.rows < 4 or case.progress.trend == "falling":
        return None
    if not (pairs.noise_scale >= NOISY * size and moved.newest >= LONG):
        return None
    shown = (
        "so large that no signal is seen"
        if math.isinf(pairs.noise_scale)
        else f"{pairs.noise_scale:,.0f} examples"
    )
    evidence = [
        Evidence(
            f"the gradient noise scale is {shown} (over {pairs.rows} sampled steps)",
            case.step - 1,
            {"noise_scale": pairs.noise_scale},
        ),
        Evidence(
            f"a step moves kernels by {moved.newest:.1%} of their length, and successive gradients have a cosine "
            f"of {pairs.cosine:.2f}",
            case.step - 1,
            {"update_ratio": moved.newest, "cosine": pairs.cosine},
        ),
    ]
    return _TooSmall(0.75 if size <= 2 else 0.6, evidence)


def _of_batch_statistics(case: Case) -> _TooSmall | None:
    """The same where layers normalise by the mean and the deviation of so few examples, and it stays behind."""
    layers = [layer.name for layer in case.layers if _normalises(layer)]
    lift = reached(case)
    if not layers or lift is None or case.attainable is None or not case.seasoned:
        return None
    if case.attainable - lift < SHORTFALL:
        return None
    evidence = [
        Evidence(
            f"{', '.join(layers[:MOST_NAMED])} normalises by the mean and the deviation of so few examples"
        ),
        Evidence(
            f"it has come {come(lift)}, {case.plain_model} {case.attainable:.0%}",
            case.step - 1,
            {"lift": lift, "attainable": case.attainable},
        ),
    ]
    return _TooSmall(0.55, evidence, normalised=True)


def _in_trouble(case: Case, size: float) -> _TooSmall | None:
    """The same where nothing was measured that blames the batch, but it gets nowhere: a guess."""
    wrong = trouble(case) if case.seasoned else ""
    return _TooSmall(0.5 if size <= 2 else 0.4, [Evidence(wrong, case.step - 1)]) if wrong else None


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)


def _example(
    loss: Float64,
    *,
    batch_size: int,
    per_epoch: int,
    accuracy: float,
    ratio: float = 2e-3,
    noise_scale: float = 40.0,
    normalised: bool = False,
    signal: float | None = None,
) -> Session:
    count = len(loss)
    steps = [step for step in _STEPS if step < count]
    epochs = count // per_epoch
    norm = (Layer(name="norm", class_name="BatchNormalization"),) if normalised else ()
    probe = None if signal is None else SignalProbe(kind="accuracy", score=signal, chance=0.5, examples=1_000)
    return session_of(
        {"loss": loss, "accuracy": flat(accuracy, count, 0.02), "learning_rate": np.full(count, 1e-3)},
        task="binary",
        layers=(dense("dense", 64), *norm, dense("dense_1", 1, "sigmoid")),
        output=output_of("dense_1", 1, "sigmoid", "binary_crossentropy"),
        data=trained_on(classes=(600, 600), batch_size=batch_size, signal=probe),
        tables={
            "update_ratio": Sampled(steps, dict.fromkeys(("dense/kernel", "dense_1/kernel"), ratio)),
            "gradient_pair": Sampled(
                steps, {"cosine": 0.1, "signal": 1.0, "noise": noise_scale, "noise_scale": noise_scale}, (), "values"
            ),
        },
        epochs=[{"loss": 0.69}] * epochs,
    )  # fmt: skip


HEALTHY = {
    "batches of 32": lambda: _example(falling(400), batch_size=32, per_epoch=40, accuracy=0.95),
    "one step an epoch, but enough of them": lambda: _example(
        falling(600), batch_size=1200, per_epoch=1, accuracy=0.95
    ),
    "single examples and short steps": lambda: _example(
        flat(0.6, 400, 0.3), batch_size=1, per_epoch=100, accuracy=0.7
    ),
    "two examples, batch normalisation, and as good as a plain model": lambda: _example(
        flat(0.4, 400, 0.3), batch_size=2, per_epoch=100, accuracy=0.88, normalised=True, signal=0.9
    ),
    "all four examples there are, and nothing is learned": lambda: _example(
        flat(0.7, 400, 0.001), batch_size=4, per_epoch=1, accuracy=0.5
    ),
    "single examples, and the loss falls": lambda: _example(
        falling(400), batch_size=1, per_epoch=100, accuracy=0.9, ratio=0.02, noise_scale=400
    ),
}
AILING = {
    "the whole data set in a step, 14 steps": lambda: _example(
        falling(14, 0.69, 400, 1e-3), batch_size=1200, per_epoch=1, accuracy=0.52
    ),
    "two examples, batch normalisation, and far behind a plain model": lambda: _example(
        flat(0.6, 400, 0.3), batch_size=2, per_epoch=100, accuracy=0.7, normalised=True, signal=0.9
    ),
    "one example a step, and batch normalisation behind a dense layer": lambda: _example(
        flat(0.7, 400, 0.05), batch_size=1, per_epoch=100, accuracy=0.5, normalised=True
    ),
    "two examples a step, and nothing is learned": lambda: _example(
        flat(0.7, 400, 0.05), batch_size=2, per_epoch=100, accuracy=0.5
    ),
    "one example to a long step": lambda: _example(
        flat(0.7, 400, 0.6), batch_size=1, per_epoch=100, accuracy=0.55, ratio=0.03, noise_scale=400
    ),
}

EXPLAINS = frozenset(
    {"too-short", "oscillation", "plateau", "underfitting", "learning-rate-low", "input-ignored"}
)

RULE = Rule("batch-size", check, lacks, EXPLAINS, HEALTHY, AILING)
