"""One parser per command: the words after its name → an instruction.

`catalogue` lists them. None knows a model: whether a layer exists or a rate makes sense is decided where the model
is, in `client_callback.steering`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import get_args

from client_callback.wire.commands import instructions as i
from client_callback.wire.commands import words as w
from client_callback.wire.commands.instructions import CommandError, Instruction

Parser = Callable[[Sequence[str], str], Instruction]
"""(words after the command's name, its usage) → what they stand for. Raises CommandError."""

SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": ("learning_rate",),
    "step": ("decay_steps", "decay_rate", "initial_learning_rate"),
    "exponential": ("decay_steps", "decay_rate", "staircase", "initial_learning_rate"),
    "inverse-time": ("decay_steps", "decay_rate", "staircase", "initial_learning_rate"),
    "polynomial": ("decay_steps", "end_learning_rate", "power", "cycle", "initial_learning_rate"),
    "cosine": ("decay_steps", "alpha", "warmup_target", "warmup_steps", "initial_learning_rate"),
    "cosine-restarts": ("first_decay_steps", "t_mul", "m_mul", "alpha", "initial_learning_rate"),
    "cyclical": ("maximal_learning_rate", "step_size", "gamma", "initial_learning_rate"),
    "one-cycle": (
        "maximal_learning_rate",
        "total_steps",
        "warmup_share",
        "div_factor",
        "final_div_factor",
    ),
    "warmup": ("warmup_steps", "warmup_target", "initial_learning_rate"),
    "reduce-on-plateau": ("monitor", "factor", "patience", "mode", "min_delta", "cooldown", "min_lr"),
}
"""What `schedule` takes: each kind with its arguments, by Keras' own names where Keras has the schedule."""


def parse_rate(words: Sequence[str], usage: str) -> Instruction:
    """`lr`."""
    rest = list(words)
    hold = bool(rest[1:]) and rest[-1] == "hold"
    if hold:
        rest.pop()
    over = 0
    if "over" in rest[1:]:
        at = rest.index("over")
        over, rest = w.steps(rest[at + 1 :], usage, of="lr"), rest[:at]
    if len(rest) != 1:
        received = repr(" ".join(rest)) if rest else "nothing"
        raise CommandError(f"lr takes one value, received {received}; write {usage}")
    word = rest[0]
    if word[0] not in "xX*/":
        return i.SetRate(w.number(word, usage, of="lr"), over, hold)
    value = w.number(word[1:], usage, of="lr", received=word)
    factor = 1 / value if word[0] == "/" else value
    if not 0 < factor < math.inf:
        raise CommandError(f"lr: {word!r} is no usable factor; write {usage}")
    return i.ScaleRate(factor, over, hold)


def parse_schedule(words: Sequence[str], usage: str) -> Instruction:
    """`schedule`."""
    possible = ", ".join(SCHEDULES)
    if not words or "=" in words[0]:
        raise CommandError(f"schedule: its kind is missing; possible: {possible}")
    kind = words[0].lower()
    if kind not in SCHEDULES:
        raise CommandError(f"no schedule {words[0]!r}; possible: {possible}")
    arguments = w.arguments(words[1:], usage, of="schedule")
    for name in arguments:
        if name not in SCHEDULES[kind]:
            raise CommandError(
                f"schedule {kind} has no argument {name!r}; possible: {', '.join(SCHEDULES[kind])}"
            )
    return i.SetSchedule(kind, arguments)


def parse_optimizer(words: Sequence[str], usage: str) -> Instruction:
    """`optimizer`."""
    if not words or "=" in words[0]:
        raise CommandError(f"optimizer: its name is missing; write {usage}")
    return i.SwitchOptimizer(words[0].lower(), w.arguments(words[1:], usage, of="optimizer"))


def parse_set(words: Sequence[str], usage: str) -> Instruction:
    """`set`."""
    w.some(words, usage, of="set", what="NAME=VALUE")
    found = w.assignments(words, usage, of="set")
    return i.SetHyperparameters({name: w.scalar(value) for name, value in found.items()})


def parse_accumulate(words: Sequence[str], usage: str) -> Instruction:
    """`accumulate`."""
    return i.Accumulate(w.count(w.at_most_one(words, usage, of="accumulate"), usage, of="accumulate"))


