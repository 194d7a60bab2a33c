"""What was done to one run is done to another at the same steps: by the callback itself, and sent ahead."""

from __future__ import annotations

import io
import json

import keras
import numpy as np
import pytest

from client_callback import MonitorCallback
from client_callback.link import Link
from client_callback.wire import protocol, runs
from client_callback.wire.journal import JournalWriter
from client_callback.wire.protocol import Reply
from client_callback.wire.recording import JournalReader
from client_callback.wire.replay import changed_training, replay_of
from monitor.cli import main
from monitor.export import write_table
from tests.steered_fit import BATCH, X, Y, assert_equal_weights, dense_model
from tests.toy_runs import description, start_training, started

pytestmark = pytest.mark.every_backend


class Sends(keras.callbacks.Callback):
    """Enqueues commands at given steps, as the link does when they arrive."""

    def __init__(self, monitor, script):
        super().__init__()
        self.monitor, self.script, self.step = monitor, dict(script), 0

    def on_train_batch_begin(self, batch, logs=None):
        for number, text in enumerate(self.script.pop(self.step, ())):
            command = protocol.Command(id=f"{self.step}-{number}", text=text, who="ada@box terminal")
            self.monitor._run._link._take_command(command)
        self.step += 1


def fitted(callback, *others, epochs=2):
    model = dense_model()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    callbacks = [*others, callback]
    model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def replies_in(path):
    with JournalReader(path) as reader:
        return [event for _, event in reader.events() if isinstance(event, Reply)]


SCRIPT = {
    0: ["note begins"],
    3: ["lr x0.5", "pause --dry-run", "lr -1"],
    4: ["lr x3 for 2 steps"],
    6: ["optimizer sgd learning_rate=0.05 momentum=0.9"],
    9: ["lr 0.02", "snapshot good"],
    12: ["rollback good", "lr x2"],
}


def test_a_run_told_to_repeat_a_recording_ends_with_the_same_weights():
    monitor = MonitorCallback(statistics_every=0)
    steered = fitted(monitor, Sends(monitor, SCRIPT))
    first = replies_in(monitor.recording)
    again = MonitorCallback(statistics_every=0, replay=monitor.recording)
    repeated = fitted(again)
    assert_equal_weights(repeated, steered)
    second = replies_in(again.recording)
    told = [
        [(r.step, r.text, r.status, r.after) for r in one if changed_training(r)] for one in (first, second)
    ]
    assert told[0] == told[1] and len(told[0]) == 9
    with JournalReader(monitor.recording) as reader:
        who = f"{runs.user_name()}@{runs.host_name()} replay of {reader.run.name}"
    assert {reply.who for reply in first} == {"ada@box terminal", "timer 1 of ada@box terminal"}
    assert {reply.who for reply in second} == {who, f"timer 1 of {who}"}
    events = io.StringIO()
    with JournalReader(again.recording) as reader:
        write_table(reader, "events", "jsonl", events)
    kept = [json.loads(line) for line in events.getvalue().splitlines()]
    assert [event["details"]["who"] for event in kept if event["kind"] == "reply"] == [r.who for r in second]
    plain = fitted(MonitorCallback(statistics_every=0))
    assert any(np.any(a != b) for a, b in zip(plain.get_weights(), steered.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"replay": 3}, "replay: received 3; possible are a recording's path and None"),
        ({"replay": "absent.unstuck"}, "replay: absent.unstuck cannot be read: No such file or directory"),
        (
            {"replay": "absent.unstuck", "control": False},
            "replay: a run with control=False refuses all commands",
        ),
    ],
)
def test_what_cannot_be_repeated_is_refused_before_anything_begins(arguments, what):
    with pytest.raises(ValueError, match=what):
        MonitorCallback(**arguments)


# ── Which commands those are ──────────────────────────────────────────────────────────────────────


def answer(step, text, status="applied", **fields):
    fields = {"id": f"{step} {text}", **fields}
    return Reply(text=text, step=step, time=float(step), status=status, **fields)


