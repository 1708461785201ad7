"""A table of verdicts: a card's states, the loop's figures, and the verdict that an expert would give."""

from dataclasses import replace

import pynvml
import pytest

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import Phase
from fastae.monitor.summary import summarize
from fastae.utils.limits import Cores

from .conftest import ANY_LOOP, DALI, HOST, OUR_PID, RESIDENT, StubHost, loop
from .recorded_nvml import (
    AT_POWER_LIMIT,
    BUSY,
    COMPUTE_BOUND,
    FALLS_OFF_THE_BUS,
    HALF_BUSY,
    HOPPER_SLICE,
    LATENCY_BOUND,
    MEMORY_BOUND,
    NO_TENSOR_CORES,
    SLICE,
    STARVED,
    UNDERFILLED,
    Card,
    RecordedNvml,
    State,
    gpm,
    machine_of,
)

EIGHT_CORES, TWO_CORES, SMT = Cores(8, 8, 8), Cores(2, 2, 2), Cores(4, 2, 2)
FEW_OF_MANY = Cores(2, 2, 64)
TWO_RANKS, NOT_COMPILED = replace(RESIDENT, ranks=2), replace(RESIDENT, compiled=False)
DALI_COMPILED = replace(RESIDENT, loader="dali")


def but(**changes):
    """Returns the states of a busy card with other figures."""
    return [BUSY[0].but(**changes)]


def busy(percent):
    return but(utilization=percent)


def watched(data, queued):
    """Returns what `fastae.watch` records. It does not know how long the loop waits for the device."""
    return loop(data, None, queued=queued)


CAP, HEAT = pynvml.nvmlClocksEventReasonSwPowerCap, pynvml.nvmlClocksEventReasonSwThermalSlowdown
T4 = Card([State(99, power=70_000, sm_clock=900, reasons=CAP)], name="Tesla T4",
          power_limit=70_000, default_power_limit=70_000, max_sm_clock=1590)  # fmt: skip
A100 = Card([State(99, power=150_000, sm_clock=800, reasons=CAP)], name="NVIDIA A100 80GB PCIe",
            power_limit=150_000, default_power_limit=250_000, max_sm_clock=1410)  # fmt: skip
A10G = Card([State(99, power=60_000, sm_clock=210, reasons=0)], name="NVIDIA A10G",
            power_limit=300_000, default_power_limit=300_000, max_sm_clock=1710)  # fmt: skip
MODEL_COUNTERS = gpm(88.0, 25.0, 5.0, 50.0)
MODEL = but(utilization=99, gpm=MODEL_COUNTERS)
HOT_RANK = but(utilization=98, gpm=MODEL_COUNTERS, reasons=HEAT)
# It waits in NCCL for 40 % of the time: the SM activity is that of the model for 60 %, and 15 % for the rest.
FASTER_RANK = but(utilization=99, gpm=gpm(59.0, 16.0, 3.0, 32.0))
NCCL = but(utilization=100, gpm=gpm(20.0, 2.5, 1.0, 6.0))
LANGUAGE_MODEL = [AT_POWER_LIMIT[0].but(gpm=gpm(85.0, 55.0, 5.0, 30.0))]
ALMOST_BUSY = but(utilization=85, gpm=gpm(70.0, 54.0, 5.0, 20.0))
OTHER_PROGRAM = but(processes=(OUR_PID, 17), process_times={OUR_PID: 60, 17: 38})
NOTEBOOK = but(processes=(OUR_PID, 17), process_times={OUR_PID: 97, 17: 1})
JPEG_ENGINE = [UNDERFILLED[0].but(jpeg=99)]
LOW_POWER = but(power=250_000)

GPU_LIMITS, HOST_LIMITS, GATHERING = loop(0.001, 0.4), loop(0.01, 0.001), loop(0.3, 0.6)

