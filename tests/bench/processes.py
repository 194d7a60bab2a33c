"""What the system knows of processes: who started whom, CPU time, memory. Zeros where there is no `/proc`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def descendants(pid: int) -> list[int]:
    """Processes started by `pid`, and by those."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def signal_all(pid: int, number: signal.Signals) -> None:
    """Sends a signal to `pid` and to everything it started."""
    for target in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)


def die_with_parent() -> None:
    """This process, on Linux: so that none stays behind, held still for good, when the benchmark is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def home_in(folder: str) -> Iterator[None]:
    """Runs and recordings go there meanwhile."""
    before = os.environ.get("UNSTUCK_HOME")
    os.environ["UNSTUCK_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["UNSTUCK_HOME"]
        else:
            os.environ["UNSTUCK_HOME"] = before


def rss_bytes() -> int:
    """Memory this process has in use now; without a `/proc`, the most it ever had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def thread_cpu_s(name: str) -> float:
    """Seconds on a CPU so far of this process's Python threads of that name."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    idents = [t.ident for t in threading.enumerate() if t.name == name and t.ident is not None]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in idents)


def tasks_cpu_s(pid: int, prefix: str = "") -> float:
    """Seconds on a CPU so far of a process's threads whose system names begin with `prefix`."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError, IndexError):
            if (task / "comm").read_text().startswith(prefix):
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def machine_cpu_s() -> float:
    """Seconds on a CPU so far of everything on this machine, and of other machines on its processors (steal)."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
