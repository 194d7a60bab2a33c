"""The statistics of a step's gradient, of its update, and of the gradients of each layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from client_callback.instrument import statistics
from client_callback.instrument.capture import CapturedStep
from client_callback.instrument.layers import DescribedLayer
from client_callback.instrument.statistics import Tensor
from client_callback.instrument.table import Table
from client_callback.wire.protocol import Statistic

if TYPE_CHECKING:
    from client_callback.instrument.backends import Driver

GRADIENT_STATISTICS = (
    ("gradient_norm", "‖g‖ before clipping"),
    ("gradient_mean_abs", "Mean |g|"),
    ("gradient_max_abs", "Largest |g|"),
    ("gradient_zero_share", "Share of gradient entries that are exactly 0"),
    ("gradient_non_finite", "Gradient entries that are NaN or infinite"),
)
NO_GRADIENT = (0.0, 0.0, 0.0, 1.0, 0.0)
"""Those of a variable that no gradient reaches."""

SKETCH_ENTRIES = 16_384
"""Entries of the gradient kept from one step to the next; of a smaller gradient, all."""
SKETCH_VARIABLES = 64
"""The largest variables they are taken from."""

HISTOGRAM_ENTRIES = 16_384
"""Of each variable: a histogram's shares are then right to ± 0.8 percentage points (two standard errors)."""

Previous = Callable[[int], Tensor]
"""Called with the length of a sketch: the one of the step before, or NaN."""


