"""How far an optimizer moves the weights, and the rate at which another one would move them as far.

Two optimizers are compared by the RMS of their updates over all trained weights: for the one at work read from its
moments or measured, for another one as a multiple of its rate, from what is known of the gradients. The estimates
hold for its first steps; what it does after that depends on the loss. Called by `preflight` inside the backend's
`state`; reads, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from keras import ops

from client_callback.steering.carrying import slots
from client_callback.steering.learning_rate import read_rate
from client_callback.steering.rate_control import rated_optimizers, updates
from client_callback.steering.trained_variables import known_variables
from client_callback.steering.training import Training

Float64 = npt.NDArray[np.float64]

_MOST_ELEMENTS = 1 << 16
"""Of each weight that are looked at, evenly spread: the RMS over so many is known to a percent."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How the optimizer at work moves the weights. `None`: not known."""

    update_rms: float | None
    """Of one element in one update."""
    update_source: str = ""
    gradient_rms: float | None = None
    """Of one element, after clipping."""
    gradient_source: str = ""
    steady: float | None = None
    """Share of the gradients' power that is the same from step to step; the rest is noise of the batches."""
    swats_rate: float | None = None
    """Of an SGD without momentum, by SWATS' projection; of Adam alone."""


class _Element(NamedTuple):
    """What is known of one trained weight, per element: float64 `[k]`, evenly spread ones of it."""

    size: int
    """Elements it has."""
    update: Float64 | None = None
    """Of one update; of some optimizers the expected magnitude."""
    mean: Float64 | None = None
    """Running mean of the gradients, without its bias to 0."""
    square: Float64 | None = None
    """Running mean of their squares, without its bias to 0."""
    projected: tuple[float, float] | None = None
    """(pᵀp, −pᵀg) of SWATS, with the running mean for the gradient g."""


def motion(training: Training, optimizer: Any) -> Motion:
    """Of the optimizer at work: from its own state where its rule is known, else as it was measured."""
    inner = rated_optimizers(optimizer)[0]
    weights = list(training.model.trainable_variables) if training.model is not None else []
    elements = _elements(inner, weights) if inner.built and _updates(inner) else []
    update, update_source = _update_rms(training, inner, weights, elements)
    gradient, gradient_source = _gradient_rms(training, inner, weights, elements)
    return Motion(
        update_rms=update,
        update_source=update_source,
        gradient_rms=gradient,
        gradient_source=gradient_source,
        steady=_steady_share(inner, elements, gradient),
        swats_rate=_swats_rate(elements),
    )


def equivalent_rate(present: Motion, new: Any, weights: list[Any]) -> float | str:
    """The rate at which the first updates of `new` are as large as the present ones, or why it is not known.

    Args:
        present: of the optimizer at work.
        new: the optimizer that is to take over, without loss scaling; need not be built.
        weights: those that are trained.
    """
    if present.update_rms is None:
        return present.update_source
    found = _per_unit_of_rate(new, weights, present)
    if isinstance(found, str):
        return found
    return present.update_rms / found


def follows_gradients(new: Any) -> bool:
    """Whether its updates grow with the gradients; others divide by their size."""
    return type(new).__name__ in {"SGD", "Adagrad"}


def starts_larger(new: Any) -> float:
    """How many times as large the very first update is as those the rate was matched for."""
    if type(new).__name__ == "RMSprop":
        return float(1 / math.sqrt(1 - new.rho))
    return 1.0


# ── The optimizer at work ─────────────────────────────────────────────────────────────────────────


