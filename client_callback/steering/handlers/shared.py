"""What several families of commands need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from client_callback.steering.describe import current_optimizer, describe_optimizer
from client_callback.steering.rate_control import RAMP, control_of, rated_optimizers, schedule_name
from client_callback.steering.rate_owners import RateOwner, rate_owners
from client_callback.steering.training import Refused, Training
from client_callback.wire.protocol import OptimizerChanged


def used_optimizer(training: Training) -> Any:
    """The optimizer that the train step applies. Raises Refused when there is none."""
    optimizer = current_optimizer(training.model)
    if optimizer is None:
        raise Refused("this run has no optimizer that unstuck knows; pause, resume, stop and note work")
    if not training.optimizer_used:
        raise Refused(
            "the train step does not apply model.optimizer, so changing it would do nothing; "
            "pause, resume, stop and note work"
        )
    return optimizer


def what_else_decides(training: Training, optimizer: Any) -> list[str]:
    """Why the step may use another rate than the one read back, and who can set it again."""
    capped = [one for one in rated_optimizers(optimizer) if isinstance(one, keras.optimizers.Adafactor)]
    owners = rate_owners(training.callbacks, training.model)
    return [
        *("Adafactor never steps faster than 1/√step, counted from its start" for _ in capped[:1]),
        *_about_owners(optimizer, owners),
    ]


def _about_owners(optimizer: Any, owners: Sequence[RateOwner]) -> list[str]:
    controls = [control for one in rated_optimizers(optimizer) if (control := control_of(one))]
    callbacks = [owner.name for owner in owners if not owner.ours]
    if not callbacks or not any(control.decides for control in controls):
        return [str(owner) for owner in owners]
    ours = [str(owner) for owner in owners if owner.ours]
    if any(control.held for control in controls):
        return [f"held: what {', '.join(callbacks)} may set has no effect", *ours]
    deciding = sorted({name for one in rated_optimizers(optimizer) if (name := schedule_name(one))})
    until = " until it is over" if deciding == [RAMP] else ""
    return [f"what {', '.join(callbacks)} may set has no effect{until}: {', '.join(deciding)} decides", *ours]


def announce_optimizer(training: Training, time: float) -> None:
    """Tells the monitors which optimizer is at work now, and who decides its rate."""
    described = describe_optimizer(training.model, training.callbacks)
    if described is not None:
        training.emit(OptimizerChanged(step=training.step, time=time, optimizer=described))
