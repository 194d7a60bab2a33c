"""What the inputs and labels of a batch look like, and whether they are the same again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from client_callback.instrument.statistics.tensors import (
    Tensor,
    bit_patterns,
    coprime_stride,
    example_size,
    first_examples,
    is_float,
    limits,
    moments,
)

FEATURE_COLUMNS = ("mean", "std", "min", "max", "non_finite")
MAX_FEATURES = 1_024
"""Rows of the table of features; with more features, each row is of several neighbours."""
FINGERPRINT_LABELS = ("fingerprint_0", "fingerprint_1", "same_as_first")
MAX_HASHED = 131_072
"""Entries of each input or label that go into the fingerprint."""
MAX_HASHED_PER_EXAMPLE = 1_024

_GOLDEN = 0x9E3779B1
"""2³² / golden ratio: an array of zeros still changes what comes before it."""


def input_statistics(values: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum of the finite entries, and the count of the others.

    Returns:
        float32[5]. Standard deviation with divisor n. Without any finite entry the first four are NaN.
    """
    flat = ops.reshape(values, (-1,))
    of_all = moments(flat)
    low, high = limits(flat)
    spread = ops.sqrt(of_all.squares / of_all.number)
    return ops.stack([of_all.total / of_all.number, spread, low, high, of_all.skipped])


def feature_statistics(values: Tensor) -> Tensor:
    """The same five numbers for each feature, over the batch.

    More than MAX_FEATURES features are taken together in equal groups of neighbours, as `feature_labels` names them;
    a group's numbers are those of all its entries.

    Args:
        values: [N, …], numbers of any kind; of the leading examples up to MAX_INPUT_ELEMENTS entries are looked at.

    Returns:
        float32[number of labels, 5] as FEATURE_COLUMNS. Where no entry is finite, the first four are NaN.

    Raises:
        ValueError: the shape does not tell how many features there are.
    """
    features = example_size(values)
    if features is None:
        raise ValueError(
            f"the number of features is not known in advance: the shape is {tuple(values.shape)}"
        )
    rows = ops.reshape(first_examples(values), (-1, features))
    of = moments(rows)
    low, high = limits(rows)
    width = _group_width(features)
    if width == 1:
        number, total, squares, skipped = of
        mean = total / number
    else:
        number, total, skipped = (
            _grouped(part, width, 0.0, ops.sum) for part in (of.number, of.total, of.skipped)
        )
        mean = total / number
        some = of.number > 0
        # Each feature's spread about its own mean, moved to the group's mean (Chan et al. 1979).
        apart = ops.where(some, of.total / of.number - ops.repeat(mean, width)[:features], 0.0)
        moved = ops.where(some, of.squares, 0.0) + of.number * ops.square(apart)
        squares = _grouped(moved, width, 0.0, ops.sum)
        low = _grouped(ops.where(some, low, float("inf")), width, float("inf"), ops.min)
        high = _grouped(ops.where(some, high, float("-inf")), width, float("-inf"), ops.max)
        low, high = (ops.where(number > 0, end, float("nan")) for end in (low, high))
    return ops.stack([mean, ops.sqrt(squares / number), low, high, skipped], axis=-1)


def feature_labels(features: int) -> tuple[str, ...]:
    """Names of the rows of `feature_statistics`: "0", "1", …, or "0–3", "4–7", … where neighbours are grouped."""
    width = _group_width(features)
    ends = [(first, min(first + width, features) - 1) for first in range(0, features, width)]
    return tuple(str(first) if first == last else f"{first}–{last}" for first, last in ends)


