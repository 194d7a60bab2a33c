"""What the charts promise for any numbers, and how a few of them look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.cells import cell_len
from rich.style import Style

from monitor.charts import (
    Curve,
    Mark,
    draw_curves,
    draw_heatmap,
    draw_histogram,
    draw_table,
    format_number,
    format_step,
    sparkline,
    stacked_bar,
)
from monitor.scales import axis
from monitor.series import Column, Points

anything = st.one_of(
    st.floats(-100, 100),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300, 1.7e308, 5e-324, 1e-300]),
)
names = st.text(max_size=12) | st.sampled_from(
    ["loss", "val_loss", "損失", "a\u0301\n\t", "👩‍🔬 score", "\u093e", "\u2630"]
)
sizes = st.integers(0, 50) | st.integers(0, 6)


def column_of(values, dtype=np.float32) -> Column:
    column = Column(dtype)
    column.extend(0, np.asarray(values, dtype))
    return column


def points_of(pairs) -> Points:
    points = Points()
    for step, value in pairs:
        points.append(step, value)
    return points


def text_of(rows) -> str:
    return "\n".join("".join(text for text, _ in row).rstrip() for row in rows).rstrip("\n")


def check(rows, width, height, ascii_only):
    assert len(rows) == height
    for row in rows:
        text = "".join(segment.text for segment in row)
        assert cell_len(text) == width, repr(text)
        assert "\u2800" not in text
        assert not ascii_only or all(" " <= c <= "~" for c in text), repr(text)
        for segment in row:
            assert segment.text
            Style.parse(segment.style)


@st.composite
def some_curves(draw):
    column = draw(st.none() | arrays(np.float64, st.integers(0, 120), elements=anything))
    pairs = draw(st.none() | st.lists(st.tuples(st.integers(0, 130), anything), max_size=8))
    return Curve(
        draw(names),
        "cyan",
        None if column is None else column_of(column, np.float64),
        None if pairs is None else points_of(pairs),
        draw(st.booleans()),
    )


@settings(deadline=None, max_examples=250)
@given(st.data())
def test_curves_fill_exactly_the_room_they_are_given(data):
    draw = data.draw
    width, height, ascii_only = draw(st.integers(0, 130) | sizes), draw(sizes), draw(st.booleans())
    steps = st.integers(-5, 140)
    rows = draw_curves(
        draw(st.lists(some_curves(), max_size=3)),
        width=width,
        height=height,
        start=draw(steps),
        stop=draw(steps),
        log=draw(st.booleans()),
        smoothing=draw(st.integers(0, 50)),
        bands=draw(st.lists(st.tuples(steps, steps, st.just("on #222222")), max_size=2)),
        marks=[Mark(s, g, "magenta") for s, g in draw(st.lists(st.tuples(steps, names), max_size=3))],
        epochs=sorted(draw(st.lists(steps))),
        ascii_only=ascii_only,
        cursor=draw(st.none() | steps),
        clip_outliers=draw(st.booleans()),
    )
    check(rows, width, height, ascii_only)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_heatmaps_fill_exactly_the_room_they_are_given(data):
    draw = data.draw
    width, height, ascii_only = draw(st.integers(0, 130) | sizes), draw(sizes), draw(st.booleans())
    labels = draw(st.lists(names, max_size=8))
    steps = sorted(draw(st.sets(st.integers(0, 130), max_size=12)))
    shape = (len(steps), len(labels))
    rows = draw_heatmap(
        labels,
        draw(arrays(np.float64, shape, elements=anything)),
        steps,
        width=width,
        height=height,
        start=draw(st.integers(-5, 140)),
        stop=draw(st.integers(-5, 140)),
        log=draw(st.booleans()),
        ascii_only=ascii_only,
        measured=draw(st.none() | arrays(np.bool_, shape)),
    )
    check(rows, width, height, ascii_only)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_histograms_fill_exactly_the_room_they_are_given(data):
    draw = data.draw
    width, height, ascii_only = draw(st.integers(0, 130) | sizes), draw(sizes), draw(st.booleans())
    bins = draw(st.integers(0, 60))
    counts = arrays(np.float64, bins, elements=st.floats(0, 1e9) | st.just(math.nan))
    labels = st.lists(names, min_size=bins, max_size=bins)
    edges = st.just(np.linspace(-1, 1, bins + 1))
    rows = draw_histogram(
        [(draw(names), "green", draw(counts)) for _ in range(draw(st.integers(0, 3)))],
        draw(labels | edges),
        width=width,
        height=height,
        ascii_only=ascii_only,
    )
    check(rows, width, height, ascii_only)


@given(st.lists(anything, max_size=80), st.integers(-1, 40), st.booleans())
def test_sparklines_have_exactly_their_width(values, width, ascii_only):
    line = sparkline(values, width, ascii_only)
    assert len(line) == max(0, width)
    assert not ascii_only or line.isascii()


def test_a_sparkline_keeps_to_the_range_it_is_given():
    assert sparkline([0.0, 0.5, 1.0, 2.0], 4, low=0.0, high=1.0) == "▁▅██"
    assert sparkline([0.3, 0.3], 2, low=0.0, high=1.0) == "▃▃"


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda parts: sum(parts) > 0.01),
    st.integers(0, 90),
)
def test_a_stacked_bar_fills_its_width_and_each_part_is_off_by_less_than_a_cell(parts, width):
    shares = [part / sum(parts) for part in parts]
    row = stacked_bar([(str(i), share) for i, share in enumerate(shares)], width)
    assert sum(len(text) for text, _ in row) == width
    for (text, _), share in zip(row, shares, strict=True):
        assert abs(len(text) - share * width) < 1 + 1e-9


@given(
    matrix=arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(0, 12)), elements=anything),
    width=st.integers(0, 60),
    height=st.integers(0, 14),
    ascii_only=st.booleans(),
    numbers=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_tables_keep_to_their_size(matrix, width, height, ascii_only, numbers):
    labels, columns = [f"row {i}" for i in range(len(matrix))], [str(i) for i in range(matrix.shape[1])]
    rows = draw_table(
        labels, columns, matrix, width=width, height=height, numbers=numbers, ascii_only=ascii_only
    )
    assert len(rows) <= height
    for row in rows:
        text = "".join(part for part, _ in row)
        assert cell_len(text) == width
        assert not ascii_only or text.isascii()


def test_a_table_shows_its_numbers_and_the_brightest_where_they_are_greatest():
    rows = draw_table(["cat", "dog"], ["cat", "dog"], [[8, 1], [2, np.nan]], width=20, height=3)
    assert ["".join(text for text, _ in row).split() for row in rows] == [
        ["cat", "dog"],
        ["cat", "8", "1"],
        ["dog", "2"],
    ]
    style = {text.strip(): style for row in rows[1:] for text, style in row if text.strip().isdigit()}
    assert style["8"].endswith("#fae625") and style["1"].endswith("#2b0b3f")


BIT_ROWS = (0x01 | 0x08, 0x02 | 0x10, 0x04 | 0x20, 0x40 | 0x80)


def dots(rows, margin: int) -> set[tuple[int, int]]:
    """Dots (x, y) of the braille part of a chart."""
    found = set()
    for y, row in enumerate(rows):
        for x, sign in enumerate("".join(text for text, _ in row)[margin:]):
            bits = ord(sign) - 0x2800 if "\u2800" < sign <= "\u28ff" else 0
            for dot_y, mask in enumerate(BIT_ROWS):
                for dot_x, side in enumerate((0x47, 0xB8)):
                    if bits & mask & side:
                        found.add((2 * x + dot_x, 4 * y + dot_y))
    return found


@settings(deadline=None, max_examples=80)
@given(arrays(np.float32, st.integers(2, 900), elements=st.floats(-1000, 1000, width=16)))
def test_first_last_least_and_greatest_value_are_dots_on_the_canvas(values):
    rows = draw_curves(
        [Curve("loss", "cyan", column_of(values))],
        width=47,
        height=13,
        start=0,
        stop=len(values),
        clip_outliers=False,
    )
    plot = rows[1:-2]
    margin = max("".join(t for t, _ in row).find(c) for row in plot for c in "│┤") + 1
    drawn = dots(plot, margin)
    last_x, last_y = 2 * (47 - margin) - 1, 4 * len(plot) - 1
    low, high = float(values.min()), float(values.max())
    if high == low:
        assert drawn
        return

    def place(step: int) -> tuple[int, int]:
        if len(values) > last_x:
            x = np.searchsorted(np.arange(last_x + 2) * len(values) // (last_x + 1), step, side="right") - 1
        else:
            x = np.rint(step * (last_x / (len(values) - 1)))
        return int(x), int(np.rint((1 - (float(values[step]) - low) / (high - low)) * last_y))

    for step in (0, len(values) - 1, int(values.argmin()), int(values.argmax())):
        assert place(step) in drawn


def test_a_falling_loss_reads_from_top_left_to_bottom_right():
    steps = np.arange(12_000)
    loss = 2.3 * np.exp(-steps / 3000) + 0.2
    validation = points_of((s, float(loss[s]) + 0.4) for s in (2999, 5999, 8999, 11_999))
    rows = draw_curves(
        [Curve("loss", "cyan", column_of(loss)), Curve("val_loss", "yellow", None, validation)],
        width=60,
        height=12,
        start=0,
        stop=12_000,
        epochs=[0, 3000, 6000, 9000],
    )
    assert text_of(rows) == FALLING_LOSS.strip("\n")


FALLING_LOSS = """
━━ loss 0.2421  ━● val_loss 0.6421
      │⢳⡀           ┊            ┊            ┊
      │ ⠙⢦⡀         ┊            ┊            ┊
     2┤   ⠙⢦⡀       ┊            ┊            ┊
      │     ⠙⢦⣀     ┊            ┊            ┊
      │       ⠈⠳⢤⡀  ●⠒⠤⠤⣀⡀       ┊            ┊
     1┤          ⠉⠓⠦⣄⡀   ⠈⠉⠒⠢⠤⣀⡀ ┊            ┊
      │             ┊⠉⠓⠲⠤⣄⣀    ⠈⠉●⠒⠒⠒⠢⠤⠤⠤⢄⣀⣀⣀⣀┊
      │             ┊     ⠈⠉⠓⠒⠦⠤⢤⣀⣀⡀          ●⠉⠉⠉⠉⠉⠉⠉⠉⠉⠒⠒⠒●
      │             ┊            ┊ ⠉⠉⠉⠉⠓⠒⠒⠒⠒⠦⠤⠤⠤⠤⠤⠤⠤⣄⣀⣀⣀⣀⣀⣀⣀
      └┬──────────┬──────────┬──────────┬─────────┬─────────
       0        2.5k        5k        7.5k       10k
