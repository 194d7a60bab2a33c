"""Puts the probe into a model's train function, keeps training alive if that fails, and takes it out again.

`run.Run` owns one of these for a model it watches. The train function is Keras' own, made anew while the hooks are
on; a thin guard around it tells an error of the instrument from one of the model.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import keras

from client_callback.instrument.clock import CallClock
from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.probe import Drained, Probe
from client_callback.instrument.schedule import Schedule
from client_callback.wire.protocol import Instrumented

_PACKAGE = str(Path(__file__).parent)


class Instrument:
    """The measuring side of one model's training.

    Args:
        model: compiled.
        schedule: which steps are sampled.
        clock: told when the train function is called and when it returns.
        on_problem: told what is lost when something cannot be measured.
        on_error: told what the train function is about to raise.
        on_call: told the logs of each call of the train function, and how many steps it ran. `None`: whoever calls it
            counts for themselves.
        on_forward: called after the forward pass of the first step, before its update, and perhaps again until it
            returns True. `None`: nobody waits for it.
        drain: called before what the probe still holds is dropped.
        lock: held by whoever drains; taken here while another probe is put in place.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        schedule: Schedule,
        clock: CallClock,
        on_problem: Callable[[str], None],
        on_error: Callable[[BaseException], None],
        on_call: Callable[[Any, int], None] | None,
        on_forward: Callable[[], bool] | None,
        drain: Callable[[], None],
        lock: threading.RLock,
    ) -> None:
        self._model = model
        self._schedule = schedule
        self._clock = clock
        self._on_problem = on_problem
        self._on_error = on_error
        self._on_call = on_call
        self._on_forward = on_forward
        self._drain = drain
        self._lock = lock
        self._probe: Probe | None = None
        self.measuring = False
        """Whether values come from inside the step. If not, only what Keras logs can be recorded."""
        self._before = 0
        self._hooks = InstanceHooks()
        self._original: Any = None
        self._rebuilt = False
        self._guard: object = None
        self._make: Callable[..., Any] | None = None
        """The model's own way to make its train function, while ours is in its place."""
        self._last_logs: Any = {}
        self._feed: Callable[[Any], Any] | None = None
        """What the train function is given instead of what `fit` gives it. `None`: just that."""

    def install(self) -> None:
        """Hooks the model and makes its train function anew, to be traced with the probe at the next batch."""
        self._original = vars(self._model).get("train_function")
        self._hooks.wrap(self._model, "make_train_function", self._wrap_make)
        self._attach()
        if self.measuring or self._on_call is not None:
            self._make_train_function()

    def remove(self) -> None:
        """Leaves the model as it was, apart from what training, commands and the user's own code changed.

        What was measured can still be drained.
        """
        ours = self._guard is not None and vars(self._model).get("train_function") is self._guard
        self._unhook()
        if ours and self._rebuilt:
            # One made before an optimizer switch would go on training with the old optimizer.
            self._model.train_function = None
            self._model.make_train_function()
        elif ours:
            self._model.train_function = self._original

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

    def feed_by(self, feed: Callable[[Any], Any]) -> None:
        """From now on the train function is given what `feed` makes of the data that `fit` gives it."""
        self._feed = feed
        if self._guard is None or vars(self._model).get("train_function") is not self._guard:
            self._make_train_function()

    @contextlib.contextmanager
    def unmeasured(self) -> Iterator[Callable[[], Callable[..., Any]]]:
        """Inside, nothing that the model does is measured; yields what makes train functions of it as it is then.

        Each is traced on its own. The one that `fit` calls stays what it is.
        """
        model = self._model
        step = model.train_step if self._probe is None else self._probe.driver.own_train_step()
        hooks = InstanceHooks()
        hooks.wrap(model, "train_step", lambda _: step)
        try:
            yield self._make_unmeasured
        finally:
            hooks.remove()

    def _make_unmeasured(self) -> Callable[..., Any]:
        model = self._model
        present = vars(model).get("train_function")
        hooks = InstanceHooks()
        hooks.wrap(model, "train_step", _another)
        try:
            model.train_function = None
            (self._make or model.make_train_function)()
            made: Callable[..., Any] = model.train_function
        finally:
            hooks.remove()
            vars(model)["train_function"] = present
        return made

    @property
    def steps(self) -> int:
        """Steps measured and drained so far."""
        return self._before + (0 if self._probe is None else self._probe.steps)

    def take_layout(self, *, step: int, time: float) -> Instrumented | None:
        """What is measured, as the event that says so. `None`: nothing else than when last asked."""
        return None if self._probe is None else self._probe.take_layout(step=step, time=time)

    def layout(self, *, step: int, time: float) -> Instrumented | None:
        """What is measured. `None`: nothing is."""
        return None if self._probe is None else self._probe.layout(step=step, time=time)

    def set_interval(self, every: int) -> None:
        """Samples every n-th step from now on, without a new trace."""
        self._schedule.every = every
        if self._probe is not None:
            self._probe.driver.set_interval(every)

    def take_sample_costs(self) -> list[float]:
        """Seconds each sampled step took longer, where that is measured directly; else empty."""
        return [] if self._probe is None else self._probe.driver.take_sample_costs()

    @property
    def sample_bytes(self) -> int:
        """Size of one sample; 0 until one was traced."""
        return 0 if self._probe is None else 4 * self._probe.sampler.width

    @property
    def series_names(self) -> list[str]:
        """Columns of `Drained.rows`."""
        return [] if self._probe is None else self._probe.series_names

    @property
    def drain_within(self) -> int:
        """Steps after which values would be overwritten."""
        if self._probe is None:
            return sys.maxsize
        return self._probe.driver.capacity

    def drain(self) -> Drained | None:
        """Takes what accumulated, with steps counted since `install`. `None` when there is nothing."""
        probe, before = self._probe, self._before
        if probe is None:
            return None
        drained = probe.drain()
        if not len(drained.rows) and not drained.lost:
            return None
        return drained._replace(first=drained.first + before, sample_steps=drained.sample_steps + before)

    def _attach(self) -> None:
        try:
            self._probe = Probe(
                self._model,
                schedule=self._schedule.restarted(),
                clock=self._clock,
                on_problem=self._on_problem,
                on_forward=self._on_forward,
            )
            self.measuring = True
            self._probe.install()
        except Exception as error:  # noqa: BLE001 (measuring must never stop a training)
            self._give_up(error)

    def _unhook(self) -> None:
        self._hooks.remove()
        self._make = None
        if self._probe is not None:
            self._probe.remove()

    def _detach(self) -> None:
        self._unhook()
        self.measuring = False
        if self._probe is not None:
            self._before += self._probe.steps
            self._probe = None

    def _give_up(self, error: Exception) -> None:
        self._detach()
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        self._on_problem(
            f"values from inside the train step are not recorded, only what Keras logs: {reason[0]}"
        )

    def _make_train_function(self) -> None:
        self._model.train_function = None
        making = (
            contextlib.nullcontext() if self._probe is None else self._probe.driver.making_train_function()
        )
        with making:
            (self._make or self._model.make_train_function)()
        self._guard = self._hooks.wrap(self._model, "train_function", self._guarded)

    def _wrap_make(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Whoever has the train function made anew during the training gets a measured one."""
        self._make = make

        def measured_make(*args: Any, **kwargs: Any) -> None:
            if self._model.train_function is None or args or kwargs:
                self._make_train_function()

        return measured_make

    def _guarded(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded_train_function(*args: Any) -> Any:
            self._clock.begin()
            try:
                if self._feed is not None:
                    args = (*args[:-1], self._feed(args[-1]))
                self._last_logs = self._call(train_function, *args)
            except BaseException as error:
                if not _ends_epoch(error):
                    self._on_error(error)
                raise
            self._clock.end()
            if self._on_call is not None:
                logs = self._last_logs
                self._on_call(logs[0] if isinstance(logs, tuple) else logs, self._steps_of_call())
            return self._last_logs

        return guarded_train_function

    def _steps_of_call(self) -> int:
        return (
            self._model.steps_per_execution or 1
            if self._probe is None
            else self._probe.driver.take_call_steps()
        )

    def _call(self, train_function: Callable[..., Any], *args: Any) -> Any:
        """Calls it, and tells an error of ours, after which training goes on, from one of the model."""
        try:
            logs = train_function(*args)
        except Exception as error:
            if self._probe is None:
                raise
            if self._probe.driver.is_ours(error):
                # An operation of ours failed while the step ran. Its batch is lost; Keras counts it as trained.
                self._fall_back(error)
                return self._last_logs
            if self._probe.driver.traces_before_batch and _raised_here(error.__traceback__):
                # A hook of ours failed while the step was traced: no batch was taken yet.
                self._fall_back(error)
                return self._model.train_function(*args)
            raise
        if self._probe is not None and self._probe.failure is not None:
            self._fall_back(self._probe.failure)
        return logs

    def _fall_back(self, error: Exception) -> None:
        with self._lock:
            try:
                self._drain()
            except Exception as second:  # noqa: BLE001 (the device may be what failed)
                self._on_problem(f"the last steps before that are lost: {second}")
            self._give_up(error)
            self._make_train_function()


def _another(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same step as another function: traces are kept by function."""

    def train_step(*args: Any) -> Any:
        return step(*args)

    return train_step


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the error arose in this package rather than in what its hooks call."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _ends_epoch(error: BaseException) -> bool:
    """How an iterator says that it has no more batches."""
    return isinstance(error, StopIteration) or type(error).__name__ == "OutOfRangeError"
