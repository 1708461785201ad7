"""Recordings through summary and diagnosis: figures, energy, and a verdict for each state of a GPU."""

import os
from dataclasses import replace

import pytest

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import Column, Gpu, GpuRecord, Metric, Phase, Recording, Span, Throttle
from fastae.monitor.summary import EnergySource, RunInfo, Verdict, summarize

from .conftest import StubHost
from .recorded_nvml import (
    AT_POWER_LIMIT,
    BUSY,
    COMPUTE_BOUND,
    FALLS_OFF_THE_BUS,
    HOPPER_SLICE,
    IDLE,
    LAUNCH_BOUND,
    MEMORY_BOUND,
    NOT_SUPPORTED,
    SLICE,
    STARVED,
    TOO_HOT,
    UNDERFILLED,
    RecordedNvml,
    machine_of,
)

DALI = RunInfo(loader="dali", compiled=False, amp=False, batch_size=64)
HOST = RunInfo(loader="host", compiled=True, amp=True, batch_size=64)
RESIDENT = RunInfo(loader="resident", compiled=True, amp=True, batch_size=64)

DEVICE_LIMITED = (1000, 1.0, 0.001, 0.4)
"""What a loop records in a second: images, seconds, those without a batch, those of waiting for the GPU."""
DATA_LIMITED = (1000, 1.0, 0.9, 0.01)
HOST_LIMITED = (1000, 1.0, 0.01, 0.001)
BOTH_LIMITED = (1000, 1.0, 0.2, 0.0)


@pytest.fixture
def judge(simulate):
    """Summary and diagnosis of a recording by `simulate`."""

    def run(states=(), info=DALI, cores=8.0, gpus=None, **options):
        summary = summarize(simulate(states, **options).recording(), cores, gpus)
        return summary, diagnose(summary, info)

    return run