CASES = [
    # The waits decide.
    ("it mostly has no batch", DALI, [STARVED], loop(0.9, 0.01), "waiting_for_data",
     ["--loader", "smaller JPEG"]),
    ("slow launches, but an empty queue", DALI, [busy(40)], loop(0.15), "waiting_for_data",
     ["--loader", "--threads"]),
    ("the host waits for the device, which waits for data", HOST, [HALF_BUSY], GATHERING, "waiting_for_data",
     ["--loader"]),
    ("gathering limits the speed", RESIDENT, [HALF_BUSY], GATHERING, "waiting_for_data", ["--profile"]),
    ("gathering, not compiled", NOT_COMPILED, [HALF_BUSY], GATHERING, "waiting_for_data", ["--compile"]),
    ("decoding keeps the GPU busy", DALI, [BUSY], loop(0.9, 0.01), "waiting_for_data", None),
    ("the other ranks wait for this one", TWO_RANKS, [busy(60), BUSY], loop(0.5), "waiting_for_data", None),
    ("a slice before Hopper", RESIDENT, [SLICE], loop(0.9, 0.01), "waiting_for_data", None),
    ("no waits", RESIDENT, [busy(97)], loop(), "launch_bound", ["CUDA graph", "--batch-size"]),
    ("two launch-bound ranks", TWO_RANKS, [HALF_BUSY] * 2, loop(), "launch_bound",
     ["fastae sweep", "--batch-size"]),
    ("the GPU waits, the host does not", DALI, [HALF_BUSY], HOST_LIMITS, "launch_bound",
     ["--compile", "CUDA graph", "--batch-size"]),
    ("not compiled, no waits", NOT_COMPILED, [busy(65)], loop(), "launch_bound",
     ["--compile", "CUDA graph", "--batch-size"]),
    ("pauses between kernels", RESIDENT, [busy(65)], loop(0, 0.6), "gpu_bound", ["--profile"]),
    ("the host waits only for the GPU", RESIDENT, [busy(85)], loop(0, 0.95), "gpu_bound", None),
    ("NVML shows no GPU", RESIDENT, [], loop(0, 0.4), "gpu_bound", None),
    ("the GPU is lost later", RESIDENT, [FALLS_OFF_THE_BUS], loop(0, 0.4), "gpu_bound", None),
    ("only GPU busy is known", RESIDENT, [BUSY], None, "gpu_bound", None),
    ("only GPU busy, too low to decide", RESIDENT, [HALF_BUSY], None, "unknown", None),
    ("nothing is known", RESIDENT, [], None, "unknown", None),
    ("no wait for the device is known", RESIDENT, [BUSY], loop(0.001, None), "gpu_bound", None),
    ("the same, a slow loader", RESIDENT, [BUSY], loop(0.3, None), "waiting_for_data", None),
    # Counters refine the verdict on a GPU that is the limit.
    ("no counters", RESIDENT, [busy(98)], GPU_LIMITS, "gpu_bound", []),
    ("decoding shares it, without AMP", DALI, [BUSY], loop(0, 0.4), "gpu_bound", ["--amp", "--loader"]),
    ("tensor cores at 70 % of their peak", RESIDENT, [COMPUTE_BOUND], GPU_LIMITS, "compute_bound", None),
    ("54 % in 85 % of the time", RESIDENT, [ALMOST_BUSY], GPU_LIMITS, "compute_bound", None),
    ("a slice has its own counters", RESIDENT, [HOPPER_SLICE], loop(0, 0.4), "compute_bound", None),
    ("DRAM at 75 % of its bandwidth", RESIDENT, [MEMORY_BOUND], GPU_LIMITS, "memory_bound", None),
    ("no unit is near its peak", RESIDENT, [UNDERFILLED], GPU_LIMITS, "gpu_bound", ["--batch-size"]),
    ("full of warps that do not compute", RESIDENT, [NO_TENSOR_CORES], GPU_LIMITS, "gpu_bound",
     ["--profile"]),
    ("the memory's latency", RESIDENT, [LATENCY_BOUND], GPU_LIMITS, "gpu_bound", None),
    ("this model on an H100, by benchmarks/roofline.py", RESIDENT, [MODEL], GPU_LIMITS, "units_in_turns",
     ["--profile"]),
    ("a large language model, well written", RESIDENT, [LANGUAGE_MODEL], loop(0, 0.5), "gpu_bound",
     ["nothing to fix"]),
    ("the JPEG engine at 99 % (DALI issue 5362)", DALI_COMPILED, [JPEG_ENGINE], loop(0.09, 0.5), "gpu_bound",
     ["JPEG engine", "--batch-size"]),
    # Several ranks. NCCL's kernels occupy few SMs.
    ("38 points less busy", TWO_RANKS, [BUSY, busy(60)], GPU_LIMITS, "waiting_for_rank", None),
    ("8 points less is normal", TWO_RANKS, [BUSY, busy(90)], GPU_LIMITS, "gpu_bound", None),
    ("latency on both ranks", TWO_RANKS, [LATENCY_BOUND] * 2, GPU_LIMITS, "gpu_bound", None),
    ("without GPM: the other draws less power", TWO_RANKS, [BUSY, LOW_POWER], GPU_LIMITS, "gpu_bound", None),
    ("without GPM: more power", TWO_RANKS, [LOW_POWER, BUSY], GPU_LIMITS, "waiting_for_rank", None),
    ("40 % in NCCL, on 15 % of the SMs (nccl issue 1432): the other is hot", TWO_RANKS,
     [FASTER_RANK, HOT_RANK], GPU_LIMITS,
     "waiting_for_rank", ["GPU 1", "GPU 1: improve the cooling"]),
    ("both only wait (nccl issues 689 and 1432)", TWO_RANKS, [NCCL] * 2, GPU_LIMITS, "waiting_for_rank",
     ["links"]),
    # The card itself, and other programs on it.
    ("a T4 at its 70 W (datasheet)", RESIDENT, [T4], loop(0, 0.5), "gpu_bound", []),
    ("nvidia-smi -pl 150, of 250 W", RESIDENT, [A100], loop(0, 0.5), "gpu_bound", ["nvidia-smi -pl 250"]),
    ("nvidia-smi -lgc 210", RESIDENT, [A10G], loop(0, 0.5), "gpu_bound", ["nvidia-smi -rgc"]),
    ("a virtual machine with 8 of 16 lanes", RESIDENT, [but(width=8)], loop(0, 0.5), "gpu_bound", []),
    ("two others in NVML's list", RESIDENT, [but(processes=(OUR_PID, 17, 18))], loop(0, 0.5),
     "gpu_contention", ["other programs"]),
    ("another's kernels take 38 %", RESIDENT, [OTHER_PROGRAM], loop(0, 0.5), "gpu_contention",
     ["other programs"]),
    ("a notebook that runs nothing", RESIDENT, [NOTEBOOK], loop(0, 0.5), "gpu_bound", []),
    # Loops of others.
    ("a DataLoader that decodes alone", ANY_LOOP, [busy(40)], watched(0.5, 0), "waiting_for_data",
     ["num_workers"]),
    ("resident images, losses read rarely", ANY_LOOP, [busy(97)], watched(0, 1), "gpu_bound",
     ["torch.autocast"]),
    ("item() in each step of small kernels", ANY_LOOP, [busy(55)], watched(0.01, 0), "launch_bound",
     ["torch.compile", "item()", "larger batch"]),
    ("the same, busy at little power", ANY_LOOP, [but(power=200_000)], watched(0.01, 0), "launch_bound",
     None),
    ("item() after a large step", ANY_LOOP, [busy(95)], watched(0.01, 0), "gpu_bound", None),
    ("a slice, the host is always ahead", ANY_LOOP, [SLICE], watched(0.01, 1), "gpu_bound", None),
    ("the host is sometimes ahead", ANY_LOOP, [busy(65)], watched(0.01, 0.5), "unknown", ["torch.profiler"]),
    ("ahead of a GPU that pauses", ANY_LOOP, [busy(65)], watched(0.01, 1), "gpu_bound",
     ["torch.autocast", "torch.profiler"]),
    ("a language model in a loop of its own", ANY_LOOP, [LANGUAGE_MODEL], watched(0, 1), "gpu_bound",
     ["nothing to fix"]),
]  # fmt: skip
"""Why, run, cards, what the loop records, verdict, and a part of each line of advice (None: any advice).

Counters are from the source that a row names. Waits, and figures that no source gives, are made up.
"""


