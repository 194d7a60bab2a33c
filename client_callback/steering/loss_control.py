"""What a command can set of the loss: how much each class counts, and each output.

Class weights multiply the sample weights on the way into `compute_loss` while the model is trained, as
`fit(class_weight=…)` does on the host; they last as long as the training does. Weights of outputs are Keras' own
`loss_weights`, changed where the compiled loss keeps them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.predictions import infer_task
from client_callback.steering.backends import current_backend
from client_callback.steering.training import Refused
from client_callback.wire.protocol import Scalar

# ── Classes ─────────────────────────────────────────────────────────────────────────────────────────


class ClassWeights:
    """Weights of classes in the loss of one model's training, from `attach` to `detach`.

    Args:
        model: with one output.
        weights: class → weight; classes not among them count 1.
    """

    def __init__(self, model: Any, weights: Mapping[int, float]) -> None:
        self.weights = dict(weights)
        self.reached = False
        """Whether the train step has been traced with them."""
        self.failure = ""
        """Why the labels of this training could not be read; then the loss is not weighted."""
        self._model = model
        # The last entry is for all classes beyond.
        named = [self.weights.get(label, 1.0) for label in range(max(self.weights) + 1)]
        self._vector = np.array([*named, 1.0], np.float32)
        self._hooks = InstanceHooks()

    def attach(self) -> None:
        """From the next trace on."""
        self._hooks.wrap(self._model, "compute_loss", self._wrap)

    def detach(self) -> None:
        """From the next trace on, the model is as it was before `attach`."""
        self._hooks.remove()

    def _wrap(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(compute_loss)

        @functools.wraps(compute_loss)
        def weighted_compute_loss(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            if bound.arguments.get("training", True):
                self._weigh(bound.arguments)
            return compute_loss(*bound.args, **bound.kwargs)

        return weighted_compute_loss

    def _weigh(self, arguments: dict[str, Any]) -> None:
        self.reached = True
        try:
            weights = self.of_labels(_single(arguments.get("y")), _single(arguments.get("y_pred")))
            given = arguments.get("sample_weight")
            if given is not None:
                weights = weights * _like(ops.cast(_single(given), weights.dtype), weights)
            arguments["sample_weight"] = _packed(arguments.get("sample_weight"), weights)
        except Exception as error:  # noqa: BLE001 (labels of any kind; an error here would end the training)
            self.failure = f"{type(error).__name__}: {error}"

    def of_labels(self, labels: Any, predictions: Any) -> Any:
        """The weight of each label: of class numbers, one-hot rows, or one unit's 0 and 1 (or −1 and 1).

        Args:
            labels: `[N, …]`, or `[N, …, classes]` where one-hot.
            predictions: `[N, …, units]`.
        """
        units = int(predictions.shape[-1])
        same_rank = len(labels.shape) == len(predictions.shape)
        if same_rank and units > 1 and labels.shape[-1] == units:
            classes = ops.argmax(labels, axis=-1)
        else:
            classes = ops.squeeze(labels, axis=-1) if same_rank and labels.shape[-1] == 1 else labels
            classes = classes > 0.5 if units == 1 else classes
        if len(classes.shape) != len(predictions.shape) - 1:
            raise ValueError(f"labels of shape {labels.shape} for predictions of shape {predictions.shape}")
        # Labels below 0 are those that the loss leaves out.
        places = ops.clip(ops.cast(classes, "int32"), 0, len(self._vector) - 1)
        return ops.take(ops.convert_to_tensor(self._vector), places, axis=0)


_ATTACHED: WeakKeyDictionary[Any, ClassWeights] = WeakKeyDictionary()
"""Model → the weights of its classes."""


class ClassWeightSetting:
    """How much each class counts in the loss."""

    traced = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> tuple[tuple[int, float], ...]:
        """(class, weight) in the order of the classes; empty when all count the same."""
        control = _ATTACHED.get(self._model)
        return () if control is None else tuple(sorted(control.weights.items()))

    def write(self, value: tuple[tuple[int, float], ...]) -> None:
        """From the next trace on."""
        remove_class_weights(self._model)
        if value:
            control = ClassWeights(self._model, dict(value))
            control.attach()
            _ATTACHED[self._model] = control
        current_backend().forget_trace(self._model)

    def told(self) -> dict[str, Scalar]:
        """As a command gives them."""
        weights = self.read()
        return {"class_weight": " ".join(f"{label}={weight:.6g}" for label, weight in weights) or "none"}


def remove_class_weights(model: Any) -> bool:
    """Takes them off the model; whether there were some."""
    control = _ATTACHED.pop(model, None)
    if control is not None:
        control.detach()
    return control is not None


def why_unweighted(model: Any) -> str:
    """Once the step with them is traced: why the classes are not weighted after all. Empty: they are."""
    control = _ATTACHED.get(model)
    if control is None:
        return ""
    if not control.reached:
        return "the train step does not call compute_loss, so the loss is not weighted"
    return (
        control.failure and f"the labels could not be read, so the loss is not weighted ({control.failure})"
    )


@dataclass(frozen=True)
class Classes:
    """The classes that a model tells apart."""

    number: int | None
    """`None`: not known before its output is."""

    @property
    def possible(self) -> str:
        """For an answer."""
        return "whole numbers from 0 on" if self.number is None else f"0 to {self.number - 1}"


def classes_of(model: Any | None, *, labels_counted: bool) -> Classes:
    """The classes of a model whose loss can be weighted by them.

    Args:
        model: that is trained.
        labels_counted: whether labels of classes were seen in its training.

    Raises:
        Refused: the loss cannot be weighted by classes.
    """
    if model is None or getattr(model, "_compile_loss", None) is None:
        raise Refused("class-weight needs a model with a compiled loss")
    if not getattr(model, "_compute_loss_has_training_arg", True):
        raise Refused("the model's own compute_loss takes no `training`, so validation would be weighted too")
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    if len(outputs) > 1 or len(keras.tree.flatten(model.loss)) > 1:
        raise Refused(
            "the model has several outputs, so it is ambiguous whose classes are meant; loss-weight weighs outputs"
        )
    output = outputs[0] if outputs else keras.KerasTensor((None, None))
    # Of the targets only the kind of number would count; whether they are classes, counting them has shown.
    targets = keras.KerasTensor((None,), "int32" if labels_counted else "float32")
    task = infer_task(keras.tree.flatten(model.loss)[0], targets, output)
    if task.kind not in ("classification", "binary"):
        raise Refused("the loss tells of no classes: it is a regression, or of an unknown kind")
    units = output.shape[-1]
    if task.kind == "binary" and task.units == 1 and (units or 1) > 1:
        raise Refused(f"each example may be of several of the {units} classes, so it has no one weight")
    return Classes(task.classes if outputs else None)


def _single(value: Any) -> Any:
    """The only one in a structure."""
    (found,) = keras.tree.flatten(value)
    return found


def _packed(like: Any, value: Any) -> Any:
    return value if like is None else keras.tree.pack_sequence_as(like, [value])


def _like(given: Any, weights: Any) -> Any:
    """Sample weights that broadcast against one weight for each label."""
    if len(given.shape) == len(weights.shape) + 1 and given.shape[-1] == 1:
        given = ops.squeeze(given, axis=-1)
    while len(given.shape) < len(weights.shape):
        given = ops.expand_dims(given, axis=-1)
    if len(given.shape) > len(weights.shape):
        raise ValueError(f"sample weights of shape {given.shape} for labels of shape {weights.shape}")
    return given


# ── Outputs ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class LossWeights:
    """The weights of the outputs, and how Keras keeps them. Compared by the weights."""

    weights: tuple[float | None, ...]
    """Of each output with a loss. `None` counts 1."""
    compiled: tuple[Any, Any]
    """Loss and weights in the arguments of `compile`, from which a saved file is compiled again."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LossWeights) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers)

    @property
    def _numbers(self) -> tuple[float, ...]:
        return tuple(1.0 if weight is None else float(weight) for weight in self.weights)


