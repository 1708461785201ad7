"""What limits a program's speed, and what to try: rules over the figures of a summary.

NVML's "GPU busy" says how much of the time some kernel was running. If that is not nearly always, the loop's
own figures decide: for how much of the time the device had no batch, and for how much the host waited for the
device. If most of the GPU's idle time passed without a batch, data are the limit; if the host never waited
for the device, launching kernels is. What is not known gives UNKNOWN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from fastae.monitor.recording import Throttle
from fastae.monitor.summary import Diagnosis, GpuSummary, RunInfo, Summary, Verdict

WAIT_SHARE = 0.1  # of the time, from which waiting for data is worth an advice
NEAR_ZERO = 0.02  # share of the time waiting for the device, below which the host is the limit
BUSY_FROM, IDLE_BELOW = 90.0, 5.0  # percent
MEMORY_BOUND_FROM = 60.0  # percent of the DRAM bandwidth: 80 is about what programs reach at best, by DCGM
COMPUTE_BOUND_FROM = 80.0  # percent of SM activity: "necessary for effective use" in DCGM's documentation
FULL_CORE = 0.8  # cores in use from which one thread may be the limit; from twice that, several work
LOW_POWER = 0.5  # of the power limit: a GPU that is never idle and draws less runs small kernels
AWAKE = 0.1  # cores: a program that uses less sleeps, and misses none
FULL_MACHINE = 0.9  # of all cores, from which programs take them from each other
THROTTLED_FROM = 0.05  # of the time


FOR_A_PROGRAM = {
    Verdict.WAITING_FOR_DATA: "more loader workers, or decoding on the GPU (DALI)",
    Verdict.LAUNCH_BOUND: "a larger batch, torch.compile or a CUDA graph: fewer launches for the same work",
    Verdict.GPU_IDLE: "CUDA_VISIBLE_DEVICES: is this the GPU that was meant?",
    Verdict.UNKNOWN: "Nsight Systems: these figures do not show what it waits for",
}
"""What to try with a program of which nothing else is known."""


def diagnose(summary: Summary, info: RunInfo | None = None) -> Diagnosis:
    """Judges the GPU of a run's loop, which is the first; the busiest of another program; the CPU if the
    program uses no GPU. `info`: None for a program that is no run of fastae."""
    if not summary.gpus:
        return _of_loop(summary, None, info) if info and info.on_gpu else _of_cpu(summary, info)
    if info:
        return _of_loop(summary, summary.gpus[0], info)
    busy = [gpu.mean("gpu_busy") or 0.0 for gpu in summary.gpus]
    gpu = summary.gpus[place := busy.index(max(busy))]
    verdict = _from_outside(summary, gpu)
    is_guess = verdict in (Verdict.WAITING_FOR_DATA, Verdict.LAUNCH_BOUND)
    advice = (FOR_A_PROGRAM[verdict],) if verdict in FOR_A_PROGRAM else ()
    return Diagnosis(verdict, (*advice, *_on_the_card(gpu, verdict)), place, is_guess)


def _of_loop(summary: Summary, gpu: GpuSummary | None, info: RunInfo) -> Diagnosis:
    """Judges a run by the GPU of its loop; None for one that NVML does not show."""
    place = None if gpu is None else 0
    if lagging := _lagging(summary.gpus):
        why = f"the rank on GPU {lagging.record.prefix[3:]}: it is the slowest, and the others wait for it"
        return Diagnosis(Verdict.UNKNOWN, (why,), place)
    verdict = _limit(summary, gpu)
    advice = [*_for_a_run(verdict, summary, gpu, info), *(_on_the_card(gpu, verdict) if gpu else ())]
    return Diagnosis(verdict, tuple(advice), place)


def _limit(summary: Summary, gpu: GpuSummary | None) -> Verdict:
    """What limits a run."""
    busy = gpu.mean("gpu_busy") if gpu else None
    if busy is not None and busy >= BUSY_FROM:
        return _busy_with(gpu)
    if summary.data_wait is None:
        return Verdict.UNKNOWN
    idle = 1.0 if busy is None else 1 - busy / 100
    if summary.data_wait >= max(WAIT_SHARE, idle - summary.data_wait):
        return Verdict.WAITING_FOR_DATA
    if (summary.device_wait or 0.0) < NEAR_ZERO:
        return Verdict.LAUNCH_BOUND
    return _busy_with(gpu) if busy is None else Verdict.UNKNOWN


def _lagging(gpus: Sequence[GpuSummary]) -> GpuSummary | None:
    """Of several ranks' GPUs the idlest, if the first is busy: it waits for that one, in a kernel of NCCL."""
    busy = [100.0 if (mean := gpu.mean("gpu_busy")) is None else mean for gpu in gpus]
    return gpus[busy.index(min(busy))] if busy and min(busy) < BUSY_FROM <= busy[0] else None


def _from_outside(summary: Summary, gpu: GpuSummary) -> Verdict:
    """The verdict on a program of which only the use of GPU and CPU is known."""
    busy, doing = gpu.mean("gpu_busy"), _busy_with(gpu)
    if busy is None:
        return Verdict.UNKNOWN if doing is Verdict.GPU_BOUND else doing
    if busy >= BUSY_FROM:
        return doing
    if busy < IDLE_BELOW:
        return Verdict.GPU_IDLE
    if "cpu" not in summary.host:
        return Verdict.UNKNOWN
    is_one_thread = FULL_CORE <= summary.host["cpu"].mean < 2 * FULL_CORE
    return Verdict.LAUNCH_BOUND if is_one_thread else Verdict.WAITING_FOR_DATA


