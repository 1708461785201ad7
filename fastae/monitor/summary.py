"""A recording in figures, and everything else that gpu.json holds, as dataclasses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pynvml

from fastae.monitor.recording import (
    Absence,
    Column,
    GpuRecord,
    LoopTotals,
    Phase,
    Recording,
    Throttle,
    Worded,
)

FEWEST_SAMPLES = 10  # of some metric in training proper; below, the whole recording is summed up
JOULES_PER_KWH = 3.6e6

COUNTERS = ("energy", "throttle_reasons", *(f"throttled_{reason}" for reason in Throttle))
"""Metrics whose mean says nothing; the summary has what they come to."""


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
    """How a run was set up, as far as advice and energy depend on it. `ranks`: processes that share it."""

    loader: str
    compiled: bool
    amp: bool
    batch_size: int
    ranks: int = 1


@dataclass(frozen=True)
class Statistics:
    """Of one metric, in its unit. `at_zero`, `above_90`: shares of the samples in [0, 1], for percentages."""

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
    """throttling: reason -> share of the time, by the driver's counters where it has them, else by samples.
    watts: the mean over what was measured; kwh: of the whole recording."""

    record: GpuRecord
    statistics: Mapping[str, Statistics]
    throttling: Mapping[Throttle, float] = field(default_factory=dict)
    energy_source: EnergySource | None = None
    watts: float | None = None
    kwh: float | None = None

    def mean(self, metric: str) -> float | None:
        """Of a metric, by its name; None if it is not known."""
        return self.statistics[metric].mean if metric in self.statistics else None


@dataclass(frozen=True)
class Summary:
    """`measured`: the phase that the statistics are of; None for the whole recording. Times in seconds.

    images_per_second; data_wait, device_wait (shares of the time, in [0, 1]): the loop's own, by its counts;
    None for a program that has none. images_per_joule, kwh: of all GPUs of the job, so None if one is not
    known. cores: those that the program may use. poller_share: of one core.
    """

    seconds: float
    poller_share: float
    cores: float
    phases: Mapping[Phase, float]
    measured: Phase | None
    gpus: tuple[GpuSummary, ...]
    host: Mapping[str, Statistics]
    host_missing: Mapping[str, str] = field(default_factory=dict)
    images_per_second: float | None = None
    data_wait: float | None = None
    device_wait: float | None = None
    images_per_joule: float | None = None
    kwh: float | None = None
    failure: str | None = None
    hung: bool = False

    @property
    def other_cores(self) -> float:
        """Cores that other programs keep busy; 0 if that is not known, or less than half a core."""
        known = {"cpu", "machine_cpu"} <= self.host.keys()
        others = self.host["machine_cpu"].mean - self.host["cpu"].mean if known else 0.0
        return others if others >= 0.5 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """`advice`: what to try, for people. `gpu`: the place of the GPU that was judged. is_guess: the program
    does not tell how long it waits."""

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
    sampled = {name: each for name, each in recording.columns.items() if not name.startswith("loop/")}
    in_training = [_chosen(recording, column, Phase.TRAIN).sum() for column in sampled.values()]
    measured = Phase.TRAIN if max(in_training, default=0) >= FEWEST_SAMPLES else None
    gpus = tuple(_of_gpu(recording, record, measured) for record in recording.gpus)
    totals = _totals(recording, measured)
    known = totals.seconds > 0
    rate = totals.images / totals.seconds if known else None
    is_complete = gpus_of_job in (None, len(gpus))
    watts = _sum_of_all(gpu.watts for gpu in gpus) if is_complete else None
    return Summary(
        seconds=recording.seconds,
        poller_share=recording.poller_share,
        cores=cores,
        phases=_phase_seconds(recording),
        measured=measured,
        gpus=gpus,
        host=_statistics(recording, "host", measured) | _statistics(recording, "loop", measured),
        host_missing=recording.host_missing,
        images_per_second=rate,
        data_wait=totals.data_wait / totals.seconds if known else None,
        device_wait=totals.device_wait / totals.seconds if known else None,
        images_per_joule=rate / watts if rate and watts else None,
        kwh=_sum_of_all(gpu.kwh for gpu in gpus) if is_complete else None,
        failure=recording.failure,
        hung=recording.hung,
    )


def _chosen(recording: Recording, column: Column, measured: Phase | None) -> np.ndarray:
    """Which samples of a column are of the phase that is measured; bool, (n,)."""
    wanted = np.array([measured in (None, span.phase) for span in recording.spans], dtype=bool)
    return wanted[column.spans]


def _of_gpu(recording: Recording, record: GpuRecord, measured: Phase | None) -> GpuSummary:
    energy = (None, None, None) if record.lost else _energy(recording, record.prefix, measured)
    found = _statistics(recording, record.prefix, measured)
    shown = {name: each for name, each in found.items() if name not in COUNTERS}
    return GpuSummary(record, shown, _throttling(recording, record.prefix, measured), *energy)


def _energy(
    recording: Recording, prefix: str, measured: Phase | None
) -> tuple[EnergySource | None, float | None, float | None]:
    """What it is read from, the mean power of what is measured in W, and kWh of the whole recording.

    By the energy counter; without one, or if no two of its readings are in one stretch of the phase, by the
    mean of the sampled power.
    """
    counter, power = recording.columns[f"{prefix}/energy"], recording.columns[f"{prefix}/power"]
    sampled = power.values[_chosen(recording, power, measured)]
    watts = float(sampled.mean()) if len(sampled) else None
    joules, seconds = _growth(recording, counter, None)
    if seconds:
        counted, of = _growth(recording, counter, measured)
        kwh = joules / seconds * recording.seconds / JOULES_PER_KWH
        return EnergySource.COUNTER, counted / of if of else watts, kwh
    if not len(power.values):
        return None, None, None
    return EnergySource.POWER, watts, float(power.values.mean()) * recording.seconds / JOULES_PER_KWH


def _growth(recording: Recording, counter: Column, measured: Phase | None) -> tuple[float, float]:
    """How much a counter grew, and in how many seconds: over pairs of neighbouring readings within one
    stretch of the phase, or over all. A counter that starts again steps backwards: that pair is left out."""
    grown, seconds = np.diff(counter.values), np.diff(counter.times)
    pairs = grown >= 0
    if measured is not None:
        pairs &= _chosen(recording, counter, measured)[:-1] & (np.diff(counter.spans) == 0)
    return float(grown[pairs].sum()), float(seconds[pairs].sum())


def _throttling(recording: Recording, prefix: str, measured: Phase | None) -> dict[Throttle, float]:
    reasons = recording.columns[f"{prefix}/throttle_reasons"]
    bits = reasons.values[_chosen(recording, reasons, measured)].astype(np.uint64)
    shares = {}
    for reason in Throttle:
        bit = getattr(pynvml, f"nvmlClocksEventReason{reason}")
        counter = recording.columns.get(f"{prefix}/throttled_{reason}")
        grown, seconds = _growth(recording, counter, measured) if counter else (0.0, 0.0)
        if seconds:
            shares[reason] = min(1.0, grown / seconds)
        elif len(bits):
            shares[reason] = float(((bits & np.uint64(bit)) != 0).mean())
    return {reason: share for reason, share in shares.items() if share}


def _statistics(recording: Recording, prefix: str, measured: Phase | None) -> dict[str, Statistics]:
    """Of each column of this prefix that has a value, by the metric's name."""
    return {
        column.metric.name: _statistics_of(column, values)
        for name, column in recording.columns.items()
        if name.startswith(f"{prefix}/")
        and len(values := column.values[_chosen(recording, column, measured)])
    }


