"""Finds what limits a run's speed, and what to try, by rules over the figures of a summary.

The waits that the loop measures decide, because what waits is not the limit. If the device has no batch for a
tenth of the time, the loader is the limit. If the host never waits for the device, launching kernels is the
limit. Otherwise the device is. NVML's "GPU busy" (the share of the time in which a kernel runs) only refines
this, or replaces waits that are unknown. The counters of GPM show which units of a busy GPU work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastae.device.gpu_reader import Throttle
from fastae.monitor.summary import NO_GPU, Diagnosis, GpuSummary, RunInfo, Summary, Verdict
from fastae.utils.worded import Worded

WAIT_SHARE = 0.1  # share of the time without a batch; from this on, the loader is the limit
NEAR_ZERO = 0.02  # share of the time waiting for the device; below this, the host is the limit
RARELY, MOSTLY = 0.1, 0.9  # shares of the batches that find the device at work: the host is slower, or faster
BUSY_FROM = 90.0  # percent; from this on, a GPU or an engine counts as busy
PAUSES_BELOW = 80.0  # percent GPU busy; below this, a GPU that is the limit pauses between its kernels
LIMIT_FROM = 60.0  # percent of a unit's peak while busy; below this, Nsight Compute names no limit
WELL_USED = 50.0  # percent of a unit's peak while busy; training of large language models reaches 40 to 60
IN_USE_FROM = 20.0  # percent of a unit's peak while busy; below this, a unit does not take turns with another
FULL_FROM = 80.0  # percent of SM activity: "necessary for effective use" in DCGM's documentation
UNUSED = 1.0  # percent; below this, a unit counts as unused
LOW_POWER = 0.5  # share of the power limit; a GPU that is never idle but draws less runs small kernels

NCCL_SMS, NCCL_UNITS = 50.0, 25.0
"""Percent of SM activity and of the units' peaks. If a busy GPU is below both, it mostly waits in NCCL.

NCCL's kernels occupy few SMs: 2 in nccl issue 689, 15 % in issue 1432. A GPU that computes for less than half
of the time stays below both figures, even if it fills its SMs then.
"""

STRAGGLING_BY = 15.0  # percentage points; smaller differences between the GPUs of ranks are normal
THROTTLED_FROM = 0.05  # share of the time; clocks lowered for less than this are not reported
LOWERED_LIMIT = 0.95  # share of the card's own power limit; below this, somebody lowered the limit
LOW_CLOCK = 0.6  # share of the highest clock; below this without a reason, the clocks are locked
SHARED_FROM = 10.0  # percent; a GPU that is busy with other programs for less is not shared

BUSY_CORES, IDLE_CORES = 0.8, 0.6
"""Shares of the physical cores: from the first on, the CPU is the limit; below the second, cores are idle."""

OTHERS_FROM = 0.5  # cores; other programs that use less do not matter
AWAKE = 0.1  # cores or threads; a run that neither uses nor waits for more is sleeping
STARVED_FROM = 0.2  # share of the time in which a run's threads could work, but wait for a CPU

COMPUTE_UNITS = ("tensor_active", "fp32_active")
"""The metrics of the units that compute, in percent of their peak."""


class Remedy(Worded):
    """What to try: fastae's option, and the words for a loop that is not fastae's."""

    PROFILE = "--profile 10", "torch.profiler"
    COMPILE = "--compile", "torch.compile, if it is not used yet"
    AMP = "--amp", "torch.autocast, if it is not used yet"
    LARGER_BATCH = "--batch-size above {} (this changes the experiment)", "a larger batch"
    ONE_GRAPH = (
        "one CUDA graph per step: the log line 'step' at the start shows whether the run uses it",
        "no item() or print of a loss in each step, since it waits for the device; CUDA graphs",
    )
    RESIDENT = (
        "--loader resident: decode each image once and keep the pixels on the device",
        "more workers (num_workers), or images that are decoded once (fastae.open_loader does that)",
    )

    def of(self, info: RunInfo) -> str:
        """Returns the words that fit a run's loop."""
        return self.text if info.loader is None else self.value.format(info.batch_size)


STOP_OTHERS = "stop the other programs, or wait for them to end: they use the {}, too"


