"""Another optimizer in the middle of a training, with everything around it kept, and a way back.

`build_replacement` makes the new optimizer without touching the model; `exchange` puts it in, verifies it, and
puts the old one back when anything fails. Called by the handlers between two batches. `iterations` are never
copied: with fresh moments, Adam's bias correction would make hundreds of updates several times too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.learning_rate import read_rate
from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    is_computed,
    rated_optimizers,
    schedule_name,
    updates,
)
from client_callback.steering.training import Refused, Training
from client_callback.wire.protocol import Scalar

_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
_CARRIED = (
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)
_EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


@dataclass
class Replacement:
    """A new optimizer, built and ready, and what is to be said about it."""

    model: Any
    old: Any
    new: Any
    twin: Callable[[], Any]
    """Makes an unbuilt optimizer with the arguments of the new one, without loss scaling."""
    control: RateControl | None = None
    """Put on the new optimizer when it keeps a schedule."""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._old_control = control_of(rated_optimizers(self.old)[0])
        self._old_compiled = self._compiled.get("optimizer")
        if "optimizer" not in self._compiled:
            self.notes.append(
                "this model keeps no record of how it was compiled, so a saved file may not load"
            )

    def put_in(self) -> None:
        """The model trains with the new optimizer from its next trace on, and is saved with it."""
        if self._old_control is not None:
            self._old_control.detach()
        if self.control is not None:
            self.control.attach()
        self.model.optimizer = self.new
        current_backend().forget_trace(self.model)
        if "optimizer" in self._compiled:
            # Under mixed precision `compile` keeps the optimizer as it was before it was wrapped.
            bare = self._old_compiled is rated_optimizers(self.old)[0]
            self._compiled["optimizer"] = rated_optimizers(self.new)[0] if bare else self.new

    def put_back(self) -> None:
        """The model is as it was before `put_in`; harmless when it still is."""
        if self.control is not None:
            self.control.detach()
        if self._old_control is not None:
            self._old_control.attach()
        self.model.optimizer = self.old
        current_backend().forget_trace(self.model)
        if "optimizer" in self._compiled:
            self._compiled["optimizer"] = self._old_compiled

    @property
    def _compiled(self) -> dict[str, Any]:
        """The arguments of `compile`, from which a saved file is compiled again."""
        config = getattr(self.model, "_compile_config", None)
        return getattr(config, "config", {})


def build_replacement(model: Any, old: Any, cls: type, arguments: Mapping[str, Scalar]) -> Replacement:
    """A built optimizer of class `cls` that takes over what surrounds the old one.

    Raises:
        Refused: the arguments do not fit this training.
    """
    if isinstance(old, keras.optimizers.MultiOptimizer):
        raise Refused("MultiOptimizer gives each variable its own optimizer; one for all would undo that")
    scaled = isinstance(old, keras.optimizers.LossScaleOptimizer)
    if scaled and arguments.get("loss_scale_factor") is not None:
        raise Refused("loss_scale_factor does nothing here: LossScaleOptimizer already scales the loss")
    inner = rated_optimizers(old)[0]
    config = {**_surroundings(inner, arguments), **_rate(inner, arguments), **arguments}
    try:
        with current_backend().scope(model):
            new_inner = cls(**config)
    except (ValueError, TypeError) as error:
        raise Refused(f"{cls.__name__.lower()}: {error}") from error
    replacement = Replacement(model, old, new_inner, twin=lambda: cls(**config))
    with current_backend().scope(model):
        _exclude_from_weight_decay(inner, new_inner)
        if scaled:
            replacement.new = _scaled_like(old, new_inner)
        replacement.new.build(model.trainable_variables)
        _carry_state(replacement, inner, new_inner)
    return replacement


def exchange(training: Training, replacement: Replacement) -> None:
    """Puts the replacement in; when that fails the old optimizer trains on and the error is raised."""
    current_backend().rehearse(replacement.model, replacement.new, replacement.twin)
    try:
        training.rebuild(replacement.put_in)
        _verify(replacement)
    except Refused:
        replacement.put_back()
        raise
    except BaseException:
        try:
            training.rebuild(replacement.put_back)
        finally:
            replacement.put_back()
        raise


def _surroundings(inner: Any, arguments: Mapping[str, Scalar]) -> dict[str, Any]:
    """What belongs to the training rather than to the algorithm, unless the command says otherwise."""
    carried = [name for name in _CARRIED if name not in arguments]
    if not any(name in arguments for name in _CLIPPING):
        carried += _CLIPPING
    return {name: getattr(inner, name) for name in carried}


def _rate(inner: Any, arguments: Mapping[str, Scalar]) -> dict[str, Any]:
    """A schedule that still decides is kept; otherwise the new optimizer's own default is used."""
    keeps = "learning_rate" not in arguments and schedule_name(inner) is not None
    return {"learning_rate": inner._learning_rate} if keeps else {}


