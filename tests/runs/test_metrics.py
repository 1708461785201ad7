"""metrics.csv: appended rows are read back, also after interruptions, and foreign files do no harm."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastae.runs import metrics as metrics_csv
from fastae.runs.metrics import COLUMNS, HELD_OUT, TRAIN, MetricsWriter, read_metrics

from ..helpers import largest_file

HEADER = (
    "iteration,kind,loss,loss_index,images_per_second,data_wait,step_p50_ms,step_p95_ms,psnr,ssim,grad_norm\n"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / metrics_csv.NAME


def write(path, *iterations):
    """Writes rows."""
    with MetricsWriter(path) as metrics:
        for iteration in iterations:
            metrics.append(iteration, TRAIN, loss=0.5, loss_index=10.0 * iteration)


def test_appended_rows_are_read_back_and_the_file_has_the_documented_format(path):
    with MetricsWriter(path) as metrics:
        metrics.append(0, HELD_OUT, loss=0.7, loss_index=900_000.0, psnr=math.inf)
        metrics.append(1, TRAIN, loss=0.1 + 0.2, images_per_second=38.5, grad_norm=math.nan)
        read = read_metrics(path)  # while it is open
    assert path.read_text() == HEADER + "0,held_out,0.7,900000,,,,,inf,,\n1,train,0.3,,38.5,,,,,,nan\n"
    with path.open(newline="") as file:
        assert [row["psnr"] for row in csv.DictReader(file)] == ["inf", ""]
    assert (read.train.iterations.tolist(), read.held_out.iterations.tolist(), read.damaged) == ([1], [0], 0)
    assert read.held_out.values["psnr"].tolist() == [math.inf]
    assert np.float32(read.train.values["loss"]) == np.float32(0.3)
    assert np.isnan(read.train.values["psnr"]).all()


def test_a_resumed_run_repeats_no_iteration(path):
    write(path, 1, 10, 20)
    with path.open("ab") as file:
        file.write(b"30,train,0.4,3")  # half a row, as a killed process leaves it
    with MetricsWriter(path, start=10) as metrics:
        metrics.append(20, TRAIN, loss_index=7.0)
    assert read_metrics(path).train.values["loss_index"].tolist() == [10.0, 100.0, 7.0]
    with MetricsWriter(path):  # which starts at 0
        assert path.read_text() == HEADER


def test_a_file_that_is_too_long_for_readers_is_resumed_whole(path, monkeypatch):
    write(path, *range(1, 9))
    monkeypatch.setattr(metrics_csv, "MAX_BYTES", path.stat().st_size // 2)
    with pytest.raises(ValueError, match="more than"):
        read_metrics(path)
    with MetricsWriter(path, start=8) as metrics:
        metrics.append(9, TRAIN, loss=0.5)
    monkeypatch.undo()
    assert read_metrics(path).train.iterations.tolist() == [*range(1, 10)]


def test_a_value_without_a_column_is_refused(path):
    with MetricsWriter(path) as metrics:
        with pytest.raises(KeyError, match="lpips"):
            metrics.append(1, HELD_OUT, loss=0.5, lpips=0.1)
        metrics.append(1, HELD_OUT, loss=0.5)
    read = read_metrics(path)
    assert read.held_out.iterations.tolist() == [1] and read.damaged == 0


def rewritten(change):
    """Returns a function that changes the lines of a file."""
    return lambda path: path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (Path.unlink, []),
        (rewritten(lambda lines: lines[:-1]), [1, 2]),
        (rewritten(lambda lines: [*lines[:-1], lines[-1][:9]]), [1, 2]),
        (rewritten(lambda lines: [*lines[:-1], *lines[-2:]]), [1, 2, 3]),
    ],
    ids=["no file", "a lost row", "half a row", "a doubled row"],
)
def test_a_resumed_file_that_was_damaged_keeps_its_valid_rows(path, damage, kept):
    write(path, 1, 2, 3)
    damage(path)
    MetricsWriter(path, 3).__exit__()
    rows = read_metrics(path)
    assert rows.train.iterations.tolist() == kept and rows.damaged == 0


def test_a_file_of_an_older_version_without_ssim_is_read(path):
    path.write_text(HEADER.replace("ssim,", "") + "0,held_out,0.7,900000,,,,,9.5,3\n")
    values = {name: column.tolist() for name, column in read_metrics(path).held_out.values.items()}
    assert (values["psnr"], values["grad_norm"]) == ([9.5], [3.0]) and np.isnan(values["ssim"]).all()


def test_a_full_disk_is_an_os_error_and_leaves_whole_rows(path):
    write(path, 1, 2, 3)
    full = largest_file(path.stat().st_size + 10)
    with full, MetricsWriter(path, start=3) as metrics, pytest.raises(OSError, match="too large"):
        metrics.append(4, TRAIN, loss=0.5)
    assert read_metrics(path).train.iterations.tolist() == [1, 2, 3]


@pytest.mark.parametrize("how", ["pipe", "device", "folder"])
def test_pipes_devices_and_folders_are_not_opened(how, path):
    make = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }
    make[how]()
    for use in (read_metrics, MetricsWriter, lambda path: MetricsWriter(path, start=1)):
        with pytest.raises(OSError, match=r"it is (not a file|a link)"):
            use(path)


@pytest.mark.parametrize(
    "line",
    [
        "", "text", "1,train", "4,train,,,,,,,,,,", "4,train,,,,,,,,", "4,test,,,,,,,,,", "-1,train,,,,,,,,,",
        "4.5,train,,,,,,,,,", f"{10**20},train,,,,,,,,,", "4,train,much,,,,,,,,", "2,train,,,,,,,,,",
        "3,train,,,,,,,,,", "é,train,,,,,,,,,", "1" * 5000, "4,train," + "0" * 5000 + ",,,,,,,,",
        "4,train,\0,,,,,,,,",
    ],
)  # fmt: skip
def test_a_line_that_is_not_a_row_is_skipped_and_counted(line, path):
    write(path, 2, 3)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n5,train,1e300,-1e300,,,,,,,\n")
    read = read_metrics(path)
    assert read.train.iterations.tolist() == [2, 3, 5] and read.damaged == 1
    assert [read.train.values[name][-1] for name in ("loss", "loss_index")] == [math.inf, -math.inf]


def test_another_file_or_one_too_large_is_refused(path, monkeypatch):
    for content in (b"", b"a,b\n", b"a\n", HEADER.encode()[:-1], b"x" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header"):
            read_metrics(path)
    write(path, *range(5))
    monkeypatch.setattr(metrics_csv, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="100 bytes"):
        read_metrics(path)


@given(st.binary(max_size=300) | st.text("0123456789,.traineld_out\n-+eE", max_size=300).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = Path(tmp_path_factory.getbasetemp()) / "any.csv"
    path.write_bytes(HEADER.encode() + content)
    read = read_metrics(path)
    for rows in (read.train, read.held_out):
        assert (np.diff(rows.iterations) > 0).all()
        assert {len(rows.values[name]) for name in COLUMNS} == {len(rows.iterations)}
