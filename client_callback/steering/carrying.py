"""What an optimizer has gathered so far, and how it goes over to the one that takes its place.

Gathered are moments and other slots, the count of updates, gradients accumulated since the last one, moving averages
of the weights, and the loss scale. `switch` hands them to a new optimizer, `settings` to one that is put back. Called
inside the backend's `state`, with both optimizers built.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import keras
from keras import ops

from client_callback.steering.backends import current_backend
from client_callback.steering.rate_control import is_variable, rated_optimizers, updates
from client_callback.steering.trained_variables import known_variables

Moments = Literal["fresh", "carried", "own"]
"""Of the optimizer that takes over: none, it is new; the present one's; its own, of an earlier time."""

_NO_SLOTS = {
    "_variables",
    "_trainable_variables",
    "_iterations",
    "_learning_rate",
    "_accumulated_gradients",
    "_model_variables_moving_average",
}
"""Attributes that hold variables for another purpose than the update rule's."""

_CORRECTED: dict[str, dict[str, str]] = {
    "Adam": {"_momentums": "beta_1", "_velocities": "beta_2", "_velocity_hats": "beta_2"},
    "Adamax": {"_m": "beta_1"},
    "Lamb": {"_momentums": "beta_1", "_velocities": "beta_2"},
    "Nadam": {"_velocities": "beta_2"},
    "ScheduleFreeAdamW": {"_velocities": "beta_2"},
    "Muon": {"adam_velocities": "adam_beta_2"},
}
"""Running averages that begin at 0 and are divided by 1 - beta^updates for it. Nadam keeps the product of its betas
itself; Muon's momentums are corrected where it steps like Adam, see `_corrections`."""


def carry_over(present: Any, successor: Any, moments: Moments) -> list[str]:
    """Hands what the present optimizer has gathered to its successor; returns what is to be said of it.

    The schedule's position is not among it: `RateControl` keeps that.
    """
    inner, new_inner = rated_optimizers(present)[0], rated_optimizers(successor)[0]
    notes: list[str] = []
    scaled = isinstance(present, keras.optimizers.LossScaleOptimizer)
    if scaled and isinstance(successor, keras.optimizers.LossScaleOptimizer) and present.built:
        pairs = [
            (successor.dynamic_scale, present.dynamic_scale),
            (successor.step_counter, present.step_counter),
        ]
        current_backend().copy(pairs)
    if moments == "carried":
        notes += _carry_slots(inner, new_inner)
    phase, dropped = carried_batches(inner, new_inner.gradient_accumulation_steps)
    if dropped:
        notes.append(dropping(dropped))
    _carry_accumulated(inner, new_inner, phase)
    done = _updates_done(inner if moments == "carried" else new_inner)
    new_inner._iterations.assign(done * (new_inner.gradient_accumulation_steps or 1) + phase)
    return notes + _carry_averages(inner, new_inner, moments)


def go_on_with(present: Any, earlier: Any) -> None:
    """An optimizer that was at work before takes over again, and the weights stay as they are by now.

    Of the same class it goes on with the present moments, else with its own of that time; what belongs to the
    training goes on in any case.
    """
    if _cannot_carry(present, earlier):
        return
    inner, old_inner = rated_optimizers(present)[0], rated_optimizers(earlier)[0]
    same_class = alike(present, earlier)
    carry_over(present, earlier, "carried" if same_class else "own")
    rates = (old_inner._learning_rate, inner._learning_rate)
    if same_class and all(map(is_variable, rates)):
        current_backend().copy([rates])


def going_back_says(present: Any, earlier: Any) -> list[str]:
    """What is to be said of `go_on_with`."""
    if _cannot_carry(present, earlier):
        return []
    inner, old_inner = rated_optimizers(present)[0], rated_optimizers(earlier)[0]
    notes = []
    if type(inner) is not type(old_inner) and slots(old_inner):
        notes.append(f"{type(old_inner).__name__} goes on with the moments that it had when it was replaced")
    dropped = carried_batches(inner, old_inner.gradient_accumulation_steps)[1]
    return [*notes, dropping(dropped)] if dropped else notes


def _cannot_carry(present: Any, earlier: Any) -> bool:
    several = keras.optimizers.MultiOptimizer
    unbuilt = not present.built or not earlier.built
    return present is earlier or unbuilt or isinstance(present, several) or isinstance(earlier, several)


def brings_its_rate(present: Any, earlier: Any) -> bool:
    """Whether an earlier optimizer that takes over again does so at its own rate, and not at the present one."""
    return present is not earlier and (_cannot_carry(present, earlier) or not alike(present, earlier))


def alike(one: Any, other: Any) -> bool:
    """Whether two optimizers are of the same class, loss scaling apart."""
    return list(map(type, rated_optimizers(one))) == list(map(type, rated_optimizers(other)))


def carried_batches(inner: Any, new_length: int | None) -> tuple[int, int]:
    """(batches whose accumulated gradients go over, batches whose gradients are dropped).

    Args:
        inner: the present optimizer, without loss scaling.
        new_length: batches per update from now on; `None` is one.
    """
    length = inner.gradient_accumulation_steps
    phase = updates(inner) % length if length and inner.built else 0
    return (phase, 0) if phase < (new_length or 1) else (0, phase)


def dropping(batches: int) -> str:
    """What is said of gradients that cannot go over."""
    return f"the gradients accumulated over the last {count_of(batches, 'batch')} are dropped"


