"""The answers of a recording → what exported code does at which step, as lines that call its helpers.

Only what changed the training becomes code; what looked at it or held it becomes a comment. What code without this
project cannot do is left out and said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from client_callback.wire import commands, protocol
from client_callback.wire.protocol import Optimizer, Reply, RunDescription, Scalar
from client_callback.wire.replay import changed_training
from monitor.keras_code.schedules import WIDTH, schedule_call


class Change(NamedTuple):
    """One intervention."""

    step: int
    comment: str
    lines: tuple[str, ...] = ()
    """Statements of a method of the callback. Empty: only the comment stays."""
    helpers: tuple[str, ...] = ()
    """What they call."""


class Session(NamedTuple):
    """All that is needed of a recording."""

    run: RunDescription
    replies: tuple[Reply, ...]
    optimizers: tuple[Optimizer, ...]
    """As described one after the other, the run's own first."""
    optimizer_at: Mapping[int, Optimizer]
    """Step → the optimizer described last at it."""


def session_of(run: RunDescription, events: Iterable[protocol.AnyEvent]) -> Session:
    """What a recording's events tell."""
    replies: list[Reply] = []
    described = [run.optimizer] if run.optimizer else []
    at: dict[int, Optimizer] = {}
    for event in events:
        if isinstance(event, Reply):
            replies.append(event)
        elif isinstance(event, protocol.OptimizerChanged):
            described.append(event.optimizer)
            at[event.step] = event.optimizer
    return Session(run, tuple(replies), tuple(described), at)


