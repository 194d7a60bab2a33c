"""How one thread wakes another that sleeps on sockets: a byte down a pair of sockets of its own.

The sender's thread sleeps on it together with what monitors send, a monitor's thread together with what the training
sends. Ringing costs microseconds, never blocks and never raises, so the training may do it.
"""

from __future__ import annotations

import contextlib
import select
import socket


class Bell:
    """Rung by any thread; heard and hushed by one. A bell that was rung stays so until it is hushed."""

    def __init__(self) -> None:
        self._heard, self._rope = socket.socketpair()
        self._heard.setblocking(False)
        self._rope.setblocking(False)

    def fileno(self) -> int:
        """What becomes readable when it is rung."""
        return self._heard.fileno()

    def ring(self) -> None:
        """Wakes whoever sleeps on it; once closed, nobody."""
        with contextlib.suppress(OSError):  # full: it has been rung often enough
            self._rope.send(b"\0")

    def hush(self) -> None:
        """Makes it unrung."""
        with contextlib.suppress(OSError):
            while len(self._heard.recv(4096)) == 4096:
                pass

    def wait(self, timeout_s: float) -> None:
        """Sleeps until it is rung, at most `timeout_s`."""
        poll = select.poll()
        poll.register(self._heard, select.POLLIN)
        poll.poll(timeout_s * 1_000)

    def close(self) -> None:
        """Lets go of the sockets."""
        self._heard.close()
        self._rope.close()
