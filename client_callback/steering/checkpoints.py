"""`checkpoint [PATH]`: the model in a file that loads without this package, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from client_callback.steering.backends import current_backend
from client_callback.steering.training import Outcome, Refused, Training
from client_callback.wire import commands
from client_callback.wire.protocol import PlanLine

_WEIGHTS = ".weights.h5"
_WHOLE = ".keras"


def save_checkpoint(training: Training, instruction: commands.Checkpoint, time: float) -> Outcome:
    """Writes under another name first: whoever waits for the file never sees half of it."""
    path = _checked_path(training, instruction)
    kind = _WEIGHTS if path.name.endswith(_WEIGHTS) else _WHOLE
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{kind}")
    model = training.model
    assert model is not None  # noqa: S101 (checked with the path)
    try:
        with current_backend().state(model):
            (model.save_weights if kind == _WEIGHTS else model.save)(unfinished)
        size = unfinished.stat().st_size
        unfinished.replace(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error}; `checkpoint PATH` takes another place") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return Outcome(after={"path": str(path), "bytes": size})


def plan_checkpoint(training: Training, instruction: commands.Checkpoint) -> list[PlanLine]:
    """Raises Refused for what cannot be written."""
    path = _checked_path(training, instruction)
    return [PlanLine(topic="does", text=f"saves the model as it is between two batches to {path}")]


def _checked_path(training: Training, instruction: commands.Checkpoint) -> Path:
    model = training.model
    if model is None:
        raise Refused("this run has no model to save")
    if not model.built:
        raise Refused("the model has no weights yet: Keras makes them with the first batch")
    if not instruction.path:
        return _own_path(training, model.name)
    try:
        path = Path(instruction.path).expanduser().absolute()
    except RuntimeError as error:  # no such user's home
        raise Refused(f"{instruction.path}: {error}") from error
    if not path.name.endswith((_WEIGHTS, _WHOLE)) or path.name in (_WEIGHTS, _WHOLE):
        raise Refused(
            f"{path.name!r} tells no format; possible: NAME{_WHOLE} for the whole model, NAME{_WEIGHTS} for weights"
        )
    try:
        if not path.parent.is_dir():
            raise Refused(f"there is no folder {path.parent}; possible: one that exists")
        if path.exists():
            raise Refused(f"{path} exists already and is not overwritten; choose another name")
    except (OSError, ValueError) as error:  # a name too long, no access to the folder
        raise Refused(f"{instruction.path[:200]}: {error}") from error
    if not os.access(path.parent, os.W_OK):
        raise Refused(f"{path.parent} cannot be written to; choose another folder")
    return path


def _own_path(training: Training, name: str) -> Path:
    """Beside the recording, or in the working folder; a name not taken."""
    recording = training.recording
    folder, stem = (Path.cwd(), name) if recording is None else (recording.parent, recording.stem)
    name = f"{stem}-step-{training.step}"
    path, count = folder / f"{name}{_WHOLE}", 1
    while path.exists():
        count += 1
        path = folder / f"{name}-{count}{_WHOLE}"
    return path
