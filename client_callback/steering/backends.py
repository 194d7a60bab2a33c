"""What differs between Keras' backends when optimizer state is touched in the middle of a training.

Everything else in steering is written against `Backend`; a new backend is one class here and one entry in
`BACKENDS`. The frameworks are imported where they are used: only one of them need be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal, Protocol

import keras
import numpy as np
import numpy.typing as npt

from client_callback.steering.training import Refused


class Backend(Protocol):
    """How one of Keras' backends lets optimizer state be read, written and replaced between batches."""

    @property
    def reads_only_listed_variables(self) -> bool:
        """Whether the step sees a variable only when it is among the optimizer's own; else it is a constant to it."""

    @property
    def late_control(self) -> Literal["at once", "traced anew"]:
        """When the step asks a `RateControl` that is put on an optimizer that trains already."""

    def state(self, model: Any) -> AbstractContextManager[None]:
        """Inside, variables hold the training's state; what is assigned reaches the next step."""

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, new variables live where the model's do: on every replica."""

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Assigns, for each (target, source) of Keras variables, each replica's own value."""

    def host(self, variable: Any) -> npt.NDArray[Any]:
        """A copy of the variable's value in host memory. Of one that is not the same everywhere: `[replicas, …]`."""

    def set_from_host(self, variable: Any, value: npt.NDArray[Any]) -> None:
        """Gives the variable back what `host` copied, each replica its own, bit for bit."""

    def rehearse(self, model: Any, optimizer: Any, twin: Callable[[], Any]) -> None:
        """Tries one update of the model by `optimizer` and changes nothing; raises what the update raises.

        The next step of `fit` would try it too, but there an error would end the training. `twin` makes an
        unbuilt optimizer with the same arguments, without loss scaling.
        """

    def evaluation(self, model: Any) -> AbstractContextManager[None]:
        """Inside `state`: Keras may evaluate the model in the middle of an epoch, and `fit` goes on as before."""

    def forget_trace(self, model: Any) -> None:
        """The train function made next is traced anew, whoever still holds an earlier one."""

    def forget_evaluation(self, model: Any) -> None:
        """Validation and prediction are traced anew as well: layers or the loss are others now."""

    def inference(self) -> AbstractContextManager[Any]:
        """Inside, calling the model keeps nothing that only gradients need."""

    def accumulates(self, model: Any) -> bool:
        """Whether Keras can accumulate this model's gradients over several batches."""


class TensorFlowBackend:
    """`tf.function` reads variables at every step, so assigning one is enough."""

    reads_only_listed_variables = False
    late_control: Literal["traced anew"] = "traced anew"

    def state(self, model: Any) -> AbstractContextManager[None]:
        """Variables are always current."""
        return nullcontext()

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Outside it, replicas would get variables of their own and drift apart without any error."""
        scope: AbstractContextManager[Any] = model.distribute_strategy.scope()
        return scope

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Replica by replica: accumulated gradients differ between them."""
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        for target, source in pairs:
            strategy = getattr(target.value, "distribute_strategy", None) or tf.distribute.get_strategy()
            strategy.extended.update(target.value, lambda a, b: a.assign(b), args=(source.value,))

    def host(self, variable: Any) -> npt.NDArray[Any]:
        """Mirrored variables are the same on every replica; those summed up when read are not."""
        parts = _replica_values(variable)
        if len(parts) == 1:
            return np.array(parts[0].numpy())
        return np.stack([part.numpy() for part in parts])

    def set_from_host(self, variable: Any, value: npt.NDArray[Any]) -> None:
        """Component by component: assigning the whole would share a sum out anew."""
        parts = _replica_values(variable)
        for part, one in zip(parts, [value] if len(parts) == 1 else value, strict=True):
            part.assign(one)

    def rehearse(self, model: Any, optimizer: Any, twin: Callable[[], Any]) -> None:
        """Traces the update and runs nothing."""
        import tensorflow as tf  # noqa: PLC0415 (only where TensorFlow is the backend)

        variables = model.trainable_variables
        embeddings = _embedding_variables(model)

        def gradient(variable: Any) -> Any:
            dense = tf.zeros(variable.shape, variable.dtype)
            if id(variable) not in embeddings:
                return dense
            rows = tf.zeros([1], tf.int64)
            return tf.IndexedSlices(dense[:1], rows, tf.shape(dense, tf.int64))

        def update() -> None:
            optimizer.apply([gradient(variable) for variable in variables], variables)

        tf.function(lambda: model.distribute_strategy.run(update), autograph=False).get_concrete_function()

    def evaluation(self, model: Any) -> AbstractContextManager[None]:
        """It has functions of its own."""
        return nullcontext()

    def forget_trace(self, model: Any) -> None:
        """Every `tf.function` has a trace of its own."""

    def forget_evaluation(self, model: Any) -> None:
        """Keras makes both functions again when they are missing."""
        model.test_function = model.predict_function = None

    def inference(self) -> AbstractContextManager[Any]:
        """Nothing is kept unless it is asked for."""
        return nullcontext()

    def accumulates(self, model: Any) -> bool:
        """Keras' condition on whether to update cannot be traced on several replicas."""
        return bool(model.distribute_strategy.num_replicas_in_sync == 1)