"""


def test_ascii_shows_the_same_without_a_single_other_sign():
    loss = np.geomspace(10, 0.01, 300)
    loss[150:160] = np.nan
    rows = draw_curves(
        [Curve("loss", "cyan", column_of(loss))],
        width=44,
        height=12,
        start=0,
        stop=300,
        log=True,
        ascii_only=True,
        marks=[Mark(100, "◆", "magenta")],
    )
    assert text_of(rows) == ASCII_LOG_LOSS.strip("\n")


ASCII_LOG_LOSS = """
-- loss 0.01                             log
   10+|-|.        v      xx
     |   ''||..   !
     |        '|-|.
    1+            ''-|.
     |            !   ''| ..
  0.1+            !        '|-|.
     |            !            ''-|.
     |            !                 '||..
 0.01+            !                     '|-|
     ++-----------+------------+------------
      0          100          200
"""


def test_a_heatmap_reads_as_one_line_per_layer():
    steps = np.arange(0, 1000, 10)
    matrix = 10.0 ** -np.array([1, 3, 5, 7]) * (1 + steps[:, None] / 1000)
    matrix[50:55, 1] = np.inf
    matrix[:, 2] = np.nan
    rows = draw_heatmap(
        ["conv_1/kernel", "a_rather_long_layer_name/kernel", "frozen", "dense/kernel"],
        matrix,
        steps,
        width=60,
        height=7,
        start=0,
        stop=1000,
        ascii_only=True,
    )
    assert text_of(rows) == HEATMAP.strip("\n")


HEATMAP = """
1e-7 ..::--==++**##%%@@ 1  log  ! not finite
conv_1/kernel       %%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%
a_rather_~me/kernel ********************!!******************
frozen
dense/kernel        ........................................
                    0        250       500      750
