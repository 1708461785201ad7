"""Reads one GPU or MIG slice: a table of queries, and a reader that never raises an error.

A call that the card or driver does not support is not repeated. It is replaced by the next call that gives
the same metrics, if there is one. An error of one query does not affect the others.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pynvml

from fastae.device.nvml import Device, error_name
from fastae.monitor.recording import GpuRecord, Throttle

REFUSED = (
    "NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "NVML_ERROR_DEPRECATED",
)  # fmt: skip
"""Errors that persist while a program runs. After others, such as a timeout, the call is repeated."""

GONE = (
    "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
)  # fmt: skip
"""Errors after which a GPU answers no call."""

UNKNOWN, HANG = "NVML_ERROR_UNKNOWN", 3  # after UNKNOWN so often in a row, a call is not repeated
MOST_XIDS = 100  # the most per reading: a driver may log several at once
SHORTEST = 0.1  # the least seconds between two samples of GPM, by NVML's documentation

GPM = {
    "sm_active": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "tensor_active": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "fp32_active": pynvml.NVML_GPM_METRIC_FP32_UTIL,
    "dram_bandwidth": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
}
"""Metric -> NVML's number of the hardware counters of Hopper and later, in percent."""

VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""The fields of NVML's union of values, by NVML_VALUE_TYPE_..."""

Answers = Iterable[float | None]


@dataclass
class _Query:
    """A call that gives some metrics, and the calls that may replace it."""

    metrics: Sequence[str]

    calls: list[Callable[[], Answers]]
    """Calls that give a value for each metric, in order of preference. The first is used."""

    known: set[str] = field(default_factory=set)
    """The metrics that have had a value."""

    reason: str = "no value"
    """The reason why metrics have no value: the last error."""

    errors: Counter[str] = field(default_factory=Counter)
    """Error -> how often it occurred after the query had been answered."""

    unknown_in_a_row: int = 0

    def ask(self) -> dict[str, float]:
        """Makes the call: metric -> value of those that have one now. Errors of the call are raised."""
        answers = zip(self.metrics, self.calls[0](), strict=True)
        found = {name: float(value) for name, value in answers if value is not None and math.isfinite(value)}
        self.known |= found.keys()
        self.unknown_in_a_row = 0
        return found

    def note(self, error: Exception) -> str:
        """Counts an error, drops the call if the error persists, and returns the error's name."""
        name = error_name(error)
        self.unknown_in_a_row += name == UNKNOWN
        if name in REFUSED or not isinstance(error, pynvml.NVMLError) or self.unknown_in_a_row == HANG:
            self.calls.pop(0)
        self.reason = name
        if self.known and name not in GONE:
            self.errors[name] += 1
        return name