def diagnose(summary: Summary, info: RunInfo) -> Diagnosis:
    """Diagnoses a run by its loop and by the main rank's GPU, which is the first."""
    if not info.on_gpu:
        return _diagnose_cpu(summary, info)
    verdict = _find_limit(summary, info)
    advice = [*_advise_run(verdict, summary, info)]
    for gpu in summary.gpus:
        name = f"{gpu.record.name}: " if len(summary.gpus) > 1 else ""
        advice += [f"{name}{text}" for text in _advise_card(gpu)]
    if not advice and (used := _compute_while_busy(summary.main_gpu)) >= WELL_USED:
        advice = [f"nothing to fix: the units that compute reach {used:.0f}% of their peak"]
    return Diagnosis(verdict, tuple(dict.fromkeys(advice)))


def _find_limit(summary: Summary, info: RunInfo) -> Verdict:
    gpu = summary.main_gpu
    if summary.data_wait is not None and summary.data_wait >= WAIT_SHARE:
        return Verdict.WAITING_FOR_DATA
    if summary.device_wait is None:
        queued = 0.5 if summary.queued is None else summary.queued
        is_busy = gpu.mean("gpu_busy") >= BUSY_FROM  # not if it is unknown
        if queued < RARELY and (not is_busy or _is_underfilled(gpu)):
            return Verdict.LAUNCH_BOUND
        if queued < MOSTLY and not is_busy:
            return Verdict.UNKNOWN
    elif summary.device_wait < NEAR_ZERO:
        return Verdict.LAUNCH_BOUND
    if info.ranks > 1 and (straggler(summary) or _waits_in_nccl(gpu)):
        return Verdict.WAITING_FOR_RANK
    if _is_shared(gpu):
        return Verdict.GPU_CONTENTION
    return _find_limiting_unit(gpu)


def _find_limiting_unit(gpu: GpuSummary) -> Verdict:
    """Returns what limits a GPU that the others wait for, as far as its counters show it.

    A mean over all kernels stays below the peak of each: units that take turns share the time.
    """
    compute, memory = _compute_while_busy(gpu), _while_busy(gpu, "dram_bandwidth")
    if max(compute, memory) >= LIMIT_FROM:
        return Verdict.MEMORY_BOUND if memory >= compute else Verdict.COMPUTE_BOUND
    take_turns = min(compute, memory) >= IN_USE_FROM and compute + memory >= LIMIT_FROM
    return Verdict.UNITS_IN_TURNS if take_turns and compute < WELL_USED else Verdict.GPU_BOUND


def _while_busy(gpu: GpuSummary, unit: str) -> float:
    """Returns the percent of a unit's peak while a kernel ran; 0 if it is unknown, or if the GPU pauses."""
    busy = gpu.mean("gpu_busy", unknown=100.0)  # unknown for a MIG slice
    return 100.0 * gpu.mean(unit, unknown=0.0) / busy if busy >= PAUSES_BELOW else 0.0


def _compute_while_busy(gpu: GpuSummary) -> float:
    """Returns the percent of the peak of the unit that computes most, while a kernel ran."""
    return max(_while_busy(gpu, unit) for unit in COMPUTE_UNITS)


def straggler(summary: Summary) -> GpuSummary | None:
    """The GPU of another rank that the first GPU waits for, if the figures show one.

    While the first GPU waits, it runs a kernel of NCCL, which counts as busy but occupies few SMs. The GPU
    that it waits for is therefore less busy, since it waits for its own data or host, or its SMs are more
    active, since it computes longer. Or it is the only one of the two that something slows down.
    """
    main = summary.main_gpu
    slowest = max(summary.gpus[1:], key=lambda gpu: _lag(gpu, main), default=NO_GPU)
    return slowest if _lag(slowest, main) >= STRAGGLING_BY else None


def _lag(gpu: GpuSummary, main: GpuSummary) -> float:
    """Returns by how many percentage points a GPU seems slower than one that waits for it."""
    if any(_advise_card(gpu)) and not any(_advise_card(main)):
        return 100.0
    idle = main.mean("gpu_busy") - gpu.mean("gpu_busy")
    active = gpu.mean("sm_active") - main.mean("sm_active")
    if math.isnan(active):  # power follows the activity of the SMs
        active = _power_percent(gpu) - _power_percent(main)
    return max((lag for lag in (idle, active) if not math.isnan(lag)), default=0.0)


def _power_percent(gpu: GpuSummary) -> float:
    """Returns a GPU's mean power in percent of its limit; nan if it is unknown."""
    return 100.0 * gpu.mean("power") / (gpu.record.gpu.power_limit or math.nan)


