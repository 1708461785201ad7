"""What limits a program's speed, and what to try: rules over the figures of a summary.

NVML's "GPU busy" says how much of the time some kernel was running. If that is not nearly always, the host's
own clock decides: it times how long it waits for data, in `next()` of the loader, and for the device, when it
reads the loss. A host that does not wait for the device is itself the limit, and the larger of what else it
does, waiting for data or launching kernels, is the verdict. What is not known gives UNKNOWN.
"""

from __future__ import annotations

import os

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


def diagnose(summary: Summary, info: RunInfo | None = None, judge: bool = True) -> Diagnosis:
    """Judges the GPU of the loop that was timed, which is the first; the busiest of a program that reports no
    waits; the CPU if there is no GPU. `judge`: False if it is not known which GPU the program uses.
    """
    if not summary.gpus:
        return _of_cpu(summary, info)
    if not judge:
        which = "CUDA_VISIBLE_DEVICES with one GPU: which of these the program uses is not known"
        return Diagnosis(Verdict.UNKNOWN, (which,))
    is_timed = summary.data_wait is not None
    busy = [0.0 if is_timed else gpu.mean("gpu_busy") or 0.0 for gpu in summary.gpus]
    gpu = summary.gpus[place := busy.index(max(busy))]
    verdict = _of_loop(summary, gpu) if is_timed else _from_outside(summary, gpu)
    is_guess = not is_timed and verdict in (Verdict.WAITING_FOR_DATA, Verdict.LAUNCH_BOUND)
    advice = _advice(verdict, summary, gpu, info) + _on_the_card(gpu)
    return Diagnosis(verdict, tuple(advice), place, is_guess)


def _of_loop(summary: Summary, gpu: GpuSummary) -> Verdict:
    """The verdict on a loop that times its waits."""
    data, device = summary.data_wait or 0.0, summary.device_wait or 0.0
    busy = gpu.mean("gpu_busy")
    if busy is not None and busy >= BUSY_FROM:
        return _busy_with(gpu)
    if data >= max(WAIT_SHARE, 1 - data - device, device):  # the middle one is launching kernels
        return Verdict.WAITING_FOR_DATA
    if device < NEAR_ZERO:
        return Verdict.LAUNCH_BOUND
    return _busy_with(gpu) if busy is None else Verdict.UNKNOWN


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


def _busy_with(gpu: GpuSummary) -> Verdict:
    """What limits a busy GPU, if it counts that (GPM)."""
    if (gpu.mean("dram_bandwidth") or 0.0) >= MEMORY_BOUND_FROM:
        return Verdict.MEMORY_BOUND
    return (
        Verdict.COMPUTE_BOUND if (gpu.mean("sm_active") or 0.0) >= COMPUTE_BOUND_FROM else Verdict.GPU_BOUND
    )


def _advice(verdict: Verdict, summary: Summary, gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    if verdict is Verdict.WAITING_FOR_DATA:
        return _feed(gpu, info)
    if verdict is Verdict.LAUNCH_BOUND:
        also = _feed(gpu, info) if (summary.data_wait or 0.0) >= WAIT_SHARE else []
        return _launch_less(info) + also
    if verdict in (Verdict.GPU_BOUND, Verdict.COMPUTE_BOUND, Verdict.MEMORY_BOUND):
        return _use_it_better(verdict, gpu, info)
    if verdict is Verdict.GPU_IDLE:
        return ["CUDA_VISIBLE_DEVICES: is this the GPU that was meant?"]
    tools = "fastae train --profile 10, or Nsight Systems" if info else "Nsight Systems"
    return [f"{tools}: these figures do not show what it waits for"]


def _feed(gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    if info is None:
        return ["more loader workers, or decoding on the GPU (DALI)"]
    if info.loader == "resident":
        return ["--compile: gathering and augmenting the resident pixels takes the time"]
    advice = ["--loader resident: decode each image once and keep the pixels on the device"]
    if info.loader == "dali":
        jpeg = gpu.statistics.get("jpeg")
        if jpeg and jpeg.p95 >= BUSY_FROM:
            advice.append("smaller JPEG files: the JPEG engine is the limit")
        elif jpeg is None or jpeg.max == 0:
            advice.append("more --threads: the JPEG engine is not used, so CPU threads decode")
    return advice


def _launch_less(info: RunInfo | None) -> list[str]:
    if info is None:
        return ["a larger batch, torch.compile or a CUDA graph: fewer launches for the same work"]
    return [
        *([] if info.compiled else ["--compile: fewer, larger kernels"]),
        "one CUDA graph per step: the line 'device' at the start shows whether the run has it",
        f"a --batch-size above {info.batch_size}: more work per launch (it changes the experiment)",
    ]


def _use_it_better(verdict: Verdict, gpu: GpuSummary, info: RunInfo | None) -> list[str]:
    watts, limit, active = gpu.mean("power"), gpu.record.gpu.power_limit, gpu.mean("sm_active")
    if active is not None:
        is_full = active >= COMPUTE_BOUND_FROM
    else:
        is_full = watts is None or limit is None or watts >= LOW_POWER * limit
    advice = []
    if verdict is Verdict.GPU_BOUND and not is_full:
        advice.append("a larger batch: the GPU is never idle, but its kernels do not fill it")
    if info and not info.amp:
        advice.append("--amp: mixed precision multiplies matrices several times faster")
    if info and info.loader == "dali":
        advice.append("--loader resident: decoding and training share the GPU")
    return advice


def _on_the_card(gpu: GpuSummary) -> list[str]:
    """What slows the card itself. A power cap at full load is normal and no advice."""
    often = {reason for reason, share in gpu.throttling.items() if share >= THROTTLED_FROM}
    advice = []
    if often & {Throttle.DRIVER_THERMAL, Throttle.HARDWARE_THERMAL}:
        advice.append("better cooling: the GPU lowers its clocks because it is too hot")
    if Throttle.POWER_BRAKE in often:
        advice.append("the power supply: its brake lowers the clocks")
    width = gpu.statistics.get(
        "pcie_width"
    )  # the generation falls while the link is idle, the width does not
    if width and width.max < (gpu.record.gpu.max_pcie_width or 0):
        advice.append("another PCIe slot: the card has fewer lanes here than it could")
    return advice


def _of_cpu(summary: Summary, info: RunInfo | None) -> Diagnosis:
    if (summary.data_wait or 0.0) >= WAIT_SHARE:
        is_decoded = info is not None and info.loader != "dali"
        advice = () if is_decoded else ("--loader resident: decode each image once",)
        return Diagnosis(Verdict.WAITING_FOR_DATA, advice)
    if "cpu" not in summary.host:
        return Diagnosis(Verdict.UNKNOWN)
    used, others = summary.host["cpu"].mean, summary.other_cores
    if used >= FULL_CORE * summary.cores:
        without_amp = ("--amp, if the CPU multiplies bf16 natively",) if info and not info.amp else ()
        return Diagnosis(Verdict.CPU_BOUND, without_amp)
    is_full = used + others >= FULL_MACHINE * (os.cpu_count() or 1)
    if is_full and others and used >= AWAKE:
        return Diagnosis(Verdict.CPU_CONTENTION, ("stopping the other programs, or waiting for them",))
    threads = ("OMP_NUM_THREADS, or a larger batch: small ones fill few cores",) if info else ()
    return Diagnosis(Verdict.CPU_IDLE, threads)
