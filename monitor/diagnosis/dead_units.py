"""Finds layers of ReLU whose units give 0 for every example and so get no gradient.

Sees: the sampled outputs of a layer of ReLU, and its gradients: the share of units that are 0 for a whole batch and
whose gradient is 0, in every newest row. Batches of few examples leave more units silent by chance, so there the
share must be larger.

Hurts because the slope of a ReLU is 0 where it is off: a unit that is off for every example never gets a gradient
again, and once a whole layer is dead nothing before it learns either. Units die of steps that were too large (Adam
moves every weight by the rate, so a unit by the rate times the sum of its inputs), or begin dead by their bias.

No rate and no optimizer revives dead units: the gradient is exactly 0. Try going back to the start with a gentler
rate, in one command; then scaled inputs, LeakyReLU, another initializer.

Source: Lu et al. 2019 (arXiv 1903.06733); SageMaker Debugger's dying_relu; in our heart demo, on five seeds, four
optimizers and two rates from the dead weights changed nothing, SGD at 1e-4 from the start brought 0.81 to 0.88.

Wrong when a wide layer is sparse on purpose: a training that goes well gets a note at most. Silent where outputs are
out of reach, and where a layer gets nothing but zeros: its input is at fault, not its units.
"""

from __future__ import annotations

from typing import Final

from monitor.diagnosis import motion
from monitor.diagnosis.case import Case
from monitor.diagnosis.examples import Sampled, dense, falling, flat, output_of, session_of
from monitor.diagnosis.finding import Evidence, Finding, Remedy, Rule, Severity
from monitor.diagnosis.motion import Dead
from monitor.diagnosis.trouble import trouble
from monitor.session import Session

MOSTLY: Final = 0.7
"""Of a layer's units in batches of 16 and more: SageMaker Debugger's 70 %. A sound unit fires for one example in ten
at the least, so in 16 it is silent by chance with 0.9¹⁶ = 19 %."""
MOSTLY_OF_FEW: Final = 0.97
"""In smaller batches."""
ALL: Final = 0.99
"""A layer with so many dead lets practically nothing through."""
FEW_UNITS: Final = 4
"""Fewer may all die by bad luck: that there are so few is what hurts."""
FEWEST_ROWS: Final = 2
"""A single batch may be odd."""


def lacks(case: Case) -> str:
    """Sampled outputs of the layers, and what the layers are."""
    if motion.table(case, "activations") is None:
        return "the outputs of layers were not sampled, or not since the last change"
    return "" if case.layers else "the layers are not known"


def check(case: Case) -> list[Finding]:
    """One finding on the worst layer, or none."""
    mostly = MOSTLY if (case.batch_size or 0) >= 16 else MOSTLY_OF_FEW
    found = [dead for dead in motion.dead_layers(case, mostly) if dead.rows >= FEWEST_ROWS]
    if not found or any(dead.starved for dead in found):
        return []
    worst = max(found, key=lambda dead: (dead.units >= FEW_UNITS, dead.share))
    poor = trouble(case)
    if not poor and worst.share < ALL:
        return []
    severity: Severity
    if not poor:
        severity, confidence = "note", 0.4
    elif worst.units < FEW_UNITS:
        severity, confidence = "note", 0.5
    elif worst.share >= ALL:
        severity, confidence = "critical", 0.75 if _constant(worst) else 0.95
    else:
        severity, confidence = "warning", 0.45 + 0.35 * (worst.share - mostly) / (1 - mostly)
    born = worst.at_first >= mostly
    return [
        Finding(
            rule="dead-units",
            title=_title(worst),
            severity=severity,
            confidence=confidence,
            start=worst.since,
            stop=case.step,
            evidence=tuple(_of(dead) for dead in sorted(found, key=lambda dead: -dead.share)[:3]),
            explanation="A ReLU unit that is 0 for every example passes no gradient back, so its weights never "
            "change again and no learning rate can revive it.",
            remedies=_from_the_beginning(worst) if born else _killed(case, worst),
        )
    ]


def _constant(dead: Dead) -> bool:
    """Whether the layer began with all weights alike: then that is the cause."""
    return dead.layer.kernel is not None and dead.layer.kernel.std == 0


def _title(dead: Dead) -> str:
    if dead.share >= ALL:
        return f"All units of {dead.layer.name} are dead"
    return f"{dead.share:.0%} of the units of {dead.layer.name} are dead"


def _of(dead: Dead) -> Evidence:
    name = dead.layer.name
    text = (
        f"{dead.share:.0%} of the {dead.units:,} units of {name} give 0 for all examples and get no gradient; it was "
        f"{dead.at_first:.0%} when first sampled, and most from step {dead.since:,} on, in {dead.rows} sampled steps"
    )
    return Evidence(
        text, dead.since, {f"dead share of {name}": dead.share, f"first dead share of {name}": dead.at_first}
    )