def timers(*numbers, reason=""):
    kept = tuple(
        protocol.Timer(number=abs(n), id="", text="", state="waiting" if n > 0 else "active") for n in numbers
    )
    return protocol.TimersChanged(timers=kept, reason=reason)


@pytest.mark.parametrize(
    ("events", "expected", "left_out"),
    [
        ([answer(5, "lr x0.5")], [(5, "lr x0.5", "lr x0.5 at step 5")], []),
        ([answer(5, "lr 9", "refused"), answer(5, "lr 9", "failed"), answer(5, "stop --dry-run", "planned")], [], []),
        ([answer(5, "timers"), answer(6, "control take"), answer(7, "control release")], [], []),
        ([answer(5, "lr 9", "ineffective")], [], []),
        (
            [answer(5, "lr 9", "ineffective", before={"learning_rate": 1}, after={"learning_rate": 9})],
            [(5, "lr 9", "lr 9 at step 5")],
            [],
        ),
        ([answer(5, "pause"), answer(5, "resume")], [], ["step 5: pause: it changes", "step 5: resume: it changes"]),
        ([answer(5, "note hi")], [(5, "note hi", None)], []),
        ([answer(5, "extend 3 epochs")], [(5, "extend 3 epochs", "extend 3 epochs")], []),
        ([answer(5, "render big")], [(5, "render big", "render big at step 5")], []),
        ([answer(5, "faster")], [], ["step 5: faster: unknown command"]),
        ([answer(5, "checkpoint /models/a.keras")], [(5, "checkpoint", "checkpoint at step 5")], []),
        ([answer(5, "trial keep 'adam 1e-4' for 9 steps")], [(5, "trial keep 'adam 1e-4' for 9 steps", None)], []),
        # A timer's own answers are not repeated, its command is.
        (
            [answer(5, "lr x0.5 for 9 steps", timer=1, id="a"), answer(14, "lr x0.5 ends", timer=1, id="a.end")],
            [(5, "lr x0.5 for 9 steps", "lr x0.5 for 9 steps at step 5")],
            [],
        ),
        (
            [answer(5, "lr x0.5 at step 9", "planned", timer=1, id="a"), answer(9, "lr x0.5", timer=1, id="a.1")],
            [(5, "lr x0.5 at step 9", "lr x0.5 at step 9")],
            [],
        ),
        (
            [answer(5, "stop when plateau", "planned", timer=1, id="a"), answer(31, "stop", timer=1, id="a.1")],
            [(5, "stop when plateau", "stop at step 31")],
            [],
        ),
        ([answer(5, "stop when plateau", "planned", timer=1)], [(5, "stop when plateau", None)], []),
        (
            [
                answer(5, "trial keep 'adam 1e-4' for 9 steps --adopt", id="a"),
                answer(5, "optimizer adam learning_rate=0.0001", id="a.1", who="trial of ada"),
                answer(7, "schedule reduce-on-plateau", id="b"),
                answer(9, "lr 0.001", id="b-1"),
            ],
            [
                (5, "trial keep 'adam 1e-4' for 9 steps --adopt", None),
                (5, None, "optimizer adam learning_rate=0.0001 at step 5"),
                (7, "schedule reduce-on-plateau", "schedule reduce-on-plateau at step 7"),
            ],
            [],
        ),
        # What was cancelled while it waited is not sent ahead; what was in effect stays.
        (
            [
                answer(5, "stop at step 90", "planned", timer=1),
                timers(1),
                timers(reason="cancelled: timer 1 (stop)"),
                answer(7, "cancel 1"),
            ],
            [(5, "stop at step 90", None), (7, "cancel 1", None)],
            [],
        ),
        (
            [
                answer(5, "lr x0.5 for 9 steps", timer=1),
                timers(-1),
                timers(reason="cancelled: timer 1 (lr)"),
                answer(7, "cancel all"),
            ],
            [(5, "lr x0.5 for 9 steps", "lr x0.5 at step 5"), (7, "cancel all", None)],
            [],
        ),
        # A state that only this run kept is kept by the other one too.
        (
            [answer(50, "rollback last", restored=40)],
            [(40, "snapshot", "snapshot at step 40"), (50, "rollback 40", "rollback 40 at step 50")],
            [],
        ),
        (
            [
                answer(40, "lr x0.5"),
                answer(50, "rollback 45", restored=40),
                answer(60, "rollback 40", restored=40),
            ],
            [
                (40, "snapshot", "snapshot at step 40"),
                (40, "lr x0.5", "lr x0.5 at step 40"),
                (50, "rollback 40", "rollback 40 at step 50"),
                (60, "rollback 40", "rollback 40 at step 60"),
            ],
            [],
        ),
        (
            [
                answer(4, "snapshot good"),
                answer(50, "rollback good"),
                answer(60, "rollback start"),
                answer(70, "undo"),
            ],
            [
                (4, "snapshot good", "snapshot good at step 4"),
                (50, "rollback good", "rollback good at step 50"),
                (60, "rollback start", "rollback start at step 60"),
                (70, "undo", "undo at step 70"),
            ],
            [],
        ),
        (
            [
                answer(5, "lr 9 from start", restored=0),
                answer(50, "optimizer sgd from last for 9 steps", restored=40),
            ],
            [
                (5, "lr 9 from start", "lr 9 from start at step 5"),
                (40, "snapshot", "snapshot at step 40"),
                (50, "optimizer sgd for 9 steps from 40", "optimizer sgd for 9 steps from 40 at step 50"),
            ],
            [],
        ),
        ([answer(50, "rollback last")], [], ["step 50: rollback last: the recording does not tell which step"]),
        # In the order in which they were carried out, though answers that wait for a step come later.
        ([answer(5, "note b"), answer(3, "lr 9")], [(3, "lr 9", "lr 9 at step 3"), (5, "note b", None)], []),
    ],
)  # fmt: skip
def test_each_command_is_repeated_as_it_can_be(events, expected, left_out):
    replay = replay_of(description(actions=("render",)), events)
    assert [command[:3] for command in replay.commands] == expected
    assert len(replay.left_out) == len(left_out)
    assert all(found.startswith(part) for found, part in zip(replay.left_out, left_out, strict=True))


