"""Recorded GPUs through the sampler to the report: one test for each way in which a GPU fails a run."""

import csv
import json
import math
import threading
import time

import numpy as np
import pynvml
import pytest
from PIL import Image
from rich.console import Console

from fastae.errors import FastaeError
from fastae.monitor.diagnosis import BUSY as IS_BUSY
from fastae.monitor.diagnosis import IDLE as IS_IDLE
from fastae.monitor.diagnosis import LAUNCH_BOUND as IS_LAUNCH_BOUND
from fastae.monitor.diagnosis import NOT_KNOWN, WAITING, RunInfo, diagnose
from fastae.monitor.poller import COMPILE, EVAL, TRAIN, Progress, Recording
from fastae.monitor.report import make_report, read_report, write_report
from fastae.monitor.summary import summarise
from fastae.monitor.text import show_report

from .recorded_nvml import (
    BUSY,
    FALLS_OFF_THE_BUS,
    IDLE,
    LAUNCH_BOUND,
    MIG,
    NOT_SUPPORTED,
    STARVED,
    THROTTLED,
    Fault,
)

DALI = RunInfo(loader="dali", compiled=False, amp=False, batch_size=64)


def judged(recording, cores=1.0, info=DALI):
    """The verdict if the process had kept so many cores busy: this one only sleeps."""
    place = list(recording.columns).index("host/cpu")
    recording.rows[:, place] = cores
    summary = summarise(recording)
    return summary, diagnose(summary, 8, info)


def test_an_idle_gpu(record):
    summary, diagnosis = judged(record(IDLE, wait_share=0.0))
    assert diagnosis.verdict == IS_IDLE
    utilisation = summary.gpus[0].statistics["utilisation"]
    assert (utilisation.mean, utilisation.at_zero, utilisation.above_90) == (0, 1, 0)
    assert summary.gpus[0].throttling == {}
    assert "CUDA_VISIBLE_DEVICES" in diagnosis.advice[0]


def test_a_data_starved_gpu(record):
    summary, diagnosis = judged(record(STARVED, wait_share=0.62, images=1000), cores=7.5)
    assert diagnosis.verdict == WAITING
    assert "no batch to work on for 62.0% of the time" in diagnosis.evidence
    assert any("--loader resident" in advice for advice in diagnosis.advice)
    assert any("JPEG engine is the limit" in advice for advice in diagnosis.advice)
    assert 0.3 < summary.gpus[0].statistics["utilisation"].at_zero < 0.7
    assert summary.data_wait == 0.62


def test_a_launch_bound_gpu(record):
    _, diagnosis = judged(record(LAUNCH_BOUND, wait_share=0.01))
    assert diagnosis.verdict == IS_LAUNCH_BOUND
    assert any("--compile" in advice for advice in diagnosis.advice)
    _, compiled = judged(record(LAUNCH_BOUND, wait_share=0.01), info=RunInfo("resident", True, True, 64))
    assert not any("--compile" in advice for advice in compiled.advice)
    assert any("CUDA graph" in advice for advice in compiled.advice)


def test_a_gpu_that_neither_data_nor_the_cpu_holds_up(record):
    assert judged(record(LAUNCH_BOUND, wait_share=0.01), cores=0.1)[1].verdict == NOT_KNOWN


def test_a_busy_gpu(record):
    summary, diagnosis = judged(record(BUSY, wait_share=0.001, images=500))
    assert diagnosis.verdict == IS_BUSY and diagnosis.advice == (
        "--amp: mixed precision multiplies matrices several times faster",
    )
    # 500 images in a quarter of a second at 600 W.
    assert summary.images_per_joule == pytest.approx(2000 / 600, rel=0.05)
    assert summary.gpus[0].energy_from == "the energy counter"


def test_a_throttled_gpu(record):
    summary, diagnosis = judged(record(THROTTLED, wait_share=0.0))
    assert summary.gpus[0].throttling == {
        "held down by its power limit": 1.0,
        "slowed down by its driver, too hot": 1.0,
    }
    assert diagnosis.verdict == IS_BUSY
    assert "it gets too hot and slows down: see to its cooling" in diagnosis.advice
    assert any("held down by power" in advice for advice in diagnosis.advice)


def test_a_mig_instance_offers_memory_alone(record):
    summary, diagnosis = judged(record(MIG, wait_share=0.3))
    gpu = summary.gpus[0]
    assert list(gpu.statistics) == ["memory"] and gpu.statistics["memory"].mean == 5.0
    assert gpu.not_offered["utilisation"] == gpu.not_offered["power"] == "NVML_ERROR_NOT_SUPPORTED"
    assert summary.kwh is None and summary.images_per_joule is None
    assert diagnosis.verdict == WAITING
    assert "utilisation is not offered here (NVML_ERROR_NOT_SUPPORTED)" in diagnosis.evidence
    assert judged(record(MIG, wait_share=0.0))[1].verdict == NOT_KNOWN


def test_a_gpu_that_is_lost_in_mid_run(record):
    recording = record(FALLS_OFF_THE_BUS, wait_share=0.0)
    assert "gpu0 stopped answering: NVML_ERROR_GPU_IS_LOST" in recording.errors
    assert np.isfinite(recording.column("gpu0/utilisation")).sum() == 5
    assert len(recording.rows) > 10  # the host's half went on
    assert judged(recording)[0].gpus[0].statistics["utilisation"].mean == 98


