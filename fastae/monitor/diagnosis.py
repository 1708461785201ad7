"""Finds what limits a run's speed, and what to try, by rules over the figures of a summary.

The waits that the loop measures decide, because what waits is not the limit. If the device has no batch for a
tenth of the time, the loader is the limit. If the host never waits for the device, launching kernels is the
limit. Otherwise the device is. NVML's "GPU busy" (the share of the time in which a kernel runs) only refines
this, or replaces it for runs that report no waits. The counters of GPM show which units of a busy GPU work.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastae.monitor.recording import Throttle
from fastae.monitor.summary import NO_GPU, Diagnosis, GpuSummary, RunInfo, Summary, Verdict

WAIT_SHARE = 0.1  # share of the time without a batch; from this on, the loader is the limit
NEAR_ZERO = 0.02  # share of the time waiting for the device; below this, the host is the limit
BUSY_FROM = 90.0  # percent; from this on, a GPU or an engine counts as busy
PAUSES_BELOW = 80.0  # percent GPU busy; below this, a GPU that is the limit pauses between its kernels
LIMIT_FROM = 60.0  # percent of a unit's peak; below this, Nsight Compute assumes that latencies are the limit
FULL_FROM = 80.0  # percent of SM activity: "necessary for effective use" in DCGM's documentation
PIPES_IDLE = 10.0  # percent; if SMs are active but their units do less, they wait, as in NCCL's kernels
UNUSED = 1.0  # percent; below this, a unit counts as unused
STRAGGLING_BY = 15.0  # percentage points of GPU busy; smaller differences between ranks are normal
FULL_CORE = 0.8  # share of the physical cores that a run uses; from this on, the CPU is the limit
LOW_POWER = 0.5  # share of the power limit; a GPU that is never idle but draws less runs small kernels
OTHERS_FROM = 0.5  # cores; other programs that use less do not matter
AWAKE = 0.1  # cores; a run that uses less is sleeping, so nothing slows it down
FULL_MACHINE = 0.9  # share of the physical cores in use; from this on, programs compete for them
THROTTLED_FROM = 0.05  # share of the time; clocks lowered for less than this are not reported

COMPUTE_UNITS = ("tensor_active", "fp32_active")
"""The metrics of the units that compute, in percent of their peak."""

LARGER_BATCH = "--batch-size above {} (this changes the experiment): {}"


def diagnose(summary: Summary, info: RunInfo) -> Diagnosis:
    """Diagnoses a run by its loop and by the main rank's GPU, which is the first."""
    if not info.on_gpu:
        return _diagnose_cpu(summary, info)
    verdict = _limit(summary, info)
    advice = [*_run_advice(verdict, summary, info)]
    for gpu in summary.gpus:
        advice += _card_advice(gpu)
    return Diagnosis(verdict, tuple(dict.fromkeys(advice)))


def _limit(summary: Summary, info: RunInfo) -> Verdict:
    gpu = summary.main_gpu
    if summary.data_wait is None or summary.device_wait is None:
        return _busy_with(gpu) if gpu.mean("gpu_busy") >= BUSY_FROM else Verdict.UNKNOWN
    if summary.data_wait >= WAIT_SHARE:
        return Verdict.WAITING_FOR_DATA
    if summary.device_wait < NEAR_ZERO:
        return Verdict.LAUNCH_BOUND
    if info.ranks > 1 and (straggler(summary) or _spins(gpu)):
        return Verdict.WAITING_FOR_RANK
    return _busy_with(gpu)


def _busy_with(gpu: GpuSummary) -> Verdict:
    """Returns what limits a busy GPU: the unit that is closest to its peak, if the GPU has counters."""
    compute = max(gpu.mean(unit, unknown=0.0) for unit in COMPUTE_UNITS)
    memory = gpu.mean("dram_bandwidth", unknown=0.0)
    if max(compute, memory) < LIMIT_FROM:
        return Verdict.GPU_BOUND
    return Verdict.MEMORY_BOUND if memory >= compute else Verdict.COMPUTE_BOUND


def straggler(summary: Summary) -> GpuSummary | None:
    """The GPU of several ranks that is clearly less busy than the first GPU, if there is one.

    The first GPU waits for it in a kernel of NCCL, which counts as busy.
    """
    idlest = min(summary.gpus, key=lambda gpu: gpu.mean("gpu_busy", unknown=100.0), default=NO_GPU)
    is_behind = summary.main_gpu.mean("gpu_busy") - idlest.mean("gpu_busy") >= STRAGGLING_BY
    return idlest if is_behind else None


def _spins(gpu: GpuSummary) -> bool:
    """Whether warps are resident but idle: then the kernels wait for other ranks or for memory."""
    is_idle = all(gpu.mean(unit) < PIPES_IDLE for unit in (*COMPUTE_UNITS, "dram_bandwidth"))
    return gpu.mean("sm_active") >= FULL_FROM and is_idle


def _is_underfilled(gpu: GpuSummary) -> bool:
    """Whether a busy GPU's kernels do not fill it, by SM activity, else by power."""
    if "sm_active" in gpu.statistics:
        return gpu.mean("sm_active") < FULL_FROM
    return gpu.mean("power") < LOW_POWER * (gpu.record.gpu.power_limit or 0.0)


