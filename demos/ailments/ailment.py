"""What an ailment is: a healthy recipe with a mistake, the mistake's name, and what would be a fair diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bases import BASES
from .recipe import Recipe, Training


@dataclass(frozen=True)
class Ailment:
    """One way to fail, on one base."""

    name: str
    """The id of the rule that should name it."""
    base: str
    """Of `bases.BASES`."""
    mistake: str
    """What the script's author did, in one line."""
    ailing: Mapping[str, Any]
    """Fields of the recipe that differ from the base."""
    repaired: Mapping[str, Any] = field(default_factory=dict)
    """The same of its twin. Empty: the twin is the base itself."""
    also: frozenset[str] = frozenset()
    """Further rule ids that an expert would accept as the cause of what happens on Keras 3."""
    own_signs: bool = False
    """Whether it shows in its own signs rather than in the held-out score."""

    @property
    def key(self) -> str:
        """Names it among all: `learning-rate-high/wine`."""
        return f"{self.name}/{self.base}"

    @property
    def accepted(self) -> frozenset[str]:
        """All rule ids that count as right."""
        return self.also | {self.name}

    @property
    def dataset(self) -> str:
        """What it is trained on."""
        return BASES[self.base].dataset

    @property
    def reported(self) -> bool:
        """Whether it judges rules rather than helps to tune them."""
        return BASES[self.base].reported

    def recipe(self, repaired: bool = False) -> Recipe:
        """The script with the mistake, or its repaired twin. Both are scored alike."""
        return BASES[self.base].but(**(self.repaired if repaired else self.ailing))

    def prepare(self, seed: int, repaired: bool = False) -> Training:
        """Ready to be trained."""
        return self.recipe(repaired).prepare(seed)