def test_an_error_in_mid_run_costs_one_value(record):
    states = [*BUSY * 3, BUSY[0].but(power=Fault(pynvml.NVML_ERROR_UNKNOWN), energy=0), *BUSY]
    recording = record(states)
    assert recording.errors == ("gpu0: 1 x NVML_ERROR_UNKNOWN",)
    assert np.isnan(recording.column("gpu0/power")).sum() == 1


def test_no_energy_counter_so_power_is_integrated(record):
    recording = record([BUSY[0].but(energy=NOT_SUPPORTED)], wait_share=0.0)
    summary, _ = judged(recording)
    assert summary.gpus[0].energy_from == "power, integrated"
    assert summary.gpus[0].watts == pytest.approx(600)
    assert summary.kwh == pytest.approx(600 * recording.times[-1] / 3.6e6, rel=0.01)


def test_counter_and_integrated_power_agree(record):
    counted, integrated = (
        judged(record([BUSY[0].but(energy=energy)]))[0].gpus[0].watts for energy in (None, NOT_SUPPORTED)
    )
    assert counted == pytest.approx(integrated, rel=0.05)


class Hangs:
    """A reader whose driver never comes back."""

    not_offered, errors, lost, gpu = {}, {}, None, None

    def read(self, slow, processes):
        threading.Event().wait(5)


class Breaks(Hangs):
    def read(self, slow, processes):
        raise RuntimeError("a surprise")


def test_a_reading_that_breaks_or_hangs_harms_nobody(record, monkeypatch):
    monkeypatch.setattr("fastae.monitor.poller.LONGEST_STOP", 0.1)
    started = time.monotonic()
    assert record(BUSY, readers=[Breaks()]).errors == ("the sampler ended early: RuntimeError: a surprise",)
    assert record(BUSY, readers=[Hangs()]).errors == ("the sampler did not end: a reading never came back",)
    assert time.monotonic() - started < 2


def made_by_hand(phases, columns, progress=None):
    """A recording of one row a second, of these columns alone."""
    from fastae.monitor.gpu_reader import GPU_METRICS
    from fastae.monitor.nvml import Gpu

    metrics = {f"gpu0/{metric.name}": metric for metric in GPU_METRICS}
    rows = np.full((len(phases), len(metrics)), math.nan)
    for place, name in enumerate(metrics):
        if name in columns:
            rows[:, place] = columns[name]
    return Recording(
        float(len(phases)), np.arange(len(phases), dtype=float), tuple(phases), rows, metrics,
        gpus=(Gpu(0, "card", "GPU-1"),), progress=progress or {},
    )  # fmt: skip


def test_only_training_is_measured_and_all_of_it_paid_for():
    phases = [COMPILE] * 10 + [TRAIN] * 20 + [EVAL] * 10 + [TRAIN] * 20
    watts = np.where(np.array(phases) == TRAIN, 500.0, 100.0)
    recording = made_by_hand(
        phases,
        {
            "gpu0/energy": np.concatenate([[0.0], np.cumsum(watts)[:-1]]),
            "gpu0/utilisation": np.where(watts > 400, 95.0, 0.0),
        },
        {COMPILE: Progress(64, 10.0, 0.0), TRAIN: Progress(40_000, 40.0, 2.0)},
    )
    summary = summarise(recording)
    assert summary.measured == TRAIN and summary.phases == {COMPILE: 10, TRAIN: 40, EVAL: 10}
    assert summary.gpus[0].statistics["utilisation"].above_90 == 1
    assert summary.images_per_second == 1000 and summary.data_wait == 0.05
    assert summary.gpus[0].watts == pytest.approx(500)
    assert summary.images_per_joule == pytest.approx(2)
    assert summary.kwh == pytest.approx((40 * 500 + 20 * 100 - 500) / 3.6e6)  # 59 intervals


def test_a_counter_that_starts_again_is_not_negative_energy():
    recording = made_by_hand([TRAIN] * 12, {"gpu0/energy": [*range(1000, 1600, 100), *range(0, 600, 100)]})
    assert summarise(recording).kwh == pytest.approx(1000 / 3.6e6)


def test_the_files_and_the_report_read_back(record, tmp_path):
    recording = record(STARVED, wait_share=0.4, images=100)
    report = make_report(recording, "this run", info=DALI)
    write_report(report, recording, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu.json", "gpu.png"]
    assert read_report(tmp_path) == report
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)  # no NaN
    header, *lines = csv.reader((tmp_path / "gpu.csv").open())
    assert len(lines) == recording.samples and header[:3] == ["time [s]", "phase", "gpu0/utilisation [%]"]
    values = [line[header.index("gpu0/power [W]")] for line in lines]
    assert values[:4] == ["310", "110", "90", "120"]
    picture = np.asarray(Image.open(tmp_path / "gpu.png").convert("RGB"))
    assert picture.shape[1] == 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_the_table_says_it_all(record):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show_report(make_report(record(THROTTLED, wait_share=0.0, images=10), "this run", info=DALI), console)
    text = console.export_text()
    for words in ("SM utilisation", "NVIDIA H100", "images/J", "kWh in all (by the energy counter)",
                  "clocks    held down by its power limit in 100% of the samples",
                  "lacking   not offered: process_memory", "verdict   busy"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"summary": {"gpus": []}}'])
def test_a_report_that_cannot_be_read(tmp_path, text):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(FastaeError, match="is not a report of this version"):
        read_report(tmp_path)
