"""torch: the step runs eagerly, so rows and samples are computed beside it and wait as tensors, unread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from client_callback.instrument.backends import Waiting
from client_callback.instrument.backends.host_queue import HostQueue
from client_callback.instrument.capture import current_rate
from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32

if TYPE_CHECKING:
    from client_callback.instrument.probe import Probe


class Driver:
    """Measures a model's train step on torch; see `backends.Driver`."""

    targets_from = "compute_loss"
    traces_before_batch = False
    replicas = 1

    def __init__(self, probe: Probe) -> None:
        if probe.model.jit_compile:
            raise NotImplementedError("the train step is compiled by torch.compile, which takes no hooks")
        self._probe = probe
        self._queue = HostQueue(_to_numpy)
        self.capacity = self._queue.capacity
        self._hooks = InstanceHooks()
        self._sketch: Tensor | None = None
        self._sketch_step = -2

    def install(self) -> None:
        """Hooks the train step and the optimizer."""
        model, optimizer = self._probe.model, self._probe.model.optimizer
        self._hooks.wrap(model, "train_step", self._wrap_train_step)
        if optimizer is not None:
            self._hooks.wrap(
                optimizer, "scale_loss", self._probe.capture.scale_loss_hook(optimizer, self._probe.safely)
            )
            self._hooks.wrap(optimizer, "apply", lambda apply: self._wrap_apply(optimizer, apply))

    def remove(self) -> None:
        """Takes the hooks off."""
        self._hooks.remove()

    def making_train_function(self) -> AbstractContextManager[None]:
        """It takes the hooked train step by itself."""
        return nullcontext()

    def own_train_step(self) -> Callable[..., Any]:
        """Below the hook."""
        step: Callable[..., Any] = self._hooks.original(self._probe.model, "train_step")
        return step

    def take_call_steps(self) -> int:
        """One call, one step, or nobody here can tell."""
        return 1

    def set_interval(self, every: int) -> None:
        """The host decides which steps are sampled."""
        self._probe.schedule.every = every

    def take_sample_costs(self) -> list[float]:
        """They are told from the durations of whole steps."""
        return []

    def drain(self) -> Waiting:
        """Waits for the steps that were begun, if they run on a GPU."""
        return self._queue.drain()

    def is_ours(self, error: BaseException) -> bool:
        """Every operation runs under `Probe.safely`."""
        return False

    def _wrap_train_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def measured_train_step(data: Any) -> Any:
            probe = self._probe
            with probe.capture.open_step(data) as step:
                logs = train_step(data)

                def measure() -> None:
                    row = torch.stack([_scalar(value) for value in probe.row(step, logs)])
                    sample = None
                    if probe.schedule.due:
                        sample = probe.sampler.vector("branch", step, self._previous)
                    if probe.schedule.due or probe.schedule.due_next:
                        self._sketch = probe.sampler.sketch(step)
                        self._sketch_step = probe.schedule.step
                    self._queue.append(row, sample)

                with torch.no_grad():
                    probe.safely(measure)
                probe.schedule.advance()
            return logs

        return measured_train_step

    def _previous(self, length: int) -> Tensor:
        if self._sketch is not None and self._sketch_step == self._probe.schedule.step - 1:
            return self._sketch
        return torch.full((length,), float("nan"))

    def _wrap_apply(self, optimizer: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
        def captured_apply(grads: Any, *args: Any, **kwargs: Any) -> Any:
            step, probe = self._probe.capture.step, self._probe
            if step is None:
                return apply(grads, *args, **kwargs)
            grads = list(grads)
            before: list[Tensor] = []

            def note() -> None:
                variables = args[0] if args else kwargs.get("trainable_variables")
                step.learning_rate = current_rate(optimizer)
                step.gradients = probe.capture.by_index(grads, variables or optimizer._trainable_variables)
                if probe.schedule.due:
                    before.extend(variable.value.detach().clone() for variable in probe.variables)

            def moved() -> Tensor:
                # In place: the copies are of no further use.
                torch._foreach_sub_(before, [variable.value.detach() for variable in probe.variables])
                return _norms(before)

            probe.safely(note)
            result = apply(grads, *args, **kwargs)
            if before:
                norms: list[Tensor] = []
                with torch.no_grad():
                    probe.safely(lambda: norms.append(moved()))
                step.update_norms = (lambda: norms[0]) if norms else None
            return result

        return captured_apply

    def reachable(self, tensor: Any) -> bool:
        """Everything is a value."""
        return True

    def joined(self, tensor: Any) -> bool:
        """Every operation is run as it is called."""
        return False

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """One kernel for all of them, one for their sum."""
        return torch.linalg.vector_norm(_norms(tensors))

    def squared_norms(self, tensors: list[Tensor]) -> Tensor:
        """One kernel for all of them."""
        return _norms(tensors).square()

    def entries(self, gradient: Tensor) -> tuple[Tensor, int]:
        """A sparse gradient's rows, each once."""
        size = int(np.prod(gradient.shape))
        return (gradient.coalesce().values() if gradient.is_sparse else gradient), size


def _norms(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return torch.stack([norm.float() for norm in norms])


def _scalar(value: Any) -> Tensor:
    return keras.ops.convert_to_tensor(value, "float32").detach().reshape(())


def _to_numpy(tensors: list[Tensor]) -> Float32:
    """One copy out of a GPU for all of them, behind the steps that were begun."""
    values: Float32 = torch.stack(tensors).cpu().numpy()
    return values
