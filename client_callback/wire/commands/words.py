"""Words of a command → values, with errors that say what was received and what is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

from client_callback.wire.commands.instructions import CommandError
from client_callback.wire.protocol import Scalar

MOST_STEPS = 1 << 53
"""Step numbers travel as whole numbers below this."""


def number(word: str, usage: str, *, of: str, received: str = "") -> float:
    """A positive finite number. `of`: the command, for the error."""
    received = received or word
    try:
        value = float(word)
    except ValueError:
        raise CommandError(f"{of}: {received!r} is no number; write {usage}") from None
    if not 0 < value < math.inf:
        raise CommandError(f"{of}: {received!r} is not a positive finite number; write {usage}")
    return value


def count(word: str, usage: str, *, of: str, least: int = 1) -> int:
    """A whole number from `least` on."""
    if not (word.isascii() and word.isdecimal()) or not least <= int(word) < MOST_STEPS:
        raise CommandError(f"{of}: {word!r} is not a whole number from {least} on; write {usage}")
    return int(word)


def steps(words: Sequence[str], usage: str, *, of: str) -> int:
    """`500 steps` → 500."""
    if len(words) != 2 or words[1] not in ("step", "steps"):
        received = " ".join(words) or "nothing"
        raise CommandError(f"{of}: received {received!r} where N steps was expected; write {usage}")
    return count(words[0], usage, of=of)


def scalar(word: str) -> Scalar:
    """`true`, `none`, a number, or the word itself."""
    named: dict[str, Scalar] = {"true": True, "false": False, "none": None}
    if word.lower() in named:
        return named[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def assignments(words: Sequence[str], usage: str, *, of: str) -> dict[str, str]:
    """`NAME=VALUE` words, each name once."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise CommandError(f"{of}: {word!r} is not NAME=VALUE; write {usage}")
        if name in found:
            raise CommandError(f"{of}: {name} is given twice")
        found[name] = value
    return found


def arguments(words: Sequence[str], usage: str, *, of: str) -> dict[str, Scalar]:
    """`ARGUMENT=VALUE` words with Python's names."""
    found = assignments(words, usage, of=of)
    for name in found:
        if not name.isidentifier():
            raise CommandError(f"{of}: {name!r} is no argument's name; write {usage}")
    return {name: scalar(value) for name, value in found.items()}


def some(words: Sequence[str], usage: str, *, of: str, what: str) -> tuple[str, ...]:
    """All the words, at least one."""
    if not words:
        raise CommandError(f"{of}: {what} is missing; write {usage}")
    return tuple(words)


def at_most_one(words: Sequence[str], usage: str, *, of: str) -> str:
    """The word, or an empty one."""
    if len(words) > 1:
        raise CommandError(f"{of} takes one word, received {' '.join(words)!r}; write {usage}")
    return words[0] if words else ""
