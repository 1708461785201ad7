"""The statistics of a recording, and the dataclasses of gpu.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastae.device.nvml import Absence
from fastae.monitor.recording import COUNTERS, GpuRecord, Phase, Recording, Throttle
from fastae.utils.limits import Cores
from fastae.utils.worded import Worded

FEWEST_SAMPLES = 10  # of a metric while training; with fewer, the whole recording is summarised
JOULES_PER_KWH = 3.6e6
LOOP = ("images_per_second", "data_wait", "device_wait")


class Verdict(Worded):
    """What limits the speed."""

    WAITING_FOR_DATA = "waiting_for_data", "waiting for data"
    WAITING_FOR_RANK = "waiting_for_rank", "waiting for another rank"
    LAUNCH_BOUND = "launch_bound", "launch-bound"
    GPU_BOUND = "gpu_bound", "GPU-bound"
    COMPUTE_BOUND = "compute_bound", "compute-bound"
    MEMORY_BOUND = "memory_bound", "memory-bound"
    CPU_BOUND = "cpu_bound", "CPU-bound"
    CPU_CONTENTION = "cpu_contention", "CPU contention"
    CPU_IDLE = "cpu_idle", "CPU cores idle"
    UNKNOWN = "unknown", "unknown"


@dataclass(frozen=True)
class RunInfo:
    """The properties of a run that its report depends on."""

    loader: str
    compiled: bool
    amp: bool
    batch_size: int

    ranks: int = 1
    """The number of processes that share the run."""

    on_gpu: bool = True

    at_once: int = 1
    """The number of runs that take turns on the device."""

    image_flops: float = 0.0
    """FLOPs of a training step per image."""

    peak_flops: float | None = None
    """Peak FLOP/s of the device in the run's precision; None if unknown."""


@dataclass(frozen=True)
class Statistics:
    """The statistics of one metric, in its unit."""

    label: str
    unit: str
    mean: float
    p5: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True)
class GpuSummary:
    """The statistics of one GPU."""

    record: GpuRecord

    statistics: Mapping[str, Statistics]
    """Metric -> statistics over the measured phase."""

    throttling: Mapping[Throttle, float] = field(default_factory=dict)
    """Reason -> share of the samples in which it applied, in [0, 1]."""

    watts: float | None = None
    """Mean power over the measured phase; None if unknown."""

    kwh: float | None = None
    """Energy of the whole recording; None if unknown."""

    is_counted: bool = False
    """Whether the energy is from the card's counter, not from the mean of sampled power."""

    ecc_corrected: float | None = None
    """Corrected ECC errors in the whole recording; None if unknown."""

    ecc_uncorrected: float | None = None
    """Uncorrected ECC errors in the whole recording; None if unknown."""

    def mean(self, metric: str) -> float | None:
        """The mean of a metric; None if it is unknown."""
        return self.statistics[metric].mean if metric in self.statistics else None


@dataclass(frozen=True)
class Summary:
    """The figures of a recording. Those that are unknown are None."""

    seconds: float
    """The length of the recording."""

    cores: Cores

    phases: Mapping[Phase, float]
    """Phase -> its total seconds."""

    measured: Phase | None
    """The phase that the statistics describe; None for the whole recording."""

    gpus: tuple[GpuSummary, ...]

    host: Mapping[str, Statistics]
    """Metric -> statistics of the host and the training loop."""

    hz: float = 0.0
    """The number of samples per second that was reached."""

    failure: str | None = None
    """The error that ended the monitor early, if any."""

    images_per_second: float | None = None
    """The rate of training, as counted by the loop."""

    data_wait: float | None = None
    """The share of the time, in [0, 1], in which the device had no batch, as counted by the loop."""

    device_wait: float | None = None
    """The share of the time, in [0, 1], in which the host waited for the device, as counted by the loop."""

    tflops: float | None = None
    """The model's TFLOP/s at this rate."""

    mfu: float | None = None
    """Model FLOPs utilisation: the share of the devices' peak FLOP/s, in [0, 1]."""

    images_per_joule: float | None = None
    """Images trained on per joule of all GPUs; None if the power of one of them is unknown."""

    kwh: float | None = None
    """The energy of all GPUs; None if that of one of them is unknown."""

    allocated_gib: float | None = None
    """The peak of memory that PyTorch allocated on the main rank's GPU."""

    reserved_gib: float | None = None
    """The peak of memory that PyTorch reserved on the main rank's GPU."""

    @property
    def other_cores(self) -> float:
        """The number of cores that other programs use; 0 if unknown or less than half a core."""
        known = {"cpu", "machine_cpu"} <= self.host.keys()
        others = self.host["machine_cpu"].mean - self.host["cpu"].mean if known else 0.0
        return others if others >= 0.5 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """The limit of a run's speed."""

    verdict: Verdict

    advice: tuple[str, ...] = ()
    """What to try, in words."""


