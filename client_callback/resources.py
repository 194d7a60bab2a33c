"""What this process and its GPUs use of the machine, as numbers.

`client_callback.link` reads it about once a second from its thread, where calls to a driver may take milliseconds
without holding up the training. What cannot be read (no library, no GPU, no permission) is left out without
a word. Names and units stand in `client_callback.wire.resources`; no thread, socket or event here.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

_DRIVER: Final = "libnvidia-ml.so.1"


class ResourceMonitor:
    """Reads this process, its machine and the GPUs it was given.

    Made in any thread and at no cost; libraries and drivers are opened by the first `read`, in the thread that calls
    it. In a forked child it reads nothing.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._opened = False
        self._psutil: ModuleType | None = None
        self._process: Any = None
        self._nvml: ModuleType | None = None
        self._gpus: list[Any] = []
        self._cpu_s = self._clock_s = 0.0

    def read(self) -> dict[str, float]:
        """The numbers now; shares of CPU time are those since the last call, and absent in the first."""
        if os.getpid() != self._pid:
            return {}
        first = not self._opened
        if first:
            self._open()
        found = self._read_cpu(first=first)
        found.update(self._read_machine(first=first))
        for number, gpu in enumerate(self._gpus):
            found.update(self._read_gpu(number, gpu))
        return found

    def close(self) -> None:
        """Lets go of the driver; the next `read` opens it anew."""
        if self._nvml is not None and os.getpid() == self._pid:
            _tried(self._nvml.nvmlShutdown)
        self._nvml, self._gpus, self._opened = None, [], False

    # ── Opening ───────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        self._opened = True
        self._psutil = _module("psutil")
        self._process = _tried(self._psutil.Process) if self._psutil else None
        # Only where there is a driver: loading the module alone takes a tenth of a second.
        nvml = _module("pynvml") if _tried(ctypes.CDLL, _DRIVER) is not None else None
        if nvml is None or _tried(nvml.nvmlInit, failed=nvml) is nvml:
            return
        self._nvml = nvml
        self._gpus = visible_devices(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))

    # ── Reading ───────────────────────────────────────────────────────────────────────────────────

    def _read_cpu(self, *, first: bool) -> dict[str, float]:
        """`cpu`, over the time since the last call."""
        before_cpu, before_clock = self._cpu_s, self._clock_s
        self._cpu_s, self._clock_s = time.process_time(), time.monotonic()
        passed = self._clock_s - before_clock
        if first or passed <= 0:
            return {}
        return {"cpu": (self._cpu_s - before_cpu) / passed / _usable_cores()}

    def _read_machine(self, *, first: bool) -> dict[str, float]:
        if self._psutil is None:
            return {}
        found: dict[str, float] = {}
        percent = _tried(self._psutil.cpu_percent)  # since the last call from this thread
        if percent is not None and not first:
            found["cpu_machine"] = percent / 100.0
        own = _tried(self._process.memory_info) if self._process is not None else None
        if own is not None:
            found["memory"] = float(own.rss)
        machine = _tried(self._psutil.virtual_memory)
        if machine is not None:
            found["memory_machine"] = machine.percent / 100.0
        return found

    def _read_gpu(self, number: int, gpu: Any) -> dict[str, float]:
        """What this GPU tells: parts of one, or older ones, do not tell everything."""
        nvml, found = self._nvml, dict[str, float]()
        assert nvml is not None  # noqa: S101  (there are no GPUs without it)
        rates = _tried(nvml.nvmlDeviceGetUtilizationRates, gpu)
        if rates is not None:
            found[f"gpu{number}_utilisation"] = rates.gpu / 100.0
        memory = _tried(nvml.nvmlDeviceGetMemoryInfo, gpu)
        if memory is not None:
            found[f"gpu{number}_memory"] = float(memory.used)
            if memory.total:
                found[f"gpu{number}_memory_share"] = memory.used / memory.total
        celsius = _tried(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU)
        if celsius is not None:
            found[f"gpu{number}_temperature"] = float(celsius)
        milliwatts = _tried(nvml.nvmlDeviceGetPowerUsage, gpu)
        if milliwatts is not None:
            found[f"gpu{number}_power"] = milliwatts / 1_000.0
        return found


def visible_devices(nvml: Any, chosen: str | None) -> list[Any]:
    """Handles of the GPUs that CUDA shows this process, in its order.

    Args:
        nvml: the module `pynvml`, initialised.
        chosen: `CUDA_VISIBLE_DEVICES`: indices or UUIDs, abbreviated ones too. `None`: all GPUs.

    As in CUDA, what stands behind an entry that names no GPU does not count. Indices are taken in the order of the
    PCI bus, which is CUDA's where all GPUs are alike or `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    """
    count = _tried(nvml.nvmlDeviceGetCount) or 0
    if chosen is None:
        handles = [_tried(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return [handle for handle in handles if handle is not None]
    found: list[Any] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.isdecimal():
            handle = _tried(nvml.nvmlDeviceGetHandleByIndex, int(entry)) if int(entry) < count else None
        else:
            handle = _device_called(nvml, entry, count)
        if handle is None:
            break
        found.append(handle)
    return found


def _device_called(nvml: Any, uuid: str, count: int) -> Any | None:
    """The GPU whose UUID begins so; a part of a GPU is asked for by its whole UUID."""
    if uuid.startswith("MIG-"):
        return _tried(nvml.nvmlDeviceGetHandleByUUID, uuid)
    if not uuid.startswith("GPU-"):
        return None
    for index in range(count):
        handle = _tried(nvml.nvmlDeviceGetHandleByIndex, index)
        known = _tried(nvml.nvmlDeviceGetUUID, handle) if handle is not None else None
        if isinstance(known, bytes):
            known = known.decode("ascii", "replace")
        if known is not None and known.startswith(uuid):
            return handle
    return None


def _usable_cores() -> int:
    """Cores this process may run on; of the machine where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _module(name: str) -> ModuleType | None:
    """The module, if it is installed and can be loaded."""
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001  (foreign code, not needed for anything else)
        return None


def _tried(call: Callable[..., Any], *args: Any, failed: Any = None) -> Any:
    """What the call returns, or `failed`: a driver may be lost at any moment, each with errors of its own."""
    try:
        return call(*args)
    except Exception:  # noqa: BLE001  (foreign code; the value is left out)
        return failed
