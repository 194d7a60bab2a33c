"""`MonitorCallback`: Keras' hooks mapped onto a `Run`, one for each `fit`. Nothing else lives here."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from client_callback.replayed import checked_replay
from client_callback.run import COUNTED_BY_GUARD, OVERHEAD_BUDGET, SNAPSHOT_MEMORY, Run, check_arguments
from client_callback.steering.actions import Action, checked_actions


class MonitorCallback(keras.callbacks.Callback):  # type: ignore[misc] # Keras has no types
    """Lets `unstuck` watch, record and steer a `fit`.

        model.fit(x, y, callbacks=[MonitorCallback()])

    Args:
        name: shown in the terminal and in the recording's file name. `None`: the script's name.
        directory: folder for recordings. `None`: the user's data folder.
        record: whether to keep a recording of each `fit`.
        control: whether commands from the terminal are obeyed. `False`: monitors can only watch.
        bind: `None` for a Unix socket that only this user can open, or `tcp://127.0.0.1:PORT` (encrypted, for this
            user's keys only).
        overhead_budget: share of the training's time that watching may take, between 0 and 1. How often layer
            statistics, predictions and inputs are summarised follows from it and from what all of it is seen to cost;
            a quarter of it is theirs in any case.
        statistics_every: steps between two on which they are, whatever that costs; 0 for never. `None`: as the
            budget allows.
        snapshot_memory: MiB of host memory for states of the training that `undo` and `rollback` go back to; what it
            does not hold goes to disk. 0: none are kept.
        replay: a recording, whose commands are carried out in each `fit` at the same steps.
        actions: commands of your own, such as `{"render": draw}`. The function is called between two batches with
            the command's further words as texts and, where it has a parameter `model`, the model; what it returns (a
            text, a number or a dict of these) is in the answer, and what it changes of the model can be undone.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        record: bool = True,
        control: bool = True,
        bind: str | None = None,
        overhead_budget: float = OVERHEAD_BUDGET,
        statistics_every: int | None = None,
        snapshot_memory: int = SNAPSHOT_MEMORY,
        replay: str | os.PathLike[str] | None = None,
        actions: Mapping[str, Action] | None = None,
    ) -> None:
        super().__init__()
        if COUNTED_BY_GUARD:
            self.on_train_batch_end = super().on_train_batch_end  # type: ignore[method-assign] # told by the guard
        else:
            self.async_safe = True
        check_arguments(
            name=name,
            directory=directory,
            bind=bind,
            overhead_budget=overhead_budget,
            statistics_every=statistics_every,
            snapshot_memory=snapshot_memory,
        )
        self._actions = checked_actions(actions)
        self._replay = checked_replay(replay, control=control)
        self._snapshot_memory = snapshot_memory
        self._name, self._directory, self._record = name, directory, record
        self._control, self._bind = control, bind
        self._budget, self._every = overhead_budget, statistics_every
        self._run: Run | None = None
        self._next_batch = 0
        self._recording: Path | None = None

    @property
    def recording(self) -> Path | None:
        """The recording of the current or the last `fit`. `None`: there is none."""
        return self._recording

    def stop(self) -> None:
        """Ends the running `fit` after the current batch, as the command does. Without one, nothing happens."""
        if self._run is not None:
            self._run.stop()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """A `fit` begins: starts a run."""
        if self._run is not None:
            self._run.close("interrupted", "another fit began")
        fit_callbacks = _find_callback_list()
        run = Run(
            self._name,
            model=self._model,
            epochs=(self.params or {}).get("epochs"),
            steps_per_epoch=(self.params or {}).get("steps"),
            directory=self._directory,
            record=self._record,
            control=self._control,
            bind=self._bind,
            overhead_budget=self._budget,
            statistics_every=self._every,
            snapshot_memory=self._snapshot_memory,
            replay=self._replay,
            actions=self._actions,
            callbacks=() if fit_callbacks is None else fit_callbacks.callbacks,
        )
        self._run = run
        self._next_batch = 0
        run.begin(in_fit=True)
        self._recording = run.recording
        if fit_callbacks is not None:
            # Keras tells nobody when `fit` dies outside the train function; its list of callbacks dies with it.
            weakref.finalize(fit_callbacks, run.abandon)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """An epoch begins."""
        if self._run is not None:
            self._next_batch = 0
            self._run.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Commands are carried out here, between two batches."""
        if self._run is not None:
            self._run.before_batch()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """One call of the train function is over."""
        if self._run is not None:
            self._run.after_batch(logs, batch + 1 - self._next_batch)
            self._next_batch = batch + 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """An epoch is over, its validation included."""
        if self._run is not None:
            self._run.end_epoch(logs)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Validation begins (or an `evaluate` without a `fit`, which is not watched)."""
        if self._run is not None:
            self._run.begin_validation()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Validation is over."""
        if self._run is not None:
            self._run.end_validation()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """The `fit` is over: completes the recording and leaves the model as it was."""
        if self._run is not None:
            self._run.close()
            self._run = None


def _find_callback_list() -> keras.callbacks.CallbackList | None:
    """The list that called `on_train_begin`; Keras gives callbacks no way to it but the call stack."""
    frame = sys._getframe(1)
    for _ in range(20):
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return owner
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
