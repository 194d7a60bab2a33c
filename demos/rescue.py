"""Rescues the heart demo while it trains, as a person at a second terminal would: `python -m demos.rescue`.

For each seed the demo is started twice, as it is. One training is left alone. The other gets one command through
`unstuck send` once its accuracy has not moved for a while: back to the starting weights, and gentle steps from there.
Neither process is restarted. At the end both report their accuracy on the held-out recordings.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence

COMMAND = "optimizer sgd learning_rate=1e-4 from start"
"""What rescues it: dead units pass no gradient, so no rate helps from where it is stuck."""

_RESULT = re.compile(r"held-out accuracy: ([\d.]+)")


def train(seed: int, epochs: int, rescue_after: int | None) -> float:
    """Held-out accuracy of one training of the demo, steered after `rescue_after` epochs unless that is None."""
    command = [
        sys.executable,
        "-m",
        "demos.heart",
        f"--seed={seed}",
        f"--epochs={epochs}",
        "--name",
        f"heart-{seed}",
    ]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        try:
            for line in training.stdout:
                said.append(line)
                if rescue_after is not None and line.startswith(f"Epoch {rescue_after + 1}/"):
                    send(f"heart-{seed}", COMMAND)
        except BaseException:
            training.terminate()
            raise
    found = _RESULT.search("".join(said))
    if found is None:
        raise RuntimeError(f"seed {seed}: the training ended with {training.returncode} and no result")
    return float(found[1])


def send(run: str, text: str) -> None:
    """Sends one command and prints its answer; raises when it was not applied."""
    done = subprocess.run(
        [sys.executable, "-m", "monitor", "send", run, text], capture_output=True, text=True, check=False
    )
    print(f"  {text}: {(done.stdout or done.stderr).strip()}", flush=True)
    if done.returncode:
        raise RuntimeError(f"{text!r} was not applied")


def main(argv: Sequence[str] | None = None) -> None:
    """Train each seed twice and print a table."""
    parser = argparse.ArgumentParser(prog="rescue", description="Rescue the heart demo while it trains.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=30, help="of each training (default 30)")
    parser.add_argument("--after", type=int, default=5, help="epochs before help comes (default 5)")
    options = parser.parse_args(argv)
    rows = []
    for seed in options.seeds:
        began = time.monotonic()
        print(f"seed {seed}", flush=True)
        alone = train(seed, options.epochs, None)
        rescued = train(seed, options.epochs, options.after)
        rows.append((seed, alone, rescued))
        print(f"  alone {alone:.3f}, rescued {rescued:.3f} ({time.monotonic() - began:.0f} s)", flush=True)
    print("seed  left alone  rescued")
    for seed, alone, rescued in rows:
        print(f"{seed:4}  {alone:10.3f}  {rescued:7.3f}")


if __name__ == "__main__":
    main()