@pytest.mark.parametrize(("why", "info", "cards", "figures", "verdict", "advice"), CASES)
def test_the_verdict_is_the_one_that_an_expert_would_give(
    simulate, why, info, cards, figures, verdict, advice
):
    recording = simulate(library=machine_of(*cards), loop=figures).recording()
    diagnosis = diagnose(summarize(recording, info, EIGHT_CORES), info)
    assert diagnosis.verdict == verdict, why
    if advice is not None:
        assert len(diagnosis.advice) == len(advice)
        assert all(part in line for part, line in zip(advice, diagnosis.advice, strict=True))
    assert all("changes the experiment" in line for line in diagnosis.advice if "--batch-size" in line)
    assert info.loader or "--" not in " ".join(diagnosis.advice), "fastae's options are unknown there"


@pytest.mark.parametrize(
    ("why", "cores", "cpu", "machine", "wait", "data", "verdict"),
    [
        ("both cores are in use", TWO_CORES, 1.9, 2.0, None, 0.0, "cpu_bound"),
        ("second threads add little", SMT, 1.9, 2.0, None, 0.0, "cpu_bound"),
        ("a physical core is free", SMT, 1.0, 1.1, None, 0.0, "cpu_idle"),
        ("another uses the other core", SMT, 0.9, 1.9, 0.4, 0.0, "cpu_contention"),
        ("a core is free", TWO_CORES, 1.0, 1.1, None, 0.0, "cpu_idle"),
        ("a run that sleeps needs no core", TWO_CORES, 0.0, 2.0, None, 0.0, "cpu_idle"),
        ("others leave enough cores", Cores(64, 64, 64), 1.0, 9.0, None, 0.0, "cpu_idle"),
        ("mostly no batch", TWO_CORES, 1.0, 1.1, None, 0.9, "waiting_for_data"),
        ("decoding shares the cores", TWO_CORES, 1.0, 2.0, 0.5, 0.2, "cpu_contention"),
        ("too short for figures", TWO_CORES, None, None, None, 0.0, "unknown"),
        ("neither idle nor the limit", TWO_CORES, 1.4, 1.5, None, 0.0, "cpu_mostly_busy"),
        ("one busy thread beside four busy programs of a higher priority (measured)", TWO_CORES, 0.07, 2.0,
         0.92, 0.0, "cpu_contention"),
        ("it sleeps while others compete", TWO_CORES, 0.0, 2.0, 0.0, 0.0, "cpu_idle"),
        ("it competes with its own threads", TWO_CORES, 1.4, 1.6, 3.0, 0.0, "cpu_mostly_busy"),
        ("its two cores are shared", FEW_OF_MANY, 0.5, 9.0, 0.8, 0.0, "cpu_contention"),
        ("full, but nothing waits", TWO_CORES, 1.0, 1.9, 0.1, 0.0, "cpu_idle"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_cpu(simulate, why, cores, cpu, machine, wait, data, verdict):
    info = replace(DALI, on_gpu=False)
    host = StubHost(cpu, machine, cpu_wait=wait)
    recording = simulate(library=RecordedNvml(), host=host, loop=loop(data, None)).recording()
    diagnosis = diagnose(summarize(recording, info, cores), info)
    assert diagnosis.verdict == verdict, why
    assert ("--loader" in " ".join(diagnosis.advice)) is (data >= 0.1), "it is named with any verdict"


def test_samples_within_a_second_after_a_change_of_phase_are_not_used(simulate):
    """Training and evaluation alternate every two seconds. NVML's figures lag by half a second."""
    states = [each for _ in range(60) for each in (*busy(20), *busy(98) * 4, *busy(20) * 3)]
    phases = [(2 * index, (Phase.TRAIN, Phase.EVAL)[index % 2]) for index in range(60)]
    recording = simulate(states, loop=loop(0.0, 0.4), seconds=100.0, phases=phases).recording()
    summary = summarize(recording, RESIDENT, EIGHT_CORES)
    assert summary.measured is Phase.TRAIN and summary.gpus[0].statistics["gpu_busy"].p5 == 98
    assert summary.phases[Phase.TRAIN] == pytest.approx(50) == summary.phases[Phase.EVAL]


@pytest.mark.parametrize(
    ("info", "part"),
    [
        (replace(HOST, amp=False), "--amp"),
        (replace(HOST, compiled=False), "--compile"),
        (HOST, "--profile"),
        (ANY_LOOP, "torch.autocast"),
    ],
)
def test_a_cpu_bound_run_has_advice_with_all_options(simulate, info, part):
    info = replace(info, on_gpu=False)
    recording = simulate(library=RecordedNvml(), host=StubHost(2.0, 2.0), loop=loop(0.0, None)).recording()
    advice = diagnose(summarize(recording, info, TWO_CORES), info).advice
    assert part in advice[0] and len(advice) == (1 if info.loader else 2)


def test_a_launch_bound_gpu_whose_host_is_starved_has_advice_on_other_programs(simulate):
    host = StubHost(0.3, 8.0, cpu_wait=0.9)
    summary = summarize(simulate(HALF_BUSY, host=host, loop=loop(0, 0)).recording(), HOST, EIGHT_CORES)
    assert "other programs" in " ".join(diagnose(summary, HOST).advice)
