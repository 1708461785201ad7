"""What the poller records: for each metric a column of samples in bounded memory, all on one clock."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np

CAPACITY = 12_000  # samples of a metric: 100 minutes at 2 Hz, then every second one, and so on

SETTLING = 1.0
"""Seconds that NVML's figures may look back: a sample so soon after a change of phase belongs to neither."""


class Worded(StrEnum):
    """Members are (value, text): the value for files and code, the text for people."""

    text: str

    def __new__(cls, value: str, text: str) -> Worded:
        member = str.__new__(cls, value)
        member._value_, member.text = value, text
        return member


class Phase(StrEnum):
    """What a run is doing."""

    BEFORE = "before"
    COMPILE = "compile"
    WARM_UP = "warm-up"
    TRAIN = "train"
    EVAL = "eval"
    SAVE = "save"


class Throttle(Worded):
    """Why a GPU's clocks are lowered: those of NVML's nvmlClocksEventReason... that matter to a program. Each
    is a metric, "throttled_" and its name, in percent of the samples."""

    POWER_CAP = "SwPowerCap", "at the power limit"
    DRIVER_THERMAL = "SwThermalSlowdown", "slowed down by the driver, too hot"
    HARDWARE_THERMAL = "HwThermalSlowdown", "slowed down by the hardware, too hot"
    POWER_BRAKE = "HwPowerBrakeSlowdown", "slowed down by the power supply's brake"
    HARDWARE = "HwSlowdown", "slowed down by the hardware"
    SET_CLOCKS = "ApplicationsClocksSetting", "at clocks that somebody set"


class Absence(Worded):
    """Why GPUs are missing from a report."""

    CPU_RUN = "cpu_run", "the run is on the CPU"
    NO_NVML = (
        "no_nvml",
        "NVML (libnvidia-ml.so.1) is missing here; a container needs the driver capability 'utility': "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
    )
    NO_NVML_IN_WSL = (
        "no_nvml_in_wsl",
        "NVML is missing; in WSL it comes with NVIDIA's driver for Windows, in /usr/lib/wsl/lib",
    )
    NVML_FAILED = "nvml_failed", "NVML does not answer"
    NOT_SHOWN = "not_shown", "NVML does not show the GPU or MIG slice that CUDA uses"


class Metric(NamedTuple):
    """What people read: a label, which begins with GPU or host, and a unit."""

    label: str
    unit: str


METRICS = {
    "gpu/gpu_busy": Metric("GPU busy", "%"),
    "gpu/sm_active": Metric("GPU SM activity", "%"),
    "gpu/tensor_active": Metric("GPU tensor cores", "%"),
    "gpu/fp32_active": Metric("GPU FP32 units", "%"),
    "gpu/dram_bandwidth": Metric("GPU DRAM bandwidth", "%"),
    "gpu/jpeg": Metric("GPU JPEG engine", "%"),
    "gpu/memory": Metric("GPU memory", "GiB"),
    "gpu/power": Metric("GPU power", "W"),
    "gpu/energy": Metric("GPU energy counter", "J"),
    "gpu/sm_clock": Metric("GPU SM clock", "MHz"),
    "gpu/temperature": Metric("GPU temperature", "°C"),
    "gpu/pcie_width": Metric("GPU PCIe lanes", ""),
    "gpu/other_processes": Metric("GPU processes of other programs", ""),
    "gpu/ecc_corrected": Metric("GPU corrected ECC errors", ""),
    "gpu/ecc_uncorrected": Metric("GPU uncorrected ECC errors", ""),
    "gpu/xid": Metric("GPU XID errors", ""),
    **{f"gpu/throttled_{reason}": Metric(f"GPU {reason.text}", "%") for reason in Throttle},
    "host/cpu": Metric("host CPU", "cores"),
    "host/machine_cpu": Metric("host CPU, all programs", "cores"),
    "host/memory": Metric("host memory", "GiB"),
    "host/disk_read": Metric("host disk reads", "MB/s"),
    "loop/images_per_second": Metric("images/s", "images/s"),
    "loop/data_wait": Metric("waiting for data", "%"),
    "loop/device_wait": Metric("waiting for the device", "%"),
    "loop/seconds": Metric("a log step", "s"),
}
"""By kind of owner and name: the column "gpu3/power" holds "gpu/power" of the fourth GPU."""

COUNTERS = ("energy", "ecc_corrected", "ecc_uncorrected", "xid")
"""Metrics whose mean says nothing: what counts is how much they grew, or how they end."""


