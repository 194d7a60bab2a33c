"""Memory of a training process over a million steps, bare and with `MonitorCallback`, a monitor attached.

Steps are made short (a tiny model, many steps a call), so that a million take a minute or two. Not part of
`make bench`: `python -m tests.bench memory`.

    python -m tests.bench.memory VARIANT      prints the memory, in MiB, after each `EVERY` steps
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import tempfile

STEPS = 1_000_000
EVERY = 100_000
_EPOCH = 10_000
_CALL = 100
COMPARED = ("bare", "monitor")


def run() -> None:
    """Prints one column for each."""
    taken = {variant: _measure(variant) for variant in COMPARED}
    print(f"\n  {'steps':>10}{'bare':>12}{'monitor':>12}{'beyond bare':>14}   MiB in use")
    for number, (bare, monitor) in enumerate(zip(*taken.values(), strict=True)):
        print(f"  {(number + 1) * EVERY:>10,}{bare:>12.1f}{monitor:>12.1f}{monitor - bare:>14.1f}")


def _measure(variant: str) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.memory", variant]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    """Trains."""
    import keras
    import numpy as np

    from tests.bench.processes import home_in, rss_bytes
    from tests.bench.variants import VARIANTS, refuse_warnings, watchers

    class Tells(keras.callbacks.Callback):
        """Last of the callbacks."""

        def __init__(self, watched: contextlib.ExitStack | None) -> None:
            super().__init__()
            self._watched = watched

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0 and self._watched:
                self._watched.enter_context(watchers())
            check()
            if (epoch + 1) * _EPOCH % EVERY == 0:
                gc.collect()
                print(rss_bytes() / 2**20, flush=True)

    variant = sys.argv[1]
    check = refuse_warnings()
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile("adam", "mse", steps_per_execution=_CALL)
    x = np.random.default_rng(0).normal(size=(_EPOCH * 4, 8)).astype("float32")
    with tempfile.TemporaryDirectory(prefix="bench") as folder, contextlib.ExitStack() as stack:
        stack.enter_context(home_in(folder))
        callbacks = [*VARIANTS[variant](folder), Tells(stack if variant == "monitor" else None)]
        model.fit(x, x[:, :1], batch_size=4, epochs=STEPS // _EPOCH, verbose=0, callbacks=callbacks)


if __name__ == "__main__":
    main()
