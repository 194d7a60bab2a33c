"""Trains one ailment, or its repaired twin, with a monitor attached: `python -m demos.ailments dead-units`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then print the held-out score."""
    parser = argparse.ArgumentParser(
        prog="ailments", description="Train something that fails for a known cause."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the ailment; --list tells them")
    parser.add_argument("--list", action="store_true", help="name all ailments and their bases")
    parser.add_argument("--repaired", action="store_true", help="train the repaired twin")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and shuffling (default 0)")
    parser.add_argument("--base", metavar="B", help="which base; by default the ailment's first")
    parser.add_argument("--quiet", action="store_true", help="print only the held-out score at the end")
    options = parser.parse_args(argv)

    from .catalogue import AILMENTS, find

    if options.list or options.name is None:
        for ailment in AILMENTS:
            print(f"{ailment.name:24} {ailment.base:16} {ailment.mistake}")
        return
    try:
        ailment = find(options.name, options.base)
    except KeyError as error:
        parser.error(f"{error.args[0]}; --list tells what there is")

    from client_callback import MonitorCallback

    training = ailment.prepare(options.seed, options.repaired)
    name = f"{ailment.name}-repaired" if options.repaired else ailment.name
    if not options.quiet:
        print("repaired:" if options.repaired else "the mistake:", ailment.mistake)
    training.fit([MonitorCallback(name=name)], verbose=0 if options.quiet else 2)
    print(f"held-out {training.score.name}: {training.held_out_score():.3f}")


if __name__ == "__main__":
    main()
