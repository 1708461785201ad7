"""What the poller records: for each metric a column of samples in bounded memory, all on one clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

CAPACITY = 12_000  # samples of a metric: 20 minutes at 10 Hz, then every second one, and so on

Query = tuple[float, Callable[[], Mapping[str, float]]]
"""Something to read: seconds between two calls (0: as often as the poller polls), and a function that returns
column -> value for what it could read."""


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


class Throttle(Worded):
    """Why a GPU's clocks are lowered: those of NVML's nvmlClocksEventReason... that matter to a program. Each
    is a metric, "throttled_" and its name, in percent of the time."""

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
    NONE_VISIBLE = "none_visible", "CUDA_VISIBLE_DEVICES names no GPU that NVML shows"
    NOT_USED = "not_used", "no process of the program was seen on a GPU"
    NOT_ATTRIBUTED = (
        "not_attributed",
        "NVML's process ids are not known in this container: all visible GPUs are shown",
    )


class Metric(NamedTuple):
    """What people read: a label, which begins with GPU or host, and a unit."""

    label: str
    unit: str


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG slice of one. `index`: in the order of the PCI bus; memory in GiB, power in W, clock in
    MHz. `lost`: NVML's reason if it answers nothing at all."""

    index: int
    name: str
    uuid: str = ""
    is_slice: bool = False
    memory_gib: float | None = None
    power_limit: float | None = None
    max_sm_clock: float | None = None
    max_pcie_generation: int | None = None
    max_pcie_width: int | None = None
    lost: str | None = None


@dataclass(frozen=True)
class GpuRecord:
    """What became of a GPU while it was read. Its columns are "PREFIX/METRIC".

    missing: metric -> why it never had a value. errors: NVML's error -> how often it cost a value that had
    been there before. lost: why it no longer answers. ours: whether a process of the program was on it; None:
    not known. other_processes, other_gib: the most that other programs had on it at once.
    """

    prefix: str
    gpu: Gpu
    missing: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    lost: str | None = None
    ours: bool | None = None
    other_processes: int = 0
    other_gib: float = 0.0


class Span(NamedTuple):
    """A stretch of one phase, which lasts until the next one starts; seconds since the recording began."""

    phase: Phase
    start: float


class Column:
    """The samples of one metric, at most `capacity` (an even number) of them.

    A full column drops every second sample, and from then on keeps every second new one, and so on: means,
    percentiles and shares stay right, while a single peak may be missed.
    """

    def __init__(self, metric: Metric, capacity: int = CAPACITY) -> None:
        self.metric = metric
        self._capacity = capacity
        self._times, self._values = array("d"), array("d")
        self._stride = 1
        self._offered = 0

    def add(self, time: float, value: float) -> None:
        """`time`: seconds since the recording began."""
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
    """What was recorded in `seconds`. columns: "gpu0/power" -> its samples. absence: why GPUs are missing.

    poller_share: CPU time of the poller as a share of one core. failure: what ended it early.
    """

    seconds: float
    spans: tuple[Span, ...]
    columns: Mapping[str, Column]
    gpus: tuple[GpuRecord, ...] = ()
    absence: Absence | None = None
    absence_detail: str = ""
    poller_share: float = 0.0
    failure: str | None = None

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
        spans = np.searchsorted([span.start for span in self.spans], times, side="right") - 1
        return values[np.array([phase in (None, span.phase) for span in self.spans])[spans]]
