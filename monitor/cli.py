"""The command `unstuck`: what can be typed, and what a mistake is answered with.

Only the words are here, so that `--help` costs next to nothing; what they do is in `monitor.actions`, loaded
when it is needed. The words, columns and exit codes are stable: scripts depend on them.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from monitor.demo_names import ALL

if TYPE_CHECKING:
    _Actions = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG = """
exit codes: 0 done (send: applied; applied without effect, which the answer says; or planned); 1 refused, failed,
or the file cannot be read; 2 not understood; 3 no such run; 4 no answer in time

RUN is a run's id, a unique prefix of it, its name (the newest), an endpoint, or its recording's path.
UNSTUCK_HOME=FOLDER moves every file that unstuck writes under one folder.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What has been done stays done, though the terminal lacks a sign to tell it with.
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(argv)
    from monitor import actions  # noqa: PLC0415  (after the words are understood: --help must be quick)

    try:
        code = actions.ACTIONS[options.action](options)
        sys.stdout.flush()
    except actions.Mistake as mistake:
        print(f"unstuck: {mistake}", file=sys.stderr)
        return mistake.code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough. Python must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unstuck",
        description="Watch a Keras training run in the terminal and steer it while it trains.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unstuck {_Version()}")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for add in (_add_watching, _add_steering, _add_diagnosis, _add_files):
        add(actions)
    return parser


def _add_watching(actions: _Actions) -> None:
    demo = actions.add_parser("demo", help="train a small real network here and watch it")
    demo.add_argument(
        "name",
        nargs="?",
        default="heart",
        choices=tuple(ALL),
        metavar="NAME",
        help="heart (gets stuck; the default), digits (healthy) or an ailment; --list tells all",
    )
    demo.add_argument("--list", action="store_true", help="tell what there is")
    demo.add_argument("--repaired", action="store_true", help="an ailment's repaired twin")
    _add_drawing(demo)

    watch = actions.add_parser("watch", help="watch a live run and steer it")
    watch.add_argument("run", nargs="?", metavar="RUN", help="which one; by default the newest")
    _add_drawing(watch)

    replay = actions.add_parser("replay", help="play a recording")
    replay.add_argument("path", metavar="PATH", help="the recording (*.unstuck)")
    replay.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="times as fast (default 1)")
    replay.add_argument("--from", type=_step, dest="start", metavar="STEP", help="begin at this step")
    _add_drawing(replay)

    runs = actions.add_parser("runs", help="list the live runs of this machine")
    runs.add_argument("--json", action="store_true", help="as a JSON array")


def _add_steering(actions: _Actions) -> None:
    send = actions.add_parser(
        "send",
        help="send one command to a live run and print its answer",
        description="Sends one command, such as `lr x0.5`, `optimizer sgd learning_rate=0.01`, `rollback start`, "
        "`pause` or `note TEXT`, and waits for the answer. Quoted as one word a command may hold anything.",
    )
    send.add_argument("run", metavar="RUN")
    send.add_argument("command", nargs="+", metavar="COMMAND", help="the command's words")
    send.add_argument(
        "--json",
        action="store_true",
        help="print one object: status, step, before, after, reason, id, plan, update_before, update_after, timer, "
        "command",
    )
    send.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds to wait (default 10); `trial` and `evaluate` are answered when done, which may be later",
    )
    send.add_argument(
        "--take-control", action="store_true", help="first take control from the monitor that has it"
    )
    for flag, what in (("--dry-run", "change nothing, print what would happen"), ("--adopt", "of a trial")):
        send.add_argument(flag, action="append_const", const=flag, dest="flags", help=what)

    repeat = actions.add_parser(
        "replay-commands",
        help="do to a live run what was done to a recorded one, at the same steps",
        description="Sends every applied command of a recording to a live run, to be carried out before the same "
        "step, and prints each answer. What cannot be repeated is named on standard error. To have it done from the "
        "first step on: MonitorCallback(replay=PATH).",
    )
    repeat.add_argument("path", metavar="RECORDING", help="the recording (*.unstuck)")
    repeat.add_argument("run", metavar="RUN")
    repeat.add_argument("--json", action="store_true", help="print one object per command, as send does")
    repeat.add_argument(
        "--wait", type=_seconds, default=10.0, metavar="S", help="seconds to wait for each (default 10)"
    )
    repeat.add_argument(
        "--take-control", action="store_true", help="first take control from the monitor that has it"
    )


