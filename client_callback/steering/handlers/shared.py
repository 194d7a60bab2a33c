"""What several families of commands need."""

from __future__ import annotations

from typing import Any

import keras

from client_callback.steering.describe import current_optimizer, describe_optimizer
from client_callback.steering.rate_control import rated_optimizers
from client_callback.steering.rate_owners import rate_owners
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
    """Why the step may use another rate than the one read back."""
    capped = [one for one in rated_optimizers(optimizer) if isinstance(one, keras.optimizers.Adafactor)]
    owners = [str(owner) for owner in rate_owners(training.callbacks)]
    return [
        *("Adafactor never steps faster than 1/√step, counted from its start" for _ in capped[:1]),
        *owners,
    ]


def announce_optimizer(training: Training, time: float) -> None:
    """Tells the monitors which optimizer is at work now, and who decides its rate."""
    described = describe_optimizer(training.model, training.callbacks)
    if described is not None:
        training.emit(OptimizerChanged(step=training.step, time=time, optimizer=described))
