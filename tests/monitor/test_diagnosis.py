"""Recordings are summarised and diagnosed: figures, energy, hardware, and the measured phase."""

from dataclasses import replace

import pytest

from fastae.device.gpu_reader import GpuRecord, Throttle
from fastae.device.nvml import Gpu
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.recording import Column, Phase, Recording, Span
from fastae.monitor.summary import summarize
from fastae.monitor.text import troubles
from fastae.utils.limits import Cores

from . import recorded_nvml as cards
from .conftest import DALI, DEVICE_LIMITED, RESIDENT

CORES = Cores(8, 8, 8)


@pytest.fixture
def judge(simulate):
    """Returns a function that makes a recording by `simulate`, and returns its summary and diagnosis."""

    def run(states=(), info=RESIDENT, **options):
        summary = summarize(simulate(states, **options).recording(), info, CORES)
        return summary, diagnose(summary, info)

    return run


@pytest.mark.parametrize(
    ("states", "throttling", "advised", "troubled"),
    [
        (cards.AT_POWER_LIMIT, {Throttle.POWER_CAP: 1.0}, 0, 0),  # normal at full load
        (cards.TOO_HOT, {Throttle.HARDWARE_THERMAL: 0.25, Throttle.HARDWARE: 0.25}, 1, 2),
        (cards.SLOWED_DOWN, {Throttle.HARDWARE: 1.0}, 1, 1),  # for an unknown reason
        (
            [*cards.BUSY * 10, *cards.AT_POWER_LIMIT, *cards.TOO_HOT[:1], *cards.BUSY],
            {Throttle.HARDWARE_THERMAL: 0.01},
            0,
            0,
        ),  # brief
    ],
)
def test_lowered_clocks_are_reported(judge, states, throttling, advised, troubled):
    summary, diagnosis = judge(states, loop=DEVICE_LIMITED, seconds=60.0)
    found = {reason: summary.gpus[0].throttled(reason) for reason in throttling}
    assert found == pytest.approx(throttling, abs=0.02)
    assert len(diagnosis.advice) == advised and len(list(troubles(summary))) == troubled


@pytest.mark.parametrize(
    ("counter", "is_counted", "watts"), [(500_000, True, 500), (cards.NOT_SUPPORTED, False, 600)]
)
def test_energy_is_the_growth_of_the_counter_or_else_sampled_power(judge, counter, is_counted, watts):
    summary, _ = judge([cards.BUSY[0].but(energy=counter)], loop=DEVICE_LIMITED)
    assert ("energy" in summary.gpus[0].growth) is is_counted
    assert summary.images_per_joule == pytest.approx(1000 / watts)
    assert summary.kwh == pytest.approx(watts * 30 / 3.6e6)


def test_all_gpus_of_a_job_are_summed(judge):
    library = cards.machine_of(*7 * [cards.BUSY], cards.HALF_BUSY)
    summary, diagnosis = judge(library=library, loop=DEVICE_LIMITED, info=replace(RESIDENT, ranks=8))
    assert len(summary.gpus) == 8 and "GPU 7" in diagnosis.advice[0], "the others wait for it"
    assert summary.kwh == pytest.approx((7 * 600 + 200) * 30 / 3.6e6)
    assert summary.images_per_joule == pytest.approx(1000 / 4400)


@pytest.mark.parametrize(
    ("states", "options"),
    [
        ((cards.BUSY, cards.BUSY), {"ranks": 4}),
        ((cards.BUSY, cards.SLICE), {"ranks": 2}),
        ((cards.FALLS_OFF_THE_BUS,), {}),
    ],
)
def test_energy_is_unknown_if_it_cannot_be_measured_for_the_run_and_all_its_gpus(judge, states, options):
    summary, _ = judge(library=cards.machine_of(*states), loop=DEVICE_LIMITED, info=replace(DALI, **options))
    assert summary.kwh is None and summary.images_per_joule is None


