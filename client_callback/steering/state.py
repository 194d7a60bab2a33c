"""The whole state of a training between two batches, kept in host memory and put back bit for bit.

What is kept: every variable of the model, its metrics, its optimizer and what decides its rate (so weights, moments,
loss scale, schedule position, running metrics, seeds of layers), every setting that a command can change, and the
host's random generators. What cannot be kept is the data: an iterator goes on where it is. `snapshots` keeps several
of these, `steering` takes one before each change, `trials` one for all candidates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from client_callback.steering.backends import current_backend
from client_callback.steering.describe import current_optimizer
from client_callback.steering.rate_control import control_of, rated_optimizers
from client_callback.steering.settings import Settings, changed, read_settings, settings_of
from client_callback.steering.trained_variables import begin_anew, kept_variables

Values = dict[int, npt.NDArray[Any]]
"""Id of a variable → a copy of its value, as `Backend.host` makes it."""


@dataclass(frozen=True, eq=False)
class State:
    """A training as it was before step `step`."""

    step: int
    settings: Settings
    variables: tuple[Any, ...]
    """What `values` are of; held, so that no other object gets their ids."""
    values: Values
    generators: Mapping[str, Any]
    """States of the host's random generators."""

    @property
    def nbytes(self) -> int:
        """Host memory that the values take."""
        return sum(value.nbytes for value in self.values.values())


def has_variables(model: Any | None) -> bool:
    """Whether there is a state to keep: a model that Keras builds with its first batch has none before."""
    return model is not None and bool(model.built) and current_optimizer(model) is not None


def size_of(model: Any) -> int:
    """Bytes that the values of a state take, without reading them."""
    sizes = (int(np.prod(v.shape)) * np.dtype(_numpy_type(v.dtype)).itemsize for v in variables_of(model))
    return sum(sizes)


def _numpy_type(dtype: str) -> str:
    """Of the same size, for types that numpy lacks."""
    return "uint16" if dtype == "bfloat16" else "uint8" if dtype.startswith("float8") else dtype


def capture(model: Any, step: int, *, with_values: bool = True) -> State:
    """A copy of everything, or of the settings alone; waits for the device."""
    with current_backend().state(model):
        variables = tuple(variables_of(model)) if with_values else ()
        host = current_backend().host
        values = {id(variable): host(variable) for variable in variables}
        return State(step, read_settings(model), variables, values, _generators())


def restore(model: Any, state: State, rebuild: Callable[[Callable[[], None]], None]) -> dict[str, Any]:
    """The training is as it was; returns the settings that were others in the meantime, as they were until now.

    Args:
        model: whose state it is.
        state: as captured from it.
        rebuild: runs a change to what the compiled step holds, and has the step traced anew.
    """
    with current_backend().state(model):
        different = write_settings(model, state.settings, rebuild)
        _set_values(model, state.values)
        _set_generators(state.generators)
    return different


def moved(model: Any, state: State) -> bool:
    """Whether a variable has another value than in a kept state; inside the backend's `state`."""
    host = current_backend().host
    return any(
        not _same_bits(state.values[id(variable)], host(variable))
        for variable in variables_of(model)
        if id(variable) in state.values
    )


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Metrics, seeds and layers' statistics are afterwards as they were before, whatever is run inside.

    Inside the backend's `state`. Weights and the optimizer are left out: what is run must not change them.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    trained |= {id(variable) for variables in _optimizer_variables(model) for variable in variables}
    host = current_backend().host
    values = {id(v): host(v) for v in variables_of(model) if id(v) not in trained}
    generators = _generators()
    try:
        yield
    finally:
        write = current_backend().set_from_host
        later = []
        for variable in variables_of(model):
            if id(variable) in values:
                write(variable, values[id(variable)])
            elif id(variable) not in trained:
                later.append(variable)
        _set_back(model, later)
        _set_generators(generators)


def write_settings(
    model: Any, wanted: Settings, rebuild: Callable[[Callable[[], None]], None]
) -> dict[str, Any]:
    """Sets what is not as wanted; returns the settings that were others, as they were until now.

    Inside the backend's `state`. A new trace is made only when something that the compiled step holds is changed.
    """
    settings = settings_of(model)
    present = read_settings(model)
    different = changed(present, wanted)

    def write() -> None:
        for name in different:
            settings[name].write(wanted[name])

    if any(settings[name].traced for name in different):
        rebuild(write)
    else:
        write()
    return different


def variables_of(model: Any) -> Iterator[Any]:
    """Every variable that a step may read or write, each once."""
    seen: set[int] = set()
    lists = [model.variables, model.metrics_variables, *_optimizer_variables(model), _global_seed()]
    for variables in lists:
        for variable in variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                yield variable


def _optimizer_variables(model: Any) -> Iterator[list[Any]]:
    optimizer = current_optimizer(model)
    if optimizer is None:
        return
    yield optimizer.variables
    for rated in rated_optimizers(optimizer):
        yield rated.variables
        yield kept_variables(rated)
        control = control_of(rated)
        if control is not None:
            yield list(control.variables)


def _global_seed() -> list[Any]:
    """Of layers and functions that were given no seed of their own; none before the first of them asks."""
    generator = get_global_attribute(GLOBAL_SEED_GENERATOR)
    return [] if generator is None else [generator.state]


def _set_values(model: Any, values: Values) -> None:
    write = current_backend().set_from_host
    later = []
    for variable in variables_of(model) if values else ():
        if id(variable) in values:
            write(variable, values[id(variable)])
        else:
            later.append(variable)
    _set_back(model, later)
    if current_optimizer(model) is not None:
        begin_anew(model, later)


def _set_back(model: Any, later: list[Any]) -> None:
    """Metrics' variables that did not exist then were made with the first batch: they began as `reset_state` does."""
    ids = {id(variable) for variable in later}
    for metric in model.metrics:
        if any(id(variable) in ids for variable in metric.variables):
            metric.reset_state()


def _generators() -> dict[str, Any]:
    found: dict[str, Any] = {"random": random.getstate(), "numpy": np.random.get_state()}
    if keras.backend.backend() == "torch":
        import torch  # noqa: PLC0415 (only where torch is the backend)

        found["torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def _set_generators(states: Mapping[str, Any]) -> None:
    random.setstate(states["random"])
    np.random.set_state(states["numpy"])
    if "torch" in states:
        import torch  # noqa: PLC0415 (only where torch is the backend)

        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state_all(states["cuda"])


def _same_bits(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """NaN equals itself here."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