class GpuReader:
    """Reads one GPU. At the end, `record` describes the faults that occurred.

    Args:
        library: NVML.
        device: the GPU and its handle.
        prefix: the first part of the names of columns, such as 'gpu0'.
        own: the process ids of the run. Other processes on the GPU are counted.
    """

    def __init__(self, library: Any, device: Device, prefix: str, own: Collection[int]) -> None:
        self._library = library
        self._gpu, self._handle = device
        self._prefix = prefix
        self._own = own
        self._lost = self._gpu.lost
        self._gpm: _GpmSampler | None = None
        self._events: Any = None
        self._xids: set[int] = set()
        self._queries = self._make_queries()

    def _make_queries(self) -> list[_Query]:
        nvml, gpu = self._library, self._handle
        calls: dict[Sequence[str], list[Callable[[], Answers]]] = {
            ("gpu_busy",): [lambda: [nvml.nvmlDeviceGetUtilizationRates(gpu).gpu]],
            ("power",): [  # mW; since Ampere, the second is the mean over one second
                lambda: [self._field(pynvml.NVML_FI_DEV_POWER_INSTANT) / 1e3],
                lambda: [nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3],
            ],
            ("energy",): [lambda: [self._field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION) / 1e3]],  # mJ
            # The second version of the call excludes the memory that the driver reserves.
            ("memory",): [lambda: [nvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2).used / 2**30]],
            ("sm_clock",): [lambda: [nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)]],
            ("temperature",): [lambda: [nvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)]],
            ("jpeg",): [lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[:1]],  # not the sampling period
            ("pcie_width",): [lambda: [nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu)]],
            tuple(f"throttled_{reason}" for reason in Throttle): [
                lambda: _throttling(nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))
            ],
            tuple(GPM): [self._read_gpm],
            ("other_processes",): [self._count_others],
            ("ecc_corrected",): [lambda: self._count_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)],
            ("ecc_uncorrected",): [lambda: self._count_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)],
            ("xid",): [self._collect_xids],
        }
        return [_Query(metrics, them) for metrics, them in calls.items()]

    def read(self) -> dict[str, float]:
        """Column -> value of the metrics that the GPU gives now."""
        found: dict[str, float] = {}
        for query in self._queries:
            if query.calls and not self._lost:
                try:
                    found |= {f"{self._prefix}/{name}": value for name, value in query.ask().items()}
                except Exception as error:  # also an error of the Python binding: only this query is affected
                    name = query.note(error)
                    self._lost = name if name in GONE else None
        return found

    def record(self) -> GpuRecord:
        missing = {
            name: query.reason for query in self._queries for name in query.metrics if name not in query.known
        }
        errors = {query.metrics[0]: dict(query.errors) for query in self._queries if query.errors}
        return GpuRecord(self._prefix, self._gpu, missing, errors, self._lost, tuple(sorted(self._xids)))

    def _field(self, number: int) -> float:
        (value,) = self._library.nvmlDeviceGetFieldValues(self._handle, [number])
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
        return getattr(value.value, VALUE_FIELDS[value.valueType])

    def _read_gpm(self) -> Answers:
        if self._gpm is None:
            self._gpm = _GpmSampler(self._library, self._handle, self._gpu.is_slice)
        return self._gpm.read()

    def _count_others(self) -> Answers:
        """Yields the number of other processes on the GPU; None if it is unknown.

        In a container, NVML's process ids may be those of another namespace. Then the run's own ids are not
        among them, and the other processes cannot be identified.
        """
        pids = {each.pid for each in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        yield len(pids.difference(self._own)) if pids.intersection(self._own) else None

    def _count_ecc(self, kind: int) -> Answers:
        yield self._library.nvmlDeviceGetTotalEccErrors(self._handle, kind, pynvml.NVML_VOLATILE_ECC)

    def _collect_xids(self) -> Answers:
        """Yields the number of different XID errors that the driver has logged since the run began."""
        if self._events is None:
            events = self._library.nvmlEventSetCreate()
            self._library.nvmlDeviceRegisterEvents(self._handle, pynvml.nvmlEventTypeXidCriticalError, events)
            self._events = events
        with suppress(pynvml.NVMLError_Timeout):  # there are no more events
            for _ in range(MOST_XIDS):
                self._xids.add(int(self._library.nvmlEventSetWait_v2(self._events, 0).eventData))
        yield len(self._xids)


def _throttling(bits: int) -> Answers:
    """100 for each reason that applies now, else 0."""
    return [100.0 * bool(bits & getattr(pynvml, f"nvmlClocksEventReason{reason}")) for reason in Throttle]


class _GpmSampler:
    """The metrics of GPM (GPU performance monitoring) over the time between two readings."""

    def __init__(self, library: Any, handle: Any, is_slice: bool) -> None:
        """Raises NVMLError if the card or driver does not support GPM."""
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
        for index, metric in enumerate(GPM.values()):
            self._request.metrics[index].metricId = metric

    def read(self) -> Answers:
        """A value for each metric of GPM; None at the first reading, and too soon after the last one."""
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
        answers = self._request.metrics[: len(GPM)]
        return [each.value if each.nvmlReturn == pynvml.NVML_SUCCESS else None for each in answers]
