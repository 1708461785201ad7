"""Reads one GPU or MIG slice: a table of queries, and a reader that never raises an error.

A query that fails, such as one that the card or driver does not support, does not affect the others. If it
fails several times in a row, it is not repeated.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pynvml

from fastae.device.nvml import Device, Gpu, error_name, offered
from fastae.utils.worded import Worded

MOST_FAILURES = 5
"""After this many failures in a row, a query is not repeated. On a failing GPU, each call may hang."""

GONE = (
    "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
)  # fmt: skip
"""Errors after which a GPU no longer answers any call."""

MOST_XIDS = 100  # the maximum per reading: a driver may log several at once
SHORTEST_GPM = 0.1  # the minimum seconds between two samples of GPM, by NVML's documentation

GPM = {
    "sm_active": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "tensor_active": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "fp32_active": pynvml.NVML_GPM_METRIC_FP32_UTIL,
    "dram_bandwidth": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
}
"""Metric -> NVML's number of the hardware counter. Hopper and later have these counters, in percent."""


class Throttle(Worded):
    """The reasons for lowered clocks: those of NVML's nvmlClocksEventReason... that matter to a program.

    Each reason is a metric, such as "throttled_SwPowerCap". It is the share of the time in which the
    reason applied, or, on older drivers, 1 if it applies at the time of the sample, and else 0.
    """

    POWER_CAP = "SwPowerCap", "at the power limit"
    DRIVER_THERMAL = "SwThermalSlowdown", "slowed down by the driver because of heat"
    HARDWARE_THERMAL = "HwThermalSlowdown", "slowed down by the hardware because of heat"
    POWER_BRAKE = "HwPowerBrakeSlowdown", "slowed down by the power supply's brake"
    HARDWARE = "HwSlowdown", "slowed down by the hardware"


THROTTLE_COUNTERS = {
    Throttle.POWER_CAP: pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP,
    Throttle.DRIVER_THERMAL: pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    Throttle.HARDWARE_THERMAL: pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    Throttle.POWER_BRAKE: pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
}
"""Reason -> NVML's number of the field that counts the nanoseconds in which it applied."""

VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""The fields of NVML's union of values, in the order of NVML_VALUE_TYPE_..."""

ROOT_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the machine's own PID namespace: PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h."""

Answers = Iterable[float | None]

Pids = Callable[[], Collection[int]]
"""Returns the ids of a program's processes now."""


def name_of(owner: str) -> str:
    """Returns the name of a GPU in texts: "GPU" for the columns of "gpu", "GPU 3" for those of "gpu3"."""
    return f"GPU {owner.removeprefix('gpu')}".rstrip()