class GradientTables:
    """Makes the tables that concern one model's gradients.

    Args:
        variables: the model's trainable ones.
        labels: a name for each.
        layers: those to describe.
        driver: knows the device's graphs.
        miss: told what cannot be described.
    """

    def __init__(
        self,
        variables: list[Any],
        labels: tuple[str, ...],
        layers: list[DescribedLayer],
        driver: Driver,
        miss: Callable[[str], None],
    ) -> None:
        self._variables = variables
        self._labels = labels
        self._driver = driver
        self._miss = miss
        places = {id(variable): place for place, variable in enumerate(variables)}
        self._of_layers = {
            layer.name: [places[id(v)] for v in layer.layer._trainable_variables if id(v) in places]
            for layer in layers
        }
        self._units = {
            layer.name: _unit_variables(layer, variables, self._of_layers[layer.name]) for layer in layers
        }

    def make(self, step: CapturedStep, previous: Previous, *, histograms: bool) -> list[Table]:
        """All of them, for a step that ends. `histograms`: also those that must look at every entry."""
        gradients = usable_gradients(step, self._driver)
        if not gradients:
            return []
        unreached = [label for index, label in enumerate(self._labels) if index not in gradients]
        if unreached:
            self._miss(f"no gradient reaches {shortened(unreached)}; it counts as 0")
        norms = self._driver.squared_norms(list(gradients.values()))
        made = [*self._of_variables(step, gradients, norms), *self._pair(step, previous)]
        made += self._dead_units(gradients)
        if histograms:
            made += self._histograms(step, gradients)
        return made

    def sketch(self, step: CapturedStep) -> Tensor | None:
        """Evenly spaced entries of the largest gradients, float32[m]; the same ones in every step."""
        gradients = usable_gradients(step, self._driver)
        dense = [index for index, gradient in gradients.items() if _dense(gradient)]
        parts = []
        for index, stride in self._strides(dense).items():
            flat = ops.reshape(gradients[index], (-1,))
            parts.append(ops.cast(flat if stride == 1 else flat[::stride], "float32"))
        if not parts:
            return None
        return _divided(ops.concatenate(parts), gradient_scale(step))

    @property
    def sketch_length(self) -> int:
        """Of a sketch, where every variable has a dense gradient."""
        strides = self._strides(list(range(len(self._variables))))
        return sum(-(-math.prod(self._variables[index].shape) // stride) for index, stride in strides.items())

    def _strides(self, indices: list[int]) -> dict[int, int]:
        """The largest of these variables → the distance between two entries that are taken."""
        sizes = {index: math.prod(self._variables[index].shape) for index in indices}
        chosen = sorted(sorted(sizes, key=lambda index: -sizes[index])[:SKETCH_VARIABLES])
        whole = max(1, sum(sizes[index] for index in chosen))
        return {
            index: statistics.coprime_stride(sizes[index], max(1, SKETCH_ENTRIES * sizes[index] // whole))
            for index in chosen
            if sizes[index]
        }

    def _of_variables(self, step: CapturedStep, gradients: dict[int, Tensor], norms: Tensor) -> list[Table]:
        scale = gradient_scale(step)
        places = list(gradients)

        def columns() -> list[Tensor]:
            entries = [self._driver.entries(gradient) for gradient in gradients.values()]
            mean, largest, zeros, non_finite = statistics.gradient_statistics(entries)
            scaled = [_divided(column, scale) for column in (ops.sqrt(norms), mean, largest)]
            return [*scaled, zeros, non_finite]

        def column(position: int) -> Tensor:
            found = cached()[position]
            if len(places) == len(self._labels):
                return found
            rows = [
                places.index(row) if row in gradients else len(places) for row in range(len(self._labels))
            ]
            padded = ops.concatenate([found, ops.convert_to_tensor([NO_GRADIENT[position]], "float32")])
            return ops.take(padded, ops.convert_to_tensor(np.array(rows, np.int32)))

        cached = functools.cache(columns)
        made = [
            Table(self._variable_statistic(name, doc), functools.partial(column, position))
            for position, (name, doc) in enumerate(GRADIENT_STATISTICS)
        ]
        if step.update_norms is not None:
            made.append(Table(self._variable_statistic("update_norm", "‖Δw‖ of the step"), step.update_norms))
        return made

    def weight_tables(self, step: CapturedStep) -> list[Table]:
        """Of the weights after the step, and of how far it moved them."""
        weights = step.weights or [ops.convert_to_tensor(variable) for variable in self._variables]
        norms = functools.cache(lambda: ops.sqrt(self._driver.squared_norms(weights)))
        made = [Table(self._variable_statistic("weight_norm", "‖w‖ after the step"), norms)]
        if step.update_norms is not None:
            doc = "‖Δw‖ / ‖w‖ of the step; about 1e-3 is often healthy. NaN where the weights are 0"
            moved = step.update_norms

            def ratio() -> Tensor:
                return statistics.update_ratio(moved(), norms())

            made.append(Table(self._variable_statistic("update_ratio", doc), ratio))
        return made

    def _pair(self, step: CapturedStep, previous: Previous) -> list[Table]:
        current = self.sketch(step)
        examples = examples_of(step.inputs)
        if current is None or examples is None:
            return []
        doc = (
            "Successive gradients a and b: their cosine; signal a·b; noise (B/2)·|a − b|²; the noise scale, noise / "
            f"signal, in examples (McCandlish et al. 2018, A.1). Of up to {SKETCH_ENTRIES} entries"
        )
        layout = Statistic(name="gradient_pair", of="values", labels=statistics.PAIR_LABELS, doc=doc)
        before = previous(int(current.shape[0]))
        batch = ops.cast(examples, "float32") * self._driver.replicas
        return [Table(layout, lambda: statistics.gradient_pair(before, current, batch))]

    def _dead_units(self, gradients: dict[int, Tensor]) -> list[Table]:
        known = {
            name: [gradients[index] for index in indices if index in gradients and _dense(gradients[index])]
            for name, indices in self._units.items()
        }
        known = {name: tensors for name, tensors in known.items() if tensors}
        if not known:
            return []
        doc = "Share of a layer's units whose gradient is exactly 0 over the whole batch"
        layout = Statistic(name="dead_units", of="layers", labels=tuple(known), doc=doc)

        def shares() -> Tensor:
            return ops.stack(
                [statistics.zero_units(tensors) / tensors[0].shape[-1] for tensors in known.values()]
            )

        return [Table(layout, shares)]

    def _histograms(self, step: CapturedStep, gradients: dict[int, Tensor]) -> list[Table]:
        scale = gradient_scale(step)
        known = {
            name: [gradients[index] for index in indices if index in gradients]
            for name, indices in self._of_layers.items()
        }
        known = {name: tensors for name, tensors in known.items() if tensors}
        if not known:
            return []

        def histograms() -> Tensor:
            entries = [self._driver.entries(tensor) for tensors in known.values() for tensor in tensors]
            rows = iter(ops.unstack(statistics.magnitude_histograms(entries, scale, most=HISTOGRAM_ENTRIES)))
            return ops.stack([added([next(rows) for _ in tensors]) for tensors in known.values()])

        layout = Statistic(
            name="gradient_histogram",
            of="layers",
            labels=tuple(known),
            columns=statistics.MAGNITUDE_LABELS,
            unit="count",
            doc=f"Gradient entries per order of magnitude of |g|; of up to {HISTOGRAM_ENTRIES} entries a variable",
        )
        return [Table(layout, histograms)]

    def _variable_statistic(self, name: str, doc: str) -> Statistic:
        return Statistic(name=name, of="variables", labels=self._labels, doc=doc)


def usable_gradients(step: CapturedStep, driver: Driver) -> dict[int, Tensor]:
    """Variable's index → gradient of the whole batch, without those from an inner loop or branch of the step."""
    gradients = step.reduced or step.gradients
    return {index: gradient for index, gradient in gradients.items() if driver.reachable(gradient)}


def gradient_scale(step: CapturedStep) -> Tensor | float:
    """What to divide gradients by."""
    return 1.0 if step.loss_scale is None else ops.cast(step.loss_scale, "float32")


def examples_of(inputs: Any) -> Tensor | None:
    """Examples in the batch, a scalar. `None`: it cannot be told."""
    for values in keras.tree.flatten(inputs):
        if values is not None and hasattr(values, "shape") and len(values.shape):
            return ops.shape(values)[0]
    return None


def added(values: list[Tensor]) -> Tensor:
    """Their sum, without an operation where there is but one."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def shortened(names: list[str], most: int = 10) -> str:
    """A list for people to read."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _divided(values: Tensor, scale: Tensor | float) -> Tensor:
    """Without an operation where there is nothing to do."""
    return values if isinstance(scale, float) and scale == 1.0 else values / scale


def _unit_variables(layer: DescribedLayer, variables: list[Any], indices: list[int]) -> list[int]:
    """The variables of a layer that have one column per unit. None of an embedding's: most rows are never used."""
    if isinstance(layer.layer, keras.layers.Embedding):
        return []
    shapes = {index: tuple(variables[index].shape) for index in indices}
    units = {shape[-1] for shape in shapes.values() if len(shape) == 1} or {
        shape[-1] for shape in shapes.values() if len(shape) > 1
    }
    if len(units) != 1 or not any(len(shape) > 1 for shape in shapes.values()):
        return []
    return [index for index, shape in shapes.items() if shape and shape[-1] in units]


def _dense(gradient: Any) -> bool:
    """TensorFlow's sparse gradients hold only the rows that were looked up."""
    return not hasattr(gradient, "dense_shape") and not getattr(gradient, "is_sparse", False)
