"""What each word of the command line does: finds the run or the file, and hands over to who shows it.

Called by `monitor.cli` alone. The app is loaded only when something is to be drawn. How a run is drawn, what
a command means, and what a file looks like inside are known elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec

from client_callback.wire import commands, runs
from client_callback.wire.folders import RECORDING_SUFFIX
from client_callback.wire.protocol import AnyEvent, Reply
from client_callback.wire.recording import JournalReader, RecordingError
from monitor import demo, doctor, export, keras_code, plain, recorded_session, replication, report, sending
from monitor.demo_names import listing
from monitor.diagnosis.engine import examine
from monitor.mistake import Mistake
from monitor.sources import LiveSource, RecordedSource

__all__ = ["ACTIONS", "Mistake"]

_THE_END = sys.maxsize
"""As a step to begin at: show all there is."""

_CATCH_UP_S = 20.0
"""So long may it take to hear all of a live run that records nothing."""

Action = Callable[[argparse.Namespace], int]


def run_demo(options: argparse.Namespace) -> int:
    """Starts a demo's training as a process of its own and watches it."""
    if options.list:
        _say(listing())
        return 0
    training = demo.start(options.name, repaired=options.repaired)
    try:
        run = demo.wait_for_run(training)
    except KeyboardInterrupt:
        demo.stop(training)
        raise Mistake("the training was stopped before it began", 130) from None
    if _draws(options):
        _draw(LiveSource(run), options)
        _say(demo.how_to_go_on(training, run))
        return 0
    stopped = f"the demo's training was stopped too; recording: {run.recording or 'none'}"
    try:
        with demo.terminated_as_interrupt():
            _print(LiveSource(run))
        demo.wait_for_exit(training)
    except KeyboardInterrupt:
        demo.stop(training)
        _say(stopped)
        return 130
    except BrokenPipeError:
        demo.stop(training)  # nobody would see it go on
        sys.stderr.write(f"unstuck: {stopped}\n")
        raise
    _say(f"recording: {run.recording}" if run.recording else "not recorded")
    return 0


def run_watch(options: argparse.Namespace) -> int:
    """Watches a live run, or shows the whole recording of one that is over."""
    live = runs.list_runs()
    if options.run is None:
        run = _choose(live, options)
    else:
        try:
            run = runs.choose_run(options.run, live)
        except runs.RunNotFound as error:
            if not Path(options.run).is_file():
                raise Mistake(str(error), 3) from None
            return _show(_recorded(options.run, 1.0, _THE_END), options)
    return _show(LiveSource(run), options)


def run_replay(options: argparse.Namespace) -> int:
    """Plays a recording."""
    return _show(_recorded(options.path, options.speed, options.start), options)


