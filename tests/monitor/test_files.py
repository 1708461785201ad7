"""Reports are written to gpu.json, gpu.csv and gpu.png, and printed."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import count_unreported, read_reports, write_report
from fastae.monitor.plot import PANELS, binned, draw
from fastae.monitor.recording import Column
from fastae.monitor.summary import UsageReport, summarize
from fastae.monitor.text import findings, headline, show_reports
from fastae.utils.limits import Cores

from . import recorded_nvml as cards
from .conftest import DALI, DATA_LIMITED, DEVICE_LIMITED


def report_on(recording, missing=""):
    summary = summarize(recording, DALI, Cores(8, 8, 8))
    return UsageReport(summary, diagnose(summary, DALI), missing)


def printed(*reports, **options):
    console = Console(width=200, record=True, file=io.StringIO())
    show_reports(reports, console, **options)
    return console.export_text()


def test_each_part_of_a_run_has_its_own_files(simulate, tmp_path):
    """A query fails once in the first part. The second part is on another kind of card."""
    reports = []
    fails = cards.STARVED[0].but(temperature=cards.UNKNOWN)
    for states in ([*cards.STARVED[:4], fails, *cards.STARVED], cards.COMPUTE_BOUND):
        recording = simulate(states, loop=DATA_LIMITED, seconds=20.0).recording()
        reports.append(report_on(recording))
        write_report(reports[-1], recording, tmp_path, "a title")
        assert read_reports(tmp_path) == reports
    names = {"gpu.json", "gpu.csv", "gpu.png", "gpu-2.csv", "gpu-2.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)  # no NaN
    first, second = (list(csv.DictReader((tmp_path / name).open())) for name in ("gpu.csv", "gpu-2.csv"))
    assert [*first[0]][:3] == ["time [s]", "phase", "gpu/gpu_busy [%]"] and first[-1]["phase"] == "train"
    assert [float(row["time [s]"]) for row in first] == pytest.approx(np.arange(41) / 2)
    assert [row["gpu/power [W]"] for row in first[:4]] == ["310", "110", "90", "120"]
    assert reports[0].summary.gpus[0].record.errors == {"temperature": {"NVML_ERROR_UNKNOWN": 1}}
    assert "gpu/sm_active [%]" not in first[0] and second[-1]["gpu/sm_active [%]"] == "92"
    assert "2, of 20 s, 20 s" in printed(*reports)


def test_an_earlier_part_that_cannot_be_read_is_dropped(simulate, tmp_path):
    (tmp_path / "gpu.json").write_text("{[")
    recording = simulate(cards.BUSY, loop=DEVICE_LIMITED).recording()
    write_report(report_on(recording), recording, tmp_path, "a title")
    assert len(read_reports(tmp_path)) == 1


def test_a_plot_has_only_panels_that_have_data(simulate):
    heights = []
    for library in (cards.machine_of(cards.COMPUTE_BOUND), cards.RecordedNvml()):
        picture = io.BytesIO()
        draw(simulate(library=library, loop=DEVICE_LIMITED).recording(), "a title", picture)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] == 1000 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        heights.append(pixels.shape[0])
    assert heights == [100 + 190 * len(PANELS), 100 + 190 * (len(PANELS) - 2)]


def test_many_samples_are_plotted_as_medians_with_their_range():
    column = Column("host/cpu")
    for time, value in enumerate(np.tile([0.0, 100.0, 50.0], 1000)):
        column.add(time, value)
    times, values, low, high = binned(column, bins=100)
    assert np.array_equal(times, np.arange(0, 3000, 30)) and set(values) == {50.0}
    assert set(low) == {0.0} and set(high) == {100.0}


def test_the_headline_and_the_table_contain_the_figures(simulate):
    report = report_on(simulate(cards.TOO_HOT, loop=DEVICE_LIMITED).recording())
    assert report.diagnosis.verdict.text in headline(report) and "98%" in headline(report)
    text = printed(report)
    for part in ("NVIDIA H100", "GPU busy", "GPU power", "images/J", "kWh", "2.0 samples/s",
                 *(line for _, line in findings(report))):  # fmt: skip
        assert part in text
    assert "GPU energy counter" not in text, "a counter's mean says nothing"


def test_the_table_of_a_cpu_run_has_no_wait_for_the_device(simulate):
    loop = {name: value for name, value in DEVICE_LIMITED.items() if name != "device_wait"}
    text = printed(report_on(simulate(library=cards.RecordedNvml(), loop=loop).recording()))
    assert text.startswith("CPU: ") and "waiting for data" in text and "device" not in text


@pytest.mark.parametrize(("config", "unreported"), [({"resumed": [10, 20]}, 2), ({}, 0), ({"resumed": 7}, 0)])
def test_parts_of_a_run_without_a_report_are_mentioned(simulate, tmp_path, config, unreported):
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = report_on(simulate(cards.BUSY, loop=DEVICE_LIMITED).recording())
    assert count_unreported(tmp_path, [report]) == unreported
    assert ("2 of 3" in printed(report, unreported=unreported)) is (unreported == 2)


def test_hidden_pcie_lanes_are_a_note(simulate):
    lines = findings(report_on(simulate([cards.BUSY[0].but(width=8)], loop=DEVICE_LIMITED).recording()))
    assert [word for word, line in lines if "8 of 16 PCIe lanes" in line] == [""]


def test_several_gpus_have_a_row_each(simulate):
    library = cards.machine_of(*7 * [cards.BUSY], cards.HALF_BUSY)
    text = printed(report_on(simulate(library=library, loop=DEVICE_LIMITED).recording()))
    assert all(f"\nGPU {index} busy" in text for index in range(8)) and text.count(" power ") == 1


def test_missing_metrics_are_one_printed_line_and_have_nvmls_reason_in_the_file(simulate):
    report = report_on(simulate(cards.SLICE, loop=DEVICE_LIMITED).recording(), "NVML shows no GPU")
    lines = [line for _, line in findings(report)]
    (line,) = (line for line in lines if "SM counters" in line)
    assert "power, " in line and "NVML_ERROR" not in line and "NVML shows no GPU" in lines
    assert report.summary.gpus[0].record.missing["power"] == "NVML_ERROR_NOT_SUPPORTED"
