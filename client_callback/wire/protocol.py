"""The vocabulary both sides speak: events out of a training, requests in, answers back.

Everything here is a frozen value; no socket, file or clock. The callback makes events, the journal keeps
them, the stream carries them, and `monitor.session.Session.apply` turns them into what is on the screen.
Columns travel as little-endian bytes so that a whole drain of steps is one frame.

Steps are counted from 0 over the whole run, one per batch. Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

PROTOCOL_VERSION = 2
"""Raised when an older reader could misread a newer writer; new fields with defaults do not raise it."""

MAX_FRAME_BYTES = 64 << 20
"""The largest frame either side accepts. A drain of 100k steps with 20 series is 8 MB."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

Name = Annotated[str, msgspec.Meta(max_length=1_000)]
Text = Annotated[str, msgspec.Meta(max_length=64_000)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=100_000)]
ClientId = Annotated[str, msgspec.Meta(max_length=64)]
Scalar = bool | int | float | Text | None


TIMINGS = ("input_wait", "step_time", "callback_time", "examples")
"""Series of kind `timing`: seconds that a step waited for its batch, ran, and spent in callbacks (NaN: could not
be told apart), and how many examples it trained on, over all replicas."""


class ProtocolError(ValueError):
    """Bytes that are no valid message. The text says what was received and why it does not fit."""


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    """What every message and part of one has in common: it never changes once made."""


# ── What a run consists of ────────────────────────────────────────────────────────────────────────


class Series(_Value, frozen=True, kw_only=True):
    """One column of numbers, one value per step."""

    name: Name
    kind: Literal["batch", "running", "timing"] = "batch"
    """`batch`: the value of that very batch. `running`: Keras' mean since the epoch began, as with AUC.
    `timing`: how the step ran, not what the model learned: one of `TIMINGS`."""


class Statistic(_Value, frozen=True, kw_only=True):
    """One table of numbers, one row per sampled step."""

    name: Name
    of: Literal["variables", "layers", "features", "classes", "histogram", "values"]
    """What the labels are: a histogram's are its bins."""
    labels: Names
    """What each number of a row stands for: a variable's path, a layer, a class, a bin."""
    columns: Names = ()
    """Where each label has several numbers: their names. A row then holds len(labels) × len(columns) numbers,
    label by label."""
    unit: Name = ""
    edges: tuple[float, ...] | None = None
    """For a histogram over fixed bins: their len(labels) + 1 edges. `None`: the labels name the bins."""
    doc: Text = ""

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return len(self.labels) * max(1, len(self.columns))


class Summary(_Value, frozen=True, kw_only=True):
    """Numbers about the entries of an array. Without any finite entry all but `non_finite` are NaN."""

    mean: float
    std: float
    """With divisor n."""
    low: float
    high: float
    non_finite: float = 0.0
    """Share of entries that are NaN or infinite, from 0 to 1; they do not count in the other numbers."""


class Layer(_Value, frozen=True, kw_only=True):
    """One layer of the model, in call order."""

    name: Name
    class_name: Name
    parameters: Count = 0
    trainable: bool = True
    activation: Name = ""
    """Keras' name of its activation function, `linear` for none. Empty: its output is no activation."""
    units: Count = 0
    """Length of its output's last axis. 0: not known."""
    settings: dict[Name, Scalar] = {}
    """Of its configuration what is plain: `rate`, `use_bias`, `l1`, `l2`, …; initializers by their class's name."""
    kernel_shape: tuple[int, ...] = ()
    """Of its first weights with two axes or more. Empty: it has none."""
    kernel: Summary | None = None
    """Of these as they were when the run began; of large ones, of evenly spaced rows. `None`: not known (yet)."""


