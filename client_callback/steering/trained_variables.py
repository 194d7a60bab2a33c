"""Which variables an optimizer updates, changed in the middle of a training without losing what it knows of any.

An optimizer is built for the variables that are trainable then; on JAX its step takes exactly those. After `follow`
it updates the ones that are trainable now, and its `variables` are those it would have if built for them, so that it
is saved that way. What it keeps of others (moments, averages) stays where it was, and counts again when they are
trained again; for variables it never knew it gets what `build` would have made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras

from client_callback.steering.backends import current_backend
from client_callback.steering.rate_control import rated_optimizers
from client_callback.steering.training import Refused

_AVERAGES = "_model_variables_moving_average"
"""Keras goes through these in the order of the variables trained, through all other state by index."""
_ACCUMULATED = "_accumulated_gradients"
_NO_SLOTS = {"_variables", "_trainable_variables"}


@dataclass(eq=False)
class _Roster:
    """All that an optimizer knows, whether it is trained at the moment or not."""

    variables: list[Any]
    """In the order of the optimizer's own index."""
    slots: dict[str, list[Any]]
    """Attribute of the optimizer → what it keeps there of each of `variables`; `None` where nothing."""
    order: list[Any]
    """The optimizer's variables in the order in which `build` makes them, and so in that of saved files."""


_ROSTERS: WeakKeyDictionary[Any, _Roster] = WeakKeyDictionary()
"""Of optimizers whose variables have been others than those they were built for."""


def trained_variables(optimizer: Any) -> list[Any]:
    """Those that the optimizer updates; empty before it is built."""
    return list(optimizer._trainable_variables)


def known_variables(optimizer: Any) -> list[Any]:
    """Those it keeps something of, whether they are trained at the moment or not; empty before it is built."""
    roster = _ROSTERS.get(optimizer)
    return list(roster.variables if roster else optimizer._trainable_variables)


def kept_variables(optimizer: Any) -> list[Any]:
    """What it keeps of variables, of those not trained at the moment too, where it has been changed for them."""
    roster = _ROSTERS.get(optimizer)
    if roster is None:
        return []
    return [slot for slots in roster.slots.values() for slot in slots if isinstance(slot, keras.Variable)]


def unknown_variables(model: Any, variables: Iterable[Any]) -> list[Any]:
    """Those of which the model's optimizer keeps nothing: they were frozen when it was built."""
    optimizer = model.optimizer
    if not optimizer.built:
        return []
    roster = _ROSTERS.get(optimizer)
    known = {id(v) for v in (roster.variables if roster else optimizer._trainable_variables)}
    return [variable for variable in variables if id(variable) not in known]


def learn(model: Any, variables: Iterable[Any]) -> list[Any]:
    """Makes what the optimizer needs to train these variables, without training them; returns those it did not know.

    Raises:
        Refused: it cannot be made; nothing was changed.
    """
    unknown = unknown_variables(model, variables)
    if not unknown:
        return []
    if isinstance(model.optimizer, keras.optimizers.MultiOptimizer):
        raise Refused(
            f"MultiOptimizer was built without {unknown[0].path} and cannot take on more; compile anew for that"
        )
    inner = rated_optimizers(model.optimizer)[0]
    _extend(model, inner, unknown)
    if inner is not model.optimizer:
        _roster(model.optimizer).variables.extend(unknown)
    return unknown


def follow(model: Any) -> None:
    """The optimizer updates the variables that are trainable now, from the next trace on.

    Inside the backend's `state`.

    Raises:
        Refused: it does not know one of them and cannot be extended.
    """
    optimizer = model.optimizer
    if not optimizer.built or _same(optimizer._trainable_variables, model.trainable_variables):
        return
    learn(model, model.trainable_variables)
    update_only(optimizer, model.trainable_variables)


def update_only(optimizer: Any, variables: list[Any]) -> None:
    """The optimizer, which knows them all, updates these variables, from the next trace on."""
    if _same(optimizer._trainable_variables, variables):
        return
    for part, its_own in _parts(optimizer, variables):
        _update_only(part, its_own)


def unbuilt_like(optimizer: Any) -> Any:
    """An optimizer of the same class with the same arguments, its rate apart.

    Raises:
        Refused: it cannot be made from its configuration.
    """
    try:
        config = dict(optimizer.get_config())
        if "learning_rate" in config:
            config["learning_rate"] = 0.001
        return type(optimizer).from_config(config)
    except Exception as error:
        raise Refused(
            f"{type(optimizer).__name__} cannot be made anew from its configuration "
            f"({type(error).__name__}: {error})"
        ) from error