def _update_rms(
    training: Training, inner: Any, weights: list[Any], elements: list[_Element]
) -> tuple[float | None, str]:
    sampled = training.sampled_update
    measured = sampled is not None and math.isfinite(sampled.value) and sampled.value > 0
    moved = [(one.size, one.update) for one in elements if one.update is not None]
    if moved and len(moved) == len(elements) and not (measured and type(inner).__name__ in _ROUGHLY_KNOWN):
        return _rms(moved), "from its moments"
    gradient = _measured_gradient(training, inner, weights)
    if type(inner).__name__ == "SGD" and not inner.momentum and gradient is not None and _updates(inner):
        return read_rate(inner) * gradient, "the rate times the gradient's RMS in the last step"
    if sampled is not None and measured:
        size = _rms((math.prod(weight.shape), _sample(weight)) for weight in weights)
        return sampled.value * size, f"as measured in step {sampled.step}"
    if not _updates(inner):
        return None, "no update was made yet"
    return (
        None,
        f"{type(inner).__name__} keeps nothing that tells how far it moves, and no update was measured",
    )


_ROUGHLY_KNOWN = {"Muon", "Adafactor"}
"""What these make of a gradient depends on its rank, or on clipping that leaves no trace: better measured."""


def _gradient_rms(
    training: Training, inner: Any, weights: list[Any], elements: list[_Element]
) -> tuple[float | None, str]:
    """The last step's where it is measured: running means lag behind a loss that falls."""
    measured = _measured_gradient(training, inner, weights)
    if measured is not None:
        return measured, "the last step"
    squares = [(one.size, one.square) for one in elements if one.square is not None]
    if squares and len(squares) == len(elements):
        return _rms((size, np.sqrt(np.maximum(square, 0))) for size, square in squares), "its second moments"
    means = [(one.size, one.mean) for one in elements if one.mean is not None]
    if means and len(means) == len(elements):
        return _rms(means), "its momentum, which holds no noise of the batches"
    return None, "no gradient was measured"


def _measured_gradient(training: Training, inner: Any, weights: list[Any]) -> float | None:
    """RMS of one element, as far as clipping leaves it known."""
    norm = training.last_values.get("grad_norm", math.nan)
    if not math.isfinite(norm) or norm <= 0 or inner.clipnorm or inner.clipvalue:
        return None
    if inner.global_clipnorm:
        norm = min(norm, inner.global_clipnorm)
    return norm / math.sqrt(_count(weights)) if weights else None


def _steady_share(inner: Any, elements: list[_Element], gradient: float | None) -> float | None:
    """From the running mean m of gradients that are a steady part plus noise.

    E[m²] = steady + noise · Σw², where w are the weights of a bias-corrected average over t steps:
    Σw² = (1-β)/(1+β) · (1+βᵗ)/(1-βᵗ).
    """
    beta = _decay_of_mean(inner)
    means = [(one.size, one.mean) for one in elements if one.mean is not None]
    if beta is None or not gradient or not means or len(means) < len(elements):
        return None
    decayed = beta ** _updates(inner)
    noise: float = (1 - beta) / (1 + beta) * (1 + decayed) / (1 - decayed)
    if noise >= 1:
        return None
    share = (_rms(means) / gradient) ** 2
    return min(max((share - noise) / (1 - noise), 0.0), 1.0)


def _decay_of_mean(inner: Any) -> float | None:
    """Of the running mean of gradients that an optimizer keeps."""
    attribute = {"Lion": "beta_2", "SGD": "momentum"}.get(type(inner).__name__, "beta_1")
    found: float | None = getattr(inner, attribute, None)
    return found if found and found < 1 else None


def _swats_rate(elements: list[_Element]) -> float | None:
    """λ = pᵀp / −pᵀg, at which an SGD step is as long as Adam's step p where it goes along it.

    Keskar & Socher 2017, "Improving Generalization Performance by Switching from Adam to SGD", arXiv:1712.07628,
    equation 3. They smooth λ over the steps, with bias correction; here only one state is at hand, so its
    bias-corrected running mean stands for the gradient g, which is smoothed itself.
    """
    projected = [one.projected for one in elements if one.projected is not None]
    along = sum(below for _, below in projected)
    if not projected or along <= 0:
        return None
    return sum(above for above, _ in projected) / along


