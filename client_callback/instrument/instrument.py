"""Puts the probe into a model's train function, keeps training alive if that fails, and takes it out again.

`run.Run` owns one of these for a model it watches. The train function is Keras' own, made anew while the hooks are
on; a thin guard around it tells an error of the instrument from one of the model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import keras

from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.probe import Drained, Probe
from client_callback.wire.protocol import Instrumented

OPERATION_OF_OURS = re.compile(r"\bunstuck(_\d+)?/")
"""An error at run time names the operation it happened in; ours are in a name scope of that name."""


class Instrument:
    """The measuring side of one model's training.

    Args:
        model: compiled.
        every: steps between two sampled ones; 0 samples none.
        on_problem: told what is lost when something cannot be measured.
        on_error: told what the train function is about to raise.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        every: int,
        on_problem: Callable[[str], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._model = model
        self._every = every
        self._on_problem = on_problem
        self._on_error = on_error
        self._probe: Probe | None = None
        self._before = 0
        self._hooks = InstanceHooks()
        self._original: Any = None
        self._rebuilt = False
        self._fresh = False
        self._last_logs: Any = {}

    def install(self) -> None:
        """Hooks the model and makes its train function anew, to be traced with the probe at the next batch."""
        self._original = vars(self._model).get("train_function")
        self._attach()
        self._make_train_function()

    def remove(self) -> None:
        """Leaves the model as it was, apart from what training and commands changed."""
        self._detach()
        # A train function made before an optimizer switch would go on training with the old optimizer.
        self._model.train_function = None if self._rebuilt else self._original

    def rebuild(self, change: Callable[[], None]) -> None:
        """Takes the instrument off, runs `change` (which may swap the optimizer), and puts it on again.

        Drain first: what the probe still holds is dropped. If `change` raises, the instrument is put on again all
        the same and the error goes on to the caller.
        """
        was_measuring = self.measuring
        self._detach()
        self._rebuilt = True
        try:
            change()
        finally:
            if was_measuring:
                self._attach()
            self._make_train_function()

    @property
    def measuring(self) -> bool:
        """Whether values come from inside the step. If not, only what Keras logs can be recorded."""
        return self._probe is not None

    @property
    def steps(self) -> int:
        """Steps drained since `install`."""
        return self._before + (0 if self._probe is None else self._probe.steps)

    def take_layout(self, *, step: int, time: float) -> Instrumented | None:
        """What is measured since the last trace; `None` when nothing was traced since the last call."""
        if self._probe is None or not self._probe.traced:
            return None
        return self._probe.take_layout(step=step, time=time)

    @property
    def series_names(self) -> list[str]:
        """Columns of `Drained.rows`."""
        return [] if self._probe is None else self._probe.series_names

    @property
    def drain_within(self) -> int:
        """Steps after which values would be overwritten."""
        if self._probe is None:
            return sys.maxsize
        return min(self._probe.capacity, self._probe.slots * max(self._every, 1))

    def drain(self) -> Drained | None:
        """Takes what accumulated, with steps counted since `install`. `None` when there is nothing."""
        if self._probe is None:
            return None
        drained = self._probe.drain()
        if not len(drained.rows):
            return None
        return drained._replace(
            first=drained.first + self._before, sample_steps=drained.sample_steps + self._before
        )

    def _attach(self) -> None:
        replicas = getattr(self._model.distribute_strategy, "num_replicas_in_sync", 1)
        try:
            if replicas > 1:
                raise NotImplementedError(f"the model runs on {replicas} replicas")
            self._probe = Probe(self._model, every=self._every, on_problem=self._on_problem)
            self._probe.install()
        except Exception as error:  # noqa: BLE001 (measuring must never stop a training)
            self._give_up(error)

    def _detach(self) -> None:
        self._hooks.remove()
        if self._probe is not None:
            self._probe.remove()
            self._before += self._probe.steps
            self._probe = None

    def _give_up(self, error: Exception) -> None:
        self._detach()
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        self._on_problem(
            f"values from inside the train step are not recorded, only what Keras logs: {reason[0]}"
        )

    def _make_train_function(self) -> None:
        self._model.make_train_function(force=True)
        self._hooks.wrap(self._model, "train_function", self._guarded)
        self._fresh = True

    def _guarded(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded_train_function(iterator: Any) -> Any:
            try:
                self._last_logs = self._call(train_function, iterator)
            except BaseException as error:
                if not _ends_epoch(error):
                    self._on_error(error)
                raise
            return self._last_logs

        return guarded_train_function

    def _call(self, train_function: Callable[..., Any], iterator: Any) -> Any:
        try:
            logs = train_function(iterator)
        except Exception as error:
            if not self.measuring or _ends_epoch(error):
                raise
            if self._fresh:
                return self._train_without(iterator, error)
            if not OPERATION_OF_OURS.search(str(error)):
                raise
            self._fall_back(error)  # this batch is lost; Keras counts it as trained
            return self._last_logs
        self._fresh = False
        if self._probe is not None and self._probe.failure is not None:
            self._fall_back(self._probe.failure)
        return logs

    def _train_without(self, iterator: Any, error: Exception) -> Any:
        """The first call failed: trains on without the probe. Is the model at fault, its error comes again."""
        self._fall_back(error)
        try:
            return self._model.train_function(iterator)
        except BaseException as second:
            if _ends_epoch(second):
                raise error from None
            raise

    def _fall_back(self, error: Exception) -> None:
        self._give_up(error)
        self._make_train_function()


def _ends_epoch(error: BaseException) -> bool:
    """How an iterator says that it has no more batches."""
    return isinstance(error, StopIteration) or type(error).__name__ == "OutOfRangeError"
