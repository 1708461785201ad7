"""What is read of one GPU or MIG slice: a table of queries, and a reader that never raises.

A call that a card or driver does not offer is not made again; the next one that gives the same metrics
replaces it. Whatever goes wrong with one query, the others are asked as before.
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

from fastae.monitor.nvml import Device, error_name
from fastae.monitor.recording import GpuRecord, Throttle

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

UNKNOWN, HANG = "NVML_ERROR_UNKNOWN", 3  # a query that gets it so often in a row is not made again
MOST_XIDS = 100  # that are taken at a reading: a driver may log more than one at once
SHORTEST = 0.1  # seconds between two samples of GPM, by NVML's documentation

GPM = {
    "sm_active": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "tensor_active": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "fp32_active": pynvml.NVML_GPM_METRIC_FP32_UTIL,
    "dram_bandwidth": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
}
"""What Hopper and later count in hardware, in percent: metric -> NVML's number of it."""

VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""By NVML_VALUE_TYPE_..."""

Answers = Iterable[float | None]


@dataclass
class _Query:
    """A call that gives these metrics, with others to replace it in order of preference."""

    metrics: Sequence[str]
    calls: list[Callable[[], Answers]]
    known: set[str] = field(default_factory=set)
    reason: str = "no value"
    errors: Counter[str] = field(default_factory=Counter)
    unknown_in_a_row: int = 0

    def ask(self) -> dict[str, float]:
        """Metric -> value, of those that have one now. Raises whatever the call raises."""
        answers = zip(self.metrics, self.calls[0](), strict=True)
        found = {name: float(value) for name, value in answers if value is not None and math.isfinite(value)}
        self.known |= found.keys()
        self.unknown_in_a_row = 0
        return found

    def note(self, error: Exception) -> str:
        """Counts an error, drops the call if it will not be answered, and returns the error's name."""
        name = error_name(error)
        self.unknown_in_a_row += name == UNKNOWN
        if name in REFUSED or not isinstance(error, pynvml.NVMLError) or self.unknown_in_a_row == HANG:
            self.calls.pop(0)
        self.reason = name
        if self.known and name not in GONE:
            self.errors[name] += 1
        return name


class GpuReader:
    """Reads one GPU; `record` says what became of it. Columns begin with `prefix`.

    own: the process ids of the run; others on the same GPU are counted.
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
            ("power",): [  # mW; the second is the mean of a second since Ampere
                lambda: [self._field(pynvml.NVML_FI_DEV_POWER_INSTANT) / 1e3],
                lambda: [nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3],
            ],
            ("energy",): [lambda: [self._field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION) / 1e3]],  # mJ
            # By the second version of the call: without what the driver reserves.
            ("memory",): [lambda: [nvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2).used / 2**30]],
            ("sm_clock",): [lambda: [nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)]],
            ("temperature",): [lambda: [nvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)]],
            ("jpeg",): [lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[:1]],  # then the sampling period
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
        """Column -> value, for what the GPU answers now."""
        found: dict[str, float] = {}
        for query in self._queries:
            if query.calls and not self._lost:
                try:
                    found |= {f"{self._prefix}/{name}": value for name, value in query.ask().items()}
                except Exception as error:  # of a binding, too: it costs this query alone
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
        """In a container the process ids may be another namespace's: then the run's own are not among them,
        and who the others are is not known."""
        pids = {each.pid for each in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        yield len(pids.difference(self._own)) if pids.intersection(self._own) else None

    def _count_ecc(self, kind: int) -> Answers:
        yield self._library.nvmlDeviceGetTotalEccErrors(self._handle, kind, pynvml.NVML_VOLATILE_ECC)

    def _collect_xids(self) -> Answers:
        """How many kinds of errors the driver has logged since the run began."""
        if self._events is None:
            events = self._library.nvmlEventSetCreate()
            self._library.nvmlDeviceRegisterEvents(self._handle, pynvml.nvmlEventTypeXidCriticalError, events)
            self._events = events
        with suppress(pynvml.NVMLError_Timeout):  # there are no more
            for _ in range(MOST_XIDS):
                self._xids.add(int(self._library.nvmlEventSetWait_v2(self._events, 0).eventData))
        yield len(self._xids)


def _throttling(bits: int) -> Answers:
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
        for place, metric in enumerate(GPM.values()):
            self._request.metrics[place].metricId = metric

    def read(self) -> Answers:
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
        answers = self._request.metrics[: len(GPM)]
        return [each.value if each.nvmlReturn == pynvml.NVML_SUCCESS else None for each in answers]
