"""One watched training: joins instrument, steering and link, for `fit` and for loops of one's own.

`MonitorCallback` maps Keras' hooks onto it. Whoever writes the loop themselves uses it directly:

    with Run("gan", epochs=10) as run:
        for epoch in range(10):
            for batch in batches:
                run.log(loss=train(batch))
            run.end_epoch(val_loss=validate())
            if run.stopped:
                break

Nothing here may stop or slow the training: an error of ours ends the watching after one warning that says what is
lost, and whatever takes time happens in the link's thread.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec

import keras
import msgspec

from client_callback.budget import FIRST_INTERVAL, Budget
from client_callback.description import describe_model, describe_run
from client_callback.inspection import Inspection
from client_callback.instrument.batches import BatchesAhead, NotInFitError, Pulled
from client_callback.instrument.clock import CallClock
from client_callback.instrument.instrument import Instrument
from client_callback.instrument.schedule import Schedule
from client_callback.link import Link, check_bind
from client_callback.recent import RecentSteps
from client_callback.recorder import StepRecorder, numbers
from client_callback.replayed import Replayed, checked_replay
from client_callback.resources import ResourceMonitor
from client_callback.steering.actions import Action, checked_actions
from client_callback.steering.describe import current_optimizer
from client_callback.steering.learning_rate import read_rates
from client_callback.steering.snapshots import MEMORY_BYTES
from client_callback.steering.steering import Steering
from client_callback.steering.timers import NEVER
from client_callback.steering.training import Refused
from client_callback.wire.protocol import (
    Command,
    EpochBegan,
    EpochEnded,
    Event,
    Measured,
    Problem,
    RunEnded,
    RunStarted,
    StateChanged,
)
from client_callback.wire.replay import Replay

_OPEN: weakref.WeakKeyDictionary[keras.Model, Run] = weakref.WeakKeyDictionary()
"""Model → the run that watches it, or did last. One `fit` may die without a word before the next begins."""

SNAPSHOT_MEMORY = MEMORY_BYTES >> 20
"""MiB of host memory for states to go back to unless told otherwise."""

OVERHEAD_BUDGET = 0.01
"""Share of the training's time that watching may take unless told otherwise."""

COUNTED_BY_GUARD = keras.backend.backend() in {"jax", "torch"}
"""Whether a call of the train function is counted where it returns. A hook after each batch would have Keras wait
for the logs of every step there, which switches asynchronous dispatch off."""

MODEL_LOOKS = 3
"""How often a model is looked at whose weights have no values yet: in TensorFlow's first trace they have none."""

PAUSE_POLL_S = 0.2
"""How often a paused training looks whether something else has stopped it."""

Outcome = Literal["finished", "stopped", "interrupted", "failed"]
State = Literal["running", "paused", "recompiling", "validating", "trial"]
_P = ParamSpec("_P")