class Conversion:
    """Goes through a session's answers in the order in which they were carried out."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.left_out: list[str] = []
        """What the code does not do, each with its step and the reason."""
        self._done: list[Reply] = []
        """Changes that could be undone."""
        self._undone: list[tuple[Reply, Reply]] = []
        """(change, the `undo` that took it back) of what could come again."""
        self._places: dict[int, _Place] = {}
        """Identity of an answer → the state just before it was carried out."""
        self._named: dict[str, _Place] = {}
        """Name of a snapshot → the state that was kept."""
        self._kept: set[_Place] = set()
        """States that something goes back to."""
        self.settings: dict[str, None] = {}
        """(owner, attribute) pairs, as code, of what is set beside the optimizer and its rate."""

    def changes(self) -> list[Change]:
        """What the code does, by step."""
        answers = sorted(self._session.replies, key=lambda reply: (reply.step, reply.time))
        for step, together in groupby(answers, key=lambda reply: reply.step):
            self._places.update({id(r): _Place(step, number) for number, r in enumerate(together, 1)})
        written = [(reply, change) for reply in answers if (change := self._change(reply)) is not None]
        found = [
            Change(place.step, "", (_keep(place),), ("keep",))
            for place in sorted(self._kept)
            if not place.number
        ]
        for reply, change in written:
            place = self._places[id(reply)]
            if place in self._kept:
                lines = (_keep(place), *change.lines)
                change = change._replace(lines=lines, helpers=("keep", *change.helpers))  # noqa: PLW2901
            found.append(change)
        return sorted(found, key=lambda change: change.step)

    def _change(self, reply: Reply) -> Change | None:
        if not changed_training(reply):
            return None
        try:
            code = self._of_timer(reply)
            if code is None:
                order = commands.parse(reply.text, self._session.run.actions)
                if type(order.instruction) in _UNTOLD:
                    return None
                code = self._code(reply, order)
        except (commands.CommandError, _Impossible) as reason:
            self.left_out.append(f"not repeated: step {reply.step}: {reply.text}: {reason}")
            return Change(reply.step, f"Not repeated, {reason}: {_comment(reply)}")
        return Change(reply.step, _comment(reply), code.lines, code.helpers)

    def _of_timer(self, reply: Reply) -> _Code | None:
        """What a timer took back. `None`: the answer is none of that kind."""
        base, dot, suffix = reply.id.rpartition(".")
        if not dot or suffix not in ("end", "undo"):
            return None
        change = next((done for done in reversed(self._done) if done.id in (base, f"{base}.1")), None)
        if change is None:
            raise _Impossible("the recording does not tell what it took back")
        if suffix == "undo" and "the weights stay" not in reply.reason:
            del self._done[self._done.index(change) :]
            return self._go_back(self._places[id(change)])
        if "was set to something else since" in reply.reason or self._done[-1] is not change:
            raise _Impossible("something else was set since, so that only a part was set back")
        self._did(reply)
        return self._set_back(change, reply)

    def _code(self, reply: Reply, order: commands.Order) -> _Code:
        """The lines for it; none for what is worth a comment alone."""
        kind = type(order.instruction)
        if kind in _SAID:
            return _Code((), ())
        if kind not in _WRITERS:
            raise _Impossible(_IMPOSSIBLE.get(kind, "there is no plain Keras code for it"))
        back = self._lines_back(reply, order.origin) if order.origin else _Code((), ())
        return back.then(_WRITERS[kind](self, reply, order.instruction))

    # ── One for each kind of command ────────────────────────────────────────────────────────────────

    def _set_rate(self, reply: Reply, instruction: commands.SetRate) -> _Code:
        self._did(reply)
        if instruction.over:
            code = _code(f"self.over({instruction.over}, value={instruction.value!r})", "over")
        else:
            code = _code(f"self.set_rate({instruction.value!r})", "set_rate")
        return code.then(_hold(repr(instruction.value))) if instruction.hold else code

    def _scale_rate(self, reply: Reply, instruction: commands.ScaleRate) -> _Code:
        self._did(reply)
        if instruction.over:
            code = _code(f"self.over({instruction.over}, factor={instruction.factor!r})", "over")
        else:
            code = _code(f"self.scale_rate({instruction.factor!r})", "scale_rate")
        if not instruction.hold:
            return code
        if reply.after.get("schedule"):
            raise _Impossible("a rate that a schedule decides is held by nothing here")
        now = "self.ramp[1]" if instruction.over else "number(self.model.optimizer.learning_rate)"
        return code.then(_hold(now))

    def _schedule(self, reply: Reply, instruction: commands.SetSchedule) -> _Code:
        self._did(reply)
        present, rate = reply.before.get("learning_rate"), reply.after.get("learning_rate")
        if not isinstance(present, float) or not isinstance(rate, float):
            raise _Impossible("there are several rates")
        if instruction.kind in (
            "constant",
            "reduce-on-plateau",
        ):  # what the latter does are answers of their own
            return _code(f"self.set_rate({rate!r})", "set_rate")
        owners = self._session.run.optimizer.rate_owners if self._session.run.optimizer else ()
        for owner in owners:
            note = f"leave {owner} out: Keras lets nothing be assigned to a rate that a schedule decides"
            self.left_out += [note] if note not in self.left_out else []
        cls, arguments = schedule_call(instruction.kind, instruction.arguments, present)
        needs = () if cls.startswith("keras") else (cls,)
        made = call(f"schedule = {cls}", [], arguments)
        return _Code((made, "self.use_schedule(schedule)"), ("use_schedule", *needs))

    def _set(self, reply: Reply, instruction: commands.SetHyperparameters) -> _Code:
        self._did(reply)
        code = _Code((), ())
        own: dict[str, Scalar] = {
            name: reply.after[name] for name in instruction.values if "." not in name and name in reply.after
        }
        if own:
            code = code.then(self._remade(reply, own))
        lines = [
            line for name in reply.after if "." in name for line in self._layer_value(name, reply.after[name])
        ]
        if lines:
            helpers = (
                ("layer", "set_regularizer")
                if any("set_regularizer" in line for line in lines)
                else ("layer",)
            )
            code = code.then(_Code((*lines, "self.trace_anew()"), (*helpers, "trace_anew")))
        return code

    def _layer_value(self, key: str, value: Scalar) -> list[str]:
        name, _, attribute = key.rpartition(".")
        layer = self._layer(name)
        if attribute == "trainable":
            return []
        if attribute in ("l1", "l2"):
            self.settings[f'({layer}, "kernel_regularizer")'] = None
            self.settings[f'(self.kernel({layer}), "regularizer")'] = None
            return [f'self.set_regularizer("{name}", {attribute}={value!r})']
        self.settings[f'({layer}, "{attribute}")'] = None
        return [f"{layer}.{attribute} = {value!r}"]

    def _accumulate(self, reply: Reply, instruction: commands.Accumulate) -> _Code:
        self._did(reply)
        batches = instruction.batches if instruction.batches > 1 else None
        return self._remade(reply, {"gradient_accumulation_steps": batches})

    def _remade(self, reply: Reply, changes: Mapping[str, Scalar]) -> _Code:
        arguments = self._corrected(reply, changes)
        return _code(call("self.remake_optimizer", arguments, changes), "remake_optimizer")

    def _corrected(self, reply: Reply, changes: Mapping[str, Scalar]) -> list[str]:
        """The argument that names running averages whose correction changes; none where none does."""
        described = self._described(reply)
        averages = CORRECTED.get(described.class_name if described else "", {})
        pairs = [f'("{slot}", "{beta}")' for slot, beta in averages.items() if beta in changes]
        return [f"[{', '.join(pairs)}]"] if pairs else []

    def _freeze(self, reply: Reply, instruction: commands.Freeze | commands.Unfreeze) -> _Code:
        self._did(reply)
        flags = {n.removesuffix(".trainable"): v for n, v in reply.after.items() if n.endswith(".trainable")}
        lines = []
        for name, value in flags.items():
            self.settings[f'({self._layer(name)}, "trainable")'] = None
            lines.append(f"{self._layer(name)}.trainable = {value!r}")
        return _Code((*lines, "self.remake_optimizer()"), ("layer", "remake_optimizer"))

    def _layer(self, name: str) -> str:
        if "/" in name or '"' in name:
            raise _Impossible(f"{name} is inside another layer")
        return f'self.layer("{name}")'

    def _class_weight(self, reply: Reply, instruction: commands.SetClassWeight) -> _Code:
        self._did(reply)
        told = str(reply.after.get("class_weight", "none"))
        pairs = [] if told == "none" else [word.split("=") for word in told.split()]
        weights = {int(label): float(weight) for label, weight in pairs}
        if not instruction.balanced:
            weights = dict(instruction.weights)
        self.settings['(self, "class_weight")'] = None
        return _Code(
            (f"self.class_weight = {weights or None!r}", "self.trace_anew()"), ("weigh_classes", "trace_anew")
        )

    def _loss_weight(self, reply: Reply, instruction: commands.SetLossWeight) -> _Code:
        self._did(reply)
        self.settings['(self.model._compile_loss, "_flat_losses")'] = None
        return _code(f"self.set_loss_weights({_quoted(instruction.weights)})", "set_loss_weights")

    def _trial(self, reply: Reply, instruction: commands.Trial | commands.RangeTest) -> _Code:
        return _Code((), ())  # everything was put back; what was adopted is an answer of its own

    def _switch(self, reply: Reply, instruction: commands.SwitchOptimizer) -> _Code:
        described = self._described(reply)
        if described is None:
            raise _Impossible("the recording does not describe the new optimizer")
        self._did(reply)
        arguments: dict[str, Scalar] = {}
        if "learning_rate" in instruction.arguments or described.schedule is None:
            arguments["learning_rate"] = reply.after.get("learning_rate")
        arguments.update({n: v for n, v in instruction.arguments.items() if n != "learning_rate"})
        for name, default in SURROUNDINGS.items():
            value = described.settings.get(name, default)
            if name not in arguments and value != default:
                arguments[name] = value
        cls = f"keras.optimizers.{described.class_name}"
        if described.class_name not in _OPTIMIZERS:
            cls = f'keras.saving.get_registered_object("{described.class_name}")'
        return _code(call("self.switch_optimizer", [cls], arguments), "switch_optimizer")

    def _described(self, reply: Reply) -> Optimizer | None:
        """The optimizer at work after an answer, as the recording describes it."""
        known = [step for step in self._session.optimizer_at if step <= reply.step]
        return self._session.optimizer_at[max(known)] if known else self._session.run.optimizer

    def _stop(self, reply: Reply, instruction: commands.Stop) -> _Code:
        stop = "self.model.stop_training = True"
        return _Code((stop, "self.model.stop_evaluating = True") if instruction.now else (stop,), ())

    def _snapshot(self, reply: Reply, instruction: commands.TakeSnapshot) -> _Code:
        name = reply.after.get("snapshot", instruction.name)
        self._named[str(name)] = self._places[id(reply)]
        return _Code((), ())

    def _rollback(self, reply: Reply, instruction: commands.Rollback) -> _Code:
        code = self._lines_back(reply, instruction.to)
        self._did(reply)
        return code

    def _undo(self, reply: Reply, instruction: commands.Undo) -> _Code:
        undone = next((done for done in reversed(self._done) if done.id == reply.undoes), None)
        if undone is None:
            raise _Impossible("the recording does not tell what it took back")
        self._done.remove(undone)
        if instruction.settings or "the weights stay" in reply.reason:
            return self._set_back(undone, reply)
        self._undone.append((undone, reply))
        return self._go_back(self._places[id(undone)])

    def _redo(self, reply: Reply, instruction: commands.Redo) -> _Code:
        if not self._undone:
            raise _Impossible("the recording does not tell what it brought back")
        change, undo = self._undone.pop()
        self._done.append(change)
        return self._go_back(self._places[id(undo)])

    def _did(self, reply: Reply) -> None:
        """It can be undone from now on."""
        self._done.append(reply)
        self._undone.clear()

    def _lines_back(self, reply: Reply, to: str) -> _Code:
        """To a snapshot."""
        step = reply.restored
        if to in self._named:
            return self._go_back(self._named[to])
        if step is None:
            raise _Impossible("the recording does not tell which step it went back to")
        changed_then = [done for done in self._done if done.step == step]
        return self._go_back(self._places[id(changed_then[-1])] if changed_then else _Place(step, 0))

    def _go_back(self, place: _Place) -> _Code:
        self._kept.add(place)
        return _code(f'self.go_back("{place.name}")', "go_back")

    def _set_back(self, change: Reply, reply: Reply) -> _Code:
        """What a change set is as it was before it, but for what it trained."""
        place = self._places[id(change)]
        self._kept.add(place)
        instruction = commands.parse(change.text, self._session.run.actions).instruction
        changes = instruction.values if isinstance(instruction, commands.SetHyperparameters) else {}
        arguments = [f'"{place.name}"', *self._corrected(reply, changes)]
        rate = {} if "learning_rate" in reply.after else {"rate": False}
        return _code(call("self.set_back", arguments, rate), "set_back")


class _Place(NamedTuple):
    """A state that can be gone back to."""

    step: int
    number: int
    """Of the answer before which it is, as they were carried out. 0: before all that was done at that step."""

    @property
    def name(self) -> str:
        """As the code calls it."""
        return f"step {self.step}" if not self.number else f"step {self.step}, change {self.number}"


class _Code(NamedTuple):
    lines: tuple[str, ...]
    helpers: tuple[str, ...]

    def then(self, other: _Code) -> _Code:
        """Both, one after the other."""
        return _Code(self.lines + other.lines, self.helpers + other.helpers)


class _Impossible(Exception):  # noqa: N818 (an answer rather than an error)
    """Why there is no code for a command."""


def call(function: str, positional: Sequence[str], named: Mapping[str, Scalar]) -> str:
    """A call in one line, or one argument a line where that would be too long for the body of a method."""
    arguments = [*positional, *(f"{name}={value!r}" for name, value in named.items())]
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= WIDTH - 8:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])


def _code(line: str, *helpers: str) -> _Code:
    return _Code((line,), helpers)


def _hold(value: str) -> _Code:
    return _code(f"self.hold({value})", "over")


def _quoted(weights: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {weight!r}" for name, weight in weights.items()) + "}"


def _keep(place: _Place) -> str:
    return f'self.keep("{place.name}")'


def _comment(reply: Reply) -> str:
    """What was commanded, by whom, and what became of it."""
    changed = [
        f"{name} {_short(reply.before.get(name))} -> {_short(value)}"
        for name, value in reply.after.items()
        if reply.before.get(name) != value
    ]
    told = "; ".join(part for part in (", ".join(changed), reply.reason) if part)
    return f"{reply.text} ({reply.who})" + (f": {told}" if told else "")


def _short(value: Scalar) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


SURROUNDINGS: dict[str, Scalar] = {
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}
"""What a new optimizer takes over from the old one, with Keras' defaults."""

