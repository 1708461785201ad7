"""What is read of one GPU or MIG slice: a table of metrics and NVML calls, and a reader that never raises.

A call that a card or driver does not offer is not made again, and the next one in the table that gives the
same metric takes its place. What changes slowly, or is counted anyway, is read once a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import pynvml

from fastae.monitor.nvml import Device, error_name
from fastae.monitor.poller import Query
from fastae.monitor.recording import GpuRecord, Metric, Throttle

REFUSED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DEPRECATED,
)
"""Answers that will not change while a program runs; after others (a timeout, log) it is asked again."""

GONE = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
)
"""After one of these a GPU answers nothing any more."""

HANG = 3  # NVML_ERROR_UNKNOWN so often in a row, and no other answer between, is a GPU that hangs
FAST, SLOW = 0.0, 1.0  # seconds between readings; 0 is the rate of the poller
NOT_LISTED, NO_MEMORY_GIVEN = "NVML lists no process of this program", "NVML gives no memory for it"

THROTTLE_FIELDS = {
    Throttle.POWER_CAP: (74,),
    Throttle.DRIVER_THERMAL: (269, 251),
    Throttle.HARDWARE_THERMAL: (270, 252),
    Throttle.POWER_BRAKE: (271, 253),
}
"""NVML's counters of time, in ns. The last three have moved from 251-253 to 269-271 between versions of
nvml.h; under the other number a driver has a setting of its power smoothing, or nothing. A setting does not
grow, so the growth of both together is the counter's."""

METRICS = (
    Metric("gpu_busy", "GPU busy", "%"),
    Metric("sm_active", "SM activity", "%"),
    Metric("sm_occupancy", "SM occupancy", "%"),
    Metric("tensor_active", "tensor-core activity", "%"),
    Metric("dram_bandwidth", "DRAM bandwidth", "%"),
    Metric("memory_controller_busy", "memory controller busy", "%"),
    Metric("jpeg", "JPEG engine", "%"),
    Metric("nvdec", "NVDEC", "%"),
    Metric("memory", "memory used, GPU", "GiB"),
    Metric("process_memory", "memory used, program", "GiB"),
    Metric("pcie_received", "PCIe to the GPU", "MB/s"),
    Metric("pcie_sent", "PCIe from the GPU", "MB/s"),
    Metric("pcie_generation", "PCIe generation", ""),
    Metric("pcie_width", "PCIe lanes", ""),
    Metric("power", "power", "W"),
    Metric("sm_clock", "SM clock", "MHz"),
    Metric("memory_clock", "memory clock", "MHz"),
    Metric("performance_state", "P-state", ""),
    Metric("temperature", "temperature", "°C"),
    Metric("energy", "energy counter", "J"),
    Metric("throttle_reasons", "throttle reasons", "bits"),
    *(Metric(f"throttled_{reason}", reason.text, "s") for reason in THROTTLE_FIELDS),
)

GPM = {
    "sm_active": (pynvml.NVML_GPM_METRIC_SM_UTIL, 1.0),
    "sm_occupancy": (pynvml.NVML_GPM_METRIC_SM_OCCUPANCY, 1.0),
    "tensor_active": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 1.0),
    "dram_bandwidth": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 1.0),
    "pcie_received": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, 2**20 / 1e6),  # MiB/s
    "pcie_sent": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, 2**20 / 1e6),
}
"""What Hopper and later count in hardware: NVML's number of each metric, and the factor to our unit."""

