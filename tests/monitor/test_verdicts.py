"""The table of verdicts: a series of states of a card, what the loop reported beside it, and what an expert
would say."""

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
IN_TURNS = replace(RESIDENT, at_once=4)


def busy(percent):
    return [BUSY[0].but(utilization=percent)]


class Case(NamedTuple):
    """cards: a series of states for each."""

    cards: tuple
    loop: dict | None
    verdict: Verdict
    why: str
    info: RunInfo = RESIDENT


CASES = [
    Case((STARVED,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA, "it has no batch for most of the time", DALI),
    Case((busy(40),), loop(0.15, 0.0), Verdict.WAITING_FOR_DATA,
         "a queue that is found empty has a producer that is too slow, however long the launches take", DALI),
    Case((HALF_BUSY,), loop(0.3, 0.6), Verdict.WAITING_FOR_DATA,
         "DALI hands batches over before they are decoded: the host waits for the device, and that for data"),
    Case((BUSY,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA,
         "decoding keeps the GPU busy while the step waits for it", DALI),
    Case((busy(97),), loop(0.0, 0.0), Verdict.LAUNCH_BOUND,
         "a host that never waits is the limit; to NVML a GPU that runs any kernel is busy"),
    Case((HALF_BUSY,), loop(0.01, 0.001), Verdict.LAUNCH_BOUND, "the GPU waits, the host does not", DALI),
    Case((busy(85),), loop(0.0, 0.95), Verdict.GPU_BOUND, "the host waits for nothing but the GPU"),
    Case((busy(98),), loop(0.001, 0.4), Verdict.GPU_BOUND, "the same, and no counters to say more"),
    Case((HALF_BUSY,), loop(0.001, 0.9), Verdict.GPU_BOUND,
         "still the host waits for the device; the pauses within its work are for the profile to explain"),
    Case((COMPUTE_BOUND,), loop(0.001, 0.4), Verdict.COMPUTE_BOUND, "tensor cores at 70 % of their peak"),
    Case((MEMORY_BOUND,), loop(0.001, 0.4), Verdict.MEMORY_BOUND, "DRAM at 75 % of its bandwidth"),
    Case((UNDERFILLED,), loop(0.001, 0.4), Verdict.GPU_BOUND, "no unit is near its peak"),
    Case((NO_TENSOR_CORES,), loop(0.001, 0.4), Verdict.GPU_BOUND, "SMs full of warps are not arithmetic"),
    Case((SPINNING,), loop(0.001, 0.4), Verdict.GPU_BOUND, "one rank: kernels that wait for memory latency"),
    Case((AT_POWER_LIMIT,), loop(0.0, 0.5), Verdict.GPU_BOUND, "the power limit at full load is normal"),
    Case((SPINNING, SPINNING), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "SM 97 %, tensor 2 %, DRAM 8 %: NCCL's kernels spin", TWO_RANKS),
    Case((BUSY, busy(60)), loop(0.001, 0.4), Verdict.WAITING_FOR_RANK,
         "the other rank is 38 points less busy: this one waits for it", TWO_RANKS),
    Case((BUSY, busy(90)), loop(0.001, 0.4), Verdict.GPU_BOUND, "8 points are no straggler", TWO_RANKS),
    Case((busy(60), BUSY), loop(0.5, 0.0), Verdict.WAITING_FOR_DATA,
         "this rank is itself the one that the others wait for", TWO_RANKS),
    Case((HALF_BUSY, HALF_BUSY), loop(0.0, 0.0), Verdict.LAUNCH_BOUND, "two launch-bound ranks", TWO_RANKS),
    Case((SLICE,), loop(0.9, 0.01), Verdict.WAITING_FOR_DATA, "before Hopper: the loop is enough"),
    Case((HOPPER_SLICE,), loop(0.0, 0.4), Verdict.COMPUTE_BOUND, "a slice has counters of its own"),
    Case((), loop(0.0, 0.4), Verdict.GPU_BOUND, "a GPU that NVML does not show"),
    Case((FALLS_OFF_THE_BUS,), loop(0.0, 0.4), Verdict.GPU_BOUND, "it was lost, and is judged until then"),
    Case((BUSY,), None, Verdict.GPU_BOUND, "runs in turns report no waits: GPU busy decides", IN_TURNS),
    Case((HALF_BUSY,), None, Verdict.UNKNOWN, "the same, and it says too little", IN_TURNS),
    Case((), None, Verdict.UNKNOWN, "nothing is known"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_verdict_is_an_experts(simulate, case):
    recording = simulate(library=machine_of(*case.cards), loop=case.loop).recording()
    summary = summarize(recording, case.info, Cores(8, 8, 8))
    assert diagnose(summary, case.info).verdict is case.verdict, case.why


TWO_CORES, SMT = Cores(2, 2, 2), Cores(4, 2, 2)


@pytest.mark.parametrize(
    ("cores", "cpu", "machine", "data", "verdict", "why"),
    [
        (TWO_CORES, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both cores are in use"),
        (SMT, 1.9, 2.0, 0.0, Verdict.CPU_BOUND, "both physical cores are: second threads add little"),
        (SMT, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "one of them is free"),
        (SMT, 0.9, 1.9, 0.0, Verdict.CPU_CONTENTION, "another program has the other one"),
        (TWO_CORES, 1.0, 1.1, 0.0, Verdict.CPU_IDLE, "a core is free"),
        (TWO_CORES, 0.0, 2.0, 0.0, Verdict.CPU_IDLE, "a program that sleeps misses none"),
        (Cores(64, 64, 64), 1.0, 9.0, 0.0, Verdict.CPU_IDLE, "others leave cores enough"),
        (TWO_CORES, 1.0, 1.1, 0.9, Verdict.WAITING_FOR_DATA, "most of the time"),
        (TWO_CORES, 1.0, 2.0, 0.2, Verdict.CPU_CONTENTION, "decoding shares the cores"),
        (TWO_CORES, None, None, 0.0, Verdict.UNKNOWN, "/proc shows nothing"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_cpu(simulate, cores, cpu, machine, data, verdict, why):
    info = replace(DALI, on_gpu=False)
    recording = simulate(
        library=RecordedNvml(), host=StubHost(cpu, machine), loop=loop(data, None)
    ).recording()
    diagnosis = diagnose(summarize(recording, info, cores), info)
    assert diagnosis.verdict is verdict, why
    assert ("--loader" in " ".join(diagnosis.advice)) is (data >= 0.1), "named whatever the verdict"


def test_what_is_read_within_a_second_after_a_change_of_phase_counts_for_neither(simulate):
    """Two seconds of training, two of evaluation, and so on; NVML's figures lag by half a second."""
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