class Output(_Value, frozen=True, kw_only=True):
    """What the model computes, and the loss it is trained with."""

    name: Name
    layer: Name = ""
    """Whose output it is, without layers that only reshape or drop. Empty: no layer's, or not known. Of a model whose
    graph is not known (a subclass with a `call` of its own), the layer with weights that was made last."""
    activation: Name = ""
    """Of that layer, as in `Layer`."""
    units: Count = 0
    """Length of its last axis. 0: not known."""
    loss: Name = ""
    """In snake case, or the name of the user's function. Empty: none takes it."""
    from_logits: bool = False
    """Whether that loss takes logits."""
    logits_found: bool = False
    """Whether Keras computes the loss from the logits behind the output's own softmax or sigmoid here. It does where
    TensorFlow's tensor still knows them, so not once it was reshaped (also to fit the targets' rank) or cast."""


class Variable(_Value, frozen=True, kw_only=True):
    """One trainable variable."""

    path: Name
    shape: tuple[int, ...]


class Optimizer(_Value, frozen=True, kw_only=True):
    """The optimizer at work."""

    name: Name
    """As a command names it: `adam`, `sgd`, …"""
    class_name: Name
    settings: dict[Name, Scalar] = {}
    """Its constructor's arguments as they are now; a schedule stands as its class's name."""
    schedule: Name | None = None
    """What computes the rate inside the step: a schedule's or a callable's name. `None`: a plain variable."""
    rate_owners: Names = ()
    """Callbacks of this `fit` that set the rate too, such as `ReduceLROnPlateau`."""
    held: bool = False
    """Whether the rate is set again whenever one of them has changed it."""


class RunDescription(_Value, frozen=True, kw_only=True):
    """Who trains what, where: all that is known when a run begins."""

    run_id: Name
    name: Name
    started_at: float
    host: Name = ""
    pid: Count = 0
    user: Name = ""
    backend: Name = ""
    versions: dict[Name, Name] = {}
    model: Name = ""
    parameters: Count = 0
    layers: tuple[Layer, ...] = ()
    variables: tuple[Variable, ...] = ()
    outputs: tuple[Output, ...] = ()
    """Empty: not known."""
    optimizer: Optimizer | None = None
    """`None`: the run has no optimizer that unstuck knows (a custom loop)."""
    optimizers: dict[Name, Names] = {}
    """What `optimizer NAME ARGUMENT=…` takes here: each name with its arguments."""
    epochs: Count | None = None
    steps_per_epoch: Count | None = None
    """`None`: not known before the first epoch has ended."""
    steps_per_execution: Count = 1
    statistics_every: Count = 0
    """Steps between two sampled ones. 0: none are sampled."""
    control: bool = True
    """Whether commands are obeyed."""
    actions: Names = ()
    """Commands that the script itself defined."""
    version: Name = ""
    """Of unstuck."""


# ── Events: training → journal, stream ────────────────────────────────────────────────────────────


class Event(_Value, frozen=True, kw_only=True, tag_field="kind"):
    """Something that happened. `step` is how many steps had been completed by then."""

    step: Count = 0
    time: float = 0.0


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """Always the first frame of a recording."""

    run: RunDescription