def _add_diagnosis(actions: _Actions) -> None:
    diagnose = actions.add_parser(
        "diagnose",
        help="say why a training is stuck, from its recording or while it runs",
        description="Prints the verdict, what was found with its evidence, the best explanation first, and what to "
        "do about it. It exits with 0 whatever the verdict.",
    )
    diagnose.add_argument("run", metavar="PATH|RUN", help="a recording (*.unstuck), or a live run")
    diagnose.add_argument(
        "--json",
        action="store_true",
        help="print one object: verdict (healthy, suspect, stuck), findings, silent, step, run",
    )
    diagnose.add_argument(
        "--at",
        type=_step,
        metavar="STEP",
        help="as it stood when so many steps had been completed (default: all there are)",
    )

    doctor = actions.add_parser(
        "doctor",
        help="run a training script as it is, and say why it is stuck",
        description="Runs an unmodified Keras script with a monitor in every fit, and prints what `diagnose` says of "
        "the worst of them. Options of doctor come before SCRIPT, those after it are the script's.",
    )
    own = [
        doctor.add_argument(
            "--steps", type=_count, metavar="N", help="end it after so many calls of the train step"
        ),
        doctor.add_argument(
            "--seconds", type=_seconds, metavar="S", help="end it after so many seconds of training"
        ),
        doctor.add_argument(
            "--json",
            action="store_true",
            help="print one object: as diagnose for the worst fit, and `fits` with one for each; what the script "
            "prints goes to standard error",
        ),
        doctor.add_argument(
            "--python", metavar="PATH", help="interpreter to run it with (default: this one)"
        ),
    ]
    doctor.set_defaults(own_options=frozenset(name for option in own for name in option.option_strings))
    doctor.add_argument("script", metavar="SCRIPT")
    doctor.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="for the script")


def _add_files(actions: _Actions) -> None:
    export = actions.add_parser(
        "export",
        help="write a recording as CSV, JSON lines, or Keras code that repeats its commands",
        description="`--to keras` writes a Python module with a callback that repeats, without unstuck, what was "
        "done to the run; what cannot be repeated is named on standard error. In tables steps are counted from 0; "
        "values that are no number are nan, inf or -inf in CSV and null in JSON lines; empty (null) is what was not "
        "recorded.",
    )
    export.add_argument("path", metavar="PATH", help="the recording (*.unstuck)")
    export.add_argument("--to", required=True, choices=("csv", "jsonl", "keras"))
    tables = ("steps", "epochs", "layers", "statistics", "resources", "events")
    export.add_argument("--what", default="steps", choices=tables)
    export.add_argument("-o", "--output", metavar="FILE", help="by default standard output")

    info = actions.add_parser("info", help="say what a recording holds")
    info.add_argument("path", metavar="PATH", help="the recording (*.unstuck)")
    info.add_argument("--json", action="store_true", help="as a JSON object")


class _Version:
    """Looked up only when it is printed; the package's metadata costs 20 ms to read."""

    def __str__(self) -> str:
        from importlib.metadata import version  # noqa: PLC0415

        return version("unstuck")


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-tui", action="store_true", help="print lines instead of drawing")
    parser.add_argument("--ascii", action="store_true", help="draw with plain ASCII characters")


def _speed(text: str) -> float:
    return _positive(text.removesuffix("x"), "a positive number such as 10")


def _seconds(text: str) -> float:
    return _positive(text, "a positive number of seconds")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no step; steps are counted from 0")
    return int(text)
