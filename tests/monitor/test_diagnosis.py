"""Recordings through summary and diagnosis: figures, energy, and a verdict for each state of a GPU."""

import math
import os

import pynvml
import pytest

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import (
    Column,
    Gpu,
    GpuRecord,
    LoopTotals,
    Metric,
    Phase,
    Recording,
    Span,
    Throttle,
)
from fastae.monitor.summary import EnergySource, RunInfo, Verdict, summarize

from .conftest import OUR_PID
from .recorded_nvml import (
    AT_POWER_LIMIT,
    BUSY,
    COMPUTE_BOUND,
    FALLS_OFF_THE_BUS,
    GIB,
    HOPPER_SLICE,
    IDLE,
    LAUNCH_BOUND,
    MEMORY_BOUND,
    NOT_SUPPORTED,
    SLICE,
    STARVED,
    TOO_HOT,
    UNDERFILLED,
    Card,
    RecordedNvml,
)

DALI = RunInfo(loader="dali", compiled=False, amp=False, batch_size=64)
RESIDENT = RunInfo(loader="resident", compiled=True, amp=True, batch_size=64)

DEVICE_LIMITED = (1000, 1.0, 0.001, 0.4)
"""What a loop records in a second: images, seconds, waits for data and for the device."""
DATA_LIMITED = (1000, 1.0, 0.9, 0.01)
HOST_LIMITED = (1000, 1.0, 0.01, 0.001)


def judged(recording, info=DALI, cores=8.0, gpus=None):
    summary = summarize(recording, cores, gpus)
    return summary, diagnose(summary, info)


