"""A recording in figures: statistics of each metric, energy, images per joule, throttling in words."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pynvml

from fastae.monitor.gpu_reader import ENERGY, POWER, THROTTLE, Metric
from fastae.monitor.poller import TRAIN, Progress, Recording

FEWEST_SAMPLES = 10
"""Below this many samples in training proper, the whole recording is summed up instead."""

HIGH = 90.0
JOULES_PER_KWH = 3.6e6

THROTTLING = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "held down by its power limit",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "slowed down by its driver, too hot",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "slowed down by its hardware, too hot",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "slowed down by the power supply's brake",
    pynvml.nvmlClocksEventReasonHwSlowdown: "slowed down by its hardware",
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "at clocks that somebody set",
    pynvml.nvmlClocksEventReasonSyncBoost: "held to the clocks of another GPU",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "at clocks that a display needs",
}
"""Why clocks are lower than they could be. GpuIdle is left out: nothing holds an idle card down."""


@dataclass(frozen=True)
class Statistics:
    """Of one metric, in its unit. `at_zero`, `above_90`: shares of the time in [0, 1], for percentages."""

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
    """`throttling`: the share of samples for each reason. `watts`: the mean over what was measured, by the
    energy; `kwh`: of it all.

    `energy_from`: "the energy counter" or "power, integrated"; None where neither is offered.
    """

    name: str
    uuid: str
    memory_gib: float | None
    power_limit: float | None
    statistics: Mapping[str, Statistics]
    throttling: Mapping[str, float]
    not_offered: Mapping[str, str]
    energy_from: str | None = None
    watts: float | None = None
    kwh: float | None = None


@dataclass(frozen=True)
class Summary:
    """`measured`: the phase that the statistics are of, or "everything". Times in seconds.

    `images_per_second` and `data_wait` (a share of the time, in [0, 1]) are the loop's own, by its count of
    images; None for a program that tells nothing. `sampler_share` is of one core.
    """

    seconds: float
    samples: int
    sampler_share: float
    phases: Mapping[str, float]
    measured: str
    gpus: tuple[GpuSummary, ...]
    host: Mapping[str, Statistics]
    host_not_offered: Mapping[str, str]
    errors: tuple[str, ...] = ()
    images_per_second: float | None = None
    data_wait: float | None = None
    images_per_joule: float | None = None
    kwh: float | None = None


def summarise(recording: Recording) -> Summary:
    """Sums up the training phase, without warm-up, compiling and evaluation, where it is long enough."""
    training = np.array([phase == TRAIN for phase in recording.phases], dtype=bool)
    measured = TRAIN if training.sum() >= FEWEST_SAMPLES else "everything"
    chosen = training if measured == TRAIN else np.ones(len(training), dtype=bool)
    gpus = tuple(_gpu(recording, place, chosen) for place in range(len(recording.gpus)))
    progress = _progress(recording, measured)
    rate = progress.images / progress.seconds if progress.seconds else None
    watts = _total(gpu.watts for gpu in gpus)
    return Summary(
        seconds=recording.seconds,
        samples=recording.samples,
        sampler_share=recording.sampler_share,
        phases=_phase_seconds(recording),
        measured=measured,
        gpus=gpus,
        host=_statistics(recording, ("host/", "loop/"), chosen),
        host_not_offered=_of_prefix(recording.not_offered, "host/"),
        errors=recording.errors,
        images_per_second=rate,
        data_wait=progress.waited / progress.seconds if progress.seconds else None,
        images_per_joule=rate / watts if rate and watts else None,
        kwh=_total(gpu.kwh for gpu in gpus),
    )


def _gpu(recording: Recording, place: int, chosen: np.ndarray) -> GpuSummary:
    prefix, gpu = f"gpu{place}/", recording.gpus[place]
    everything = np.ones(len(chosen), dtype=bool)
    source, joules, seconds = energy(recording, prefix, chosen)
    _, total, _ = energy(recording, prefix, everything)
    statistics = _statistics(recording, (prefix,), chosen)
    return GpuSummary(
        name=gpu.name,
        uuid=gpu.uuid,
        memory_gib=gpu.memory_gib,
        power_limit=gpu.power_limit,
        statistics={
            name: each for name, each in statistics.items() if name not in (ENERGY.name, THROTTLE.name)
        },
        throttling=throttling(recording.column(prefix + THROTTLE.name)[chosen]),
        not_offered=_of_prefix(recording.not_offered, prefix),
        energy_from=source,
        watts=joules / seconds if joules is not None and seconds else None,
        kwh=None if total is None else total / JOULES_PER_KWH,
    )


def energy(
    recording: Recording, prefix: str, chosen: np.ndarray
) -> tuple[str | None, float | None, float | None]:
    """What it is read from, joules, and the seconds that they were spent in, over the `chosen` samples.

    Only stretches between two chosen samples with nothing else between them count.
    """
    counter = recording.column(prefix + ENERGY.name)
    first, second = neighbours(counter, chosen)
    # A counter that starts again, when the driver is loaded anew, steps backwards.
    forwards = counter[second] >= counter[first]
    first, second = first[forwards], second[forwards]
    times = recording.times
    if len(first):
        joules = counter[second] - counter[first]
        return "the energy counter", float(joules.sum()), float((times[second] - times[first]).sum())
    watts = recording.column(prefix + POWER.name)
    first, second = neighbours(watts, chosen)
    if not len(first):
        return None, None, None
    seconds = times[second] - times[first]
    joules = seconds * (watts[second] + watts[first]) / 2
    return "power, integrated", float(joules.sum()), float(seconds.sum())


def neighbours(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs of chosen samples with a value, between which no sample was left unchosen."""
    known = np.flatnonzero(~np.isnan(values) & chosen)
    left_out = np.cumsum(~chosen)[known]
    joined = left_out[1:] == left_out[:-1]
    return known[:-1][joined], known[1:][joined]


