"""What the machine is read to do: this process for real, GPUs through a driver made of numbers."""

from __future__ import annotations

import os
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from client_callback import resources
from client_callback.resources import ResourceMonitor, visible_devices
from client_callback.wire.resources import gpu_number, quantity

UUIDS = ("GPU-aaaa-1111", "GPU-abbb-2222", "GPU-cccc-3333")


def lost(*_):
    raise RuntimeError("NVML: GPU is lost")


class Driver:
    """Answers as NVML does for three GPUs; calls named in `failing` raise, as when a GPU falls off the bus."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self):
        self.failing = set()
        self.open = 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in self.failing:
            return lost
        return object.__getattribute__(self, name)

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return uuid

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=40 + UUIDS.index(handle))

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=3 << 30, total=12 << 30)

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        return 61

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 243_500


@pytest.fixture
def monitor():
    made = ResourceMonitor()
    yield made
    made.close()


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(resources, "_DRIVER", None)  # stands for this program itself, which can be loaded
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(resources, "_DRIVER", "libno-such-driver.so.1")


def test_memory_is_that_of_this_process_and_grows_with_it(monitor, no_driver):
    before = monitor.read()["memory"]
    block = np.ones(200 << 20, np.uint8)
    grown = monitor.read()["memory"] - before
    assert grown == pytest.approx(block.nbytes, rel=0.1)
    assert before == pytest.approx(psutil.Process().memory_info().rss - grown, rel=0.2)


def test_shares_of_cpu_time_are_those_since_the_last_reading(monitor, no_driver):
    assert not {"cpu", "cpu_machine"} & monitor.read().keys()
    began = os.times()
    while os.times().user - began.user < 0.3:
        np.sort(np.random.default_rng(0).random(10_000))
    busy = monitor.read()
    used = sum(os.times()[:2]) - sum(began[:2])
    passed = os.times().elapsed - began.elapsed
    assert busy["cpu"] == pytest.approx(used / passed / len(os.sched_getaffinity(0)), abs=0.15)
    assert 0 < busy["cpu_machine"] <= 1


def test_without_a_driver_nothing_is_said_of_gpus(monitor, no_driver):
    names = {name for _ in range(2) for name in monitor.read()}
    assert names == {"cpu", "cpu_machine", "memory", "memory_machine"}


def test_every_gpu_is_read_and_every_name_has_a_unit(monitor, driver):
    monitor.read()
    values = monitor.read()
    assert values["gpu2_utilisation"] == 0.42
    assert (values["gpu0_memory"], values["gpu0_memory_share"]) == (3 << 30, 0.25)
    assert (values["gpu1_temperature"], values["gpu1_power"]) == (61.0, 243.5)
    assert {gpu_number(name) for name in values} == {None, 0, 1, 2}
    for name, value in values.items():
        what = quantity(name)
        assert what is not None, name
        assert what.unit != "share" or 0 <= value <= 1, name
    assert quantity("gpu0_noise") is None


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),
        ("GPU-cccc-3333, GPU-ab", [2, 1]),
        ("GPU-none", []),
        ("nonsense", []),
    ],
)
def test_the_gpus_are_those_that_cuda_shows_this_process(driver, chosen, found):
    assert visible_devices(driver, chosen) == [UUIDS[index] for index in found]


def test_gpus_are_counted_as_the_training_counts_them(monitor, driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert monitor.read()["gpu0_utilisation"] == 0.42


def test_a_value_that_cannot_be_read_any_more_is_left_out(monitor, driver):
    assert "gpu0_temperature" in monitor.read()
    driver.failing = {"nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo"}
    values = monitor.read()
    assert "gpu0_utilisation" in values
    assert not {"gpu0_temperature", "gpu0_memory", "gpu0_memory_share"} & values.keys()


def test_a_driver_that_does_not_open_costs_the_gpus_alone(monitor, driver):
    driver.failing = {"nvmlInit"}
    assert {gpu_number(name) for name in monitor.read()} == {None}


def test_closing_lets_go_of_the_driver(driver):
    monitor = ResourceMonitor()
    assert driver.open == 0
    monitor.read()
    assert driver.open == 1
    monitor.close()
    monitor.close()
    assert driver.open == 0


def test_a_forked_child_reads_nothing(monitor, no_driver):
    assert monitor.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if monitor.read() == {} else 1)
    assert os.waitpid(child, 0)[1] == 0
