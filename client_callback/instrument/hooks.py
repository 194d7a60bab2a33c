"""Replacing methods on one instance, and taking every replacement off again.

Used by whatever reaches into a live model or optimizer. Only the instance's own dictionary is touched: Keras'
attribute tracking, the class and other instances never notice, and saving, cloning and pickling see the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class InstanceHooks:
    """A stack of replaced instance attributes."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, object, object]] = []

    def wrap(
        self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> object:
        """Lets `owner.name` be `wrapper(the original)` until `remove`; returns that replacement."""
        before = vars(owner).get(name, _ABSENT)
        replacement = wrapper(getattr(owner, name))
        vars(owner)[name] = replacement
        self._replaced.append((owner, name, before, replacement))
        return replacement

    def original(self, owner: Any, name: str) -> Any:
        """What `owner.name` was before it was replaced here; what it is, where it was not."""
        for replaced, attribute, before, _ in self._replaced:
            if replaced is owner and attribute == name:
                return getattr(type(owner), name).__get__(owner) if before is _ABSENT else before
        return getattr(owner, name)

    def remove(self) -> None:
        """Puts back what was there, last replaced first; leaves alone what somebody else replaced since."""
        while self._replaced:
            owner, name, before, replacement = self._replaced.pop()
            if vars(owner).get(name, _ABSENT) is not replacement:
                continue
            if before is _ABSENT:
                del vars(owner)[name]
            else:
                vars(owner)[name] = before
