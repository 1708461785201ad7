"""A recording in figures, and everything else that gpu.json holds, as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fastae.monitor.recording import Absence, GpuRecord, Phase, Recording, Throttle, Worded

FEWEST_SAMPLES = 10  # of some metric while training; with fewer, the whole recording is summed up
JOULES_PER_KWH = 3.6e6
LOOP = ("loop/images_per_second", "loop/data_wait", "loop/device_wait")


class EnergySource(Worded):
    COUNTER = "counter", "the energy counter"
    POWER = "power", "sampled power"


class Verdict(Worded):
    """What limits the speed, as far as it is known."""

    WAITING_FOR_DATA = "waiting_for_data", "waiting for data"
    LAUNCH_BOUND = "launch_bound", "launch-bound"
    GPU_BOUND = "gpu_bound", "GPU-bound"
    COMPUTE_BOUND = "compute_bound", "compute-bound"
    MEMORY_BOUND = "memory_bound", "memory-bound"
    GPU_IDLE = "gpu_idle", "GPU idle"
    CPU_BOUND = "cpu_bound", "CPU-bound"
    CPU_CONTENTION = "cpu_contention", "CPU contention"
    CPU_IDLE = "cpu_idle", "CPU cores idle"
    UNKNOWN = "unknown", "unknown"


@dataclass(frozen=True)
class RunInfo:
    """How a run was set up, as far as advice and energy depend on it. `ranks`: processes that share it.
    at_once: runs that take turns on the device."""

    loader: str
    compiled: bool
    amp: bool
    batch_size: int
    ranks: int = 1
    on_gpu: bool = True
    at_once: int = 1


@dataclass(frozen=True)
class Statistics:
    """One metric, in its unit. `at_zero`, `above_90`: shares of the samples in [0, 1], for percentages."""

    label: str
    unit: str
    mean: float
    p5: float
    p50: float
    p95: float
    max: float
    at_zero: float | None = None
    above_90: float | None = None


@dataclass(frozen=True)
class GpuSummary:
    """throttling: reason -> share of the time, by the driver's counter if it has one, else by samples.
    watts: the mean over what was measured; kwh: for the whole recording."""

    record: GpuRecord
    statistics: Mapping[str, Statistics]
    throttling: Mapping[Throttle, float] = field(default_factory=dict)
    energy_source: EnergySource | None = None
    watts: float | None = None
    kwh: float | None = None

    def mean(self, metric: str) -> float | None:
        """The mean of a metric; None if it is not known."""
        return self.statistics[metric].mean if metric in self.statistics else None


@dataclass(frozen=True)
class Summary:
    """`measured`: the phase that was summed up; None for the whole recording. Times in seconds.

    images_per_second, data_wait (without a batch), device_wait (of the host for the device; both shares of
    the time, in [0, 1]): by the loop's own counts; None for a program that reports none. images_per_joule,
    kwh: over all GPUs of the job, so None if one of them is not known. cores: those that the program may use.
    poller_share: of one core.
    """

    seconds: float
    poller_share: float
    cores: float
    phases: Mapping[Phase, float]
    measured: Phase | None
    gpus: tuple[GpuSummary, ...]
    host: Mapping[str, Statistics]
    images_per_second: float | None = None
    data_wait: float | None = None
    device_wait: float | None = None
    images_per_joule: float | None = None
    kwh: float | None = None
    failure: str | None = None

    @property
    def other_cores(self) -> float:
        """Cores that other programs keep busy; 0 if that is not known, or less than half a core."""
        known = {"cpu", "machine_cpu"} <= self.host.keys()
        others = self.host["machine_cpu"].mean - self.host["cpu"].mean if known else 0.0
        return others if others >= 0.5 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """`advice`: what to try, for people. `gpu`: the index of the GPU that was judged. is_guess: the program
    does not report how long it waits."""

    verdict: Verdict
    advice: tuple[str, ...] = ()
    gpu: int | None = None
    is_guess: bool = False


@dataclass(frozen=True)
class UsageReport:
    """`command`: the program that was watched, None for a run of fastae. absence: why GPUs are missing, with
    NVML's name for the reason in `absence_detail`."""

    command: str | None
    summary: Summary
    diagnosis: Diagnosis
    absence: Absence | None = None
    absence_detail: str = ""

    @property
    def judged(self) -> GpuSummary | None:
        """The GPU that the verdict is about."""
        place = self.diagnosis.gpu
        return self.summary.gpus[place] if place in range(len(self.summary.gpus)) else None  # type: ignore[index]