@dataclass(frozen=True)
class UsageReport:
    """The report of one session of a run."""

    summary: Summary
    diagnosis: Diagnosis

    absence: Absence | None = None
    """The reason why GPUs are missing, if any is."""

    absence_detail: str = ""
    """NVML's name of that reason."""


def summarize(recording: Recording, info: RunInfo, cores: Cores) -> Summary:
    """Summarises the training phase, or the whole recording if that phase is too short."""
    sampled = [name for name in recording.columns if not name.startswith("loop/")]
    in_training = max((len(recording.values(name, Phase.TRAIN)) for name in sampled), default=0)
    phase = Phase.TRAIN if in_training >= FEWEST_SAMPLES else None
    gpus = tuple(_of_gpu(recording, record, phase) for record in recording.gpus)
    host = _statistics(recording, "host", phase) | _statistics(recording, "loop", phase)
    host.pop("seconds", None)  # these are the weights of the other figures
    phases: dict[Phase, float] = {}
    for each, _, length in recording.stretches():
        phases[each] = phases.get(each, 0.0) + length
    whole = (recording.seconds, cores, phases, phase, gpus, host, recording.hz, recording.failure)
    rate, data_wait, device_wait = (_of_loop(recording, name, phase) for name in LOOP)
    flops = rate * info.image_flops if rate and info.image_flops else None
    # The energy of runs that take turns cannot be separated, and a part of the GPUs would look like all.
    is_complete = info.at_once == 1 and len(gpus) == info.ranks
    watts, kwh = ([getattr(gpu, name) for gpu in gpus if is_complete] for name in ("watts", "kwh"))
    return Summary(
        *whole,
        images_per_second=rate,
        data_wait=None if data_wait is None else data_wait / 100,
        device_wait=None if device_wait is None else device_wait / 100,
        tflops=None if flops is None else flops / 1e12,
        mfu=flops / (info.ranks * info.peak_flops) if flops and info.peak_flops else None,
        images_per_joule=rate / sum(watts) if rate and watts and all(watts) else None,
        kwh=sum(kwh) if kwh and None not in kwh else None,
    )


def _of_gpu(recording: Recording, record: GpuRecord, phase: Phase | None) -> GpuSummary:
    statistics = _statistics(recording, record.prefix, phase)
    means = {reason: statistics.pop(f"throttled_{reason}", None) for reason in Throttle}
    counted, power = _growth(recording, record, "energy"), recording.values(f"{record.prefix}/power")
    joules = float(power.mean()) * recording.seconds if counted is None and len(power) else counted
    is_known = joules is not None and not record.lost
    return GpuSummary(
        record,
        statistics,
        throttling={reason: each.mean / 100 for reason, each in means.items() if each and each.mean},
        watts=statistics["power"].mean if is_known and "power" in statistics else None,
        kwh=joules / JOULES_PER_KWH if joules is not None and is_known else None,
        is_counted=counted is not None,
        ecc_corrected=_growth(recording, record, "ecc_corrected"),
        ecc_uncorrected=_growth(recording, record, "ecc_uncorrected"),
    )


def _growth(recording: Recording, record: GpuRecord, counter: str) -> float | None:
    """The growth of a counter; None if it is missing, was read only once, or was reset."""
    column = recording.columns.get(f"{record.prefix}/{counter}")
    if column is None or len(column) < 2 or column.last < column.first:
        return None
    return column.last - column.first


def _of_loop(recording: Recording, name: str, phase: Phase | None) -> float | None:
    """The time-weighted mean of a figure of the loop; None if the loop does not report it."""
    values, seconds = recording.values(f"loop/{name}", phase), recording.values("loop/seconds", phase)
    return float(np.average(values, weights=seconds)) if len(values) else None


def _statistics(recording: Recording, prefix: str, phase: Phase | None) -> dict[str, Statistics]:
    """Metric -> statistics, for each column of this prefix that has a value."""
    found = {}
    for name, column in recording.columns.items():
        owner, _, metric = name.partition("/")
        values = recording.values(name, phase)
        if owner == prefix and len(values) and metric not in COUNTERS:
            figures = map(float, (values.mean(), *np.percentile(values, (5, 50, 95)), values.max()))
            found[metric] = Statistics(*column.metric, *figures)
    return found