def _elements(inner: Any, weights: list[Any]) -> list[_Element]:
    """Of each trained weight that the optimizer knows; none when its rule is not among those below."""
    name = next((c.__name__ for c in type(inner).__mro__ if c.__name__ in _RULES), None)
    # A subclass of one's own may do anything.
    if name is None or not type(inner).__module__.startswith("keras."):
        return []
    kept = slots(inner)
    steps, rate = _updates(inner), read_rate(inner)
    known = {key for _, key in kept} if kept else {id(weight) for weight in known_variables(inner)}
    return [_RULES[name](_At(inner, rate, steps, weight, kept)) for weight in weights if id(weight) in known]


@dataclass(frozen=True)
class _At:
    """An optimizer's state at one weight."""

    inner: Any
    rate: float
    steps: int
    """Updates made, at least one."""
    weight: Any
    kept: Mapping[tuple[str, int], Any]

    @property
    def size(self) -> int:
        return math.prod(self.weight.shape)

    def slot(self, attribute: str) -> Float64:
        return _sample(self.kept[attribute, id(self.weight)])

    def average(self, attribute: str, beta: float) -> Float64:
        """A running average that began at 0, without its bias."""
        return self.slot(attribute) / (1 - beta**self.steps)


def _adam(at: _At) -> _Element:
    """η·m̂ / (√v̂ + ε̂), exactly the last update; Nadam's also looks one step ahead."""
    inner = at.inner
    mean, square = at.average("_momentums", inner.beta_1), at.average("_velocities", inner.beta_2)
    bias = 1 - inner.beta_2**at.steps
    below = at.slot("_velocity_hats") / bias if getattr(inner, "amsgrad", False) else square
    update = at.rate * mean / (np.sqrt(np.maximum(below, 0)) + inner.epsilon / math.sqrt(bias))
    share = at.size / len(update)
    projected = (share * float(update @ update), share * float(update @ mean))
    return _Element(at.size, update, mean, square, projected)


def _lamb(at: _At) -> _Element:
    inner = at.inner
    mean, square = at.average("_momentums", inner.beta_1), at.average("_velocities", inner.beta_2)
    return _Element(at.size, at.rate * _size_of(at.weight), mean, square)


def _adamax(at: _At) -> _Element:
    inner = at.inner
    mean = at.average("_m", inner.beta_1)
    return _Element(at.size, at.rate * mean / (at.slot("_u") + inner.epsilon), mean)


def _lion(at: _At) -> _Element:
    mean = at.average("_momentums", at.inner.beta_2)
    return _Element(at.size, np.full(len(mean), at.rate), mean)


def _sgd(at: _At) -> _Element:
    """The buffer is the last update itself (all but its Nesterov part), and holds about 1/(1-μ) gradients."""
    momentum = at.inner.momentum
    if not momentum:
        return _Element(at.size)
    update = at.slot("momentums")
    gathered = at.rate * (1 - momentum**at.steps) / (1 - momentum) if momentum < 1 else at.rate * at.steps
    return _Element(at.size, update, -update / gathered)


def _rmsprop(at: _At) -> _Element:
    inner = at.inner
    square = at.average("_velocities", inner.rho)
    if inner.momentum > 0:
        return _Element(at.size, at.slot("_momentums"), square=square)
    velocity = at.slot("_velocities")
    centre = np.square(at.slot("_average_gradients")) if inner.centered else 0.0
    below = np.maximum(velocity - centre, 0) + inner.epsilon
    return _Element(at.size, at.rate * np.sqrt(square / below), square=square)


def _adagrad(at: _At) -> _Element:
    """What it gathered is of all its steps, so that it tells nothing of the last."""
    gathered = at.slot("_accumulators")
    return _Element(at.size, square=(gathered - at.inner.initial_accumulator_value) / at.steps)


