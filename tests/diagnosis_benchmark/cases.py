"""What is trained to judge the rules: ailments, their repaired twins, healthy bases, and the selected mutants."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import keras

from client_callback.wire.protocol import PROTOCOL_VERSION
from demos.ailments import datasets, networks, recipe, scores
from demos.ailments.bases import BASES
from demos.ailments.catalogue import AILMENTS
from demos.ailments.mutations import mutants, selected_mutants
from demos.ailments.recipe import Recipe

Kind = Literal["ailing", "twin", "healthy", "mutant"]

_TRAINED_BY = tuple(Path(str(module.__file__)) for module in (datasets, networks, recipe, scores))


@dataclass(frozen=True)
class Case:
    """One training, for any seed."""

    name: str
    """Among all: `ailing:learning-rate-high/wine`."""
    kind: Kind
    recipe: Recipe
    cause: str = ""
    """The rule that should name it. Empty: nothing is wrong."""
    accepted: frozenset[str] = frozenset()
    """Rules that count as right. Empty: none should speak."""
    own_signs: bool = False
    """Whether it need not be worse than its twin on held-out data."""
    sound: str = ""
    """The case that is the same without the fault. Empty: none is, or it is that itself."""

    @property
    def sick(self) -> bool:
        """Whether something is wrong with it."""
        return bool(self.accepted)

    @property
    def reported(self) -> bool:
        """Whether its data set judges the rules; the others may be used to tune them."""
        return self.recipe.reported

    @functools.cached_property
    def digest(self) -> str:
        """Changes with whatever is trained."""
        digest = hashlib.sha256(f"{keras.__version__} {keras.backend.backend()} {PROTOCOL_VERSION}".encode())
        for source in _TRAINED_BY:
            digest.update(source.read_bytes())
        digest.update(_spelled(self.recipe).encode())
        return digest.hexdigest()[:12]


@functools.cache
def all_cases() -> dict[str, Case]:
    """Name → case. Twins that equal a base are that base, and counted once."""
    found: list[Case] = [Case(f"healthy:{name}", "healthy", base) for name, base in BASES.items()]
    for ailment in AILMENTS:
        found.append(
            Case(
                f"ailing:{ailment.key}",
                "ailing",
                ailment.recipe(),
                ailment.name,
                ailment.accepted,
                ailment.own_signs,
                f"twin:{ailment.key}" if ailment.repaired else f"healthy:{ailment.base}",
            )
        )
        if ailment.repaired:
            found.append(Case(f"twin:{ailment.key}", "twin", ailment.recipe(repaired=True)))
    found += [
        Case(f"mutant:{mutant.key}", "mutant", mutant.recipe, mutant.cause, mutant.accepted)
        for mutant in selected_mutants()
    ]
    return {case.name: case for case in found}


@functools.cache
def candidates() -> dict[str, Case]:
    """All mutants that may be selected."""
    return {
        f"mutant:{mutant.key}": Case(
            f"mutant:{mutant.key}", "mutant", mutant.recipe, mutant.cause, mutant.accepted
        )
        for mutant in mutants()
    }


def case_named(name: str) -> Case:
    """Of those to judge by, or a candidate."""
    return all_cases().get(name) or candidates()[name]


def _spelled(value: Any) -> str:
    """A text that is equal for equal recipes, in every process."""
    if isinstance(value, Recipe):
        return " ".join(f"{field.name}={_spelled(getattr(value, field.name))}" for field in fields(value))
    if isinstance(value, Mapping):
        return str({str(key): _spelled(value[key]) for key in sorted(value)})
    if isinstance(value, tuple | list):
        return str([_spelled(entry) for entry in value])
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = [_spelled(cell.cell_contents) for cell in value.__closure__ or ()]
        return f"{value.__module__.split('.')[-1]}.{value.__qualname__} {_code(code)} {cells}"
    if isinstance(value, keras.initializers.Initializer):
        return f"{type(value).__name__} {value.get_config()}"
    return repr(value)


def _code(code: Any) -> str:
    constants = [
        _code(constant) if hasattr(constant, "co_code") else repr(constant) for constant in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