def parse_freeze(words: Sequence[str], usage: str) -> Instruction:
    """`freeze`."""
    return i.Freeze(w.some(words, usage, of="freeze", what="a layer's name"))


def parse_unfreeze(words: Sequence[str], usage: str) -> Instruction:
    """`unfreeze`."""
    return i.Unfreeze(w.some(words, usage, of="unfreeze", what="a layer's name"))


def parse_reinit(words: Sequence[str], usage: str) -> Instruction:
    """`reinit`."""
    found = w.some(words, usage, of="reinit", what="a layer's name or dead-units")
    if "dead-units" in found and len(found) > 1:
        raise CommandError(f"reinit: dead-units stands alone, received {' '.join(found)!r}; write {usage}")
    return i.Reinitialise(() if found == ("dead-units",) else found)


def parse_class_weight(words: Sequence[str], usage: str) -> Instruction:
    """`class-weight`."""
    w.some(words, usage, of="class-weight", what="CLASS=WEIGHT, balanced or none")
    if len(words) == 1 and words[0].lower() in ("balanced", "none"):
        return i.SetClassWeight(balanced=words[0].lower() == "balanced")
    found = w.assignments(words, usage, of="class-weight")
    return i.SetClassWeight(
        {
            w.count(label, usage, of="class-weight", least=0): w.number(value, usage, of="class-weight")
            for label, value in found.items()
        }
    )


def parse_loss_weight(words: Sequence[str], usage: str) -> Instruction:
    """`loss-weight`."""
    w.some(words, usage, of="loss-weight", what="OUTPUT=WEIGHT")
    found = w.assignments(words, usage, of="loss-weight")
    weights = {}
    for output, word in found.items():
        try:
            weights[output] = float(word)
        except ValueError:
            weights[output] = math.nan
        if not 0 <= weights[output] < math.inf:
            raise CommandError(
                f"loss-weight: {word!r} is not a finite number from 0 on; write {usage}"
            ) from None
    return i.SetLossWeight(weights)


def parse_stop(words: Sequence[str], usage: str) -> Instruction:
    """`stop`."""
    if words and words != ["now"] and tuple(words) != ("now",):
        raise CommandError(f"stop takes only now, received {' '.join(words)!r}; write {usage}")
    return i.Stop(now=bool(words))


def parse_extend(words: Sequence[str], usage: str) -> Instruction:
    """`extend`."""
    if len(words) != 2 or words[1] not in ("epoch", "epochs"):
        received = " ".join(words) or "nothing"
        raise CommandError(f"extend: received {received!r}; write {usage}")
    return i.Extend(w.count(words[0], usage, of="extend"))


def parse_checkpoint(words: Sequence[str], usage: str) -> Instruction:
    """`checkpoint`."""
    return i.Checkpoint(w.at_most_one(words, usage, of="checkpoint"))


def parse_snapshot(words: Sequence[str], usage: str) -> Instruction:
    """`snapshot`."""
    name = w.at_most_one(words, usage, of="snapshot")
    if name and (name in _RESERVED or name.isdecimal() or not name.isprintable() or len(name) > 100):
        raise CommandError(
            f"snapshot: {name!r} is no name; possible: 1 to 100 signs, not a number and none of "
            f"{', '.join(_RESERVED)}"
        )
    return i.TakeSnapshot(name)


_RESERVED = ("start", "last", "now")


def parse_rollback(words: Sequence[str], usage: str) -> Instruction:
    """`rollback`."""
    if not words:
        raise CommandError(f"rollback: where to is missing; write {usage}")
    return i.Rollback(w.at_most_one(words, usage, of="rollback"))


def parse_undo(words: Sequence[str], usage: str) -> Instruction:
    """`undo`."""
    word = w.at_most_one(words, usage, of="undo")
    if word not in ("", "settings"):
        raise CommandError(f"undo takes only settings, received {word!r}; write {usage}")
    return i.Undo(settings=bool(word))


def parse_note(words: Sequence[str], usage: str) -> Instruction:
    """`note`."""
    text = " ".join(words).strip()
    if not text:
        raise CommandError(f"note: its text is missing; write {usage}")
    return i.Note(text)


def parse_cancel(words: Sequence[str], usage: str) -> Instruction:
    """`cancel`."""
    word = w.at_most_one(words, usage, of="cancel")
    if not word:
        raise CommandError(f"cancel: a timer's number is missing; write {usage}")
    return i.CancelTimer(None if word == "all" else w.count(word, usage, of="cancel"))


