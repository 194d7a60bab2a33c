"""What the readings of a machine and a process are called, and what their numbers mean.

`client_callback.resources` takes the readings, `monitor` shows and exports them; both look up names here. A table
of patterns, because every GPU has numbers of its own: `gpu0_memory`, `gpu1_memory`, …
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

Unit = Literal["share", "bytes", "°C", "W"]
"""`share`: from 0 to 1."""


class Quantity(NamedTuple):
    """One kind of number that is read."""

    unit: Unit
    doc: str


QUANTITIES: Final[dict[str, Quantity]] = {
    "cpu": Quantity("share", "CPU time of this process, of all cores it may run on"),
    "cpu_machine": Quantity("share", "CPU time of the whole machine, of all its cores"),
    "memory": Quantity("bytes", "Resident memory of this process"),
    "memory_machine": Quantity("share", "Memory in use on the whole machine"),
    "gpu*_utilisation": Quantity("share", "Time in which the GPU ran a kernel, of any process"),
    "gpu*_memory": Quantity("bytes", "Memory in use on the GPU, by any process"),
    "gpu*_memory_share": Quantity("share", "The same, of all the GPU has"),
    "gpu*_temperature": Quantity("°C", "Temperature of the GPU"),
    "gpu*_power": Quantity("W", "Power the GPU draws"),
}
"""By name; `*` stands for the GPU's number, counted from 0 as the training counts the GPUs it sees."""

_GPU: Final = re.compile(r"gpu(\d+)_")


def quantity(name: str) -> Quantity | None:
    """What the numbers of that name are. `None`: a name of another version."""
    return QUANTITIES.get(_GPU.sub("gpu*_", name, count=1))


def gpu_number(name: str) -> int | None:
    """Which GPU a name speaks of. `None`: of none."""
    match = _GPU.match(name)
    return int(match[1]) if match else None
