"""Round numbers: where the ticks of an axis go, and how values and steps are written.

`monitor.charts` and `monitor.grids` call it; panels use the two `format_` functions. Nothing here draws.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

_UNITS: Final = ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"))
_EPSILON: Final = 1e-6
"""Of a spacing, or of a decade: a float32 of 0.01 lies just below it, and yet its tick stands at the end."""
_LARGEST_POWER: Final = 300.0
_LARGEST: Final = 1e300  # leaves room to subtract and divide without overflow


class Tick(NamedTuple):
    """A place on an axis, in the axis's own coordinates (log10 on a log axis), and what is written there."""

    position: float
    label: str


class Axis(NamedTuple):
    """The range shown, `low` < `high`, in coordinates: values, or their log10 on a log axis."""

    low: float
    high: float
    log: bool

    def heights(self, coordinates: Floats) -> Floats:
        """Where coordinates lie: 0 at the bottom, 1 at the top, and there too for what lies beyond."""
        return np.asarray(((coordinates - self.low) / (self.high - self.low)).clip(0.0, 1.0))

    def ticks(self, count: int) -> list[Tick]:
        """About `count` ticks at round numbers; on a log axis up to twice as many."""
        return _log_ticks(self.low, self.high, count) if self.log else _ticks(self.low, self.high, count)


def coordinates(values: npt.NDArray[Any], *, log: bool) -> Floats:
    """Values as they lie along an axis; NaN for what has no place on it."""
    shown = np.isfinite(values) & (values > 0) if log else np.isfinite(values)
    places = np.full(values.shape, np.nan)
    places[shown] = np.log10(values[shown], dtype=np.float64) if log else values[shown]
    largest = _LARGEST_POWER if log else _LARGEST
    return places.clip(-largest, largest)


def axis(low: float, high: float, *, log: bool) -> Axis:
    """The axis from one coordinate to another, widened when they are the same to the eye."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-7 * size, 1e-300):
        return Axis(low, high, log)
    room = 0.3 if log else size * 0.1 if size > 1e-290 else 1.0
    return Axis(low - room, high + room, log)


def step_ticks(start: int, stop: int, count: int) -> list[tuple[int, str]]:
    """At most about `count` round steps in `[start, stop)`, as short as they can be told apart."""
    least = (stop - start) / max(1, count)
    spacing = max(1, int(_round_up(least, (1, 2, 2.5, 5) if least > 2.5 else (1, 2, 5))))
    ticks = range(-(-start // spacing) * spacing, stop, spacing)
    unit, suffix = next(((u, s) for u, s in _UNITS if ticks and ticks[-1] >= u), (1, ""))
    for decimals in range(4):
        if spacing * 10**decimals % unit == 0:
            return [
                (tick, _trimmed(f"{tick / unit:.{decimals}f}") + suffix if tick else "0") for tick in ticks
            ]
    return [(tick, f"{tick:,}") for tick in ticks]


def format_step(step: int) -> str:
    """A step in at most three or four digits: 950, 12.3k, 1.25M."""
    for unit, suffix in _UNITS:
        if abs(step) >= unit * 0.9995:
            decimals = max(0, 3 - len(str(round(abs(step) / unit))))
            return _trimmed(f"{step / unit:.{decimals}f}") + suffix
    return str(step)


def format_number(value: float, digits: int = 4) -> str:
    """A value in `digits` significant digits, without needless zeros: 0.6931, 1.5e-7, nan."""
    if not math.isfinite(value):
        return str(float(value))
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if value == 0 or -4 <= power < max(digits, 6):
        return _trimmed(f"{value:.{max(0, digits - 1 - power)}f}") if value else "0"
    return f"{_trimmed(mantissa)}e{power:+d}"


def _ticks(low: float, high: float, count: int) -> list[Tick]:
    spacing = _round_up((high - low) / max(1, count), (1, 2, 2.5, 5))
    if not spacing:
        return []
    first, last = math.ceil(low / spacing - _EPSILON), math.floor(high / spacing + _EPSILON)
    values = [n * spacing for n in range(first, last + 1)]
    return [Tick(value, label) for value, label in zip(values, _labels(values, spacing), strict=True)]


def _labels(values: list[float], spacing: float) -> list[str]:
    """Labels of one form, with as few digits as keep them exact."""
    fixed = 1e-4 <= max(map(abs, values), default=1.0) < 1e6
    labels: list[str] = []
    for digits in range(12):
        labels = [f"{v:.{digits}f}" if fixed else format_number(v, digits + 1) for v in values]
        if all(abs(float(label) - v) < spacing / 100 for label, v in zip(labels, values, strict=True)):
            break
    return labels


def _log_ticks(low: float, high: float, count: int) -> list[Tick]:
    """Powers of ten, with 2 and 5 between them where there is room; what matters least comes last.

    Both ends of the range get a tick of their own where the powers of ten leave them bare.
    """
    powers = range(math.floor(low), math.floor(high + _EPSILON) + 1)
    fine = [(power, mantissa) for power in powers for mantissa in (1, 2, 5)]
    fine = [tick for tick in fine if low - _EPSILON <= _place(tick) <= high + _EPSILON]
    if len(fine) < 2:
        linear = _ticks(10.0**low, 10.0**high, count)
        return [Tick(math.log10(value), label) for value, label in linear if value > 0]
    most = max(3, 2 * count)
    chosen = fine if high - low < 3 and len(fine) <= most + 1 else _decades(low, high, most)
    return [Tick(_place(tick), _label(tick)) for tick in dict.fromkeys([*chosen, fine[0], fine[-1]])]


def _decades(low: float, high: float, most: int) -> list[tuple[int, int]]:
    """At most so many powers of ten, evenly apart."""
    for every in (1, 2, 3, 5, 10, 20, 50, 100, 200):
        decades = range(math.ceil((low - _EPSILON) / every) * every, math.floor(high + _EPSILON) + 1, every)
        if len(decades) <= most:
            return [(power, 1) for power in decades]
    return []


def _place(tick: tuple[int, int]) -> float:
    """Where `mantissa * 10**power` lies on a log axis."""
    return tick[0] + math.log10(tick[1])


def _label(tick: tuple[int, int]) -> str:
    power, mantissa = tick
    return format_number(mantissa * 10.0**power, 1) if -3 <= power < 5 else f"{mantissa}e{power:+d}"


def _round_up(value: float, mantissas: tuple[float, ...]) -> float:
    """The least mantissa times a power of ten that is not under `value`; 0 if there is none."""
    if not 0 < value < math.inf:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((m * power for m in mantissas if m * power >= value * (1 - 1e-9)), 10 * power)


def _trimmed(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number