def _waits_in_nccl(gpu: GpuSummary) -> bool:
    """Whether a GPU that is always busy hardly works: then it waits for other ranks."""
    is_idle = all(gpu.mean(unit) < NCCL_UNITS for unit in (*COMPUTE_UNITS, "dram_bandwidth"))
    return gpu.mean("gpu_busy") >= BUSY_FROM and gpu.mean("sm_active") < NCCL_SMS and is_idle


def _is_underfilled(gpu: GpuSummary) -> bool:
    """Whether a busy GPU's kernels do not fill it, by SM activity, else by power."""
    if "sm_active" in gpu.statistics:
        return gpu.mean("sm_active") < FULL_FROM
    return _power_percent(gpu) < 100.0 * LOW_POWER


def _is_shared(gpu: GpuSummary) -> bool:
    """Whether other programs run kernels on the GPU; if their time is unknown, whether there are any."""
    if "others_busy" in gpu.statistics:
        return gpu.mean("others_busy") >= SHARED_FROM
    return gpu.mean("other_processes", unknown=0.0) >= 0.5


def _advise_run(verdict: Verdict, summary: Summary, info: RunInfo) -> Iterator[str]:
    """Yields advice about the settings of a run."""
    if verdict is Verdict.UNKNOWN:
        yield f"{Remedy.PROFILE.of(info)}: shows which kernels run, and how long the GPU is idle"
    elif verdict is Verdict.WAITING_FOR_DATA:
        yield from _advise_data(summary, info)
    elif verdict is Verdict.WAITING_FOR_RANK:
        if slow := straggler(summary):
            yield f"check the rank on {slow.record.name}: it is the slowest, and the others wait for it"
        else:
            yield "check the other ranks and the GPUs' links (nvidia-smi topo -m): this GPU waits in NCCL"
    elif verdict is Verdict.LAUNCH_BOUND:
        if not info.compiled:
            yield f"{Remedy.COMPILE.of(info)}: fewer, larger kernels"
        if info.loader is None or info.ranks == 1:
            yield Remedy.ONE_GRAPH.of(info)
        else:
            yield "a run on each GPU (fastae sweep): a step of several ranks is not a CUDA graph"
        yield f"{Remedy.LARGER_BATCH.of(info)}: more work per launch"
    elif verdict is not Verdict.GPU_CONTENTION:  # the GPU is the limit
        yield from _advise_busy_gpu(verdict, summary.main_gpu, info)
    if verdict in (Verdict.WAITING_FOR_DATA, Verdict.LAUNCH_BOUND) and _is_starved(summary):
        yield STOP_OTHERS.format("CPU cores")


def _advise_data(summary: Summary, info: RunInfo) -> Iterator[str]:
    if info.loader == "resident":
        remedy = Remedy.PROFILE if info.compiled else Remedy.COMPILE
        yield f"{remedy.of(info)}: gathering and augmenting the resident pixels limits the speed"
        return
    is_busy = summary.main_gpu.mean("gpu_busy") >= BUSY_FROM
    why = "; decoding keeps the GPU busy now" if is_busy and info.loader == "dali" else ""
    yield f"{Remedy.RESIDENT.of(info)}{why}"
    jpeg = summary.main_gpu.statistics.get("jpeg")
    if info.loader == "dali" and _fills_jpeg_engine(summary.main_gpu):
        yield "smaller JPEG files: the JPEG engine is the limit"
    elif info.loader == "dali" and summary.gpus and (jpeg is None or jpeg.max == 0):
        yield "more --threads: the JPEG engine is not used, so CPU threads decode"


def _fills_jpeg_engine(gpu: GpuSummary) -> bool:
    return "jpeg" in gpu.statistics and gpu.statistics["jpeg"].p95 >= BUSY_FROM


def _advise_busy_gpu(verdict: Verdict, gpu: GpuSummary, info: RunInfo) -> Iterator[str]:
    tensor_cores = gpu.mean("tensor_active")
    if info.amp and tensor_cores < UNUSED:
        yield "--profile 10: the tensor cores are not used, although --amp is on"
    elif not info.amp and not (info.amp is None and tensor_cores >= IN_USE_FROM):
        yield f"{Remedy.AMP.of(info)}: mixed precision multiplies matrices several times faster"
    if info.loader == "dali":
        engine = ", and the JPEG engine is near its limit" if _fills_jpeg_engine(gpu) else ""
        yield f"--loader resident: decoding and training share the GPU{engine}"
    busy = gpu.mean("gpu_busy")
    if busy < PAUSES_BELOW:
        idle = f"{100 - busy:.0f}% of the time"
        yield f"{Remedy.PROFILE.of(info)}: no kernel runs {idle}, although the host waits for the GPU"
    elif verdict is Verdict.UNITS_IN_TURNS:
        yield f"{Remedy.PROFILE.of(info)}: shows which kernels compute, and which wait for memory"
    elif verdict is Verdict.GPU_BOUND and _is_underfilled(gpu) and not any(_advise_card(gpu)):
        yield f"{Remedy.LARGER_BATCH.of(info)}: the GPU is never idle, but its kernels do not fill it"


