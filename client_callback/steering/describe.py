"""The optimizer at work as an event tells it. Reads the model; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from client_callback.steering.learning_rate import read_rates
from client_callback.steering.optimizers import command_name, settings
from client_callback.steering.rate_control import control_of, rated_optimizers, schedule_name
from client_callback.steering.rate_owners import rate_owners
from client_callback.wire import protocol
from client_callback.wire.protocol import Scalar


def describe_optimizer(model: Any, callbacks: Sequence[Any]) -> protocol.Optimizer | None:
    """The model's optimizer. `None`: it has none that Keras knows of."""
    optimizer = current_optimizer(model)
    if optimizer is None:
        return None
    rated = rated_optimizers(optimizer)
    main = rated[0] if len(rated) == 1 else optimizer
    schedules = sorted({name for one in rated if (name := schedule_name(one))})
    return protocol.Optimizer(
        name=command_name(main),
        class_name=type(main).__name__,
        settings=described_settings(optimizer),
        schedule=", ".join(schedules) or None,
        rate_owners=tuple(owner.name for owner in rate_owners(callbacks, model)),
        held=any(control.held for one in rated if (control := control_of(one))),
    )


def current_optimizer(model: Any | None) -> Any | None:
    """The compiled optimizer. `None`: no model, not compiled, or an object that is no Keras optimizer."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer if isinstance(optimizer, keras.optimizers.Optimizer) else None


def described_settings(optimizer: Any) -> dict[str, Scalar]:
    """Everything about the optimizer that can be told in a word, a computed rate by its schedule's name."""
    rates: dict[str, Scalar] = dict(read_rates(optimizer))
    for key, one in zip(rates, rated_optimizers(optimizer), strict=False):
        rates[key] = schedule_name(one) or rates[key]
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return rates
    scaled: dict[str, Scalar] = {}
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        scaled = {"dynamic_loss_scale": True}
    return {**rates, **settings(rated_optimizers(optimizer)[0]), **scaled}
