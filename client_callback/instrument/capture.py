"""How the values inside a train step are reached: hooks on one model and its optimizer, and what they catch.

While Keras traces `train_step`, the hooks put tensors into a `CapturedStep`; at its end the probe turns them into
a row. Outside a train step (validation, another thread) the hooks let everything pass. They add no computation of
their own and pass every argument on as it came, so training stays bit-identical.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras

from client_callback.instrument.hooks import InstanceHooks
from client_callback.instrument.statistics import Tensor


@dataclass(slots=True)
class CapturedStep:
    """The tensors of one train step that is being traced (or, eagerly, run). `None`: did not pass by."""

    inputs: Any = None
    loss: Tensor | None = None
    learning_rate: Tensor | None = None
    loss_scale: Tensor | float | None = None
    """What the gradients are multiplied with."""
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Index of the trainable variable → its gradient, before clipping."""
    updates: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """(index, sign, step): what the optimizer added to (1) or subtracted from (-1) each variable."""
    metric_sums: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Name in the logs → (total, count) increments of a mean metric."""
    targets: Any = None
    predictions: Any = None


class Capture:
    """Hooks on one model, from `install` to `remove`.

    Args:
        model: compiled and about to be trained.
        on_step: called at the end of each traced train step with what was captured and the logs it returns.
        on_update: called inside the graph in which the optimizer applied its update, with the captured step;
            under gradient accumulation or loss scaling that is a branch of its own.
        before_update: called right before the optimizer is applied.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        on_step: Callable[[CapturedStep, Any], None],
        on_update: Callable[[CapturedStep], None],
        before_update: Callable[[], None],
    ) -> None:
        self._model = model
        self._on_step = on_step
        self._on_update = on_update
        self._before_update = before_update
        self._hooks = InstanceHooks()
        self._local = threading.local()
        self._index: dict[int, int] = {}
        self._hooked_metrics: set[str] = set()

    def install(self) -> None:
        """Puts the hooks on."""
        model, optimizer = self._model, self._model.optimizer
        self._hooks.wrap(model, "train_step", self._wrap_train_step)
        self._hooks.wrap(model, "compute_loss", self._wrap_compute_loss)
        if getattr(model, "_loss_tracker", None) is not None:
            self._hooks.wrap(model._loss_tracker, "update_state", self._wrap_loss_update)
        self._hook_metrics()
        for builder in (getattr(model, "_compile_metrics", None), getattr(model, "_compile_loss", None)):
            if builder is not None and not builder.built:
                self._hooks.wrap(builder, "build", self._wrap_build)
        if optimizer is None:
            return
        self._hooks.wrap(optimizer, "scale_loss", lambda scale: self._wrap_scale_loss(optimizer, scale))
        self._hooks.wrap(optimizer, "apply", lambda apply: self._wrap_apply(optimizer, apply))
        inner = innermost(optimizer)
        if hasattr(inner, "_backend_update_step"):
            self._hooks.wrap(inner, "_backend_update_step", self._wrap_update_step)
            self._hooks.wrap(inner, "assign_sub", lambda assign: self._wrap_assign(assign, -1))
            self._hooks.wrap(inner, "assign_add", lambda assign: self._wrap_assign(assign, 1))
            self._hooks.wrap(inner, "assign", self._wrap_plain_assign)

    def remove(self) -> None:
        """Takes the hooks off; the model is as it was."""
        self._hooks.remove()

    @property
    def step(self) -> CapturedStep | None:
        """The train step under way in this thread."""
        return getattr(self._local, "step", None)

    @contextlib.contextmanager
    def _open_step(self) -> Iterator[CapturedStep]:
        outer = self.step
        self._local.step = CapturedStep()
        try:
            yield self._local.step
        finally:
            self._local.step = outer

    def _wrap_train_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def captured_train_step(data: Any, *args: Any, **kwargs: Any) -> Any:
            with self._open_step() as step:
                logs = train_step(data, *args, **kwargs)
                step.inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
                self._on_step(step, logs)
            return logs

        return captured_train_step

    def _wrap_compute_loss(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(compute_loss)

        def captured_compute_loss(*args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is not None:
                # A model's own compute_loss may name or order its parameters differently.
                with contextlib.suppress(TypeError):
                    bound = signature.bind(*args, **kwargs).arguments
                    step.targets, step.predictions = bound.get("y"), bound.get("y_pred")
            return compute_loss(*args, **kwargs)

        return captured_compute_loss

    def _wrap_loss_update(self, update_state: Callable[..., Any]) -> Callable[..., Any]:
        def captured_update_state(values: Any, *args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is not None:
                step.loss = values
            return update_state(values, *args, **kwargs)

        return captured_update_state

    def _wrap_build(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled metrics and the losses of several outputs come into being while the first step is traced."""

        def captured_build(*args: Any, **kwargs: Any) -> Any:
            result = build(*args, **kwargs)
            self._hook_metrics()
            return result

        return captured_build

    def _hook_metrics(self) -> None:
        for name, metric in mean_metrics(self._model).items():
            if name not in self._hooked_metrics:
                self._hooked_metrics.add(name)
                self._wrap_mean_metric(name, metric)

    def _wrap_scale_loss(self, optimizer: Any, scale_loss: Callable[..., Any]) -> Callable[..., Any]:
        def captured_scale_loss(loss: Any) -> Any:
            step = self.step
            if step is not None:
                step.loss_scale = loss_scale(optimizer)
            return scale_loss(loss)

        return captured_scale_loss

    def _wrap_mean_metric(self, name: str, metric: Any) -> None:
        """Sees what `Mean.update_state` adds to its two variables: their quotient is the batch's own value."""
        added: dict[str, Tensor] = {}

        def wrap_total(assign_add: Callable[..., Any]) -> Callable[..., Any]:
            def captured_total(value: Any) -> Any:
                if self.step is not None:
                    added["total"] = value
                return assign_add(value)

            return captured_total

        def wrap_count(assign_add: Callable[..., Any]) -> Callable[..., Any]:
            def captured_count(value: Any) -> Any:
                step = self.step
                if step is not None and "total" in added:
                    step.metric_sums.setdefault(name, []).append((added.pop("total"), value))
                return assign_add(value)

            return captured_count

        self._hooks.wrap(metric.total, "assign_add", wrap_total)
        self._hooks.wrap(metric.count, "assign_add", wrap_count)

    def _wrap_apply(self, optimizer: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
        def captured_apply(grads: Any, *args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is None:
                return apply(grads, *args, **kwargs)
            grads = list(grads)
            if args and args[0] is not None:
                args = (list(args[0]), *args[1:])
            variables = args[0] if args else kwargs.get("trainable_variables")
            self._note_gradients(step, optimizer, grads, variables or optimizer._trainable_variables)
            self._before_update()
            return apply(grads, *args, **kwargs)

        return captured_apply

    def _note_gradients(self, step: CapturedStep, optimizer: Any, grads: list[Any], variables: Any) -> None:
        if hasattr(innermost(optimizer), "_get_current_learning_rate"):
            step.learning_rate = keras.ops.convert_to_tensor(optimizer.learning_rate)
        if len(self._index) != len(self._model.trainable_variables):
            # Known only now where the model builds itself in its first step.
            known = enumerate(self._model.trainable_variables)
            self._index = {_identity(variable): index for index, variable in known}
        for gradient, variable in zip(grads, variables, strict=False):
            index = self._index.get(_identity(variable))
            if index is not None and gradient is not None:
                step.gradients[index] = gradient

    def _wrap_update_step(self, update_step: Callable[..., Any]) -> Callable[..., Any]:
        def captured_update_step(*args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is None:
                return update_step(*args, **kwargs)
            step.updates.clear()
            result = update_step(*args, **kwargs)
            self._on_update(step)
            return result

        return captured_update_step

    def _wrap_assign(self, assign: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def captured_assign(variable: Any, value: Any) -> Any:
            self._note_update(variable, sign, lambda: value)
            return assign(variable, value)

        return captured_assign

    def _wrap_plain_assign(self, assign: Callable[..., Any]) -> Callable[..., Any]:
        def captured_assign(variable: Any, value: Any) -> Any:
            self._note_update(variable, 1, lambda: value - keras.ops.convert_to_tensor(variable))
            return assign(variable, value)

        return captured_assign

    def _note_update(self, variable: Any, sign: int, update: Callable[[], Tensor]) -> None:
        step = self.step
        index = None if step is None else self._index.get(_identity(variable))
        if step is not None and index is not None:
            step.updates.append((index, sign, update()))


def innermost(optimizer: Any) -> Any:
    """The optimizer that applies the update: what a `LossScaleOptimizer` wraps, or the optimizer itself."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def loss_scale(optimizer: Any) -> Tensor | float | None:
    """What this optimizer multiplies the loss with, `None` for nothing."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        if optimizer.built:
            return keras.ops.convert_to_tensor(optimizer.dynamic_scale)
        return float(optimizer.initial_scale)
    factor = getattr(optimizer, "loss_scale_factor", None)
    return None if factor is None else float(factor)


def mean_metrics(model: keras.Model) -> dict[str, Any]:
    """The metrics that are means of per-example values, under the names they have in the logs.

    The overall loss is not among them: its own value is caught on the way into its tracker.
    """
    loss_tracker = getattr(model, "_loss_tracker", None)
    return {
        name: part
        for metric in model.metrics
        if metric is not loss_tracker
        for name, part in _named_parts(metric)
        if type(part).result is keras.metrics.Mean.result and hasattr(part, "count")
    }


def _named_parts(metric: Any) -> Iterator[tuple[str, Any]]:
    """(name in the logs, metric), seeing through the collection `compile(metrics=…)` makes.

    Repeated names are told apart as `CompileMetrics.result` does.
    """
    if not hasattr(metric, "_flat_metrics"):
        yield metric.name, metric
        return
    if not metric.built:
        return
    taken: dict[str, int] = {}
    for weighted, groups in ((False, metric._flat_metrics), (True, metric._flat_weighted_metrics)):
        for group in filter(None, groups):
            prefix = f"{group.output_name}_" if group.output_name else ""
            for part in group.metrics:
                name = f"{prefix}{part.name}"
                if weighted and name in taken:
                    name = f"{prefix}weighted_{part.name}"
                repeats = taken[name] = taken.get(name, -1) + 1
                yield (f"{name}_{repeats}" if repeats else name), part


def _identity(variable: Any) -> int:
    """The same number for a Keras variable and for the backend's variable inside it."""
    return id(variable.value) if isinstance(variable, keras.Variable) else id(variable)
