"""A grid of terminal cells that dots, signs and colours are put on, and the rows of text that come out.

Braille gives 2x4 dots to a cell; the ASCII raster gives 1x3. `monitor.charts` and `monitor.grids` draw on it.
Nothing here knows what the dots mean: no values, no steps, no ticks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.cells import get_character_cell_size

Ints: TypeAlias = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """Text in one style. The style is a semantic name or a Rich style, and is never read here."""

    text: str
    style: str


Row: TypeAlias = list[Segment]


class Raster(NamedTuple):
    """How dots become a character: dots across and down a cell, the bit of each, and the sign of each set."""

    across: int
    down: int
    bits: tuple[tuple[int, ...], ...]
    signs: npt.NDArray[np.uint32]


def _braille() -> Raster:
    signs = np.arange(0x2800, 0x2900, dtype=np.uint32)
    signs[0] = ord(" ")  # an empty braille cell costs three bytes on the wire, and some fonts draw it
    return Raster(2, 4, ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80)), signs)


BRAILLE: Final = _braille()
ASCII: Final = Raster(1, 3, ((1,), (2,), (4,)), np.array([ord(sign) for sign in " '-|.:||"], np.uint32))


class Canvas:
    """Cells of `height` x `width`, each with one sign, one style and a background per column.

    Dots of later curves join those already in a cell and take over its colour; signs replace what is there.
    """

    def __init__(self, width: int, height: int, raster: Raster) -> None:
        self.width, self.height = width, height
        self.raster = raster
        self._bits = np.zeros((height, width), np.uint8)
        self._signs = np.zeros((height, width), np.uint32)
        self._ink = np.zeros((height, width), np.int64)
        self._paper = np.zeros(width, np.int64)
        self._styles = [""]

    @property
    def dots_across(self) -> int:
        """Dot columns of the whole canvas."""
        return self.width * self.raster.across

    @property
    def dots_down(self) -> int:
        """Dot rows of the whole canvas."""
        return self.height * self.raster.down

    def spans(self, tops: Ints, bottoms: Ints, style: str, *, over: bool = False) -> None:
        """Set the dots from `tops` to `bottoms` (inclusive; none if top > bottom) of every dot column.

        With `over`, the cells touched lose the dots they had: the line stands out from what is behind it.
        """
        across, down, weights, _ = self.raster
        rows = np.arange(self.dots_down)[:, None]
        dots = ((rows >= tops) & (rows <= bottoms)).view(np.uint8)
        bits = np.zeros_like(self._bits)
        for y in range(down):
            for x in range(across):
                bits |= dots[y::down, x::across] * np.uint8(weights[y][x])
        touched = bits > 0
        self._bits = np.where(touched, bits, self._bits) if over else self._bits | bits
        self._ink[touched] = self._style(style)

    def put(self, row: int, column: int, sign: str, style: str) -> None:
        """Put a one-cell sign at a cell, over whatever is there; nothing happens outside."""
        if 0 <= row < self.height and 0 <= column < self.width:
            self._signs[row, column] = ord(sign)
            self._ink[row, column] = self._style(style)

    def rule(self, column: int, sign: str, style: str) -> None:
        """Draw a vertical line where a column is still blank."""
        if 0 <= column < self.width:
            blank = (self._bits[:, column] == 0) & (self._signs[:, column] == 0)
            self._signs[blank, column] = ord(sign)
            self._ink[blank, column] = self._style(style)

    def shade(self, first: int, last: int, style: str) -> None:
        """Give the columns from `first` to `last` (inclusive) a background; of two, the later one."""
        self._paper[max(0, first) : max(0, last + 1)] = self._style(style)

    def write(self, row: int, text: str, style: str) -> None:
        """Centre `text`, all of one-cell characters, in a row."""
        text = fit(text, self.width, ascii_only=self.raster is ASCII)
        for column, sign in enumerate(text, (self.width - len(text)) // 2):
            self.put(row, column, sign, style)

    def rows(self) -> list[Row]:
        """The canvas as text; neighbouring cells of one style share a segment."""
        signs = np.where(self._signs > 0, self._signs, self.raster.signs[self._bits])
        ink = np.where(signs == ord(" "), 0, self._ink)  # a blank shows only the paper
        looks = ink * len(self._styles) + self._paper
        begins = np.ones(looks.shape, np.bool_)
        begins[:, 1:] = looks[:, 1:] != looks[:, :-1]
        starts = np.flatnonzero(begins)
        styles = {look: self._look(look) for look in np.unique(looks).tolist()}
        text = signs.astype("<u4").tobytes().decode("utf-32-le")
        rows: list[Row] = [[] for _ in range(self.height)]
        for (a, b), look in zip(
            pairwise([*starts.tolist(), len(text)]), looks.flat[starts].tolist(), strict=True
        ):
            rows[a // self.width].append(Segment(text[a:b], styles[look]))
        return rows

    def _look(self, look: int) -> str:
        ink, paper = divmod(look, len(self._styles))
        return f"{self._styles[ink]} {self._styles[paper]}".strip()

    def _style(self, style: str) -> int:
        if style not in self._styles:
            self._styles.append(style)
        return self._styles.index(style)


def connected(lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Dot rows (top, bottom) per column from fractional ones, neighbours stretched until they touch.

    `lows` and `highs` count downwards and hold NaN where nothing is drawn; there top > bottom, and no line
    crosses the gap.
    """
    drawn = ~np.isnan(lows)
    tops = np.where(drawn, np.rint(np.where(drawn, lows, 0)), 1).astype(np.int64)
    bottoms = np.where(drawn, np.rint(np.where(drawn, highs, 0)), 0).astype(np.int64)
    both = drawn[:-1] & drawn[1:]
    down = both & (bottoms[:-1] + 1 < tops[1:])
    up = both & (bottoms[1:] + 1 < tops[:-1])
    falling, rising = (bottoms[:-1] + tops[1:]) // 2, (tops[:-1] + bottoms[1:]) // 2
    stretched_bottoms, stretched_tops = bottoms.copy(), tops.copy()
    np.maximum(stretched_bottoms[:-1], falling, out=stretched_bottoms[:-1], where=down)
    np.minimum(stretched_tops[1:], falling + 1, out=stretched_tops[1:], where=down)
    np.minimum(stretched_tops[:-1], rising + 1, out=stretched_tops[:-1], where=up)
    np.maximum(stretched_bottoms[1:], rising, out=stretched_bottoms[1:], where=up)
    return stretched_tops, stretched_bottoms


