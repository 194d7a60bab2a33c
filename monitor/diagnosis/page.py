"""The page about all rules, docs/rules.md, made of what they say of themselves: `python -m monitor.diagnosis.page`.

Each rule's module docstring is its text, its examples are named below it. `make rules` writes the page; a test fails
when it is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

from monitor.diagnosis.engine import RULES
from monitor.diagnosis.finding import Rule

_HEAD = """\
# The rules

What `unstuck` looks for when a training does not get anywhere. Each rule sees the recorded numbers of a run and says
what it finds with its evidence, or nothing. Where one finding explains another, only the cause is listed and names
its symptoms. A rule that has not enough to go by stays silent; `unstuck diagnose --json` tells which and why.

Severities: *critical*, training on is a waste; *warning*, worth acting on; *note*, worth knowing, or over by now. The
verdict of a run is *stuck* when a finding is critical, or when one is a warning and the loss makes no progress;
*suspect* when one is a warning; else *healthy*.
"""


def page(rules: Sequence[Rule] = RULES) -> str:
    """The whole page, Markdown."""
    return "\n".join([_HEAD, *(_section(rule) for rule in sorted(rules, key=lambda rule: rule.name))])


def explanation_of(rule: Rule) -> str:
    """What its author says of it: the docstring of its module."""
    module = sys.modules[rule.check.__module__]
    return inspect.cleandoc(module.__doc__ or "")


def _section(rule: Rule) -> str:
    parts = [f"## {rule.name}", "", explanation_of(rule), ""]
    if rule.explains:
        parts += [f"Explains: {', '.join(sorted(rule.explains))}.", ""]
    parts += ["Found when:", "", *(f"- {name}" for name in rule.ailing), ""]
    parts += ["Not found when:", "", *(f"- {name}" for name in rule.healthy), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
