"""What Keras' `fit` around a training was given, found on the call stack: `evaluate`, `stop`, `extend`.

Keras hands callbacks neither the validation data nor a way to skip it; both are within reach of the frame of `fit`,
whose names are the same on every backend.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, GeneratorType
from typing import Any

from client_callback.steering.backends import current_backend
from client_callback.steering.handling import Handling, Handlings
from client_callback.steering.state import set_aside
from client_callback.steering.training import Outcome, Refused, Training, announce_resting_state
from client_callback.wire import commands
from client_callback.wire.protocol import Evaluated, PlanLine, StateChanged

_MOST_FRAMES = 50
_DECIDES_VALIDATION = "_should_eval"
"""Where `fit` asks at the end of an epoch whether to validate, on every backend."""


@dataclass(frozen=True)
class Validation:
    """The validation data of a `fit`, as `evaluate` takes it."""

    x: Any
    y: Any
    sample_weight: Any
    batch_size: int | None
    steps: int | None


class RunningFit:
    """The `fit` of one training, or its own loop."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._found = False
        self._validation: Validation | None = None
        self.skips_validation = False
        """Whether no validation is wanted any more."""

    def find(self) -> None:
        """Looks for the `fit` that called; must come from one of its callbacks."""
        frame = _frame_of_fit(self._training.model)
        if frame is None:
            return
        known = frame.f_locals
        self._found = True
        if known["validation_data"] is not None:
            self._validation = Validation(
                known["val_x"],
                known["val_y"],
                known["val_sample_weight"],
                known["validation_batch_size"] or known["batch_size"],
                known["validation_steps"],
            )

    def release(self) -> None:
        """The model is as it was, and nobody's data are held."""
        self._validation = None
        if self.skips_validation and self._training.model is not None:
            self._training.model.__dict__.pop(_DECIDES_VALIDATION, None)

    def handlings(self) -> Handlings:
        """Those that depend on the `fit`."""
        return {
            commands.Evaluate: Handling(carry_out=self._evaluate, plan=self._plan_evaluate),
            commands.Stop: Handling(carry_out=self._stop, plan=self._plan_stop),
            commands.Extend: Handling(carry_out=self._extend, plan=self._plan_extend),
        }

    # ── evaluate ────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, training: Training, instruction: commands.Evaluate, time: float) -> Outcome:
        validation = self._checked_validation()
        model = training.model
        training.emit(StateChanged(step=training.step, time=time, state="validating", reason="evaluate"))
        try:
            with _undisturbed(model):
                logs = _evaluated(model, validation)
        finally:
            announce_resting_state(training, time)
        training.emit(Evaluated(step=training.step, time=time, logs=logs))
        return Outcome(after=dict(logs))

    def _plan_evaluate(self, training: Training, instruction: commands.Evaluate) -> list[PlanLine]:
        self._checked_validation()
        return [PlanLine(topic="does", text="evaluates on the validation data of this fit; training waits")]

    def _checked_validation(self) -> Validation:
        if self._training.model is None:
            raise Refused("this run has no model to evaluate")
        if not self._found:
            raise Refused("there is no fit here whose validation data are known; evaluate in your own loop")
        if self._validation is None:
            raise Refused(
                "this fit has no validation data; give it some: model.fit(..., validation_data=(x, y))"
            )
        if isinstance(self._validation.x, GeneratorType):
            raise Refused(
                "the validation data come from a generator, whose batches would be missing from the fit's own "
                "validation; possible: arrays, a tf.data.Dataset, a keras.utils.PyDataset, a DataLoader"
            )
        return self._validation

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, training: Training, instruction: commands.Stop, time: float) -> Outcome:
        before = "paused" if training.paused else "running"
        if instruction.now and training.model is not None:
            self.skips_validation = True
            # Past the model's own __setattr__, which would look at what it is given.
            training.model.__dict__[_DECIDES_VALIDATION] = lambda *_: False
        training.stop()
        if training.paused:
            training.resume()
        return Outcome(before={"state": before}, after={"state": "stopping"}, reason=self._ends(instruction))

    def _plan_stop(self, training: Training, instruction: commands.Stop) -> list[PlanLine]:
        return [PlanLine(topic="does", text=self._ends(instruction))]

    def _ends(self, instruction: commands.Stop) -> str:
        end = "ends after the current batch"
        if self._found and self._validation is None:
            return end
        if not instruction.now:
            validation = "its" if self._found else "where there is validation data, its"
            return f"{end}; {validation} validation runs first, which `stop now` skips"
        if not self._found:
            return f"{end}; a validation of your own is stopped after one batch"
        return f"{end} without its validation, so callbacks get no val_… values for this epoch"

    # ── extend ──────────────────────────────────────────────────────────────────────────────────────

    def _extend(self, training: Training, instruction: commands.Extend, time: float) -> Outcome:
        raise Refused(self._how_to_extend(instruction.epochs))

    def _plan_extend(self, training: Training, instruction: commands.Extend) -> list[PlanLine]:
        raise Refused(self._how_to_extend(instruction.epochs))

    def _how_to_extend(self, more: int) -> str:
        if not self._found:
            return "your own loop decides how long this training goes on"
        end = self._training.epochs
        begin, until = ("E", f"E+{more}") if end is None else (str(end), str(end + more))
        return (
            "the number of epochs of a fit is fixed when it begins; when this one is over, go on with "
            f"model.fit(..., initial_epoch={begin}, epochs={until})"
        )


def _frame_of_fit(model: Any | None) -> FrameType | None:
    """Keras' own `fit` among the callers. `None`: there is none, or one that is written differently."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_MOST_FRAMES):
        if frame is None or model is None:
            return None
        if frame.f_code.co_name == "fit":
            known = frame.f_locals
            names = {"validation_data", "validation_batch_size", "batch_size", "validation_steps"}
            if known.get("self") is model and names <= known.keys():
                complete = known["validation_data"] is None or "val_sample_weight" in known
                return frame if complete else None
        frame = frame.f_back
    return None


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """An evaluation inside leaves no trace in the training that goes on."""
    stop_evaluating = getattr(model, "stop_evaluating", False)
    with current_backend().state(model), set_aside(model), current_backend().evaluation(model):
        try:
            yield
        finally:
            model.stop_evaluating = stop_evaluating


def _evaluated(model: Any, validation: Validation) -> dict[str, float]:
    """`val_…` name → value, as `fit` itself would report them."""
    cached = getattr(model, "_eval_epoch_iterator", None) is not None
    logs = model.evaluate(
        x=validation.x,
        y=validation.y,
        sample_weight=validation.sample_weight,
        batch_size=validation.batch_size,
        steps=validation.steps,
        verbose=0,
        return_dict=True,
        **({"_use_cached_eval_dataset": True} if cached else {}),
    )
    return {f"val_{name}": float(value) for name, value in logs.items()}