def batch_fingerprint(inputs: Sequence[Tensor], targets: Sequence[Tensor] = ()) -> Tensor:
    """Two numbers that are equal for equal batches and practically never for others, and how uniform the batch is.

    Each example x of words x₁ … x_F (float32 bits, or integers modulo 2³²) is hashed to Σ mₖ·(xₖ ⊕ ⌊xₖ / 2¹⁶⌋)
    modulo 2³² with fixed pseudo-random odd mₖ, the multilinear hashing of Lemire and Kaser 2014 (arXiv 1202.4961);
    the arrays of an example are joined by MurmurHash3's finalizer. Two further multilinear hashes, of the examples'
    hashes in their order, give the two numbers: their upper 24 bits, which float32 holds exactly. Two different
    batches agree in both with a probability of about 2⁻³². The same on every backend.

    Of each array, the leading examples are looked at and in each example every so many entries, MAX_HASHED entries
    together.

    Args:
        inputs: at least one; [N, …] each, floats, integers or booleans.
        targets: likewise, or none.

    Returns:
        float32[3] as FINGERPRINT_LABELS: two whole numbers below 2²⁴; the share of examples whose inputs equal the
        first example's, itself included: 1 for a constant batch, 1 / N where all differ.
    """
    examples = min(MAX_HASHED // max(1, _hashed_entries(values)) for values in [*inputs, *targets])
    of_inputs = _example_hashes(inputs, examples, None)
    same = ops.cast(ops.equal(of_inputs, of_inputs[:1]), "float32")
    rows = _example_hashes(targets, examples, of_inputs)
    number = ops.shape(rows)[0]
    hashes = [ops.sum(rows * _first_words(examples, seed, rows, axis=0)) for seed in (1, 2)]
    upper = [ops.cast(ops.right_shift(_mixed(_low(value)), 8), "float32") for value in hashes]
    return ops.stack([*upper, ops.sum(same) / ops.maximum(ops.cast(number, "float32"), 1.0)])


def _example_hashes(arrays: Sequence[Tensor], examples: int, before: Tensor | None) -> Tensor:
    """32 bits for each of the leading examples, [n]: of `before`, then of each array in turn."""
    for values in arrays:
        words = _hashed_words(values, examples)
        spread = ops.bitwise_xor(words, ops.right_shift(words, 16))
        of_array = _low(ops.sum(spread * _first_words(_hashed_entries(values), 0, spread, axis=1), axis=1))
        before = _mixed(of_array if before is None else _low(before + of_array + _words(_GOLDEN)))
    return before


def _hashed_entries(values: Tensor) -> int:
    """How many entries of each example are hashed (where the shape does not tell, at most)."""
    size = example_size(values)
    if size is None:
        return MAX_HASHED_PER_EXAMPLE
    return -(-size // coprime_stride(size, MAX_HASHED_PER_EXAMPLE))


def _hashed_words(values: Tensor, examples: int) -> Tensor:
    """[n, entries], each a 32-bit word: uint32 on JAX, which has no int64; int64 on others, which count in it."""
    size = example_size(values)
    if size is None:
        part = ops.reshape(values, (ops.shape(values)[0], -1))[:examples, :MAX_HASHED_PER_EXAMPLE]
    else:
        stride = coprime_stride(size, MAX_HASHED_PER_EXAMPLE)
        part = ops.reshape(values, (-1, size))[:examples, ::stride]
    bits = bit_patterns(ops.cast(part, "float32")) if is_float(part) else ops.cast(part, "int32")
    return _low(ops.cast(bits, _word_type()))


def _mixed(words: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finalizer (Appleby 2011): each bit of the input changes half of the output's."""
    words = ops.bitwise_xor(words, ops.right_shift(words, 16))
    words = _low(words * _words(0x85EBCA6B))
    words = ops.bitwise_xor(words, ops.right_shift(words, 13))
    words = _low(words * _words(0xC2B2AE35))
    return ops.bitwise_xor(words, ops.right_shift(words, 16))


def _multipliers(number: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Fixed odd 32-bit numbers: the finalizer of 1, 2, 3, … from a place that depends on `seed`."""
    words = np.arange(1, number + 1, dtype=np.uint32) + np.uint32(seed << 24)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return (words ^ (words >> np.uint32(16))) | np.uint32(1)


def _first_words(most: int, seed: int, like: Tensor, axis: int) -> Tensor:
    """As many multipliers as `like` is long along an axis, at most `most`."""
    length = ops.shape(like)[axis]
    if isinstance(length, int):
        return _words(_multipliers(length, seed))
    return _words(_multipliers(most, seed))[:length]


def _words(numbers: int | np.ndarray[tuple[int], np.dtype[np.uint32]]) -> Tensor:
    return ops.convert_to_tensor(np.asarray(numbers).astype(_word_type()))


def _low(words: Tensor) -> Tensor:
    """Modulo 2³²."""
    if _word_type() == "uint32":
        return ops.cast(words, "uint32")
    return ops.bitwise_and(words, _words(0xFFFF_FFFF))


def _word_type() -> str:
    return "uint32" if keras.backend.backend() == "jax" else "int64"


def _group_width(features: int) -> int:
    return max(1, -(-features // MAX_FEATURES))


def _grouped(values: Tensor, width: int, filler: float, reduce: Callable[..., Tensor]) -> Tensor:
    """`reduce` over each `width` neighbours of a vector, the last ones filled up."""
    missing = -values.shape[0] % width
    padded = ops.pad(values, ((0, missing),), constant_values=filler)
    return reduce(ops.reshape(padded, (-1, width)), axis=1)
