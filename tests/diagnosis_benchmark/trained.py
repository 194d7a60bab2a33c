"""Trains cases with `MonitorCallback` and keeps what came of each: the held-out score and the recording.

Several processes train, each many cases, so that TensorFlow is imported but once in each. What has been trained is
not trained again: an outcome's file is written last, so that it can be cut off at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import client_callback

ONE_CORE = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Networks this small gain nothing from threads, and several processes lose by them."""


@dataclass(frozen=True)
class Job:
    """One training to be done."""

    case: str
    digest: str
    seed: int
    command: str = ""
    """Given to the training before step `at`. Empty: it is left alone."""
    at: int = 0

    @property
    def stem(self) -> str:
        """Of its files."""
        steered = f"-at-{self.at}-{_plain(self.command)}" if self.command else ""
        return f"{_plain(self.case)}-{self.digest}-{self.seed}{steered}"


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    case: str
    seed: int
    score: float
    """On held-out data. NaN: the training raised."""
    score_name: str
    higher_is_better: bool
    recording: str
    steps: int
    steps_per_epoch: int
    seconds: float
    error: str = ""
    reply: str = ""
    """To the command: `applied: …`. Empty: none was given, or it was not answered."""
    callback: str = ""
    """Digest of the callback that recorded it."""


def train_all(jobs: Iterable[Job], folder: Path, processes: int) -> Iterator[Outcome]:
    """The outcomes of all jobs, those that are known first."""
    waiting = []
    for job in dict.fromkeys(jobs):
        known = read_outcome(job, folder)
        if known is None:
            waiting.append(job)
        else:
            yield known
    if not waiting:
        return
    (folder / "home").mkdir(parents=True, exist_ok=True)
    os.environ.update(ONE_CORE)
    began = time.monotonic()
    # A new process now and then: TensorFlow keeps what it has traced.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=60) as pool:
        for done, outcome in enumerate(pool.imap_unordered(_train, [(job, folder) for job in waiting]), 1):
            left_s = (time.monotonic() - began) / done * (len(waiting) - done)
            sys.stderr.write(
                f"[{done}/{len(waiting)}, {left_s / 60:.0f} min left] {outcome.case} seed {outcome.seed}: "
                f"{outcome.error or f'{outcome.score_name} {outcome.score:.3f}'}\n"
            )
            yield outcome


def read_outcome(job: Job, folder: Path) -> Outcome | None:
    """What is known of a job, `None` when it has not been trained."""
    path = folder / f"{job.stem}.json"
    return Outcome(**json.loads(path.read_text())) if path.exists() else None


def forget_older(folder: Path) -> None:
    """Removes what another version of the callback recorded."""
    for path in folder.glob("*.json"):
        if json.loads(path.read_text()).get("callback") != callback_digest():
            path.with_suffix(".unstuck").unlink(missing_ok=True)
            path.unlink()


@functools.cache
def callback_digest() -> str:
    """Changes with whatever may change what is recorded."""
    digest = hashlib.sha256()
    for source in sorted(Path(client_callback.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _train(task: tuple[Job, Path]) -> Outcome:
    job, folder = task
    os.environ["UNSTUCK_HOME"] = str(folder / "home")

    import keras

    from client_callback import MonitorCallback
    from client_callback.wire.replay import Repeated, Replay
    from tests.diagnosis_benchmark.cases import case_named

    began = time.monotonic()
    training = case_named(job.case).recipe.prepare(job.seed)
    recordings = folder / "recordings"
    recordings.mkdir(exist_ok=True)
    command = (Repeated(job.at, job.command, None),) if job.command else ()
    callback = MonitorCallback(
        "run", directory=recordings, replay=Replay("benchmark", command, ()) if command else None
    )
    error = ""
    try:
        history = training.fit([callback])
        score = training.held_out_score()
        steps, per_epoch = int(training.model.optimizer.iterations), history.params["steps"] or 0
    except Exception as raised:  # noqa: BLE001  (a script may fail in any way; that is an outcome too)
        error, score, steps, per_epoch = f"{type(raised).__name__}: {raised}"[:500], float("nan"), 0, 0
    recording = ""
    if callback.recording is not None and callback.recording.exists():
        kept = folder / f"{job.stem}.unstuck"
        callback.recording.replace(kept)
        recording = kept.name
    outcome = Outcome(
        case=job.case,
        seed=job.seed,
        score=score,
        score_name=training.score.name,
        higher_is_better=training.score.higher_is_better,
        recording=recording,
        steps=steps,
        steps_per_epoch=per_epoch,
        seconds=time.monotonic() - began,
        error=error,
        reply=_reply(folder / recording) if command and recording else "",
        callback=callback_digest(),
    )
    partial = folder / f"{job.stem}.partial"
    partial.write_text(json.dumps(asdict(outcome)))
    partial.replace(folder / f"{job.stem}.json")
    keras.backend.clear_session()
    return outcome


def _reply(recording: Path) -> str:
    from client_callback.wire.protocol import Reply
    from client_callback.wire.recording import JournalReader

    with JournalReader(recording) as reader:
        replies = [event for _, event in reader.events() if isinstance(event, Reply)]
    if not replies:
        return ""
    return f"{replies[0].status}: {replies[0].reason or replies[0].after or replies[0].text}"[:200]


def _plain(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in ".-" else "_" for sign in text)[:90]
