"""A recording in figures, and everything else that gpu.json holds of a session, as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastae.monitor.recording import COUNTERS, Absence, GpuRecord, Phase, Recording, Throttle, Worded
from fastae.utils.limits import Cores

FEWEST_SAMPLES = 10  # of some metric while training; with fewer, the whole recording is summed up
JOULES_PER_KWH = 3.6e6
LOOP = ("images_per_second", "data_wait", "device_wait")


class Verdict(Worded):
    """What limits the speed, as far as it is known."""

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
    """How a run was set up, as far as its report depends on it. `ranks`: processes that share it. at_once:
    runs that take turns on the device. image_flops: of the model, per image trained on. peak_flops: of the
    device, per second, in the run's precision; None if it is not known."""

    loader: str
    compiled: bool
    amp: bool
    batch_size: int
    ranks: int = 1
    on_gpu: bool = True
    at_once: int = 1
    image_flops: float = 0.0
    peak_flops: float | None = None


@dataclass(frozen=True)
class Statistics:
    """One metric, in its unit."""

    label: str
    unit: str
    mean: float
    p5: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True)
class GpuSummary:
    """throttling: reason -> share of the samples in which it applied. watts: the mean over what was measured.
    kwh, ecc_corrected, ecc_uncorrected: of the whole recording, None if not known. is_counted: the energy is
    that of the card's counter, else the mean of sampled power."""

    record: GpuRecord
    statistics: Mapping[str, Statistics]
    throttling: Mapping[Throttle, float] = field(default_factory=dict)
    watts: float | None = None
    kwh: float | None = None
    is_counted: bool = False
    ecc_corrected: float | None = None
    ecc_uncorrected: float | None = None

    def mean(self, metric: str) -> float | None:
        """The mean of a metric; None if it is not known."""
        return self.statistics[metric].mean if metric in self.statistics else None


@dataclass(frozen=True)
class Summary:
    """`measured`: the phase that was summed up; None for the whole recording. Times in seconds.

    images_per_second, data_wait (without a batch), device_wait (of the host for the device; both shares of
    the time, in [0, 1]): by the loop's own counts. tflops: what the model's arithmetic at this rate comes to;
    mfu: its share of the devices' peak, in [0, 1] (model FLOPs utilisation). images_per_joule, kwh: over all
    GPUs of the job, so None if one of them is not known. hz: samples per second. allocated_gib, reserved_gib:
    the peaks of PyTorch's allocator on the main rank's GPU.
    """

    seconds: float
    cores: Cores
    phases: Mapping[Phase, float]
    measured: Phase | None
    gpus: tuple[GpuSummary, ...]
    host: Mapping[str, Statistics]
    hz: float = 0.0
    failure: str | None = None
    images_per_second: float | None = None
    data_wait: float | None = None
    device_wait: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    images_per_joule: float | None = None
    kwh: float | None = None
    allocated_gib: float | None = None
    reserved_gib: float | None = None

    @property
    def other_cores(self) -> float:
        """Cores that other programs keep busy; 0 if that is not known, or less than half a core."""
        known = {"cpu", "machine_cpu"} <= self.host.keys()
        others = self.host["machine_cpu"].mean - self.host["cpu"].mean if known else 0.0
        return others if others >= 0.5 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """`advice`: what to try, for people."""

    verdict: Verdict
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class UsageReport:
    """One session of a run. absence: why GPUs are missing, with NVML's name for the reason in
    `absence_detail`. The first GPU is the main rank's."""

    summary: Summary
    diagnosis: Diagnosis
    absence: Absence | None = None
    absence_detail: str = ""


def summarize(recording: Recording, info: RunInfo, cores: Cores) -> Summary:
    """Sums up the training phase, without warm-up, compiling, evaluation and saving, if it is long enough."""
    sampled = [name for name in recording.columns if not name.startswith("loop/")]
    in_training = max((len(recording.values(name, Phase.TRAIN)) for name in sampled), default=0)
    phase = Phase.TRAIN if in_training >= FEWEST_SAMPLES else None
    gpus = tuple(_of_gpu(recording, record, phase) for record in recording.gpus)
    host = _statistics(recording, "host", phase) | _statistics(recording, "loop", phase)
    host.pop("seconds", None)  # these are the weights of the others
    phases: dict[Phase, float] = {}
    for each, _, length in recording.stretches():
        phases[each] = phases.get(each, 0.0) + length
    whole = (recording.seconds, cores, phases, phase, gpus, host, recording.hz, recording.failure)
    rate, data_wait, device_wait = (_of_loop(recording, name, phase) for name in LOOP)
    flops = rate * info.image_flops if rate and info.image_flops else None
    # Of runs that take turns none has an energy of its own, and a part would pass for the whole.
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
    """By how much a counter grew; None if there is none, or it was read once, or started again."""
    column = recording.columns.get(f"{record.prefix}/{counter}")
    if column is None or len(column) < 2 or column.last < column.first:
        return None
    return column.last - column.first


def _of_loop(recording: Recording, name: str, phase: Phase | None) -> float | None:
    """The mean over the time of a figure that the loop reports; None if it reports none."""
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