def count_of(number: int, what: str) -> str:
    """`1 batch`, `3 batches`."""
    plural = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def slots(optimizer: Any) -> dict[tuple[str, int], Any]:
    """(attribute, id of the weight or place) → the optimizer's variable: moments and what else a rule keeps."""
    found: dict[tuple[str, int], Any] = {}
    weights = known_variables(optimizer)
    for name, value in vars(optimizer).items():
        if name in _NO_SLOTS:
            continue
        if isinstance(value, keras.Variable):
            found[name, 0] = value
        elif isinstance(value, list) and all(v is None or isinstance(v, keras.Variable) for v in value):
            keys = map(id, weights) if len(value) == len(weights) else range(len(value))
            found.update({(name, key): v for key, v in zip(keys, value, strict=True) if v is not None})
    return found


def slot_names(optimizer: Any) -> list[str]:
    """In words: `momentum`, `velocity`, … of an optimizer that is built."""
    names = {name.strip("_").removesuffix("s").replace("_", " ") for name, _ in slots(optimizer)}
    return sorted(_READABLE.get(name, name) for name in names)


_READABLE = {"m": "momentum", "u": "norm", "velocitie": "velocity", "adam velocitie": "velocity"}


def _updates_done(inner: Any) -> int:
    return updates(inner) // (inner.gradient_accumulation_steps or 1)


def _carry_slots(inner: Any, new_inner: Any) -> list[str]:
    """Slots of the same name and shape; others begin at 0, as Keras has them begin."""
    have, pairs, begun = slots(inner), [], []
    for key, variable in slots(new_inner).items():
        found = have.get(key)
        if found is not None and found.shape == variable.shape and found.dtype == variable.dtype:
            pairs.append((variable, found))
        else:
            begun.append((key, variable))
    current_backend().copy(pairs)
    if updates(new_inner):
        # It was at work before: what it gathered then belongs to other weights.
        _fill_with_zeros(variable for _, variable in begun)
    _correct_averages(inner, new_inner)
    names = sorted({key[0].strip("_") for key, _ in begun})
    return [f"{', '.join(names)} begin at 0"] if names else []


def _correct_averages(inner: Any, new_inner: Any) -> None:
    """Scales running averages so that their bias-corrected values stay when a beta is another now.

    An average of t steps that began at 0 has weights that sum to 1 - beta^t, and the optimizer divides by that
    (Kingma & Ba 2015, arXiv:1412.6980, section 3). With another beta it would divide by another sum: from 0.999 to
    0.9 after ten updates it would take the squared gradients for 65 times smaller than they are.
    """
    done = _updates_done(inner)
    for attribute, beta in _corrections(new_inner).items():
        old, new = getattr(inner, beta), getattr(new_inner, beta)
        if old == new or not done:
            continue
        factor = (1 - new**done) / (1 - old**done)
        for key, variable in slots(new_inner).items():
            if key[0] == attribute and _is_corrected(new_inner, key):
                variable.assign(ops.multiply(variable, ops.cast(factor, variable.dtype)))


def _corrections(inner: Any) -> dict[str, str]:
    found = next((_CORRECTED[c.__name__] for c in type(inner).__mro__ if c.__name__ in _CORRECTED), {})
    return {**found, "momentums": "adam_beta_1"} if "adam_velocities" in found else found


def _is_corrected(inner: Any, key: tuple[str, int]) -> bool:
    """Muon's momentum of a matrix is not divided by anything."""
    return key[0] != "momentums" or ("adam_velocities", key[1]) in slots(inner)


def _carry_accumulated(inner: Any, new_inner: Any, phase: int) -> None:
    """Sums of gradients since the last update; those of batches that do not go over are forgotten."""
    if not new_inner.gradient_accumulation_steps:
        return
    targets = _by_weight(known_variables(new_inner), new_inner._accumulated_gradients)
    sources = _by_weight(known_variables(inner), inner._accumulated_gradients) if phase else {}
    current_backend().copy([(target, sources[key]) for key, target in targets.items() if key in sources])
    if updates(new_inner):
        _fill_with_zeros(target for key, target in targets.items() if key not in sources)


def _carry_averages(inner: Any, new_inner: Any, moments: Moments) -> list[str]:
    if inner.use_ema and not new_inner.use_ema:
        return ["the moving averages of the weights are dropped"]
    if not new_inner.use_ema:
        return []
    weights = new_inner._trainable_variables
    averages = _by_weight(weights, new_inner._model_variables_moving_average)
    # Keras sets an average to the weight at the first update, so before that the old ones could not be kept.
    goes_on = inner.use_ema and inner.built and moments != "fresh"
    kept = {id(weight): weight for weight in weights}
    if goes_on:
        kept |= _by_weight(inner._trainable_variables, inner._model_variables_moving_average)
    # When no update follows, `fit` would end by writing averages of zero into the weights.
    current_backend().copy([(average, kept[key]) for key, average in averages.items()])
    return [] if goes_on else ["the moving averages of the weights start anew from the weights as they are"]


def _by_weight(weights: Iterable[Any], variables: Iterable[Any]) -> dict[int, Any]:
    """Id of the weight → the variable that an optimizer keeps of it."""
    pairs = zip(weights, variables, strict=True)
    return {id(weight): variable for weight, variable in pairs if variable is not None}


def _fill_with_zeros(variables: Iterable[Any]) -> None:
    for variable in variables:
        variable.assign(ops.zeros(variable.shape, variable.dtype))