def _adadelta(at: _At) -> _Element:
    rho = at.inner.rho
    steps = at.average("_accumulated_delta_vars", rho)
    return _Element(at.size, at.rate * np.sqrt(steps), square=at.average("_accumulated_grads", rho))


def _adafactor(at: _At) -> _Element:
    """Each update has about the RMS of its weight times the rate (Shazeer & Stern 2018, arXiv:1804.04235)."""
    inner = at.inner
    capped = inner.relative_step and not callable(inner._learning_rate)
    rate = min(at.rate, 1 / math.sqrt(at.steps)) if capped else at.rate
    size = max(inner.epsilon_2, _rms([(1, _sample(at.weight))]))
    return _Element(at.size, np.array([rate * size]), square=at.slot("_v"))


def _muon(at: _At) -> _Element:
    return _Element(at.size, np.array([at.rate * _muon_unit(at.inner, at.weight)]))


def _schedule_free(at: _At) -> _Element:
    return _Element(at.size, square=at.average("_velocities", at.inner.beta_2))


_RULES: dict[str, Callable[[_At], _Element]] = {
    "Adam": _adam,
    "Nadam": _adam,
    "Lamb": _lamb,
    "Adamax": _adamax,
    "Lion": _lion,
    "SGD": _sgd,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
    "Adafactor": _adafactor,
    "Muon": _muon,
    "ScheduleFreeAdamW": _schedule_free,
}


# ── The optimizer that is to take over ────────────────────────────────────────────────────────────


def _per_unit_of_rate(new: Any, weights: list[Any], present: Motion) -> float | str:
    """RMS of its updates divided by its rate; or why that is not known."""
    name = next((c.__name__ for c in type(new).__mro__ if c.__name__ in _UNITS), None)
    if name is None or not type(new).__module__.startswith("keras."):
        return f"nothing is known of how far the first updates of {type(new).__name__} go"
    gradient = _clipped(new, weights, present.gradient_rms)
    found = _UNITS[name](new, weights, gradient, present.steady)
    if found is None:
        return f"the updates of {type(new).__name__} follow the gradients, and {present.gradient_source}"
    return found if found > 0 else "all gradients are 0"


def _clipped(new: Any, weights: list[Any], gradient: float | None) -> float | None:
    """The gradient's RMS after what the new optimizer clips; of each weight's norm at most all are clipped."""
    if gradient is None:
        return None
    limits = [gradient]
    if new.global_clipnorm:
        limits.append(new.global_clipnorm / math.sqrt(_count(weights)))
    if new.clipnorm:
        limits.append(new.clipnorm * math.sqrt(len(weights) / _count(weights)))
    if new.clipvalue:
        limits.append(new.clipvalue)
    return min(limits)


def _unit_of_signs(new: Any, weights: list[Any], gradient: float | None, steady: float | None) -> float:
    """Before their averages settle, m̂/√v̂ is about the gradient's sign: each weight moves by the rate."""
    epsilon = getattr(new, "epsilon", 0.0)
    return gradient / (gradient + epsilon) if gradient else 1.0


def _unit_of_sgd(new: Any, weights: list[Any], gradient: float | None, steady: float | None) -> float | None:
    """Momentum adds up to 1/(1-μ) of what is steady, and to the root of Σμ²ⁱ of noise; unknown counts as steady."""
    return None if gradient is None else gradient * _gathered(new.momentum, steady, nesterov=new.nesterov)


def _unit_of_rmsprop(
    new: Any, weights: list[Any], gradient: float | None, steady: float | None
) -> float | None:
    """Once its average has settled; the very first update is 1/√(1-ρ) times as large."""
    size = 1.0 if gradient is None else gradient / math.sqrt(gradient**2 + new.epsilon)
    return size * _gathered(new.momentum, steady)


def _unit_of_adagrad(
    new: Any, weights: list[Any], gradient: float | None, steady: float | None
) -> float | None:
    if gradient is None:
        return None
    return gradient / math.sqrt(new.initial_accumulator_value + gradient**2 + new.epsilon)


