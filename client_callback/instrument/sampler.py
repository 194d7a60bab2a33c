"""The statistics of sampled steps: which there are for a model, and one vector of them for each sampled step.

A driver calls `vector` while the train step is traced (or run). A statistic that cannot be computed is left out and
named; the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from client_callback.instrument import batch_tables, predictions, statistics
from client_callback.instrument.capture import CapturedStep
from client_callback.instrument.gradient_tables import GradientTables, Previous, shortened
from client_callback.instrument.layers import DescribedLayer
from client_callback.instrument.statistics import Tensor
from client_callback.instrument.table import Join, Table
from client_callback.wire.protocol import Float32, Statistic

if TYPE_CHECKING:
    from client_callback.instrument.backends import Driver

Place = Literal["aside", "branch"]


class Sampler:
    """Makes one vector of statistics per sampled step.

    Args:
        model: being traced.
        layers: those to describe.
        driver: knows the device's graphs.
        on_problem: told once about each statistic that fails.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: list[DescribedLayer],
        driver: Driver,
        on_problem: Callable[[str], None],
    ) -> None:
        self._model = model
        self.variables = list(model.trainable_variables)
        self._layers = layers
        self._driver = driver
        self._on_problem = on_problem
        labels = variable_labels(self.variables)
        self._gradients = GradientTables(self.variables, labels, layers, driver, self.miss)
        self._layout: dict[Place, list[tuple[Statistic, Join]]] = {}
        self._broken: set[str] = set()
        self.missing: list[str] = []
        """What cannot be told of this model, each with its reason."""
        self.task: predictions.TaskKind = "unknown"

    @property
    def statistics(self) -> list[Statistic]:
        """In the order in which `split` finds them."""
        return [statistic for layout in self._layout.values() for statistic, _ in layout]

    @property
    def width(self) -> int:
        """Numbers in a sample; 0 until one was traced."""
        return sum(statistic.width for statistic in self.statistics)

    def split(self, samples: Float32) -> dict[str, Float32]:
        """float32[replicas, n, width] → statistic → its float32[n, width] of the whole batch."""
        known = [entry for layout in self._layout.values() for entry in layout]
        parts = np.split(samples, np.cumsum([statistic.width for statistic, _ in known])[:-1], axis=2)
        return {
            statistic.name: join(part) if len(part) > 1 else part[0]
            for (statistic, join), part in zip(known, parts, strict=True)
        }

    def vector(self, place: Place, step: CapturedStep, previous: Previous | None) -> Tensor:
        """The statistics that belong to a place, float32[width].

        Args:
            place: `aside` for those of the gradient where they must not be computed in a branch, `branch` for the
                others; where everything is computed in one place, all in `branch`.
            step: that ends.
            previous: the gradient of the step before. `None`: gradients are not described in this place.
        """
        tables: list[Table] = []
        if previous is not None:
            tables += self._gradients.make(step, previous, histograms=place == "branch")
        if place == "aside":
            self.miss("gradient_histogram: computed in every step inside XLA, it would cost too much")
        else:
            tables += self._gradients.weight_tables(step)
            for what, make in _OF_THE_BATCH.items():
                tables += self._made(what, make, step)
        parts = self._compute(tables)
        found = [(table.statistic, table.join) for table in tables if table.statistic.name in parts]
        layout = self._layout.setdefault(place, found)
        columns = [
            parts.get(statistic.name, ops.full((statistic.width,), math.nan, dtype="float32"))
            for statistic, _ in layout
        ]
        return ops.concatenate(columns) if columns else ops.zeros((0,), dtype="float32")

    def sketch(self, step: CapturedStep) -> Tensor | None:
        """Some entries of the gradient, float32[m], to be compared with the next step's."""
        return self._gradients.sketch(step)

    @property
    def sketch_length(self) -> int:
        """Of a sketch, where every variable has a dense gradient."""
        return self._gradients.sketch_length

    def miss(self, what: str) -> None:
        """Notes what cannot be told, once."""
        if what not in self.missing:
            self.missing.append(what)

    def _compute(self, tables: list[Table]) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for table in tables:
            name = table.statistic.name
            if name in self._broken:
                continue
            try:
                value, shape = ops.cast(table.compute(), "float32"), (table.statistic.width,)
                parts[name] = value if tuple(value.shape) == shape else ops.reshape(value, shape)
            except Exception as error:  # noqa: BLE001 (a statistic must never stop a training)
                self._broken.add(name)
                self.miss(f"{name}: {type(error).__name__}: {error}")
                self._on_problem(f"the statistic {name} is not recorded: {error}")
        return parts

    def _made(self, what: str, make: _Maker, step: CapturedStep) -> list[Table]:
        """Tables about the user's own data and layers, which may be of any kind."""
        try:
            return make(self, step)
        except Exception as error:  # noqa: BLE001 (a statistic must never stop a training)
            self.miss(f"{what}: {type(error).__name__}: {error}")
            return []

    def _prediction_tables(self, step: CapturedStep) -> list[Table]:
        outputs, targets = keras.tree.flatten(step.predictions), self._targets(step)
        if not outputs or not targets or outputs[0] is None or targets[0] is None:
            self.miss("predictions: the train step does not call compute_loss(x, y, y_pred)")
            return []
        if not self._driver.reachable(outputs[0]) or not self._driver.reachable(targets[0]):
            self.miss("predictions: they are computed in an inner loop or branch of the train step")
            return []
        if len(outputs) > 1:
            self.miss(f"predictions of outputs 2 to {len(outputs)}: only those of the first are described")
        losses = losses_of_outputs(getattr(self._model, "loss", None), step.predictions, self._model)
        if losses and losses[0] is None and self._driver.joined(outputs[0]):
            self.miss(
                "predictions: no loss takes the first output, which is computed in one with what follows"
            )
            return []
        task = predictions.infer_task(losses[0] or None if losses else None, targets[0], outputs[0])
        self.task = task.kind
        if self._driver.replicas > 1 and task.kind not in ("classification", "binary"):
            self.miss("predictions of all replicas but the first: the ranges of their histograms differ")
        return predictions.tables(task, targets[0], outputs[0], self.miss)

    def _part_tables(self, step: CapturedStep) -> list[Table]:
        if step.parts is None:
            return []
        layout = Statistic(
            name="replicas",
            of="values",
            labels=tuple(map(str, range(step.parts.shape[0]))),
            columns=("loss", "grad_norm"),
            doc="Of each device's part of the batch, as if it were the whole",
        )
        return [Table(layout, lambda: step.parts)]

    def _activation_tables(self, step: CapturedStep) -> list[Table]:
        wanted = self._readable_layers(step)
        known = {
            layer.name: (layer, step.activations[layer.name])
            for layer in wanted
            if layer.name in step.activations and self._driver.reachable(step.activations[layer.name])
        }
        lost = [layer.name for layer in wanted if layer.name not in known]
        if lost:
            self.miss(
                f"activations of {len(lost)} of {len(wanted)} layers: they are computed out of reach, or not at all"
            )
        if not known:
            return []
        layout = Statistic(
            name="activations",
            of="layers",
            labels=tuple(known),
            columns=statistics.ACTIVATION_LABELS,
            doc="Of each layer's output: shares of exact zeros and of saturated entries, mean, standard deviation, "
            "and the units that are 0 for the whole batch",
        )

        def rows() -> Tensor:
            return ops.stack(
                [
                    statistics.activation_statistics(outputs, layer.activation)
                    for layer, outputs in known.values()
                ]
            )

        return [Table(layout, rows, _joined_activations)]

    def _readable_layers(self, step: CapturedStep) -> list[DescribedLayer]:
        """Those whose outputs can be looked at without training them differently."""
        last = {id(output) for output in self._outputs_with_loss(step)}
        active = [layer for layer in self._layers if layer.activation is not None]
        joined = [
            layer
            for layer in active
            if layer.name in step.activations
            and id(step.activations[layer.name]) not in last
            and self._driver.joined(step.activations[layer.name])
        ]
        if joined:
            names = shortened([layer.name for layer in joined])
            self.miss(
                f"activations of {names}: computed in one with what follows; looking in between would change the "
                "rounding"
            )
        return [layer for layer in active if layer not in joined]

    def _outputs_with_loss(self, step: CapturedStep) -> list[Any]:
        """Of what the model computes, what the loss takes: nothing else is computed in one with it."""
        outputs = keras.tree.flatten(step.predictions)
        losses = losses_of_outputs(getattr(self._model, "loss", None), step.predictions, self._model)
        return [output for output, loss in zip(outputs, losses, strict=False) if loss is not None]

    def _input_tables(self, step: CapturedStep) -> list[Table]:
        inputs = [value for value in keras.tree.flatten(step.inputs) if self._driver.reachable(value)]
        every = self._targets(step)
        targets = [value for value in every if value is not None and self._driver.reachable(value)]
        known = [value for value in every[:1] if value is not None and self._driver.reachable(value)]
        made = [table for target in known for table in batch_tables.target_tables(target)]
        return made + batch_tables.tables(inputs, targets, self.miss)

    def _targets(self, step: CapturedStep) -> list[Any]:
        return targets_of_outputs(step.targets, step.predictions, self._model)


