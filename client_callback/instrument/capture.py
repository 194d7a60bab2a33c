"""How the values inside a train step are reached: hooks on one model, and what they catch.

While a backend's driver (`instrument.backends`) has a step open, the hooks put the tensors that pass by into a
`CapturedStep`. Outside one (validation, another thread) they let everything pass. They add no computation of their
own and pass every argument on as it came, so training stays bit-identical.
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
    ready: Tensor | None = None
    """When the batch was there, in seconds modulo `probe.READY_MODULUS`, where only the graph can tell."""
    loss: Tensor | None = None
    learning_rate: Tensor | None = None
    loss_scale: Tensor | float | None = None
    """What the gradients are multiplied with."""
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Index of the trainable variable → its gradient, before clipping; of this replica."""
    reduced: dict[int, Tensor] = field(default_factory=dict)
    """The same summed over the replicas, where there are several."""
    update_norms: Callable[[], Tensor] | None = None
    """float32[variables]: ‖Δw‖ of this step, where the backend can tell it at its end."""
    weights: list[Tensor] | None = None
    """The trainable variables after the step, where they are not simply read."""
    parts: Tensor | None = None
    """float32[devices, 2]: loss and ‖g‖ of each device's part of the batch, where the step itself sees but one."""
    metric_sums: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Name in the logs → (total, count) increments of a mean metric."""
    activations: dict[str, Tensor] = field(default_factory=dict)
    """Layer → its output, of its last call in this step."""
    targets: Any = None
    predictions: Any = None


class Capture:
    """Hooks on one model, from `install` to `remove`.

    Args:
        model: compiled and about to be trained.
        layers: those whose outputs are wanted, by the name they go under.
        targets_from: the method that is given targets and predictions: `compute_loss`, or `compute_metrics` where
            the former runs inside the gradient's trace, out of which no value can be taken.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        layers: dict[str, Any],
        targets_from: str,
        on_forward: Callable[[], bool] | None = None,
    ) -> None:
        self._model = model
        self._on_forward = on_forward
        self._layers = layers
        self._targets_from = targets_from
        self._hooks = InstanceHooks()
        self._local = threading.local()
        self._index: dict[int, int] = {}
        self._hooked_metrics: set[str] = set()

    def install(self) -> None:
        """Puts the hooks on."""
        model = self._model
        self._hooks.wrap(model, self._targets_from, self._wrap_targets)
        if getattr(model, "_loss_tracker", None) is not None:
            self._hooks.wrap(model._loss_tracker, "update_state", self._wrap_loss_update)
        self._hook_metrics()
        for builder in (getattr(model, "_compile_metrics", None), getattr(model, "_compile_loss", None)):
            if builder is not None and not builder.built:
                self._hooks.wrap(builder, "build", self._wrap_build)
        for name, layer in self._layers.items():
            self._hook_layer(name, layer)

    def remove(self) -> None:
        """Takes the hooks off; the model is as it was."""
        self._hooks.remove()

    @property
    def step(self) -> CapturedStep | None:
        """The train step under way in this thread."""
        return getattr(self._local, "step", None)

    @contextlib.contextmanager
    def open_step(self, data: Any) -> Iterator[CapturedStep]:
        """Inside, the hooks catch what passes by. `data`: the batch, as `train_step` is given it."""
        outer = self.step
        try:
            inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        except ValueError:  # batches that only the model's own train step understands
            inputs = data
        step = self._local.step = CapturedStep(inputs=inputs)
        try:
            yield step
            self._tell_forward()
        finally:
            self._local.step = outer

    def _tell_forward(self) -> None:
        if self._on_forward is not None and self._on_forward():
            self._on_forward = None

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, the hooks let everything pass."""
        step, self._local.step = self.step, None
        try:
            yield
        finally:
            self._local.step = step

    def scale_loss_hook(
        self, optimizer: Any, safely: Callable[[Callable[[], None]], None]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Notes what the loss is multiplied with before the step changes it. `safely`: runs what must not raise."""

        def wrap_scale_loss(scale_loss: Callable[..., Any]) -> Callable[..., Any]:
            def captured_scale_loss(loss: Any) -> Any:
                step = self.step
                if step is not None:
                    safely(lambda: setattr(step, "loss_scale", loss_scale(optimizer)))
                return scale_loss(loss)

            return captured_scale_loss

        return wrap_scale_loss

    def variable_index(self, variable: Any) -> int | None:
        """The place of a variable, Keras' or the backend's inside it, among the model's trainable ones."""
        if len(self._index) != len(self._model.trainable_variables):
            # Known only now where the model builds itself in its first step.
            known = enumerate(self._model.trainable_variables)
            self._index = {_identity(variable): index for index, variable in known}
        return self._index.get(_identity(variable))

    def by_index(self, gradients: Any, variables: Any) -> dict[int, Tensor]:
        """Index of the trainable variable → its gradient."""
        found: dict[int, Tensor] = {}
        for gradient, variable in zip(gradients, variables, strict=False):
            index = self.variable_index(variable)
            if index is not None and gradient is not None:
                found[index] = gradient
        return found

    def _wrap_targets(self, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        def captured_targets(*args: Any, **kwargs: Any) -> Any:
            step = self.step
            if step is not None:
                # A model's own method may name or order its parameters differently.
                with contextlib.suppress(TypeError):
                    bound = signature.bind(*args, **kwargs).arguments
                    step.targets, step.predictions = bound.get("y"), bound.get("y_pred")
                self._tell_forward()
            return method(*args, **kwargs)

        return captured_targets

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

    def _hook_layer(self, name: str, layer: Any) -> None:
        def wrap_call(call: Callable[..., Any]) -> Callable[..., Any]:
            def captured_call(*args: Any, **kwargs: Any) -> Any:
                outputs = call(*args, **kwargs)
                step = self.step
                if step is not None and hasattr(outputs, "dtype") and hasattr(outputs, "shape"):
                    step.activations[name] = outputs
                return outputs

            return captured_call

        self._hooks.wrap(layer, "call", wrap_call)


def innermost(optimizer: Any) -> Any:
    """The optimizer that applies the update: what a `LossScaleOptimizer` wraps, or the optimizer itself."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def loss_scale(optimizer: Any) -> Tensor | float | None:
    """What this optimizer multiplies the loss with, `None` for nothing."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        if optimizer.built:
            # Plus nothing: the variable itself would be read when used, after the step has changed it.
            return optimizer.dynamic_scale + 0.0
        return keras.ops.convert_to_tensor(optimizer.initial_scale, "float32")
    factor = getattr(optimizer, "loss_scale_factor", None)
    return None if factor is None else float(factor)


def current_rate(optimizer: Any) -> Tensor | None:
    """The rate of the step under way. `None`: the optimizer has none of its own."""
    if not hasattr(innermost(optimizer), "_get_current_learning_rate"):
        return None
    return keras.ops.cast(optimizer.learning_rate, "float32") + 0.0


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
    if isinstance(variable, keras.Variable) and keras.backend.backend() == "tensorflow":
        variable = variable.value
    return id(variable)
