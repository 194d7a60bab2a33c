"""Batches of a `fit` that are taken from its iterator before their time, and trained on when it comes.

A trial needs the batches that come next, several times over. `BatchesAhead` pulls them from the very iterator that
`fit` reads, keeps them, and hands them on in their order: to the train function where `fit` gives it the iterator
(TensorFlow, JAX), or to `fit`'s own loop where that asks the iterator first (torch). So training sees every batch
once and in its order, and the end of an epoch where it would have been. `run.Run` owns one of these; the
instrument's guard asks it what the train function is to be given.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

_DEEPEST_FRAME = 60
"""Calls between the hook of a callback and `fit`, at most."""


class NotInFitError(LookupError):
    """Nobody runs a `fit` of this model whose batches could be reached. The text says why."""


@dataclass(frozen=True)
class Pulled:
    """Batches that training comes to next, in their order. They are held until then, whoever looks at them."""

    batches: Sequence[Any]
    nbytes: int
    """Of these batches."""
    left: int | None
    """Batches that the epoch still has, these included. `None`: not known."""
    short: str
    """Why they are fewer than were asked for; empty when they are not."""
    alone: Callable[[Any], Any]
    """One of them → what a train function of this model takes to train on it and on no other."""


@dataclass(frozen=True)
class _Position:
    """Where a `fit` is, in its hook before a batch."""

    epoch_iterator: Any
    first: int
    """Of the steps of the call that comes next, counted within the epoch."""
    given: Any
    """What the train function is about to be given: an iterator, or on torch a list with the batch itself."""


class BatchesAhead:
    """The batches taken ahead from the `fit` of one model. Only used by the training's own thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._waiting: deque[Any] = deque()
        self._source: Any = None
        """The iterator that `waiting` came from."""
        self._error: BaseException | None = None
        """What the iterator raised after `waiting`, other than its end; it goes to training when that gets there."""
        self._per_call = int(getattr(model, "steps_per_execution", None) or 1)
        self._fetched_by_loop = keras.backend.backend() == "torch"
        self._iterator_over: Callable[[Sequence[Any]], Any] = iter

    def pull(self, count: int, most_bytes: int) -> Pulled:
        """The next `count` batches; fewer where the epoch has fewer left, or more would take more than `most_bytes`.

        To be called from a callback's hook before a batch.

        Raises:
            NotInFitError: there is no `fit` on the call stack that these could be taken from.
        """
        position = _position(self._model)
        if self._fetched_by_loop:
            present = list(position.given)
            self._serve(position.epoch_iterator)
        else:
            present = []
            self._read_from(position.given)
        left = self._left(position)
        ended, full = self._pull_until(count if left is None else min(count, left), present, most_bytes)
        if not self._fetched_by_loop and self._waiting:
            self._iterator_over = _iterator_maker(self._source, self._waiting[0])
        batches = [*present, *self._waiting][:count]
        short = ""
        if len(batches) < count:
            short = "there is no memory for more" if full else "the epoch has no more"
            short = "the data ends there" if ended and left is not None else short
        return Pulled(batches, sum(map(nbytes, batches)), left, short, self._alone)

    def feed(self, given: Any) -> Any:
        """What the train function is to be given instead of `given`, which is what `fit` gives it."""
        if given is not self._source or self._source is None:
            return given
        if not self._waiting:
            self._raise_error()
            self._source = None
            return given
        count = min(self._per_call, len(self._waiting))
        return self._iterator_over([self._waiting.popleft() for _ in range(count)])

    def feed_alone(self) -> None:
        """The instrument and its guard are gone while `fit` goes on: training is given what waits all the same."""
        if self._fetched_by_loop or not (self._waiting or self._error):
            return
        attributes = vars(self._model)
        train_function = attributes["train_function"]

        def fed(*args: Any) -> Any:
            given = self.feed(args[-1])
            if given is args[-1] and attributes.get("train_function") is fed:
                attributes["train_function"] = train_function
            return train_function(*args[:-1], given)

        attributes["train_function"] = fed

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch for a loop that asks the iterator itself."""
        if self._waiting:
            return self._waiting.popleft()
        self._raise_error()
        return next(self._source)

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _pull_until(self, wanted: int, present: Sequence[Any], most_bytes: int) -> tuple[bool, bool]:
        """Whether the data ended before, and whether the memory was full before."""
        held = sum(map(nbytes, [*present, *self._waiting]))
        while len(present) + len(self._waiting) < wanted or len(self._waiting) % self._per_call:
            # A call of the train function takes as many as it always does, so those begun are completed.
            if held >= most_bytes and not len(self._waiting) % self._per_call:
                return False, True
            if not self._pull_one():
                return True, False
            held += nbytes(self._waiting[-1])
        return False, False

    def _read_from(self, source: Any) -> None:
        if source is not self._source:
            self._waiting.clear()  # of an epoch that is over
            self._source, self._error = source, None

    def _pull_one(self) -> bool:
        """Whether there was another batch."""
        if self._error is not None:
            return False
        try:
            self._waiting.append(next(self._source))
        except StopIteration:
            return False
        except Exception as error:  # noqa: BLE001 (the user's own data: training meets it where it lies)
            self._error = error
            return False
        return True

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _left(self, position: _Position) -> int | None:
        """Batches that the epoch still takes from the iterator, in whole calls. `None`: until that ends."""
        total: int | None = position.epoch_iterator.num_batches
        if total is None:
            return None
        return -(-(total - position.first) // self._per_call) * self._per_call

    def _alone(self, batch: Any) -> Any:
        if self._fetched_by_loop:
            return [batch]
        return self._iterator_over([batch]) if self._per_call == 1 else iter([batch])

    def _serve(self, epoch_iterator: Any) -> None:
        """Has `fit`'s loop ask here for the rest of this epoch's batches."""
        steps = epoch_iterator._epoch_iterator
        local = steps.gi_frame.f_locals
        if local.get("ahead") is self:
            return
        # The generator keeps its iterator to itself where it does not know how many batches there are.
        self._read_from(local.get("iterator", epoch_iterator._current_iterator))
        epoch_iterator._epoch_iterator = _served(steps, self)


def _served(steps: Iterator[tuple[int, int, Any]], ahead: BatchesAhead) -> Iterator[tuple[int, int, Any]]:
    for first, last, _ in steps:
        yield first, last, ahead


def _position(model: Any) -> _Position:
    """Found on the call stack: Keras gives a callback no other way to the data of its `fit`."""
    frame = sys._getframe(1)
    for _ in range(_DEEPEST_FRAME):
        local = frame.f_locals
        if local.get("self") is model and isinstance(local.get("epoch_iterator"), EpochIterator):
            name = "data" if keras.backend.backend() == "torch" else "iterator"
            if name in local and "begin_step" in local:
                return _Position(local["epoch_iterator"], local["begin_step"], local[name])
        if frame.f_back is None:
            break
        frame = frame.f_back
    raise NotInFitError("its batches can be taken ahead only from Keras' own fit")


def _iterator_maker(source: Any, batch: Any) -> Callable[[Sequence[Any]], Any]:
    """How to make, of some batches, an iterator that the train function takes as it takes `source`.

    On TensorFlow one of the same type, so that the function runs as it was traced: one that is given Python's
    iterators runs another graph of the same step, whose random operations have another state. Batches that a trial
    made of another dtype are a graph of their own in any case.
    """
    if keras.backend.backend() != "tensorflow":
        return iter
    import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

    def like_source(batches: Sequence[Any]) -> Any:
        dataset = tf.data.Dataset.from_tensors(batches[0])
        for one in batches[1:]:
            dataset = dataset.concatenate(tf.data.Dataset.from_tensors(one))
        if _dtypes(dataset.element_spec) != _dtypes(source.element_spec):
            return iter(batches)
        variant = tf.data.experimental.to_variant(dataset)
        return iter(tf.data.experimental.from_variant(variant, structure=source.element_spec))

    if not isinstance(source, tf.data.Iterator):
        return iter  # batches of several replicas
    try:
        next(like_source([batch]))
    except (ValueError, TypeError, NotImplementedError, tf.errors.OpError):
        return iter  # of a type that no dataset takes; Keras' train function runs it just the same
    return like_source


def _dtypes(spec: Any) -> list[Any]:
    return [part.dtype for part in keras.tree.flatten(spec)]


def nbytes(batch: Any) -> int:
    """Memory that a batch takes, as far as its parts tell."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        parts = tf.nest.flatten(batch, expand_composites=True)
        return sum(part.dtype.size * (part.shape.num_elements() or 0) for part in parts if tf.is_tensor(part))
    return sum(int(getattr(part, "nbytes", 0)) for part in keras.tree.flatten(batch))
