"""Whether a change did what it should: what the step after it used and how far it moved the weights.

A change is read back from the model when it is made; what that cannot tell is whether the compiled step follows. So
the answer waits for the next update of the weights, at most one step (or one accumulation) later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.learning_rate import used_rate
from client_callback.steering.rate_control import rated_optimizers, schedule_name, updates
from client_callback.steering.state import State
from client_callback.steering.training import Training
from client_callback.wire.protocol import Measured, Reply

_RATE_TOLERANCE = 1e-2
"""Relative: under mixed precision a rate may be held in 16 bits."""

_ROUNDING = 1e-6
"""Of a schedule's first rate: its smallest are differences of large numbers, which float32 rounds."""


@dataclass(eq=False)
class Verification:
    """One change whose answer waits."""

    reply: Reply
    weights: Mapping[int, npt.NDArray[Any]]
    """Id of each trainable variable → its value right after the change was made, before the next step."""
    wanted_rate: float | None
    """What the next step must use; with a schedule it is the first of its rates. `None`: nothing in particular."""
    confirm: Callable[[], str] = lambda: ""
    """Why it had no effect after all, as whoever made the change finds. Empty: it had."""

    def ready(self, training: Training) -> bool:
        """Whether the weights have been updated since, as far as the optimizer is known."""
        if training.step <= self.reply.step:
            return False
        optimizer = current_optimizer(training.model)
        if optimizer is None:
            return True
        with current_backend().state(training.model):
            count = updates(optimizer)
        length = rated_optimizers(optimizer)[0].gradient_accumulation_steps or 1
        return count % length == 0 or training.step - self.reply.step >= length

    def completed(self, training: Training) -> Reply:
        """The answer with what was measured."""
        model = training.model
        with current_backend().state(model):
            share = _moved(model, self.weights)
        reply = self.reply
        if share is not None:
            after = Measured(value=share, step=training.step - 1)
            reply = msgspec.structs.replace(reply, update_after=after)
        if share == 0.0:
            return _ineffective(reply, _why_nothing_moved(training))
        why = self.confirm()
        if why:
            return _ineffective(reply, why)
        used = training.last_values.get("learning_rate", math.nan)
        if self.wanted_rate is not None and not math.isnan(used) and self._off(used, training):
            return _ineffective(
                reply, f"the step after it used {used:.6g}: something in this training sets the rate again"
            )
        return reply

    def _off(self, used: float, training: Training) -> bool:
        """Whether the last step used another rate than it should: with a schedule, each step has its own."""
        first = wanted = self.wanted_rate or 0.0
        optimizer = current_optimizer(training.model)
        if optimizer is not None:
            with current_backend().state(training.model):
                inner = rated_optimizers(optimizer)[0]
                wanted = first if schedule_name(inner) is None else used_rate(inner)
        return abs(used - wanted) > max(_RATE_TOLERANCE * wanted, _ROUNDING * first)


def weights_of(model: Any, state: State) -> dict[int, npt.NDArray[Any]]:
    """The trainable variables' values in a kept state."""
    return {id(v): state.values[id(v)] for v in model.trainable_variables if id(v) in state.values}


def weights_now(model: Any) -> dict[int, npt.NDArray[Any]]:
    """The trainable variables' values as they are."""
    with current_backend().state(model):
        return {id(v): current_backend().host(v) for v in model.trainable_variables}


def _moved(model: Any, before: Mapping[int, npt.NDArray[Any]]) -> float | None:
    """‖w′ − w‖ / ‖w‖ over all trainable weights. `None`: not known."""
    moved = size = 0.0
    for variable in model.trainable_variables:
        if id(variable) not in before:
            return None
        old = before[id(variable)].astype(np.float64)
        new = current_backend().host(variable).astype(np.float64)
        moved += float(np.square(new - old).sum())
        size += float(np.square(old).sum())
    if not size or not math.isfinite(moved) or not math.isfinite(size):
        return None
    return math.sqrt(moved / size)


def _ineffective(reply: Reply, why: str) -> Reply:
    reason = "; ".join(part for part in (why, reply.reason) if part)
    return msgspec.structs.replace(reply, status="ineffective", reason=reason)


def _why_nothing_moved(training: Training) -> str:
    if not training.model or not training.model.trainable_variables:
        return "no weight moved: no layer is trainable"
    norm = training.last_values.get("grad_norm", math.nan)
    if norm == 0.0:
        return "no weight moved: all gradients are 0"
    if "loss_scale" in training.last_values and not math.isfinite(norm):
        return "no weight moved in the step after it: its gradients overflowed, so the loss scaler skipped it"
    return "no weight moved in the step after it"
