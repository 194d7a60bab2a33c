"""Which mutants are really worse than their base: trains both on the same seeds and writes `selected.json`.

A mutant is kept when its held-out scores are below its base's by a one-sided Mann-Whitney test at `LEVEL`, and their
medians differ by at least `EFFECT`. One that is no worse than that on each of the first two seeds is given up there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from scipy.stats import mannwhitneyu

from demos.ailments.mutations import SELECTED, mutants
from tests.diagnosis_benchmark.cases import Case, all_cases, candidates
from tests.diagnosis_benchmark.trained import Job, Outcome, train_all

LEVEL = 0.05
EFFECT = 0.05
"""Of accuracy or R², both at most 1."""
SCREENED = 2
"""Seeds after which a mutant that does no harm is given up."""


def select(folder: Path, options: argparse.Namespace) -> None:
    """Trains, decides, writes, prints."""
    seeds, processes = options.seeds, options.jobs
    drawn = {f"mutant:{mutant.key}" for mutant in mutants(per_base=options.per_base)}
    cases = {
        name: case
        for name, case in candidates().items()
        if name in drawn and (not options.only or any(part in name for part in options.only))
    }
    bases = {f"healthy:{_base(name)}" for name in cases}
    healthy = {name: case for name, case in all_cases().items() if name in bases}
    scores = _scores(healthy, range(seeds), folder, processes)
    first = _scores(cases, range(min(SCREENED, seeds)), folder, processes)
    promising = {
        name: case
        for name, case in cases.items()
        if any(
            scores[f"healthy:{_base(name)}"][seed] - value >= EFFECT for seed, value in first[name].items()
        )
    }
    all_seeds = _scores(promising, range(seeds), folder, processes)
    kept = {}
    for name in sorted(cases):
        base = list(scores[f"healthy:{_base(name)}"].values())
        mutant = list(all_seeds.get(name, first[name]).values())
        worse = len(mutant) == seeds and is_worse(base, mutant)
        print(f"{'kept   ' if worse else 'dropped'} {name:48} {_spelled(base)}  →  {_spelled(mutant)}")
        if worse:
            kept[name.removeprefix("mutant:")] = {"base": _rounded(base), "mutant": _rounded(mutant)}
    before = json.loads(SELECTED.read_text())["mutants"] if SELECTED.exists() else {}
    untried = {name: found for name, found in before.items() if f"mutant:{name}" not in cases}
    kept |= untried  # they stay as they were
    text = {"seeds": seeds, "level": LEVEL, "effect": EFFECT, "mutants": dict(sorted(kept.items()))}
    SELECTED.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{len(kept)} mutants are worse than their bases; {SELECTED.name} holds them")


def is_worse(base: Sequence[float], mutant: Sequence[float]) -> bool:
    """Whether it is, by the test and by the effect."""
    apart = median(base) - median(mutant) >= EFFECT
    return apart and bool(mannwhitneyu(mutant, base, alternative="less").pvalue <= LEVEL)


def _scores(
    cases: dict[str, Case], seeds: range, folder: Path, processes: int
) -> dict[str, dict[int, float]]:
    """Case → seed → held-out score; a training that raised has none, so its mutant is not kept."""
    jobs = [Job(name, case.digest, seed) for name, case in cases.items() for seed in seeds]
    found: dict[str, dict[int, float]] = {name: {} for name in cases}
    outcomes: list[Outcome] = sorted(train_all(jobs, folder, processes), key=lambda one: one.seed)
    for outcome in outcomes:
        if not outcome.error:
            found[outcome.case][outcome.seed] = outcome.score
    return found


def _base(name: str) -> str:
    return name.removeprefix("mutant:").split("/")[0]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _spelled(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