_OPTIMIZERS = frozenset(
    (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb"),
        *("Lion", "Muon", "Nadam", "RMSprop", "SGD", "ScheduleFreeAdamW"),
    )
)
"""Those of Keras; any other is the script's own, and registered."""

_UNTOLD = frozenset(
    {commands.TakeControl, commands.ReleaseControl, commands.ListTimers, commands.CancelTimer}
)
"""What is not even a comment: it changed nothing of the training."""

_SAID = frozenset({commands.Note, commands.Pause, commands.Resume, commands.Evaluate, commands.Checkpoint})
"""What becomes a comment alone."""

_IMPOSSIBLE: dict[type[commands.Instruction], str] = {
    commands.Reinitialise: "its weights are drawn at random",
    commands.UserAction: "it is the script's own",
    commands.Extend: "give fit that many epochs",
}

CORRECTED: dict[str, dict[str, str]] = {
    "Adam": {"_momentums": "beta_1", "_velocities": "beta_2"},
    "AdamW": {"_momentums": "beta_1", "_velocities": "beta_2"},
    "Adamax": {"_m": "beta_1"},
    "Lamb": {"_momentums": "beta_1", "_velocities": "beta_2"},
    "Nadam": {"_velocities": "beta_2"},
}
"""Running averages of optimizers that begin at 0 and are divided by 1 - beta^updates for it."""

_WRITERS: dict[type[commands.Instruction], Callable[[Conversion, Reply, Any], _Code]] = {
    commands.SetRate: Conversion._set_rate,
    commands.ScaleRate: Conversion._scale_rate,
    commands.SetSchedule: Conversion._schedule,
    commands.SwitchOptimizer: Conversion._switch,
    commands.SetHyperparameters: Conversion._set,
    commands.Accumulate: Conversion._accumulate,
    commands.Freeze: Conversion._freeze,
    commands.Unfreeze: Conversion._freeze,
    commands.SetClassWeight: Conversion._class_weight,
    commands.SetLossWeight: Conversion._loss_weight,
    commands.Trial: Conversion._trial,
    commands.RangeTest: Conversion._trial,
    commands.Stop: Conversion._stop,
    commands.TakeSnapshot: Conversion._snapshot,
    commands.Rollback: Conversion._rollback,
    commands.Undo: Conversion._undo,
    commands.Redo: Conversion._redo,
}