@dataclass(frozen=True, eq=False)
class Kept:
    """What an optimizer keeps of one variable under one name, beside what it would begin with."""

    name: str
    """The optimizer's attribute."""
    variable: Any
    mine: Any
    """The optimizer's variable."""
    initial: Any
    """A variable with the value that it would have if built now."""
    follows: bool
    """Whether that value is the weight's own."""


def kept_of(model: Any, variables: list[Any]) -> list[Kept]:
    """What the model's optimizer keeps of each of these variables, as far as it knows them.

    Raises:
        Refused: it cannot be told what it would begin with.
    """
    found = []
    for rated in rated_optimizers(model.optimizer):
        roster = _roster(rated) if rated.built else None
        index = {id(v): place for place, v in enumerate(roster.variables if roster else ())}
        known = [v for v in variables if id(v) in index]
        if roster is None or not known:
            continue
        with current_backend().scope(model):
            template = unbuilt_like(rated)
            template.build(known)
        slots = _find_slots(template, len(known))
        for name, kept in roster.slots.items():
            for variable, initial in zip(known, slots.get(name, ()), strict=False):
                mine = kept[index[id(variable)]]
                if mine is not None and initial is not None:
                    found.append(Kept(name, variable, mine, initial, _begins_with_weight(rated, name)))
    return found


def begin_anew(model: Any, variables: Iterable[Any]) -> None:
    """Those of its optimizer's variables that are among these are as when made; inside the backend's `state`.

    Raises:
        Refused: it cannot be told what they began with; nothing was changed.
    """
    wanted = {id(v) for v in variables}
    optimizer = model.optimizer
    pairs: list[tuple[Any, Any]] = []
    for rated in rated_optimizers(optimizer):
        if rated.built and any(id(v) in wanted for v in (*rated.variables, *kept_variables(rated))):
            pairs += _beginnings(model, rated)
    current_backend().copy([(mine, initial) for mine, initial in pairs if id(mine) in wanted])
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and optimizer.built:
        for mine, value in ((optimizer.step_counter, 0), (optimizer.dynamic_scale, optimizer.initial_scale)):
            if id(mine) in wanted:
                mine.assign(value)


def _beginnings(model: Any, rated: Any) -> Iterator[tuple[Any, Any]]:
    """(what an optimizer keeps, a variable with the value that this had when it was made); its rate apart."""
    roster = _roster(rated)
    with current_backend().scope(model):
        template = unbuilt_like(rated)
        template.build(roster.variables)
    slots = _find_slots(template, len(roster.variables))
    for name, kept in roster.slots.items():
        made = roster.variables if _begins_with_weight(rated, name) else slots.get(name, ())
        for mine, initial in zip(kept, made, strict=False):
            if mine is not None and initial is not None:
                yield mine, initial
    for name, initial in vars(template).items():
        mine = vars(rated).get(name)
        if (
            isinstance(initial, keras.Variable)
            and isinstance(mine, keras.Variable)
            and name != "_learning_rate"
        ):
            yield mine, initial


def _begins_with_weight(optimizer: Any, name: str) -> bool:
    schedule_free = type(optimizer).__name__ == "ScheduleFreeAdamW"
    return name == _AVERAGES or (schedule_free and name == "_momentums")


def _roster(optimizer: Any) -> _Roster:
    if optimizer not in _ROSTERS:
        known = list(optimizer._trainable_variables)
        slots = _find_slots(optimizer, len(known))
        _ROSTERS[optimizer] = _Roster(known, slots, list(optimizer._variables))
    return _ROSTERS[optimizer]


def _find_slots(optimizer: Any, count: int) -> dict[str, list[Any]]:
    """Lists with an entry for each of the `count` variables, as Keras' optimizers and most others keep them."""
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if isinstance(value, list)
        and name not in _NO_SLOTS
        and len(value) == count
        and any(isinstance(one, keras.Variable) for one in value)
        and all(one is None or isinstance(one, keras.Variable) for one in value)
    }


