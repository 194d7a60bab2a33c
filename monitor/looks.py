"""How the program looks as a whole: its colours, and a picture of its screen.

The app registers the theme and writes the picture; what single things look like stands in `app.tcss`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from textual.theme import Theme

from monitor.session import Session

THEME: Final = Theme(
    name="unstuck",
    primary="#5fa8f5",
    secondary="#b691e8",
    accent="#4fd0c0",
    success="#86c96f",
    warning="#e5b454",
    error="#f2686c",
    foreground="#d5dbe3",
    background="#0e1116",
    surface="#161b22",
    panel="#202731",
    dark=True,
)

_FONTS: Final = "Fira Code, JetBrains Mono, DejaVu Sans Mono, Menlo, Consolas, monospace"


def self_contained(svg: str) -> str:
    """A picture as Rich exports it, but loading nothing from elsewhere."""
    svg = re.sub(r"@font-face\s*{.*?}|<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code, monospace;", f"font-family: {_FONTS};")


def picture_path(session: Session) -> Path:
    """Where a picture of this moment goes: into the current folder, named after run and step."""
    name = re.sub(r"[^\w.-]+", "-", session.run.name if session.run else "").strip("-.")
    return Path(f"{name or 'unstuck'}-step-{session.step}.svg")