def _statistics_of(column: Column, values: np.ndarray) -> Statistics:
    p5, p50, p95 = np.percentile(values, (5, 50, 95))
    is_percent = column.metric.unit == "%"
    return Statistics(
        label=column.metric.label,
        unit=column.metric.unit,
        mean=float(values.mean()),
        p5=float(p5),
        p50=float(p50),
        p95=float(p95),
        max=float(values.max()),
        at_zero=float((values == 0).mean()) if is_percent else None,
        above_90=float((values > 90).mean()) if is_percent else None,
    )


def _totals(recording: Recording, measured: Phase | None) -> LoopTotals:
    """The loop's counts in the phase measured, or in all of them."""
    chosen = [vars(totals) for phase, totals in recording.loop.items() if measured in (None, phase)]
    return LoopTotals(**{name: sum(each[name] for each in chosen) for name in vars(LoopTotals())})


def _phase_seconds(recording: Recording) -> dict[Phase, float]:
    seconds: dict[Phase, float] = {}
    for span, end in zip(recording.spans, recording.ends(), strict=True):
        seconds[span.phase] = seconds.get(span.phase, 0.0) + end - span.start
    return seconds


def _sum_of_all(values: Iterable[float | None]) -> float | None:
    """The sum; None if one is not known, since a part of the GPUs would pass for all."""
    known = list(values)
    return sum(each for each in known if each is not None) if known and None not in known else None