class Instrumented(Event, frozen=True, kw_only=True, tag="instrumented"):
    """The train step was traced (again): from here on these series and statistics come."""

    series: tuple[Series, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    missing: tuple[Text, ...] = ()
    """What cannot be recorded of this run, each with its reason."""
    task: Literal["classification", "binary", "regression", "unknown"] = "unknown"


class ModelBuilt(Event, frozen=True, kw_only=True, tag="model_built"):
    """What RunStarted could not tell of a model that makes its weights in its first step, and stands in its place."""

    parameters: Count = 0
    layers: tuple[Layer, ...] = ()
    variables: tuple[Variable, ...] = ()
    outputs: tuple[Output, ...] = ()


class InputData(_Value, frozen=True, kw_only=True):
    """One input array of the training data. Features are the numbers of one example."""

    dtype: Name
    shape: tuple[int, ...]
    """Of one example."""
    values: Summary
    features: Count = 0
    constant_features: Count = 0
    """That are the same in all examples looked at."""
    std_low: float = 0.0
    std_high: float = 0.0
    """The least and the greatest standard deviation of a feature, constant ones left out."""
    offset: float = 0.0
    """The greatest |mean| / standard deviation of a feature, constant ones left out."""
    farthest: float = 0.0
    """The greatest distance of an entry from its feature's median, in its feature's distances between the 10 % and
    90 % quantile. 0: no feature has any."""
    farthest_feature: Count = 0
    """Which feature that is, counted from 0 over a flattened example."""
    non_finite_feature: Count | None = None
    """The first feature with an entry that is not finite. `None`: there is none."""
    repeated: float = 0.0
    """Share of examples that equal another one of those looked at."""


class TargetData(_Value, frozen=True, kw_only=True):
    """One array of targets of the training data."""

    dtype: Name
    shape: tuple[int, ...]
    """Of one example."""
    values: Summary
    integral: bool = False
    """Whether all finite entries are whole numbers."""
    one_hot: bool = False
    """Whether each row has a single 1 and zeros."""
    classes: dict[Name, Count] = {}
    """Class → how many examples of those looked at have it. Empty: these are no classes, or more than 1,000."""
    in_order: float | None = None
    """Share of examples that have the class of their neighbour, in the order of the data. `None`: no classes."""


class SignalProbe(_Value, frozen=True, kw_only=True):
    """What a plain model makes of the training data: what they allow, roughly, at least.

    Each example looked at is predicted from the others, all features standardised.
    """

    model: Name = "nearest neighbours"
    """Which it is."""
    kind: Literal["accuracy", "r2"]
    """`accuracy`: share of right classes. `r2`: 1 − squared error / that of the mean."""
    score: float
    chance: float
    """The same for always predicting the most frequent class, or the mean."""
    examples: Count
    """Looked at."""
    freedom: float = 0.0
    """How many weights it makes use of: its effective degrees of freedom. 0: not known."""


class DataDescribed(Event, frozen=True, kw_only=True, tag="data_described"):
    """What the run is trained on, as far as it can be told without touching it. At most once, early in the run."""

    source: Name
    """`arrays`, `tf.data`, or the name of the class that batches come from."""
    examples: Count | None = None
    batch_size: Count | None = None
    shuffled: bool | None = None
    """Whether examples come in another order each epoch. `None`: not known."""
    class_weight: dict[Name, float] = {}
    weighted: bool = False
    """Whether examples have weights."""
    validated: bool = False
    """Whether there is a validation."""
    inputs: tuple[InputData, ...] = ()
    """Of evenly spaced examples. Empty: only the training itself sees them."""
    targets: tuple[TargetData, ...] = ()
    signal: SignalProbe | None = None
    """`None`: too few examples, or none that could be looked at."""


class Steps(Event, frozen=True, kw_only=True, tag="steps"):
    """The dense series of `count` consecutive steps, the first being `first`."""

    first: Count
    count: Count
    times: bytes
    """float64[count]: when each step ended. Within one execution of several steps: spread evenly."""
    columns: dict[Name, bytes]
    """Series name → float32[count]. NaN: measured, and not a number."""


class Samples(Event, frozen=True, kw_only=True, tag="samples"):
    """The statistics of sampled steps."""

    steps: bytes
    """int64[n], strictly increasing."""
    columns: dict[Name, bytes]
    """Statistic name → float32[n, number of labels], C order."""


class Resources(Event, frozen=True, kw_only=True, tag="resources"):
    """What the machine and this process use: `count` consecutive readings, the first being number `first`.

    Taken about once a second while the run lasts. Readings count from 0 and stand in no fixed order to other
    events: whatever happened between two of them may come before or after both.
    """

    first: Count
    count: Count
    times: bytes
    """float64[count]: when each was taken."""
    steps: bytes
    """int64[count]: how many steps had been completed by then, never decreasing."""
    columns: dict[Name, bytes]
    """`cpu`, `memory`, `gpu0_utilisation`, … → float32[count]; `wire.resources` knows their units. NaN: could not
    be read."""


class Overhead(Event, frozen=True, kw_only=True, tag="overhead"):
    """What watching costs the training, measured over the last while."""

    share: float
    """Of the time training takes: hooks, sampling and the sender's thread (of the machine's CPUs) together."""
    hooks: float
    """Seconds per call of the train function spent in the callback's hooks."""
    sampling: float
    """Seconds that a sampled step takes longer than another. NaN: not known yet."""
    every: Count
    """Steps between two sampled ones from now on. 0: none are sampled."""
    sender: float = 0.0
    """CPU seconds per second that the sender's thread takes."""
    budget: float | None = None
    """The share that may be spent. `None`: `every` was fixed by the user."""


class EpochBegan(Event, frozen=True, kw_only=True, tag="epoch_began"):
    """The next step is the first of this epoch, counted from 0."""

    epoch: Count


class EpochEnded(Event, frozen=True, kw_only=True, tag="epoch_ended"):
    """An epoch is over, its validation included."""

    epoch: Count
    logs: dict[Name, float] = {}
    """What Keras reports: running means of the epoch, and `val_…`."""


class StateChanged(Event, frozen=True, kw_only=True, tag="state_changed"):
    """What the training is busy with from now on."""

    state: Literal["running", "paused", "recompiling", "validating", "trial"]
    reason: Text = ""


class OptimizerChanged(Event, frozen=True, kw_only=True, tag="optimizer_changed"):
    """The optimizer's identity or the owner of its rate is another now."""

    optimizer: Optimizer


class PlanLine(_Value, frozen=True, kw_only=True):
    """One thing to know before a change."""

    topic: Literal["does", "keeps", "resets", "recompiles", "rate", "warning", "cost"]
    text: Text


class Measured(_Value, frozen=True, kw_only=True):
    """A number measured at a step."""

    value: float
    step: Count


class Reply(Event, frozen=True, kw_only=True, tag="reply"):
    """The answer to one command. `step`: the first step that ran with the change.

    `applied`: read back and found to be as asked. `ineffective`: applied, and it changed nothing; `reason` says why.
    `planned`: nothing was changed yet, see `plan` or the timer. `refused`: not possible, nothing was changed.
    `failed`: the error is in `reason`, and everything is as it was.
    """

    id: Name
    text: Text
    who: Name = ""
    """user@host and by what: `ada@box terminal`."""
    status: Literal["applied", "ineffective", "planned", "refused", "failed"]
    before: dict[Name, Scalar] = {}
    """As read from the model before, for instance `learning_rate`."""
    after: dict[Name, Scalar] = {}
    """As read back from the model after."""
    reason: Text = ""
    """Refused: why, and what is possible. Failed: the error. Applied: what is worth knowing."""
    plan: tuple[PlanLine, ...] = ()
    """Of a dry run: what would happen."""
    update_before: Measured | None = None
    """How far a step moved the weights, ‖Δw‖/‖w‖, before the change. `None`: not measured."""
    update_after: Measured | None = None
    """The same of the first step with the change."""
    undoes: Name = ""
    """Of `undo`: the id of the command that was taken back."""
    restored: Count | None = None
    """Of what went back: before which step the training is again. `None`: it goes on from where it was."""
    timer: Count | None = None
    """Number of the timer that this command started, or that carried it out."""


class Timer(_Value, frozen=True, kw_only=True):
    """A command that waits for its moment, or one in effect that may be taken back by itself."""

    number: Count
    """From 1; as `cancel` names it."""
    id: Name
    """Of the command that it came with."""
    text: Text
    who: Name = ""
    state: Literal["waiting", "active"]
    starts: Text = ""
    """When it will be carried out, in words. Empty: it is in effect."""
    until: Count | None = None
    """Step before which what was set is set back. `None`: it stays."""
    unless: Text = ""
    """What would undo it, in words. Empty: nothing."""


class TimersChanged(Event, frozen=True, kw_only=True, tag="timers_changed"):
    """All timers there are now."""

    timers: tuple[Timer, ...] = ()
    reason: Text = ""


class SnapshotKept(_Value, frozen=True, kw_only=True):
    """A state of the training that can be gone back to."""

    step: Count
    name: Name = ""
    """As the user called it; `start` is the first."""
    reason: Text = ""
    """Such as the command it was taken before."""
    bytes: Count = 0
    on_disk: bool = False


class SnapshotsChanged(Event, frozen=True, kw_only=True, tag="snapshots_changed"):
    """All snapshots there are now, oldest first."""

    snapshots: tuple[SnapshotKept, ...] = ()
    seconds: float = 0.0
    """What taking the newest one cost the training."""


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """The model as it was at `step` on the validation data, asked for by a command."""

    logs: dict[Name, float] = {}
    """As Keras reports them, named `val_…`."""


class TrialResult(_Value, frozen=True, kw_only=True):
    """How one candidate of a trial did."""

    text: Text
    losses: bytes
    """float32[steps], shorter where it was given up: the loss of each step's batch."""
    score: float
    """Mean loss over the last quarter of the steps. NaN: it diverged."""
    low: float
    """Bounds of its 95 % confidence interval."""
    high: float
    note: Text = ""
    """Why it was given up, or what is worth knowing."""


class TrialEnded(Event, frozen=True, kw_only=True, tag="trial_ended"):
    """Several ways to go on, tried from one state on the same batches; then all was put back as it had been."""

    id: Name
    """Of the command."""
    text: Text
    start: Count
    """Step whose state all candidates began from."""
    results: tuple[TrialResult, ...] = ()
    """Best first."""
    rates: bytes = b""
    """Of a range test: float32[steps], the learning rate of each step."""
    adopted: Text = ""
    """The candidate that training goes on with. Empty: none, everything is as it was."""
    tells: bool = True
    """Whether the best is better than the others beyond chance."""


class ControlChanged(Event, frozen=True, kw_only=True, tag="control_changed"):
    """Whose commands are obeyed from now on."""

    who: Name = ""
    """Empty: anybody's."""
    client: ClientId = ""
    """Of the monitor that steers; empty when it is a script, or nobody."""
    reason: Text = ""


class Problem(Event, frozen=True, kw_only=True, tag="problem"):
    """Something could not be recorded or done; training went on."""

    what: Text


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """Always the last frame, unless the process was killed."""

    outcome: Literal["finished", "stopped", "interrupted", "failed"]
    reason: Text = ""


AnyEvent = (
    RunStarted
    | Instrumented
    | ModelBuilt
    | DataDescribed
    | Steps
    | Samples
    | Resources
    | Overhead
    | EpochBegan
    | EpochEnded
    | StateChanged
    | OptimizerChanged
    | Reply
    | TimersChanged
    | SnapshotsChanged
    | Evaluated
    | TrialEnded
    | ControlChanged
    | Problem
    | RunEnded
)


Columnar = Steps | Samples | Resources
"""Events that hold columns, of which neighbours are folded into one as a recording grows."""


class Frame(_Value, frozen=True, kw_only=True):
    """One event with its place in the recording."""

    seq: Count
    """From 1, without holes. A frame folded from several has the number of the last."""
    first_seq: Count
    """Of the first event folded into this frame; `seq` itself when none was."""
    payload: bytes
    """An encoded event."""


# ── Requests: monitor → training, and their answers ───────────────────────────────────────────────


class Hello(_Value, frozen=True, kw_only=True, tag="hello", tag_field="kind"):
    """The first request of a monitor."""

    version: Count = PROTOCOL_VERSION


class Backfill(_Value, frozen=True, kw_only=True, tag="backfill", tag_field="kind"):
    """Asks for the frames after `after`, in order."""

    after: Count


class Command(_Value, frozen=True, kw_only=True, tag="command", tag_field="kind"):
    """Asks for a change. The same `id` twice is applied once and answered twice."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]
    who: Name = ""
    client: ClientId = ""
    """Of the monitor that sent it, the same for all it sends. Empty: it comes from no monitor that stays."""


class Present(_Value, frozen=True, kw_only=True, tag="present", tag_field="kind"):
    """A monitor's sign of life, every few seconds while it steers. Not answered."""

    client: ClientId
    who: Name = ""


class Welcome(_Value, frozen=True, kw_only=True, tag="welcome", tag_field="kind"):
    """Answers Hello."""

    version: Count
    run: RunDescription
    last_seq: Count
    recording: Text = ""
    """Path of the journal on the training's machine. Empty: this run is not recorded."""


class Frames(_Value, frozen=True, kw_only=True, tag="frames", tag_field="kind"):
    """Answers Backfill with as many of the frames as one message may hold."""

    frames: tuple[Frame, ...]
    last_seq: Count
    """The newest there is. Larger than the last frame's: ask again."""


class Refusal(_Value, frozen=True, kw_only=True, tag="refusal", tag_field="kind"):
    """The request could not be served."""

    reason: Text


class Heartbeat(_Value, frozen=True, kw_only=True):
    """On the stream only, every second: nothing newer than `last_seq` exists."""

    last_seq: Count
    time: float


Request = Hello | Backfill | Command | Present
Answer = Welcome | Frames | Refusal | Reply

_encoder = msgspec.msgpack.Encoder()
_events: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_heartbeats = msgspec.msgpack.Decoder(Heartbeat)

_T = TypeVar("_T")


def encode(message: msgspec.Struct) -> bytes:
    """The message as msgpack. NaN and infinities survive."""
    return _encoder.encode(message)


def decode_event(payload: bytes) -> AnyEvent:
    """The event in a frame's payload.

    Raises:
        ProtocolError: not an event, or its columns do not have the length they should.
    """
    event = _decode(_events, payload, "event")
    if isinstance(event, Steps):
        _check_lengths("steps", event.columns, 4 * event.count)
        _check_lengths("steps", {"times": event.times}, 8 * event.count)
    elif isinstance(event, Samples):
        _check_samples(event)
    elif isinstance(event, Resources):
        _check_lengths("resources", event.columns, 4 * event.count)
        _check_lengths("resources", {"times": event.times, "steps": event.steps}, 8 * event.count)
    return event


def decode_request(payload: bytes) -> Request:
    """What a monitor asks. Raises ProtocolError."""
    return _decode(_requests, payload, "request")


def decode_answer(payload: bytes) -> Answer:
    """What the training answers. Raises ProtocolError."""
    return _decode(_answers, payload, "answer")


def decode_heartbeat(payload: bytes) -> Heartbeat:
    """The stream's sign of life. Raises ProtocolError."""
    return _decode(_heartbeats, payload, "heartbeat")


def steps_event(first: int, times: Float64, columns: dict[str, Float32], *, time: float) -> Steps:
    """Packs consecutive steps: `times` is float64[n], every column float32[n]."""
    return Steps(
        step=first + len(times),
        time=time,
        first=first,
        count=len(times),
        times=np.ascontiguousarray(times, "<f8").tobytes(),
        columns={name: np.ascontiguousarray(values, "<f4").tobytes() for name, values in columns.items()},
    )


def samples_event(steps: Int64, columns: dict[str, Float32], *, time: float) -> Samples:
    """Packs sampled statistics: `steps` is int64[n], every column float32[n, labels]."""
    return Samples(
        step=int(steps[-1]) + 1,
        time=time,
        steps=np.ascontiguousarray(steps, "<i8").tobytes(),
        columns={name: np.ascontiguousarray(values, "<f4").tobytes() for name, values in columns.items()},
    )


def resources_event(number: int, values: Mapping[str, float], *, step: int, time: float) -> Resources:
    """Packs reading `number`."""
    return Resources(
        step=step,
        time=time,
        first=number,
        count=1,
        times=np.array([time], "<f8").tobytes(),
        steps=np.array([step], "<i8").tobytes(),
        columns={name: np.array([value], "<f4").tobytes() for name, value in values.items()},
    )


def step_times(event: Steps) -> Float64:
    """float64[count], read-only."""
    return np.frombuffer(event.times, "<f8")


def step_columns(event: Steps) -> dict[str, Float32]:
    """Series name → float32[count], read-only."""
    return {name: np.frombuffer(values, "<f4") for name, values in event.columns.items()}


def sample_steps(event: Samples) -> Int64:
    """int64[n], read-only."""
    return np.frombuffer(event.steps, "<i8")


def sample_columns(event: Samples) -> dict[str, Float32]:
    """Statistic name → float32[n, labels], read-only."""
    rows = len(event.steps) // 8
    return {name: np.frombuffer(values, "<f4").reshape(rows, -1) for name, values in event.columns.items()}


def resource_times(event: Resources) -> Float64:
    """float64[count], read-only."""
    return np.frombuffer(event.times, "<f8")


def resource_steps(event: Resources) -> Int64:
    """int64[count], read-only."""
    return np.frombuffer(event.steps, "<i8")


def resource_columns(event: Resources) -> dict[str, Float32]:
    """Name → float32[count], read-only."""
    return {name: np.frombuffer(values, "<f4") for name, values in event.columns.items()}


def can_fold(earlier: Event, later: Event) -> bool:
    """Whether the two can become one event without losing anything."""
    if isinstance(earlier, Samples) and isinstance(later, Samples):
        return _widths(earlier) == _widths(later) and earlier.steps[-8:] != later.steps[:8]
    if isinstance(earlier, Steps | Resources) and isinstance(later, Steps | Resources):
        adjacent = type(earlier) is type(later) and earlier.first + earlier.count == later.first
        return adjacent and earlier.columns.keys() == later.columns.keys()
    return False


def fold(events: Iterable[Columnar]) -> Columnar:
    """Joins events of one kind, each of which `can_fold` with the next, into one."""
    parts = list(events)
    last = parts[-1]
    columns = {name: b"".join(part.columns[name] for part in parts) for name in last.columns}
    if isinstance(last, Samples):
        samples = [part for part in parts if isinstance(part, Samples)]
        return Samples(
            step=last.step, time=last.time, steps=b"".join(p.steps for p in samples), columns=columns
        )
    counted = [part for part in parts if isinstance(part, Steps | Resources)]
    first, count = counted[0].first, sum(part.count for part in counted)
    times = b"".join(part.times for part in counted)
    if isinstance(last, Steps):
        return Steps(step=last.step, time=last.time, first=first, count=count, times=times, columns=columns)
    readings = [part for part in parts if isinstance(part, Resources)]
    steps = b"".join(part.steps for part in readings)
    return Resources(
        step=last.step, time=last.time, first=first, count=count, times=times, steps=steps, columns=columns
    )


def _decode(decoder: msgspec.msgpack.Decoder[_T], payload: bytes, what: str) -> _T:
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"{what} of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are accepted")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"not a valid {what}: {error}") from error


def _check_lengths(what: str, columns: dict[str, bytes], expected: int) -> None:
    for name, values in columns.items():
        if len(values) != expected:
            raise ProtocolError(f"{what}: column {name!r} has {len(values)} bytes where {expected} belong")


def _check_samples(event: Samples) -> None:
    rows, rest = divmod(len(event.steps), 8)
    if rest or not rows:
        raise ProtocolError(f"samples: {len(event.steps)} bytes of steps are no int64[n] with n > 0")
    steps = sample_steps(event)
    if steps[0] < 0 or np.any(np.diff(steps) <= 0):
        raise ProtocolError("samples: the steps are not increasing")
    for name, values in event.columns.items():
        if len(values) % (4 * rows):
            raise ProtocolError(f"samples: column {name!r} has {len(values)} bytes, no float32[{rows}, n]")


def _widths(event: Samples) -> dict[str, int]:
    rows = len(event.steps) // 8
    return {name: len(values) // rows for name, values in event.columns.items()}
