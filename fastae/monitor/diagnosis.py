"""What the GPU waits for, by which evidence, and what to change.

The verdict rests on two figures: the share of the time in which the device had no batch to work on, which
the loop measures itself, and NVML's utilisation, the share of the time in which some kernel was running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastae.monitor.gpu_reader import JPEG, POWER, UTILISATION
from fastae.monitor.host import CORES, MACHINE
from fastae.monitor.summary import GpuSummary, Statistics, Summary

WAITING = "waiting for data"
LAUNCH_BOUND = "launch-bound: waiting for the CPU"
BUSY = "busy"
IDLE = "idle"
NOT_KNOWN = "not known"

WAIT_SHARE = 0.1
"""Of the time without a batch, from which data is what to mend first."""

BUSY_FROM = 90.0
IDLE_BELOW = 5.0
SATURATED = 90.0
FULL_CORE = 0.8
"""Cores in use from which a thread may be what holds the GPU up; below, nobody computes."""

LOW_POWER = 0.5
"""Of the power limit: a card that is never idle and draws less than this runs small kernels."""

OTHERS_FROM = 0.5
"""Cores that other programs must keep busy to be worth a line."""

THROTTLED_FROM = 0.05


@dataclass(frozen=True)
class RunInfo:
    """How the run was set up, as far as advice depends on it."""

    loader: str
    compiled: bool
    amp: bool
    batch_size: int


@dataclass(frozen=True)
class Diagnosis:
    verdict: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]


def diagnose(summary: Summary, cores: int, info: RunInfo | None = None) -> Diagnosis:
    """Judges the busiest GPU, or the CPU where there is none. `cores`: those that the process may use."""
    if not summary.gpus:
        return _of_cpu(summary, cores, info)
    gpu = max(summary.gpus, key=lambda gpu: _mean(gpu.statistics, UTILISATION.name) or 0.0)
    verdict = _verdict(summary, gpu)
    return Diagnosis(
        verdict,
        tuple(_evidence(summary, gpu)),
        (*_advice(verdict, summary, gpu, info), *_cooling(gpu)),
    )


def _verdict(summary: Summary, gpu: GpuSummary) -> str:
    utilisation = _mean(gpu.statistics, UTILISATION.name)
    cores = _mean(summary.host, CORES.name)
    if summary.data_wait is not None and summary.data_wait >= WAIT_SHARE:
        return WAITING
    if utilisation is None:
        return NOT_KNOWN
    if utilisation >= BUSY_FROM:
        return BUSY
    if utilisation < IDLE_BELOW:
        return IDLE
    if summary.data_wait is not None:
        return LAUNCH_BOUND if cores is None or cores >= FULL_CORE else NOT_KNOWN
    # Another program does not tell how long it waits: only the CPU's use is there to go by.
    if cores is None:
        return NOT_KNOWN
    return LAUNCH_BOUND if FULL_CORE <= cores < 2 * FULL_CORE else WAITING


def _evidence(summary: Summary, gpu: GpuSummary) -> list[str]:
    lines = []
    if summary.data_wait is None:
        lines.append("the program does not tell how long it waits for data: the verdict is a guess")
    else:
        lines.append(f"no batch to work on for {summary.data_wait:.1%} of the time")
    if each := gpu.statistics.get(UTILISATION.name):
        lines.append(
            f"a kernel was running {each.mean:.0f} % of the time (none at all in {each.at_zero:.0%} of "
            f"the samples, over 90 % in {each.above_90:.0%})"
        )
    else:
        why = gpu.not_offered.get(UTILISATION.name, "no sample")
        lines.append(f"utilisation is not offered here ({why})")
    if (cores := _mean(summary.host, CORES.name)) is not None:
        lines.append(f"the process kept {cores:.1f} CPU cores busy")
    lines.extend(_others(summary))
    if (watts := _mean(gpu.statistics, POWER.name)) is not None and gpu.power_limit:
        lines.append(f"{watts:.0f} W of {gpu.power_limit:.0f} W allowed")
    if (jpeg := _mean(gpu.statistics, JPEG.name)) is not None:
        lines.append(f"JPEG engine at {jpeg:.0f} %")
    lines.extend(f"{text} in {share:.0%} of the samples" for text, share in gpu.throttling.items())
    return lines


def _advice(verdict: str, summary: Summary, gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    if verdict == WAITING:
        return _feed(gpu, info)
    if verdict == LAUNCH_BOUND:
        return _launch_less(info)
    if verdict == BUSY:
        return _use_it_better(gpu, info)
    if verdict == IDLE:
        return ["the program hardly uses this GPU: see that it is the one meant (CUDA_VISIBLE_DEVICES)"]
    if summary.data_wait is not None and UTILISATION.name in gpu.statistics:
        return ["neither data nor the CPU holds it up: look for waits in the loop, or another job on it"]
    return ["look at images/s with another --batch-size and --loader instead"]


def _feed(gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    if info is None:
        return ["more loader workers, or decoding on the GPU (DALI); compare with fastae train"]
    if info.loader == "resident":
        return ["the pixels are resident, so gathering and augmenting them is what it waits for: --compile"]
    advice = ["--loader resident: decode once, and keep the pixels on the device, if they fit"]
    jpeg = gpu.statistics.get(JPEG.name)
    if jpeg and jpeg.p95 >= SATURATED:
        advice.append("the JPEG engine is the limit: smaller files, or --loader resident")
    elif jpeg is None or jpeg.max == 0:
        advice.append("JPEGs are not decoded by a JPEG engine here, so --threads (CPU) may help")
    return advice


def _launch_less(info: RunInfo | None) -> list[str]:
    if info is None:
        return ["a larger batch, torch.compile or a CUDA graph: fewer launches for the same work"]
    advice = [] if info.compiled else ["--compile: fewer, larger kernels"]
    return [
        *advice,
        f"a --batch-size above {info.batch_size}: more work for each launch (it changes the experiment)",
        "a CUDA graph, one launch a step: the line 'device' at the start says whether the run has one",
    ]


def _use_it_better(gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    advice = []
    watts = _mean(gpu.statistics, POWER.name)
    if watts is not None and gpu.power_limit and watts < LOW_POWER * gpu.power_limit:
        advice.append("never idle, but at little power: small kernels; a larger batch would fill the card")
    if info and not info.amp:
        advice.append("--amp: mixed precision multiplies matrices several times faster")
    return advice or ["nothing to mend here: what is left is in the kernels themselves"]


def _cooling(gpu: GpuSummary) -> list[str]:
    hot = [text for text, share in gpu.throttling.items() if share >= THROTTLED_FROM]
    advice = []
    if any("hot" in text for text in hot):
        advice.append("it gets too hot and slows down: see to its cooling")
    if any("power" in text for text in hot):
        advice.append("it is held down by power: nvidia-smi -q -d POWER shows the limit")
    return advice


def _of_cpu(summary: Summary, available: int, info: RunInfo | None) -> Diagnosis:
    evidence = []
    cores = _mean(summary.host, CORES.name)
    if summary.data_wait is not None:
        evidence.append(f"no batch to work on for {summary.data_wait:.1%} of the time")
    if cores is not None:
        evidence.append(f"the process kept {cores:.1f} of {available} CPU cores busy")
    others = _others(summary)
    evidence.extend(others)
    if summary.data_wait is not None and summary.data_wait >= WAIT_SHARE:
        advice = [] if info and info.loader == "resident" else ["--loader resident: decode each image once"]
        return Diagnosis(WAITING, tuple(evidence), tuple(advice))
    if cores is None:
        return Diagnosis(NOT_KNOWN, tuple(evidence), ())
    if cores >= FULL_CORE * available:
        advice = [] if info and info.amp else ["--amp, where the CPU multiplies bf16 natively"]
        return Diagnosis(BUSY, tuple(evidence), tuple(advice))
    if others:
        return Diagnosis("short of CPU cores", tuple(evidence), ("end the other programs, or wait for them",))
    return Diagnosis(
        "not all cores are busy",
        tuple(evidence),
        ("OMP_NUM_THREADS sets how many PyTorch uses; small batches cannot fill many",),
    )


def _others(summary: Summary) -> list[str]:
    """A line about the machine's other programs, where they take enough of it to matter."""
    machine, ours = (_mean(summary.host, metric.name) for metric in (MACHINE, CORES))
    if machine is None or ours is None or machine - ours < OTHERS_FROM:
        return []
    return [f"other programs kept {machine - ours:.1f} cores busy"]


def _mean(statistics: Mapping[str, Statistics], name: str) -> float | None:
    return statistics[name].mean if name in statistics else None
