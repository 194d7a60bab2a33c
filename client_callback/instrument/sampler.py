"""The statistics of sampled steps: which there are for a model, and one vector of them for each sampled step.

`probe` calls a `Sampler` while the train step is traced. A statistic that cannot be computed is left out and named;
the others go on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from client_callback.instrument import predictions, statistics
from client_callback.instrument.capture import CapturedStep, innermost
from client_callback.instrument.statistics import Tensor
from client_callback.wire.protocol import Float32, Statistic

GRADIENT_STATISTICS = (
    ("gradient_norm", "‖g‖ before clipping"),
    ("gradient_mean_abs", "Mean |g|"),
    ("gradient_max_abs", "Largest |g|"),
    ("gradient_zero_share", "Share of gradient entries that are exactly 0"),
    ("gradient_non_finite", "Gradient entries that are NaN or infinite"),
)
NO_GRADIENT = (0.0, 0.0, 0.0, 1.0, 0.0)
"""Those of a variable that no gradient reaches."""
INPUT_LABELS = ("mean", "std", "min", "max", "non_finite")

Place = Literal["aside", "branch"]


class Sampler:
    """Writes one vector of statistics per sampled step into the buffers.

    Args:
        model: being traced.
        variables: its trainable variables.
        buffers: on the device.
        backend: the module that knows the device's graphs.
        on_problem: told once about each statistic that fails.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: list[Any],
        buffers: Any,
        backend: Any,
        on_problem: Callable[[str], None],
    ) -> None:
        self._model = model
        self._variables = variables
        self._labels = variable_labels(variables)
        self._buffers = buffers
        self._backend = backend
        self._on_problem = on_problem
        self._layout: dict[Place, list[Statistic]] = {}
        self._broken: set[str] = set()
        self.missing: list[str] = []
        """What cannot be told of this model, each with its reason."""
        self.task: predictions.TaskKind = "unknown"

    @property
    def statistics(self) -> list[Statistic]:
        """In the order in which `split` finds them."""
        return [statistic for layout in self._layout.values() for statistic in layout]

    def split(self, matrix: Float32) -> dict[str, Float32]:
        """Statistic → its columns of float32[n, width]."""
        widths = [len(statistic.labels) for statistic in self.statistics]
        parts = np.split(matrix, np.cumsum(widths)[:-1], axis=1)
        return {statistic.name: part for statistic, part in zip(self.statistics, parts, strict=True)}

    def write(self, step: CapturedStep) -> None:
        """Called once per trace, at the end of the train step."""
        if self.compiled:
            # XLA keeps a gradient whole when a branch depends on it, and then rounds the update differently.
            # Reduced in every step, outside any branch, it is fused, and training stays bit-identical.
            self._write("aside", self._variable_tables(step))
        self._backend.when(self._buffers.sampled(), lambda: self._write("branch", self._branch_tables(step)))

    def write_updates(self, step: CapturedStep) -> None:
        """Called in the graph in which the optimizer has just applied its update."""
        norms = functools.partial(self._update_norms, step)
        if self.compiled:
            self._buffers.updates.assign(norms())
        else:
            self._backend.when(self._buffers.sampled(), lambda: self._buffers.updates.assign(norms()))

    def clear_updates(self) -> None:
        """Before an update that may be skipped (accumulation, an overflowing loss scale): it moves nothing then."""
        optimizer = self._model.optimizer
        if innermost(optimizer) is not optimizer or getattr(optimizer, "gradient_accumulation_steps", None):
            self._buffers.updates.assign(ops.zeros((len(self._variables),), dtype="float32"))

    @property
    def compiled(self) -> bool:
        """Whether the step runs inside XLA."""
        return bool(getattr(self._model, "jit_compile", False))

    def miss(self, what: str) -> None:
        """Notes what cannot be told, once."""
        if what not in self.missing:
            self.missing.append(what)

    def _write(self, place: Place, tables: list[predictions.Table]) -> None:
        parts = self._compute(tables)
        layout = self._layout.setdefault(
            place, [statistic for statistic, _ in tables if statistic.name in parts]
        )
        if not layout:
            return
        columns = [
            parts.get(statistic.name, ops.full((len(statistic.labels),), float("nan"), dtype="float32"))
            for statistic in layout
        ]
        write = self._buffers.write_aside if place == "aside" else self._buffers.write_sample
        write(ops.concatenate(columns))

    def _compute(self, tables: list[predictions.Table]) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for statistic, compute in tables:
            if statistic.name in self._broken:
                continue
            try:
                value = ops.cast(compute(), "float32")
                parts[statistic.name] = ops.reshape(value, (len(statistic.labels),))
            except Exception as error:  # noqa: BLE001 (a statistic must never stop a training)
                self._broken.add(statistic.name)
                self.miss(f"{statistic.name}: {type(error).__name__}: {error}")
                self._on_problem(f"the statistic {statistic.name} is not recorded: {error}")
        return parts

    def _branch_tables(self, step: CapturedStep) -> list[predictions.Table]:
        return [
            *([] if self.compiled else self._variable_tables(step)),
            (self._of_variables("weight_norm", "‖w‖ after the step"), self._weight_norms),
            *self._made("predictions", self._prediction_tables, step),
            *self._made("inputs", self._input_tables, step),
        ]

    def _made(
        self, what: str, make: Callable[[CapturedStep], list[predictions.Table]], step: CapturedStep
    ) -> list[predictions.Table]:
        """Tables about the user's own data, which may be of any kind."""
        try:
            return make(step)
        except Exception as error:  # noqa: BLE001 (a statistic must never stop a training)
            self.miss(f"{what}: {type(error).__name__}: {error}")
            return []

    def _variable_tables(self, step: CapturedStep) -> list[predictions.Table]:
        gradients = usable_gradients(step, self._backend)
        if not gradients:
            return []
        unreached = [label for index, label in enumerate(self._labels) if index not in gradients]
        if unreached:
            self.miss(f"no gradient reaches {', '.join(unreached)}; it counts as 0")
        scale = gradient_scale(step)
        rows = [
            self._gradient_row(gradients[index], scale) if index in gradients else NO_GRADIENT
            for index in range(len(self._labels))
        ]

        def column(position: int) -> Tensor:
            return ops.stack([ops.convert_to_tensor(row[position], "float32") for row in rows])

        made: list[predictions.Table] = [
            (self._of_variables(name, doc), functools.partial(column, position))
            for position, (name, doc) in enumerate(GRADIENT_STATISTICS)
        ]
        doc = "‖Δw‖: the optimizer's step with its weight decay, before constraints"
        return [*made, (self._of_variables("update_norm", doc), lambda: self._buffers.updates)]

    def _gradient_row(self, gradient: Tensor, scale: Tensor) -> list[Tensor]:
        values, size = self._backend.entries(gradient, compiled=self.compiled)
        mean, largest, zeros, non_finite = statistics.gradient_statistics(values, size)
        return [statistics.norm(values) / scale, mean / scale, largest / scale, zeros, non_finite]

    def _weight_norms(self) -> Tensor:
        return ops.stack([statistics.norm(ops.convert_to_tensor(variable)) for variable in self._variables])

    def _prediction_tables(self, step: CapturedStep) -> list[predictions.Table]:
        outputs, targets = keras.tree.flatten(step.predictions), keras.tree.flatten(step.targets)
        if not outputs or not targets or outputs[0] is None or targets[0] is None:
            self.miss("predictions: the train step does not call compute_loss(x, y, y_pred)")
            return []
        if not self._backend.reachable(outputs[0]) or not self._backend.reachable(targets[0]):
            self.miss("predictions: they are computed in an inner loop or branch of the train step")
            return []
        if len(outputs) > 1:
            self.miss(f"predictions of outputs 2 to {len(outputs)}: only those of the first are described")
        loss = first_loss(getattr(self._model, "loss", None), step.predictions, self._model)
        task = predictions.infer_task(loss, targets[0], outputs[0])
        self.task = task.kind
        return predictions.tables(task, targets[0], outputs[0])

    def _input_tables(self, step: CapturedStep) -> list[predictions.Table]:
        made: list[predictions.Table] = []
        inputs = [value for value in keras.tree.flatten(step.inputs) if self._backend.reachable(value)]
        for number, values in enumerate(inputs):
            if not hasattr(values, "dtype") or "string" in str(values.dtype):
                self.miss(f"statistics of input {number}: it holds no numbers")
                continue
            name = "input" if len(inputs) == 1 else f"input_{number}"
            layout = Statistic(name=name, of="values", labels=INPUT_LABELS, doc="Of the batch's input values")
            made.append((layout, functools.partial(_input_statistics, values)))
        return made

    def _update_norms(self, step: CapturedStep) -> Tensor:
        moves: dict[int, list[tuple[int, Tensor]]] = {}
        for index, sign, value in step.updates:
            moves.setdefault(index, []).append((sign, value))
        norms = [self._update_norm(index, moves.get(index, [])) for index in range(len(self._variables))]
        return ops.stack([ops.cast(value, "float32") for value in norms])

    def _update_norm(self, index: int, moves: list[tuple[int, Tensor]]) -> Tensor:
        """‖Δw‖ of one variable, without a copy of it.

        Decoupled weight decay takes c·w first (c = learning rate × weight decay), then the optimizer adds its
        step s: w′ = (1 − c)·w + s. So Δw = w′ − w = (s − c·w′) / (1 − c).
        """
        if not moves:
            return 0.0
        decay = self._decay(index)
        if decay is None and len(moves) == 1:
            return ops.sqrt(self._backend.squared_norm(moves[0][1], compiled=self.compiled))
        total = sum(sign * self._backend.dense(value) for sign, value in moves)
        if decay is not None:
            weights = ops.cast(ops.convert_to_tensor(self._variables[index]), "float32")
            total = (total - decay * weights) / (1.0 - decay)
        return statistics.norm(total)

    def _decay(self, index: int) -> Tensor | None:
        optimizer = innermost(self._model.optimizer)
        rate = getattr(optimizer, "weight_decay", None)
        if not rate or not optimizer._use_weight_decay(self._variables[index]):
            return None
        return ops.cast(optimizer.learning_rate, "float32") * float(rate)

    def _of_variables(self, name: str, doc: str) -> Statistic:
        return Statistic(name=name, of="variables", labels=self._labels, doc=doc)