def parse_control(words: Sequence[str], usage: str) -> Instruction:
    """`control`."""
    word = w.at_most_one(words, usage, of="control")
    if word not in ("take", "release"):
        raise CommandError(f"control: received {word or 'nothing'!r}; write {usage}")
    return i.TakeControl() if word == "take" else i.ReleaseControl()


def parse_trial(words: Sequence[str], usage: str) -> Instruction:
    """`trial`."""
    rest = [word for word in words if word != "--adopt"]
    adopt = len(rest) < len(words)
    start = "now"
    if "from" in rest:
        at = rest.index("from")
        start = w.at_most_one(rest[at + 1 :], usage, of="trial")
        if not start:
            raise CommandError(f"trial: after from, start, now, a step or a name is missing; write {usage}")
        rest = rest[:at]
    if "for" not in rest:
        raise CommandError(f"trial: for N steps is missing; write {usage}")
    at = rest.index("for")
    steps, texts = w.steps(rest[at + 1 :], usage, of="trial"), rest[:at]
    if len(texts) == 2 and texts[0] == "lr":
        if adopt:
            raise CommandError("trial lr …: a range test has no winner to adopt; `lr VALUE` sets a rate")
        return _range_test(texts[1], steps, start, usage)
    if not 1 <= len(texts) <= _MOST_CANDIDATES:
        raise CommandError(
            f"trial takes 1 to {_MOST_CANDIDATES} candidates, received {len(texts)}; write {usage}"
        )
    if len(set(texts)) < len(texts):
        raise CommandError("trial: a candidate is given twice")
    candidates = tuple(_candidate(text, usage) for text in texts)
    for text, one in zip(texts, candidates, strict=True):
        if adopt and isinstance(one, i.TryData):
            raise CommandError(f"trial: {text} tries other data, which cannot be adopted; leave --adopt out")
    return i.Trial(candidates, tuple(texts), steps, start, adopt)


_MOST_CANDIDATES = 16
_RANGE = re.compile(r"(\S+)\.\.(\S+)")


_DATA: dict[str, i.DataKind] = {kind: kind for kind in get_args(i.DataKind)}


def _range_test(word: str, steps: int, start: str, usage: str) -> Instruction:
    match = _RANGE.fullmatch(word)
    if match is None:
        raise CommandError(f"trial lr: {word!r} is no range such as 1e-5..1; write {usage}")
    low = w.number(match[1], usage, of="trial lr")
    high = w.number(match[2], usage, of="trial lr")
    if low >= high:
        raise CommandError(f"trial lr: {word!r} does not grow; write {usage}")
    if steps < _FEWEST_RATES:
        raise CommandError(f"trial lr: a range takes at least {_FEWEST_RATES} steps, received {steps}")
    return i.RangeTest(low, high, steps, start)


_FEWEST_RATES = 5


def _candidate(text: str, usage: str) -> i.SwitchOptimizer | i.SetRate | i.ScaleRate | i.TryData | None:
    """`keep`, `lr x0.1`, `zero-inputs`, or an optimizer whose first number is its rate: `adam 1e-4 beta_1=0.8`."""
    words = text.split()
    if words == ["keep"]:
        return None
    if len(words) == 1 and words[0] in _DATA:
        return i.TryData(_DATA[words[0]])
    if words and words[0] == "lr":
        rate = parse_rate(words[1:], usage)
        if not isinstance(rate, i.SetRate | i.ScaleRate) or rate.hold or rate.over:
            raise CommandError(f"trial: {text!r} is a candidate only as lr VALUE or lr xFACTOR")
        return rate
    if words and words[0] == "optimizer":
        words = words[1:]
    if len(words) > 1 and "=" not in words[1]:
        words[1] = f"learning_rate={words[1]}"
    switch = parse_optimizer(words, usage)
    assert isinstance(switch, i.SwitchOptimizer)  # noqa: S101 (what that parser makes)
    return switch


def bare(instruction: Instruction, name: str) -> Parser:
    """For a command without arguments."""

    def parse_bare(words: Sequence[str], usage: str) -> Instruction:
        if words:
            raise CommandError(f"{name} takes no arguments, received {' '.join(words)!r}")
        return instruction

    return parse_bare
