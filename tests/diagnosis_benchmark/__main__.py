"""`make benchmark-diagnosis`: trains what ails and what does not, and prints how well it is told apart.

python -m tests.diagnosis_benchmark --seeds 5 --part reported

Data sets are split: rules may be tuned on one part and are judged on the other. Recordings stay in a folder, so that
after a change of the rules `--score-only` prints the table anew; what has no recording yet is then left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from client_callback.wire import folders
from tests.diagnosis_benchmark.trained import (
    Job,
    Outcome,
    callback_digest,
    forget_older,
    read_outcome,
    train_all,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    folder: Path = options.folder or folders.cache_folder() / "diagnosis-benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        forget_older(folder)
    if options.select:
        from tests.diagnosis_benchmark import selection

        selection.select(folder, options)
        return 0

    from tests.diagnosis_benchmark.cases import all_cases

    cases = [
        case
        for case in all_cases().values()
        if options.part in ("all", "reported" if case.reported else "tuning")
        and (not options.only or any(part in case.name for part in options.only))
        and (options.mutants or case.kind != "mutant")
    ]
    jobs = [Job(case.name, case.digest, seed) for seed in range(options.seeds) for case in cases]
    if options.score_only:
        outcomes = [known for job in jobs if (known := read_outcome(job, folder)) is not None]
        print(f"{len(outcomes)} of {len(jobs)} runs have been trained")
    else:
        outcomes = list(train_all(jobs, folder, options.jobs))
    older = sum(outcome.callback != callback_digest() for outcome in outcomes)
    if older:
        print(f"{older} of {len(outcomes)} recordings come from another version of the callback; see --fresh")
    for outcome in outcomes:
        if outcome.error:
            print(f"{outcome.case} seed {outcome.seed} raised {outcome.error}")
    if options.train_only:
        _print_scores(outcomes)
        return 0
    return _score(options, folder, outcomes)


def _score(options: argparse.Namespace, folder: Path, outcomes: Sequence[Outcome]) -> int:
    try:
        import monitor.diagnosis.engine
        from tests.diagnosis_benchmark import judged, scored, table

        _ = monitor.diagnosis.engine.examine
    except (ImportError, AttributeError) as missing:
        print(f"nothing here can judge recordings yet ({missing}); --train-only trains them", file=sys.stderr)
        return 1
    from tests.diagnosis_benchmark.cases import all_cases

    cases = all_cases()
    usable = sorted((one for one in outcomes if one.recording), key=lambda one: (one.case, one.seed))
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        judgements = pool.starmap(judged.judge, [(folder / one.recording, one.steps) for one in usable], 4)
    runs = [
        scored.Run(
            case=one.case,
            kind=cases[one.case].kind,
            cause=cases[one.case].cause,
            accepted=cases[one.case].accepted,
            dataset=cases[one.case].recipe.dataset,
            reported=cases[one.case].reported,
            seed=one.seed,
            steps_per_epoch=one.steps_per_epoch,
            score=one.score,
            judgement=judgement,
            own_signs=cases[one.case].own_signs,
            sound=cases[one.case].sound,
            higher_is_better=one.higher_is_better,
        )
        for one, judgement in zip(usable, judgements, strict=True)
    ]
    if options.remedies:
        treated = _treat(options, folder, runs)
        runs = [replace(run, remedy=treated.get((run.case, run.seed))) for run in runs]
    print(table.report(runs))
    if options.json:
        rows = [asdict(run) | {"accepted": sorted(run.accepted)} for run in runs]
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0


def _treat(
    options: argparse.Namespace, folder: Path, runs: Sequence[object]
) -> dict[tuple[str, int], object]:
    """Trains ailing runs again with what the top finding advised, at the step at which it could first be given."""
    from tests.diagnosis_benchmark.cases import all_cases
    from tests.diagnosis_benchmark.scored import Remedy

    cases = all_cases()
    jobs: dict[Job, object] = {}
    for run in runs:
        said = next((s for s in run.judgement.said[:-1] if s.alarm and s.command), None)
        if run.kind == "ailing" and said is not None:
            jobs[Job(run.case, cases[run.case].digest, run.seed, said.command, said.step)] = run
    if options.score_only:
        outcomes = [known for job in jobs if (known := read_outcome(job, folder)) is not None]
    else:
        outcomes = list(train_all(jobs, folder, options.jobs))
    found = {(one.case, one.seed): one for one in outcomes}
    treated = {}
    for job, run in jobs.items():
        outcome = found.get((job.case, job.seed))
        if outcome is not None:
            gain = outcome.score - run.score
            treated[job.case, job.seed] = Remedy(
                job.command, job.at, outcome.reply, gain if outcome.higher_is_better else -gain
            )
    return treated


def _print_scores(outcomes: Sequence[Outcome]) -> None:
    by_case: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_case.setdefault(outcome.case, []).append(outcome)
    for name in sorted(by_case):
        found = sorted(by_case[name], key=lambda one: one.seed)
        values = " ".join(f"{one.score:6.3f}" for one in found)
        print(f"{name:52} {found[0].score_name:18} {values}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.diagnosis_benchmark", description="Judge the diagnosis.")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of each training (default 5)")
    parser.add_argument("--part", choices=("tuning", "reported", "all"), default="all")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="cases whose name holds this; may be repeated",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--folder", type=Path, help="of the recordings; by default in the user's cache")
    parser.add_argument(
        "--score-only", action="store_true", help="train nothing; with --select: decide by what there is"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="train anew what another version of the callback has recorded"
    )
    parser.add_argument("--train-only", action="store_true", help="print held-out scores, judge nothing")
    parser.add_argument(
        "--no-remedies", dest="remedies", action="store_false", help="do not try what is advised"
    )
    parser.add_argument("--no-mutants", dest="mutants", action="store_false", help="the ailments alone")
    parser.add_argument("--json", metavar="FILE", help="write each run with what was said of it")
    parser.add_argument(
        "--select",
        action="store_true",
        help="train the mutants, and write down which are worse than their base",
    )
    parser.add_argument(
        "--per-base",
        type=int,
        metavar="N",
        help="with --select: so many mutants of each base, drawn by chance; by default all",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