class LossWeightSetting:
    """How much the loss of each output counts."""

    traced = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self) -> LossWeights:
        """As Keras keeps them."""
        arguments = self._arguments
        weights = tuple(flat.loss_weights for flat in _flat_losses(self._model))
        return LossWeights(weights, (arguments.get("loss"), arguments.get("loss_weights")))

    def write(self, value: LossWeights) -> None:
        """From the next trace on, and for what is compiled from a saved file."""
        flat = _flat_losses(self._model)
        flat[:] = [one._replace(loss_weights=weight) for one, weight in zip(flat, value.weights, strict=True)]
        if "loss" in self._arguments:
            self._arguments.update(zip(("loss", "loss_weights"), value.compiled, strict=True))
        current_backend().forget_trace(self._model)
        current_backend().forget_evaluation(self._model)

    def told(self) -> dict[str, Scalar]:
        """Of each output."""
        return {f"{name}.loss_weight": weight for name, weight in loss_weights_of(self._model).items()}

    def with_weights(self, wanted: Mapping[str, float]) -> LossWeights:
        """The present ones, with those of some outputs replaced."""
        weights = {**loss_weights_of(self._model), **wanted}
        compiled = _structured(self.read().compiled[0], weights)
        return LossWeights(tuple(weights.values()), compiled)

    @property
    def _arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = getattr(getattr(self._model, "_compile_config", None), "config", {})
        return found


def loss_weights_of(model: Any) -> dict[str, float]:
    """Output with a loss → how much that counts; empty where there is only one, and before the loss is built."""
    flat = _flat_losses(model)
    if len(flat) <= 1:
        return {}
    return {one.name: 1.0 if one.loss_weights is None else float(one.loss_weights) for one in flat}


def _flat_losses(model: Any) -> list[Any]:
    found: list[Any] | None = getattr(getattr(model, "_compile_loss", None), "_flat_losses", None)
    return [] if found is None else found


def _structured(loss: Any, weights: Mapping[str, float]) -> tuple[Any, Any]:
    """(loss, loss_weights) for `compile`, which wants both in one structure."""
    if isinstance(loss, dict):
        return loss, {name: weights.get(name, 1.0) for name in loss}
    losses = loss if isinstance(loss, list | tuple) else [loss] * len(weights)
    given = iter(weights.values())
    return list(losses), [1.0 if one is None else next(given) for one in losses]