def _harmless(method: Callable[Concatenate[Run, _P], None]) -> Callable[Concatenate[Run, _P], None]:
    """An error of ours ends the watching, never the training. A forked child watches nothing."""

    def guarded(self: Run, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if self.closed or os.getpid() != self._pid:
            return
        try:
            method(self, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit) as interrupt:
            self.fail(interrupt)
            raise
        except Exception as error:  # noqa: BLE001 (the edge between a training and what watches it)
            self._give_up(error)

    functools.update_wrapper(guarded, method)
    return guarded


class Run:
    """Watches one training, from `begin` (or `with`) to `close`.

    Args:
        name: shown in the terminal and in the recording's file name. `None`: the script's name.
        model: compiled; then values come from inside its train step, and commands reach its optimizer.
        epochs: how many there will be, if known.
        steps_per_epoch: batches per epoch, if known.
        directory: folder for the recording. `None`: the user's data folder.
        record: whether to keep a recording.
        control: whether commands are obeyed.
        bind: `None` for a Unix socket, or `tcp://127.0.0.1:PORT`.
        overhead_budget: share of the training's time that watching may take, between 0 and 1; how often
            statistics are taken follows from it.
        statistics_every: steps between two on which statistics are taken, whatever they cost; 0 for never. `None`:
            as the budget allows.
        snapshot_memory: MiB of host memory for states of the training that `undo` and `rollback` go back to; what it
            does not hold goes to disk. 0: none are kept.
        replay: a recording, whose commands are carried out here at the same steps.
        actions: commands of your own: name → function, called between two batches with the command's further words
            and, as `model`, the model; what it returns is in the answer.
        callbacks: of the `fit`, among which other owners of the learning rate are looked for.

    Raises:
        ValueError: an argument is out of range; nothing has been started.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        model: keras.Model | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        record: bool = True,
        control: bool = True,
        bind: str | None = None,
        overhead_budget: float = OVERHEAD_BUDGET,
        statistics_every: int | None = None,
        snapshot_memory: int = SNAPSHOT_MEMORY,
        replay: str | os.PathLike[str] | Replay | None = None,
        actions: Mapping[str, Action] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        check_arguments(
            name=name,
            directory=directory,
            bind=bind,
            overhead_budget=overhead_budget,
            statistics_every=statistics_every,
            snapshot_memory=snapshot_memory,
        )
        self._actions = checked_actions(actions)
        self._replayed = Replayed(checked_replay(replay, control=control))
        self._snapshot_memory = snapshot_memory << 20
        self.model = model
        self.callbacks = callbacks
        self.paused = False
        self.stopped = False
        """Whether somebody asked for the training to stop. A loop of one's own must look."""
        self.closed = False
        self._name, self._epochs, self._steps_per_epoch = name, epochs, steps_per_epoch
        self._directory = None if directory is None else Path(directory)
        self._record, self._control, self._bind = record, control, bind
        fixed = statistics_every is not None
        every = FIRST_INTERVAL if statistics_every is None else statistics_every
        self._budget = Budget(None if fixed else overhead_budget, every)
        self._pid = os.getpid()
        self._clock_offset = time.time() - time.perf_counter()
        self._recorder = StepRecorder(self.emit, self._clock_offset, self._budget)
        self._clock = CallClock(fetched_between=keras.backend.backend() == "torch")
        self.epoch = self.epoch_start = 0
        """The epoch at hand, counted from 0, and its first step."""
        self._own_loop = False
        self._retracing = False
        self._model_looks = 0
        self.trace_seconds: float | None = None
        """How long the last step took that had to be traced. `None`: not known."""
        self._attention_at = NEVER
        """The step before which steering has something to do without being asked."""
        self._rate: dict[str, float] = {}
        self._data: Inspection | None = None
        """Seen of what it is trained on, still to be told."""
        self._telling = threading.Lock()
        self._link: Link | None = None
        self._steering: Steering | None = None
        self._instrument: Instrument | None = None
        self._batches: BatchesAhead | None = None
        self._between_batches = False
        """Whether this is the hook before a batch, in which the batches to come can be reached."""

    # ── Life ────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Run:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        else:
            self.close()

    @_harmless
    def begin(self, *, in_fit: bool = False) -> None:
        """Starts recording and listening, and puts the instrument on the model.

        `in_fit`: Keras runs the loop, and an error of the train function ends it.
        """
        if self._link is not None:
            return
        self._own_loop = self._recorder.own_values = not in_fit
        if self.model is not None and not self._take_over(self.model):
            return
        description = describe_run(
            self._name,
            self.model,
            self.callbacks,
            started_at=self._now(),
            epochs=self._epochs,
            steps_per_epoch=self._steps_per_epoch,
            statistics_every=self._budget.every,
            control=self._control,
            actions=tuple(self._actions),
        )
        self._link = Link(
            description,
            directory=self._directory,
            record=self._record,
            bind=self._bind,
            on_tick=self._tick,
            resources=ResourceMonitor(),
        )
        atexit.register(self._close_at_exit)
        self.emit(RunStarted(time=self._now(), run=description))
        folder = None if self.recording is None else self.recording.parent
        self._steering = Steering(
            self,
            control=self._control,
            snapshot_memory=self._snapshot_memory,
            folder=folder,
            actions=self._actions,
        )
        self._attention_at = 0
        if self.model is None:
            self._set_state("running")
        else:
            self._steering.install(in_fit=in_fit)
            self._instrument = Instrument(
                self.model,
                schedule=Schedule(self._budget.every, fixed=self._budget.share is None),
                clock=self._clock,
                on_problem=self._report,
                on_error=self._end_failed,
                on_call=self.after_batch if in_fit and COUNTED_BY_GUARD else None,
                on_forward=self._tell_model if _to_be_built(self.model) else None,
                drain=self._recorder.drain,
                lock=self._recorder.lock,
            )
            self._instrument.install()
            self._batches = BatchesAhead(self.model)
            self._recorder.instrument = self._instrument
            self._retracing = True
            self._set_state("recompiling", "tracing the train step")
            if in_fit:
                self._look_at_data(self.model)
        if self._own_loop:
            self.emit(EpochBegan(time=self._now(), epoch=0))
        for sentence in self._replayed.left_out:
            self.emit(Problem(time=self._now(), what=f"not repeated: {sentence}"))
        self._restart_clock()

    @_harmless
    def close(self, outcome: Outcome | None = None, reason: str = "") -> None:
        """Takes the instrument off the model and completes the recording. Calling it again does nothing.

        `outcome`: `None` stands for `stopped` or `finished`, whichever is true.
        """
        self._recorder.drain()
        self._tell_data()
        self._settle(last=True)
        self._complete(outcome or ("stopped" if self.stopped else "finished"), reason)

    @_harmless
    def fail(self, error: BaseException) -> None:
        """Closes with what ended the training."""
        self._say_last()
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        self._complete("interrupted" if interrupted else "failed", f"{type(error).__name__}: {error}"[:2_000])

    def abandon(self) -> None:
        """The `fit` died and told nobody. For a finalizer: asks nothing of the device and takes no lock."""
        if self.closed or os.getpid() != self._pid:
            return
        self.closed = True
        self._let_go()
        self._take_off()
        if self._link is not None:
            self._link.abandon("fit ended early", last=self._say_last)

    def _say_last(self) -> None:
        """What is told of a training that died, perhaps from the sender's thread."""
        self._recorder.drain()
        self._tell_data()
        if self._steering is not None:
            for reply in self._steering.ended_early():
                self.emit(reply)

    @property
    def optimizer_used(self) -> bool:
        """Whether the train step applies the model's optimizer, as far as is known."""
        instrument = self._instrument
        known = instrument is not None and instrument.measuring and instrument.series_names
        return not known or "grad_norm" in known

    @property
    def last_values(self) -> Mapping[str, float]:
        """What was measured inside the last completed step, by series; empty when nothing is."""
        return self._recorder.last_values if self._measuring else {}

    @property
    def sampled_update(self) -> Measured | None:
        """‖Δw‖/‖w‖ of the last step that was sampled. `None`: none was."""
        return self._recorder.sampled_update

    @property
    def label_counts(self) -> Mapping[int, float]:
        """How often each class was seen among the labels of sampled steps; empty where labels are not counted."""
        return self._recorder.label_counts

    @property
    def epochs(self) -> int | None:
        """How many there will be. `None`: not known, or a loop of one's own decides."""
        return None if self._own_loop else self._epochs

    @property
    def steps_per_epoch(self) -> int | None:
        """How many batches an epoch has. `None`: not known, or a loop of one's own decides."""
        return None if self._own_loop else self._steps_per_epoch

    @property
    def recent(self) -> RecentSteps:
        """What was recorded of the last steps."""
        return self._recorder.recent

    @property
    def recording(self) -> Path | None:
        """The file that is written. `None`: there is none."""
        return None if self._link is None else self._link.recording

    # ── Along the training ──────────────────────────────────────────────────────────────────────────

    @_harmless
    def begin_epoch(self, epoch: int) -> None:
        """The next step is the first of `epoch`, counted from 0."""
        self._recorder.drain()
        self._restart_clock()
        self.epoch, self.epoch_start = epoch, self.step
        self.emit(EpochBegan(step=self.step, time=self._now(), epoch=epoch))
        if self._steering is not None:
            self._steering.epoch_began()
            self._attention_at = min(self._attention_at, self._steering.attention_at)

    def before_batch(self) -> None:
        """Carries out the commands that arrived; holds here while paused."""
        begin = time.perf_counter()
        clock, link, instrument = self._clock, self._link, self._instrument
        if clock.fetched_between:
            clock.batch_begins()
        measuring = instrument is not None and instrument.measuring
        waits = self._recorder.completed < self._attention_at
        if link is None or link.commands_waiting or self.paused or not measuring or not waits:
            self._obey()
        else:
            self._recorder.hook_seconds += time.perf_counter() - begin

    @_harmless
    def _obey(self) -> None:
        if self._link is None:
            return
        commands = self._link.take_commands()
        attention = self._recorder.completed >= self._attention_at
        if not commands and not self.paused and not attention:
            self._rate = self._learning_rate()
            return
        self._between_batches = True
        self._recorder.drain()
        self._settle()
        commands = [*self._replayed.due(self.step), *commands]
        while True:
            for command in commands:
                self._answer(command)
            if not self.paused or self.stopped or getattr(self.model, "stop_training", False):
                break
            if not self._link.listening:
                self._report("nobody can send commands any more, so the pause ends and training goes on")
                self.resume()
                break
            self._link.wait_for_command(PAUSE_POLL_S)
            commands = self._link.take_commands()
        self._between_batches = False
        self._rate = self._learning_rate()
        self._restart_clock()

    def after_batch(self, logs: Mapping[str, Any] | None = None, steps: int = 1) -> None:
        """One call of the train function is over.

        `logs` and `steps` count only where nothing is measured inside the step.
        """
        begin = time.perf_counter()
        clock, recorder, instrument = self._clock, self._recorder, self._instrument
        measuring = instrument is not None and instrument.measuring
        if self.closed or self._retracing or not measuring:
            self._end_logged_call(logs, steps)
        else:
            if recorder.count_measured(clock.last, steps):
                self._drain()
            recorder.hook_seconds += time.perf_counter() - begin
        if clock.fetched_between:
            clock.batch_ends()

    @_harmless
    def _end_logged_call(self, logs: Mapping[str, Any] | None, steps: int) -> None:
        self._end_call(None if self._measuring else {**(logs or {}), **self._rate}, steps)

    @_harmless
    def _drain(self) -> None:
        self._recorder.drain()

    @_harmless
    def log(self, /, **values: Any) -> None:
        """Records one step of a loop of one's own, then carries out commands; holds here while paused.

        With `model` given and trained by `train_on_batch`, what is measured inside the step is recorded as well.
        """
        self._end_call({**self._learning_rate(), **values})
        self.before_batch()

    @_harmless
    def end_epoch(self, /, logs: Mapping[str, Any] | None = None, **values: Any) -> None:
        """The epoch is over; `logs` and `values` hold its means and, as `val_…`, its validation."""
        self._recorder.drain()
        self._settle(resting=True)
        found = numbers({**(logs or {}), **values})
        self.emit(EpochEnded(step=self.step, time=self._now(), epoch=self.epoch, logs=found))
        if self._steering is not None:
            for reply in self._steering.epoch_ended(self.epoch, found, self._now()):
                self.emit(reply)
        if self._own_loop:
            self.begin_epoch(self.epoch + 1)

    @_harmless
    def begin_validation(self) -> None:
        """Until `end_validation` no step is trained."""
        self._recorder.drain()
        self._settle(resting=True)
        if self._steering is not None and self._steering.skips_validation and self.model is not None:
            self.model.stop_evaluating = True
        self._set_state("validating")

    @_harmless
    def end_validation(self) -> None:
        """Training goes on."""
        self._restart_clock()
        self._set_state("running")

    # ── What steering asks of a training ────────────────────────────────────────────────────────────

    @property
    def step(self) -> int:
        """Steps recorded so far; while commands are carried out, steps completed."""
        return self._recorder.step

    def pause(self) -> None:
        """Holds training before its next batch."""
        self.paused = True
        self._set_state("paused")

    def resume(self) -> None:
        """Lets a paused training go on."""
        self.paused = False
        self._set_state("running")

    def stop(self) -> None:
        """Ends the training after the current batch."""
        self.stopped = True
        if self.model is not None:
            self.model.stop_training = True

    def rebuild(self, change: Callable[[], None]) -> None:
        """Runs `change` with the instrument off the model, then has the train step traced anew.

        Raises:
            Refused: this training has no train step that could be traced anew.
        """
        if self._instrument is None or (self._own_loop and self.step and not self._instrument.steps):
            raise Refused("this training runs its own loop, whose train step cannot be made anew from here")
        with self._recorder.lock:
            self._instrument.rebuild(change)
        self._retracing = True
        self._recorder.forget_next_call()

    def pull_batches(self, count: int, most_bytes: int) -> Pulled:
        """The next `count` batches of this `fit`, fewer where there are no more; they are trained on later.

        Raises:
            Refused: they cannot be taken ahead.
        """
        if self._own_loop or self._instrument is None or self._batches is None or not self._between_batches:
            raise Refused(
                "this needs the batches to come, which can be taken ahead only between two of a fit"
            )
        try:
            pulled = self._batches.pull(count, most_bytes)
        except NotInFitError as error:
            raise Refused(str(error)) from error
        self._instrument.feed_by(self._batches.feed)
        return pulled

    @contextlib.contextmanager
    def unmeasured(self, reason: str) -> Iterator[Callable[[], Callable[..., Any]]]:
        """Inside, nothing is measured; yields what makes train functions. Monitors see a trial with its `reason`."""
        if self._instrument is None:
            raise Refused("this run has no model")
        self._set_state("trial", reason)
        try:
            with self._instrument.unmeasured() as make:
                yield make
        finally:
            resting: State = "paused" if self.paused else "running"
            self._set_state("recompiling" if self._retracing else resting)

    def emit(self, event: Event) -> None:
        """Records an event and sends it to the monitors."""
        if self._link is not None:
            self._link.send(event)

    # ── Inside ──────────────────────────────────────────────────────────────────────────────────────

    def _look_at_data(self, model: keras.Model) -> None:
        try:
            self._data = Inspection.of_running_fit(model)
        except Exception as error:  # noqa: BLE001 (the user's own data, of whatever kind)
            self._problem(f"what the run is trained on is not described: {type(error).__name__}: {error}")

    def _tell_data(self) -> None:
        """In the sender's thread, unless the run ends before that came to it."""
        with self._telling:
            data, self._data = self._data, None
            if data is None:
                return
            try:
                self.emit(msgspec.structs.replace(data.described(), step=self.step, time=self._now()))
            except Exception as error:  # noqa: BLE001 (the user's own data, of whatever kind)
                self._problem(f"what the run is trained on is not described: {type(error).__name__}: {error}")

    def _problem(self, what: str) -> None:
        self.emit(Problem(step=self.step, time=self._now(), what=what[:2_000]))

    def _tell_model(self) -> bool:
        """Completes the description of a model that made its weights just now; whether it could be completed."""
        self._model_looks += 1
        try:
            built = describe_model(self.model)
            unread = any(layer.kernel_shape and layer.kernel is None for layer in built.layers)
            if unread and self._model_looks < MODEL_LOOKS:
                return False
            self.emit(msgspec.structs.replace(built, step=self.step, time=self._now()))
        except Exception as error:  # noqa: BLE001 (inside the train step of a model of whatever kind)
            self._report(f"the model's layers are not described: {type(error).__name__}: {error}")
        return True

    def _end_call(self, logged: Mapping[str, Any] | None, steps: int = 1) -> None:
        self._recorder.count_call(logged, steps, self._clock.last if self._measuring else None)
        if self._retracing:
            self._retracing = False
            seconds = self._clock.last.step
            self.trace_seconds = None if math.isnan(seconds) else seconds
            self._restart_clock()
            self._set_state("running")

    @property
    def _measuring(self) -> bool:
        """Whether values come from inside the step."""
        return self._instrument is not None and self._instrument.measuring

    def _restart_clock(self) -> None:
        self._clock.restart()
        self._recorder.restart_clock()

    def _learning_rate(self) -> dict[str, float]:
        """Where it is not read inside the step. Not on JAX, whose variables are out of date during a `fit`."""
        if self._measuring or keras.backend.backend() == "jax":
            return {}
        optimizer = current_optimizer(self.model)
        return {} if optimizer is None else read_rates(optimizer)

    def _take_over(self, model: keras.Model) -> bool:
        """Ends what still watches this model. Not another callback of the same `fit`: then this one gives way."""
        other = _OPEN.get(model)
        if other is not None and not other.closed:
            if self.callbacks and other.callbacks is self.callbacks:
                _warn("another MonitorCallback of this fit watches it already; this one records nothing")
                self.closed = True
                return False
            other.close("interrupted", "another training of this model began")
        _OPEN[model] = self
        return True

    def _let_go(self) -> None:
        """A table of models that kept them alive would fill the memory of whoever tries many."""
        if self.model is not None and _OPEN.get(self.model) is self:
            del _OPEN[self.model]

    def _answer(self, command: Command) -> None:
        if self._steering is None:
            return
        reply = self._steering.answer(command, self._now())
        if not self._steering.awaits(reply):
            self.emit(reply)
        adoption = self._steering.trials.take_adoption()
        if adoption is not None:
            self._answer(adoption)
        self._attention_at = min(self._steering.attention_at, self._replayed.next_step)

    def _tick(self) -> None:
        """Called from the sender's thread, often."""
        self._recorder.tick()
        self._tell_data()
        if self._steering is not None and self._steering.snapshot_due:
            self._attention_at = 0

    def _settle(self, *, last: bool = False, resting: bool = False) -> None:
        """Does what steering does by itself, and sends the answers that are complete now.

        `resting`: no batch follows at once.
        """
        if self._steering is None:
            return
        history = self._steering.history
        for reply in self._steering.tick(self._now(), last=last, resting=resting):
            self.emit(reply)
        self._recorder.hook_seconds += history.take_seconds()
        self._attention_at = min(self._steering.attention_at, self._replayed.next_step)

    def _set_state(self, state: State, reason: str = "") -> None:
        self.emit(StateChanged(step=self.step, time=self._now(), state=state, reason=reason))

    def _report(self, what: str) -> None:
        """Says once, to the script's output and to the monitors, what is lost."""
        _warn(what)
        self.emit(Problem(step=self.step, time=self._now(), what=what))

    def _end_failed(self, error: BaseException) -> None:
        """The train function raises, which ends a `fit`. A loop of one's own may well go on."""
        if not self._own_loop:
            self.fail(error)

    def _complete(self, outcome: Outcome, reason: str) -> None:
        self.closed = True
        self._let_go()
        atexit.unregister(self._close_at_exit)
        try:
            self._take_off()
        finally:
            self.emit(RunEnded(step=self.step, time=self._now(), outcome=outcome, reason=reason))
            if self._link is not None:
                self._link.close()

    def _take_off(self) -> None:
        try:
            if self._instrument is not None:
                self._instrument.remove()
        finally:
            if self._steering is not None:
                self._steering.uninstall()

    def _give_up(self, error: Exception) -> None:
        what = f"watching this training stopped, nothing more is recorded: {type(error).__name__}: {error}"
        what = what[:2_000]
        self._report(what)
        try:
            self._complete("interrupted", what)
            if self._batches is not None:
                self._batches.feed_alone()
        except Exception as second:  # noqa: BLE001 (whatever else fails, training goes on)
            _warn(f"while letting go of the model: {type(second).__name__}: {second}")

    def _close_at_exit(self) -> None:
        """The process ends while the training had not: it was interrupted, or an error passed us by."""
        error = getattr(sys, "last_value", None)
        if error is not None:
            self.fail(error)
        else:
            self.close("interrupted", "the process ended during the training")

    def _now(self) -> float:
        return time.perf_counter() + self._clock_offset


def _to_be_built(model: keras.Model) -> bool:
    """Whether its weights are made in its first step."""
    return any(not layer.built for layer in model._flatten_layers())


def check_arguments(
    *,
    name: str | None,
    directory: object,
    bind: str | None,
    overhead_budget: float,
    statistics_every: int | None,
    snapshot_memory: int,
) -> None:
    """Raises ValueError with what was received and what is possible."""
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise ValueError(f"directory: received {directory!r}; possible are a folder's path and None")
    if name is not None and (not name.strip() or len(name) > 200 or not name.isprintable()):
        raise ValueError(f"name: received {name!r}; possible are 1 to 200 printable characters, or None")
    if (
        isinstance(overhead_budget, bool)
        or not isinstance(overhead_budget, int | float)
        or not 0 < overhead_budget < 1
    ):
        raise ValueError(
            f"overhead_budget: received {overhead_budget!r}; possible are shares of the time between 0 and 1, such "
            f"as {OVERHEAD_BUDGET}; statistics_every=0 turns the statistics off"
        )
    whole = isinstance(statistics_every, int) and not isinstance(statistics_every, bool)
    if statistics_every is not None and (not whole or statistics_every < 0):
        raise ValueError(
            f"statistics_every: received {statistics_every!r}; possible are None (as the overhead budget allows), "
            "0 (never) and whole numbers of steps"
        )
    if not isinstance(snapshot_memory, int) or isinstance(snapshot_memory, bool) or snapshot_memory < 0:
        raise ValueError(
            f"snapshot_memory: received {snapshot_memory!r}; possible are whole numbers of MiB, 0 to keep none"
        )
    check_bind(bind)


def _warn(what: str) -> None:
    try:
        warnings.warn(f"unstuck: {what}", RuntimeWarning, stacklevel=3)
    except RuntimeWarning:  # warnings are errors here; a training must not end over this one
        print(f"unstuck: {what}", file=sys.stderr)  # noqa: T201
