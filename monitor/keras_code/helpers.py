"""The parts that exported code is put together from: each a method of the callback or a class beside it, as text.

`changes` names those that its calls use; `needed` adds what these use in turn. They do what steering does, for
one process and without asking whether it may be done: the run itself has found that out.
"""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import dedent
from typing import NamedTuple

from monitor.keras_code import schedules


class Helper(NamedTuple):
    """One part."""

    source: str
    needs: tuple[str, ...] = ()
    """Other helpers that it calls."""
    imports: tuple[str, ...] = ()
    beside: bool = False
    """Whether it stands outside the callback."""


class Surroundings(NamedTuple):
    """What of the run decides how its code looks."""

    backend: str
    scheduled: bool
    """Whether a schedule decides the rate at some time."""
    scaled: bool
    """Whether the loss is scaled, as under mixed precision."""
    accumulates: bool
    averages: bool
    """Whether the optimizer keeps moving averages of the weights."""
    excludes: bool
    """Whether an optimizer decays weights."""
    ramps: bool = False
    """Whether a rate goes somewhere over several steps, or is held."""
    settings: tuple[str, ...] = ()
    """(owner, attribute) pairs, as code, of what else is set."""


def helpers_of(run: Surroundings) -> dict[str, Helper]:
    """All parts by name, in the order in which they are written."""
    methods = {
        "layer": _LAYER,
        "inner_optimizer": _INNER_OPTIMIZER,
        **_rates(run),
        "steer": _steer(run),
        "use_schedule": _use_schedule(run),
        "switch_optimizer": _switch(run),
        "remake_optimizer": _remake(run),
        "phase": _PHASE,
        "put_in": _PUT_IN,
        "set_regularizer": _SET_REGULARIZER,
        "weigh_classes": _WEIGH_CLASSES,
        "set_loss_weights": _SET_LOSS_WEIGHTS,
        "trace_anew": _trace_anew(run),
        "settings": _settings(run),
        "keep": _keep(run),
        "rate_variables": _rate_variables(run),
        "go_back": _GO_BACK,
        "set_back": _SET_BACK,
    }
    return {
        "number": _NUMBER,
        **{
            name: Helper(source, (), _IMPORTS.get(name, ()), True)
            for name, source in schedules.SOURCES.items()
        },
        "SteeredSchedule": _STEERED_SCHEDULE,
        **{name: _within(helper) for name, helper in methods.items()},
    }


_IMPORTS = {"OneCycle": ("import math",)}