def _busy_with(gpu: GpuSummary | None) -> Verdict:
    """What limits a busy GPU, if it counts that (GPM)."""
    if gpu and (gpu.mean("dram_bandwidth") or 0.0) >= MEMORY_BOUND_FROM:
        return Verdict.MEMORY_BOUND
    if gpu and (gpu.mean("sm_active") or 0.0) >= COMPUTE_BOUND_FROM:
        return Verdict.COMPUTE_BOUND
    return Verdict.GPU_BOUND


def _is_full(gpu: GpuSummary) -> bool:
    """Whether a busy GPU's kernels fill it: by SM activity, else by power, else it is assumed."""
    watts, limit, active = gpu.mean("power"), gpu.record.gpu.power_limit, gpu.mean("sm_active")
    if active is not None:
        return active >= COMPUTE_BOUND_FROM
    return watts is None or limit is None or watts >= LOW_POWER * limit


def _for_a_run(verdict: Verdict, summary: Summary, gpu: GpuSummary | None, info: RunInfo) -> Iterator[str]:
    """What to try with a run, by the options that it has."""
    if verdict is Verdict.UNKNOWN and info.at_once > 1:
        yield "--at-once 1: the waits of runs that take turns cannot be told apart"
    elif verdict is Verdict.UNKNOWN:
        yield "--profile 10, or Nsight Systems: these figures do not show what it waits for"
    elif verdict is Verdict.LAUNCH_BOUND:
        if not info.compiled:
            yield "--compile: fewer, larger kernels"
        yield "one CUDA graph per step: the line 'device' at the start shows whether the run has it"
        yield f"a --batch-size above {info.batch_size}: more work per launch (it changes the experiment)"
    elif verdict is not Verdict.WAITING_FOR_DATA:  # the GPU is busy
        if not info.amp:
            yield "--amp: mixed precision multiplies matrices several times faster"
        if info.loader == "dali":
            yield "--loader resident: decoding and training share the GPU"
        return
    if (summary.data_wait or 0.0) < WAIT_SHARE:
        return
    if info.loader == "resident":
        yield "--compile: gathering and augmenting the resident pixels takes the time"
        return
    yield "--loader resident: decode each image once and keep the pixels on the device"
    jpeg = gpu.statistics.get("jpeg") if gpu else None
    if info.loader == "dali" and jpeg and jpeg.p95 >= BUSY_FROM:
        yield "smaller JPEG files: the JPEG engine is the limit"
    elif info.loader == "dali" and gpu and (jpeg is None or jpeg.max == 0):
        yield "more --threads: the JPEG engine is not used, so CPU threads decode"


def _on_the_card(gpu: GpuSummary, verdict: Verdict) -> Iterator[str]:
    """What slows the card itself. A power cap at full load is normal and no advice."""
    if verdict is Verdict.GPU_BOUND and not _is_full(gpu):
        yield "a larger batch: the GPU is never idle, but its kernels do not fill it"
    often = {reason for reason, share in gpu.throttling.items() if share >= THROTTLED_FROM}
    if often & {Throttle.DRIVER_THERMAL, Throttle.HARDWARE_THERMAL}:
        yield "better cooling: the GPU lowers its clocks because it is too hot"
    if Throttle.POWER_BRAKE in often:
        yield "the power supply: its brake lowers the clocks"
    # The generation falls while the link is idle, the width does not.
    width = gpu.statistics.get("pcie_width")
    if width and width.max < (gpu.record.gpu.max_pcie_width or 0):
        yield "reseating the card, or another PCIe slot: it has fewer lanes than it could"


def _of_cpu(summary: Summary, info: RunInfo | None) -> Diagnosis:
    data = summary.data_wait or 0.0
    decodes = data >= WAIT_SHARE and info is not None and info.loader == "dali"
    for_data = ("--loader resident: decode each image once",) if decodes else ()
    if data >= 0.5:  # the larger part of the time
        return Diagnosis(Verdict.WAITING_FOR_DATA, for_data)
    if "cpu" not in summary.host:
        return Diagnosis(Verdict.UNKNOWN, for_data)
    used, others = summary.host["cpu"].mean, summary.other_cores
    if used >= FULL_CORE * summary.cores:
        without_amp = ("--amp, if the CPU multiplies bf16 natively",) if info and not info.amp else ()
        return Diagnosis(Verdict.CPU_BOUND, (*for_data, *without_amp))
    is_full = used + others >= FULL_MACHINE * (os.cpu_count() or 1)
    if is_full and others and used >= AWAKE:
        stopping = "stopping the other programs, or waiting for them"
        return Diagnosis(Verdict.CPU_CONTENTION, (*for_data, stopping))
    threads = ("OMP_NUM_THREADS, or a larger batch: small ones fill few cores",) if info else ()
    return Diagnosis(Verdict.CPU_IDLE, (*for_data, *threads))
