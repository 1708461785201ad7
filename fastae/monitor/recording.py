"""The recording that the poller makes: a column of samples per metric, in bounded memory and on one clock."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from fastae.device.gpu_reader import GpuRecord, Throttle, name_of

CAPACITY = 12_000  # samples of a metric: 100 minutes at 2 Hz, then every second sample is kept

SETTLING = 1.0
"""The seconds over which NVML may average: samples this soon after a change of phase are not used."""


class Phase(StrEnum):
    """The phases of a run."""

    BEFORE = "before"
    COMPILE = "compile"
    WARM_UP = "warm-up"
    TRAIN = "train"
    EVAL = "eval"
    SAVE = "save"
    REPLAY = "replay"
    OTHER = "other"


SAMPLED: dict[str, tuple[str, str]] = {
    "gpu/gpu_busy": ("GPU busy", "%"),
    "gpu/sm_active": ("GPU SM activity", "%"),
    "gpu/tensor_active": ("GPU tensor cores", "%"),
    "gpu/fp32_active": ("GPU FP32 units", "%"),
    "gpu/dram_bandwidth": ("GPU DRAM bandwidth", "%"),
    "gpu/jpeg": ("GPU JPEG engine", "%"),
    "gpu/memory": ("GPU memory", "GiB"),
    "gpu/power": ("GPU power", "W"),
    "gpu/energy": ("GPU energy counter", "J"),
    "gpu/sm_clock": ("GPU SM clock", "MHz"),
    "gpu/temperature": ("GPU temperature", "°C"),
    "gpu/pcie_width": ("GPU PCIe lanes", ""),
    "gpu/other_processes": ("GPU processes of other programs", ""),
    "gpu/others_busy": ("GPU busy with other programs", "%"),
    "gpu/ecc_corrected": ("GPU corrected ECC errors", ""),
    "gpu/ecc_uncorrected": ("GPU uncorrected ECC errors", ""),
    "gpu/xid": ("GPU XID errors", ""),
    **{f"gpu/throttled_{reason}": (f"GPU {reason.text}", "") for reason in Throttle},
    "host/cpu": ("host CPU", "cores"),
    "host/machine_cpu": ("host CPU, all programs", "cores"),
    "host/cpu_wait": ("host threads waiting for a CPU", "threads"),
    "host/memory": ("host memory", "GiB"),
    "host/disk_read": ("host disk reads", "MB/s"),
    "loop/images_per_second": ("training speed", "images/s"),
    "loop/data_wait": ("waiting for data", "%"),
    "loop/device_wait": ("waiting for the device", "%"),
    "loop/queued": ("batches that reached a busy device", "%"),
    "loop/replayed": ("speed with replayed batches", "images/s"),
    "loop/seconds": ("a log step", "s"),
}
"""Kind of owner and metric -> label and unit. Labels of a GPU contain "GPU"; plain numbers have the unit "".

With several GPUs, the column "gpu3/power" is the power of the fourth.
"""

NOT_AVERAGED = ("energy", "ecc_corrected", "ecc_uncorrected", "xid", "seconds")
"""Metrics whose mean is not reported: counters, and the weights of the loop's figures."""


class Span(NamedTuple):
    """A phase, with its start in seconds since the recording began, and its length in seconds."""

    phase: Phase
    start: float
    seconds: float


class Column:
    """The samples of one metric, at most `capacity` of them.

    A full column drops every second sample, and from then on keeps only every second new one. When it is full
    again, it does the same again. Means, percentiles and shares stay correct, but a single peak may be lost.

    Attributes:
        key: the metric's key in SAMPLED.
        label: the metric's label. It contains the GPU's number if the name does.
        first: the first value, even if it was dropped.
        last: the last value, even if it was dropped.

    Args:
        name: the owner and the metric, such as "gpu3/power".
        capacity: the maximum number of samples, which is even.

    Raises:
        KeyError: there is no such metric.
    """

    def __init__(self, name: str, capacity: int = CAPACITY) -> None:
        self.owner, _, self.metric = name.partition("/")
        self.key = f"{self.owner.rstrip('0123456789')}/{self.metric}"
        label, self.unit = SAMPLED[self.key]
        self.label = label.replace("GPU", name_of(self.owner), 1)
        self.times, self.values = array("d"), array("d")
        self.first = self.last = 0.0
        self._capacity = capacity
        self._stride = 1
        self._offered = 0

    def add(self, time: float, value: float) -> None:
        """Adds a sample. `time` is in seconds since the recording began."""
        self.first, self.last = (self.first if self._offered else value), value
        if self._offered % self._stride == 0:
            if len(self.values) == self._capacity:
                self.times, self.values = self.times[::2], self.values[::2]
                self._stride *= 2
            self.times.append(time)
            self.values.append(value)
        self._offered += 1


@dataclass(frozen=True)
class Recording:
    """The samples of one part of a run, from its start or resumption to its end."""

    seconds: float
    """The length of the recording."""

    spans: tuple[Span, ...]
    """The phases in order."""

    columns: Mapping[str, Column]
    """Name, such as "gpu/power" -> samples."""

    gpus: tuple[GpuRecord, ...] = ()

    hz: float = 0.0
    """The number of samples per second that was reached."""

    def values(self, name: str, phase: Phase | None = None) -> np.ndarray:
        """Returns the samples of a column in a phase, or in all phases; empty if there is no such column."""
        times, values, spans, has_phase = self._samples(name, phase)
        settling = 0.0 if phase is None or name.startswith("loop/") else SETTLING  # the loop has no delay
        starts = np.array([span.start for span in self.spans])
        return values[has_phase & (times - starts[spans] >= settling)]

    def growth_rate(self, name: str, phase: Phase | None = None) -> float | None:
        """Returns the mean growth per second of a counter in a phase, or in all phases.

        In a phase, only the time between two samples of the same span counts. Returns None if there is none,
        or if the counter was reset.
        """
        times, values, spans, has_phase = self._samples(name, phase)
        is_counted = has_phase[1:] & ((spans[1:] == spans[:-1]) | (phase is None))
        seconds, growth = np.diff(times)[is_counted].sum(), np.diff(values)[is_counted]
        return float(growth.sum() / seconds) if seconds > 0 and (growth >= 0).all() else None

    def _samples(self, name: str, phase: Phase | None) -> tuple[np.ndarray, ...]:
        """Returns for each sample of a column its time, value and span, and whether it counts."""
        column = self.columns.get(name) or Column(name)
        spans = np.searchsorted([span.start for span in self.spans], column.times, side="right") - 1
        has_phase = np.array([phase in (None, span.phase) for span in self.spans])
        return np.array(column.times), np.array(column.values), spans, has_phase[spans]