def test_only_ecc_errors_that_occur_during_the_run_are_reported(judge):
    old = [cards.BUSY[0].but(corrected=3, uncorrected=1)]
    summary, _ = judge([*old * 20, cards.BUSY[0].but(corrected=5, uncorrected=2)], loop=DEVICE_LIMITED)
    growth = summary.gpus[0].growth
    assert (growth["ecc_corrected"], growth["ecc_uncorrected"]) == (2, 1)
    assert len(list(troubles(summary))) == 2
    assert not list(troubles(judge(old, loop=DEVICE_LIMITED)[0]))


def test_flops_and_mfu_follow_from_the_rate_of_images(judge):
    """The model takes 10 GFLOP per image, and trains on 1,000 images/s."""
    info = replace(RESIDENT, image_flops=1e10, peak_flops=100e12)
    summary, _ = judge(cards.BUSY, info, loop=DEVICE_LIMITED)
    assert (summary.tflops, summary.mfu) == pytest.approx((10, 0.1))
    shared, _ = judge(
        library=cards.machine_of(cards.BUSY, cards.BUSY), info=replace(info, ranks=2), loop=DEVICE_LIMITED
    )
    assert (shared.tflops, shared.mfu) == pytest.approx((10, 0.05)), "of two devices' peaks"
    unknown, _ = judge(cards.BUSY, replace(info, peak_flops=None), loop=DEVICE_LIMITED)
    assert unknown.tflops == pytest.approx(10) and unknown.mfu is None


def by_hand(spans, **columns):
    """Makes a recording with one sample per second from (phase, seconds) and the values of each column."""
    starts = [sum(length for _, length in spans[:index]) for index in range(len(spans))]
    spans = tuple(Span(phase, start, length) for (phase, length), start in zip(spans, starts, strict=True))
    made = {name.replace("_", "/", 1): values for name, values in columns.items()}
    recording = Recording(
        sum(span.seconds for span in spans), spans, {name: Column(name) for name in made},
        (GpuRecord("gpu", Gpu(0, "card")),),
    )  # fmt: skip
    for name, values in made.items():
        for time, value in enumerate(values):
            recording.columns[name].add(time, value)
    return recording


def test_statistics_describe_the_training_and_energy_the_whole_run():
    spans = [(Phase.COMPILE, 10), (Phase.TRAIN, 20), (Phase.EVAL, 5), (Phase.SAVE, 5), (Phase.TRAIN, 20)]
    is_training = [phase is Phase.TRAIN for phase, length in spans for _ in range(length)]
    recording = by_hand(
        spans,
        gpu_power=[500.0 if each else 100.0 for each in is_training],
        gpu_gpu_busy=[95.0 * each for each in is_training],
        loop_images_per_second=[1000.0 if each else 5.0 for each in is_training],
        loop_data_wait=[5.0] * 60,
        loop_device_wait=[50.0] * 60,
        loop_seconds=[1.0] * 60,
    )
    summary = summarize(recording, RESIDENT, CORES)
    assert summary.measured is Phase.TRAIN
    assert summary.phases == {Phase.COMPILE: 10, Phase.TRAIN: 40, Phase.EVAL: 5, Phase.SAVE: 5}
    assert summary.gpus[0].mean("gpu_busy") == 95
    waits = (summary.images_per_second, summary.data_wait, summary.device_wait)
    assert waits == pytest.approx((1000, 0.05, 0.5))
    assert summary.images_per_joule == pytest.approx(2)
    assert summary.kwh == pytest.approx((40 * 500 + 20 * 100) / 3.6e6)


def test_the_loops_figures_are_averaged_over_time():
    rates = {"loop_images_per_second": [100.0, 300.0], "loop_seconds": [3.0, 1.0]}
    summary = summarize(by_hand([(Phase.TRAIN, 4)], **rates), RESIDENT, CORES)
    assert summary.images_per_second == pytest.approx(150) and summary.data_wait is None


def test_a_run_with_too_little_training_is_summarised_as_a_whole():
    recording = by_hand([(Phase.COMPILE, 9), (Phase.TRAIN, 9)], gpu_gpu_busy=[0.0] * 9 + [90.0] * 9)
    summary = summarize(recording, RESIDENT, CORES)
    assert summary.measured is None and summary.gpus[0].mean("gpu_busy") == 45
