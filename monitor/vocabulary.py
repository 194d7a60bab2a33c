"""What a run's commands can be made of: names that the session knows, endings, and the sign of a dry run.

The command line completes with these. What words mean is decided in `client_callback.wire.commands`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from client_callback.wire.commands import (
    COMMANDS,
    DRY_RUN,
    SUFFIXES,
    CommandError,
    Vocabulary,
    complete,
    parse,
)
from monitor.session import Session

_NOT_SET = frozenset({"name", "learning_rate"})
"""Settings of an optimizer that `set` does not take: `lr` and `schedule` are there for the rate."""


def vocabulary(session: Session) -> Vocabulary:
    """What can be named now."""
    run, optimizer = session.run, session.optimizer
    timers = session.timers.timers if session.timers else ()
    kept = session.snapshots.snapshots if session.snapshots else ()
    series = session.metric_series()
    return Vocabulary(
        optimizers=run.optimizers if run else {},
        layers=tuple(layer.name for layer in run.layers) if run else (),
        hyperparameters=tuple(n for n in optimizer.settings if n not in _NOT_SET) if optimizer else (),
        outputs=tuple(name.removesuffix("_loss") for name in series if name.endswith("_loss")),
        snapshots=tuple(dict.fromkeys(one.name or str(one.step) for one in kept if one.name != "start")),
        timers=tuple(timer.number for timer in timers),
        series=tuple(series),
        actions=session.actions,
    )


def continuations(text: str, names: Vocabulary) -> list[str]:
    """Whole texts that continue `text`, best first: what `complete` knows, then when and for how long it is to be."""
    found = complete(text, names)
    return found + [option for option in _endings(text, names) if option not in found]


def without_dry_run(text: str) -> str:
    """The command that a dry run is of; any other text as it is."""
    return re.sub(rf"\s+{DRY_RUN}(?=\s|$)", "", text, count=1)


def without_endings(text: str) -> str:
    """A timer's command without when, for how long and on which condition, which is told beside it."""
    words = text.split()
    return " ".join(words[: next((i for i, word in enumerate(words) if i and word in SUFFIXES), len(words))])


def possible_endings(text: str, actions: Sequence[str]) -> list[str]:
    """How the suffixes are written that may still follow `text`, itself a whole command. Empty: it is none."""
    words = text.split()
    spec = COMMANDS.get(words[0].lower()) if words else None
    if not _understood(text, actions) or (spec is not None and not spec.suffixes):
        return []
    return [
        SUFFIXES[word] for word, example in _EXAMPLES.items() if _understood(f"{text} {example}", actions)
    ]


_EXAMPLES = {
    "at": "at step 1",
    "when": "when plateau",
    "for": "for 1 step",
    "unless": "unless loss rises 1% in 1 step",
    "from": "from start",
}


def _understood(text: str, actions: Sequence[str]) -> bool:
    try:
        parse(text, actions)
    except CommandError:
        return False
    return True


def _endings(text: str, names: Vocabulary) -> list[str]:
    head, space, last = text.rpartition(" ")
    if not space:
        return []
    words = head.split()
    if words and words[-1] == "unless" and possible_endings(" ".join(words[:-1]), names.actions):
        options = [f"{name} rises " for name in names.series]
    elif words and words[-1] == "from" and possible_endings(" ".join(words[:-1]), names.actions):
        options = ["start", "last", *names.snapshots]
    elif len(words) > 1 and words[-2] == "unless":
        options = ["rises ", "falls "]
    else:
        options = [_typed(ending) for ending in possible_endings(head, names.actions)]
    return [f"{head} {option}" for option in options if option.startswith(last)]


def _typed(ending: str) -> str:
    """As much of a suffix as is the same whatever one means: `for N steps` → `for `."""
    return "when plateau" if ending.startswith("when") else f"{ending.split(maxsplit=1)[0]} "