def cell_width(text: str) -> int:
    """Terminal cells that `text`, free of control and combining characters, takes up."""
    return len(text) if text.isascii() else sum(map(get_character_cell_size, text))


def printable(text: str, *, ascii_only: bool = False) -> str:
    """`text` without what has no width of its own; with `ascii_only`, `?` for what is not ASCII."""
    if ascii_only:
        return "".join(c if " " <= c <= "~" else "?" for c in text)
    kept = (c for c in text if c.isprintable() and not joins(c))
    return "".join(kept).replace("\u2800", " ")


def joins(sign: str) -> bool:
    """Whether a sign melts into the one before it: an accent, an emoji's skin tone, a vowel sign."""
    melts = "\u1160" <= sign <= "\u11ff" or "\U0001f3fb" <= sign <= "\U0001f3ff"
    return melts or unicodedata.category(sign) in {"Mn", "Me"} or get_character_cell_size(sign) == 0


def fit(text: str, width: int, *, ascii_only: bool = False) -> str:
    """`text` cut in the middle to at most `width` cells, both ends kept."""
    if cell_width(text) <= width:
        return text
    ellipsis = "~" if ascii_only else "…"
    if width <= 1:
        return ellipsis * width
    head, tail = width // 2, (width - 1) // 2
    return _start(text, head) + ellipsis + _start(text[::-1], tail)[::-1]


def pad(row: Sequence[Segment], width: int) -> Row:
    """`row` as exactly `width` cells: cut off at the right, or filled up with blanks."""
    padded: Row = []
    left = width
    for text, style in row:
        kept = text if cell_width(text) <= left else _start(text, left)
        if kept:
            padded.append(Segment(kept, style))
        left -= cell_width(kept)
        if kept != text:
            break
    return [*padded, Segment(" " * left, "")] if left > 0 else padded


def _start(text: str, width: int) -> str:
    """As much of the beginning of `text` as fits."""
    while cell_width(text) > width:
        text = text[: max(0, min(width, len(text) - 1))]
    return text