class JaxBackend:
    """The state travels through the train function; variables are empty while it does."""

    reads_only_listed_variables = True
    late_control: Literal["traced anew"] = "traced anew"

    @contextmanager
    def state(self, model: Any) -> Iterator[None]:
        """Hands the state to the variables, and has `fit` take it from them again for the next step."""
        model.jax_state_sync()
        try:
            yield
        finally:
            if getattr(model, "_jax_state", None):
                # Should the next step fail, Keras puts this back into the variables there are now.
                values = model._get_jax_state(**dict.fromkeys(_JAX_STATE, True))
                model._jax_state = dict(zip(_JAX_STATE, values, strict=True))
            model._jax_state_synced = True

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """Keras lays a new variable out as `keras.distribution` says."""
        return nullcontext()

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Into an array of its own: one that two variables share cannot be donated to the step."""
        import jax.numpy as jnp  # noqa: PLC0415 (only where JAX is the backend)

        for target, source in pairs:
            target.assign(jnp.array(source.value, copy=True))

    def host(self, variable: Any) -> npt.NDArray[Any]:
        """Of an array laid out over several devices: the whole."""
        return np.array(variable.value)

    def set_from_host(self, variable: Any, value: npt.NDArray[Any]) -> None:
        """A copy: JAX may use an array of numpy's as it is, and the step may then overwrite it."""
        variable.assign(np.array(value))

    def rehearse(self, model: Any, optimizer: Any, twin: Callable[[], Any]) -> None:
        """Traces the update and runs nothing."""
        import jax  # noqa: PLC0415 (only where JAX is the backend)

        def shapes(variables: Iterable[Any]) -> list[Any]:
            return [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for variable in variables]

        weights = shapes(model.trainable_variables)
        jax.eval_shape(optimizer.stateless_apply, shapes(optimizer.variables), weights, weights)

    @contextmanager
    def evaluation(self, model: Any) -> Iterator[None]:
        """Evaluating forgets the state that travels through `fit`; `state` fills it with what there is afterwards."""
        travelling = getattr(model, "_jax_state", None)
        try:
            yield
        finally:
            model.jax_state_sync()  # of an evaluation that was interrupted
            model._jax_state = travelling

    def forget_trace(self, model: Any) -> None:
        """JAX keeps traces by function and shapes, and the train step is the same function for any optimizer.

        While anything holds the old train function, an Adam with another `beta_1` would train as the old one.
        """
        import jax  # noqa: PLC0415 (only where JAX is the backend)

        # A plain function on the instance has traces for each set of arguments to `jit`: these are Keras'.
        shardings = None
        if keras.distribution.distribution() is not None:
            with suppress(TypeError, AttributeError):  # a step that died took the variables' values with it
                shardings = (None, model._get_state_sharding_spec())
        jax.jit(model.train_step, donate_argnums=0, out_shardings=shardings).clear_cache()

    def forget_evaluation(self, model: Any) -> None:
        """A trace knows weights by their places: with others trained, it would take one for another of its shape."""
        import jax  # noqa: PLC0415 (only where JAX is the backend)

        model.test_function = model.predict_function = None
        jax.jit(model.test_step).clear_cache()

    def inference(self) -> AbstractContextManager[Any]:
        """Nothing is kept unless it is asked for."""
        return nullcontext()

    def accumulates(self, model: Any) -> bool:
        """On any number of devices."""
        return True