def _killed(case: Case, dead: Dead) -> tuple[Remedy, ...]:
    rate = motion.in_words(motion.gentler_rate(case))
    gentle_sgd = Remedy(
        "Back to the starting weights, with small steps that follow the gradient's size",
        "optimizer sgd learning_rate=1e-4 from start",
    )
    gentler = Remedy("Back to the starting weights, with a gentler rate", f"lr {rate} from start")
    large = motion.input_size(case) > motion.LARGE_INPUTS
    scaled = Remedy(
        "Next run: inputs of ordinary size", code="x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-7)"
    )
    return (
        gentler,
        *((gentle_sgd, scaled) if large else ()),
        Remedy(
            "Next run: a unit that keeps a slope when it is off",
            code=f'keras.layers.{dead.layer.class_name}(…, activation="leaky_relu", name="{dead.layer.name}")',
        ),
        Remedy("Or draw new weights for the dead units, once the rate is lower", "reinit dead-units"),
    )


def _from_the_beginning(dead: Dead) -> tuple[Remedy, ...]:
    code = (
        f'keras.layers.{dead.layer.class_name}(…, activation="relu", kernel_initializer="he_normal", '
        f'bias_initializer="zeros", name="{dead.layer.name}")'
    )
    return (
        Remedy("Begin with weights and biases that let about half of the units fire", code=code),
        Remedy(
            "Or a unit that keeps a slope when it is off",
            code=f'keras.layers.{dead.layer.class_name}(…, activation="leaky_relu", name="{dead.layer.name}")',
        ),
        Remedy("Stop: nothing can come of this", "stop"),
    )


_STEPS = (0, 1, 3, 7, 15, 31, 63, 127, 255)
_COLUMNS = ("zero_share", "saturated_share", "mean", "std", "zero_units")


def _example(silent: tuple[int, ...], *, stuck: bool, batch_size: int = 32, bias: str = "Zeros") -> Session:
    rows = [[units / 64, 0.0, 0.3, 0.5, units] for units in silent]
    hidden = dense("dense", 64)
    return session_of(
        {
            "loss": flat(0.69) if stuck else falling(),
            "accuracy": flat(0.52 if stuck else 0.97, noise=0.05),
            "learning_rate": flat(0.01, noise=0),
            "examples": flat(batch_size, noise=0),
        },
        timing=("examples",),
        task="binary",
        layers=(
            dense("dense", 64, settings={**hidden.settings, "bias_initializer": bias}),
            dense("dense_1", 1, "sigmoid"),
        ),
        output=output_of("dense_1", 1, "sigmoid", "binary_crossentropy"),
        tables={
            "activations": Sampled(_STEPS, {"dense": rows, "dense_1": [[0, 0, 0.5, 0.1, 0]] * 9}, _COLUMNS, "layers"),
            "dead_units": Sampled(_STEPS, {"dense": [units / 64 for units in silent], "dense_1": 0}, (), "layers"),
            "target_counts": Sampled(_STEPS, {"0": 16, "1": 16}, (), "histogram"),
            "input": Sampled(_STEPS, {"mean": 94, "std": 40, "min": 0, "max": 255, "non_finite": 0}, (), "values"),
        },
        epochs=[{"loss": 0.69}] * 4,
    )  # fmt: skip


HEALTHY = {
    "a fifth of the units is silent in each batch": lambda: _example((12,) * 9, stuck=False),
    "the same while the loss is stuck for another reason": lambda: _example((12,) * 9, stuck=True),
    "most units are silent, and training goes well": lambda: _example((50,) * 9, stuck=False),
    "batches of one example leave most units silent": lambda: _example((50,) * 9, stuck=True, batch_size=1),
    "units were silent for a while": lambda: _example((0, 60, 64, 64, 64, 20, 10, 10, 10), stuck=True),
    "a layer gets nothing but zeros": lambda: _example((64,) * 9, stuck=True),
}
AILING = {
    "all units die within the first steps": lambda: _example(
        (20, 40, 58, 63, 64, 64, 64, 64, 64), stuck=True
    ),
    "most units die": lambda: _example((20, 30, 40, 50, 55, 57, 58, 58, 58), stuck=True),
    "no unit fires from the first step on, by its bias": lambda: _example(
        (64,) * 9, stuck=True, bias="Constant"
    ),
    "all units die while the batches hold four examples": lambda: _example(
        (30, 40, 64, 64, 64, 64, 64, 64, 64), stuck=True, batch_size=4
    ),
}

EXPLAINS = frozenset({"plateau", "oscillation", "input-ignored", "underfitting", "vanishing-gradient"})

RULE = Rule("dead-units", check, lacks, EXPLAINS, HEALTHY, AILING)
