"""What is known of each kind of command: how it is carried out, what is said before, and what it touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from client_callback.steering.training import Outcome, Training
from client_callback.wire.commands import Instruction
from client_callback.wire.protocol import PlanLine

Handler = Callable[[Training, Any, float], Outcome]
"""(training, instruction, time) → what it did. Checks first and raises Refused, before anything is changed; any
other error means that it failed, and that everything is put back."""

Planner = Callable[[Training, Any], list[PlanLine]]
"""(training, instruction) → what would happen. Raises Refused where the handler would; changes nothing."""

Subject = Literal["rate", "optimizer", "layers", "weights", "loss"]


def plan_nothing(training: Training, instruction: Any) -> list[PlanLine]:
    """For commands that need no preparation to be understood."""
    return []


@dataclass(frozen=True, kw_only=True)
class Handling:
    """One kind of command."""

    carry_out: Handler
    plan: Planner = plan_nothing
    check: Planner | None = None
    """Only what refuses; where a plan takes longer than that. `None`: the plan checks."""
    subjects: frozenset[Subject] = frozenset()
    """What it changes of the training: then the state before is kept, and it can be undone. Empty: nothing."""
    may_change_nothing: bool = False
    """Whether it is as it should be when nothing is other than before; then there is nothing to undo."""
    steps_weights: bool = False
    """Whether the next update of the weights shows its effect, so that the answer waits for that."""
    of_optimizer: bool = False
    """Whether it needs an optimizer that the training uses."""
    changes_training: bool = True
    """Whether a run that is read-only (`control=False`) refuses it."""


Handlings = dict[type[Instruction], Handling]