def summarize(recording: Recording, cores: float, gpus_of_job: int | None = None) -> Summary:
    """Sums up the training phase, without warm-up, compiling and evaluation, if it is long enough.

    `gpus_of_job`: how many GPUs the program uses, if that is known: energy is withheld unless all are here.
    """
    sampled = [name for name in recording.columns if not name.startswith("loop/")]
    in_training = max((len(recording.values(name, Phase.TRAIN)) for name in sampled), default=0)
    phase = Phase.TRAIN if in_training >= FEWEST_SAMPLES else None
    gpus = tuple(_of_gpu(recording, record, phase) for record in recording.gpus)
    rate, data_wait, device_wait = (_of_loop(recording, name, phase) for name in LOOP)
    is_complete = gpus_of_job in (None, len(gpus))
    watts, kwh = ([getattr(gpu, name) for gpu in gpus if is_complete] for name in ("watts", "kwh"))
    host = _statistics(recording, "host", phase) | _statistics(recording, "loop", phase)
    host.pop("seconds", None)  # these are the weights of the others
    phases: dict[Phase, float] = {}
    for each, _, length in recording.stretches():
        phases[each] = phases.get(each, 0.0) + length
    return Summary(
        seconds=recording.seconds,
        poller_share=recording.poller_share,
        cores=cores,
        phases=phases,
        measured=phase,
        gpus=gpus,
        host=host,
        images_per_second=rate,
        data_wait=None if data_wait is None else data_wait / 100,
        device_wait=None if device_wait is None else device_wait / 100,
        images_per_joule=rate / sum(watts) if rate and all(watts) and watts else None,
        kwh=sum(kwh) if kwh and None not in kwh else None,  # a part would pass for the whole
        failure=recording.failure,
    )


def _of_gpu(recording: Recording, record: GpuRecord, phase: Phase | None) -> GpuSummary:
    statistics = _statistics(recording, record.prefix, phase)
    means = {reason: statistics.pop(f"throttled_{reason}", None) for reason in Throttle}
    throttling = {reason: each.mean / 100 for reason, each in means.items() if each and each.mean}
    for source, name in ((EnergySource.COUNTER, "counted_power"), (EnergySource.POWER, "power")):
        power = recording.values(f"{record.prefix}/{name}")
        if len(power) and not record.lost:
            watts = statistics[name].mean if name in statistics else None
            kwh = float(power.mean()) * recording.seconds / JOULES_PER_KWH
            return GpuSummary(record, statistics, throttling, source, watts, kwh)
    return GpuSummary(record, statistics, throttling)


def _of_loop(recording: Recording, name: str, phase: Phase | None) -> float | None:
    """The mean over the time of a figure that the loop reports; None if it reports none."""
    seconds = recording.values("loop/seconds", phase)
    return float(np.average(recording.values(name, phase), weights=seconds)) if len(seconds) else None


def _statistics(recording: Recording, prefix: str, phase: Phase | None) -> dict[str, Statistics]:
    """Metric -> statistics, for each column of this prefix that has a value."""
    found = {}
    for name, column in recording.columns.items():
        owner, _, metric = name.partition("/")
        values = recording.values(name, phase)
        if owner == prefix and len(values):
            figures = map(float, (values.mean(), *np.percentile(values, (5, 50, 95)), values.max()))
            is_percent = column.metric.unit == "%"
            shares = ((values == 0).mean(), (values > 90).mean()) if is_percent else ()
            found[metric] = Statistics(*column.metric, *figures, *map(float, shares))
    return found