class TorchBackend:
    """The step runs as it is written, on variables that are always current."""

    reads_only_listed_variables = False
    late_control: Literal["at once"] = "at once"

    def state(self, model: Any) -> AbstractContextManager[None]:
        """Variables are always current."""
        return nullcontext()

    def scope(self, model: Any) -> AbstractContextManager[Any]:
        """There are no replicas."""
        return nullcontext()

    def copy(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Torch copies into the target's own memory."""
        for target, source in pairs:
            target.assign(source.value)

    def host(self, variable: Any) -> npt.NDArray[Any]:
        """Bits of what numpy has no type for, as whole numbers."""
        import torch  # noqa: PLC0415 (only where torch is the backend)

        value = variable.value.detach().cpu()
        if value.dtype == torch.bfloat16:
            value = value.view(torch.int16)
        return np.array(value.numpy())

    def set_from_host(self, variable: Any, value: npt.NDArray[Any]) -> None:
        """Into the variable's own memory."""
        import torch  # noqa: PLC0415 (only where torch is the backend)

        target, found = variable.value, torch.from_numpy(np.array(value))
        with torch.no_grad():
            target.copy_(found.view(torch.bfloat16) if target.dtype == torch.bfloat16 else found)

    def rehearse(self, model: Any, optimizer: Any, twin: Callable[[], Any]) -> None:
        """Has the twin update small stand-ins of the weights: torch cannot trace without running."""
        import torch  # noqa: PLC0415 (only where torch is the backend)

        stand_ins = _stand_ins(model.trainable_variables)
        rehearsing = twin()
        rehearsing.build(stand_ins)
        gradients = [keras.ops.zeros_like(variable) for variable in stand_ins]
        with torch.no_grad():
            for _ in range(rehearsing.gradient_accumulation_steps or 1):
                rehearsing.apply(gradients, stand_ins)

    @contextmanager
    def evaluation(self, model: Any) -> Iterator[None]:
        """Evaluating puts every module into the mode of testing, and `fit` back only when an epoch begins."""
        modes = [(module, module.training) for module in model.modules()]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def forget_trace(self, model: Any) -> None:
        """There is none."""

    def forget_evaluation(self, model: Any) -> None:
        """Keras makes both functions again when they are missing."""
        model.test_function = model.predict_function = None

    def inference(self) -> AbstractContextManager[Any]:
        """Torch keeps it with every tensor."""
        import torch  # noqa: PLC0415 (only where torch is the backend)

        without: AbstractContextManager[Any] = torch.no_grad()
        return without

    def accumulates(self, model: Any) -> bool:
        """There are no replicas."""
        return True


def _replica_values(variable: Any) -> list[Any]:
    """The variable of each replica; of a mirrored one the first would do, but all must be written."""
    value = variable.value
    return list(getattr(value, "values", None) or [value])


_JAX_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
"""Keras' names for what travels through the train function, in its order."""

_STAND_IN_LENGTH = 3
"""Of each axis: optimizers tell weights apart by the number of axes, not by their lengths."""


def _stand_ins(variables: Iterable[Any]) -> list[Any]:
    """Variables of zeros, one for each name, number of axes and dtype that there is."""
    kinds = {(v.name, tuple(min(n, _STAND_IN_LENGTH) for n in v.shape), v.dtype) for v in variables}
    return [
        keras.Variable(keras.ops.zeros(shape, dtype), dtype=dtype, name=name) for name, shape, dtype in kinds
    ]


def _embedding_variables(model: Any) -> set[int]:
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return {id(variable) for layer in layers for variable in layer.trainable_variables}


BACKENDS: dict[str, Backend] = {
    "tensorflow": TensorFlowBackend(),
    "jax": JaxBackend(),
    "torch": TorchBackend(),
}


def current_backend() -> Backend:
    """The adapter for the backend Keras runs on.

    Raises:
        Refused: there is none yet.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        possible = ", ".join(BACKENDS)
        raise Refused(
            f"the optimizer cannot be steered on the {name} backend yet (only on {possible}); "
            "pause, resume, stop and note work"
        )
    return BACKENDS[name]
