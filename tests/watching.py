"""A monitor without a screen, for tests to suspend: watches a run to its end and prints what it saw."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from client_callback.wire import runs
from monitor.session import Session
from monitor.sources import LiveSource

session = Session()
source = LiveSource(runs.find_run(sys.argv[1]), who="watching@test")
told = False
while session.state not in {"finished", "failed", "interrupted", "stopped"}:
    for event in source.poll().events:
        session.apply(event)
    if session.step and not told:
        print("watching", flush=True)
        told = True
    time.sleep(0.05)
loss = session.series["loss"]
total = float(np.sum(loss.values.astype(np.float64)))
print(json.dumps({"steps": len(loss), "sum": total, "missing": loss.missing}))
source.close()