# ── Sent ahead ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recording(tmp_path):
    run = description("first")
    path = tmp_path / "first.unstuck"
    writer = JournalWriter(path, run)
    texts = {3: "lr x0.5", 5: "pause", 6: "note hi", 9: "optimizer sgd"}
    writer.append([started(run), *(answer(step, text) for step, text in texts.items())])
    writer.close()
    return path


def test_a_recordings_commands_are_sent_to_a_live_run_each_for_its_step(recording, capsys):
    process, path = start_training(10_000, 0.02)  # halves its rate, refuses another optimizer
    try:
        assert main(["replay-commands", str(recording), "toy"]) == 1
        captured = capsys.readouterr()
        said = captured.out.splitlines()
        assert main(["replay-commands", str(recording), "toy", "--json"]) == 1
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    finally:
        process.kill()
        process.communicate()
    assert [line.partition(" at step ")[0] for line in said] == ["lr x0.5", "optimizer sgd"]
    assert "lr x0.5 at step 3: applied at step" in said[0] and "optimizer sgd at step 9: refused" in said[1]
    assert captured.err.splitlines() == [
        "unstuck: not repeated: step 5: pause: it changes nothing of the training, and would hold it",
        "unstuck: not repeated: step 6: note hi: it cannot be told to wait for a step",
    ]
    assert [(answer["command"], answer["status"]) for answer in answers] == [
        ("lr x0.5 at step 3", "applied"),
        ("optimizer sgd at step 9", "refused"),
    ]
    assert {reply.who for reply in replies_in(path)} == {
        f"{runs.user_name()}@{runs.host_name()} replay of first"
    }


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["absent.unstuck", "toy"], 3, "no live run 'toy'"),
        (["absent.unstuck", None], 1, "absent.unstuck cannot be read"),
    ],
)
def test_what_is_not_there_is_said(words, code, what, capsys):
    link = Link(description())
    words = [word or link._run.run_id for word in words]
    if code == 3:
        link.close()
    assert main(["replay-commands", *words]) == code
    assert what in capsys.readouterr().err
    link.close()