def first_loss(loss: Any, outputs: Any, model: Any) -> Any:
    """Of what `compile(loss=…)` received, the part for the first output."""
    if isinstance(loss, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", None) or []
        return loss.get(names[0]) if names else None
    if isinstance(loss, list | tuple):
        return loss[0] if loss else None
    return loss


def usable_gradients(step: CapturedStep, backend: Any) -> dict[int, Tensor]:
    """Variable's index → gradient, without those from an inner loop or branch of the train step."""
    return {index: gradient for index, gradient in step.gradients.items() if backend.reachable(gradient)}


def gradient_scale(step: CapturedStep) -> Tensor | float:
    """What to divide gradients by."""
    return 1.0 if step.loss_scale is None else ops.cast(step.loss_scale, "float32")


def variable_labels(variables: list[Any]) -> tuple[str, ...]:
    """A distinct label for each variable: its path, numbered where paths repeat."""
    seen: dict[str, int] = {}
    labels = []
    for variable in variables:
        number = seen[variable.path] = seen.get(variable.path, -1) + 1
        labels.append(f"{variable.path}:{number}" if number else variable.path)
    return tuple(labels)


def _input_statistics(values: Tensor) -> Tensor:
    return statistics.input_statistics(_first_examples(values))


def _first_examples(values: Tensor) -> Tensor:
    """At most MAX_INPUT_ELEMENTS entries: of the leading examples of the batch."""
    shape = tuple(values.shape)
    if not shape:
        return values
    per_example = 1
    for length in shape[1:]:
        per_example *= int(length or 1)
    return values[: max(1, statistics.MAX_INPUT_ELEMENTS // max(per_example, 1))]
