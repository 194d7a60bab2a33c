"""Which mutants are really worse than their base: trains both on the same seeds and writes `selected.json`.

A mutant is kept when its held-out scores are below its base's by a one-sided Mann-Whitney test at `LEVEL`, and their
medians differ by at least `EFFECT`. One that is no worse than that on each of the first two seeds is given up there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from scipy.stats import mannwhitneyu

from demos.ailments.mutations import SELECTED, mutants
from tests.diagnosis_benchmark.cases import Case, all_cases, candidates
from tests.diagnosis_benchmark.trained import Job, read_outcome, train_all

LEVEL = 0.05
EFFECT = 0.05
"""Of accuracy or R², both at most 1."""
SCREENED = 2
"""Seeds after which a mutant that does no harm is given up."""


def select(folder: Path, options: argparse.Namespace) -> None:
    """Trains, decides, writes, prints. What cannot be decided yet, for want of seeds, stays as it was."""
    drawn = {f"mutant:{mutant.key}" for mutant in mutants(per_base=options.per_base)}
    cases = {
        name: case
        for name, case in candidates().items()
        if name in drawn and (not options.only or any(part in name for part in options.only))
    }
    bases = {f"healthy:{_base(name)}" for name in cases}
    healthy = {name: case for name, case in all_cases().items() if name in bases}
    scores = _scores(healthy, range(options.seeds), folder, options)
    first = _scores(cases, range(min(SCREENED, options.seeds)), folder, options)
    promising = {
        name: case for name, case in cases.items() if _promises(scores[f"healthy:{_base(name)}"], first[name])
    }
    all_seeds = _scores(promising, range(options.seeds), folder, options)
    kept = json.loads(SELECTED.read_text())["mutants"] if SELECTED.exists() else {}
    for name in sorted(cases):
        base, mutant = scores[f"healthy:{_base(name)}"], all_seeds.get(name, first[name])
        decision = _decide(list(base.values()), list(mutant.values()), options.seeds, name in promising)
        print(f"{decision:10} {name:44} {_spelled(base.values())}  →  {_spelled(mutant.values())}")
        if decision == "undecided":
            continue
        kept.pop(name.removeprefix("mutant:"), None)
        if decision == "kept":
            kept[name.removeprefix("mutant:")] = {
                "base": _rounded(base.values()),
                "mutant": _rounded(mutant.values()),
            }
    text = {"seeds": options.seeds, "level": LEVEL, "effect": EFFECT, "mutants": dict(sorted(kept.items()))}
    SELECTED.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{len(kept)} mutants are worse than their bases; {SELECTED.name} holds them")


def _promises(base: Mapping[int, float], mutant: Mapping[int, float]) -> bool:
    """Whether it did harm on any of the first seeds."""
    return any(base[seed] - value >= EFFECT for seed, value in mutant.items() if seed in base)


def _decide(
    base: Sequence[float], mutant: Sequence[float], seeds: int, promising: bool
) -> Literal["kept", "dropped", "undecided"]:
    if len(base) < seeds or len(mutant) < min(SCREENED, seeds) or (promising and len(mutant) < seeds):
        return "undecided"
    return "kept" if promising and is_worse(base, mutant) else "dropped"


def is_worse(base: Sequence[float], mutant: Sequence[float]) -> bool:
    """Whether it is, by the test and by the effect."""
    apart = median(base) - median(mutant) >= EFFECT
    return apart and bool(mannwhitneyu(mutant, base, alternative="less").pvalue <= LEVEL)


def _scores(
    cases: Mapping[str, Case], seeds: range, folder: Path, options: argparse.Namespace
) -> dict[str, dict[int, float]]:
    """Case → seed → held-out score; a training that raised has none, so its mutant is not kept."""
    jobs = [Job(name, case.digest, seed) for name, case in cases.items() for seed in seeds]
    known = (read_outcome(job, folder) for job in jobs)
    outcomes = [one for one in known if one] if options.score_only else train_all(jobs, folder, options.jobs)
    found: dict[str, dict[int, float]] = {name: {} for name in cases}
    for outcome in sorted(outcomes, key=lambda one: one.seed):
        if not outcome.error:
            found[outcome.case][outcome.seed] = outcome.score
    return found


def _base(name: str) -> str:
    return name.removeprefix("mutant:").split("/")[0]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _spelled(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
