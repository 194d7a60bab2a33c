"""What is done to any training as a whole: hold it, save it, write a remark. `running_fit` has what a `fit` adds."""

from __future__ import annotations

from client_callback.steering.checkpoints import plan_checkpoint, save_checkpoint
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.wire import commands


def pause(training: Training, instruction: commands.Pause, time: float) -> Outcome:
    """`pause`."""
    if training.paused:
        raise Refused(f"already paused at step {training.step}; `resume` goes on")
    training.pause()
    return Outcome(before={"state": "running"}, after={"state": _state(training)})


def resume(training: Training, instruction: commands.Resume, time: float) -> Outcome:
    """`resume`."""
    if not training.paused:
        raise Refused("not paused; `pause` holds training before its next batch")
    training.resume()
    return Outcome(before={"state": "paused"}, after={"state": _state(training)})


def note(training: Training, instruction: commands.Note, time: float) -> Outcome:
    """`note "…"`: the reply is the record."""
    return Outcome()


def _state(training: Training) -> str:
    return "paused" if training.paused else "running"


HANDLINGS: Handlings = {
    commands.Pause: Handling(carry_out=pause),
    commands.Resume: Handling(carry_out=resume),
    commands.Checkpoint: Handling(carry_out=save_checkpoint, plan=plan_checkpoint),
    commands.Note: Handling(carry_out=note, changes_training=False),
}
