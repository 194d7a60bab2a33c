"""Columns, points and rows against plain Python ways of computing the same thing."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitor.series import Column, Points, Rows

finite = st.floats(-1e6, 1e6, width=32)
anything = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
columns = st.integers(0, 700).flatmap(lambda n: arrays(np.float32, n, elements=anything, fill=finite))


def column_of(values: np.ndarray, chunk: int = 10**9) -> Column:
    column = Column()
    for first in range(0, len(values), chunk):
        column.extend(first, values[first : first + chunk])
        column.envelope(0, len(column), 3)  # summarised on the way, as a live chart does
    return column


def counted(values: np.ndarray, log: bool) -> np.ndarray:
    values = values[np.isfinite(values)].astype(np.float64)
    return values[values > 0] if log else values


@settings(deadline=None, max_examples=80)
@given(columns, st.integers(-10, 700), st.integers(-10, 800), st.integers(1, 60), st.booleans())
def test_the_envelope_is_the_least_and_greatest_of_every_bucket(values, start, stop, buckets, log):
    lows, highs = column_of(values, 97).envelope(start, stop, buckets, log=log)
    assert len(lows) == len(highs) == buckets
    span = max(0, stop - start)
    for i in range(buckets):
        first, last = start + i * span // buckets, start + (i + 1) * span // buckets
        part = counted(values[max(0, first) : max(0, last)], log)
        expected = (part.min(), part.max()) if len(part) else (np.nan, np.nan)
        np.testing.assert_array_equal((lows[i], highs[i]), expected)


@settings(deadline=None, max_examples=80)
@given(
    columns, st.integers(0, 500), st.integers(0, 700), st.integers(1, 60), st.integers(0, 300), st.booleans()
)
def test_smoothing_is_the_mean_of_the_window_around_each_step(values, start, stop, points, window, log):
    steps, means = column_of(values, 101).smoothed(start, stop, points, window, log=log)
    assert len(steps) == min(points, max(0, min(stop, len(values)) - start))
    if len(steps) > 1:
        assert steps[0] == start and steps[-1] == min(stop, len(values)) - 1
    width = max(1, window)
    for step, mean in zip(steps.tolist(), means.tolist(), strict=True):
        first = step - width // 2
        part = counted(values[max(0, first) : max(0, first + width)], log)
        if not len(part):
            assert math.isnan(mean)
        else:
            expected = 10 ** np.log10(part).mean() if log else part.mean()
            size = abs(expected) if log else np.abs(part).mean()
            assert abs(mean - expected) <= 1e-9 * size


def test_a_spike_leaves_the_means_after_it_exact():
    values = np.full(100_000, 0.25, np.float32)
    values[1000] = 1e30
    _, means = column_of(values).smoothed(2000, 100_000, 200, 500)
    np.testing.assert_array_equal(means, 0.25)


LONG = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
LONG[::1_009] = math.nan
LONG[5_000:5_100] = math.inf
LONG[123_456] = 1e30


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 20_000), st.integers(1, 130), st.integers(1, 300_000))
def test_means_of_blocks_are_those_of_the_finite_values_in_each(first, count, most):
    column, length = column_of(LONG), max(1, min(most, len(LONG) - first) // count)
    blocks = LONG[first : first + count * length].astype(np.float64).reshape(count, length)
    known = np.isfinite(blocks)
    totals, numbers = np.where(known, blocks, 0.0).sum(axis=1), known.sum(axis=1)
    expected = np.divide(totals, numbers, out=np.full(count, math.nan), where=numbers > 0)
    np.testing.assert_allclose(column.block_means(first, length, count), expected, rtol=1e-9, atol=1e-12)


@st.composite
def frames(draw):
    values = draw(arrays(np.float32, st.integers(1, 200), elements=anything))
    cuts = sorted({0, len(values), *draw(st.lists(st.integers(0, len(values)), max_size=8))})
    pieces = [(a, values[a:b]) for a, b in pairwise(cuts)]
    received = draw(st.lists(st.sampled_from(pieces), max_size=16))
    return received, draw(st.permutations(received))


@settings(deadline=None, max_examples=100)
@given(frames())
def test_frames_in_any_order_and_more_than_once_give_the_same_column(orders):
    one, other = Column(), Column()
    for first, values in orders[0]:
        one.extend(first, values)
    for first, values in orders[1] + orders[0]:
        other.extend(first, values)
        other.envelope(0, len(other), 7)
    assert one == other
    assert one.missing == other.missing
    np.testing.assert_array_equal(one.envelope(0, 200, 13), other.envelope(0, 200, 13))
    np.testing.assert_array_equal(one.non_finite(0, 200), other.non_finite(0, 200))


def test_a_hole_reads_nan_and_is_missing_until_its_steps_arrive():
    column = Column()
    column.extend(0, np.array([1, 2], np.float32))
    column.extend(6, np.array([7, np.nan], np.float32))
    assert column.missing == [(2, 6)]
    assert np.isnan(column.values[2:6]).all()
    assert column.non_finite(0, 8).tolist() == [7]
    column.extend(3, np.array([4, 5], np.float32))
    assert column.missing == [(2, 3), (5, 6)]
    column.extend(0, np.arange(1, 9, dtype=np.float32))
    assert column.missing == []
    np.testing.assert_array_equal(column.values, [1, 2, 3, 4, 5, 6, 7, np.nan])


def test_a_step_that_was_measured_keeps_its_value():
    column = column_of(np.array([1, np.nan, 3], np.float32))
    column.extend(0, np.array([9, 9, 9, 4], np.float32))
    np.testing.assert_array_equal(column.values, [1, np.nan, 3, 4])


@settings(deadline=None, max_examples=50)
@given(columns, st.integers(0, 700), st.integers(0, 700))
def test_non_finite_steps_are_found_in_every_range(values, start, stop):
    expected = [s for s in range(start, min(stop, len(values))) if not np.isfinite(values[s])]
    assert column_of(values, 50).non_finite(start, stop).tolist() == expected


def test_values_cannot_be_written_through_the_view():
    with pytest.raises(ValueError, match="read-only"):
        column_of(np.ones(3, np.float32)).values[0] = 2


def test_a_negative_step_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="starts with step 0"):
        Column().extend(-1, np.ones(2, np.float32))


def test_columns_differ_by_what_is_missing_and_not_by_nan():
    measured = column_of(np.array([1, np.nan, 3], np.float32))
    hole = Column()
    hole.extend(0, np.array([1], np.float32))
    hole.extend(2, np.array([3], np.float32))
    assert measured == column_of(np.array([1, np.nan, 3], np.float32))
    assert measured != hole
    assert measured != "a column"


def test_a_million_values_are_ready_to_draw_at_once():
    values = np.random.default_rng(0).random(1_000_000, np.float32)
    fastest = math.inf
    for _ in range(3):
        began = time.perf_counter()
        column = Column()
        column.extend(0, values)
        column.envelope(0, len(values), 240)
        column.smoothed(0, len(values), 240, 5000)
        fastest = min(fastest, time.perf_counter() - began)
    assert fastest < 0.15  # 13 ms on a quiet machine; the room is for a busy one


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(allow_nan=True))))
def test_points_are_a_sorted_dictionary(pairs):
    points, expected = Points(), {}
    for step, value in pairs:
        points.append(step, value)
        expected[step] = value
    assert len(points) == len(expected)
    assert points.steps.tolist() == sorted(expected)
    np.testing.assert_array_equal(points.values, [expected[step] for step in sorted(expected)])
    again = Points()
    for step in sorted(expected, reverse=True):
        again.append(step, expected[step])
    assert again == points


@given(st.lists(st.lists(st.integers(0, 40), max_size=6), max_size=8), st.randoms())
def test_rows_come_out_the_same_whatever_order_they_come_in(batches, random):
    def batch(steps):
        return steps, np.array([[s, -s, math.nan] for s in steps], np.float32).reshape(-1, 3)

    one, other = Rows(3), Rows(3)
    for steps in batches:
        one.extend(*batch(steps))
    shuffled = batches * 2
    random.shuffle(shuffled)
    for steps in shuffled:
        other.extend(*batch(steps))
    assert one == other
    assert one.steps.tolist() == sorted({s for steps in batches for s in steps})
    np.testing.assert_array_equal(one.matrix[:, 0], one.steps)
    steps, matrix = one.between(10, 20)
    assert steps.tolist() == [s for s in one.steps.tolist() if 10 <= s < 20] == matrix[:, 0].tolist()


def test_rows_of_the_wrong_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2\) came for 1 steps of 3 columns"):
        Rows(3).extend([5], [[1, 2]])
