"""Joins what can be told of a `fit`'s data: seen on the training's thread, described on the sender's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from client_callback.inspection.arguments import FitArguments, running_fit
from client_callback.inspection.arrays import class_numbers, describe_input, describe_target
from client_callback.inspection.copies import Copies, copies_of
from client_callback.inspection.signal_probe import probe_classes, probe_values
from client_callback.inspection.sources import Source, source_of
from client_callback.instrument.predictions import REGRESSION, describe_loss
from client_callback.instrument.sampler import losses_of_outputs, targets_of_outputs
from client_callback.wire.protocol import DataDescribed, SignalProbe, TargetData

MAX_WEIGHTED_CLASSES = 1_000


class Inspection:
    """What was seen of the data of one `fit`; holds copies, none of the user's own arrays."""

    def __init__(self, fit: FitArguments, *, of_amounts: bool = False) -> None:
        """`of_amounts`: whether the first output's loss takes its targets for amounts, whole numbers too."""
        self._of_amounts = of_amounts
        arrays = _arrays(fit)
        self._copies: Copies | None = None
        if arrays is None:
            self._source = source_of(fit.x)
        else:
            inputs, targets = arrays
            self._copies = copies_of(inputs, targets) if int(inputs[0].shape[0]) else None
            self._source = Source(
                "arrays",
                int(inputs[0].shape[0]),
                fit.batch_size,
                bool(fit.shuffle),
                fit.sample_weight is not None,
            )
        self._class_weight = _class_weights(fit.class_weight)
        self._validated = fit.validated

    @classmethod
    def of_running_fit(cls, model: keras.Model) -> Inspection | None:
        """Of the one on the call stack. `None`: there is none, or what it trains on is not known."""
        fit = running_fit(model)
        if fit is None or fit.x is None:
            return None
        outputs = getattr(model, "_outputs_struct", None)
        if isinstance(fit.y, dict):
            fit = replace(fit, y=targets_of_outputs(fit.y, outputs, model))
        losses = losses_of_outputs(getattr(model, "loss", None), outputs, model)
        first = next((loss for loss in losses if loss), None)
        return cls(fit, of_amounts=describe_loss(first)[0] in REGRESSION)

    def described(self) -> DataDescribed:
        """Takes a fifth of a second or so."""
        source, copies = self._source, self._copies
        targets = () if copies is None else tuple(map(describe_target, copies.targets))
        return DataDescribed(
            source=source.name,
            examples=source.examples,
            batch_size=source.batch_size,
            shuffled=source.shuffled,
            class_weight=self._class_weight,
            weighted=source.weighted,
            validated=self._validated,
            inputs=() if copies is None else tuple(map(describe_input, copies.inputs)),
            targets=targets,
            signal=None if copies is None else _signal(copies, targets, of_amounts=self._of_amounts),
        )


def _arrays(fit: FitArguments) -> tuple[list[Any], list[Any]] | None:
    """(inputs, targets), if `fit` was given arrays or tensors with as many examples each."""
    inputs = [part for part in keras.tree.flatten(fit.x) if part is not None]
    targets = [part for part in keras.tree.flatten(fit.y) if part is not None]
    if not inputs or not all(_has_examples(part) for part in [*inputs, *targets]):
        return None
    return (inputs, targets) if len({int(part.shape[0]) for part in [*inputs, *targets]}) == 1 else None


def _has_examples(part: Any) -> bool:
    shape = getattr(part, "shape", None)
    return shape is not None and len(shape) > 0 and isinstance(shape[0], int | np.integer)


def _class_weights(given: Any) -> dict[str, float]:
    some = list(given.items())[:MAX_WEIGHTED_CLASSES]
    return {str(label): float(weight) for label, weight in some}


def _signal(copies: Copies, targets: tuple[TargetData, ...], *, of_amounts: bool) -> SignalProbe | None:
    inputs = [part.examples[copies.paired] for part in copies.inputs if part.examples is not None]
    if not targets or copies.pairs is None or not inputs:
        return None
    first = targets[0]
    if first.classes and (first.one_hot or not of_amounts):
        return probe_classes(inputs, class_numbers(copies.pairs, one_hot=first.one_hot))
    if first.one_hot:  # of too many classes
        return None
    return probe_values(inputs, copies.pairs)
