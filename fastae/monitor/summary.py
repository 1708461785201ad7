"""The statistics of a recording, and the dataclasses of gpu.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastae.device.gpu_reader import GpuRecord, Throttle
from fastae.device.nvml import Gpu
from fastae.monitor.recording import NOT_AVERAGED, Phase, Recording
from fastae.utils.limits import Cores
from fastae.utils.worded import Worded

FEWEST_SAMPLES = 10  # of a metric while training; with fewer, the whole recording is summarised
JOULES_PER_KWH = 3.6e6


class Verdict(Worded):
    """What limits the speed."""

    WAITING_FOR_DATA = "waiting_for_data", "waiting for data"
    WAITING_FOR_RANK = "waiting_for_rank", "waiting for another rank"
    LAUNCH_BOUND = "launch_bound", "launch-bound"
    GPU_CONTENTION = "gpu_contention", "GPU contention"
    GPU_BOUND = "gpu_bound", "GPU-bound"
    COMPUTE_BOUND = "compute_bound", "compute-bound"
    MEMORY_BOUND = "memory_bound", "memory-bound"
    UNITS_IN_TURNS = "units_in_turns", "compute and memory in turns"
    CPU_BOUND = "cpu_bound", "CPU-bound"
    CPU_CONTENTION = "cpu_contention", "CPU contention"
    CPU_MOSTLY_BUSY = "cpu_mostly_busy", "CPU mostly busy"
    CPU_IDLE = "cpu_idle", "CPU cores idle"
    UNKNOWN = "unknown", "unknown"


@dataclass(frozen=True)
class RunInfo:
    """The properties of a run that its report depends on; for a loop that is not fastae's, some are None."""

    loader: str | None = None
    compiled: bool | None = None
    amp: bool | None = None
    batch_size: int | None = None

    ranks: int = 1
    """The number of processes that share the run."""

    on_gpu: bool = True

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

    watts: float | None = None
    """Mean power over the measured phase: by the energy counter, else of sampled power; None if unknown."""

    kwh: float | None = None
    """Energy of the whole recording; None if unknown."""

    growth: Mapping[str, float] = field(default_factory=dict)
    """Counter -> its growth over the whole recording, if it grew."""

    def mean(self, metric: str, unknown: float = math.nan) -> float:
        """Returns the mean of a metric; `unknown` if it has no statistics."""
        return self.statistics[metric].mean if metric in self.statistics else unknown

    def throttled(self, reason: Throttle) -> float:
        """The share of the time in which this reason for lowered clocks applied, in [0, 1]."""
        return self.mean(f"throttled_{reason}", 0.0)


NO_GPU = GpuSummary(GpuRecord("gpu", Gpu(0, "")), {})
"""A GPU without any statistics."""


@dataclass(frozen=True)
class Summary:
    """The figures of a recording. Unknown figures are None."""

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

    images_per_second: float | None = None
    """The rate of training, as counted by the loop."""

    data_wait: float | None = None
    """The share of the time, in [0, 1], in which the device had no batch, as counted by the loop."""

    device_wait: float | None = None
    """The share of the time, in [0, 1], in which the host waited for the device, as counted by the loop."""

    queued: float | None = None
    """The share of the batches, in [0, 1], that found the device still at work on earlier ones."""

    replayed: float | None = None
    """The images/s with batches that were held and replayed, so that the loop did not wait for its loader."""

    headroom: float | None = None
    """How many times faster the loop was with replayed batches."""

    tflops: float | None = None
    """The model's TFLOP/s at this rate."""

    mfu: float | None = None
    """Model FLOPs utilisation: the share of the devices' peak FLOP/s, in [0, 1]."""

    images_per_joule: float | None = None
    """Images trained on per joule of all GPUs; None if the power of one of them is unknown."""

    kwh: float | None = None
    """The energy of all GPUs; None if the energy of one of them is unknown."""

    @property
    def main_gpu(self) -> GpuSummary:
        """The main rank's GPU."""
        return self.gpus[0] if self.gpus else NO_GPU


@dataclass(frozen=True)
class Diagnosis:
    """The limit of a run's speed."""

    verdict: Verdict

    advice: tuple[str, ...] = ()
    """What to try, in words."""


@dataclass(frozen=True)
class UsageReport:
    """The report of one part of a run, from its start or resumption to its end."""

    summary: Summary
    diagnosis: Diagnosis

    missing: str = ""
    """The reason why a GPU of the run is not in the report, in words; "" if none is missing."""


