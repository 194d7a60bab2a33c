"""Of several monitors one steers at a time: who, since when, how another takes over, and what is recorded of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_callback import link as link_module
from client_callback.control import Control
from client_callback.link import Link
from client_callback.wire import protocol, runs, sockets
from client_callback.wire.protocol import Command, ControlChanged, Present, Reply
from client_callback.wire.recording import JournalReader
from monitor.cli import main
from monitor.sources import LiveSource
from monitor.sources import live as live_module
from tests.toy_runs import collect, description, start_training, started, wait_until

ADA, BOB = "ada@box terminal", "bob@box terminal"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Arbiter:
    """A `Control`, with who asks by one letter: `a`, `b` are monitors, `s` and `t` scripts."""

    def __init__(self, **run):
        self.clock = Clock()
        self.control = Control(description(**run), clock=self.clock)
        self.events = []
        self.asked = 0

    def ask(self, letter, text):
        self.asked += 1
        client = f"client-{letter}" if letter in "ab" else ""
        command = Command(id=f"c{self.asked}", text=text, who=f"{letter}@box", client=client)
        passes, events = self.control.decide(command, step=self.asked)
        self.events += events
        replies = [event for event in events if isinstance(event, Reply)]
        assert len(replies) == (0 if passes else 1)
        for event in events:
            assert protocol.decode_event(protocol.encode(event)) == event
            assert event.step == self.asked and event.time > 0
        if replies:
            assert (replies[0].id, replies[0].text, replies[0].who) == (command.id, text, command.who)
        return replies[0] if replies else "passes"

    def wait(self, seconds, present=""):
        """Lets time pass, in the steps in which the link looks, with a sign of life of `present` every 3 s."""
        for tick in range(round(seconds * 4)):
            self.clock.now += 0.25
            if present and tick % 12 == 0:
                self.control.hear(Present(client=f"client-{present}", who=present))
            if changed := self.control.look(step=0):
                self.events.append(changed)

    @property
    def changes(self):
        return [(event.who, event.reason) for event in self.events if isinstance(event, ControlChanged)]


def test_the_first_monitor_that_steers_has_control_and_others_are_told_who_and_how_to_take_over():
    arbiter = Arbiter()
    assert arbiter.ask("a", "lr x0.5") == "passes"
    assert arbiter.changes == [("a@box", "the first to steer")]
    assert arbiter.events[0].client == "client-a"
    for letter in "bs":
        reply = arbiter.ask(letter, "optimizer sgd")
        assert reply.status == "refused"
        assert reply.reason.startswith("a@box has control since step 1 (20")
        assert "`control take` to take over (from a script: unstuck send --take-control RUN" in reply.reason
    assert arbiter.ask("a", "stop") == "passes"
    assert len(arbiter.changes) == 1


@pytest.mark.parametrize(
    "text", ['note "hello"', "timers", "lr x0.5 --dry-run", "stop --dry-run", "faster", "lr -1"]
)
def test_what_changes_nothing_is_always_allowed_and_gives_no_control(text):
    arbiter = Arbiter()
    assert arbiter.ask("b", text) == "passes"
    assert arbiter.changes == []
    arbiter.ask("a", "pause")
    assert arbiter.ask("b", text) == "passes"
    assert arbiter.ask("s", text) == "passes"


def test_a_scripts_single_command_takes_no_control():
    arbiter = Arbiter()
    assert arbiter.ask("s", "lr x0.5") == "passes"
    assert arbiter.ask("a", "lr x0.5") == "passes"
    assert arbiter.changes == [("a@box", "the first to steer")]


def test_a_scripts_own_commands_are_commands_as_others():
    arbiter = Arbiter(actions=("render",))
    assert arbiter.ask("a", "render big") == "passes"
    assert arbiter.ask("b", "render").status == "refused"


def test_control_is_taken_and_released_by_command():
    arbiter = Arbiter()
    arbiter.ask("a", "lr x0.5")
    taken = arbiter.ask("b", "control take")
    assert (taken.status, taken.before, taken.after) == (
        "applied",
        {"control": "a@box"},
        {"control": "b@box"},
    )
    assert arbiter.ask("a", "lr x0.5").status == "refused"
    assert arbiter.ask("b", "lr x0.5") == "passes"
    assert "has control since step 2" in arbiter.ask("b", "control take").reason
    assert arbiter.ask("a", "control release").status == "refused"
    plan = arbiter.ask("a", "control take --dry-run")
    assert plan.status == "planned" and plan.plan[0].text.startswith(
        "a@box would steer; now b@box has control"
    )
    released = arbiter.ask("b", "control release")
    assert (released.status, released.before, released.after) == (
        "applied",
        {"control": "b@box"},
        {"control": None},
    )
    assert "nobody has control" in arbiter.ask("b", "control release").reason
    assert arbiter.ask("s", "control take").after == {"control": "s@box"}
    assert arbiter.ask("s", "lr x0.5") == "passes"
    assert arbiter.ask("t", "lr x0.5").status == "refused"
    assert arbiter.changes == [
        ("a@box", "the first to steer"),
        ("b@box", "taken from a@box"),
        ("", "released by b@box"),
        ("s@box", "taken"),
    ]


def test_who_is_silent_for_15_seconds_loses_control_and_who_gives_signs_of_life_does_not():
    arbiter = Arbiter()
    arbiter.ask("a", "lr x0.5")
    arbiter.wait(60, present="a")
    assert len(arbiter.changes) == 1
    arbiter.wait(12, present="b")
    assert len(arbiter.changes) == 1
    arbiter.wait(16, present="b")
    assert arbiter.changes[1:] == [("", "no sign of life from a@box for 15 s")]
    assert arbiter.ask("s", "lr x0.5") == "passes"
    arbiter.ask("s", "control take")
    arbiter.wait(14)
    arbiter.ask("s", "lr x0.5")  # a command is a sign of life
    arbiter.wait(14)
    assert arbiter.changes[-1][0] == "s@box"
    arbiter.wait(2)
    assert arbiter.changes[-1] == ("", "no sign of life from s@box for 15 s")


def test_a_training_that_was_suspended_takes_control_from_nobody():
    arbiter = Arbiter()
    arbiter.ask("a", "lr x0.5")
    arbiter.clock.now += 3_600
    arbiter.wait(14)
    assert len(arbiter.changes) == 1


def test_of_a_run_that_is_read_only_nobody_has_control():
    arbiter = Arbiter(control=False)
    assert arbiter.ask("a", "lr x0.5") == "passes"  # the training refuses it
    assert arbiter.ask("b", "note hi") == "passes"
    for text in ("control take", "control release"):
        reply = arbiter.ask("a", text)
        assert (reply.status, reply.reason) == (
            "refused",
            "this run is read-only (control=False); only note is possible",
        )
    assert arbiter.events[0].status == "refused" and arbiter.changes == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abst"),
            st.sampled_from(
                ["lr x0.5", "control take", "control release", "note hi", "stop --dry-run", "wait"]
            ),
        ),
        max_size=30,
    )
)
def test_at_no_time_two_can_steer(asked):
    """Whoever's command passed while somebody had control is the one that had it, as the events tell it."""
    arbiter = Arbiter()
    for letter, text in asked:
        if text == "wait":
            arbiter.wait(8)
            continue
        outcome = arbiter.ask(letter, text)
        holder = arbiter.changes[-1][0] if arbiter.changes else ""
        if text == "lr x0.5":
            assert (outcome == "passes") == (holder in ("", f"{letter}@box"))
            assert holder or letter in "st"


