"""A table of verdicts: a card's states, the loop's figures, and the verdict that an expert would give."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo, Verdict, summarize
from fastae.utils.limits import Cores

from .conftest import DALI, HOST, RESIDENT, StubHost, loop
from .recorded_nvml import (
    AT_POWER_LIMIT,
    BUSY,
    COMPUTE_BOUND,
    FALLS_OFF_THE_BUS,
    HALF_BUSY,
    HOPPER_SLICE,
    MEMORY_BOUND,
    NO_TENSOR_CORES,
    SLICE,
    SPINNING,
    STARVED,
    UNDERFILLED,
    RecordedNvml,
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


CASES = [
    Case((STARVED,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA, "it mostly has no batch", DALI),
    Case((busy(40),), loop(0.15, 0.0), Verdict.WAITING_FOR_DATA,
         "if the queue is found empty, its producer is too slow, however long the launches take", DALI),
    Case((HALF_BUSY,), loop(0.3, 0.6), Verdict.WAITING_FOR_DATA,
         "DALI hands over undecoded batches: the host waits for the device, which waits for data"),
    Case((BUSY,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA,
         "decoding keeps the GPU busy while the step waits for it", DALI),
    Case((busy(97),), loop(0.0, 0.0), Verdict.LAUNCH_BOUND,
         "a host that never waits is the limit; to NVML a GPU that runs any kernel is busy"),
    Case((HALF_BUSY,), loop(0.01, 0.001), Verdict.LAUNCH_BOUND, "the GPU waits, but the host does not", DALI),
    Case((busy(85),), loop(0.0, 0.95), Verdict.GPU_BOUND, "the host waits only for the GPU"),
    Case((busy(98),), loop(0.001, 0.4), Verdict.GPU_BOUND, "the same, without counters to refine it"),
    Case((HALF_BUSY,), loop(0.001, 0.9), Verdict.GPU_BOUND,
         "the host still waits for the device; a profile can explain the pauses of the GPU"),
    Case((COMPUTE_BOUND,), loop(0.001, 0.4), Verdict.COMPUTE_BOUND, "tensor cores at 70 % of their peak"),
    Case((MEMORY_BOUND,), loop(0.001, 0.4), Verdict.MEMORY_BOUND, "DRAM at 75 % of its bandwidth"),
    Case((UNDERFILLED,), loop(0.001, 0.4), Verdict.GPU_BOUND, "no unit is near its peak"),
    Case((NO_TENSOR_CORES,), loop(0.001, 0.4), Verdict.GPU_BOUND, "SMs full of warps need not compute"),
    Case((SPINNING,), loop(0.001, 0.4), Verdict.GPU_BOUND, "one rank: kernels that wait for memory latency"),
    Case((AT_POWER_LIMIT,), loop(0.0, 0.5), Verdict.GPU_BOUND, "the power limit at full load is normal"),
    Case((SPINNING, SPINNING), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "SM 97 %, tensor 2 %, DRAM 8 %: NCCL's kernels spin", TWO_RANKS),
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
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_verdict_is_the_one_that_an_expert_would_give(simulate, case):
    recording = simulate(library=machine_of(*case.cards), loop=case.loop).recording()
    summary = summarize(recording, case.info, Cores(8, 8, 8))
    assert diagnose(summary, case.info).verdict is case.verdict, case.why


TWO_CORES, SMT = Cores(2, 2, 2), Cores(4, 2, 2)


@pytest.mark.parametrize(
    ("cores", "cpu", "machine", "data", "verdict", "why"),
    [
        (TWO_CORES, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both cores are in use"),
        (SMT, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both physical cores are in use: second threads add little"),
        (SMT, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "a physical core is free"),
        (SMT, 0.9, 1.9, 0.0, Verdict.CPU_CONTENTION, "another program uses the other core"),
        (TWO_CORES, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "a core is free"),
        (TWO_CORES, 0.0, 2.0, 0.0, Verdict.CPU_IDLE, "a run that sleeps does not need a core"),
        (Cores(64, 64, 64), 1.0, 9.0, 0.0, Verdict.CPU_IDLE, "other programs leave enough cores"),
        (TWO_CORES, 1.0, 1.1, 0.9, Verdict.WAITING_FOR_DATA, "the run waits for data most of the time"),
        (TWO_CORES, 1.0, 2.0, 0.2, Verdict.CPU_CONTENTION, "decoding shares the cores"),
        (TWO_CORES, None, None, 0.0, Verdict.UNKNOWN, "the recording is too short for figures of the host"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_cpu(simulate, cores, cpu, machine, data, verdict, why):
    info = replace(DALI, on_gpu=False)
    recording = simulate(
        library=RecordedNvml(), host=StubHost(cpu, machine), loop=loop(data, None)
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
    ("states", "waits", "info", "named"),
    [
        (STARVED, (0.9, 0.0), DALI, {"--loader"}),
        (HALF_BUSY, (0.9, 0.0), DALI, {"--loader", "--threads"}),
        (HALF_BUSY, (0.9, 0.0), HOST, {"--loader"}),
        (HALF_BUSY, (0.9, 0.0), RESIDENT, {"--profile"}),
        (HALF_BUSY, (0.9, 0.0), replace(RESIDENT, compiled=False), {"--compile"}),
        (HALF_BUSY, (0.0, 0.0), DALI, {"--compile", "--batch-size"}),
        (HALF_BUSY, (0.0, 0.0), RESIDENT, {"--batch-size"}),
        (BUSY, (0.0, 0.4), DALI, {"--amp", "--loader"}),
        (BUSY, (0.0, 0.4), RESIDENT, set()),
        (UNDERFILLED, (0.0, 0.4), RESIDENT, {"--batch-size"}),
        (NO_TENSOR_CORES, (0.0, 0.4), RESIDENT, {"--profile", "--amp"}),
        (HALF_BUSY, (0.0, 0.9), RESIDENT, {"--profile"}),
    ],
)
def test_advice_names_the_options_that_can_help(simulate, states, waits, info, named):
    summary = summarize(simulate(states, loop=loop(*waits)).recording(), info, Cores(8, 8, 8))
    advice = diagnose(summary, info).advice
    assert {word.strip(":") for word in " ".join(advice).split() if word.startswith("--")} == named
    assert all("changes the experiment" in line for line in advice if "--batch-size" in line)
