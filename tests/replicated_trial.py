"""Fits on two replicas of one CPU, with trials and without; prints what they led to, as JSON.

Run as a program by `test_trials`: the number of devices is fixed before either starts.
"""

from __future__ import annotations

import json

import numpy as np

from client_callback.wire.protocol import Reply, TrialEnded
from tests.recorded import of_kind, series
from tests.replicated_watch import (
    on_two_devices,
)  # sets how many devices there are, before the backend starts
from tests.test_trials import TRIAL, Way, losses, model, trained


def main() -> None:
    found = []
    with on_two_devices():
        for script in ({4: [TRIAL]}, None):
            done = trained(Way(model=model), script, epochs=1)
            trials = of_kind(done.recording, TrialEnded) if script else []
            keeps = [result for result in (trials[0].results if trials else ()) if result.text == "keep"]
            found.append(
                {
                    "history": done.history,
                    "variables": [np.asarray(variable).tolist() for variable in done.variables],
                    "replies": [(one.status, one.reason) for one in of_kind(done.recording, Reply)]
                    if script
                    else [],
                    "loss": series(done.recording)["loss"].tolist() if script else [],
                    "keep": losses(keeps[0]).tolist() if keeps else [],
                }
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
