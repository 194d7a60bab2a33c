"""`make bench`: every figure beside a reference of the same run, because machines differ and are noisy.

python -m tests.bench [PART…]      the parts named, or all but those that are asked for by name alone
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from tests.bench import charts, diagnosis, latency, memory, overhead, recordings, startup

Rows = list[tuple[str, float, float]]
"""(label, seconds, seconds of the reference) of each measurement."""


class Part(NamedTuple):
    """What is measured together."""

    title: str
    run: Callable[[], None]
    """Prints its figures."""
    usual: bool = True
    """Whether it runs without being named."""


def main() -> None:
    """Prints the tables of the parts that the command line names."""
    named = sys.argv[1:]
    unknown = sorted(set(named) - set(PARTS))
    if unknown:
        raise SystemExit(f"Unknown part {unknown[0]!r}. There are: {', '.join(PARTS)}.")
    for name, part in PARTS.items():
        if name in named or (part.usual and not named):
            print(f"\n{part.title}", flush=True)
            part.run()


def _table(measure: Callable[[], Rows]) -> Callable[[], None]:
    def run() -> None:
        print(f"  {'':64}{'measured':>12}{'reference':>12}{'ratio':>9}")
        for label, seconds, reference in measure():
            print(f"  {label:64}{_time(seconds):>12}{_time(reference):>12}{seconds / reference:9.2f}")

    return run


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _profile() -> None:
    """In a process for each backend: Keras knows but one."""
    for backend in overhead.installed_backends():
        command = [sys.executable, "-m", "tests.bench.profile"]
        subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": backend})


PARTS = {
    "charts": Part(
        "one redraw at 120x40, against numpy's min and max of the same values", _table(charts.run)
    ),
    "recordings": Part("recordings", _table(recordings.run)),
    "diagnosis": Part("one look of all rules", _table(diagnosis.run)),
    "startup": Part("start", _table(startup.run)),
    "latency": Part("from `send` to applied", latency.run),
    "overhead": Part("what following a training adds to it", overhead.run),
    "profile": Part("where the callback's time goes", _profile, usual=False),
    "memory": Part("memory over a million steps", memory.run, usual=False),
}


if __name__ == "__main__":
    main()