@pytest.mark.parametrize(
    ("states", "loop", "verdict"),
    [
        (STARVED, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (LAUNCH_BOUND, HOST_LIMITED, Verdict.LAUNCH_BOUND),
        (BUSY, DEVICE_LIMITED, Verdict.GPU_BOUND),
        (COMPUTE_BOUND, DEVICE_LIMITED, Verdict.COMPUTE_BOUND),
        (MEMORY_BOUND, DEVICE_LIMITED, Verdict.MEMORY_BOUND),
        (UNDERFILLED, DEVICE_LIMITED, Verdict.GPU_BOUND),
        # Decoding keeps the GPU busy while the step waits for it.
        (BUSY, DATA_LIMITED, Verdict.GPU_BOUND),
        # Idle for 45 %: the larger part of that is the verdict.
        (LAUNCH_BOUND, BOTH_LIMITED, Verdict.LAUNCH_BOUND),
        (LAUNCH_BOUND, (1000, 1.0, 0.3, 0.0), Verdict.WAITING_FOR_DATA),
        # DALI hands batches over before they are decoded: the host waits for the device, and that for data.
        (LAUNCH_BOUND, (1000, 1.0, 0.3, 0.6), Verdict.WAITING_FOR_DATA),
        # The host waits for the device, and yet no kernel runs half of the time: something else synchronizes.
        (LAUNCH_BOUND, DEVICE_LIMITED, Verdict.UNKNOWN),
        # A slice before Hopper: only the loop's own clock is there.
        (SLICE, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (SLICE, HOST_LIMITED, Verdict.LAUNCH_BOUND),
        (SLICE, DEVICE_LIMITED, Verdict.GPU_BOUND),
        (HOPPER_SLICE, DEVICE_LIMITED, Verdict.COMPUTE_BOUND),
    ],
)
def test_verdicts_on_a_loop(judge, states, loop, verdict):
    _, diagnosis = judge(states, loop=loop)
    assert diagnosis.verdict is verdict and not diagnosis.is_guess and diagnosis.gpu == 0


@pytest.mark.parametrize(
    ("states", "cpu", "verdict", "is_guess"),
    [
        (IDLE, 1.0, Verdict.GPU_IDLE, False),
        (BUSY, 1.0, Verdict.GPU_BOUND, False),
        (MEMORY_BOUND, 1.0, Verdict.MEMORY_BOUND, False),
        (LAUNCH_BOUND, 1.0, Verdict.LAUNCH_BOUND, True),
        (LAUNCH_BOUND, 7.5, Verdict.WAITING_FOR_DATA, True),
        (LAUNCH_BOUND, None, Verdict.UNKNOWN, False),
        (SLICE, 1.0, Verdict.UNKNOWN, False),
        (HOPPER_SLICE, 1.0, Verdict.COMPUTE_BOUND, False),
    ],
)
def test_verdicts_on_a_program_that_does_not_report_its_waits(judge, states, cpu, verdict, is_guess):
    _, diagnosis = judge(states, info=None, host=StubHost(cpu))
    assert (diagnosis.verdict, diagnosis.is_guess) == (verdict, is_guess)


@pytest.mark.parametrize(
    ("cores", "cpu", "machine", "loop", "verdict"),
    [
        (2, 1.9, 2.0, HOST_LIMITED, Verdict.CPU_BOUND),
        (2, 1.0, 2.0, HOST_LIMITED, Verdict.CPU_CONTENTION),
        (2, 1.0, 1.1, HOST_LIMITED, Verdict.CPU_IDLE),
        (2, 0.0, 2.0, HOST_LIMITED, Verdict.CPU_IDLE),
        (2, 1.0, 1.1, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (2, 1.0, 2.0, BOTH_LIMITED, Verdict.CPU_CONTENTION),
        (2, None, None, HOST_LIMITED, Verdict.UNKNOWN),
        (64, 1.0, 9.0, HOST_LIMITED, Verdict.CPU_IDLE),
    ],
)
def test_verdicts_on_the_cpu(judge, monkeypatch, cores, cpu, machine, loop, verdict):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    host, info = StubHost(cpu, machine), replace(DALI, on_gpu=False)
    _, diagnosis = judge(library=RecordedNvml(), info=info, host=host, loop=loop, cores=cores)
    assert diagnosis.verdict is verdict
    # From 10 % of the time without a batch it is named, whatever the verdict.
    assert ("--loader" in " ".join(diagnosis.advice)) is (loop[2] >= 0.1)


@pytest.mark.parametrize(
    ("loop", "verdict"),
    [
        (DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (HOST_LIMITED, Verdict.LAUNCH_BOUND),
        (DEVICE_LIMITED, Verdict.GPU_BOUND),
        (None, Verdict.UNKNOWN),
    ],
)
def test_a_run_whose_gpu_nvml_does_not_show_is_judged_by_its_loop(judge, loop, verdict):
    _, diagnosis = judge(library=RecordedNvml(), loop=loop)
    assert diagnosis.verdict is verdict and diagnosis.gpu is None


@pytest.mark.parametrize(
    ("states", "loop", "info", "named"),
    [
        (STARVED, DATA_LIMITED, DALI, {"--loader"}),
        (LAUNCH_BOUND, DATA_LIMITED, DALI, {"--loader", "--threads"}),
        (LAUNCH_BOUND, DATA_LIMITED, HOST, {"--loader"}),
        (LAUNCH_BOUND, DATA_LIMITED, RESIDENT, {"--compile"}),
        (LAUNCH_BOUND, HOST_LIMITED, DALI, {"--compile", "--batch-size"}),
        (LAUNCH_BOUND, HOST_LIMITED, RESIDENT, {"--batch-size"}),
        (LAUNCH_BOUND, BOTH_LIMITED, DALI, {"--compile", "--batch-size", "--loader", "--threads"}),
        (BUSY, DEVICE_LIMITED, DALI, {"--amp", "--loader"}),
        (BUSY, DEVICE_LIMITED, RESIDENT, set()),
        (LAUNCH_BOUND, DEVICE_LIMITED, RESIDENT, {"--profile"}),
    ],
)
def test_advice_names_the_options_that_can_help(judge, states, loop, info, named):
    words = " ".join(judge(states, info, loop=loop)[1].advice).replace(":", "").split()
    assert {word for word in words if word.startswith("--")} == named


@pytest.mark.parametrize(
    ("states", "throttling", "advised"),
    [
        (AT_POWER_LIMIT, {Throttle.POWER_CAP: 0.9}, 0),  # normal at full load
        (TOO_HOT, {Throttle.HARDWARE_THERMAL: 0.25}, 1),
        ([BUSY[0].but(link=(5, 4))], {}, 1),
        ([BUSY[0].but(link=(1, 16))], {}, 0),  # the generation falls while nothing is transferred
    ],
)
def test_what_slows_the_card_itself(judge, states, throttling, advised):
    summary, diagnosis = judge(states, RESIDENT, loop=DEVICE_LIMITED)
    assert summary.gpus[0].throttling == pytest.approx(throttling) and len(diagnosis.advice) == advised


@pytest.mark.parametrize(("counter", "source"), [(None, "COUNTER"), (NOT_SUPPORTED, "POWER")])
def test_energy_by_the_counter_or_by_sampled_power(judge, counter, source):
    summary, _ = judge([BUSY[0].but(energy=counter)], loop=DEVICE_LIMITED)
    gpu = summary.gpus[0]
    assert gpu.energy_source is EnergySource[source] and gpu.watts == pytest.approx(600)
    assert summary.images_per_joule == pytest.approx(1000 / 600)
    assert summary.kwh == pytest.approx(600 * 30 / 3.6e6)


def test_all_gpus_of_a_job_are_summed(judge):
    library = machine_of(*7 * [BUSY], LAUNCH_BOUND)
    summary, diagnosis = judge(library=library, loop=DEVICE_LIMITED, gpus=8)
    assert len(summary.gpus) == 8 and diagnosis.gpu == 0
    assert diagnosis.verdict is Verdict.UNKNOWN and "GPU 7" in diagnosis.advice[0], "the others wait for it"
    assert summary.kwh == pytest.approx((7 * 600 + 200) * 30 / 3.6e6)
    assert summary.images_per_joule == pytest.approx(1000 / 4400)


@pytest.mark.parametrize(
    ("states", "gpus"), [((BUSY, BUSY), 4), ((BUSY, SLICE), 2), ((FALLS_OFF_THE_BUS,), 1)]
)
def test_energy_is_withheld_if_it_is_not_known_of_every_gpu(judge, states, gpus):
    summary, _ = judge(library=machine_of(*states), loop=DEVICE_LIMITED, gpus=gpus)
    assert summary.kwh is None and summary.images_per_joule is None


def test_a_gpu_that_is_lost_in_mid_run_is_still_judged(judge):
    summary, diagnosis = judge(FALLS_OFF_THE_BUS, loop=DEVICE_LIMITED)
    assert summary.gpus[0].record.lost and summary.gpus[0].mean("gpu_busy") == 98
    assert diagnosis.verdict is Verdict.GPU_BOUND


def test_the_busiest_gpu_of_a_program_is_judged(judge):
    assert judge(library=machine_of(IDLE, BUSY, IDLE), info=None)[1].gpu == 1


def by_hand(spans, **columns):
    """A recording of one sample a second: (phase, seconds) and the values of each column."""
    starts = [sum(length for _, length in spans[:place]) for place in range(len(spans))]
    made = {}
    for name, values in columns.items():
        made[name := name.replace("_", "/", 1)] = Column(Metric(name, "%"))
        for time, value in enumerate(values):
            made[name].add(time, value)
    spans_of = tuple(Span(phase, start) for (phase, _), start in zip(spans, starts, strict=True))
    gpus = (GpuRecord("gpu0", Gpu(0, "card")),)
    return Recording(float(sum(length for _, length in spans)), spans_of, made, gpus)


def test_only_training_is_measured_and_all_of_it_paid_for():
    spans = [(Phase.COMPILE, 10), (Phase.TRAIN, 20), (Phase.EVAL, 10), (Phase.TRAIN, 20)]
    is_training = [phase is Phase.TRAIN for phase, length in spans for _ in range(length)]
    recording = by_hand(
        spans,
        gpu0_counted_power=[500.0 if each else 100.0 for each in is_training],
        gpu0_gpu_busy=[95.0 * each for each in is_training],
        loop_images_per_second=[1000.0 if each else 5.0 for each in is_training],
        loop_data_wait=[5.0] * 60,
        loop_device_wait=[50.0] * 60,
        loop_seconds=[1.0] * 60,
    )
    summary = summarize(recording, 8.0)
    assert summary.measured is Phase.TRAIN
    assert summary.phases == {Phase.COMPILE: 10, Phase.TRAIN: 40, Phase.EVAL: 10}
    assert summary.gpus[0].statistics["gpu_busy"].above_90 == 1
    waits = (summary.images_per_second, summary.data_wait, summary.device_wait)
    assert waits == pytest.approx((1000, 0.05, 0.5))
    assert summary.images_per_joule == pytest.approx(2)
    assert summary.kwh == pytest.approx((40 * 500 + 20 * 100) / 3.6e6)


def test_the_loops_figures_are_means_over_the_time():
    rates = {"loop_images_per_second": [100.0, 300.0], "loop_seconds": [3.0, 1.0]}
    summary = summarize(
        by_hand([(Phase.TRAIN, 4)], loop_data_wait=[0, 0], loop_device_wait=[0, 0], **rates), 8.0
    )
    assert summary.images_per_second == pytest.approx(150)


def test_too_short_a_training_is_summed_up_whole():
    recording = by_hand([(Phase.COMPILE, 9), (Phase.TRAIN, 9)], gpu0_gpu_busy=[0.0] * 9 + [90.0] * 9)
    summary = summarize(recording, 8.0)
    assert summary.measured is None and summary.gpus[0].mean("gpu_busy") == 45
