"""What `MonitorCallback` adds to training, beside what other ways of following it add, in one run.

Bare `fit`; with `MonitorCallback`, everything on and a monitor attached; TensorBoard and Weights & Biases (offline)
writing every batch; a CSV row per batch. Each trains in a process of its own and they take turns (`turns`). "bare
again" is a second bare `fit`: what it seems to add is chance.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import numpy as np

from tests.bench.sizes import SIZES
from tests.bench.turns import Ratio, Turns, middle, others_share, pooled, ratio, take_turns, trainees

ROUNDS = 60
BARE, MONITOR, TENSORBOARD = "bare", "monitor", "tensorboard"
NEEDS = {
    BARE: (),
    "bare again": (),
    MONITOR: (),
    TENSORBOARD: ("tensorboard", "tensorflow"),
    "wandb": ("wandb", "tensorflow"),
    "csv": (),
}
"""Variant → packages that must be there; both tools write through TensorFlow."""
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
"""Keras backend → package that must be there."""


def run(rounds: int = ROUNDS) -> None:
    """Prints one table for each backend that is installed and each size of step."""
    for backend in installed_backends():
        variants = []
        for variant, packages in NEEDS.items():
            missing = [package for package in packages if not _installed(package)]
            if missing:
                print(f"\n{variant} on {backend}: left out, {' and '.join(missing)} not installed")
            else:
                variants.append(variant)
        with trainees(variants, tuple(SIZES), backend) as started:
            for size in SIZES:
                _tell(backend, size, take_turns(started, rounds))
                for trainee in started:
                    trainee.next_size()


def installed_backends() -> Iterator[str]:
    """The backend that `KERAS_BACKEND` names, or else every one; says which are left out."""
    named = os.environ.get("KERAS_BACKEND")
    for backend, package in BACKENDS.items():
        if named in (None, backend):
            if _installed(package):
                yield backend
            else:
                print(f"\n{backend}: left out, not installed")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _tell(backend: str, size: str, turns: Turns) -> None:
    steps = SIZES[size].steps
    bare = middle(turns, BARE, "wall_s") / steps * 1e3
    share = others_share(turns, BARE)
    print(
        f"\n{size} on {backend}: {bare:.2f} ms a step without a callback; other programs on {share:.2f} CPUs"
    )
    print(
        f"  {'added to a step':16}{'time':>9}{'95 % range':>20}{'µs':>7}   {'CPU time':>9}{'95 % range':>20}{'µs':>7}"
    )
    for variant in list(turns)[1:]:
        print(
            f"  {variant:16}{_added(turns, variant, 'wall_s', steps)}   {_added(turns, variant, 'cpu_s', steps)}"
        )
    _tell_monitor(turns)


def _added(turns: Turns, variant: str, key: str, steps: int) -> str:
    found = ratio(turns, variant, BARE, key)
    microseconds = (found.value - 1) * middle(turns, BARE, key) / steps * 1e6
    between = f"{_percent(found.low)} … {_percent(found.high)}"
    return f"{_percent(found.value):>9}{between:>20}{microseconds:>7.0f}"


def _tell_monitor(turns: Turns) -> None:
    hooks = (pooled(turns, MONITOR, "hook_begin_s") + pooled(turns, MONITOR, "hook_end_s")) * 1e6
    median, p99 = np.quantile(hooks, [0.5, 0.99])
    told = f"median {median:.1f} µs, 99 of 100 within {p99:.1f} µs, mean {hooks.mean():.1f} µs"
    print(f"  monitor, hooks of a batch: {told}")
    if TENSORBOARD in turns:
        ours, theirs = (ratio(turns, variant, BARE, "wall_s") for variant in (MONITOR, TENSORBOARD))
        print(f"  monitor, of what TensorBoard adds: {_share(ours, theirs)}")
    wall = middle(turns, MONITOR, "wall_s")
    for what, key in (("sender thread", "sender_cpu_s"), ("ZeroMQ's threads", "zmq_cpu_s")):
        print(f"  monitor, {what}: {middle(turns, MONITOR, key) / wall * 1e3:.1f} ms of CPU time a second")
    grown = middle(turns, MONITOR, "rss_bytes") - middle(turns, BARE, "rss_bytes")
    print(f"  monitor, memory beyond bare: {grown / 2**20:.0f} MiB")


def _share(ours: Ratio, theirs: Ratio) -> str:
    if theirs.low <= 1:
        return "nothing to compare with, it adds less than chance"
    middle_, high = ((part - 1) / (theirs.value - 1) for part in (ours.value, ours.high))
    return f"{middle_:.3f} (at most {high:.3f})"


def _percent(value: float) -> str:
    return f"{(value - 1) * 100:+.1f} %"
