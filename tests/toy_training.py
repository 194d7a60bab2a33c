"""A process that behaves as a training does, without a model: `python -m tests.toy_training DRAINS [DRAIN_S]`.

Prints the recording's path, then a line with the number of steps and the time after each drain, so that a
test that kills it knows what it should find.
"""

from __future__ import annotations

import sys
import time

from client_callback.link import Link
from client_callback.wire import protocol
from tests.toy_runs import description, samples, started, steps


def main() -> None:
    drains, drain_s = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.05
    run = description(sys.argv[3] if len(sys.argv) > 3 else "toy")
    link = Link(run)
    link.send(started(run))
    print(link.recording, flush=True)
    rate, step = 0.1, 0
    for _ in range(drains):
        link.send(steps(step, at=time.time() - 0.1 * step))
        link.send(samples(step, at=time.time() - 0.1 * step))
        step += 5
        for command in link.take_commands():
            before, rate = rate, rate / 2
            link.send(
                protocol.Reply(
                    id=command.id,
                    text=command.text,
                    who=command.who,
                    status="refused" if command.text.startswith("optimizer") else "applied",
                    step=step,
                    time=time.time(),
                    before={"learning_rate": before},
                    after={"learning_rate": rate},
                )
            )
        print(step, time.time(), flush=True)
        time.sleep(drain_s)
    link.send(protocol.RunEnded(outcome="finished", step=step, time=time.time()))
    link.close()


if __name__ == "__main__":
    main()
