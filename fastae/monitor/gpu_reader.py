"""What is read of one GPU or MIG slice: a table of metrics and NVML calls, and a reader that never raises.

A call that a card or driver does not offer is not made again; the next one in the table that gives the same
metric replaces it. What changes slowly, or is counted anyway, is read once a second.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import pynvml

from fastae.monitor.nvml import Device, error_name
from fastae.monitor.recording import GpuRecord, Metric, Query, Throttle

REFUSED = (
    "NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "NVML_ERROR_DEPRECATED",
)  # fmt: skip
"""Answers that will not change while a program runs; after others, such as a timeout, it is asked again."""

GONE = (
    "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
)  # fmt: skip
"""After one of these a GPU answers nothing any more."""

UNKNOWN, HANG = "NVML_ERROR_UNKNOWN", 3  # so often in a row, and no other answer between: a GPU that hangs
FAST, SLOW = 0.0, 1.0  # seconds between readings; 0 is the rate of the poller
SHORTEST = 0.5  # seconds between two readings of a counter, or samples of GPM: some change ten times a second

METRICS = {
    "gpu_busy": Metric("GPU busy", "%"),
    "sm_active": Metric("GPU SM activity", "%"),
    "sm_occupancy": Metric("GPU SM occupancy", "%"),
    "tensor_active": Metric("GPU tensor cores", "%"),
    "dram_bandwidth": Metric("GPU DRAM bandwidth", "%"),
    "memory_controller_busy": Metric("GPU memory controller busy", "%"),
    "jpeg": Metric("GPU JPEG engine", "%"),
    "memory": Metric("GPU memory", "GiB"),
    "process_memory": Metric("GPU memory, program", "GiB"),
    "pcie_received": Metric("GPU PCIe received", "MB/s"),
    "pcie_sent": Metric("GPU PCIe sent", "MB/s"),
    "power": Metric("GPU power", "W"),
    "counted_power": Metric("GPU power, counted", "W"),
    "sm_clock": Metric("GPU SM clock", "MHz"),
    "temperature": Metric("GPU temperature", "°C"),
    "pcie_generation": Metric("GPU PCIe generation", ""),
    "pcie_width": Metric("GPU PCIe lanes", ""),
    "performance_state": Metric("GPU P-state", ""),
    **{f"throttled_{reason}": Metric(f"GPU {reason.text}", "%") for reason in Throttle},
}

COUNTERS = {
    "counted_power": (pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1e-3),  # mJ
    "throttled_SwPowerCap": (74, 1e-7),  # ns
    "throttled_SwThermalSlowdown": (269, 1e-7),
    "throttled_HwThermalSlowdown": (270, 1e-7),
    "throttled_HwPowerBrakeSlowdown": (271, 1e-7),
    "pcie_received": (pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 1e-6),
    "pcie_sent": (pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 1e-6),
}
"""Metric -> NVML's field, which counts, and the factor from its growth in a second to the metric's unit."""

GPM = {
    "sm_active": (pynvml.NVML_GPM_METRIC_SM_UTIL, 1.0),
    "sm_occupancy": (pynvml.NVML_GPM_METRIC_SM_OCCUPANCY, 1.0),
    "tensor_active": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 1.0),
    "dram_bandwidth": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 1.0),
    "pcie_received": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, 2**20 / 1e6),  # MiB/s
    "pcie_sent": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, 2**20 / 1e6),
}
"""What Hopper and later count in hardware: metric -> NVML's number of it, and the factor to our unit."""

VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""By NVML_VALUE_TYPE_..."""

Value: TypeAlias = Any
"""An answer: a number, None for none yet, or an NVMLError."""


class GpuReader:
    """Reads one GPU by its queries; `record` says what became of it. Columns begin with `prefix`.

    `is_ours`: whether a process, by its id, belongs to the program that is watched; None: not known.
    """

    def __init__(
        self, library: Any, device: Device, prefix: str, is_ours: Callable[[int], bool | None]
    ) -> None:
        self.columns = {f"{prefix}/{name}": metric for name, metric in METRICS.items()}
        self._library = library
        self._gpu, self._handle = device
        self._prefix = prefix
        self._is_ours = is_ours
        self._missing = dict.fromkeys(METRICS, "no value was given")
        self._errors: Counter[str] = Counter()
        self._lost = self._gpu.lost
        self._unknown_in_a_row = 0
        self._last: dict[str, tuple[float, float]] = {}
        self._gpm: _GpmSampler | None = None
        self._was_asked, self._seen = False, set[bool | None]()
        self._others = (0, 0.0)
        self._table = self._make_table()
        self._sources = {
            name: [place for place, (_, metrics, _) in enumerate(self._table) if name in metrics]
            for name in METRICS
        }

    def _make_table(self) -> Sequence[tuple[float, Iterable[str], Callable[[], Iterable[Value]]]]:
        """Period, metrics and call. Calls that give the same metric are in order of preference."""
        nvml, gpu, sensor = self._library, self._handle, pynvml.NVML_TEMPERATURE_GPU
        reasons = [f"throttled_{reason}" for reason in Throttle]
        return (
            (FAST, ("gpu_busy", "memory_controller_busy"), self._read_utilization),
            (FAST, ("power",), lambda: self._fields((pynvml.NVML_FI_DEV_POWER_INSTANT, 1e-3))),  # mW
            (FAST, ("power",), lambda: [nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3]),  # of 1 s since Ampere
            (FAST, ("sm_clock",), lambda: [nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)]),
            (SLOW, GPM, self._read_gpm),
            (SLOW, COUNTERS, self._read_counters),
            (SLOW, reasons, lambda: _throttling(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))),
            (SLOW, ("pcie_received",), lambda: [self._throughput(pynvml.NVML_PCIE_UTIL_RX_BYTES)]),
            (SLOW, ("pcie_sent",), lambda: [self._throughput(pynvml.NVML_PCIE_UTIL_TX_BYTES)]),
            (SLOW, ("memory",), self._read_memory),
            (SLOW, ("process_memory",), self._read_processes),
            (SLOW, ("jpeg",), lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[:1]),  # then the sampling period
            (SLOW, ("temperature",), lambda: [nvml.nvmlDeviceGetTemperature(gpu, sensor)]),
            (SLOW, ("performance_state",), lambda: [nvml.nvmlDeviceGetPerformanceState(gpu)]),
            (SLOW, ("pcie_generation",), lambda: [nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu)]),
            (SLOW, ("pcie_width",), lambda: [nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu)]),
        )

    def queries(self) -> list[Query]:
        return [(period, partial(self._ask, place)) for place, (period, _, _) in enumerate(self._table)]

    def record(self) -> GpuRecord:
        is_known = self._was_asked and None not in self._seen
        ours = True if True in self._seen else False if is_known else None
        missing, errors = dict(self._missing), dict(self._errors)
        return GpuRecord(self._prefix, self._gpu, missing, errors, self._lost, ours, *self._others)

    def _ask(self, place: int) -> dict[str, float]:
        """Column -> value of those metrics that this place in the table is to give."""
        _, metrics, read = self._table[place]
        wanted = [name for name in metrics if self._sources[name][:1] == [place]]
        if self._lost or not wanted:
            return {}
        try:
            answers = dict(zip(metrics, read(), strict=True))
        except pynvml.NVMLError as error:
            answers = dict.fromkeys(metrics, error)
        errors = {n: error_name(each) for n, each in answers.items() if isinstance(each, pynvml.NVMLError)}
        self._unknown_in_a_row = self._unknown_in_a_row + 1 if UNKNOWN in errors.values() else 0
        if self._unknown_in_a_row == HANG:
            self._lost = f"{UNKNOWN}, {HANG} times in a row"
        known = {}
        for name in wanted:
            if name in errors:
                self._note(name, errors[name])
            elif answers[name] is not None and math.isfinite(answers[name]):
                self._missing.pop(name, None)
                known[f"{self._prefix}/{name}"] = float(answers[name])
        return known

    def _note(self, metric: str, error: str) -> None:
        if metric in self._missing:
            self._missing[metric] = error
        else:
            self._errors[error] += 1
        if error in GONE:
            self._lost = error
        elif error in REFUSED:
            self._sources[metric].pop(0)

    def _fields(self, *wanted: tuple[int, float]) -> list[Value]:
        """Several of NVML's fields, each times a factor, in one call; each has an error code of its own."""
        values = self._library.nvmlDeviceGetFieldValues(self._handle, [number for number, _ in wanted])
        return [
            factor * getattr(each.value, VALUE_FIELDS[each.valueType])
            if each.nvmlReturn == pynvml.NVML_SUCCESS
            else pynvml.NVMLError(each.nvmlReturn)
            for each, (_, factor) in zip(values, wanted, strict=True)
        ]

    def _read_utilization(self) -> Iterable[Value]:
        rates = self._library.nvmlDeviceGetUtilizationRates(self._handle)
        return rates.gpu, rates.memory

    def _read_memory(self) -> Iterable[Value]:
        """GiB, by the second version of the call: without what the driver reserves."""
        return [self._library.nvmlDeviceGetMemoryInfo(self._handle, pynvml.nvmlMemory_v2).used / 2**30]

    def _throughput(self, direction: int) -> float:
        """MB/s; NVML itself measures for 20 ms."""
        return self._library.nvmlDeviceGetPcieThroughput(self._handle, direction) / 1e3

    def _read_gpm(self) -> Iterable[Value]:
        if self._gpm is None:
            self._gpm = _GpmSampler(self._library, self._handle, self._gpu.is_slice)
        return self._gpm.read()

    def _read_counters(self) -> Iterable[Value]:
        for name, value in zip(COUNTERS, self._fields(*COUNTERS.values()), strict=True):
            yield value if isinstance(value, pynvml.NVMLError) else self._rate(name, value)

    def _rate(self, name: str, value: float) -> float | None:
        """What a counter grew in a second since the last reading; None if it started again. Those of PCIe
        have 32 bits: a reading each second is enough up to 4.3 GB/s."""
        now = time.monotonic()
        then, before = self._last.setdefault(name, (now, value))
        if now - then < SHORTEST:
            return None
        self._last[name] = now, value
        wrapped = value < before and name.startswith("pcie")
        grown = value - before + (2**32 / 1e6 if wrapped else 0.0)
        return grown / (now - then) if grown >= 0 else None

    def _read_processes(self) -> Iterable[Value]:
        used: dict[bool | None, list[float]] = {True: [], False: [], None: []}
        for each in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle):
            used[self._is_ours(each.pid)].append((each.usedGpuMemory or 0) / 2**30)
        own, others = used[True], used[False]
        self._was_asked = True
        self._seen |= {whose for whose, found in used.items() if found}
        self._others = max(self._others[0], len(others)), max(self._others[1], sum(others))
        yield sum(own) if any(own) else None


def _throttling(bits: int) -> Iterable[Value]:
    """For each reason 100 or 0: whether it applies now."""
    return [100.0 * bool(bits & getattr(pynvml, f"nvmlClocksEventReason{reason}")) for reason in Throttle]


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
        self._before, self._after = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
        self._taken: float | None = None
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version, self._request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(GPM)
        for place, (metric, _) in enumerate(GPM.values()):
            self._request.metrics[place].metricId = metric

    def read(self) -> list[Value]:
        """A value for each of GPM; none the first time, nor too soon after the last sample."""
        now, then = time.monotonic(), self._taken
        if then is not None and now - then < SHORTEST:
            return [None] * len(GPM)
        self._before, self._after = self._after, self._before
        self._take(self._after)
        self._taken = now
        if then is None:
            return [None] * len(GPM)
        self._request.sample1, self._request.sample2 = self._before, self._after
        self._library.nvmlGpmMetricsGet(self._request)
        return [
            factor * each.value
            if each.nvmlReturn == pynvml.NVML_SUCCESS
            else pynvml.NVMLError(each.nvmlReturn)
            for each, (_, factor) in zip(self._request.metrics, GPM.values(), strict=False)
        ]