@dataclass(frozen=True)
class GpuRecord:
    """A GPU, and the faults that occurred while it was read."""

    prefix: str
    """The first part of its columns' names, which are "PREFIX/METRIC"."""

    gpu: Gpu

    missing: Mapping[str, str] = field(default_factory=dict)
    """Query, by its metric or in words -> the reason why it never had an answer."""

    errors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Query -> error -> how often it occurred, for queries that also had an answer."""

    lost: str | None = None
    """The reason why the GPU no longer answers, if it does not."""

    xids: tuple[int, ...] = ()
    """The numbers of the XID errors that the driver logged."""

    @property
    def name(self) -> str:
        """The name in texts: "GPU", or "GPU 3" if there are several GPUs."""
        return name_of(self.prefix)


@dataclass
class _Query:
    """A call that returns a value for each of `metrics`; None for a metric that has no value now."""

    name: str
    """Its metric, or what it asks for in words."""

    metrics: Sequence[str]
    call: Callable[[], Answers]

    is_answered: bool = False
    """Whether a metric has had a value."""

    errors: Counter[str] = field(default_factory=Counter)
    """Error -> how often it occurred."""

    failures: int = 0
    """The number of failures since the last answer."""


class GpuReader:
    """Reads one GPU. At the end, `record` describes the faults that occurred, and `close` must be called.

    Args:
        library: NVML.
        device: the GPU and its handle.
        prefix: the first part of the names of columns, such as 'gpu0'.
        own: returns the process ids of the run. Other processes on the GPU are counted.
    """

    def __init__(self, library: Any, device: Device, prefix: str, own: Pids) -> None:
        self._library = library
        self._gpu, self._handle = device
        self._prefix = prefix
        self._own = own
        self._lost = self._gpu.lost
        self._xids: set[int] = set()
        self._counted_at, self._counted = time.monotonic(), dict[Throttle, Any]()
        self._allocated = ExitStack()
        self._queries = self._make_queries()

    def _make_queries(self) -> list[_Query]:
        nvml, gpu = self._library, self._handle
        instant, energy = pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
        calls: dict[str, Callable[[], float | None]] = {
            "gpu_busy": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            # mW. Since Ampere, the second call returns the mean over one second.
            "power": lambda: (offered(self._field, instant) or nvml.nvmlDeviceGetPowerUsage(gpu)) / 1e3,
            "energy": lambda: self._field(energy) / 1e3,  # mJ
            # The second version of the call excludes the memory that the driver reserves.
            "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2).used / 2**30,
            "sm_clock": lambda: nvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "temperature": lambda: nvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "jpeg": lambda: nvml.nvmlDeviceGetJpgUtilization(gpu)[0],  # [1] is the sampling period
            "pcie_width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu),
            "ecc_corrected": lambda: self._count_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "ecc_uncorrected": lambda: self._count_ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            "xid": self._collect_xids,
        }
        reasons = [f"throttled_{reason}" for reason in Throttle]
        return [
            *(_single(metric, call) for metric, call in calls.items()),
            _Query("processes of other programs", ["other_processes", "others_busy"], self._read_others),
            _Query("reasons for lowered clocks", reasons, self._read_throttling),
            _Query("SM counters (they need Hopper or newer)", list(GPM), lambda: self._gpm.read()),
        ]

    def read(self) -> dict[str, float]:
        """Returns column -> value for the metrics that have a value now."""
        values: dict[str, float] = {}
        for query in self._queries:
            if self._lost or query.failures == MOST_FAILURES:
                continue
            try:
                for metric, value in zip(query.metrics, query.call(), strict=True):
                    if value is not None and math.isfinite(value):
                        values[f"{self._prefix}/{metric}"] = float(value)
                        query.is_answered = True
                query.failures = 0
            except Exception as error:  # also an error of the Python binding: only this query is affected
                name = error_name(error)
                if name in GONE:
                    self._lost = name
                else:
                    query.errors[name] += 1
                    query.failures += 1
        return values

    def record(self) -> GpuRecord:
        missing = {q.name: next(reversed(q.errors), "no value") for q in self._queries if not q.is_answered}
        errors = {q.name: dict(q.errors) for q in self._queries if q.is_answered and q.errors}
        xids = tuple(sorted(self._xids))
        return GpuRecord(self._prefix, self._gpu, missing, errors, lost=self._lost, xids=xids)

    def close(self) -> None:
        """Frees what NVML has allocated for this reader."""
        self._allocated.close()

    def _field(self, number: int) -> float:
        (value,) = self._library.nvmlDeviceGetFieldValues(self._handle, [number])
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(value.nvmlReturn)
        return getattr(value.value, VALUE_FIELDS[value.valueType])

    def _read_throttling(self) -> Answers:
        """Returns the share of the time since the last reading in which each reason applied, in [0, 1].

        If the driver does not count the time of a reason, it is 1 if the reason applies now, else 0.
        """
        bits = offered(self._library.nvmlDeviceGetCurrentClocksEventReasons, self._handle)
        if bits is None:  # the call's name before R535
            bits = self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        before, self._counted = self._counted, self._count_throttling()
        began, self._counted_at = self._counted_at, time.monotonic()
        seconds = self._counted_at - began
        shares = {
            reason: float(bool(bits & getattr(pynvml, f"nvmlClocksEventReason{reason}")))
            for reason in Throttle
        }
        if before and self._counted and seconds > 0:
            shares |= {
                reason: min(1.0, (counted - before[reason]) / 1e9 / seconds)
                for reason, counted in self._counted.items()
            }
        return shares.values()

    def _count_throttling(self) -> dict[Throttle, Any]:
        """Returns reason -> the nanoseconds in which it applied so far.

        Returns {} for a driver that counts only some of the reasons: it may count them in other units.
        """
        counts = {reason: offered(self._field, number) for reason, number in THROTTLE_COUNTERS.items()}
        return {} if None in counts.values() else counts

    @cached_property
    def _gpm(self) -> _GpmSampler:
        return _GpmSampler(self._library, self._handle, self._gpu.is_slice, self._allocated)

    def _read_others(self) -> Answers:
        """Returns the number of other processes on the GPU, and the percent of the time of their kernels.

        Both are None if they are unknown. In a container, NVML's process ids may be those of another
        namespace: then the run's own ids are not among them. Newer drivers (from about R560 on) translate the
        ids, and hide the processes of other namespaces: if no other process is shown, there may be some.
        """
        running = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        pids = {process.pid for process in running}
        others = pids.difference(self._own())
        if len(others) == len(pids) or not (others or sees_all_processes()):
            return [None, None]
        return [len(others), self._measure_busy(others) if others else 0.0]

    def _measure_busy(self, pids: Collection[int]) -> float | None:
        """Returns the percent of the last second in which kernels of these processes ran; None if unknown."""
        since = time.time_ns() // 1000 - 1_000_000
        try:
            samples = self._library.nvmlDeviceGetProcessUtilization(self._handle, since)
        except pynvml.NVMLError_NotFound:  # no process ran a kernel
            return 0.0
        except pynvml.NVMLError:
            return None
        busy = {sample.pid: sample.smUtil for sample in samples if sample.pid in pids}  # the latest of each
        return sum(busy.values())

    def _count_ecc(self, kind: int) -> int:
        return self._library.nvmlDeviceGetTotalEccErrors(self._handle, kind, pynvml.NVML_VOLATILE_ECC)

    @cached_property
    def _events(self) -> Any:
        """NVML's queue of the XID errors that the driver logs from now on."""
        events = self._library.nvmlEventSetCreate()
        self._allocated.callback(offered, self._library.nvmlEventSetFree, events)
        self._library.nvmlDeviceRegisterEvents(self._handle, pynvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _collect_xids(self) -> int:
        """The number of different XID errors that the driver has logged since the run began."""
        with suppress(pynvml.NVMLError_Timeout):  # there are no more events
            for _ in range(MOST_XIDS):
                self._xids.add(int(self._library.nvmlEventSetWait_v2(self._events, 0).eventData))
        return len(self._xids)


def sees_all_processes() -> bool:
    """Returns whether this process is in the machine's own PID namespace, and not in a container's."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino == ROOT_PID_NAMESPACE
    return False


def _single(metric: str, call: Callable[[], float | None]) -> _Query:
    """The query of a call that gives one metric."""
    return _Query(metric, [metric], lambda: [call()])


class _GpmSampler:
    """The metrics of GPM (GPU performance monitoring) over the time between two readings."""

    def __init__(self, library: Any, handle: Any, is_slice: bool, allocated: ExitStack) -> None:
        """Raises NVMLError if the card or driver does not support GPM. `allocated` will free its samples."""
        self._library = library
        self._take = partial(library.nvmlGpmSampleGet, handle)
        if is_slice:
            instance = library.nvmlDeviceGetGpuInstanceId(handle)
            handle = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            self._take = partial(library.nvmlGpmMigSampleGet, handle, instance)
        if not library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._before, self._after = library.nvmlGpmSampleAlloc(), library.nvmlGpmSampleAlloc()
        for sample in (self._before, self._after):
            allocated.callback(offered, library.nvmlGpmSampleFree, sample)
        self._take(self._after)
        self._taken = time.monotonic()
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version, self._request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(GPM)
        for index, metric in enumerate(GPM.values()):
            self._request.metrics[index].metricId = metric

    def read(self) -> Answers:
        """Returns a value for each metric of GPM; None for each if it is too soon after the last reading."""
        now = time.monotonic()
        if now - self._taken < SHORTEST_GPM:
            return [None] * len(GPM)
        self._before, self._after = self._after, self._before
        self._take(self._after)
        self._taken = now
        self._request.sample1, self._request.sample2 = self._before, self._after
        self._library.nvmlGpmMetricsGet(self._request)
        answers = self._request.metrics[: len(GPM)]
        return [answer.value if answer.nvmlReturn == pynvml.NVML_SUCCESS else None for answer in answers]
