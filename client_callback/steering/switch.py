"""Another optimizer in the middle of a training, with everything around it kept, and a way back.

`prepare` and `prepare_changed` make the new optimizer, `build` gives it its variables without touching the model;
`exchange` puts it in, verifies it, and puts the old one back when anything fails. Called by the handlers between two
batches. `iterations` are copied only together with the moments: with fresh ones, Adam's bias correction would make
hundreds of updates several times too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case

from client_callback.steering.backends import current_backend
from client_callback.steering.carrying import Moments, carry_over
from client_callback.steering.learning_rate import read_rate
from client_callback.steering.optimizers import CLIPPING, command_name, optimizer_catalogue
from client_callback.steering.rate_control import (
    RateControl,
    control_of,
    deciding_schedule,
    is_computed,
    is_variable,
    number,
    rated_optimizers,
    schedule_name,
    updates,
)
from client_callback.steering.trained_variables import known_variables, update_only
from client_callback.steering.training import Refused, Training
from client_callback.wire.protocol import Scalar

_CARRIED = (
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)
_EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


@dataclass(frozen=True)
class Proposal:
    """An optimizer that could take over; it has no slots yet, and nothing knows it."""

    model: Any
    old: Any
    inner: Any
    """Without loss scaling."""
    twin: Callable[[], Any]
    """Makes an unbuilt optimizer with the same arguments, without loss scaling."""
    moments: Moments
    keeps_rate: bool
    """Whether what decides the rate now goes on deciding it."""


@dataclass
class Replacement:
    """A new optimizer, and what is to be said about it."""

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
        if self._old_control is not None and control_of(self._old_control.optimizer) is not self._old_control:
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


def prepare(model: Any, old: Any, cls: type, arguments: Mapping[str, Scalar]) -> Proposal:
    """Makes an optimizer of class `cls` that is to take over from the old one, and changes nothing.

    Raises:
        Refused: the arguments do not fit this training.
    """
    inner = _exchangeable(old)
    _check_fitting(model, old, arguments)
    config = {**_surroundings(inner, arguments), **_rate(inner, arguments), **arguments}
    if "name" in optimizer_catalogue().get(cls.__name__.lower(), ()):
        config.setdefault("name", to_snake_case(cls.__name__))  # Keras would number the ones made on the way
    keeps_rate = "learning_rate" not in arguments and deciding_schedule(inner) is not None
    new = _made(model, lambda: cls(**config), cls.__name__.lower())
    return Proposal(model, old, new, lambda: cls(**config), "fresh", keeps_rate)


def prepare_changed(model: Any, old: Any, changes: Mapping[str, Scalar]) -> Proposal:
    """Makes the optimizer at work once more, with other settings, and changes nothing.

    Raises:
        Refused: the settings do not fit this training, or this optimizer cannot be made again.
    """
    inner = _exchangeable(old)
    _check_fitting(model, old, changes)
    cls = type(inner)
    try:
        config = inner.get_config()
    except Exception as error:
        raise Refused(f"{cls.__name__} cannot be made again: {type(error).__name__}: {error}") from error
    rate = inner._learning_rate
    config |= {"learning_rate": number(rate) if is_variable(rate) else rate, **changes}

    def make() -> Any:
        return cls.from_config(dict(config))  # a copy: it may take the dictionary apart

    return Proposal(model, old, _made(model, make, command_name(inner)), make, "carried", keeps_rate=True)


def build(proposal: Proposal) -> Replacement:
    """Gives the new optimizer its variables, and hands it what the old one has gathered."""
    model, old, new_inner = proposal.model, proposal.old, proposal.inner
    inner = rated_optimizers(old)[0]
    replacement = Replacement(model, old, new_inner, twin=proposal.twin)
    with current_backend().scope(model):
        _exclude_from_weight_decay(inner, new_inner)
        if isinstance(old, keras.optimizers.LossScaleOptimizer):
            replacement.new = _scaled_like(old, new_inner)
        carried = proposal.moments == "carried"
        replacement.new.build(_known_weights(model, inner) if carried else list(model.trainable_variables))
        replacement.notes += carry_over(old, replacement.new, proposal.moments)
        if carried:
            _carry_rate(inner, new_inner)
        _keep_schedule(replacement, inner, new_inner, proposal.keeps_rate)
    update_only(replacement.new, model.trainable_variables)
    return replacement


def exchange(training: Training, replacement: Replacement, beside: Callable[[], None] = lambda: None) -> None:
    """Puts the replacement in; when that fails the old optimizer trains on and the error is raised.

    `beside`: what else is to change before the step is traced anew.
    """
    current_backend().rehearse(replacement.model, replacement.new, replacement.twin)

    def change() -> None:
        replacement.put_in()
        beside()

    try:
        training.rebuild(change)
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


def _exchangeable(old: Any) -> Any:
    """The optimizer that another can replace, without loss scaling."""
    if isinstance(old, keras.optimizers.MultiOptimizer):
        raise Refused("MultiOptimizer gives each variable its own optimizer; one for all would undo that")
    return rated_optimizers(old)[0]


def _check_fitting(model: Any, old: Any, arguments: Mapping[str, Scalar]) -> None:
    scaled = isinstance(old, keras.optimizers.LossScaleOptimizer)
    if scaled and arguments.get("loss_scale_factor") is not None:
        raise Refused("loss_scale_factor does nothing here: LossScaleOptimizer already scales the loss")
    if arguments.get("gradient_accumulation_steps") and not current_backend().accumulates(model):
        raise Refused("Keras cannot accumulate gradients on several replicas with TensorFlow")


def _made(model: Any, make: Callable[[], Any], name: str) -> Any:
    try:
        with current_backend().scope(model):
            return make()
    except (ValueError, TypeError) as error:
        raise Refused(f"{name}: {error}") from error


def _known_weights(model: Any, inner: Any) -> list[Any]:
    """Those that the optimizer keeps moments of, frozen ones too, in the model's order."""
    known = known_variables(inner) if inner.built else model.trainable_variables
    ids = {id(weight) for weight in known}
    ordered = [weight for weight in model.weights if id(weight) in ids]
    return ordered if len(ordered) == len(ids) else list(known)