@pytest.mark.parametrize(
    ("states", "loop", "verdict"),
    [
        (STARVED, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (LAUNCH_BOUND, HOST_LIMITED, Verdict.LAUNCH_BOUND),
        (BUSY, DEVICE_LIMITED, Verdict.GPU_BOUND),
        (COMPUTE_BOUND, DEVICE_LIMITED, Verdict.COMPUTE_BOUND),
        (MEMORY_BOUND, DEVICE_LIMITED, Verdict.MEMORY_BOUND),
        (UNDERFILLED, DEVICE_LIMITED, Verdict.GPU_BOUND),
        # The host is two batches ahead, so that next() waits for the GPU: the GPU is the limit all the same.
        (BUSY, (1000, 1.0, 0.9, 0.01), Verdict.GPU_BOUND),
        # Waiting for data and launching both take time: the larger part is the verdict.
        (LAUNCH_BOUND, (1000, 1.0, 0.3, 0.0), Verdict.LAUNCH_BOUND),
        (LAUNCH_BOUND, (1000, 1.0, 0.6, 0.0), Verdict.WAITING_FOR_DATA),
        # The host waits for the device, and yet no kernel runs half of the time: something else synchronizes.
        (LAUNCH_BOUND, DEVICE_LIMITED, Verdict.UNKNOWN),
        # A slice before Hopper: only the loop's own clock is there.
        (SLICE, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (SLICE, HOST_LIMITED, Verdict.LAUNCH_BOUND),
        (SLICE, DEVICE_LIMITED, Verdict.GPU_BOUND),
        (HOPPER_SLICE, DEVICE_LIMITED, Verdict.COMPUTE_BOUND),
    ],
)
def test_verdicts_on_a_loop(simulate, states, loop, verdict):
    _, diagnosis = judged(simulate(states, loop=loop))
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
def test_verdicts_on_a_program_that_tells_nothing(simulate, states, cpu, verdict, is_guess):
    _, diagnosis = judged(simulate(states, cpu=cpu), info=None)
    assert (diagnosis.verdict, diagnosis.is_guess) == (verdict, is_guess)


def options(diagnosis):
    """The options that the advice names."""
    return {
        word.strip(":") for advice in diagnosis.advice for word in advice.split() if word.startswith("--")
    }


@pytest.mark.parametrize(
    ("states", "loop", "info", "named"),
    [
        (STARVED, DATA_LIMITED, DALI, {"--loader"}),
        (LAUNCH_BOUND, DATA_LIMITED, DALI, {"--loader", "--threads"}),
        (LAUNCH_BOUND, DATA_LIMITED, RESIDENT, {"--compile"}),
        (LAUNCH_BOUND, HOST_LIMITED, DALI, {"--compile", "--batch-size"}),
        (LAUNCH_BOUND, HOST_LIMITED, RESIDENT, {"--batch-size"}),
        (LAUNCH_BOUND, (1000, 1.0, 0.3, 0.0), DALI, {"--compile", "--batch-size", "--loader", "--threads"}),
        (BUSY, DEVICE_LIMITED, DALI, {"--amp", "--loader"}),
        (BUSY, DEVICE_LIMITED, RESIDENT, set()),
        (LAUNCH_BOUND, DEVICE_LIMITED, RESIDENT, {"--profile"}),
    ],
)
def test_advice_names_the_options_that_can_help(simulate, states, loop, info, named):
    assert options(judged(simulate(states, loop=loop), info)[1]) == named


def test_the_power_cap_at_full_load_is_no_advice_and_heat_is(simulate):
    summary, normal = judged(simulate(AT_POWER_LIMIT, loop=DEVICE_LIMITED), RESIDENT)
    assert summary.gpus[0].throttling == {Throttle.POWER_CAP: pytest.approx(0.9)} and normal.advice == ()
    summary, hot = judged(simulate(TOO_HOT, loop=DEVICE_LIMITED), RESIDENT)
    assert summary.gpus[0].throttling == {Throttle.HARDWARE_THERMAL: pytest.approx(0.25)}
    assert len(hot.advice) == 1


def test_throttling_is_sampled_where_the_driver_does_not_count_it(simulate):
    states = [BUSY[0].but(throttled=NOT_SUPPORTED), AT_POWER_LIMIT[0].but(throttled=NOT_SUPPORTED)] * 200
    summary, _ = judged(simulate(states, loop=DEVICE_LIMITED))
    assert summary.gpus[0].throttling == {Throttle.POWER_CAP: pytest.approx(0.5, abs=0.01)}


def test_fewer_pcie_lanes_than_the_card_has(simulate):
    _, diagnosis = judged(simulate([BUSY[0].but(link=(5, 4))], loop=DEVICE_LIMITED), RESIDENT)
    assert len(diagnosis.advice) == 1
    # The generation falls while nothing is transferred: that is no fault.
    assert judged(simulate([BUSY[0].but(link=(1, 16))], loop=DEVICE_LIMITED), RESIDENT)[1].advice == ()


def test_energy_by_the_counter_and_images_per_joule(simulate):
    summary, _ = judged(simulate(BUSY, loop=DEVICE_LIMITED))
    gpu = summary.gpus[0]
    assert gpu.energy_source is EnergySource.COUNTER and gpu.watts == pytest.approx(600)
    assert summary.images_per_joule == pytest.approx(1000 / 600)
    assert summary.kwh == pytest.approx(600 * 30 / 3.6e6)


def test_energy_by_sampled_power(simulate):
    summary, _ = judged(simulate([BUSY[0].but(energy=NOT_SUPPORTED)], loop=DEVICE_LIMITED))
    assert summary.gpus[0].energy_source is EnergySource.POWER
    assert summary.kwh == pytest.approx(600 * 30 / 3.6e6)


def eight_cards(*states):
    return RecordedNvml(*(Card(list(each), uuid=f"GPU-{n}", index=n) for n, each in enumerate(states)))


def test_all_gpus_of_a_job_are_summed(simulate):
    recording = simulate(library=eight_cards(*7 * [BUSY], LAUNCH_BOUND), loop=DEVICE_LIMITED)
    summary, diagnosis = judged(recording, gpus=8)
    assert len(summary.gpus) == 8 and diagnosis.gpu == 0
    assert summary.kwh == pytest.approx((7 * 600 + 200) * 30 / 3.6e6)
    assert summary.images_per_joule == pytest.approx(1000 / 4400)


def test_energy_is_withheld_where_a_gpu_is_missing(simulate):
    recording = simulate(library=eight_cards(BUSY, BUSY), loop=DEVICE_LIMITED)
    assert judged(recording, gpus=4)[0].kwh is None is judged(recording, gpus=4)[0].images_per_joule
    without = simulate(library=eight_cards(BUSY, SLICE), loop=DEVICE_LIMITED)
    assert judged(without, gpus=2)[0].kwh is None


def test_the_busiest_gpu_of_a_program_is_judged_unless_it_is_not_known_whose_it_is(simulate):
    recording = simulate(library=eight_cards(IDLE, BUSY, IDLE))
    assert judged(recording, info=None)[1].gpu == 1
    unknown = diagnose(summarize(recording, 8.0), judge=False)
    assert unknown.verdict is Verdict.UNKNOWN and unknown.gpu is None


def test_a_gpu_that_is_lost_in_mid_run(simulate):
    summary, diagnosis = judged(simulate(FALLS_OFF_THE_BUS, loop=DEVICE_LIMITED))
    assert summary.gpus[0].record.lost and summary.gpus[0].mean("gpu_busy") == 98
    assert diagnosis.verdict is Verdict.GPU_BOUND and summary.kwh is None


def test_other_programs_on_the_gpu(simulate):
    state = BUSY[0].but(processes=((OUR_PID, GIB), (17, 20 * GIB)))
    summary, _ = judged(simulate([state], loop=DEVICE_LIMITED))
    record = summary.gpus[0].record
    assert (record.ours, record.other_processes, record.other_gib) == (True, 1, 20.0)
    assert summary.gpus[0].mean("process_memory") == 1.0


@pytest.mark.parametrize(
    ("cpu", "machine", "loop", "verdict"),
    [
        (1.9, 2.0, HOST_LIMITED, Verdict.CPU_BOUND),
        (1.0, 2.0, HOST_LIMITED, Verdict.CPU_CONTENTION),
        (1.0, 1.1, HOST_LIMITED, Verdict.CPU_IDLE),
        (0.0, 2.0, HOST_LIMITED, Verdict.CPU_IDLE),
        (1.0, 1.1, DATA_LIMITED, Verdict.WAITING_FOR_DATA),
        (None, None, HOST_LIMITED, Verdict.UNKNOWN),
    ],
)
def test_verdicts_on_the_cpu(simulate, monkeypatch, cpu, machine, loop, verdict):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    recording = simulate(library=RecordedNvml(), cpu=cpu, machine=machine, loop=loop)
    assert judged(recording, cores=2.0)[1].verdict is verdict


def test_others_on_a_large_machine_are_no_contention(simulate, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    recording = simulate(library=RecordedNvml(), cpu=1.0, machine=9.0, loop=HOST_LIMITED)
    assert judged(recording, cores=64.0)[1].verdict is Verdict.CPU_IDLE


def by_hand(spans, columns, loop=None):
    """A recording of one sample a second: (phase, seconds) and the values of each column."""
    seconds = sum(length for _, length in spans)
    places = [place for place, (_, length) in enumerate(spans) for _ in range(length)]
    made = {}
    for name in ("gpu0/gpu_busy", "gpu0/power", "gpu0/energy", "gpu0/throttle_reasons"):
        made[name] = Column(Metric(name[5:], name, "%" if name.endswith("busy") else ""))
        for time, (place, value) in enumerate(zip(places, columns.get(name, ()), strict=False)):
            if not math.isnan(value):
                made[name].add(time, place, value)
    begins = [sum(length for _, length in spans[:place]) for place in range(len(spans))]
    return Recording(
        seconds, tuple(Span(phase, begin) for (phase, _), begin in zip(spans, begins, strict=True)), made,
        loop or {}, (GpuRecord("gpu0", Gpu(0, "card")),),
    )  # fmt: skip


TRAIN, EVAL, COMPILE = Phase.TRAIN, Phase.EVAL, Phase.COMPILE
SPANS = [(COMPILE, 10), (TRAIN, 20), (EVAL, 10), (TRAIN, 20)]


def test_only_training_is_measured_and_all_of_it_paid_for():
    watts = [100.0] * 10 + [500.0] * 20 + [100.0] * 10 + [500.0] * 20
    joules = [sum(watts[:second]) for second in range(60)]
    summary = summarize(
        by_hand(
            SPANS,
            {"gpu0/energy": joules, "gpu0/power": watts, "gpu0/gpu_busy": [95.0 * (w > 400) for w in watts]},
            {COMPILE: LoopTotals(64, 10.0), TRAIN: LoopTotals(40_000, 40.0, 2.0, 20.0)},
        ),
        8.0,
    )
    assert summary.measured is TRAIN and summary.phases == {COMPILE: 10, TRAIN: 40, EVAL: 10}
    assert summary.gpus[0].statistics["gpu_busy"].above_90 == 1
    assert (summary.images_per_second, summary.data_wait, summary.device_wait) == (1000, 0.05, 0.5)
    assert summary.gpus[0].watts == pytest.approx(500) and summary.images_per_joule == pytest.approx(2)
    assert summary.kwh == pytest.approx(sum(watts[:59]) / 59 * 60 / 3.6e6)  # 59 intervals are counted


def test_an_evaluation_between_two_readings_of_the_counter_is_not_training():
    """Training, an evaluation of half a second that no reading saw, training: that pair is left out."""
    joules = [500.0 * second + (9e9 if second >= 20 else 0) for second in range(40)]
    columns = {"gpu0/energy": joules, "gpu0/power": [500.0] * 40}
    recording = by_hand([(TRAIN, 20), (EVAL, 0), (TRAIN, 20)], columns)
    assert summarize(recording, 8.0).gpus[0].watts == pytest.approx(500)


def test_a_counter_that_starts_again_is_not_negative_energy():
    recording = by_hand([(TRAIN, 12)], {"gpu0/energy": [*range(1000, 1600, 100), *range(0, 600, 100)]})
    assert summarize(recording, 8.0).kwh == pytest.approx(100 * 12 / 3.6e6)


def test_too_short_a_training_is_summed_up_whole():
    summary = summarize(by_hand([(COMPILE, 9), (TRAIN, 9)], {"gpu0/gpu_busy": [0.0] * 9 + [90.0] * 9}), 8.0)
    assert summary.measured is None and summary.gpus[0].mean("gpu_busy") == 45


def test_every_reason_has_a_bit_of_nvml():
    bits = [getattr(pynvml, f"nvmlClocksEventReason{reason}") for reason in Throttle]
    assert sum(bits) | pynvml.nvmlClocksEventReasonGpuIdle == pynvml.nvmlClocksEventReasonAll