VALUE_FIELDS = dict(enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")))
"""By NVML_VALUE_TYPE_..."""

Value: TypeAlias = Any
"""An answer: a number, none yet, or why not, an NVMLError."""


class GpuReader:
    """Reads one GPU by its queries; `record` says what became of it. Columns begin with `prefix`.

    `is_ours`: whether a process, by its id, belongs to the program that is watched; None: not known.
    """

    def __init__(
        self, library: Any, device: Device, prefix: str, is_ours: Callable[[int], bool | None]
    ) -> None:
        self._library = library
        self._gpu, self._handle = device
        self._prefix = prefix
        self._is_ours = is_ours
        self._missing = {metric.name: "no answer yet" for metric in METRICS}
        self._errors: dict[str, int] = {}
        self._lost = self._gpu.lost
        self._unknown_in_a_row = 0
        self._sources: dict[str, int] = {}
        self._refused: set[tuple[int, str]] = set()
        self._first: dict[int, float] = {}
        self._last: dict[int, tuple[float, float]] = {}
        self._gpm: _GpmSampler | None = None
        self._own_seen = self._unknown_seen = False
        self._others = (0, 0.0)

    def columns(self) -> dict[str, Metric]:
        return {f"{self._prefix}/{metric.name}": metric for metric in METRICS}

    def queries(self) -> list[Query]:
        """Those that give the same metric are in order of preference."""
        nvml, gpu, sensor = self._library, self._handle, pynvml.NVML_TEMPERATURE_GPU
        table: tuple[tuple[float, Sequence[str], Callable[[], Iterable[Value]]], ...] = (
            (FAST, ("gpu_busy", "memory_controller_busy"), self._read_utilization),
            (FAST, ("power",), lambda: self._fields(1e-3, pynvml.NVML_FI_DEV_POWER_INSTANT)),  # mW
            (FAST, ("power",), lambda: [nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3]),  # of 1 s since Ampere
            (FAST, ("sm_clock",), lambda: [nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)]),
            (FAST, ("throttle_reasons",), lambda: [nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)]),
            (FAST, ("throttle_reasons",), lambda: [nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)]),
            (SLOW, tuple(GPM), self._read_gpm),
            (SLOW, ("energy", *(f"throttled_{reason}" for reason in THROTTLE_FIELDS)), self._read_counters),
            (SLOW, ("energy",), lambda: [nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3]),  # mJ
            (SLOW, ("pcie_received", "pcie_sent"), self._read_pcie_counters),
            (SLOW, ("pcie_received",), lambda: [self._throughput(pynvml.NVML_PCIE_UTIL_RX_BYTES)]),
            (SLOW, ("pcie_sent",), lambda: [self._throughput(pynvml.NVML_PCIE_UTIL_TX_BYTES)]),
            (SLOW, ("memory",), lambda: [self._memory(pynvml.nvmlMemory_v2)]),  # without the driver's own
            (SLOW, ("memory",), lambda: [self._memory(None)]),
            (SLOW, ("process_memory",), self._read_processes),
            (SLOW, ("jpeg",), lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[:1]),  # then the sampling period
            (SLOW, ("nvdec",), lambda: nvml.nvmlDeviceGetDecoderUtilization(gpu)[:1]),
            (SLOW, ("temperature",), lambda: [nvml.nvmlDeviceGetTemperature(gpu, sensor)]),
            (SLOW, ("memory_clock",), lambda: [nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM)]),
            (SLOW, ("performance_state",), lambda: [nvml.nvmlDeviceGetPerformanceState(gpu)]),
            (SLOW, ("pcie_generation",), lambda: [nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu)]),
            (SLOW, ("pcie_width",), lambda: [nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu)]),
        )
        return [
            Query(partial(self._ask, place, metrics, read), period)
            for place, (period, metrics, read) in enumerate(table)
        ]

    def record(self) -> GpuRecord:
        ours = True if self._own_seen else None if self._unknown_seen else False
        missing, errors = dict(self._missing), dict(self._errors)
        return GpuRecord(self._prefix, self._gpu, missing, errors, self._lost, ours, *self._others)

    def _ask(
        self, place: int, metrics: Sequence[str], read: Callable[[], Iterable[Value]]
    ) -> dict[str, float]:
        """The answers to the query of this place in the table, by column."""
        wanted = {
            metric
            for metric in metrics
            if self._sources.get(metric, place) == place and (place, metric) not in self._refused
        }
        if self._lost or not wanted:
            return {}
        try:
            values = list(read())
        except pynvml.NVMLError as error:
            values = [error] * len(metrics)
        known = {}
        for metric, value in zip(metrics, values, strict=True):
            if isinstance(value, pynvml.NVMLError):
                self._note(place, metric, value)
            elif metric in wanted:
                self._unknown_in_a_row = 0
                self._sources[metric] = place  # even without a value yet: a counter needs two readings
                if value is not None and math.isfinite(value):
                    self._missing.pop(metric, None)
                    known[f"{self._prefix}/{metric}"] = float(value)
        return known

    def _note(self, place: int, metric: str, error: pynvml.NVMLError) -> None:
        name = error_name(error)
        if metric in self._missing:
            self._missing[metric] = name
        elif self._sources.get(metric) == place:
            self._errors[name] = self._errors.get(name, 0) + 1
        if error.value in GONE:
            self._lost = name
        elif error.value in REFUSED:
            self._refused.add((place, metric))
            if self._sources.get(metric) == place:
                del self._sources[metric]
        elif error.value == pynvml.NVML_ERROR_UNKNOWN:
            self._unknown_in_a_row += 1
            if self._unknown_in_a_row >= HANG:
                self._lost = f"{name}, {HANG} times in a row"

    def _fields(self, factor: float, *ids: int) -> list[Value]:
        """Several of NVML's fields in one call; each has an error code of its own."""
        values = self._library.nvmlDeviceGetFieldValues(self._handle, list(ids))
        return [
            factor * getattr(each.value, VALUE_FIELDS.get(each.valueType, "ullVal"))
            if each.nvmlReturn == pynvml.NVML_SUCCESS
            else pynvml.NVMLError(each.nvmlReturn)
            for each in values
        ]

    def _read_utilization(self) -> Iterable[Value]:
        rates = self._library.nvmlDeviceGetUtilizationRates(self._handle)
        return rates.gpu, rates.memory

    def _memory(self, version: int | None) -> float:
        return self._library.nvmlDeviceGetMemoryInfo(self._handle, version).used / 2**30

    def _throughput(self, direction: int) -> float:
        """MB/s; NVML itself measures for 20 ms."""
        return self._library.nvmlDeviceGetPcieThroughput(self._handle, direction) / 1e3

    def _read_gpm(self) -> Iterable[Value]:
        if self._gpm is None:
            self._gpm = _GpmSampler(self._library, self._handle, self._gpu.is_slice)
        return self._gpm.read()

    def _read_counters(self) -> Iterable[Value]:
        """Joules, and for each reason seconds since the first reading."""
        ids = [each for fields in THROTTLE_FIELDS.values() for each in fields]
        energy, *values = self._fields(1.0, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, *ids)  # mJ, ns
        found = dict(zip(ids, values, strict=True))
        yield energy if isinstance(energy, pynvml.NVMLError) else energy / 1e3
        for fields in THROTTLE_FIELDS.values():
            known = [each for each in fields if not isinstance(found[each], pynvml.NVMLError)]
            grown = sum(found[each] - self._first.setdefault(each, found[each]) for each in known)
            yield grown / 1e9 if known else found[fields[0]]

    def _read_pcie_counters(self) -> Iterable[Value]:
        """MB/s since the last reading. The counters have 32 bits: once a second is enough up to 4.3 GB/s."""
        ids = (pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES)
        now = time.monotonic()
        for counter, value in zip(ids, self._fields(1.0, *ids), strict=True):
            if isinstance(value, pynvml.NVMLError):
                yield value
                continue
            (then, before), self._last[counter] = self._last.get(counter, (now, value)), (now, value)
            grown = value - before + (2**32 if value < before else 0)
            yield grown / (now - then) / 1e6 if now > then and grown >= 0 else None

    def _read_processes(self) -> Iterable[Value]:
        used: dict[bool | None, list[float]] = {True: [], False: [], None: []}
        for each in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle):
            used[self._is_ours(each.pid)].append((each.usedGpuMemory or 0) / 2**30)
        own, others = used[True], used[False]
        self._own_seen |= bool(own)
        self._unknown_seen |= bool(used[None])
        self._others = max(self._others[0], len(others)), max(self._others[1], sum(others))
        if "process_memory" in self._missing:
            self._missing["process_memory"] = NO_MEMORY_GIVEN if own else NOT_LISTED
        yield sum(own) if any(own) else None


