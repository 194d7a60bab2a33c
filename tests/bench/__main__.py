"""`make bench`: every figure beside a reference of the same run, because machines differ and are noisy."""

from __future__ import annotations

from tests.bench import charts, overhead, recordings, startup

PARTS = {
    "one redraw at 120x40, against numpy's min and max of the same values": charts.run,
    "recordings": recordings.run,
    "start": startup.run,
    "training with the callback, against training without it": overhead.run,
}


def main() -> None:
    """Prints one table."""
    for title, measure in PARTS.items():
        print(f"\n{title}")
        print(f"  {'':64}{'measured':>12}{'reference':>12}{'ratio':>9}")
        for label, seconds, reference in measure():
            print(f"  {label:64}{_time(seconds):>12}{_time(reference):>12}{seconds / reference:9.2f}")


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


if __name__ == "__main__":
    main()
