"""What `schedule KIND ARGUMENT=…` stands for in Keras code: a schedule of Keras' own, or one of those written here.

The classes that Keras has not are given as text; they compute what the training's own do.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from client_callback.wire.protocol import Scalar

WIDTH = 100
"""Characters in a line of the code."""

_KERAS = "keras.optimizers.schedules."
_CLASSES = {
    "step": f"{_KERAS}ExponentialDecay",
    "exponential": f"{_KERAS}ExponentialDecay",
    "inverse-time": f"{_KERAS}InverseTimeDecay",
    "polynomial": f"{_KERAS}PolynomialDecay",
    "cosine": f"{_KERAS}CosineDecay",
    "cosine-restarts": f"{_KERAS}CosineDecayRestarts",
    "cyclical": "Cyclical",
    "one-cycle": "OneCycle",
    "warmup": "LinearWarmup",
}
_COUNTS = frozenset({"decay_steps", "warmup_steps", "first_decay_steps", "step_size", "total_steps"})
_WORDS = (bool, str, type(None))


def schedule_call(
    kind: str, arguments: Mapping[str, Scalar], present: float
) -> tuple[str, dict[str, Scalar]]:
    """(class, arguments) of the schedule that a command put in when the rate was `present`. Raises KeyError."""
    values: dict[str, Scalar] = {
        name: value if isinstance(value, _WORDS) else int(value) if name in _COUNTS else float(value)
        for name, value in arguments.items()
    }
    if kind == "step":
        values["staircase"] = True
    if kind == "warmup":
        values.setdefault("warmup_target", present)
        first = float(_number(values["warmup_target"]) / _number(values["warmup_steps"]))
        values.setdefault("initial_learning_rate", first)
    elif kind != "one-cycle":
        values.setdefault("initial_learning_rate", present)
    return _CLASSES[kind], values


def _number(value: Any) -> float:
    return float(value)


def _class(name: str, docstring: str, arguments: str, body: str) -> str:
    names = [argument.partition("=")[0] for argument in arguments.split(", ")]
    stored = "\n".join(f"        self.{one} = {one}" for one in names)
    return "\n".join(
        [
            '@keras.saving.register_keras_serializable("interventions")',
            f"class {name}(keras.optimizers.schedules.LearningRateSchedule):",
            f'    """{docstring}"""',
            "",
            _init(arguments),
            stored,
            "",
            "    def __call__(self, step):",
            *(f"        {line}" if line else "" for line in dedent(body).strip().splitlines()),
            "",
            "    def get_config(self):",
            "        return dict(vars(self))",
        ]
    )


def _init(arguments: str) -> str:
    line = f"    def __init__(self, {arguments}):"
    if len(line) <= WIDTH:
        return line
    each = "".join(f"        {argument},\n" for argument in ("self", *arguments.split(", ")))
    return f"    def __init__(\n{each}    ):"


SOURCES = {
    "LinearWarmup": _class(
        "LinearWarmup",
        "To `warmup_target` in a straight line, then constant.",
        "initial_learning_rate, warmup_target, warmup_steps",
        """
        share = keras.ops.minimum(keras.ops.cast(step, "float32") / float(self.warmup_steps), 1.0)
        return self.initial_learning_rate * (1.0 - share) + self.warmup_target * share
        """,
    ),
    "Cyclical": _class(
        "Cyclical",
        "Up and down in straight lines (Smith 2017), the upper end shrinking by gamma each step.",
        "initial_learning_rate, maximal_learning_rate, step_size, gamma=1.0",
        """
        step = keras.ops.convert_to_tensor(step)
        place = keras.ops.cast(keras.ops.mod(step, 2 * self.step_size), "float32")
        height = 1.0 - keras.ops.abs(place / float(self.step_size) - 1.0)
        if self.gamma != 1.0:
            height = height * keras.ops.power(self.gamma, keras.ops.cast(step, "float32"))
        span = self.maximal_learning_rate - self.initial_learning_rate
        return self.initial_learning_rate + span * height
        """,
    ),
    "OneCycle": _class(
        "OneCycle",
        "Once up and down along half cosines (Smith and Topin 2018), as torch's OneCycleLR.",
        "maximal_learning_rate, total_steps, warmup_share=0.3, div_factor=25.0, final_div_factor=1e4",
        """
        step = keras.ops.cast(step, "float32")
        highest = self.maximal_learning_rate
        first = highest / self.div_factor
        last = first / self.final_div_factor
        top, end = self.warmup_share * self.total_steps - 1, self.total_steps - 1.0

        def half_cosine(begin, end, share):
            return end + (begin - end) * 0.5 * (1.0 + keras.ops.cos(math.pi * share))

        up = half_cosine(first, highest, step / top)
        share = keras.ops.minimum((step - top) / (end - top), 1.0)
        return keras.ops.where(step <= top, up, half_cosine(highest, last, share))
        """,
    ),
}