def _parts(optimizer: Any, variables: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """(the optimizer and those inside it, the variables that are its own)."""
    yield optimizer, variables
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        place = optimizer._var_to_optimizer_idx
        for index, inner in enumerate(optimizer.optimizers):
            if inner.built:
                yield inner, [v for v in variables if place[optimizer._var_key(v)] == index]
    elif isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        yield from _parts(optimizer.inner_optimizer, variables)


def _takes_all(optimizer: Any) -> bool:
    """Whether it wants a gradient for each variable in its index; others take some of them as well."""
    several = isinstance(optimizer, keras.optimizers.MultiOptimizer)
    return several or current_backend().reads_only_listed_variables


def _update_only(optimizer: Any, trained: list[Any]) -> None:
    roster = _roster(optimizer)
    before = {id(v) for v in optimizer._trainable_variables}
    present = {id(v) for v in trained}
    index = {id(v): place for place, v in enumerate(roster.variables)}
    _start_anew(roster, [index[one] for one in before ^ present])
    # Past the optimizer's __setattr__, which would track what it is given.
    own = vars(optimizer)
    own["_trainable_variables"] = list(trained)
    indexed = trained if _takes_all(optimizer) else roster.variables
    own["_trainable_variables_indices"] = {optimizer._var_key(v): index[id(v)] for v in indexed}
    if _AVERAGES in roster.slots:
        own[_AVERAGES] = [roster.slots[_AVERAGES][index[id(v)]] for v in trained]
    _list_variables(optimizer, roster, present)


def _list_variables(optimizer: Any, roster: _Roster, present: set[int]) -> None:
    """Its `variables` are what it would have if built for the present ones, then what else was put among them."""
    slots = {
        id(slot): id(variable) in present
        for kept in roster.slots.values()
        for variable, slot in zip(roster.variables, kept, strict=True)
        if slot is not None
    }
    now = list(optimizer._variables)
    listed = {id(v) for v in now}
    ordered = {id(v) for v in roster.order}
    variables = [
        *(v for v in roster.order if slots.get(id(v), id(v) in listed)),
        *(v for v in now if id(v) not in ordered and id(v) not in slots),
    ]
    # A new list: TensorFlow refuses to save an object of which it saw a list change other than by growing.
    vars(optimizer)["_variables"] = variables
    tracked = optimizer._tracker.config
    tracked["variables"] = (tracked["variables"][0], variables)


def _start_anew(roster: _Roster, places: list[int]) -> None:
    """What belongs to a moment: half an accumulation is void later, and an average begins with the weight."""
    backend = current_backend()
    for place in places:
        if _ACCUMULATED in roster.slots:
            accumulated = roster.slots[_ACCUMULATED][place]
            backend.set_from_host(accumulated, 0 * backend.host(accumulated))
        if roster.slots.get(_AVERAGES, [None] * (place + 1))[place] is not None:
            backend.copy([(roster.slots[_AVERAGES][place], roster.variables[place])])


def _extend(model: Any, optimizer: Any, added: list[Any]) -> None:
    """Takes what it would keep of more variables from an optimizer of the same kind, built for all."""
    roster = _roster(optimizer)
    variables = [*roster.variables, *added]
    known = {id(v) for v in variables}
    in_order = [v for v in model.weights if id(v) in known]
    with current_backend().scope(model):
        template = unbuilt_like(optimizer)
        template.build(in_order)
    made = _find_slots(template, len(in_order))
    if len(in_order) != len(variables) or set(made) != set(roster.slots):
        raise Refused(_cannot_extend(optimizer))
    place = {id(v): index for index, v in enumerate(in_order)}
    slots = {name: [*kept, *(made[name][place[id(v)]] for v in added)] for name, kept in roster.slots.items()}
    # Which of its variables stands where the template has one.
    stands_for: dict[int, Any] = {
        id(theirs): mine
        for name, kept in slots.items()
        for variable, mine in zip(variables, kept, strict=True)
        if (theirs := made[name][place[id(variable)]]) is not None
    }
    for name, value in vars(template).items():
        if isinstance(value, keras.Variable):
            stands_for[id(value)] = vars(optimizer).get(name)
    if any(id(v) not in stands_for for v in template._variables):
        raise Refused(_cannot_extend(optimizer))
    order = [stands_for[id(v)] for v in template._variables]
    vars(optimizer).update({name: list(kept) for name, kept in slots.items() if name != _AVERAGES})
    _ROSTERS[optimizer] = _Roster(variables, slots, [v for v in order if isinstance(v, keras.Variable)])


def _cannot_extend(optimizer: Any) -> str:
    name = type(optimizer).__name__
    return (
        f"{name} keeps its state in a way of its own and cannot take on more variables; compile anew for that"
    )


def _same(one: list[Any], other: list[Any]) -> bool:
    return [id(v) for v in one] == [id(v) for v in other]