def _run_advice(verdict: Verdict, summary: Summary, info: RunInfo) -> Iterator[str]:
    """Yields advice about the settings of a run."""
    if verdict is Verdict.UNKNOWN:
        yield "--profile 10: shows which kernels run, and how long the GPU is idle"
    elif verdict is Verdict.WAITING_FOR_DATA:
        yield from _data_advice(summary, info)
    elif verdict is Verdict.WAITING_FOR_RANK:
        if slow := straggler(summary):
            yield f"check the rank on {slow.record.name}: it is the slowest, and the others wait for it"
        else:
            yield "check the other ranks and the GPUs' links (nvidia-smi topo -m): this GPU waits in NCCL"
    elif verdict is Verdict.LAUNCH_BOUND:
        if not info.compiled:
            yield "--compile: fewer, larger kernels"
        yield "one CUDA graph per step: the log line 'step' at the start shows whether the run uses it"
        yield LARGER_BATCH.format(info.batch_size, "more work per launch")
    else:  # the GPU is the limit
        yield from _busy_advice(verdict, summary.main_gpu, info)


def _data_advice(summary: Summary, info: RunInfo) -> Iterator[str]:
    if info.loader == "resident":
        option = "--profile 10" if info.compiled else "--compile"
        yield f"{option}: gathering and augmenting the resident pixels limits the speed"
        return
    is_busy = summary.main_gpu.mean("gpu_busy") >= BUSY_FROM
    why = "; decoding keeps the GPU busy now" if is_busy and info.loader == "dali" else ""
    yield f"--loader resident: decode each image once and keep the pixels on the device{why}"
    jpeg = summary.main_gpu.statistics.get("jpeg")
    if info.loader == "dali" and jpeg and jpeg.p95 >= BUSY_FROM:
        yield "smaller JPEG files: the JPEG engine is the limit"
    elif info.loader == "dali" and summary.gpus and (jpeg is None or jpeg.max == 0):
        yield "more --threads: the JPEG engine is not used, so CPU threads decode"


def _busy_advice(verdict: Verdict, gpu: GpuSummary, info: RunInfo) -> Iterator[str]:
    if not info.amp:
        yield "--amp: mixed precision multiplies matrices several times faster"
    elif gpu.mean("tensor_active") < UNUSED:
        yield "--profile 10: the tensor cores are not used, although --amp is on"
    if info.loader == "dali":
        yield "--loader resident: decoding and training share the GPU"
    busy = gpu.mean("gpu_busy")
    if busy < PAUSES_BELOW:
        idle = f"{100 - busy:.0f}% of the time"
        yield f"--profile 10: no kernel runs {idle}, although the host waits for the GPU"
    elif verdict is Verdict.GPU_BOUND and _is_underfilled(gpu):
        yield LARGER_BATCH.format(info.batch_size, "the GPU is never idle, but its kernels do not fill it")


def _card_advice(gpu: GpuSummary) -> Iterator[str]:
    """Yields advice about what slows the card itself. A power cap at full load is normal."""
    often = {reason for reason in Throttle if gpu.throttled(reason) >= THROTTLED_FROM}
    if often & {Throttle.DRIVER_THERMAL, Throttle.HARDWARE_THERMAL}:
        yield "improve the cooling: the GPU lowers its clocks because it is too hot"
    elif Throttle.POWER_BRAKE in often:
        yield "check the power supply: the power brake is active"
    elif Throttle.HARDWARE in often:
        yield "check the power cables and supply: the hardware lowers the clocks for an unknown reason"
    # An idle link lowers its PCIe generation, but not its width.
    width = gpu.statistics.get("pcie_width")
    if width and width.max < (gpu.record.gpu.max_pcie_width or 0):
        yield "reseat the card, or try another PCIe slot: it uses fewer PCIe lanes than it has"


def _diagnose_cpu(summary: Summary, info: RunInfo) -> Diagnosis:
    data = summary.data_wait or 0.0
    decodes = data >= WAIT_SHARE and info.loader == "dali"
    for_data = ("--loader resident: decode each image once",) if decodes else ()
    if data >= 0.5:  # the larger part of the time
        return Diagnosis(Verdict.WAITING_FOR_DATA, for_data)
    if "cpu" not in summary.host:
        return Diagnosis(Verdict.UNKNOWN, for_data)
    used = summary.host["cpu"].mean
    others = summary.host["machine_cpu"].mean - used if "machine_cpu" in summary.host else 0.0
    # The second thread of a core adds little: if all physical cores are busy, the CPU is.
    if used >= FULL_CORE * summary.cores.physical:
        without_amp = () if info.amp else ("--amp, if the CPU multiplies bf16 natively",)
        return Diagnosis(Verdict.CPU_BOUND, (*for_data, *without_amp))
    if others >= OTHERS_FROM and used >= AWAKE and used + others >= FULL_MACHINE * summary.cores.machine:
        stopping = "stop the other programs, or wait for them to end: they use the CPU cores, too"
        return Diagnosis(Verdict.CPU_CONTENTION, (*for_data, stopping))
    threads = "set OMP_NUM_THREADS to the number of cores: some cores are idle"
    larger = LARGER_BATCH.format(info.batch_size, "small batches keep few cores busy")
    return Diagnosis(Verdict.CPU_IDLE, (*for_data, threads, larger))
