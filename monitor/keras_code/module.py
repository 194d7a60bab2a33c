"""One Python module out of changes and helpers: imports, helpers beside the callback, the callback."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Iterator
from itertools import groupby
from typing import IO

from client_callback.wire.protocol import RunDescription
from client_callback.wire.recording import JournalReader
from monitor.keras_code.changes import Change, Conversion, Session, session_of
from monitor.keras_code.helpers import Helper, Surroundings, helpers_of, needed
from monitor.keras_code.schedules import WIDTH


def write_callback(reader: JournalReader, file: IO[str]) -> tuple[str, ...]:
    """Writes Keras code that repeats the recording's interventions; returns what it does not repeat, and why."""
    session = session_of(reader.run, (event for _, event in reader.events()))
    conversion = Conversion(session)
    changes = conversion.changes()
    surroundings = _surroundings(session, conversion.settings)
    file.write(module(reader.run, changes, conversion.left_out, surroundings))
    return tuple(conversion.left_out)


def module(run: RunDescription, changes: list[Change], left_out: Iterable[str], like: Surroundings) -> str:
    """The module's text."""
    helpers = helpers_of(like)
    names = needed((name for change in changes for name in change.helpers), helpers)
    used = {name: helpers[name] for name in names}
    parts = [_docstring(run, left_out), _imports(used.values())]
    parts += [f"\n{helper.source}\n" for helper in used.values() if helper.beside]
    parts.append(f"\n{_callback(changes, used, run.steps_per_execution)}")
    return "\n".join(parts)


def _surroundings(session: Session, settings: Iterable[str]) -> Surroundings:
    described = [optimizer.settings for optimizer in session.optimizers]
    texts = [reply.text.split() for reply in session.replies]
    return Surroundings(
        backend=session.run.backend,
        scheduled=any(o.schedule not in (None, "ramp") for o in session.optimizers),
        scaled=any(one.get("dynamic_loss_scale") for one in described),
        accumulates=any(one.get("gradient_accumulation_steps") for one in described),
        averages=any(one.get("use_ema") for one in described),
        excludes=any(one.get("weight_decay") for one in described),
        ramps=any(words[:1] == ["lr"] and {"over", "hold"} & set(words) for words in texts),
        settings=tuple(settings),
    )


def _docstring(run: RunDescription, left_out: Iterable[str]) -> str:
    paragraphs = [
        f"What was done to the run {run.name} ({run.run_id}) while it trained, at the same steps.",
        "    model.fit(..., callbacks=[Interventions()])",
        f"Written for Keras {run.versions.get('keras', '3')} on {run.backend or 'its backend'}; needs nothing else. "
        "With the same model, data, seeds and other callbacks the training repeats. Steps count from 0, one a batch.",
        *left_out,
    ]
    wrapped = [_wrapped(_plain(text)) for text in paragraphs]
    return '"""' + "\n\n".join(wrapped) + '\n"""\n'


def _plain(text: str) -> str:
    """As it can stand in a docstring or a comment, whatever somebody has typed."""
    return " ".join(text.split()) if not text.startswith(" ") else text


def _wrapped(text: str) -> str:
    if text.startswith(" "):
        return text
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _imports(helpers: Iterable[Helper]) -> str:
    found = {line for helper in helpers for line in helper.imports}
    standard = sorted(line for line in found if line in _STANDARD)
    others = sorted({*found, "import keras"} - set(standard), key=lambda line: line.split()[1])
    return "\n".join([*standard, *([""] if standard else []), *others, ""])


_STANDARD = frozenset({"import random", "import math"})


def _callback(changes: list[Change], used: dict[str, Helper], steps_per_execution: int) -> str:
    steps = {step: list(group) for step, group in groupby(changes, key=lambda change: change.step)}
    begun = {step: group for step, group in steps.items() if any(change.lines for change in group)}
    methods = [
        "\n".join(_beginning(begun, used)),
        _stepping(steps_per_execution, used),
        *_end(used),
        *("\n".join(_method(step, group)) for step, group in steps.items()),
        *(helper.source for helper in used.values() if not helper.beside),
    ]
    return "\n\n".join([_CLASS, *methods]) + "\n"


_CLASS = '''class Interventions(keras.callbacks.Callback):
    """Makes each change between the same two steps as it was made."""'''

_ONE_STEP = "batch + 1"
_MORE_STEPS = 'min(batch + {0}, self.params["steps"] or batch + {0})'


def _beginning(steps: Iterable[int], used: Container[str]) -> Iterator[str]:
    yield "    def on_train_begin(self, logs=None):"
    yield "        self.completed = 0  # steps of the epochs before"
    yield "        self.batches = 0  # of this epoch"
    yield from (f"        {line}" for name, line in _STATE if name in used)
    waiting = [f"            ({step}, self.at_step_{step})," for step in steps]
    yield from (
        ["        self.waiting = [", *waiting, "        ]"] if waiting else ["        self.waiting = []"]
    )
    yield from (f"        {line}" for name, line in _BEGINNING if name in used)


_STATE = (
    ("keep", "self.kept = {}"),
    ("over", "self.ramp = self.held = None"),
    ("remake_optimizer", "self.gathered = {}"),
    ("weigh_classes", "self.class_weight = None"),
)
_BEGINNING = (("steer", "self.steer(self.inner_optimizer())"), ("weigh_classes", "self.weigh_classes()"))
_END = (("steer", "self.give_rate_back()"), ("weigh_classes", "del self.model.compute_loss"))


def _end(used: Container[str]) -> list[str]:
    lines = [f"        {line}" for name, line in _END if name in used]
    return ["\n".join(["    def on_train_end(self, logs=None):", *lines])] if lines else []


def _stepping(steps_per_execution: int, used: Container[str]) -> str:
    """Counted as batches begin: to be told of their ends as well would slow JAX and torch down."""
    more = _ONE_STEP if steps_per_execution == 1 else _MORE_STEPS.format(steps_per_execution)
    lines = [
        "    def on_epoch_begin(self, epoch, logs=None):",
        "        self.completed += self.batches",
        "        self.batches = 0",
        "",
        "    def on_train_batch_begin(self, batch, logs=None):",
        "        while self.waiting and self.waiting[0][0] <= self.completed + batch:",
        "            self.waiting.pop(0)[1]()",
        *(("        self.follow_rate()",) if "over" in used else ()),
        f"        self.batches = {more}",
    ]
    return "\n".join(lines)


def _method(step: int, changes: list[Change]) -> Iterator[str]:
    if any(change.lines for change in changes):
        yield f"    def at_step_{step}(self):"
        indent = " " * 8
    else:
        yield f"    # At step {step}:"
        indent = " " * 4
    for change in changes:
        if change.comment:
            prefix = f"{indent}# "
            yield textwrap.fill(
                _plain(change.comment),
                WIDTH,
                initial_indent=prefix,
                subsequent_indent=prefix,
                break_on_hyphens=False,
            )
        for line in change.lines:
            yield textwrap.indent(line, indent)
