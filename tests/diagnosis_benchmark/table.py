"""The figures as text: one block for each part, then causes, data sets, and every miss with what was said instead."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from tests.diagnosis_benchmark.scored import Run, Sick, mislabelled, named, sick, well

PARTS = (("tuning", False), ("reported", True))
SICK = ("ailing", "mutant")
WELL = ("healthy", "twin")


def report(runs: Sequence[Run]) -> str:
    """All of it."""
    return "\n".join(_lines(runs))


def _lines(runs: Sequence[Run]) -> Iterator[str]:
    wrong = mislabelled(runs)
    runs = [run for run in runs if run not in wrong]
    for title, reported in PARTS:
        part = [run for run in runs if run.reported == reported]
        if part:
            yield from _part(title, part)
    ailing = [run for run in runs if run.kind in SICK]
    if ailing:
        yield from _groups("cause", ailing, lambda run: run.cause)
        yield from _groups("data set", ailing, lambda run: run.dataset)
    yield from _failures(runs)
    yield from _mislabelled(wrong)
    yield from _alarms(runs)
    yield from _misses(ailing)
    yield from _remedies(ailing)


def _part(title: str, runs: Sequence[Run]) -> Iterator[str]:
    yield ""
    yield f"{title} part: {', '.join(sorted({run.dataset for run in runs}))}"
    for kind in SICK:
        found = [run for run in runs if run.kind == kind]
        if found:
            figures = sick(found)
            yield (
                f"  {kind + ' runs':20}{figures.runs:5}   detected {_percent(figures.detected)} at the end, "
                f"{_percent(figures.detected_ever)} ever"
            )
            yield (
                f"  {'':25}   cause in first place {_percent(figures.first)}, "
                f"first three {_percent(figures.first_three)}"
            )
            yield (
                f"  {'':25}   median steps to it {_number(figures.steps_to_first)} "
                f"({_number(figures.epochs_to_first, 1)} epochs), "
                f"to first three {_number(figures.steps_to_first_three)}"
            )
            yield f"  {'':25}   remedies: {_remedy_counts(figures)}"
    for kind in WELL:
        found = [run for run in runs if run.kind == kind]
        if found:
            alarms = well(found)
            yield (
                f"  {kind + ' runs':20}{alarms.runs:5}   false alarms {_percent(alarms.at_end)} at the end, "
                f"{_percent(alarms.ever)} ever, critical {_percent(alarms.critical)}"
            )


def _groups(title: str, runs: Sequence[Run], key: Callable[[Run], str]) -> Iterator[str]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    yield ""
    yield f"{title:26}{'runs':>5}{'detected':>10}{'first':>8}{'three':>8}{'steps':>8}{'epochs':>8}  remedies"
    for name in sorted(groups):
        figures = sick(groups[name])
        yield (
            f"{name:26}{figures.runs:5}{_percent(figures.detected):>10}{_percent(figures.first):>8}"
            f"{_percent(figures.first_three):>8}{_number(figures.steps_to_first):>8}"
            f"{_number(figures.epochs_to_first, 1):>8}  {_remedy_counts(figures)}"
        )


def _mislabelled(runs: Sequence[Run]) -> Iterator[str]:
    yield ""
    yield f"not counted, for they turned out otherwise ({len(runs)}):"
    for run in sorted(runs, key=lambda run: (run.case, run.seed)):
        word = "does no harm" if run.kind == "ailing" else "fails by itself"
        said = ", ".join(run.judgement.end.rules[:3]) or "nothing"
        yield f"  {run.case} seed {run.seed}: {word} (score {run.score:.3f}); said {said}"


def _failures(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for failure in run.judgement.failed:
            yield f"FAILED on {run.case} seed {run.seed}: {failure}"


def _alarms(runs: Sequence[Run]) -> Iterator[str]:
    alarmed = [run for run in runs if run.kind in WELL and run.judgement.first_alarm is not None]
    yield ""
    yield f"false alarms ({len(alarmed)}):"
    for run in sorted(alarmed, key=lambda run: (run.case, run.seed)):
        first = run.judgement.first_alarm
        assert first is not None
        lasting = "still at the end" if run.judgement.end.alarm else "gone at the end"
        spoken = _spoken(first.rules, first.severities)
        yield f"  {run.case} seed {run.seed}: {spoken} from step {first.step}, {lasting}"


def _misses(runs: Sequence[Run]) -> Iterator[str]:
    missed = [run for run in runs if not named(run, 1)]
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = defaultdict(list)
    for run in missed:
        groups[run.case, run.judgement.end.rules[:3]].append(run)
    yield ""
    yield f"not in first place at the end ({len(missed)} of {len(runs)}):"
    for (case, rules), found in sorted(groups.items()):
        seeds = ",".join(str(run.seed) for run in sorted(found, key=lambda run: run.seed))
        accepted = "/".join(sorted(found[0].accepted))
        yield f"  {case} seeds {seeds}: said {', '.join(rules) or 'nothing'}; accepted {accepted}"


def _remedies(runs: Sequence[Run]) -> Iterator[str]:
    applied = [(run, run.remedy) for run in runs if run.remedy is not None and run.remedy.outcome != "helped"]
    yield ""
    yield f"remedies that did not help ({len(applied)}):"
    for run, remedy in sorted(applied, key=lambda entry: (entry[0].case, entry[0].seed)):
        yield (
            f"  {run.case} seed {run.seed}: `{remedy.command}` at step {remedy.at}: {remedy.outcome}, "
            f"{remedy.gain:+.3f} ({remedy.reply or 'no answer'})"
        )


def _remedy_counts(figures: Sick) -> str:
    if not figures.remedies:
        return "none applied"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(figures.remedies.items()))
    return f"{_percent(figures.helped)} help ({counts})"


def _spoken(rules: Sequence[str], severities: Sequence[str]) -> str:
    return (
        ", ".join(f"{rule} ({severity})" for rule, severity in zip(rules, severities, strict=True))
        or "an alarm"
    )


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def _number(value: float, digits: int = 0) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
