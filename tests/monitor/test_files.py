"""gpu.json, gpu.csv, gpu.png and what is printed."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastae.device.nvml import Absence
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report, read_sessions, write_report
from fastae.monitor.plot import PANELS, binned, draw
from fastae.monitor.recording import METRICS, Column
from fastae.monitor.summary import UsageReport, summarize
from fastae.monitor.text import findings, headline, rows, show_sessions
from fastae.utils.limits import Cores

from .conftest import DALI, DATA_LIMITED, DEVICE_LIMITED
from .recorded_nvml import (
    BUSY,
    COMPUTE_BOUND,
    HALF_BUSY,
    SLICE,
    STARVED,
    TOO_HOT,
    RecordedNvml,
    machine_of,
)


def report_on(recording, absence=None):
    summary = summarize(recording, DALI, Cores(8, 8, 8))
    return UsageReport(summary, diagnose(summary, DALI), absence)


def test_the_files_and_the_report_read_back(simulate, tmp_path):
    recording = simulate(STARVED, loop=DATA_LIMITED).recording()
    report = report_on(recording)
    write_report(report, recording, tmp_path, "a title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu.json", "gpu.png"]
    assert read_sessions(tmp_path) == [report]
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)  # no NaN
    header, *lines = csv.reader((tmp_path / "gpu.csv").open())
    assert header[:4] == ["time [s]", "session", "phase", "gpu0/gpu_busy [%]"]
    values = [line[header.index("gpu0/power [W]")] for line in lines if line[3]]
    assert values[:4] == ["310", "110", "90", "120"] and len(values) >= 60
    assert {line[1] for line in lines} == {"1"}


def test_a_resumed_run_keeps_its_earlier_sessions(simulate, tmp_path):
    """The second one on a card of another kind."""
    reports = []
    for states in (STARVED, COMPUTE_BOUND, BUSY):
        recording = simulate(states, loop=DEVICE_LIMITED, seconds=20.0).recording()
        reports.append(report_on(recording))
        write_report(reports[-1], recording, tmp_path, "a title")
    assert read_sessions(tmp_path) == reports and read_report(tmp_path) == reports[-1]
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert [rows[index]["session"] for index in (0, -1)] == ["1", "3"]
    times = [float(row["time [s]"]) for row in rows]
    assert times == sorted(times) and times[-1] == pytest.approx(60, abs=1)
    busy = {each: {row["gpu0/gpu_busy [%]"] for row in rows if row["session"] == each} for each in "123"}
    assert "20" in busy["1"] and busy["2"] - {""} == busy["3"] - {""} == {"98"}
    assert {row["session"] for row in rows if row["gpu0/sm_active [%]"]} == {"2"}
    screen = Console(width=200, record=True, file=io.StringIO())
    show_sessions(reports, screen)
    assert "3, of 20 s, 20 s, 20 s" in screen.export_text()


@pytest.mark.parametrize("content", ["", "{[", "time [s],session,phase,gpu0/nonsense\n1,1,train,2\n",
                                     "time [s],session,phase,host/cpu\n1,1,train,x\n"])  # fmt: skip
def test_earlier_sessions_that_cannot_be_read_are_dropped(simulate, tmp_path, content):
    for name in ("gpu.json", "gpu.csv"):
        (tmp_path / name).write_text(content)
    recording = simulate(BUSY, loop=DEVICE_LIMITED).recording()
    write_report(report_on(recording), recording, tmp_path, "a title")
    assert len(read_sessions(tmp_path)) == 1
    assert {row["session"] for row in csv.DictReader((tmp_path / "gpu.csv").open())} == {"1"}


def test_a_plot_has_a_panel_for_what_is_there(simulate):
    heights = []
    for library in (machine_of(COMPUTE_BOUND), RecordedNvml()):
        picture = io.BytesIO()
        draw(simulate(library=library, loop=DEVICE_LIMITED).recording(), "a title", picture)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] == 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        heights.append(pixels.shape[0])
    assert heights == [100 + 190 * len(PANELS), 100 + 190 * (len(PANELS) - 2)]


def test_many_samples_are_medians_with_their_range():
    column = Column(METRICS["host/cpu"])
    for time, value in enumerate(np.tile([0.0, 100.0, 50.0], 1000)):
        column.add(time, value)
    times, values, low, high = binned(column, bins=100)
    assert np.array_equal(times, np.arange(0, 3000, 30)) and set(values) == {50.0}
    assert set(low) == {0.0} and set(high) == {100.0}


def printed(report):
    console = Console(width=200, record=True, file=io.StringIO())
    show_sessions([report], console)
    return console.export_text()


def test_one_line_and_the_table_have_the_figures(simulate):
    report = report_on(simulate(TOO_HOT, loop=DEVICE_LIMITED).recording())
    assert report.diagnosis.verdict.text in headline(report) and "98 %" in headline(report)
    text = printed(report)
    for part in ("NVIDIA H100", "GPU busy", "GPU power", "images/J", "kWh", "2.0 samples/s",
                 *(line for _, line in findings(report))):  # fmt: skip
        assert part in text
    assert "energy counter" not in text, "a counter's mean says nothing"


def test_a_run_on_the_cpu_does_not_wait_for_a_device(simulate):
    loop = {name: value for name, value in DEVICE_LIMITED.items() if name != "device_wait"}
    report = report_on(simulate(library=RecordedNvml(), loop=loop).recording(), Absence.CPU_RUN)
    text = printed(report)
    assert text.startswith("CPU: ") and "waiting for data" in text and "device" not in text


def test_several_gpus_have_a_row_each_and_their_spread(simulate):
    recording = simulate(library=machine_of(*7 * [BUSY], HALF_BUSY), loop=DEVICE_LIMITED).recording()
    report = report_on(recording)
    found = [row[0] for row in rows(report.summary) if row[0].endswith("busy")]
    assert found == [f"GPU {index} busy" for index in range(8)]
    assert any("55 %" in line and "98 %" in line and "GPU 7" in line for _, line in findings(report))


def test_what_is_missing_is_one_line_for_people_and_has_nvmls_reason_in_the_file(simulate):
    report = report_on(simulate(SLICE, loop=DEVICE_LIMITED).recording(), Absence.NOT_SHOWN)
    lines = [line for _, line in findings(report)]
    (line,) = (line for line in lines if "Hopper" in line)
    assert "NVML_ERROR" not in line and "sm_active" not in line and line.count("SM counters") == 1
    assert report.summary.gpus[0].record.missing["sm_active"] == "NVML_ERROR_NOT_SUPPORTED"
    assert Absence.NOT_SHOWN.text in lines
