"""What runs inside a training process: one callback for `fit`, one object for loops of one's own.

Importing this package loads no Keras: the public names load what they need when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client_callback.callback import MonitorCallback
    from client_callback.run import Run

__all__ = ["MonitorCallback", "Run"]

_HOMES = {"MonitorCallback": "client_callback.callback", "Run": "client_callback.run"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415 (loaded only when asked for)

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