def throttling(reasons: np.ndarray) -> dict[str, float]:
    """Of NVML's bit sets: each reason in words, and the share of samples that have it."""
    known = reasons[~np.isnan(reasons)].astype(np.uint64)
    counts = Counter({text: int(((known & np.uint64(bit)) != 0).sum()) for bit, text in THROTTLING.items()})
    return {text: count / len(known) for text, count in counts.most_common() if count}


def statistics_of(metric: Metric, values: np.ndarray) -> Statistics | None:
    """None where there is no value at all; nan counts as no value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    p5, p50, p95 = np.percentile(known, (5, 50, 95))
    return Statistics(
        label=metric.label,
        unit=metric.unit,
        mean=float(known.mean()),
        p5=float(p5),
        p50=float(p50),
        p95=float(p95),
        max=float(known.max()),
        at_zero=float((known == 0).mean()) if metric.is_share else None,
        above_90=float((known > HIGH).mean()) if metric.is_share else None,
    )


def _statistics(recording: Recording, prefixes: tuple[str, ...], chosen: np.ndarray) -> dict[str, Statistics]:
    found = {}
    for place, (name, metric) in enumerate(recording.columns.items()):
        if name.startswith(prefixes) and (each := statistics_of(metric, recording.rows[chosen, place])):
            found[name.partition("/")[2]] = each
    return found


def _progress(recording: Recording, measured: str) -> Progress:
    """The loop's counts in the phase measured, or in all of them."""
    if measured in recording.progress:
        return recording.progress[measured]
    done = recording.progress.values()
    return Progress(
        sum(each.images for each in done),
        sum(each.seconds for each in done),
        sum(each.waited for each in done),
    )


def _phase_seconds(recording: Recording) -> dict[str, float]:
    seconds: dict[str, float] = {}
    ends = [*recording.times[1:], recording.seconds]
    for phase, start, end in zip(recording.phases, recording.times, ends, strict=True):
        seconds[phase] = seconds.get(phase, 0.0) + float(end - start)
    return seconds


def phase_spans(recording: Recording) -> list[tuple[str, float, float]]:
    """The phases in order, each with its beginning and end in seconds."""
    ends = [*recording.times[1:], recording.seconds]
    moments = zip(recording.phases, recording.times, ends, strict=True)
    spans = []
    for phase, group in itertools.groupby(moments, key=lambda moment: moment[0]):
        pieces = list(group)
        spans.append((phase, float(pieces[0][1]), float(pieces[-1][2])))
    return spans


def _of_prefix(values: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): why for name, why in values.items() if name.startswith(prefix)}


def _total(values: Iterable[float | None]) -> float | None:
    """The sum; None where one is not known, since a part of the GPUs would pass for all."""
    known = list(values)
    return sum(each for each in known if each is not None) if known and None not in known else None