def _advise_card(gpu: GpuSummary) -> Iterator[str]:
    """Yields advice about what slows the card itself. A power cap at full load is normal."""
    card = gpu.record.gpu
    limit, default = card.power_limit or math.nan, card.default_power_limit or math.nan
    clock, highest = gpu.mean("sm_clock"), card.max_sm_clock or math.nan
    often = {reason for reason in Throttle if gpu.throttled(reason) >= THROTTLED_FROM}
    knows_reasons = f"throttled_{Throttle.POWER_CAP}" in gpu.statistics
    if often & {Throttle.DRIVER_THERMAL, Throttle.HARDWARE_THERMAL}:
        yield "improve the cooling: the GPU lowers its clocks because it is too hot"
    elif Throttle.POWER_BRAKE in often:
        yield "check the power supply: the power brake is active"
    elif Throttle.HARDWARE in often:
        yield "check the power cables and supply: the hardware lowers the clocks for an unknown reason"
    elif Throttle.POWER_CAP in often and limit < LOWERED_LIMIT * default:
        yield f"nvidia-smi -pl {default:.0f}: the power limit was lowered to {limit:.0f} W"
    elif knows_reasons and not often and gpu.mean("gpu_busy") >= BUSY_FROM and clock < LOW_CLOCK * highest:
        yield f"nvidia-smi -rgc, or -rac: the clocks are locked at {clock:.0f} of {highest:.0f} MHz"
    if _is_shared(gpu):
        yield STOP_OTHERS.format("GPU")


def _diagnose_cpu(summary: Summary, info: RunInfo) -> Diagnosis:
    data, is_starved = summary.data_wait or 0.0, _is_starved(summary)
    advice = []
    if data >= WAIT_SHARE and info.loader in ("dali", None):
        advice.append(Remedy.RESIDENT.of(info))
    if is_starved:
        advice.append(STOP_OTHERS.format("CPU cores"))
    if data >= 0.5:  # the larger part of the time
        verdict = Verdict.WAITING_FOR_DATA
    elif "cpu" not in summary.host or summary.data_wait is None:
        verdict = Verdict.UNKNOWN
    # The second thread of a core adds little: if all physical cores are busy, the CPU is.
    elif (used := summary.host["cpu"].mean / summary.cores.physical) >= BUSY_CORES:
        verdict = Verdict.CPU_BOUND
    elif is_starved:
        verdict = Verdict.CPU_CONTENTION
    else:
        verdict = Verdict.CPU_MOSTLY_BUSY if used >= IDLE_CORES else Verdict.CPU_IDLE
    return Diagnosis(verdict, (*advice, *_advise_cpu(verdict, info)))


def _advise_cpu(verdict: Verdict, info: RunInfo) -> Iterator[str]:
    if verdict is Verdict.CPU_IDLE:
        yield "set OMP_NUM_THREADS to the number of cores: some cores are idle"
        yield f"{Remedy.LARGER_BATCH.of(info)}: small batches keep few cores busy"
    if verdict not in (Verdict.CPU_BOUND, Verdict.CPU_MOSTLY_BUSY):
        return
    if not info.amp:
        yield f"{Remedy.AMP.of(info)}: faster if the CPU multiplies bf16 natively"
    if not info.compiled:
        yield f"{Remedy.COMPILE.of(info)}: fewer passes over memory"
    if info.amp and info.compiled:
        yield "--profile 10: shows the costliest operators; only more cores or a GPU make them faster"


def _is_starved(summary: Summary) -> bool:
    """Whether other programs keep the run from the cores that it could use."""
    if not {"cpu", "machine_cpu", "cpu_wait"} <= summary.host.keys():
        return False
    used, machine = summary.host["cpu"].mean, summary.host["machine_cpu"].mean
    if machine - used < OTHERS_FROM:
        return False
    waiting = summary.host["cpu_wait"].mean
    return waiting >= max(AWAKE, STARVED_FROM * (used + waiting))