def _exclude_from_weight_decay(inner: Any, new_inner: Any) -> None:
    """Takes over the variables and patterns given to `exclude_from_weight_decay`, before the build."""
    for attribute in _EXCLUSIONS:
        if hasattr(inner, attribute):
            setattr(new_inner, attribute, getattr(inner, attribute))


def _scaled_like(old: Any, new_inner: Any) -> Any:
    return type(old)(
        new_inner,
        initial_scale=old.initial_scale,
        dynamic_growth_steps=old.dynamic_growth_steps,
        name=old.name,
    )


def _carry_state(replacement: Replacement, inner: Any, new_inner: Any) -> None:
    old, new = replacement.old, replacement.new
    if isinstance(old, keras.optimizers.LossScaleOptimizer) and old.built:
        current_backend().copy([(new.dynamic_scale, old.dynamic_scale), (new.step_counter, old.step_counter)])
    phase = _carry_accumulation(replacement, inner, new_inner)
    _keep_schedule(replacement, inner, new_inner, phase)
    _restart_averages(replacement, inner, new_inner)


def _carry_accumulation(replacement: Replacement, inner: Any, new_inner: Any) -> int:
    """Hands over gradients accumulated so far; returns of how many batches they are.

    Setting the phase leaves `iterations` at 0: Keras divides by the number of batches per update.
    """
    length, new_length = inner.gradient_accumulation_steps, new_inner.gradient_accumulation_steps
    phase = updates(inner) % length if length and inner.built else 0
    if not phase:
        return 0
    if not new_length or phase >= new_length:
        replacement.notes.append(f"the gradients accumulated over the last {phase} batches are dropped")
        return 0
    pairs = [
        (target, inner._accumulated_gradients[inner._get_variable_index(variable)])
        for target, variable in zip(
            new_inner._accumulated_gradients, new_inner._trainable_variables, strict=True
        )
    ]
    current_backend().copy(pairs)
    new_inner._iterations.assign(phase)
    return phase


def _keep_schedule(replacement: Replacement, inner: Any, new_inner: Any, phase: int) -> None:
    name = schedule_name(inner)
    if not is_computed(new_inner):
        if name is not None:
            replacement.notes.append(f"{name} no longer decides the rate")
        return
    old = control_of(inner)
    position = old.position if old else updates(inner)
    multiplier = old.factor if old else 1.0
    replacement.control = RateControl(
        new_inner, replacement.new, offset=position - phase, multiplier=multiplier
    )
    replacement.notes.append(
        f"{name} goes on from its step {position} in this fit; in a saved file it starts anew at this switch"
    )


def _restart_averages(replacement: Replacement, inner: Any, new_inner: Any) -> None:
    """Keras sets an average to the weight at the first update, so the old ones could not be kept anyway."""
    if inner.use_ema and not new_inner.use_ema:
        replacement.notes.append("the moving averages of the weights are dropped")
    if not new_inner.use_ema:
        return
    # When no update follows, `fit` would end by writing averages of zero into the weights.
    averages = zip(new_inner._model_variables_moving_average, new_inner._trainable_variables, strict=True)
    current_backend().copy([(average, weight) for average, weight in averages if average is not None])
    replacement.notes.append("the moving averages of the weights start anew from the weights as they are")


def _verify(replacement: Replacement) -> None:
    found = replacement.model.optimizer
    if found is not replacement.new:
        raise RuntimeError(f"the model's optimizer is {found!r} and not the one it was given")
    if not found.built:
        raise RuntimeError("the new optimizer is not built")
    rate = read_rate(rated_optimizers(found)[0])
    if not 0 <= rate < float("inf"):
        raise RuntimeError(f"the new optimizer's learning rate reads {rate}")
