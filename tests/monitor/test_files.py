"""gpu.json, gpu.csv, gpu.png and what is printed."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastae.errors import FastaeError
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report, write_report
from fastae.monitor.plot import PANELS, binned, draw
from fastae.monitor.recording import Absence, Column, Metric
from fastae.monitor.summary import UsageReport, summarize
from fastae.monitor.text import evidence, headline, remarks, rows, show_report

from .recorded_nvml import BUSY, COMPUTE_BOUND, LAUNCH_BOUND, SLICE, STARVED, TOO_HOT, Card, RecordedNvml
from .test_diagnosis import DALI, DATA_LIMITED, DEVICE_LIMITED, eight_cards


def reported(recording, absence=None):
    summary = summarize(recording, 8.0)
    return UsageReport(None, summary, diagnose(summary, DALI), absence)


def printed(report):
    console = Console(width=200, record=True, file=io.StringIO())
    show_report(report, console)
    return console.export_text()


def test_the_files_and_the_report_read_back(simulate, tmp_path):
    recording = simulate(STARVED, loop=DATA_LIMITED)
    report = reported(recording)
    write_report(report, recording, tmp_path, "a title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu.json", "gpu.png"]
    assert read_report(tmp_path) == report
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)  # no NaN
    header, *lines = csv.reader((tmp_path / "gpu.csv").open())
    assert header[:3] == ["time [s]", "phase", "gpu0/gpu_busy [%]"]
    values = [line[header.index("gpu0/power [W]")] for line in lines if line[2]]
    assert values[:4] == ["310", "110", "90", "120"] and len(values) == 300
    assert [line[header.index("host/cpu [cores]")] for line in lines[:11]] == ["1", *9 * [""], "1"]


def test_a_plot_has_a_panel_for_what_is_there(simulate, tmp_path):
    heights = []
    for library in (RecordedNvml(Card(COMPUTE_BOUND)), RecordedNvml()):
        recording = simulate(library=library, loop=DEVICE_LIMITED)
        with (tmp_path / "plot.png").open("wb") as file:
            draw(recording, "a title", file)
        picture = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
        assert picture.shape[1] == 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
        heights.append(picture.shape[0])
    panel = 190
    assert heights == [100 + panel * len(PANELS), 100 + panel * (len(PANELS) - 2)]


def column(times, values):
    made = Column(Metric("power", "power", "W"))
    for time, value in zip(times, values, strict=True):
        made.add(time, 0, value)
    return made


def test_a_gap_in_the_samples_is_a_gap_in_the_curve():
    times, values, low, high = binned(column([0, 1, 2, 30, 31], [1, 2, 3, 4, 5]))
    assert np.array_equal(values, [1, 2, 3, np.nan, 4, 5], equal_nan=True)
    assert np.array_equal(times, [0, 1, 2, 2, 30, 31])
    assert np.array_equal(low, values, equal_nan=True) and np.array_equal(high, values, equal_nan=True)


def test_more_samples_than_points_are_medians_with_their_range():
    values = np.tile([0.0, 100.0, 50.0], 1000)
    _, medians, low, high = binned(column(np.arange(3000) / 10, values), bins=100)
    assert len(medians) == 100 and set(medians) == {50.0} and set(low) == {0.0} and set(high) == {100.0}


def test_one_line_and_the_table_have_the_figures(simulate):
    report = reported(simulate(TOO_HOT, loop=DEVICE_LIMITED))
    assert report.diagnosis.verdict.text in headline(report) and "98 %" in headline(report)
    text = printed(report)
    for part in (
        "NVIDIA H100",
        "GPU busy",
        "memory controller busy",
        "images/J",
        "kWh",
        "25 %",
        "P0",
        "generation 5 x16",
    ):
        assert part in text
    assert all(line in text for line in evidence(report))


def test_several_gpus_have_a_row_each_and_their_spread(simulate):
    report = reported(simulate(library=eight_cards(*7 * [BUSY], LAUNCH_BOUND), loop=DEVICE_LIMITED))
    found = [row[0] for row in rows(report.summary) if row[0].startswith("GPU")]
    assert len(found) == 8 and found[0].startswith("GPU 0 ") and found[-1].startswith("GPU 7 ")
    assert len([line for line in remarks(report.summary) if "sm_active" in line]) == 1, "said once of all"
    assert any("55 %" in line and "98 %" in line and "GPU 7" in line for line in evidence(report))


def test_what_is_missing_is_listed_with_nvmls_reason(simulate):
    report = reported(simulate(SLICE, loop=DEVICE_LIMITED), Absence.NOT_SHOWN)
    assert any("gpu_busy" in line and "NVML_ERROR_NOT_SUPPORTED" in line for line in remarks(report.summary))
    assert evidence(report)[0] == Absence.NOT_SHOWN.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"summary": {"gpus": []}}'])
def test_a_report_that_cannot_be_read(tmp_path, text):
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(FastaeError, match="is not a report of this version"):
        read_report(tmp_path)
