"""What runs inside the terminal: sources of events, the one state they make, its diagnosis, its panels.

Importing this package loads no training framework and no user interface: the public name loads what it needs
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitor.sending import send

__all__ = ["send"]

_HOMES = {"send": "monitor.sending"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415 (loaded only when asked for)

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
