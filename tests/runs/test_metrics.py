"""metrics.csv: what is appended is read again, whatever interrupts it, and whoever wrote it."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastae.runs import metrics as metrics_csv
from fastae.runs.metrics import HELD_OUT, METRICS, TRAIN, MetricsWriter, read_metrics

from ..conftest import largest_file

HEADER = "iteration,kind,loss,loss_index,images_per_second,data_wait,step_p50_ms,step_p95_ms,psnr,grad_norm\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / metrics_csv.NAME


def write(path, *iterations):
    with MetricsWriter(path) as metrics:
        for iteration in iterations:
            metrics.append(iteration, TRAIN, loss=0.5, loss_index=10.0 * iteration)


def iterations(path):
    return read_metrics(path).train.iterations.tolist()


def test_the_file_is_the_format_that_is_promised(path):
    with MetricsWriter(path) as metrics:
        metrics.append(0, HELD_OUT, loss=0.7, loss_index=900_000.0, psnr=10.46)
        metrics.append(1, TRAIN, loss=0.1 + 0.2, images_per_second=38.5, data_wait=None, grad_norm=math.nan)
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert first == HEADER
    assert rest == ["0,held_out,0.7,900000,,,,,10.46,\n", "1,train,0.3,,38.5,,,,,nan\n"]
    with path.open(newline="") as file:
        assert [row["psnr"] for row in csv.DictReader(file)] == ["10.46", ""]


def test_what_was_appended_is_read(path):
    with MetricsWriter(path) as metrics:
        metrics.append(0, HELD_OUT, psnr=10.5)
        for iteration in (1, 2):
            metrics.append(iteration, TRAIN, loss_index=iteration / 3)
        metrics.append(2, HELD_OUT, psnr=math.inf)
        metrics.flush()
        read = read_metrics(path)
    assert read.damaged == 0
    assert read.train.iterations.tolist() == [1, 2] and read.held_out.iterations.tolist() == [0, 2]
    assert np.float32(read.train.values["loss_index"]).tolist() == np.float32([1 / 3, 2 / 3]).tolist()
    assert read.held_out.values["psnr"].tolist() == [10.5, math.inf]
    assert all(np.isnan(read.train.values[name]).all() for name in METRICS if name != "loss_index")


def test_no_row_of_no_kind_is_written(path):
    with MetricsWriter(path) as metrics:
        for kind, values in (("test", {}), (TRAIN, {"accuracy": 1.0})):
            with pytest.raises(ValueError, match="no such row"):
                metrics.append(1, kind, **values)
    assert iterations(path) == []


def test_a_resumed_run_repeats_no_iteration(path):
    write(path, 1, 10, 20)
    with path.open("ab") as file:
        file.write(b"30,train,0.4,3")  # torn, as a killed process leaves it
    with MetricsWriter(path) as metrics:
        metrics.truncate_after(10)
        metrics.append(20, TRAIN, loss_index=7.0)
    assert read_metrics(path).train.values["loss_index"].tolist() == [10.0, 100.0, 7.0]
    with MetricsWriter(path) as metrics:
        metrics.truncate_after(-1)
    assert path.read_text() == HEADER


def test_truncating_is_whole_or_not_at_all(path):
    write(path, *range(100))
    before = path.read_bytes()
    with MetricsWriter(path) as metrics:
        with largest_file(1000), pytest.raises(OSError, match="too large"):
            metrics.truncate_after(90)
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
        metrics.append(100, TRAIN)
    assert iterations(path) == list(range(101))


def test_a_full_disk_is_an_os_error_and_leaves_whole_rows(path):
    write(path, 1, 2, 3)
    size = path.stat().st_size
    metrics = MetricsWriter(path)
    with largest_file(size + 10):
        metrics.append(4, TRAIN, loss=0.5)
        with pytest.raises(OSError, match="too large"):
            metrics.sync()
        with pytest.raises(OSError, match="too large"):
            metrics.close()
    assert iterations(path) == [1, 2, 3]
    with MetricsWriter(path) as metrics:
        metrics.truncate_after(3)
        metrics.append(4, TRAIN)
    assert iterations(path) == [1, 2, 3, 4]


def test_what_came_first_is_what_is_raised(path):
    with largest_file(10), pytest.raises(KeyError), MetricsWriter(path):
        raise KeyError


@pytest.mark.parametrize("how", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_opened(how, path):
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[
        how
    ]()
    for use in (read_metrics, MetricsWriter):
        with pytest.raises(OSError, match="not a file"):
            use(path)


@pytest.mark.parametrize(
    "line",
    [
        "", "text", "1,train", "1,train,,,,,,,,,", "1,test,,,,,,,,", "-1,train,,,,,,,,", "1.5,train,,,,,,,,",
        f"{10**20},train,,,,,,,,", "1,train,much,,,,,,,", "2,train,,,,,,,,", "3,train,,,,,,,,",
        "é,train,,,,,,,,", "1" * 5000, "4,train," + "0" * 5000 + ",,,,,,,", "4,train,\0,,,,,,,",
        f"{'9' * 5000},train,,,,,,,,",
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_skipped_and_counted(line, path):
    write(path, 2, 3)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n5,train,,,,,,,,\n")
    read = read_metrics(path)
    assert read.train.iterations.tolist() == [2, 3, 5] and read.damaged == 1


def test_a_number_that_nobody_can_draw_is_infinite(path):
    path.write_text(HEADER + "1,train,1e300,-1e300,,,,,,\n")
    values = read_metrics(path).train.values
    assert (values["loss"][0], values["loss_index"][0]) == (math.inf, -math.inf)


def test_another_file_or_one_too_large_is_refused(path, monkeypatch):
    for content in (b"", b"a,b\n", HEADER.encode()[:-1], b"x" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header"):
            read_metrics(path)
    write_rows = HEADER + "".join(f"{i},train,,,,,,,,\n" for i in range(5))
    path.write_text(write_rows)
    monkeypatch.setattr(metrics_csv, "MAX_ROWS", 4)
    with pytest.raises(ValueError, match="4 rows"):
        read_metrics(path)
    monkeypatch.setattr(metrics_csv, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="100 bytes"):
        read_metrics(path)


@given(st.binary(max_size=300) | st.text("0123456789,.traineld_out\n-+eE", max_size=300).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = Path(tmp_path_factory.getbasetemp()) / "any.csv"
    path.write_bytes(HEADER.encode() + content)
    read = read_metrics(path)
    for rows in (read.train, read.held_out):
        assert (np.diff(rows.iterations) > 0).all()
        assert all(len(column) == len(rows.iterations) for column in rows.values.values())