def _surroundings(inner: Any, arguments: Mapping[str, Scalar]) -> dict[str, Any]:
    """What belongs to the training rather than to the algorithm, unless the command says otherwise."""
    carried = [name for name in _CARRIED if name not in arguments]
    if not any(name in arguments for name in CLIPPING):
        carried += CLIPPING
    return {name: getattr(inner, name) for name in carried}


def _rate(inner: Any, arguments: Mapping[str, Scalar]) -> dict[str, Any]:
    """A schedule that still decides is kept; otherwise the new optimizer's own default is used."""
    own = deciding_schedule(inner) is inner._learning_rate
    return {"learning_rate": inner._learning_rate} if own and "learning_rate" not in arguments else {}


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


def _carry_rate(inner: Any, new_inner: Any) -> None:
    rates = (new_inner._learning_rate, inner._learning_rate)
    if all(map(is_variable, rates)):
        current_backend().copy([rates])


def _keep_schedule(replacement: Replacement, inner: Any, new_inner: Any, keeps: bool) -> None:
    """Puts what decides the rate before the new optimizer, where that is to go on."""
    control, name = control_of(inner), schedule_name(inner)
    if not keeps:
        if name is not None:
            replacement.notes.append(f"{name} no longer decides the rate")
        if control is not None and control.held:
            replacement.notes.append("the rate is no longer held")
        return
    if control is not None:
        replacement.control = control.carried_to(new_inner, replacement.new)
    elif is_computed(new_inner):
        offset = updates(inner) - updates(new_inner)
        replacement.control = RateControl(new_inner, replacement.new, offset=offset)
    moved = updates(inner) != updates(new_inner)
    if replacement.control is not None and moved and deciding_schedule(inner) is inner._learning_rate:
        replacement.notes.append(
            f"{name} goes on from its step {replacement.control.position} in this fit; a saved file would go on from "
            f"its step {updates(new_inner)}"
        )


def _verify(replacement: Replacement) -> None:
    found = replacement.model.optimizer
    if found is not replacement.new:
        raise RuntimeError(f"the model's optimizer is {found!r} and not the one it was given")
    if not found.built:
        raise RuntimeError("the new optimizer is not built")
    rate = read_rate(rated_optimizers(found)[0])
    if not 0 <= rate < float("inf"):
        raise RuntimeError(f"the new optimizer's learning rate reads {rate}")
