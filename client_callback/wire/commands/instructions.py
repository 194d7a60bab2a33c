"""What commands ask for, as frozen values; `grammar` makes them, `client_callback.steering` obeys them."""

from __future__ import annotations

from typing import Literal

import msgspec

from client_callback.wire.protocol import Scalar


class CommandError(ValueError):
    """A command that cannot be understood. The text says what was received and what is possible."""


class _Instruction(msgspec.Struct, frozen=True):
    """One kind of command. It never changes once made."""


# ── The learning rate ─────────────────────────────────────────────────────────────────────────────


class SetRate(_Instruction, frozen=True):
    """`lr 3e-4 [over 500 steps] [hold]`: the learning rate from the next step on; a schedule no longer decides."""

    value: float
    over: int = 0
    """Steps over which the rate goes there in a straight line. 0: at once."""
    hold: bool = False
    """Whether the rate is set again whenever a callback of this `fit` has changed it."""


class ScaleRate(_Instruction, frozen=True):
    """`lr x0.5 [over 500 steps] [hold]`: the rate times `factor`; a schedule keeps its shape."""

    factor: float
    over: int = 0
    hold: bool = False


class SetSchedule(_Instruction, frozen=True):
    """`schedule cosine decay_steps=1000`: what decides the rate from now on, counted from now."""

    kind: str
    arguments: dict[str, Scalar] = {}


# ── The optimizer ─────────────────────────────────────────────────────────────────────────────────


class SwitchOptimizer(_Instruction, frozen=True):
    """`optimizer sgd learning_rate=0.01`: another optimizer, with Keras' own names and arguments.

    `learning_rate=match` asks for the rate whose first updates are as large as the present ones.
    """

    name: str
    arguments: dict[str, Scalar] = {}


class SetHyperparameters(_Instruction, frozen=True):
    """`set momentum=0.9`, `set dropout.rate=0.3`: of the optimizer, or of a layer by its name."""

    values: dict[str, Scalar]
    """`NAME` or `LAYER.NAME` → value."""


class Accumulate(_Instruction, frozen=True):
    """`accumulate 4`: one update for every so many batches; 1 updates after each."""

    batches: int


# ── Layers and loss ───────────────────────────────────────────────────────────────────────────────


class Freeze(_Instruction, frozen=True):
    """`freeze LAYER…`: gradients no longer train these layers. Names may hold `*` and `?`."""

    layers: tuple[str, ...]


class Unfreeze(_Instruction, frozen=True):
    """`unfreeze LAYER…`: gradients train these layers again."""

    layers: tuple[str, ...]


class Reinitialise(_Instruction, frozen=True):
    """`reinit LAYER…` or `reinit dead-units`: fresh weights from the layers' own initializers."""

    layers: tuple[str, ...] = ()
    """Empty: the dead units of all layers."""


class SetClassWeight(_Instruction, frozen=True):
    """`class-weight 0=1 1=4.5`, `class-weight balanced`, `class-weight none`."""

    weights: dict[int, float] = {}
    """Class → weight of its loss; classes not named count 1."""
    balanced: bool = False
    """Whether the weights follow from how often each class has been seen."""


class SetLossWeight(_Instruction, frozen=True):
    """`loss-weight OUTPUT=0.5`: how much the loss of an output counts."""

    weights: dict[str, float]


# ── The training ──────────────────────────────────────────────────────────────────────────────────


class Pause(_Instruction, frozen=True):
    """Holds training before its next batch."""


class Resume(_Instruction, frozen=True):
    """Lets a paused training go on."""


class Stop(_Instruction, frozen=True):
    """Ends `fit` after the current batch, as `model.stop_training = True` does; `now` without validation."""

    now: bool = False


class Extend(_Instruction, frozen=True):
    """`extend 10 epochs`."""

    epochs: int


class Evaluate(_Instruction, frozen=True):
    """Evaluates on the validation data of this `fit` now."""


class Checkpoint(_Instruction, frozen=True):
    """Saves the model to a file: a whole model as `.keras`, its weights as `.weights.h5`."""

    path: str = ""
    """Empty: beside the recording."""


class Note(_Instruction, frozen=True):
    """Writes a remark into the recording."""

    text: str


class UserAction(_Instruction, frozen=True):
    """A command that the script itself defined: `MonitorCallback(actions={"render": function})`."""

    name: str
    arguments: tuple[str, ...] = ()