"""


def test_a_histogram_of_named_classes_lies_down_and_one_of_numbers_stands_up():
    classes = draw_histogram(
        [("predicted", "cyan", [10, 40, 3]), ("true", "green", [12, 30, 10])],
        ["airplane", "automobile", "bird"],
        width=40,
        height=7,
    )
    assert text_of(classes) == CLASSES.strip("\n")
    confidence = draw_histogram(
        [("confidence", "green", [1, 0, 2, 5, 9, 20, 40, 80])], np.linspace(0, 1, 9), width=40, height=7
    )
    assert text_of(confidence) == CONFIDENCE.strip("\n")


CLASSES = """
█ predicted n=53  ▒ true n=52
airplane   ██████▌ 10
           ▒▒▒▒▒▒▒▊ 12
automobile ██████████████████████████ 40
           ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▌ 30
bird       ██ 3
           ▒▒▒▒▒▒▌ 10
"""
CONFIDENCE = """
█ confidence n=157
                                   █████
                                   █████
                              ▄▄▄▄▄█████
                         ▂▂▂▂▂██████████
▁▁▁▁▁     ▁▁▁▁▁▂▂▂▂▂▄▄▄▄▄███████████████
0.00    0.25      0.50      0.75    1.00
"""


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_groups_of_a_histogram_can_be_told_apart_without_colour(named, ascii_only):
    edges = ["a", "b"] if named else np.linspace(0, 1, 3)
    groups = [("true", "green", [8, 4]), ("predicted", "green", [8, 2])]
    rows = draw_histogram(groups, edges, width=40, height=7, ascii_only=ascii_only)
    fills = "#o" if ascii_only else "█▒"
    swatches, *bars = text_of(rows).splitlines()
    for fill in fills:
        assert fill in swatches and any(fill in bar for bar in bars)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.45, 20_000, {"0.5", "1", "100", "10000"}),
        (0.005, float(np.float32(0.01)), {"0.005", "0.01"}),
        (1e-4, float(np.float32(0.01)), {"1e-4", "0.01"}),
        (0.05, 2.5, {"0.05", "0.1", "1", "2"}),
        (0.69, 0.71, {"0.69", "0.70", "0.71"}),
    ],
)
def test_a_log_axis_is_labelled_near_both_ends(low, high, labels):
    scale = axis(math.log10(low), math.log10(high), log=True)
    for count in (2, 3):
        assert labels <= {tick.label for tick in scale.ticks(count)}


def test_the_colours_of_a_heatmap_are_not_left_to_an_outlier():
    rng = np.random.default_rng(0)
    matrix = rng.uniform(1e-3, 1e-2, (300, 3))
    matrix[7, 1] = 1e9
    rows = draw_heatmap(
        ["a", "b", "c"], matrix, np.arange(300), width=120, height=6, start=0, stop=300, ascii_only=True
    )
    assert text_of(rows[:1]).startswith("0.001 ")
    assert " >0.01 " in text_of(rows[:1])
    assert len(set(text_of(rows[1:4]))) > 6


def test_epochs_too_short_for_a_line_each_have_none():
    column = column_of(np.ones(1_000))
    about = {"width": 107, "height": 12, "start": 0, "stop": 1_000}
    few = draw_curves([Curve("x", "cyan", column)], epochs=list(range(0, 1_000, 100)), **about)
    many = draw_curves([Curve("x", "cyan", column)], epochs=list(range(0, 1_000, 10)), **about)
    assert "┊" in text_of(few) and "┊" not in text_of(many)


def test_nothing_yet_says_so():
    assert "waiting for steps…" in text_of(draw_curves([], width=40, height=9, start=0, stop=0))
    ascii_rows = draw_curves([], width=40, height=9, start=0, stop=0, ascii_only=True)
    assert "waiting for steps..." in text_of(ascii_rows)
    assert "nothing counted yet" in text_of(draw_histogram([], [], width=40, height=5))
    empty = draw_heatmap([], np.zeros((0, 0)), [], width=40, height=5, start=0, stop=0)
    assert "waiting for samples" in text_of(empty)


def test_only_nan_says_that_and_marks_every_column():
    column = column_of(np.full(500, np.nan))
    rows = draw_curves([Curve("loss", "cyan", column)], width=40, height=9, start=0, stop=500)
    assert "no finite values here" in text_of(rows)
    assert text_of(rows).count("✗") == 40 - 6


def test_a_log_axis_without_a_value_above_zero_says_so():
    column = column_of(-np.ones(50))
    rows = draw_curves([Curve("x", "cyan", column)], width=60, height=9, start=0, stop=50, log=True)
    assert "nothing finite above zero here" in text_of(rows)


def test_one_nan_among_a_million_steps_is_marked():
    values = np.ones(1_000_000)
    values[654_321] = np.nan
    rows = draw_curves([Curve("loss", "cyan", column_of(values))], width=80, height=9, start=0, stop=10**6)
    top = "".join(text for text, _ in rows[1])
    assert top.count("✗") == 1
    assert top.index("✗") - 7 == pytest.approx(0.654321 * 73, abs=1)


def test_steps_that_never_arrived_are_a_gap_and_not_a_nan():
    column = column_of(np.ones(100))
    column.extend(400, np.ones(100, np.float32))
    rows = draw_curves([Curve("loss", "cyan", column)], width=47, height=9, start=0, stop=500)
    assert "✗" not in text_of(rows)
    line = next("".join(t for t, _ in row) for row in rows[1:] if any("cyan" in s for _, s in row))
    assert line[7 + 15] == " "


def test_a_spike_that_squeezes_the_rest_is_clipped_and_the_legend_says_so():
    values = np.random.default_rng(0).normal(1, 0.1, 5000)
    values[2500] = 1e6
    curve = Curve("loss", "cyan", column_of(values))
    clipped = draw_curves([curve], width=60, height=12, start=0, stop=5000)
    whole = draw_curves([curve], width=60, height=12, start=0, stop=5000, clip_outliers=False)
    assert "↑clipped" in text_of(clipped)
    assert "1000000" not in text_of(clipped)
    assert "clipped" not in text_of(whole)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_clipping_hides_at_most_two_percent(seed, spikes):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, 2000).astype(np.float32)
    values[rng.choice(2000, spikes, replace=False)] = 1e5
    rows = draw_curves([Curve("x", "cyan", column_of(values))], width=107, height=23, start=0, stop=2000)
    if "clipped" in text_of(rows):
        at_the_top = {x for x, y in dots(rows[1:-2], 7) if y == 0}
        assert len(at_the_top) <= 0.02 * 200 + 2


def test_the_cursor_shows_the_values_at_its_step():
    column, points = column_of(np.arange(100) * 0.5), points_of([(40, 7.25), (80, 8.5)])
    curves = [Curve("loss", "cyan", column), Curve("val_loss", "yellow", None, points)]
    rows = draw_curves(curves, width=80, height=12, start=0, stop=100, cursor=60)
    assert text_of(rows[:1]).split() == ["step", "60", "━━", "loss", "30", "━●", "val_loss", "7.25"]


def test_styles_are_passed_through_and_bands_lie_under_curves():
    rows = draw_curves(
        [Curve("loss", "loss.train", column_of(np.ones(100)))],
        width=40,
        height=9,
        start=0,
        stop=100,
        bands=[(50, 100, "on plateau")],
    )
    assert {"loss.train", "loss.train on plateau", "on plateau"} <= {s.style for row in rows for s in row}


def test_smoothing_draws_the_mean_over_its_faint_range():
    values = np.random.default_rng(1).normal(0, 1, 4000)
    curve = Curve("loss", "cyan", column_of(values))
    drawn = {
        s.style
        for row in draw_curves([curve], width=60, height=12, start=0, stop=4000, smoothing=200)
        for s in row
    }
    assert {"cyan", "cyan dim"} <= drawn
    rows = draw_curves([curve._replace(raw=False)], width=60, height=12, start=0, stop=4000, smoothing=200)
    assert "cyan dim" not in {s.style for row in rows for s in row}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6931471, "0.6931"),
        (12.5, "12.5"),
        (0.0, "0"),
        (0.001, "0.001"),
        (1.5e-7, "1.5e-7"),
        (99_999.6, "100000"),
        (1_234_567, "1.235e+6"),
        (-0.05, "-0.05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_written_short(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("step", "text"),
    [(0, "0"), (950, "950"), (1500, "1.5k"), (12_345, "12.3k"), (999_999, "1M"), (1_250_000, "1.25M")],
)
def test_steps_are_written_short(step, text):
    assert format_step(step) == text


@given(st.floats(-1e300, 1e300), st.integers(2, 9))
def test_a_written_number_is_the_number_to_its_digits(value, digits):
    assert float(format_number(value, digits)) == pytest.approx(value, rel=10.0 ** (1 - digits), abs=5e-324)
