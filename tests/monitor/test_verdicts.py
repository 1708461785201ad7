"""A table of verdicts: a card's states, the loop's figures, and the verdict that an expert would give."""

from dataclasses import replace
from typing import NamedTuple

import pynvml
import pytest

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo, Verdict, summarize
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

TWO_RANKS = replace(RESIDENT, ranks=2)


def busy(percent):
    return [BUSY[0].but(utilization=percent)]


class Case(NamedTuple):
    """A run, and its right verdict."""

    cards: tuple
    """A series of states for each card."""

    loop: dict | None
    verdict: Verdict
    why: str
    info: RunInfo = RESIDENT

    advice: tuple | None = None
    """A part of each line of advice; None to check only the verdict."""


CASES = [
    Case((STARVED,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA, "it mostly has no batch", DALI,
         ("--loader", "smaller JPEG")),
    Case((busy(40),), loop(0.15, 0.0), Verdict.WAITING_FOR_DATA,
         "if the queue is found empty, its producer is too slow, however long the launches take", DALI,
         ("--loader", "--threads")),
    Case((HALF_BUSY,), loop(0.3, 0.6), Verdict.WAITING_FOR_DATA,
         "DALI hands over undecoded batches: the host waits for the device, which waits for data", HOST,
         ("--loader",)),
    Case((HALF_BUSY,), loop(0.3, 0.6), Verdict.WAITING_FOR_DATA, "gathering and augmenting limit the speed",
         RESIDENT, ("--profile",)),
    Case((HALF_BUSY,), loop(0.3, 0.6), Verdict.WAITING_FOR_DATA, "the same, not compiled",
         replace(RESIDENT, compiled=False), ("--compile",)),
    Case((BUSY,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA,
         "decoding keeps the GPU busy while the step waits for it", DALI),
    Case((busy(97),), loop(0.0, 0.0), Verdict.LAUNCH_BOUND,
         "a host that never waits is the limit; to NVML a GPU that runs any kernel is busy",
         RESIDENT, ("CUDA graph", "--batch-size")),
    Case((HALF_BUSY,), loop(0.01, 0.001), Verdict.LAUNCH_BOUND, "the GPU waits, but the host does not", DALI,
         ("--compile", "CUDA graph", "--batch-size")),
    Case((busy(85),), loop(0.0, 0.95), Verdict.GPU_BOUND, "the host waits only for the GPU"),
    Case((busy(98),), loop(0.001, 0.4), Verdict.GPU_BOUND, "the same, without counters to refine it",
         RESIDENT, ()),
    Case((BUSY,), loop(0.0, 0.4), Verdict.GPU_BOUND, "decoding shares a GPU without AMP", DALI,
         ("--amp", "--loader")),
    Case((COMPUTE_BOUND,), loop(0.001, 0.4), Verdict.COMPUTE_BOUND, "tensor cores at 70 % of their peak"),
    Case((MEMORY_BOUND,), loop(0.001, 0.4), Verdict.MEMORY_BOUND, "DRAM at 75 % of its bandwidth"),
    Case((UNDERFILLED,), loop(0.001, 0.4), Verdict.GPU_BOUND, "no unit is near its peak", RESIDENT,
         ("--batch-size",)),
    Case((NO_TENSOR_CORES,), loop(0.001, 0.4), Verdict.GPU_BOUND, "SMs full of warps need not compute",
         RESIDENT, ("--profile",)),
    Case((LATENCY_BOUND,), loop(0.001, 0.4), Verdict.GPU_BOUND, "kernels that wait for the memory's latency"),
    Case((LATENCY_BOUND, LATENCY_BOUND), loop(0.001, 0.4), Verdict.GPU_BOUND,
         "the same with two ranks: NCCL's kernels occupy few SMs", TWO_RANKS),
    Case((BUSY, busy(60)), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "the other rank is 38 points less busy: this one waits for it", TWO_RANKS),
    Case((BUSY, busy(90)), loop(0.001, 0.4), Verdict.GPU_BOUND, "8 points less is normal", TWO_RANKS),
    Case((busy(60), BUSY), loop(0.5, 0.0), Verdict.WAITING_FOR_DATA,
         "the other ranks wait for this rank", TWO_RANKS),
    Case((HALF_BUSY, HALF_BUSY), loop(0.0, 0.0), Verdict.LAUNCH_BOUND, "two launch-bound ranks", TWO_RANKS),
    Case((SLICE,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA, "before Hopper, the loop's figures suffice"),
    Case((HOPPER_SLICE,), loop(0.0, 0.4), Verdict.COMPUTE_BOUND, "a slice has counters of its own"),
    Case((), loop(0.0, 0.4), Verdict.GPU_BOUND, "a GPU that NVML does not show"),
    Case((FALLS_OFF_THE_BUS,), loop(0.0, 0.4), Verdict.GPU_BOUND, "lost later; its earlier figures count"),
    Case((BUSY,), None, Verdict.GPU_BOUND, "a loop without waits: GPU busy decides"),
    Case((HALF_BUSY,), None, Verdict.UNKNOWN, "the same, but GPU busy is too low to decide"),
    Case((), None, Verdict.UNKNOWN, "nothing is known"),
    Case((BUSY,), loop(0.001, None), Verdict.GPU_BOUND, "a loop that measures only its wait for data"),
    Case((BUSY,), loop(0.3, None), Verdict.WAITING_FOR_DATA, "the same, with too slow a loader"),
    Case((BUSY, [BUSY[0].but(power=250_000)]), loop(0.001, 0.4), Verdict.GPU_BOUND,
         "without GPM, the other rank draws less power: it waits for this one", TWO_RANKS),
    Case(([BUSY[0].but(power=250_000)], BUSY), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "without GPM, the other rank draws more power: this one waits for it", TWO_RANKS),
    Case(([BUSY[0].but(utilization=85, gpm=gpm(70.0, 54.0, 5.0, 20.0))],), loop(0.001, 0.4),
         Verdict.COMPUTE_BOUND, "tensor cores at 54 % in 85 % of the time: 64 % while the GPU is busy"),
]  # fmt: skip

MODEL = gpm(88.0, 25.0, 5.0, 50.0)
TRAINS = BUSY[0].but(utilization=99, gpm=MODEL)
NCCL = BUSY[0].but(utilization=100, gpm=gpm(20.0, 2.5, 1.0, 6.0))

CAP, HEAT = pynvml.nvmlClocksEventReasonSwPowerCap, pynvml.nvmlClocksEventReasonSwThermalSlowdown
T4 = Card([State(99, power=70_000, sm_clock=900, reasons=CAP)], name="Tesla T4",
          power_limit=70_000, default_power_limit=70_000, max_sm_clock=1590)  # fmt: skip
A100 = Card([State(99, power=150_000, sm_clock=800, reasons=CAP)], name="NVIDIA A100 80GB PCIe",
            power_limit=150_000, default_power_limit=250_000, max_sm_clock=1410)  # fmt: skip
A10G = Card([State(99, power=60_000, sm_clock=210, reasons=0)], name="NVIDIA A10G",
            power_limit=300_000, default_power_limit=300_000, max_sm_clock=1710)  # fmt: skip
CASES += [
    Case(([TRAINS],), loop(0.001, 0.4), Verdict.UNITS_IN_TURNS,
         "this model on an H100, as benchmarks/roofline.py predicts", RESIDENT, ("--profile",)),
    Case(([TRAINS.but(gpm=gpm(59.0, 16.0, 3.0, 32.0))], [TRAINS.but(utilization=98, reasons=HEAT)]),
         loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "40 % of the time in NCCL (15 % of the SMs: nccl issue 1432): the other is hot", TWO_RANKS,
         ("GPU 1", "GPU 1: improve the cooling")),
    Case(([NCCL], [NCCL]), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "both only wait (nccl issues 689 and 1432)", TWO_RANKS, ("links",)),
    Case((T4,), loop(0.0, 0.5), Verdict.GPU_BOUND, "a T4 at its 70 W (datasheet)", RESIDENT, ()),
    Case((A100,), loop(0.0, 0.5), Verdict.GPU_BOUND, "limited to 150 of 250 W by nvidia-smi -pl", RESIDENT,
         ("nvidia-smi -pl 250",)),
    Case((A10G,), loop(0.0, 0.5), Verdict.GPU_BOUND, "locked at 210 MHz by nvidia-smi -lgc", RESIDENT,
         ("nvidia-smi -rgc",)),
    Case(([BUSY[0].but(processes=(OUR_PID, 17, 18))],), loop(0.0, 0.5), Verdict.GPU_CONTENTION,
         "two other programs in NVML's list of processes", RESIDENT, ("other programs",)),
    Case(([BUSY[0].but(processes=(OUR_PID, 17), process_times={OUR_PID: 97, 17: 1})],), loop(0.0, 0.5),
         Verdict.GPU_BOUND, "a notebook that holds memory, but runs nothing", RESIDENT, ()),
    Case(([BUSY[0].but(processes=(OUR_PID, 17), process_times={OUR_PID: 60, 17: 38})],), loop(0.0, 0.5),
         Verdict.GPU_CONTENTION, "another program's kernels take 38 % of the time", RESIDENT,
         ("other programs",)),
    Case(([BUSY[0].but(width=8)],), loop(0.0, 0.5), Verdict.GPU_BOUND,
         "a virtual machine that shows 8 of 16 lanes", RESIDENT, ()),
    Case(([UNDERFILLED[0].but(jpeg=99)],), loop(0.09, 0.5), Verdict.GPU_BOUND,
         "the JPEG engine at 99 % (DALI issue 5362)", replace(RESIDENT, loader="dali"),
         ("JPEG engine", "--batch-size")),
    Case(([AT_POWER_LIMIT[0].but(gpm=gpm(85.0, 55.0, 5.0, 30.0))],), loop(0.0, 0.5), Verdict.GPU_BOUND,
         "a large language model, well written", RESIDENT, ("nothing to fix",)),
    Case((busy(65),), loop(0.0, 0.6), Verdict.GPU_BOUND, "pauses between kernels, while the host waits",
         RESIDENT, ("--profile",)),
    Case((busy(65),), loop(0.0, 0.0), Verdict.LAUNCH_BOUND, "not compiled, and the host never waits",
         replace(RESIDENT, compiled=False), ("--compile", "CUDA graph", "--batch-size")),
]  # fmt: skip
"""In the last list, the counters in a row's text are from the source that it names.

Waits, and figures that the source does not give, are made up: the SM activity of a GPU that waits in NCCL for
40 % of the time is that of the model for 60 % and 15 % for the rest.
"""


def watched(data, queued):
    """Returns what `fastae.watch` records. It does not know how long the loop waits for the device."""
    return loop(data, None, queued=queued)


CASES += [
    Case((busy(40),), watched(0.5, 0.0), Verdict.WAITING_FOR_DATA, "a DataLoader that decodes alone",
         ANY_LOOP, ("num_workers",)),
    Case((busy(97),), watched(0.0, 1.0), Verdict.GPU_BOUND, "resident images, losses read rarely", ANY_LOOP,
         ("torch.autocast",)),
    Case((busy(55),), watched(0.01, 0.0), Verdict.LAUNCH_BOUND,
         "item() in each step of small kernels: the GPU is idle whenever the loop fetches", ANY_LOOP,
         ("torch.compile", "item()", "larger batch")),
    Case(([BUSY[0].but(power=200_000)],), watched(0.01, 0.0), Verdict.LAUNCH_BOUND,
         "the same: to NVML a GPU that runs any kernel is busy, but it draws little power", ANY_LOOP),
    Case((busy(95),), watched(0.01, 0.0), Verdict.GPU_BOUND, "item() after a large step matters little",
         ANY_LOOP),
    Case((SLICE,), watched(0.01, 1.0), Verdict.GPU_BOUND, "a MIG slice: the host is always ahead", ANY_LOOP),
    Case((busy(65),), watched(0.01, 0.5), Verdict.UNKNOWN, "the host is sometimes ahead", ANY_LOOP,
         ("torch.profiler",)),
    Case((busy(65),), watched(0.01, 1.0), Verdict.GPU_BOUND, "the host is ahead of a GPU that pauses",
         ANY_LOOP, ("torch.autocast", "torch.profiler")),
    Case(([AT_POWER_LIMIT[0].but(gpm=gpm(85.0, 55.0, 5.0, 30.0))],), watched(0.0, 1.0),
         Verdict.GPU_BOUND, "a large language model in a loop of its own", ANY_LOOP, ("nothing to fix",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_verdict_is_the_one_that_an_expert_would_give(simulate, case):
    recording = simulate(library=machine_of(*case.cards), loop=case.loop).recording()
    summary = summarize(recording, case.info, Cores(8, 8, 8))
    diagnosis = diagnose(summary, case.info)
    assert diagnosis.verdict is case.verdict
    if case.advice is not None:
        assert len(diagnosis.advice) == len(case.advice)
        assert all(part in line for part, line in zip(case.advice, diagnosis.advice, strict=True))
    assert all("changes the experiment" in line for line in diagnosis.advice if "--batch-size" in line)
    assert case.info.loader or "--" not in " ".join(diagnosis.advice), "fastae's options are unknown there"


TWO_CORES, SMT = Cores(2, 2, 2), Cores(4, 2, 2)
FEW_OF_MANY = Cores(2, 2, 64)


@pytest.mark.parametrize(
    ("cores", "cpu", "machine", "data", "verdict", "why", "waits"),
    [
        (TWO_CORES, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both cores are in use", {}),
        (SMT, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both cores are in use: second threads add little", {}),
        (SMT, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "a physical core is free", {}),
        (SMT, 0.9, 1.9, 0.0, Verdict.CPU_CONTENTION, "another program uses the other core", 
         {"cpu_wait": 0.4}),
        (TWO_CORES, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "a core is free", {}),
        (TWO_CORES, 0.0, 2.0, 0.0, Verdict.CPU_IDLE, "a run that sleeps does not need a core", {}),
        (Cores(64, 64, 64), 1.0, 9.0, 0.0, Verdict.CPU_IDLE, "other programs leave enough cores", {}),
        (TWO_CORES, 1.0, 1.1, 0.9, Verdict.WAITING_FOR_DATA, "the run waits for data most of the time", {}),
        (TWO_CORES, 1.0, 2.0, 0.2, Verdict.CPU_CONTENTION, "decoding shares the cores", {"cpu_wait": 0.5}),
        (TWO_CORES, None, None, 0.0, Verdict.UNKNOWN, "too short for figures of the host", {}),
        (TWO_CORES, 1.4, 1.5, 0.0, Verdict.CPU_MOSTLY_BUSY, "neither clearly idle nor clearly the limit", {}),
        (TWO_CORES, 0.07, 2.0, 0.0, Verdict.CPU_CONTENTION,
         "one busy thread beside four busy programs of a higher priority (measured)",
         {"cpu_wait": 0.92, "cpu_pressure": 73}),
        (TWO_CORES, 0.0, 2.0, 0.0, Verdict.CPU_IDLE, "it sleeps while others compete for the cores",
         {"cpu_wait": 0.0, "cpu_pressure": 73}),
        (TWO_CORES, 1.4, 1.6, 0.0, Verdict.CPU_MOSTLY_BUSY, "it competes only with its own threads",
         {"cpu_wait": 3.0}),
        (FEW_OF_MANY, 0.5, 9.0, 0.0, Verdict.CPU_CONTENTION, "its two cores are shared, and others are free",
         {"cpu_wait": 0.8}),
        (FEW_OF_MANY, 0.5, 9.0, 0.0, Verdict.CPU_CONTENTION, "the same, if the kernel has only the pressure",
         {"cpu_pressure": 60}),
        (TWO_CORES, 1.0, 1.9, 0.0, Verdict.CPU_IDLE, "full, but nothing waits", {"cpu_pressure": 3}),
    ],
)  # fmt: skip
def test_the_verdict_on_a_cpu(simulate, cores, cpu, machine, data, verdict, why, waits):
    info = replace(DALI, on_gpu=False)
    recording = simulate(
        library=RecordedNvml(), host=StubHost(cpu, machine, **waits), loop=loop(data, None)
    ).recording()
    diagnosis = diagnose(summarize(recording, info, cores), info)
    assert diagnosis.verdict is verdict, why
    assert ("--loader" in " ".join(diagnosis.advice)) is (data >= 0.1), "it is named with any verdict"


def test_samples_within_a_second_after_a_change_of_phase_are_not_used(simulate):
    """Training and evaluation alternate every two seconds. NVML's figures lag by half a second."""
    states = [
        each for _ in range(60) for each in (*busy(20) * 1, *busy(98) * 3, *busy(98) * 1, *busy(20) * 3)
    ]
    phases = [(2 * index, (Phase.TRAIN, Phase.EVAL)[index % 2]) for index in range(60)]
    recording = simulate(states, loop=loop(0.0, 0.4), seconds=100.0, phases=phases).recording()
    summary = summarize(recording, RESIDENT, Cores(8, 8, 8))
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
    summary = summarize(simulate(HALF_BUSY, host=host, loop=loop(0, 0)).recording(), HOST, Cores(8, 8, 8))
    assert "other programs" in " ".join(diagnose(summary, HOST).advice)