def summarize(recording: Recording, info: RunInfo, cores: Cores) -> Summary:
    """Summarises the training phase, or the whole recording if that phase is too short."""
    sampled = [name for name in recording.columns if not name.startswith("loop/")]
    in_training = max((len(recording.values(name, Phase.TRAIN)) for name in sampled), default=0)
    phase = Phase.TRAIN if in_training >= FEWEST_SAMPLES else None
    gpus = tuple(_summarize_gpu(recording, record, phase) for record in recording.gpus)
    host = _statistics(recording, "host", phase) | _statistics(recording, "loop", phase)
    phases: dict[Phase, float] = {}
    for span in recording.spans:
        phases[span.phase] = phases.get(span.phase, 0.0) + span.seconds
    rate = _mean_of_loop(recording, "images_per_second")
    replayed = float(np.mean(held)) if len(held := recording.values("loop/replayed")) else None
    flops = rate * info.image_flops if rate and info.image_flops else None
    # A sum over some of the GPUs would look like the total.
    is_complete = len(gpus) == info.ranks and not any(gpu.record.lost for gpu in gpus)
    watts = _sum_of_all([gpu.watts for gpu in gpus]) if is_complete else None
    return Summary(
        seconds=recording.seconds,
        cores=cores,
        phases=phases,
        measured=phase,
        gpus=gpus,
        host=host,
        hz=recording.hz,
        images_per_second=rate or None,
        data_wait=_mean_of_loop(recording, "data_wait", scale=0.01),
        device_wait=_mean_of_loop(recording, "device_wait", scale=0.01),
        queued=_mean_of_loop(recording, "queued", scale=0.01),
        replayed=replayed,
        headroom=replayed / rate if replayed and rate else None,
        tflops=None if flops is None else flops / 1e12,
        mfu=flops / (info.ranks * info.peak_flops) if flops and info.peak_flops else None,
        images_per_joule=rate / watts if rate and watts else None,
        kwh=_sum_of_all([gpu.kwh for gpu in gpus]) if is_complete else None,
    )


def _sum_of_all(values: Sequence[float | None]) -> float | None:
    """Returns the sum of the values; None if there is none, or if one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _summarize_gpu(recording: Recording, record: GpuRecord, phase: Phase | None) -> GpuSummary:
    growth = {}
    for metric in NOT_AVERAGED:
        column = recording.columns.get(f"{record.prefix}/{metric}")
        if column and column.last > column.first:  # else it did not grow, or it was reset
            growth[metric] = column.last - column.first
    watts = _mean_power(recording, record.prefix)
    return GpuSummary(
        record,
        _statistics(recording, record.prefix, phase),
        watts=_mean_power(recording, record.prefix, phase),
        kwh=None if watts is None else watts * recording.seconds / JOULES_PER_KWH,
        growth=growth,
    )


def _mean_power(recording: Recording, prefix: str, phase: Phase | None = None) -> float | None:
    """Returns a GPU's mean power in watts, by its energy counter, else of sampled power; None if unknown."""
    powers = recording.values(f"{prefix}/power", phase)
    sampled = float(powers.mean()) if len(powers) else None
    return recording.growth_rate(f"{prefix}/energy", phase) or sampled


def _mean_of_loop(recording: Recording, name: str, scale: float = 1.0) -> float | None:
    """Returns the time-weighted mean of a figure of the loop while training; None if there is none.

    A loop that ended in its warm-up has the mean of the warm-up.
    """
    for phase in (Phase.TRAIN, None):
        values, seconds = recording.values(f"loop/{name}", phase), recording.values("loop/seconds", phase)
        if len(values):
            return scale * float(np.average(values, weights=seconds))
    return None


def _statistics(recording: Recording, prefix: str, phase: Phase | None) -> dict[str, Statistics]:
    """Returns metric -> statistics for each column of this prefix that has a value in the phase."""
    statistics = {}
    for name, column in recording.columns.items():
        values = recording.values(name, phase)
        if column.owner == prefix and len(values) and column.metric not in NOT_AVERAGED:
            figures = map(float, (values.mean(), *np.percentile(values, (5, 50, 95)), values.max()))
            statistics[column.metric] = Statistics(column.label, column.unit, *figures)
    return statistics