# ── Over the sockets ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def closing():
    with contextlib.ExitStack() as stack:
        yield lambda thing: stack.enter_context(contextlib.closing(thing))


@pytest.fixture
def link(closing):
    run = description(actions=("render",))
    link = closing(Link(run))
    link.send(started(run))
    return link


def recorded(link, kind):
    with JournalReader(Path(link.recording)) as reader:
        return [event for _, event in reader.events() if isinstance(event, kind)]


def reply_in(source, id_):
    def answered(events):
        return [event for event in events if isinstance(event, Reply) and event.id == id_]

    return answered(collect(source, answered))[0]


def test_a_refused_command_never_reaches_the_training_and_all_is_recorded_and_streamed(link, closing):
    ada = closing(LiveSource(runs.list_runs()[0], ADA))
    bob = closing(LiveSource(runs.list_runs()[0], BOB))
    wait_until(lambda: bob.connection == "")  # now it knows the script's own commands
    ada.send("lr x0.5")
    assert link.wait_for_command(10)
    (command,) = link.take_commands()
    assert (command.client, command.who) == (ada.client, ADA)
    refused = reply_in(bob, bob.send("render"))
    assert refused.status == "refused" and refused.reason.startswith(f"{ADA} has control since")
    taken = bob.send("control take")
    assert reply_in(ada, taken).after == {"control": BOB}  # the other monitor sees it as well
    bob.send("render now")
    assert link.wait_for_command(10)
    assert [command.text for command in link.take_commands()] == ["render now"]
    bob.close()
    wait_until(lambda: len(recorded(link, ControlChanged)) == 3)
    assert [(event.who, event.client) for event in recorded(link, ControlChanged)] == [
        (ADA, ada.client),
        (BOB, bob.client),
        ("", ""),
    ]
    assert [(reply.text, reply.who, reply.status) for reply in recorded(link, Reply)] == [
        ("render", BOB, "refused"),
        ("control take", BOB, "applied"),
        ("control release", BOB, "applied"),
    ]


