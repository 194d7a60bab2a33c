"""What is to be known before an optimizer is exchanged: what goes over, what is lost, and how far it will step.

Called by the handlers of `optimizer`, `set` and `accumulate` with the optimizer that is to take over, which has no
slots yet. Inside the backend's `state`; reads, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import keras

from client_callback.steering.carrying import carried_batches, count_of, dropping, slot_names
from client_callback.steering.equivalent import (
    Motion,
    equivalent_rate,
    follows_gradients,
    motion,
    starts_larger,
)
from client_callback.steering.learning_rate import check_rate, read_rate
from client_callback.steering.optimizers import CLIPPING, command_name, default_settings, settings
from client_callback.steering.rate_control import control_of, rated_optimizers, schedule_name, updates
from client_callback.steering.rate_owners import rate_owners
from client_callback.steering.switch import Proposal
from client_callback.steering.training import Refused, Training, end_of
from client_callback.wire.protocol import PlanLine, Scalar

_FAR_OFF = 3.0
"""Times as large or as small as now that the updates may become without a warning."""

Topic = Literal["does", "keeps", "resets", "recompiles", "rate", "warning", "cost"]


def matched_rate(training: Training, old: Any, new: Any) -> float:
    """The learning rate at which the first updates of `new` are as large as the present ones.

    Raises:
        Refused: it is not known.
    """
    found = equivalent_rate(motion(training, old), new, _weights(training))
    if isinstance(found, str):
        raise Refused(f"learning_rate=match is not possible: {found}; give a number instead")
    check_rate(found, keras.backend.floatx(), "the matched learning rate")
    return found


def plan_exchange(training: Training, proposal: Proposal) -> list[PlanLine]:
    """Of `optimizer`: another one takes over."""
    present = motion(training, proposal.old)
    old, new = command_name(rated_optimizers(proposal.old)[0]), command_name(proposal.inner)
    return _lines(
        ("does", f"{new} takes over from {old}{_with(proposal)}"),
        *_keeps(training, proposal),
        *_resets(proposal),
        ("recompiles", recompiling(training)),
        *_rate(training, proposal),
        *_equivalent(training, proposal, present),
        *_warnings(training, proposal),
    )


def plan_changes(
    training: Training, proposal: Proposal, before: dict[str, Scalar], after: dict[str, Scalar]
) -> list[PlanLine]:
    """Of `set` and `accumulate`: the same optimizer with other settings."""
    inner, new = rated_optimizers(proposal.old)[0], proposal.inner
    does = ", ".join(f"{name} {told(before[name])} → {told(after[name])}" for name in after)
    return _lines(
        ("does", does),
        ("keeps", "moments, iterations, learning rate and weights"),
        *_dropped(inner, new),
        *_accumulating(inner, new),
        *_averages(inner, new),
        ("recompiles", recompiling(training)),
        *_swapping(training, new),
    )


def check_averages(training: Training, new: Any) -> None:
    """Refuses to end the moving averages that a callback of this `fit` needs."""
    if _swaps(training) and not new.use_ema:
        raise Refused("SwapEMAWeights in this fit needs moving averages; leave use_ema=false out")


def check_accumulation(training: Training, old: Any, new: Any) -> None:
    """Refuses to gather gradients for longer than this `fit` goes on: no weight would move any more."""
    length, end = new.gradient_accumulation_steps, end_of(training)
    if end is None or not length or length == old.gradient_accumulation_steps:
        return
    left, (gathered, _) = end - training.step, carried_batches(old, length)
    if length - gathered > left:
        raise Refused(f"an update for every {length} batches would never come: this fit has {left} left")


def recompiling(training: Training) -> str:
    """What is said of the trace that a change costs."""
    seconds = training.trace_seconds
    took = "" if seconds is None else f"; the last time, that step took {seconds:.2g} s"
    return f"the train step is traced anew{took}"


def told(value: Scalar) -> str:
    """A value as a command writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(*lines: tuple[Topic, str]) -> list[PlanLine]:
    return [PlanLine(topic=topic, text=text) for topic, text in lines]


def _with(proposal: Proposal) -> str:
    """The settings that are not the class's defaults, and not those of the present optimizer."""
    own = settings(proposal.inner)
    usual = {**default_settings(type(proposal.inner)), **settings(rated_optimizers(proposal.old)[0])}
    other = [f"{name} {told(value)}" for name, value in own.items() if usual.get(name) != value]
    return f", with {', '.join(other)}" if other else ""


_Lines = Iterator[tuple[Topic, str]]


def _keeps(training: Training, proposal: Proposal) -> _Lines:
    inner, new = rated_optimizers(proposal.old)[0], proposal.inner
    names = [n for n in CLIPPING if getattr(new, n) is not None and getattr(new, n) == getattr(inner, n)]
    if new.use_ema and inner.use_ema:
        names += ["use_ema", "ema_momentum"]
    if new.gradient_accumulation_steps and inner.gradient_accumulation_steps:
        names.append("gradient_accumulation_steps")
    kept = [f"{name} {told(getattr(new, name))}" for name in names]
    phase, _ = carried_batches(inner, new.gradient_accumulation_steps)
    if phase:
        kept.append(f"the gradients accumulated over {count_of(phase, 'batch')}")
    if isinstance(proposal.old, keras.optimizers.LossScaleOptimizer) and proposal.old.built:
        kept.append(f"loss scale {_number(proposal.old.dynamic_scale):g}")
    if getattr(inner, "_exclude_from_weight_decay_pattern", None) or getattr(
        inner, "_exclude_from_weight_decay", None
    ):
        kept.append("what is excluded from weight decay")
    yield "keeps", ", ".join(["weights, metrics and seeds", *kept])