def needed(names: Iterable[str], helpers: dict[str, Helper]) -> list[str]:
    """Those named and whatever they call, in the order of `helpers`."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += helpers[name].needs
    return [name for name in helpers if name in found]


def _within(helper: Helper) -> Helper:
    """Indented as a method."""
    lines = dedent(helper.source).strip().splitlines()
    return helper._replace(source="\n".join(f"    {line}" if line else "" for line in lines))


def _beside(source: str, *imports: str, needs: tuple[str, ...] = ()) -> Helper:
    return Helper(dedent(source).strip(), needs, imports, beside=True)


_NUMBER = _beside(
    '''
    def number(value):
        """The shortest decimal that is the same float32: 0.001 and not 0.0010000000475."""
        return float(str(np.float32(keras.ops.convert_to_numpy(value))))
    ''',
    "import numpy as np",
)

_LAYER = Helper(
    """
    def layer(self, name):
        return next(layer for layer in self.model._flatten_layers() if layer.name == name)
    """
)

_INNER_OPTIMIZER = Helper(
    '''
    def inner_optimizer(self):
        """The one that holds the rate: one that scales the loss has it inside."""
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)
    '''
)

# ── Rates ─────────────────────────────────────────────────────────────────────────────────────────


def _rates(run: Surroundings) -> dict[str, Helper]:
    still = "\n            self.ramp = self.held = None" if run.ramps else ""
    ramping = (
        """
            if self.ramp:
                start, target, begin, steps = self.ramp
                self.ramp = start * factor, target * factor, begin, steps
                self.held = None
                return"""
        if run.ramps
        else ""
    )
    found = _scheduled_rates(still, ramping) if run.scheduled else _plain_rates(still, ramping)
    if run.ramps:
        found["over"] = _over(run)
    return found


def _plain_rates(still: str, ramping: str) -> dict[str, Helper]:
    return {
        "assign_rate": Helper(
            """
            def assign_rate(self, value):
                self.model.optimizer.learning_rate = value
            """
        ),
        "set_rate": Helper(
            f"""
        def set_rate(self, value):{still}
            self.assign_rate(value)
            """,
            needs=("assign_rate",),
        ),
        "scale_rate": Helper(
            f"""
        def scale_rate(self, factor):{ramping}
            self.set_rate(number(self.model.optimizer.learning_rate) * factor)
            """,
            needs=("number", "set_rate"),
        ),
    }


_STEERED_SCHEDULE = _beside(
    '''
    @keras.saving.register_keras_serializable("interventions")
    class SteeredSchedule(keras.optimizers.schedules.LearningRateSchedule):
        """A schedule that can be scaled and overridden while the compiled step uses it."""

        def __init__(self, schedule, offset=0, multiplier=1.0, override=-1.0):
            self.schedule = schedule
            self.offset = offset  # steps of the schedule taken before the optimizer's first
            self.multiplier = keras.Variable(multiplier, trainable=False, name="multiplier")
            self.override = keras.Variable(override, trainable=False, name="override")
            self.own = schedule  # what the optimizer is given back in the end

        def __call__(self, step):
            rate = keras.ops.convert_to_tensor(self.schedule(step + self.offset))
            rate = rate * keras.ops.cast(self.multiplier, rate.dtype)
            override = keras.ops.cast(self.override, rate.dtype)
            return keras.ops.where(self.override > 0, override, rate)

        def get_config(self):
            return {
                "schedule": keras.optimizers.schedules.serialize(self.schedule),
                "offset": self.offset,
                "multiplier": number(self.multiplier),
                "override": number(self.override),
            }

        @classmethod
        def from_config(cls, config):
            schedule = keras.optimizers.schedules.deserialize(config["schedule"])
            return cls(**{**config, "schedule": schedule})
    ''',
    needs=("number",),
)


def _scheduled_rates(still: str, ramping: str) -> dict[str, Helper]:
    needs = ("inner_optimizer", "SteeredSchedule", "steer")
    return {
        "assign_rate": Helper(
            '''
            def assign_rate(self, value):
                """A schedule no longer decides."""
                optimizer = self.inner_optimizer()
                steered = optimizer._learning_rate
                if not isinstance(steered, SteeredSchedule):
                    steered.assign(value)
                elif isinstance(steered.own, keras.Variable):
                    optimizer._learning_rate = steered.own
                    steered.own.assign(value)
                    self.trace_anew()
                else:
                    steered.override.assign(value)
            ''',
            needs=(*needs, "trace_anew"),
        ),
        "set_rate": Helper(
            f"""
        def set_rate(self, value):{still}
            self.assign_rate(value)
            """,
            needs=("assign_rate",),
        ),
        "scale_rate": Helper(
            f'''
        def scale_rate(self, factor):
            """A schedule keeps its shape."""{ramping}
            steered = self.inner_optimizer()._learning_rate
            if isinstance(steered, SteeredSchedule) and number(steered.override) <= 0:
                steered.multiplier.assign(number(steered.multiplier) * factor)
            else:
                self.set_rate(number(self.model.optimizer.learning_rate) * factor)
            ''',
            needs=("number", "set_rate", *needs),
        ),
    }


def _over(run: Surroundings) -> Helper:
    """Ramps and holding, both by assigning before each step."""
    scheduled = (
        """
            steered = self.inner_optimizer()._learning_rate
            if value is None and isinstance(steered, SteeredSchedule) and number(steered.override) <= 0:
                start = number(steered.multiplier)
                target = start * factor
            else:
                start = number(self.model.optimizer.learning_rate)
                target = start * factor if value is None else value
                self.assign_rate(start)"""
        if run.scheduled
        else """
            start = number(self.model.optimizer.learning_rate)
            target = start * factor if value is None else value"""
    )
    assigning = (
        """
                steered = optimizer._learning_rate
                if isinstance(steered, SteeredSchedule) and number(steered.override) <= 0:
                    steered.multiplier.assign(rate)
                else:
                    self.assign_rate(rate)"""
        if run.scheduled
        else """
                self.assign_rate(rate)"""
    )
    return Helper(
        f'''
        def over(self, steps, value=None, factor=1.0):
            """The rate goes to `value`, or to `factor` times what it is, in a straight line."""{scheduled}
            self.held = None
            self.ramp = start, target, int(self.inner_optimizer()._iterations), steps

        def hold(self, value):
            """Whatever else sets the rate is overruled before each step."""
            self.held = value

        def follow_rate(self):
            if self.ramp:
                start, target, begin, steps = self.ramp
                optimizer = self.inner_optimizer()
                taken = min(int(optimizer._iterations) - begin, steps)
                share = np.float32(taken) / np.float32(steps)
                start, target = np.float32(start), np.float32(target)
                rate = start + (target - start) * share if taken < steps else target{assigning}
                if taken == steps:
                    self.ramp = None
            elif self.held:
                self.assign_rate(self.held)
        ''',
        needs=("number", "assign_rate", "inner_optimizer"),
        imports=("import numpy as np",),
    )


def _listing(run: Surroundings, indent: int) -> str:
    """On JAX the compiled step sees only what is listed; all else would be a constant to it."""
    if run.backend != "jax":
        return ""
    line = "optimizer._variables.extend([steered.multiplier, steered.override])"
    return f"\n{' ' * indent}{line}"


def _steer(run: Surroundings) -> Helper:
    """Before the first trace, and after the last: `on_train_begin` and `on_train_end` call them."""
    unlisted = ""
    if run.backend == "jax":
        unlisted = """
                mine = {id(steered.multiplier), id(steered.override)}
                optimizer._variables[:] = [v for v in optimizer._variables if id(v) not in mine]"""
    return Helper(
        f'''
        def steer(self, optimizer, offset=0, multiplier=1.0):
            """Makes the optimizer's schedule one that can be steered, before the step is traced."""
            own = optimizer._learning_rate
            if isinstance(own, keras.optimizers.schedules.LearningRateSchedule):
                steered = SteeredSchedule(own, offset, multiplier)
                optimizer._learning_rate = steered{_listing(run, 16)}

        def give_rate_back(self):
            optimizer = self.inner_optimizer()
            steered = optimizer._learning_rate
            if isinstance(steered, SteeredSchedule):
                rate = number(optimizer.learning_rate)
                optimizer._learning_rate = steered.own
                if isinstance(steered.own, keras.Variable):
                    steered.own.assign(rate){unlisted}
        ''',
        needs=("number", "SteeredSchedule", "inner_optimizer"),
    )


def _use_schedule(run: Surroundings) -> Helper:
    still = "\n            self.ramp = self.held = None" if run.ramps else ""
    return Helper(
        f'''
        def use_schedule(self, schedule):
            """It decides the rate from the next step on, which is its step 0."""{still}
            optimizer = self.inner_optimizer()
            own = optimizer._learning_rate
            steered = SteeredSchedule(schedule, offset=-int(optimizer._iterations))
            steered.own = own.own if isinstance(own, SteeredSchedule) else own
            optimizer._learning_rate = steered{_listing(run, 12)}
            self.trace_anew()
        ''',
        needs=("SteeredSchedule", "steer", "inner_optimizer", "trace_anew"),
    )


# ── The optimizer ─────────────────────────────────────────────────────────────────────────────────


def _switch(run: Surroundings) -> Helper:
    looks_inside = run.scheduled or run.accumulates or run.excludes
    lines = [
        "def switch_optimizer(self, cls, **arguments):",
        '    """Trains with another optimizer from the next step on, whose moments start at zero."""',
        "    # So do its `iterations`: copied, they would make Adam's first updates far too large.",
        "    model = self.model",
        *(("    old = model.optimizer",) if run.scaled else ()),
        *(("    inner = self.inner_optimizer()",) if looks_inside else ()),
        *(("    self.ramp = self.held = None",) if run.ramps else ()),
        *_with_scope(run, _new_optimizer(run)),
        *(_CARRY_ACCUMULATED if run.accumulates else ()),
        *(_RESTART_AVERAGES if run.averages else ()),
        "    self.put_in(new)",
    ]
    needs = [
        "put_in",
        *(("inner_optimizer",) if looks_inside else ()),
        *(("steer", "number", "SteeredSchedule") if run.scheduled else ()),
        *(("phase",) if run.accumulates else ()),
    ]
    return Helper("\n".join(lines), needs=tuple(needs))


def _new_optimizer(run: Surroundings) -> list[str]:
    lines = []
    if run.scheduled:
        lines += [
            "    steered = inner._learning_rate",
            '    goes_on = "learning_rate" not in arguments and isinstance(steered, SteeredSchedule)',
            "    if goes_on:",
            '        arguments["learning_rate"] = steered.schedule',
        ]
    lines.append("    new = cls(**arguments)")
    if run.scheduled:
        phase = " - self.phase(inner)" if run.accumulates else ""
        lines += [
            "    if goes_on:",
            f"        position = int(inner._iterations) + steered.offset{phase}",
            "        self.steer(new, position, number(steered.multiplier))",
        ]
    if run.excludes:
        lines += [
            '    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):',
            "        if hasattr(inner, name):",
            "            setattr(new, name, getattr(inner, name))",
        ]
    lines += _scaled_like_old(run)
    lines.append("    new.build(model.trainable_variables)")
    if run.scaled:
        lines += [
            "    if isinstance(old, keras.optimizers.LossScaleOptimizer):",
            "        new.dynamic_scale.assign(old.dynamic_scale)",
            "        new.step_counter.assign(old.step_counter)",
        ]
    return lines


def _scaled_like_old(run: Surroundings) -> list[str]:
    if not run.scaled:
        return []
    return [
        "    if isinstance(old, keras.optimizers.LossScaleOptimizer):",
        "        new = keras.optimizers.LossScaleOptimizer(",
        "            new,",
        "            initial_scale=old.initial_scale,",
        "            dynamic_growth_steps=old.dynamic_growth_steps,",
        "            name=old.name,",
        "        )",
    ]


def _with_scope(run: Surroundings, lines: list[str]) -> list[str]:
    """On TensorFlow new variables must be made for every replica, or these drift apart without any error."""
    if run.backend != "tensorflow":
        return lines
    return ["    with model.distribute_strategy.scope():", *(f"    {line}" for line in lines)]


_CARRY_ACCUMULATED = (
    "    # Gradients accumulated so far count for the next update.",
    '    fresh = getattr(new, "inner_optimizer", new)',
    "    phase = self.phase(inner)",
    "    if 0 < phase < (fresh.gradient_accumulation_steps or 1):",
    "        for target, variable in zip(fresh._accumulated_gradients, fresh._trainable_variables):",
    "            place = inner._get_variable_index(variable)",
    "            target.assign(keras.ops.copy(inner._accumulated_gradients[place].value))",
    "        fresh._iterations.assign(phase)",
)

_RESTART_AVERAGES = (
    "    # Averages start anew from the weights; zeros would be written into the weights at the end.",
    '    fresh = getattr(new, "inner_optimizer", new)',
    "    if fresh.use_ema:",
    "        averages = fresh._model_variables_moving_average",
    "        for average, weight in zip(averages, fresh._trainable_variables):",
    "            if average is not None:",
    "                average.assign(keras.ops.copy(weight.value))",
)


def _remake(run: Surroundings) -> Helper:
    """For settings that are constants of the compiled step, or decide which variables the optimizer has."""
    rate = "number(rate) if isinstance(rate, keras.Variable) else rate" if run.scheduled else "number(rate)"
    listing = []
    if run.scheduled and run.backend == "jax":
        listing = [
            "    if isinstance(rate, SteeredSchedule):",
            "        new._variables.extend([rate.multiplier, rate.override])",
        ]
    making = [
        f'    config["learning_rate"] = {rate}',
        "    new = type(inner).from_config({**config, **changes})",
        *listing,
        '    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):',
        "        if hasattr(inner, name):",
        "            setattr(new, name, getattr(inner, name))",
        *_scaled_like_old(run),
        "    new.build(model.trainable_variables)",
    ]
    lines = [
        "def remake_optimizer(self, corrected=(), **changes):",
        '    """The same, with other settings, for what is trainable now; it goes on where it was."""',
        "    model = self.model",
        *(("    old = model.optimizer",) if run.scaled else ()),
        "    inner = self.inner_optimizer()",
        "    rate, config = inner._learning_rate, inner.get_config()",
        *_with_scope(run, making),
        "    # What it has gathered; that of frozen weights is there when they are trained again.",
        "    self.gathered.update((v.path, keras.ops.copy(v.value)) for v in model.optimizer.variables)",
        "    for variable in new.variables:",
        "        value = self.gathered.get(variable.path)",
        "        if value is not None and value.shape == variable.shape:",
        "            variable.assign(value)",
        '    fresh = getattr(new, "inner_optimizer", new)',
        "    before, after = (o.gradient_accumulation_steps or 1 for o in (inner, fresh))",
        "    done, phase = divmod(int(inner._iterations), before)",
        "    fresh._iterations.assign(done * after + (phase if phase < after else 0))",
        "    if phase >= after:",
        "        for gradient in getattr(fresh, '_accumulated_gradients', None) or ():".replace("'", '"'),
        "            gradient.assign(keras.ops.zeros_like(gradient))",
        "    for slot, beta in corrected:",
        "        # Averages that began at zero are divided by 1 - beta ** updates.",
        "        if done:",
        "            old_beta, new_beta = getattr(inner, beta), getattr(fresh, beta)",
        "            factor = (1 - new_beta**done) / (1 - old_beta**done)",
        "            for average in getattr(fresh, slot):",
        "                average.assign(average * factor)",
        "    self.put_in(new)",
    ]
    needs = ("put_in", "inner_optimizer", "number", *(("SteeredSchedule", "steer") if run.scheduled else ()))
    return Helper("\n".join(lines), needs=needs)


_PHASE = Helper(
    '''
    def phase(self, optimizer):
        """Of how many batches the gradients wait for the next update."""
        length = optimizer.gradient_accumulation_steps
        return int(optimizer._iterations) % length if length else 0
    '''
)

_PUT_IN = Helper(
    '''
    def put_in(self, optimizer):
        """The model trains with it from the next step on, and is saved with it."""
        model = self.model
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        compiled = getattr(getattr(model, "_compile_config", None), "config", {})
        if "optimizer" in compiled:
            wrapped = compiled["optimizer"] is model.optimizer
            compiled["optimizer"] = optimizer if wrapped else inner
        model.optimizer = optimizer
        self.trace_anew()
    ''',
    needs=("trace_anew",),
)


def _trace_anew(run: Surroundings) -> Helper:
    if run.backend == "jax":
        return Helper(
            '''
            def trace_anew(self):
                """The compiled step holds what was just changed."""
                # JAX would take a trace of the same shapes again, whatever optimizer it holds.
                jax.jit(self.model.train_step).clear_cache()
                self.model.make_train_function(force=True)
            ''',
            imports=("import jax",),
        )
    return Helper(
        '''
        def trace_anew(self):
            """The compiled step holds what was just changed."""
            self.model.make_train_function(force=True)
        '''
    )


# ── Layers and loss ───────────────────────────────────────────────────────────────────────────────

_SET_REGULARIZER = Helper(
    """
    def set_regularizer(self, name, **strengths):
        layer = self.layer(name)
        regularizer = layer.kernel_regularizer
        config = regularizer.get_config() if regularizer else {}
        strengths = {"l1": 0.0, "l2": 0.0, **config, **strengths}
        layer.kernel_regularizer = keras.regularizers.L1L2(**strengths)
        self.kernel(layer).regularizer = layer.kernel_regularizer

    def kernel(self, layer):
        return vars(layer).get("_kernel", vars(layer).get("kernel"))
    """,
    needs=("layer",),
)

_WEIGH_CLASSES = Helper(
    '''
    def weigh_classes(self):
        """As `fit(class_weight=...)` does, but by `self.class_weight` at the time of the trace."""
        compute_loss = self.model.compute_loss

        def weighted(x=None, y=None, y_pred=None, sample_weight=None, training=True):
            if self.class_weight and training:
                weights = self.weights_of(y, y_pred)
                sample_weight = weights if sample_weight is None else weights * sample_weight
            return compute_loss(x, y, y_pred, sample_weight, training)

        self.model.compute_loss = weighted

    def weights_of(self, y, y_pred):
        """Of labels as class numbers, one-hot rows, or 0 and 1 of a single unit."""
        ops, units = keras.ops, y_pred.shape[-1]
        if len(y.shape) == len(y_pred.shape) and y.shape[-1] == units > 1:
            y = ops.argmax(y, axis=-1)
        elif len(y.shape) == len(y_pred.shape) and y.shape[-1] == 1:
            y = ops.squeeze(y, axis=-1)
        labels = ops.cast(y > 0.5 if units == 1 else y, "int32")
        weights = [self.class_weight.get(label, 1.0) for label in range(max(self.class_weight) + 1)]
        table = ops.convert_to_tensor([*weights, 1.0], "float32")
        return ops.take(table, ops.clip(labels, 0, len(weights)), axis=0)
    '''
)

_SET_LOSS_WEIGHTS = Helper(
    """
    def set_loss_weights(self, weights):
        loss = self.model._compile_loss
        loss._flat_losses = [
            one._replace(loss_weights=weights.get(one.name, one.loss_weights))
            for one in loss._flat_losses
        ]
        self.trace_anew()
    """,
    needs=("trace_anew",),
)


# ── Going back ────────────────────────────────────────────────────────────────────────────────────


def _settings(run: Surroundings) -> Helper:
    own = ['(self, "ramp")', '(self, "held")'] if run.ramps else []
    own += ['(self.inner_optimizer(), "_learning_rate")'] if run.scheduled else []
    pairs = "".join(f"\n                {pair}," for pair in (*own, *run.settings))
    listed = f"[{pairs}\n            ]" if pairs else "[]"
    return Helper(
        f'''
        def settings(self):
            """Owner and attribute of all that is set in this session."""
            return {listed}
        ''',
        needs=(
            *(("layer",) if "self.layer" in pairs else ()),
            *(("set_regularizer",) if "self.kernel" in pairs else ()),
            *(("inner_optimizer",) if run.scheduled else ()),
        ),
    )


def _keep(run: Surroundings) -> Helper:
    own = ""
    if run.scheduled and run.backend != "jax":
        own = """
            steered = self.inner_optimizer()._learning_rate
            if isinstance(steered, SteeredSchedule):
                variables += [steered.multiplier, steered.override]"""
    return Helper(
        f'''
        def keep(self, name):
            """Copies, in host memory, all that a step changes: weights, optimizer, metrics, seeds."""
            model = self.model
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]{own}
            copies = {{
                id(variable): (variable, np.array(keras.ops.convert_to_numpy(variable.value)))
                for variable in variables
            }}
            settings = [(owner, name, getattr(owner, name)) for owner, name in self.settings()]
            generators = random.getstate(), np.random.get_state()
            rates = [number(variable) for variable in self.rate_variables()]
            self.kept[name] = model.optimizer, settings, copies, generators, rates
        ''',
        needs=(
            "settings",
            "rate_variables",
            "number",
            *(("inner_optimizer", "SteeredSchedule") if own else ()),
        ),
        imports=("import random", "import numpy as np"),
    )


_GO_BACK = Helper(
    '''
    def go_back(self, name):
        """All is as it was when `name` was kept; the data goes on."""
        model = self.model  # before anything is set: on JAX this makes the variables current
        optimizer, settings, copies, generators, _ = self.kept[name]
        for owner, attribute, value in settings:
            setattr(owner, attribute, value)
        self.put_in(optimizer)
        for metric in model.metrics:
            if any(id(variable) not in copies for variable in metric.variables):
                metric.reset_state()  # made with the first batch
        for variable, value in copies.values():
            variable.assign(np.array(value))
        random.setstate(generators[0])
        np.random.set_state(generators[1])
    ''',
    needs=("keep", "put_in"),
)

_SET_BACK = Helper(
    '''
    def set_back(self, name, corrected=(), rate=True):
        """What was set is as it was when `name` was kept; weights and moments stay as they are."""
        present = self.inner_optimizer()
        optimizer, settings, _, _, rates = self.kept[name]
        for owner, attribute, value in settings:
            setattr(owner, attribute, value)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if type(inner) is type(present):
            config = inner.get_config()
            del config["name"], config["learning_rate"]
            self.remake_optimizer(corrected, **config)
        else:
            self.put_in(optimizer)
        if rate:
            for variable, value in zip(self.rate_variables(), rates):
                variable.assign(value)
    ''',
    needs=("keep", "put_in", "inner_optimizer", "remake_optimizer", "rate_variables"),
)


def _rate_variables(run: Surroundings) -> Helper:
    own = ""
    if run.scheduled:
        own = """
            if isinstance(rate, SteeredSchedule):
                return [rate.multiplier, rate.override]"""
    return Helper(
        f"""
        def rate_variables(self):
            rate = self.inner_optimizer()._learning_rate{own}
            return [rate]
        """,
        needs=("inner_optimizer", *(("SteeredSchedule",) if run.scheduled else ())),
    )