def _unit_of_lamb(new: Any, weights: list[Any], gradient: float | None, steady: float | None) -> float:
    """Each weight moves by its own norm times the rate (You et al. 2020, arXiv:1904.00962)."""
    return _rms((math.prod(weight.shape), _size_of(weight)) for weight in weights)


def _unit_of_adafactor(new: Any, weights: list[Any], gradient: float | None, steady: float | None) -> float:
    sizes = [(math.prod(weight.shape), _rms([(1, _sample(weight))])) for weight in weights]
    return _rms((size, np.array([max(new.epsilon_2, rms)])) for size, rms in sizes)


def _unit_of_muon(new: Any, weights: list[Any], gradient: float | None, steady: float | None) -> float:
    return _rms((math.prod(weight.shape), np.array([_muon_unit(new, weight)])) for weight in weights)


_Unit = Callable[[Any, list[Any], float | None, float | None], float | None]

_UNITS: dict[str, _Unit] = {
    "Adam": _unit_of_signs,
    "Nadam": _unit_of_signs,
    "Adamax": _unit_of_signs,
    "Lion": _unit_of_signs,
    "ScheduleFreeAdamW": _unit_of_signs,
    "SGD": _unit_of_sgd,
    "RMSprop": _unit_of_rmsprop,
    "Adagrad": _unit_of_adagrad,
    "Lamb": _unit_of_lamb,
    "Adafactor": _unit_of_adafactor,
    "Muon": _unit_of_muon,
}
"""Adadelta's steps grow out of its own earlier ones, Ftrl's weights do not follow from updates at all."""


# ── Inside ──────────────────────────────────────────────────────────────────────────────────────


def _gathered(momentum: float, steady: float | None, *, nesterov: bool = False) -> float:
    """RMS of a momentum's buffer divided by the gradient's, once it has filled."""
    if not 0 < momentum < 1:
        return 1.0
    share = 1.0 if steady is None else steady
    squares = 1 / (1 - momentum**2)
    if nesterov:
        squares = (1 + momentum) ** 2 + momentum**4 / (1 - momentum**2)
    return math.sqrt(share / (1 - momentum) ** 2 + (1 - share) * squares)


def _muon_unit(inner: Any, weight: Any) -> float:
    """Of a matrix: its update has singular values near 1, so elements of RMS 1/√max(n, m) (arXiv:2502.16982)."""
    if inner._should_use_adamw(weight):
        return float(inner.adam_lr_ratio)
    return 1 / math.sqrt(max(weight.shape)) if inner.rms_rate is None else float(inner.rms_rate)


def _size_of(weight: Any) -> Float64:
    """RMS of the weight, where it is not all zeros; Lamb takes 1 for those."""
    rms = _rms([(1, _sample(weight))])
    return np.array([rms or 1.0])


def _updates(inner: Any) -> int:
    return updates(inner) // (inner.gradient_accumulation_steps or 1)


def _count(weights: list[Any]) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _sample(variable: Any) -> Float64:
    """Evenly spread elements of a variable, float64 `[k]`."""
    size, width = math.prod(variable.shape), variable.shape[-1] if variable.shape else 1
    stride = max(1, size // _MOST_ELEMENTS)
    while math.gcd(stride, width) > 1:  # or it would hit some columns of a matrix and never the others
        stride += 1
    values = ops.reshape(ops.convert_to_tensor(variable), (-1,))
    sampled: Float64 = ops.convert_to_numpy(values[::stride] if stride > 1 else values).astype(np.float64)
    return sampled


def _rms(parts: Iterable[tuple[int, Float64]]) -> float:
    """Root of the mean square over all elements, from (elements, values that stand for them)."""
    total = count = 0.0
    for size, values in parts:
        if len(values):
            total += size * float(np.mean(np.square(values)))
            count += size
    return math.sqrt(total / count) if count else 0.0
