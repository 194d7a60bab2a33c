"""A command's text → an order, and what may come next while one types it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from client_callback.wire.commands import instructions as i
from client_callback.wire.commands import words as w
from client_callback.wire.commands.catalogue import COMMANDS, CommandHelp
from client_callback.wire.commands.instructions import CommandError, Instruction, Order
from client_callback.wire.commands.parsers import SCHEDULES

DRY_RUN = "--dry-run"
SUFFIXES = {
    "at": "at step N | at epoch N",
    "when": "when plateau",
    "for": "for N steps",
    "unless": "unless SERIES rises|falls P% in N steps",
    "from": "from start | last | STEP | NAME",
}
"""What may follow a command, by its first word."""

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


class Vocabulary(msgspec.Struct, frozen=True):
    """The names that a run's commands can hold, for completion."""

    optimizers: Mapping[str, Sequence[str]] = {}
    layers: Sequence[str] = ()
    hyperparameters: Sequence[str] = ()
    """Of the optimizer at work."""
    outputs: Sequence[str] = ()
    snapshots: Sequence[str] = ()
    timers: Sequence[int] = ()
    series: Sequence[str] = ()
    actions: Sequence[str] = ()


def parse(text: str, actions: Sequence[str] = ()) -> Order:
    """The order a command's text stands for.

    `actions`: commands that the training's script defined itself.

    Raises:
        CommandError: unknown command, wrong words; the message names what is possible.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandError(f"{text!r}: {str(error).lower()}; close the quotation mark") from None
    if not words or "" in words:
        raise CommandError(f"{text!r}: a word is empty; possible commands: {_names(actions)}")
    name = words[0].lower()
    if words[0] in actions:
        spec, suffixes = None, "at"
    elif name in COMMANDS:
        spec = COMMANDS[name]
        suffixes = spec.suffixes
    else:
        raise CommandError(f"unknown command {words[0]!r}; possible: {_names(actions)}")
    rest = words[1:]
    dry_run = name != "note" and DRY_RUN in rest
    if dry_run:
        rest.remove(DRY_RUN)
    cut = len(rest)
    if suffixes:
        cut = next((place for place, word in enumerate(rest) if word in SUFFIXES), cut)
    instruction: Instruction = (
        i.UserAction(words[0], tuple(rest[:cut])) if spec is None else spec.parse(rest[:cut], spec.usage)
    )
    order = _with_suffixes(Order(instruction, dry_run=dry_run), rest[cut:], name, suffixes)
    if order.starts is None and order.unless is not None and order.lasts is not None:
        raise CommandError(f"{name}: for N steps and unless exclude each other; write one of them")
    return order


def join_words(words: Sequence[str]) -> str:
    """The words of a shell's command line as one text that `parse` splits again in the same places.

    A single word is taken as it is, so `send RUN "lr x0.5"` and `send RUN lr x0.5` are the same.
    """
    return words[0] if len(words) == 1 else shlex.join(words)


def _with_suffixes(order: Order, words: Sequence[str], name: str, allowed: str) -> Order:
    rest = list(words)
    while rest:
        key = rest.pop(0)
        end = next((place for place, word in enumerate(rest) if word in SUFFIXES), len(rest))
        part, rest = rest[:end], rest[end:]
        if key in ("for", "unless", "from") and allowed != "all":
            raise CommandError(f"{name} sets nothing that lasts, so {key} … does not fit it")
        order = _SUFFIX_PARSERS[key](order, part, name)
    return order


def _starting(order: Order, starts: i.AtStep | i.AtEpoch | i.OnPlateau, name: str) -> Order:
    if order.starts is not None:
        raise CommandError(f"{name}: two moments are given; write one of at … and when …")
    return msgspec.structs.replace(order, starts=starts)


def _at(order: Order, words: Sequence[str], name: str) -> Order:
    usage = SUFFIXES["at"]
    if len(words) != 2 or words[0] not in ("step", "epoch"):
        raise CommandError(f"{name} at: received {' '.join(words) or 'nothing'!r}; write {usage}")
    if words[0] == "step":
        return _starting(order, i.AtStep(w.count(words[1], usage, of=f"{name} at", least=0)), name)
    return _starting(order, i.AtEpoch(w.count(words[1], usage, of=f"{name} at")), name)


def _when(order: Order, words: Sequence[str], name: str) -> Order:
    if list(words) != ["plateau"]:
        received = " ".join(words) or "nothing"
        raise CommandError(f"{name} when: received {received!r}; write {SUFFIXES['when']}")
    return _starting(order, i.OnPlateau(), name)


def _for(order: Order, words: Sequence[str], name: str) -> Order:
    if order.lasts is not None:
        raise CommandError(f"{name}: for is given twice")
    return msgspec.structs.replace(order, lasts=w.steps(words, SUFFIXES["for"], of=f"{name} for"))


def _unless(order: Order, words: Sequence[str], name: str) -> Order:
    usage = SUFFIXES["unless"]
    if order.unless is not None:
        raise CommandError(f"{name}: unless is given twice")
    percent = _PERCENT.fullmatch(words[2]) if len(words) > 2 else None
    shaped = len(words) == 6 and words[1] in ("rises", "falls") and words[3] == "in"
    if not shaped or percent is None:
        raise CommandError(f"{name} unless: received {' '.join(words) or 'nothing'!r}; write {usage}")
    share = w.number(percent[1], usage, of=f"{name} unless", received=words[2]) / 100
    steps = w.steps(words[4:], usage, of=f"{name} unless")
    change: Literal["rises", "falls"] = "rises" if words[1] == "rises" else "falls"
    return msgspec.structs.replace(order, unless=i.Unless(words[0], change, share, steps))


def _from(order: Order, words: Sequence[str], name: str) -> Order:
    if order.origin or len(words) != 1:
        received = " ".join(words) or "nothing"
        raise CommandError(f"{name} from: received {received!r}; write {SUFFIXES['from']}")
    return msgspec.structs.replace(order, origin=words[0])


_SUFFIX_PARSERS = {"at": _at, "when": _when, "for": _for, "unless": _unless, "from": _from}


# ── Completion ────────────────────────────────────────────────────────────────────────────────────


def complete(text: str, vocabulary: Vocabulary) -> list[str]:
    """Whole texts that continue `text`, best first: commands, and the names that can follow."""
    head, space, last = text.rpartition(" ")
    words = head.split()
    if not space:
        names = [f"{name} " if _takes_words(spec) else name for name, spec in COMMANDS.items()]
        return [name for name in [*names, *vocabulary.actions] if name.startswith(last)]
    spec = COMMANDS.get(words[0]) if words else None
    if spec is None:
        return []
    options = _next_words(spec, words[1:], vocabulary)
    found = [f"{head} {option}" for option in options if option.lower().startswith(last.lower())]
    return found + [e for e in spec.examples if e.startswith(text) and e not in found]


def _takes_words(spec: CommandHelp) -> bool:
    return spec.usage != spec.name


def _next_words(spec: CommandHelp, words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    used = {word.partition("=")[0] for word in words}
    first = words[0].lower() if words else None
    names: dict[str, Sequence[str]] = {
        "optimizer": vocabulary.optimizers.get(first, ()) if first else sorted(vocabulary.optimizers),
        "schedule": SCHEDULES.get(first, ()) if first else list(SCHEDULES),
        "set": [*vocabulary.hyperparameters, *(f"{name}." for name in vocabulary.layers)],
        "freeze": vocabulary.layers,
        "unfreeze": vocabulary.layers,
        "reinit": vocabulary.layers if first else ["dead-units", *vocabulary.layers],
        "loss-weight": vocabulary.outputs,
        "rollback": [] if first else ["start", "last", *vocabulary.snapshots],
        "cancel": [] if first else [*map(str, vocabulary.timers), "all"],
    }
    after = "=" if spec.name in ("set", "loss-weight") else ""
    if spec.name in ("optimizer", "schedule"):
        after = "=" if first else " "
    return [
        name if name.endswith(".") else f"{name}{after}"
        for name in names.get(spec.name, ())
        if name not in used
    ]


def _names(actions: Sequence[str]) -> str:
    return ", ".join([*COMMANDS, *actions])