def run_runs(options: argparse.Namespace) -> int:
    """Lists the live runs."""
    live = runs.list_runs()
    if options.json:
        _say(msgspec.json.encode(live).decode())
        return 0
    if not live:
        _say("no run is live on this machine")
        return 0
    rows = [("ID", "NAME", "PID", "USER", "SINCE", "RECORDING")]
    for run in live:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started_at))
        rows.append((run.run_id, run.name, str(run.pid), run.user, since, run.recording or "none"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def run_send(options: argparse.Namespace) -> int:
    """Sends one command; 1 when it was refused or failed, 0 otherwise."""
    text = " ".join([commands.join_words(options.command), *(options.flags or ())])
    try:
        reply = sending.send(options.run, text, wait_s=options.wait, take_control=options.take_control)
    except tuple(_SEND_CODES) as error:
        if options.json:
            _say_answer(text, status="failed", reason=str(error))
        raise Mistake(str(error), _SEND_CODES[type(error)]) from None
    if options.json:
        _say_answer(text, **_fields(reply))
    elif reply.plan:
        for line in reply.plan:
            _say(f"{line.topic}: {line.text}")
    else:
        _say(plain.describe_reply(reply))
    return _send_code(reply)


def _send_code(reply: Reply) -> int:
    return 1 if reply.status in ("refused", "failed") else 0


def _fields(reply: Reply) -> dict[str, object]:
    return {name: getattr(reply, name) for name in _ANSWER}


_SEND_CODES: dict[type[Exception], int] = {
    sending.CommandError: 2,
    sending.RunNotFound: 3,
    sending.NoAnswer: 4,
}

_ANSWER: dict[str, object] = {
    "status": "",
    "step": None,
    "before": {},
    "after": {},
    "reason": "",
    "id": None,
    "plan": [],
    "update_before": None,
    "update_after": None,
    "timer": None,
}


def _say_answer(command: str, **fields: object) -> None:
    """One JSON object with the same names whether or not the run has answered."""
    _say(msgspec.json.encode({**_ANSWER, **fields, "command": command}).decode())


def run_replay_commands(options: argparse.Namespace) -> int:
    """Sends a recording's commands to a live run; 1 when one was refused or failed."""
    code = 0
    try:
        run = runs.find_run(options.run)
        left_out, answers = replication.repeat(
            Path(options.path), run, wait_s=options.wait, take_control=options.take_control
        )
        for sentence in left_out:
            sys.stderr.write(f"unstuck: not repeated: {sentence}\n")
        for step, command, reply, reason in answers:
            if reply is None:
                sys.stderr.write(f"unstuck: not repeated: step {step}: {command}: {reason}\n")
                continue
            if options.json:
                _say_answer(command, **_fields(reply))
            else:
                _say(f"{command}: {plain.describe_reply(reply)}")
            code = max(code, _send_code(reply))
    except RecordingError as error:
        raise Mistake(str(error), 1) from None
    except tuple(_SEND_CODES) as error:
        raise Mistake(str(error), _SEND_CODES[type(error)]) from None
    return code


def run_export(options: argparse.Namespace) -> int:
    """Writes one table of a recording, or its commands as Keras code."""
    output = Path(options.output) if options.output else None
    with _reader(options.path) as reader:
        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # As a file: what was recorded, whatever the terminal.
                sys.stdout.reconfigure(encoding="utf-8")
            left_out = _export(reader, options, sys.stdout)
        elif output.exists() and output.samefile(options.path):
            raise Mistake(f"{output} is the recording itself; choose another file", 2)
        else:
            try:
                with output.open("w", encoding="utf-8", newline="") as file:
                    left_out = _export(reader, options, file)
            except OSError as error:
                raise Mistake(f"{output} cannot be written: {error.strerror or error}", 1) from None
        for sentence in (*left_out, *reader.missing):
            sys.stderr.write(f"unstuck: {sentence}\n")
    return 0


def _export(reader: JournalReader, options: argparse.Namespace, file: TextIO) -> tuple[str, ...]:
    """What could not be written, in sentences."""
    if options.to == "keras":
        return keras_code.write_callback(reader, file)
    export.write_table(reader, options.what, options.to, file)
    return ()


def run_diagnose(options: argparse.Namespace) -> int:
    """Says why a training is stuck."""
    told = _told_by(options.run)
    for sentence in told.missing:
        sys.stderr.write(f"unstuck: {sentence}\n")
    session = recorded_session.session_of(told.events)
    if options.at is not None:
        if options.at > session.step:
            raise Mistake(f"--at {options.at}: {options.run} has {session.step} steps so far", 2)
        session = recorded_session.session_of(told.events, options.at)
    diagnosis = examine(session)
    if options.json:
        _say(msgspec.json.encode(report.as_object(diagnosis, session)).decode())
    else:
        _say(report.report(diagnosis, session, live=told.live))
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Runs a script with a monitor in every fit, and says why its training is stuck."""
    own = [one for one in options.arguments if one.split("=")[0] in options.own_options]
    if own:
        sys.stderr.write(
            f"unstuck: {own[0]} is given to {options.script}, as is all that follows SCRIPT; for doctor itself write "
            f"unstuck doctor {own[0]} {options.script}\n"
        )
    outcome = doctor.examine_script(
        options.script,
        options.arguments,
        steps=options.steps,
        seconds=options.seconds,
        python=options.python,
        output=sys.stderr if options.json else None,
    )
    worst, *others = outcome.fits
    told = report.as_object(worst.diagnosis, worst.session)
    if options.json:
        fits = [
            {
                **report.as_object(fit.diagnosis, fit.session),
                "fit": fit.number,
                "recording": str(fit.recording),
            }
            for fit in outcome.fits
        ]
        _say(msgspec.json.encode({**told, "fits": fits}).decode())
    else:
        _say(f"\nfit {worst.number} of {len(outcome.fits)}; recording: {worst.recording}")
        _say(report.report(worst.diagnosis, worst.session, live=False))
        for fit in others:
            _say(f"fit {fit.number}: {report.in_brief(fit.diagnosis)}; recording: {fit.recording}")
    if outcome.code:
        sys.stderr.write(f"unstuck: {options.script} ended with exit code {outcome.code}\n")
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Says what a recording holds."""
    with _reader(options.path) as reader:
        summary = export.summary(reader)
    if options.json:
        _say(msgspec.json.encode(summary).decode())
        return 0
    summary["started_at"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary["started_at"]))
    for name, value in summary.items():
        if value is not None and value != "":
            _say(f"{name:12}{_in_a_line(value)}")
    return 0


ACTIONS: dict[str, Action] = {
    "demo": run_demo,
    "watch": run_watch,
    "replay": run_replay,
    "replay-commands": run_replay_commands,
    "runs": run_runs,
    "send": run_send,
    "export": run_export,
    "diagnose": run_diagnose,
    "doctor": run_doctor,
    "info": run_info,
}


class _Told(NamedTuple):
    """All that a run or a recording tells."""

    events: list[AnyEvent]
    missing: list[str]
    live: bool
    """Whether commands can be sent to it."""


def _told_by(wanted: str) -> _Told:
    """By a recording's path, or anything that a live run answers to."""
    live = runs.list_runs()
    try:
        run = runs.choose_run(wanted, live)
    except runs.RunNotFound as error:
        if (
            not Path(wanted).exists()
            and Path(wanted).name == wanted
            and not wanted.endswith(RECORDING_SUFFIX)
        ):
            raise Mistake(str(error), 3) from None
        try:
            return _Told(*recorded_session.read(Path(wanted)), live=False)
        except RecordingError as no_recording:
            raise Mistake(str(no_recording), 1) from None
    if run.recording:
        with contextlib.suppress(RecordingError):  # removed, or the disk is full: it still answers
            return _Told(*recorded_session.read(Path(run.recording)), live=True)
    return _heard_from(run)


def _heard_from(run: runs.RunFile) -> _Told:
    """What a live run has kept in memory."""
    events: list[AnyEvent] = []
    with contextlib.closing(LiveSource(run)) as source:
        deadline = time.monotonic() + _CATCH_UP_S
        while True:
            over = source.caught_up or source.finished.is_set()
            events += source.poll().events
            if over and events:
                return _Told(events, [], live=not source.finished.is_set())
            if over or time.monotonic() > deadline:
                break
            time.sleep(0.02)
    if not events:
        raise Mistake(f"{run.run_id} ({run.name}) did not answer within {_CATCH_UP_S:g} s", 4)
    return _Told(events, [f"only a part of the run was heard within {_CATCH_UP_S:g} s"], live=True)


def _choose(live: list[runs.RunFile], options: argparse.Namespace) -> runs.RunFile:
    if not live:
        raise Mistake(
            "no run is live on this machine; start one with `unstuck demo`, or give model.fit "
            "callbacks=[MonitorCallback()] (from client_callback)",
            3,
        )
    if len(live) == 1:
        return live[0]
    if not _asks(options):
        sys.stderr.write(f"unstuck: {len(live)} runs are live; watching the newest, {live[0].run_id}\n")
        return live[0]
    for number, run in enumerate(live, 1):
        since = time.strftime("%H:%M:%S", time.localtime(run.started_at))
        _say(f"{number:3}  {run.run_id}  {run.name}  since {since}")
    while True:
        try:
            answer = input(f"Which run? [1-{len(live)}, Enter for the newest] ").strip()
        except EOFError:
            raise KeyboardInterrupt from None
        if not answer:
            return live[0]
        if answer.isdecimal() and 1 <= int(answer) <= len(live):
            return live[int(answer) - 1]
        try:
            return runs.choose_run(answer, live)
        except runs.RunNotFound as error:
            _say(str(error))


def _show(source: LiveSource | RecordedSource, options: argparse.Namespace) -> int:
    if _draws(options):
        _draw(source, options)
    else:
        _print(source)
    return 0


def _draw(source: LiveSource | RecordedSource, options: argparse.Namespace) -> None:
    from monitor.app import UnstuckApp  # noqa: PLC0415  (Textual, only when something is drawn)

    with contextlib.closing(source):
        UnstuckApp(source, ascii_only=options.ascii or not _knows_unicode()).run()


def _print(source: LiveSource | RecordedSource) -> None:
    with contextlib.closing(source):
        plain.follow(source, sys.stdout)


def _asks(options: argparse.Namespace) -> bool:
    """Whether a person sits at the other end."""
    return bool(not options.no_tui and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty())


def _draws(options: argparse.Namespace) -> bool:
    """Whether there is a terminal that can place signs, and that keys come from."""
    return _asks(options) and os.environ.get("TERM", "") not in ("", "dumb")


def _knows_unicode() -> bool:
    """Whether the terminal has braille: by its encoding, and not the console of Linux, whose fonts are too small."""
    return sys.stdout.encoding.upper().startswith("UTF") and os.environ.get("TERM") != "linux"


def _recorded(path: str, speed: float, start: int | None) -> RecordedSource:
    try:
        return RecordedSource(Path(path), speed, start)
    except RecordingError as error:
        raise Mistake(str(error), 1) from None


@contextlib.contextmanager
def _reader(path: str) -> Iterator[JournalReader]:
    try:
        with JournalReader(Path(path)) as reader:
            yield reader
    except RecordingError as error:
        raise Mistake(str(error), 1) from None


def _in_a_line(value: object) -> str:
    if isinstance(value, dict):
        known = {name: item for name, item in value.items() if item not in (None, "", {}, [], ())}
        parts = {n: f"({_in_a_line(v)})" if isinstance(v, dict) else _in_a_line(v) for n, v in known.items()}
        return " ".join(f"{name}={part}" for name, part in parts.items())
    if isinstance(value, list | tuple):
        return "; ".join(_in_a_line(item) for item in value) or "none"
    return str(value)


def _say(line: str) -> None:
    plain.say(sys.stdout, line)