def key_of(column: str) -> str:
    """The key in METRICS of a column, or something that is no key."""
    owner, _, metric = column.partition("/")
    return f"{owner.rstrip('0123456789')}/{metric}"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG slice of one. `index`: in the order of the PCI bus; memory in GiB, power in W.
    `lost`: NVML's reason if it answers nothing at all."""

    index: int
    name: str
    uuid: str = ""
    is_slice: bool = False
    memory_gib: float | None = None
    power_limit: float | None = None
    max_pcie_width: int | None = None
    lost: str | None = None


@dataclass(frozen=True)
class GpuRecord:
    """What became of a GPU while it was read. Its columns are "PREFIX/METRIC".

    missing: metric -> why it never had a value. errors: metric -> error -> how often a query failed that had
    been answered before; of a query for several metrics, the first. lost: why the GPU no longer answers.
    xids: the numbers of the errors that the driver logged meanwhile.
    """

    prefix: str
    gpu: Gpu
    missing: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lost: str | None = None
    xids: tuple[int, ...] = ()


class Span(NamedTuple):
    """A stretch of one phase, which lasts until the next one starts; seconds since the recording began."""

    phase: Phase
    start: float


class Column:
    """The samples of one metric, at most `capacity` (an even number) of them.

    A full column drops every second sample, and from then on keeps every second new one, and so on: means,
    percentiles and shares stay right, while a single peak may be missed. first, last: of all that came.
    """

    def __init__(self, metric: Metric, capacity: int = CAPACITY) -> None:
        self.metric = metric
        self.first = self.last = 0.0
        self._capacity = capacity
        self._times, self._values = array("d"), array("d")
        self._stride = 1
        self._offered = 0

    def add(self, time: float, value: float) -> None:
        """`time`: seconds since the recording began."""
        self.first, self.last = (self.first if self._offered else value), value
        if self._offered % self._stride == 0:
            if len(self._values) == self._capacity:
                self._times, self._values = self._times[::2], self._values[::2]
                self._stride *= 2
            self._times.append(time)
            self._values.append(value)
        self._offered += 1

    def __len__(self) -> int:
        return len(self._values)

    @property
    def times(self) -> np.ndarray:
        return np.array(self._times)

    @property
    def values(self) -> np.ndarray:
        return np.array(self._values)


@dataclass(frozen=True)
class Recording:
    """What was recorded in `seconds`. columns: "gpu0/power" -> its samples.

    hz: samples per second that were reached. failure: what ended it early. sessions: when each session of the
    run starts, if it holds several.
    """

    seconds: float
    spans: tuple[Span, ...]
    columns: Mapping[str, Column]
    gpus: tuple[GpuRecord, ...] = ()
    hz: float = 0.0
    failure: str | None = None
    sessions: tuple[float, ...] = (0.0,)

    def stretches(self) -> list[tuple[Phase, float, float]]:
        """Phase, start and length of each span."""
        ends = [*(span.start for span in self.spans[1:]), self.seconds]
        return [
            (span.phase, span.start, end - span.start) for span, end in zip(self.spans, ends, strict=True)
        ]

    def values(self, name: str, phase: Phase | None = None) -> np.ndarray:
        """The samples of a column in a phase, or all; empty if there is no such column."""
        if name not in self.columns:
            return np.empty(0)
        times, values = self.columns[name].times, self.columns[name].values
        if phase is None:
            return values
        starts = np.array([span.start for span in self.spans])
        spans = np.searchsorted(starts, times, side="right") - 1
        settling = 0.0 if name.startswith("loop/") else SETTLING  # the loop's figures are of what it names
        is_settled = times - starts[spans] >= settling
        return values[np.array([span.phase is phase for span in self.spans])[spans] & is_settled]


def joined(before: Recording, after: Recording) -> Recording:
    """Two sessions of a run as one recording: the second starts where the first ends."""
    columns: dict[str, Column] = {}
    for recording, shift in ((before, 0.0), (after, before.seconds)):
        for name, column in recording.columns.items():
            target = columns.setdefault(name, Column(column.metric))
            for time, value in zip(column.times + shift, column.values, strict=True):
                target.add(time, value)
    return replace(
        after,
        seconds=before.seconds + after.seconds,
        spans=(*before.spans, *(Span(phase, start + before.seconds) for phase, start in after.spans)),
        columns=columns,
        sessions=(*before.sessions, *(start + before.seconds for start in after.sessions)),
    )