def _resets(proposal: Proposal) -> _Lines:
    inner, new = rated_optimizers(proposal.old)[0], proposal.inner
    done = updates(inner) // (inner.gradient_accumulation_steps or 1)
    moments = slot_names(inner)
    if moments:
        yield (
            "resets",
            f"{', '.join(moments)} of {count_of(done, 'update')}; {command_name(new)} begins with none",
        )
    yield from _dropped(inner, new)
    if inner.use_ema or new.use_ema:
        goes_on = "start anew from the weights as they are" if new.use_ema else "are dropped"
        yield "resets", f"the moving averages of the weights {goes_on}"


def _dropped(inner: Any, new: Any) -> _Lines:
    _, dropped = carried_batches(inner, new.gradient_accumulation_steps)
    if dropped:
        yield "resets", dropping(dropped)


def _rate(training: Training, proposal: Proposal) -> _Lines:
    inner, new = rated_optimizers(proposal.old)[0], proposal.inner
    control = control_of(inner)
    now = schedule_name(inner)
    has = f"now {told(read_rate(inner))}, decided by {now or 'a number'}"
    if control is not None and control.held:
        has += " and held"
    if proposal.keeps_rate:
        position = control.position if control is not None else updates(inner)
        yield "rate", f"{has}; {now} goes on from its step {position}"
        return
    then = f"then {told(read_rate(new))}"
    yield "rate", f"{has}; {then}, and {now} no longer decides" if now else f"{has}; {then}"


def _equivalent(training: Training, proposal: Proposal, present: Motion) -> _Lines:
    """The rate of equal effect, and how far off the one is that will be used."""
    new = proposal.inner
    name = command_name(new)
    found = equivalent_rate(present, new, _weights(training))
    if present.update_rms is not None:
        yield (
            "rate",
            f"an update moves each weight by {present.update_rms:.2g} now (RMS, {present.update_source})",
        )
    if isinstance(found, str):
        yield "rate", f"an equivalent rate of {name} cannot be estimated: {found}"
        return
    source = f", with the gradients' RMS from {present.gradient_source}" if follows_gradients(new) else ""
    yield "rate", f"{name} moves them as far at learning_rate {found:.3g} (learning_rate=match){source}"
    if present.swats_rate is not None and type(new).__name__ == "SGD":
        projected = present.swats_rate * (1 - new.momentum)
        source = "from the first moments in the gradient's place"
        yield (
            "rate",
            f"SWATS' projection of the present step gives {projected:.3g} (arXiv:1712.07628), {source}",
        )
    used = read_rate(rated_optimizers(proposal.old)[0] if proposal.keeps_rate else new)
    times = used / found if found else math.inf
    if times > _FAR_OFF or times < 1 / _FAR_OFF:
        how = f"{times:.2g} times as far" if times > 1 else f"1/{1 / times:.2g} as far" if times else "not"
        yield "warning", f"at {told(used)} its first updates move the weights about {how} as now"


def _warnings(training: Training, proposal: Proposal) -> _Lines:
    inner, new = rated_optimizers(proposal.old)[0], proposal.inner
    name = command_name(new)
    for owner in rate_owners(training.callbacks):
        yield "warning", str(owner)
    if isinstance(new, keras.optimizers.Adafactor):
        yield "warning", "Adafactor never steps faster than 1/√step, counted from its start"
    if isinstance(new, keras.optimizers.SGD) and not isinstance(inner, keras.optimizers.SGD):
        yield (
            "warning",
            f"{name} uses one rate for all weights, where {command_name(inner)} gave each its own scale",
        )
    momentum = getattr(new, "momentum", 0.0)
    if isinstance(new, keras.optimizers.SGD) and 0 < momentum < 1:
        steps = 1 / (1 - momentum)
        yield "warning", f"the momentum begins at 0, so its updates grow over about {steps:.0f} steps"
    if starts_larger(new) > 1:
        yield "warning", f"its very first update is {starts_larger(new):.2g} times as large as later ones"
    old_decay, decay = inner.weight_decay, new.weight_decay
    if old_decay != decay:
        yield "warning", f"weight_decay {told(old_decay)} → {told(decay)}: it belongs to the optimizer"
    yield from _swapping(training, new)


def _swapping(training: Training, new: Any) -> _Lines:
    if _swaps(training) and new.use_ema:
        yield "warning", "SwapEMAWeights validates with the averages, which follow the weights from here on"


def _averages(inner: Any, new: Any) -> _Lines:
    if inner.use_ema != new.use_ema:
        goes_on = "start from the weights as they are" if new.use_ema else "are dropped"
        yield "resets", f"the moving averages of the weights {goes_on}"


def _accumulating(inner: Any, new: Any) -> _Lines:
    """The rate that suits another number of batches per update, which nobody sets here."""
    length, new_length = inner.gradient_accumulation_steps or 1, new.gradient_accumulation_steps or 1
    if length == new_length:
        return
    phase, _ = carried_batches(inner, new_length)
    if phase:
        yield "keeps", f"the gradients accumulated over {count_of(phase, 'batch')}"
    times = new_length / length
    yield (
        "rate",
        f"stays; for {times:.3g} times the batch, SGD's is often set {times:.3g} times as large (Goyal et al. 2017, "
        f"arXiv:1706.02677), Adam's {math.sqrt(times):.3g} times (Malladi et al. 2022, arXiv:2205.10287)",
    )
    if schedule_name(inner) is not None:
        yield "warning", f"{schedule_name(inner)} counts batches, not updates: it goes on as before"


def _swaps(training: Training) -> bool:
    return any(isinstance(one, keras.callbacks.SwapEMAWeights) for one in training.callbacks)


def _weights(training: Training) -> list[Any]:
    return [] if training.model is None else list(training.model.trainable_variables)


def _number(variable: Any) -> float:
    return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))