_Maker = Callable[[Sampler, CapturedStep], list[Table]]
_OF_THE_BATCH: dict[str, _Maker] = {
    "predictions": Sampler._prediction_tables,
    "activations": Sampler._activation_tables,
    "inputs": Sampler._input_tables,
    "replicas": Sampler._part_tables,
}


def _joined_activations(parts: Float32) -> Float32:
    """float32[replicas, n, layers·5] → float32[n, layers·5]: of parts of equal size, nearly so of others.

    Units that are 0 for the whole batch are 0 in every part; how many are the same ones is not known, so the
    smallest number is an upper bound.
    """
    columns = parts.reshape(*parts.shape[:2], -1, len(statistics.ACTIVATION_LABELS)).astype(np.float64)
    zeros, saturated, middle, deviation, silent = np.moveaxis(columns, -1, 0)
    whole = middle.mean(axis=0)
    spread = np.sqrt((deviation**2 + (middle - whole) ** 2).mean(axis=0))
    joined = np.stack(
        [zeros.mean(axis=0), saturated.mean(axis=0), whole, spread, silent.min(axis=0)], axis=-1
    )
    return joined.reshape(parts.shape[1:]).astype(np.float32)


def losses_of_outputs(loss: Any, outputs: Any, model: Any) -> list[Any]:
    """Of what `compile(loss=…)` received, the part for each output; `None` for those that were left out.

    Without any, the model has a way of its own to a loss, and each output may be in it: then `False`.
    """
    number = len(keras.tree.flatten(outputs))
    if loss is None:
        return [False] * number
    if isinstance(loss, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", None) or []
        return [loss.get(name) for name in names]
    if isinstance(loss, list | tuple):
        return list(loss)
    return [loss] * number


def targets_of_outputs(targets: Any, outputs: Any, model: Any) -> list[Any]:
    """Flat and in the order of the outputs: those of a dict go by name. `None` for an output that has none."""
    if isinstance(targets, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", None) or []
        if set(targets) <= set(names):
            return [targets.get(name) for name in names]
    return list(keras.tree.flatten(targets))


def variable_labels(variables: list[Any]) -> tuple[str, ...]:
    """A distinct label for each variable: its path, numbered where paths repeat."""
    seen: dict[str, int] = {}
    labels = []
    for variable in variables:
        number = seen[variable.path] = seen.get(variable.path, -1) + 1
        labels.append(f"{variable.path}:{number}" if number else variable.path)
    return tuple(labels)
