"""A monitor without a screen that ends with the training that started it: `python -m tests.bench.watcher RUN`."""

from __future__ import annotations

from tests.bench.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    import tests.watching  # noqa: F401 (watches while it is imported)
