"""Mutants of the healthy bases, by seeded operators: the usual ways in which a training script goes wrong.

An operator looks at a recipe and returns the fields it changes, or nothing where it does not apply. Not every mutant
ails: those that are really worse than their base on held-out data are in `selected.json`, with what was measured;
`python -m tests.diagnosis_benchmark --select` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from . import spoiling
from .bases import BASES
from .networks import over_time, recurrent
from .recipe import Recipe

SELECTED = Path(__file__).with_name("selected.json")

Changes: TypeAlias = Mapping[str, Any]
Change: TypeAlias = Callable[[Recipe], Changes | None]

WHOLE_DATA_SET = 4096
USUAL_RATES = {"Adam": 1e-3, "SGD": 1e-2}


@dataclass(frozen=True)
class Operator:
    """One way of getting a recipe wrong."""

    name: str
    change: Change
    """Returns the fields that change; `None`: this recipe cannot be got wrong so."""
    cause: str
    also: frozenset[str] = frozenset()
    """Further rule ids that an expert would accept."""


@dataclass(frozen=True)
class Mutant:
    """A recipe that an operator got wrong."""

    base: str
    operator: str
    recipe: Recipe
    cause: str
    accepted: frozenset[str]

    @property
    def key(self) -> str:
        """Names it among all: `wine/rate-x100`."""
        return f"{self.base}/{self.operator}"


def mutants(seed: int = 0, per_base: int | None = None) -> list[Mutant]:
    """Those of every base: all that apply, or so many drawn by the seed, no two for the same cause if avoidable."""
    rng = np.random.default_rng(seed)
    found = []
    for name, base in BASES.items():
        made = [
            Mutant(name, operator.name, base.but(**changes), operator.cause, operator.also | {operator.cause})
            for operator in OPERATORS
            if (changes := operator.change(base)) is not None
        ]
        if per_base is not None:
            made = _spread(made, per_base, rng)
        found += made
    return found


def selected_mutants() -> list[Mutant]:
    """Those that have been measured to be worse than their base."""
    names = set(json.loads(SELECTED.read_text())["mutants"]) if SELECTED.exists() else set()
    return [mutant for mutant in mutants() if mutant.key in names]


def _spread(made: list[Mutant], count: int, rng: np.random.Generator) -> list[Mutant]:
    chosen: list[Mutant] = []
    rest = [made[place] for place in rng.permutation(len(made))]
    while rest and len(chosen) < count:
        causes = [mutant.cause for mutant in chosen]
        rest.sort(key=lambda mutant: causes.count(mutant.cause))
        chosen.append(rest.pop(0))
    return chosen


# ── Operators ─────────────────────────────────────────────────────────────────────────────────────


def _rate(factor: float) -> Change:
    def change(recipe: Recipe) -> Changes | None:
        rate = recipe.learning_rate
        return {"learning_rate": rate * factor} if isinstance(rate, float) else None

    return change


def _unless_recurrent(**changes: Any) -> Change:
    return lambda recipe: None if recipe.network in (recurrent, over_time) else changes


def _always(**changes: Any) -> Change:
    return lambda recipe: changes


def _classes_only(**changes: Any) -> Change:
    return lambda recipe: None if recipe.output_activation == "linear" else changes


def _binary_only(**changes: Any) -> Change:
    return lambda recipe: changes if recipe.output_activation == "sigmoid" else None


def _regression_only(**changes: Any) -> Change:
    return lambda recipe: changes if recipe.output_activation == "linear" else None


def _deep_sigmoid(recipe: Recipe) -> Changes | None:
    if recipe.network in (recurrent, over_time):
        return None
    return {
        "hidden": (*recipe.hidden, *[recipe.hidden[-1]] * 4),
        "activation": "sigmoid",
        "batch_norm": False,
    }


def _no_scaling(recipe: Recipe) -> Changes | None:
    return None if recipe.dataset in ("text", "prose", "diabetes") else {"scaled": False}


def _no_batch_norm(recipe: Recipe) -> Changes | None:
    return {"batch_norm": False} if recipe.batch_norm else None


def _bottleneck(recipe: Recipe) -> Changes:
    return {"hidden": (*recipe.hidden[:-1], 1)}


def _few_positives(recipe: Recipe) -> Changes | None:
    if recipe.output_activation == "linear":
        return None
    return {"spoil": spoiling.few_of_class(1, 0.04), "score": "balanced accuracy"}


def _off_by_one(recipe: Recipe) -> Changes | None:
    return {"mislabel": spoiling.multiplied(1, 1)} if recipe.output_activation == "sigmoid" else None


def _times_255(recipe: Recipe) -> Changes | None:
    one_of_many = recipe.loss == "sparse_categorical_crossentropy" or recipe.output_activation == "linear"
    return None if one_of_many else {"mislabel": spoiling.multiplied(255)}


def _sorted_unshuffled(recipe: Recipe) -> Changes | None:
    if recipe.output_activation == "linear":
        return None
    return {"spoil": spoiling.sorted_by_target, "shuffle": False}


def _first_layer_cut(recipe: Recipe) -> Changes | None:
    return None if recipe.middle else {"middle": spoiling.cut_off, "hidden": (*recipe.hidden[:-1], 4)}


def _also(*rules: str) -> frozenset[str]:
    return frozenset(rules)


_TOO_HIGH = _also("oscillation", "exploding-gradient", "dead-units")
_STILL = _also("learning-rate-low")

OPERATORS: tuple[Operator, ...] = (
    Operator(
        "hidden-linear", _unless_recurrent(activation="linear"), "hidden-activation", _also("underfitting")
    ),
    Operator("hidden-sigmoid-stack", _deep_sigmoid, "hidden-activation", _also("vanishing-gradient")),
    Operator("output-relu", _classes_only(output_activation="relu"), "wrong-output-activation"),
    Operator("output-none", _classes_only(output_activation="linear"), "wrong-output-activation"),
    Operator("output-softmax", _binary_only(output_activation="softmax"), "wrong-output-activation"),
    Operator("output-tanh", _regression_only(output_activation="tanh"), "wrong-output-activation"),
    Operator("output-sigmoid", _regression_only(output_activation="sigmoid"), "wrong-output-activation"),
    Operator(
        "loss-binary",
        _regression_only(loss="binary_crossentropy"),
        "wrong-loss",
        _also("wrong-output-activation"),
    ),
    Operator("loss-categorical", _binary_only(loss="categorical_crossentropy"), "wrong-loss"),
    Operator("loss-hinge", _binary_only(loss="categorical_hinge"), "wrong-loss"),
    Operator("loss-cosine", _regression_only(loss="cosine_similarity"), "wrong-loss"),
    Operator("rate-x10", _rate(10), "learning-rate-high", _TOO_HIGH),
    Operator("rate-x100", _rate(100), "learning-rate-high", _TOO_HIGH),
    Operator("rate-x1000", _rate(1000), "learning-rate-high", _TOO_HIGH),
    Operator("rate-per-10", _rate(1 / 10), "learning-rate-low", _also("too-short")),
    Operator("rate-per-100", _rate(1 / 100), "learning-rate-low", _also("too-short")),
    Operator("rate-per-1000", _rate(1 / 1000), "learning-rate-low"),
    Operator(
        "optimizer-sgd",
        _always(optimizer="SGD", learning_rate=None, settings={}),
        "unsuitable-optimizer",
        _STILL | {"too-short"},
    ),
    Operator(
        "optimizer-adadelta",
        _always(optimizer="Adadelta", learning_rate=None, settings={}),
        "unsuitable-optimizer",
        _STILL,
    ),
    Operator(
        "optimizer-adagrad",
        _always(optimizer="Adagrad", learning_rate=None, settings={}),
        "unsuitable-optimizer",
        _STILL,
    ),
    Operator("weights-zero", _unless_recurrent(initializer="zeros"), "bad-initialisation"),
    Operator("weights-alike", _unless_recurrent(initializer=spoiling.constant(0.05)), "bad-initialisation"),
    Operator(
        "weights-large",
        _unless_recurrent(initializer=spoiling.normal(10.0)),
        "bad-initialisation",
        _also("exploding-gradient"),
    ),
    Operator("inputs-raw", _no_scaling, "input-scale", _also("learning-rate-high")),
    Operator("no-batch-norm", _no_batch_norm, "vanishing-gradient", _also("too-short", "learning-rate-low")),
    Operator("labels-shuffled", _always(spoil=spoiling.shuffled_labels), "label-encoding"),
    Operator("labels-times-255", _times_255, "label-encoding"),
    Operator("labels-off-by-one", _off_by_one, "label-encoding"),
    Operator("labels-imbalanced", _few_positives, "class-imbalance"),
    Operator("one-unit", _bottleneck, "underfitting"),
    Operator(
        "batch-whole",
        _always(batch_size=WHOLE_DATA_SET),
        "batch-size",
        _also("too-short", "learning-rate-low"),
    ),
    Operator(
        "batch-2", _always(batch_size=2, epochs=3), "batch-size", _also("learning-rate-high", "oscillation")
    ),
    Operator("sorted-unshuffled", _sorted_unshuffled, "bad-input"),
    Operator("dropout-0.9", _always(dropout=0.9), "over-regularised"),
    Operator("l2-huge", _always(l2=1.0), "over-regularised"),
    Operator("features-frozen", _first_layer_cut, "frozen-layer", _also("underfitting")),
)
