"""gpu.json, gpu.csv, gpu.png and what is printed."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report, write_report
from fastae.monitor.plot import PANELS, binned, draw
from fastae.monitor.recording import Absence, Column, Metric
from fastae.monitor.summary import UsageReport, summarize
from fastae.monitor.text import findings, headline, rows, show_report

from .recorded_nvml import (
    BUSY,
    COMPUTE_BOUND,
    LAUNCH_BOUND,
    SLICE,
    STARVED,
    TOO_HOT,
    RecordedNvml,
    machine_of,
)
from .test_diagnosis import DALI, DATA_LIMITED, DEVICE_LIMITED


def report_on(recording, absence=None):
    summary = summarize(recording, 8.0)
    return UsageReport(None, summary, diagnose(summary, DALI), absence)


def test_the_files_and_the_report_read_back(simulate, tmp_path):
    recording = simulate(STARVED, loop=DATA_LIMITED).recording()
    report = report_on(recording)
    write_report(report, recording, tmp_path, "a title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu.json", "gpu.png"]
    assert read_report(tmp_path) == report
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)  # no NaN
    header, *lines = csv.reader((tmp_path / "gpu.csv").open())
    assert header[:3] == ["time [s]", "phase", "gpu0/gpu_busy [%]"]
    values = [line[header.index("gpu0/power [W]")] for line in lines if line[2]]
    assert values[:4] == ["310", "110", "90", "120"] and len(values) == 301
    assert [line[header.index("host/cpu [cores]")] for line in lines[:11]] == ["1", *9 * [""], "1"]


def test_a_plot_has_a_panel_for_what_is_there(simulate):
    heights = []
    for library in (machine_of(COMPUTE_BOUND), RecordedNvml()):
        picture = io.BytesIO()
        draw(simulate(library=library, loop=DEVICE_LIMITED).recording(), "a title", picture)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] == 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        heights.append(pixels.shape[0])
    assert heights == [100 + 190 * len(PANELS), 100 + 190 * (len(PANELS) - 2)]


@pytest.mark.parametrize(
    ("times", "values", "points"),
    [
        ([0, 1, 2, 30, 31], [1, 2, 3, 4, 5], [(0, 1), (1, 2), (2, 3), (2, np.nan), (30, 4), (31, 5)]),
        (np.arange(3000), np.tile([0.0, 100.0, 50.0], 1000), [(each, 50.0) for each in range(0, 3000, 30)]),
    ],
)
def test_a_gap_stays_open_and_many_samples_are_medians_with_their_range(times, values, points):
    column = Column(Metric("power", "W"))
    for time, value in zip(times, values, strict=True):
        column.add(time, value)
    found = binned(column, bins=100)
    assert np.array_equal(np.transpose(found[:2]), points, equal_nan=True)
    if len(values) > 100:
        assert set(found[2]) == {0.0} and set(found[3]) == {100.0}


def test_one_line_and_the_table_have_the_figures(simulate):
    report = report_on(simulate(TOO_HOT, loop=DEVICE_LIMITED).recording())
    assert report.diagnosis.verdict.text in headline(report) and "98 %" in headline(report)
    console = Console(width=200, record=True, file=io.StringIO())
    show_report(report, console)
    text = console.export_text()
    for part in ("NVIDIA H100", "GPU busy", "GPU memory controller busy", "images/J", "kWh", "25 %", "P0",
                 "PCIe 5 x16", *(line for _, line in findings(report))):  # fmt: skip
        assert part in text


def test_several_gpus_have_a_row_each_and_their_spread(simulate):
    recording = simulate(library=machine_of(*7 * [BUSY], LAUNCH_BOUND), loop=DEVICE_LIMITED).recording()
    report = report_on(recording)
    found = [row[0] for row in rows(report.summary) if row[0].startswith("GPU")]
    assert found == [f"GPU {place} busy" for place in range(8)]
    assert any("55 %" in line and "98 %" in line and "GPU 7" in line for _, line in findings(report))


def test_what_is_missing_is_listed_with_nvmls_reason(simulate):
    report = report_on(simulate(SLICE, loop=DEVICE_LIMITED).recording(), Absence.NOT_SHOWN)
    lines = [line for _, line in findings(report)]
    assert any("gpu_busy" in line and "NVML_ERROR_NOT_SUPPORTED" in line for line in lines)
    assert Absence.NOT_SHOWN.text in lines