def test_a_monitor_that_steers_says_so_and_one_that_is_killed_loses_control(closing, monkeypatch):
    monkeypatch.setattr(link_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(live_module, "_PRESENT_S", 0.2)
    run = description()
    link = closing(Link(run))
    link.send(started(run))
    ada = closing(LiveSource(runs.list_runs()[0], ADA))
    ada.send("pause")
    wait_until(lambda: recorded(link, ControlChanged))
    time.sleep(1.5)
    assert len(recorded(link, ControlChanged)) == 1
    monkeypatch.setattr(live_module, "_PRESENT_S", 60.0)  # as if it were suspended
    collect(ada, lambda events: any(isinstance(e, ControlChanged) and not e.who for e in events))
    assert recorded(link, ControlChanged)[1].reason == f"no sign of life from {ADA} for 1 s"
    ada.close()  # it has learned of it, and releases nothing
    assert recorded(link, Reply) == []


def test_a_command_without_a_name_is_somebodys(link):
    sockets.ask_each({"": (link.endpoint, "", Command(id="x", text="lr x0.5"))}, 0.3)
    assert [command.who for command in link.take_commands()] == ["somebody"]


# ── unstuck send ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def training():
    """A process that answers commands: halves its rate, refuses another optimizer."""
    process, path = start_training(10_000, 0.02)
    yield path
    process.kill()
    process.communicate()


def test_a_script_takes_control_only_when_told_to(training, capsys, closing):
    ada = closing(LiveSource(runs.list_runs()[0], ADA))
    assert reply_in(ada, ada.send("lr x0.5")).status == "applied"
    assert main(["send", "toy", "lr", "x0.5"]) == 1
    assert f"{ADA} has control since" in capsys.readouterr().out
    assert main(["send", "--take-control", "toy", "lr", "x0.5"]) == 0
    assert "applied" in capsys.readouterr().out
    assert main(["send", "toy", "lr", "x0.5"]) == 0
    assert reply_in(ada, ada.send("lr x0.5")).status == "refused"
    with JournalReader(training) as reader:
        told = [event for _, event in reader.events() if isinstance(event, Reply | ControlChanged)]
    script = runs.user_name() + "@" + runs.host_name() + " send"
    assert [(type(event).__name__, event.who) for event in told] == [
        ("ControlChanged", ADA),
        ("Reply", ADA),
        ("Reply", script),
        ("ControlChanged", script),
        ("Reply", script),
        ("Reply", script),
        ("Reply", script),
        ("Reply", ADA),
    ]
