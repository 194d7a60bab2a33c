"""The one grammar of commands: the terminal, `unstuck send` and the Python function all parse here.

`parse` turns what a person typed into a frozen instruction and says clearly what is possible when it cannot.
It knows nothing of a model: whether an optimizer exists or a rate makes sense is decided where the model
is, in `client_callback.steering`. To add a command: an instruction, its parser, one entry in `COMMANDS`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from client_callback.wire.protocol import Scalar


class CommandError(ValueError):
    """A command that cannot be understood. The text says what was received and what is possible."""


class SetRate(msgspec.Struct, frozen=True):
    """`lr 3e-4`: the learning rate from the next step on; a schedule no longer decides."""

    value: float


class ScaleRate(msgspec.Struct, frozen=True):
    """`lr x0.5`: the rate times `factor`; a schedule keeps its shape."""

    factor: float


class SwitchOptimizer(msgspec.Struct, frozen=True):
    """`optimizer sgd learning_rate=0.01`: another optimizer, with Keras' own names and arguments."""

    name: str
    arguments: dict[str, Scalar] = {}


class Pause(msgspec.Struct, frozen=True):
    """Holds training before its next batch."""


class Resume(msgspec.Struct, frozen=True):
    """Lets a paused training go on."""


class Stop(msgspec.Struct, frozen=True):
    """Ends `fit` after the current batch, as `model.stop_training = True` does."""


class Note(msgspec.Struct, frozen=True):
    """Writes a remark into the recording."""

    text: str


Instruction = SetRate | ScaleRate | SwitchOptimizer | Pause | Resume | Stop | Note


class CommandHelp(msgspec.Struct, frozen=True):
    """One command: how it is written, what it does, how it is parsed."""

    name: str
    usage: str
    summary: str
    examples: tuple[str, ...]
    parse: Callable[[Sequence[str]], Instruction]
    """The words after the name → instruction. Raises CommandError."""


def parse(text: str) -> Instruction:
    """The instruction a command's text stands for.

    Raises:
        CommandError: unknown command, wrong words; the message names what is possible.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandError(f"{text!r}: {str(error).lower()}; close the quotation mark") from None
    if not words or "" in words:
        raise CommandError(f"{text!r}: a word is empty; possible commands: {_names()}")
    spec = COMMANDS.get(words[0].lower())
    if spec is None:
        raise CommandError(f"unknown command {words[0]!r}; possible: {_names()}")
    return spec.parse(words[1:])


def join_words(words: Sequence[str]) -> str:
    """The words of a shell's command line as one text that `parse` splits again in the same places.

    A single word is taken as it is, so `send RUN "lr x0.5"` and `send RUN lr x0.5` are the same.
    """
    return words[0] if len(words) == 1 else shlex.join(words)


def complete(text: str, optimizers: Mapping[str, Sequence[str]]) -> list[str]:
    """Whole texts that continue `text`, best first: command names, optimizer names, their arguments."""
    head, space, last = text.rpartition(" ")
    words = head.split()
    if not space:
        return [
            f"{name} " if COMMANDS[name].usage != name else name for name in COMMANDS if name.startswith(last)
        ]
    if words and words[0] == "optimizer":
        if len(words) == 1:
            return [f"{head} {name} " for name in sorted(optimizers) if name.startswith(last.lower())]
        used = {word.partition("=")[0] for word in words[2:]}
        arguments = [a for a in optimizers.get(words[1].lower(), ()) if a not in used and a.startswith(last)]
        return [f"{head} {argument}=" for argument in arguments]
    spec = COMMANDS.get(words[0]) if words else None
    return [example for example in spec.examples if example.startswith(text)] if spec else []


def _parse_rate(words: Sequence[str]) -> Instruction:
    usage = COMMANDS["lr"].usage
    if len(words) != 1:
        received = repr(" ".join(words)) if words else "nothing"
        raise CommandError(f"lr takes one value, received {received}; write {usage}")
    word = words[0]
    operation: Literal["", "x", "/"] = ""
    if word[0] in "xX*":
        operation, word = "x", word[1:]
    elif word[0] == "/":
        operation, word = "/", word[1:]
    value = _positive_number(word, words[0], usage)
    if not operation:
        return SetRate(value)
    factor = value if operation == "x" else 1 / value
    if not 0 < factor < math.inf:
        raise CommandError(f"lr: {words[0]!r} is no usable factor; write {usage}")
    return ScaleRate(factor)


def _positive_number(word: str, received: str, usage: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise CommandError(f"lr: {received!r} is no number; write {usage}") from None
    if not 0 < value < math.inf:
        raise CommandError(f"lr: {received!r} is not a positive finite number; write {usage}")
    return value


def _parse_optimizer(words: Sequence[str]) -> Instruction:
    usage = COMMANDS["optimizer"].usage
    if not words or "=" in words[0]:
        raise CommandError(f"optimizer: its name is missing; write {usage}")
    arguments: dict[str, Scalar] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise CommandError(f"optimizer: {word!r} is not ARGUMENT=VALUE; write {usage}")
        if name in arguments:
            raise CommandError(f"optimizer: {name} is given twice")
        arguments[name] = _scalar(value)
    return SwitchOptimizer(words[0].lower(), arguments)


def _scalar(word: str) -> Scalar:
    named: dict[str, Scalar] = {"true": True, "false": False, "none": None}
    if word.lower() in named:
        return named[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _parse_note(words: Sequence[str]) -> Instruction:
    text = " ".join(words).strip()
    if not text:
        raise CommandError(f"note: its text is missing; write {COMMANDS['note'].usage}")
    return Note(text)


def _bare(name: str, instruction: Instruction) -> Callable[[Sequence[str]], Instruction]:
    def parse_bare(words: Sequence[str]) -> Instruction:
        if words:
            raise CommandError(f"{name} takes no arguments, received {' '.join(words)!r}")
        return instruction

    return parse_bare


def _names() -> str:
    return ", ".join(COMMANDS)


COMMANDS: dict[str, CommandHelp] = {
    spec.name: spec
    for spec in (
        CommandHelp(
            "lr",
            "lr VALUE | lr xFACTOR | lr /DIVISOR",
            "Set or scale the learning rate",
            ("lr 3e-4", "lr x0.5", "lr /2"),
            _parse_rate,
        ),
        CommandHelp(
            "optimizer",
            "optimizer NAME [ARGUMENT=VALUE …]",
            "Switch to another optimizer; arguments are Keras' own",
            ("optimizer sgd learning_rate=0.01 momentum=0.9", "optimizer adamw weight_decay=0.01"),
            _parse_optimizer,
        ),
        CommandHelp(
            "pause", "pause", "Hold training before its next batch", ("pause",), _bare("pause", Pause())
        ),
        CommandHelp("resume", "resume", "Go on after a pause", ("resume",), _bare("resume", Resume())),
        CommandHelp("stop", "stop", "End this fit after the current batch", ("stop",), _bare("stop", Stop())),
        CommandHelp(
            "note", 'note "TEXT"', "Write a remark into the recording", ('note "warm-up over"',), _parse_note
        ),
    )
}