class _GpmSampler:
    """The metrics of GPM over the time between one reading and the next."""

    def __init__(self, library: Any, handle: Any, is_slice: bool) -> None:
        """Raises NVMLError if the card or driver has no GPM."""
        self._library = library
        self._take = partial(library.nvmlGpmSampleGet, handle)
        if is_slice:
            instance = library.nvmlDeviceGetGpuInstanceId(handle)
            handle = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            self._take = partial(library.nvmlGpmMigSampleGet, handle, instance)
        if not library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._samples = [library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()]
        self._taken = 0
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version, self._request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(GPM)
        for place, (metric, _) in enumerate(GPM.values()):
            self._request.metrics[place].metricId = metric

    def read(self) -> Iterable[Value]:
        """A value for each of GPM; none the first time."""
        before, after = self._samples[self._taken % 2 - 1], self._samples[self._taken % 2]
        self._take(after)
        self._taken += 1
        if self._taken == 1:
            return [None] * len(GPM)
        self._request.sample1, self._request.sample2 = before, after
        self._library.nvmlGpmMetricsGet(self._request)
        return [
            factor * each.value
            if each.nvmlReturn == pynvml.NVML_SUCCESS
            else pynvml.NVMLError(each.nvmlReturn)
            for each, (_, factor) in zip(self._request.metrics, GPM.values(), strict=False)
        ]