# ── Going back ────────────────────────────────────────────────────────────────────────────────────


class TakeSnapshot(_Instruction, frozen=True):
    """`snapshot [NAME]`: keeps the state of the training to come back to."""

    name: str = ""


class Rollback(_Instruction, frozen=True):
    """`rollback start | last | STEP | NAME`: the state of the training as it was then."""

    to: str


class Undo(_Instruction, frozen=True):
    """Takes the last change back: the training is as it was just before it.

    `settings`: only what was set; the weights stay as they are by now.
    """

    settings: bool = False


class Redo(_Instruction, frozen=True):
    """Takes the last `undo` back."""


# ── Later, and as a trial ─────────────────────────────────────────────────────────────────────────


class ListTimers(_Instruction, frozen=True):
    """`timers`: what waits for its moment, and what will be taken back."""


class CancelTimer(_Instruction, frozen=True):
    """`cancel 3` or `cancel all`: of the timers; what is in effect stays as it is."""

    number: int | None
    """`None`: all."""


DataKind = Literal["zero-inputs", "standard-inputs", "one-batch"]
"""`zero-inputs`: whether the inputs matter at all. `standard-inputs`: each feature with mean 0 and deviation 1.
`one-batch`: the same batch in each step, which a sound model learns by heart."""


class TryData(_Instruction, frozen=True):
    """A candidate of a trial: everything as it is, on other data. It tells where the fault is; nothing to adopt."""

    kind: DataKind


class Trial(_Instruction, frozen=True):
    """`trial "adam 1e-4" "sgd 0.05 momentum=0.9" keep for 100 steps [from start] [--adopt]`."""

    candidates: tuple[SwitchOptimizer | SetRate | ScaleRate | TryData | None, ...]
    """`None`: everything as it is."""
    texts: tuple[str, ...]
    """The candidates as they were written."""
    steps: int
    start: str = "now"
    """`now`, or what `rollback` takes."""
    adopt: bool = False


class RangeTest(_Instruction, frozen=True):
    """`trial lr 1e-5..1 for 60 steps`: the loss as the rate grows from step to step."""

    low: float
    high: float
    steps: int
    start: str = "now"


class TakeControl(_Instruction, frozen=True):
    """`control take`: from now on this monitor's commands are obeyed, and others' refused."""


class ReleaseControl(_Instruction, frozen=True):
    """`control release`: whoever comes first may steer."""


Instruction = (
    SetRate
    | ScaleRate
    | SetSchedule
    | SwitchOptimizer
    | SetHyperparameters
    | Accumulate
    | Freeze
    | Unfreeze
    | Reinitialise
    | SetClassWeight
    | SetLossWeight
    | Pause
    | Resume
    | Stop
    | Extend
    | Evaluate
    | Checkpoint
    | Note
    | UserAction
    | TakeSnapshot
    | Rollback
    | Undo
    | Redo
    | ListTimers
    | CancelTimer
    | Trial
    | RangeTest
    | TakeControl
    | ReleaseControl
)


# ── When ──────────────────────────────────────────────────────────────────────────────────────────


class AtStep(_Instruction, frozen=True):
    """`at step 1200`: before that step, counted from 0."""

    step: int


class AtEpoch(_Instruction, frozen=True):
    """`at epoch 5`: before its first step, counted from 1 as Keras prints it."""

    epoch: int


class OnPlateau(_Instruction, frozen=True):
    """`when plateau`: as soon as the loss makes no progress beyond its noise."""


class Unless(_Instruction, frozen=True):
    """`unless loss rises 20% in 200 steps`: then everything is undone."""

    series: str
    change: Literal["rises", "falls"]
    share: float
    """Of the level before: 0.2 is 20 %."""
    steps: int


class Order(_Instruction, frozen=True):
    """A command with when it is to be obeyed and how long it is to last."""

    instruction: Instruction
    starts: AtStep | AtEpoch | OnPlateau | None = None
    """`None`: now."""
    lasts: int | None = None
    """Steps after which what was set is set back. `None`: it stays."""
    unless: Unless | None = None
    origin: str = ""
    """`from start`: what `rollback` takes; the training goes back there first. Empty: it goes on from where it is."""
    dry_run: bool = False
    """Whether only to say what would happen."""
