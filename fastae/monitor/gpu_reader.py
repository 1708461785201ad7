"""What is read of a GPU: one table of names, units and NVML calls, and a reader that never raises.

A metric that a card or driver does not offer is remembered with NVML's name for the reason, and the
others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pynvml

from fastae.monitor.nvml import GONE, Gpu, error_name

REFUSED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
"""Answers that will not change while a program runs; after others (a timeout, say) it is asked again."""


@dataclass(frozen=True)
class Metric:
    """A column: `name` in files, `label` and `unit` for people."""

    name: str
    label: str
    unit: str

    @property
    def is_share(self) -> bool:
        return self.unit == "%"


class NotShown(Exception):
    """NVML answered, but not about what was asked for."""


@dataclass(frozen=True)
class Query:
    """One call to NVML, (library, handle, process ids) -> a value for each of `metrics`.

    `slow` ones are read once a second: NVML itself takes 20 ms over each PCIe counter, walks over all
    processes for their memory, and a temperature changes no faster.
    """

    metrics: tuple[Metric, ...]
    read: Callable[[Any, Any, Iterable[int]], tuple[float, ...]]
    slow: bool = False


def _utilisation(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    rates = library.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu, rates.memory


def _memory(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetMemoryInfo(handle).used / 2**30,)


def _power(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetPowerUsage(handle) / 1e3,)  # milliwatts


def _energy(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,)  # millijoules


def _sm_clock(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),)


def _throttle_reasons(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    try:
        return (library.nvmlDeviceGetCurrentClocksEventReasons(handle),)
    except pynvml.NVMLError_FunctionNotFound:  # a driver before 535 knows the older name alone
        return (library.nvmlDeviceGetCurrentClocksThrottleReasons(handle),)


def _jpeg(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetJpgUtilization(handle)[0],)  # [percent, sampling period in us]


def _decoder(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetDecoderUtilization(handle)[0],)


def _process_memory(library: Any, handle: Any, processes: Iterable[int]) -> tuple[float, ...]:
    wanted = set(processes)
    ours = [each for each in library.nvmlDeviceGetComputeRunningProcesses(handle) if each.pid in wanted]
    if not ours:
        raise NotShown("NVML lists no such process: it is in a container, or holds nothing yet")
    if any(each.usedGpuMemory is None for each in ours):
        raise NotShown("NVML gives no memory for the process")
    return (sum(each.usedGpuMemory for each in ours) / 2**30,)


def _temperature(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),)


def _memory_clock(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    return (library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),)


def _pcie(library: Any, handle: Any, _: Iterable[int]) -> tuple[float, ...]:
    counters = (pynvml.NVML_PCIE_UTIL_RX_BYTES, pynvml.NVML_PCIE_UTIL_TX_BYTES)
    received, sent = (library.nvmlDeviceGetPcieThroughput(handle, counter) for counter in counters)
    return received / 1e3, sent / 1e3  # KB/s


UTILISATION = Metric("utilisation", "SM utilisation", "%")
POWER = Metric("power", "power", "W")
ENERGY = Metric("energy", "energy counter", "J")
THROTTLE = Metric("throttle_reasons", "throttle reasons", "bits")
JPEG = Metric("jpeg", "JPEG engine", "%")

QUERIES = (
    Query((UTILISATION, Metric("memory_utilisation", "memory utilisation", "%")), _utilisation),
    Query((Metric("memory", "memory used, board", "GiB"),), _memory),
    Query((POWER,), _power),
    Query((ENERGY,), _energy),
    Query((Metric("sm_clock", "SM clock", "MHz"),), _sm_clock),
    Query((THROTTLE,), _throttle_reasons),
    Query((JPEG,), _jpeg),
    Query((Metric("decoder", "NVDEC", "%"),), _decoder),
    Query((Metric("process_memory", "memory used, process", "GiB"),), _process_memory, slow=True),
    Query((Metric("temperature", "temperature", "°C"),), _temperature, slow=True),
    Query((Metric("memory_clock", "memory clock", "MHz"),), _memory_clock, slow=True),
    Query(
        (
            Metric("pcie_received", "PCIe to the GPU", "MB/s"),
            Metric("pcie_sent", "PCIe from the GPU", "MB/s"),
        ),
        _pcie,
        slow=True,
    ),
)
GPU_METRICS = tuple(metric for query in QUERIES for metric in query.metrics)


class GpuReader:
    """Reads one GPU. `not_offered`: metric name -> why it has given no value; `lost`: why the GPU answers
    no more, if so; `errors`: how often each NVML error left out a value that had been there before.
    """

    def __init__(self, library: Any, gpu: Gpu) -> None:
        self.gpu = gpu
        self.not_offered: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.lost: str | None = None
        self._library = library
        self._seen: set[Query] = set()
        self._refused: set[Query] = set()

    def read(self, slow: bool, processes: Iterable[int] = ()) -> list[float]:
        """A value for each of GPU_METRICS; nan for what was not asked for or not answered."""
        values: list[float] = []
        for query in QUERIES:
            asked = (slow or not query.slow) and not self.lost and query not in self._refused
            answer = self._ask(query, processes) if asked else None
            values.extend(answer or [math.nan] * len(query.metrics))
        return values

    def _ask(self, query: Query, processes: Iterable[int]) -> tuple[float, ...] | None:
        try:
            values = query.read(self._library, self.gpu.handle, processes)
        except pynvml.NVMLError as error:
            name = error_name(error)
            if error.value in GONE:
                self.lost = name
            elif error.value in REFUSED:
                self._refused.add(query)
            if query in self._seen:
                self.errors[name] = self.errors.get(name, 0) + 1
            else:
                self._miss(query, name)
        except NotShown as error:
            if query not in self._seen:
                self._miss(query, str(error))
        else:
            if query not in self._seen:
                self._seen.add(query)
                for metric in query.metrics:
                    self.not_offered.pop(metric.name, None)
            return values
        return None

    def _miss(self, query: Query, reason: str) -> None:
        self.not_offered.update({metric.name: reason for metric in query.metrics})
