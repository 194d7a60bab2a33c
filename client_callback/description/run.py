"""Joins all that is known of a run before its first step."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import keras

from client_callback.description.layers import describe_layers
from client_callback.description.outputs import describe_outputs
from client_callback.instrument.sampler import variable_labels
from client_callback.steering.describe import describe_optimizer
from client_callback.steering.optimizers import optimizer_catalogue
from client_callback.wire import runs
from client_callback.wire.protocol import ModelBuilt, Output, RunDescription, Variable


def describe_run(
    name: str | None,
    model: keras.Model | None,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    started_at: float,
    epochs: int | None,
    steps_per_epoch: int | None,
    statistics_every: int,
    control: bool,
    actions: tuple[str, ...] = (),
) -> RunDescription:
    """A new run's description, with an id of its own."""
    parts = describe_model(model) if model is not None else ModelBuilt()
    return RunDescription(
        run_id=runs.new_run_id(),
        name=name or _default_name(model),
        started_at=started_at,
        host=runs.host_name(),
        pid=os.getpid(),
        user=runs.user_name(),
        backend=keras.backend.backend(),
        versions=_versions(),
        model="" if model is None else model.name,
        parameters=parts.parameters,
        layers=parts.layers,
        variables=parts.variables,
        outputs=parts.outputs,
        optimizer=None if model is None else describe_optimizer(model, callbacks),
        optimizers={} if model is None else optimizer_catalogue(),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_execution=int(getattr(model, "steps_per_execution", 1) or 1),
        statistics_every=statistics_every,
        control=control,
        actions=actions,
        version=_version("unstuck"),
    )


def describe_model(model: keras.Model) -> ModelBuilt:
    """What is known of it now."""
    variables = list(model.trainable_variables)
    return ModelBuilt(
        parameters=sum(math.prod(variable.shape) for variable in model.weights),
        layers=tuple(describe_layers(model)),
        variables=tuple(
            Variable(path=label, shape=tuple(variable.shape))
            for label, variable in zip(variable_labels(variables), variables, strict=True)
        ),
        outputs=_outputs(model),
    )


def _outputs(model: keras.Model) -> tuple[Output, ...]:
    """Empty where the model is of a kind that cannot be read."""
    try:
        return describe_outputs(model)
    except Exception:  # noqa: BLE001 (a training must not end because a model is unusual)
        return ()


def _default_name(model: keras.Model | None) -> str:
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    if script and not script.startswith(("-", "ipykernel", "__main__", "colab")):
        return script
    return "run" if model is None else str(model.name)


def _versions() -> dict[str, str]:
    backend = keras.backend.backend()
    found = {
        name: _version(name) for name in ("tensorflow-cpu", "tensorflow", "jax", "torch") if backend in name
    }
    known = {name: version for name, version in found.items() if version}
    return {"python": sys.version.split()[0], "keras": keras.__version__, **known}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
