"""Files of every kind that fastae reads, with anything in them: read, or refused in one line, and no else.

A few dozen of each in `make test`; with FASTAE_FUZZ set, as `make fuzz` does, thousands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastae.config import TrainConfig
from fastae.data import resident
from fastae.data.check import check
from fastae.data.folder import PARTITION_FILE, find_jpegs, open_folder
from fastae.data.jpeg import inspect
from fastae.data.manifest import Manifest
from fastae.data.prepare import prepare_celeba
from fastae.errors import FastaeError
from fastae.monitor.files import read_report, report_json
from fastae.monitor.recording import Absence, Gpu, GpuRecord, Phase, Throttle
from fastae.monitor.summary import (
    Diagnosis,
    EnergySource,
    GpuSummary,
    Statistics,
    Summary,
    UsageReport,
    Verdict,
)
from fastae.monitor.text import show_report
from fastae.runs import checkpoint
from fastae.runs.archive import require_plain
from fastae.runs.folder import RunFolder
from fastae.runs.sweep_folder import Content, SweepFolder
from fastae.utils.console import HarmlessConsole

EXAMPLES = 2_000 if "FASTAE_FUZZ" in os.environ else 25
# Not `deadline`: on a busy machine any example may wait.
thoroughly = settings(max_examples=EXAMPLES, deadline=None, derandomize="FASTAE_FUZZ" not in os.environ)

numbers = st.integers() | st.floats() | st.sampled_from([2**63, 10**400, -1, 0])
words = st.text(max_size=20) | st.sampled_from(["", "../..", "\0", "\x1b[31m", "a\nb", "\udcff"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def nearly(draw: Callable, value: Any) -> Any:
    """A JSON value with something else at one place in it, one thing less or one more."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(anything)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(keys))
    changed = dict(value) if isinstance(value, dict) else list(value)
    what = draw(st.sampled_from(["inside", "inside", "inside", "less", "more"]))
    if what == "inside":
        changed[key] = draw(nearly(value[key]))
    elif what == "less":
        del changed[key]
    elif isinstance(changed, dict):
        changed[draw(words)] = draw(anything)
    else:
        changed.append(draw(anything))
    return changed


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """The same bytes but for some; cut short, or longer."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # The ends are where headers and directories are.
        place = draw(st.integers(0, 200) | st.integers(0, len(content)) | st.integers(-400, -1))
        changed[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    if draw(st.integers(0, 4)) == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def refusing(action: Callable[[], Any]) -> Any:
    """What it returns, or the one line in which it refuses; anything else is a failure."""
    try:
        return action()
    except FastaeError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("read")


@thoroughly
@given(anything | nearly(TrainConfig().as_dict()))
def test_settings(values):
    config = refusing(lambda: TrainConfig.from_dict(values, "config.json"))
    if isinstance(config, TrainConfig):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict())), "config.json") == config


@thoroughly
@given(st.binary() | nearly({"config": TrainConfig().as_dict(), "data": {}}).map(json.dumps).map(str.encode))
def test_a_runs_config(folder, content):
    (folder / "config.json").write_bytes(content)
    refusing(RunFolder(folder).settings)


def report():
    """One with everything in it."""
    figures = Statistics("SM", "%", 50.0, 1.0, 50.0, 90.0, 100.0, 0.1, 0.2)
    card = Gpu(0, "GPU", "uuid", False, 80.0, 700.0, 1980.0, 5, 16)
    record = GpuRecord("gpu0", card, {"jpeg": "why"}, {"an error": 3}, "lost", True, 2, 3.0)
    names = (
        "gpu_busy",
        "sm_active",
        "power",
        "sm_clock",
        "performance_state",
        "pcie_generation",
        "pcie_width",
    )
    gpu = GpuSummary(
        record, dict.fromkeys(names, figures), {Throttle.HARDWARE: 0.5}, EnergySource.COUNTER, 3.0, 0.1
    )
    host = {"cpu": figures, "machine_cpu": figures}
    summary = Summary(60.0, 0.001, 2.0, {Phase.TRAIN: 60.0}, Phase.TRAIN, (gpu, gpu), host,
                      1_000.0, 0.1, 0.2, 3.0, 0.1, "an error")  # fmt: skip
    diagnosis = Diagnosis(Verdict.GPU_BOUND, ("nothing",), 1, True)
    return UsageReport("a command", summary, diagnosis, Absence.NOT_SHOWN, "detail")


@thoroughly
@given(st.binary() | nearly(json.loads(report_json(report()))).map(json.dumps).map(str.encode))
def test_a_runs_report(folder, content):
    (folder / "gpu.json").write_bytes(content)
    read = refusing(lambda: read_report(folder))
    if isinstance(read, UsageReport):  # then it can also be shown, and read again
        screen = io.StringIO()
        show_report(read, HarmlessConsole(file=screen, width=200))
        assert all(character.isprintable() or character == "\n" for character in screen.getvalue())
        json.loads(report_json(read))


def test_a_report_that_is_whole_is_read_as_it_was_written(folder):
    (folder / "gpu.json").write_text(report_json(report()))
    assert read_report(folder) == report()


@thoroughly
@given(
    st.binary()
    | nearly({"plan": {}, "runs": [{"name": "pixel_bce", "loss": "pixel_bce", "seed": 0}]})
    .map(json.dumps)
    .map(str.encode)
)
def test_a_sweeps_plan(folder, content):
    (folder / "sweep.json").write_bytes(content)
    read = refusing(SweepFolder(folder).read)
    if isinstance(read, Content):
        assert all((folder / entry.name).parent == folder for entry in read.runs)


@thoroughly
@given(st.data())
def test_a_runs_images(pictures, folder, data):
    listed = dataclasses.asdict(open_folder(pictures).manifest)
    (folder / "images.json").write_bytes(
        data.draw(st.binary() | nearly(listed).map(json.dumps).map(str.encode))
    )
    images = refusing(lambda: Manifest.read(folder / "images.json"))
    if isinstance(images, Manifest):
        assert len(images.fingerprint) == 32
        opened = refusing(lambda: open_folder(pictures, manifest=images))
        if not isinstance(opened, str):
            assert {*opened.train, *opened.held_out} <= set(find_jpegs(str(pictures)))
            assert (len(opened.train), len(opened.held_out)) == (len(images.train), len(images.held_out))


@pytest.mark.parametrize("name", ["config.json", "images.json", "gpu.json", "sweep.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 5_000, b"\xff\xfe", b"", None]
)
def test_json_that_no_parser_likes(folder, name, content):
    path = folder / name
    path.unlink(missing_ok=True)
    if content is None:
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(content)
    readers = {
        "config.json": lambda folder: RunFolder(folder).settings(),
        "images.json": lambda folder: Manifest.read(folder / "images.json"),
        "gpu.json": read_report,
        "sweep.json": lambda folder: SweepFolder(folder).read(),
    }
    read = readers[name]
    with pytest.raises(FastaeError):
        read(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FastaeError):
        read(folder)
    path.unlink()


STATE = {"model": {"weight": torch.ones(3, 4)}, "optimizer": {}, "scaler": {}, "config": {}, "run": {}}


def saved():
    file = io.BytesIO()
    torch.save(STATE | {"iteration": 1}, file)
    return file.getvalue()


@thoroughly
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary() | damaged(saved()))
def test_a_checkpoint_with_a_digest_that_fits(folder, content):
    path = folder / "0000001.pt"
    path.write_bytes(content)
    path.with_name("0000001.pt.sha256").write_text(hashlib.sha256(content).hexdigest())
    said = []
    state = refusing(lambda: checkpoint.newest(folder, said.append))
    assert isinstance(state, dict) or (len(said) == 1 and "\n" not in said[0])
    with suppress(ValueError):
        require_plain(path)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


PIXELS, MEANS = npy(np.zeros((2, 16, 3, 16), np.uint8)), npy(np.zeros((2, 3), np.float32))


@thoroughly
@given(st.just(PIXELS) | st.binary() | damaged(PIXELS), st.just(MEANS) | st.binary() | damaged(MEANS))
def test_a_resident_array(folder, pixels, means):
    (folder / "pixels.npy").write_bytes(pixels)
    (folder / "means.npy").write_bytes(means)
    store = resident._open(folder, (2, 16, 3, 16))
    if store is not None:
        assert store.pixels.dtype == torch.uint8 and store.pixels.shape == (2, 16, 3, 16)
        assert store.means.dtype == torch.float32 and store.means.shape == (2, 3)


@pytest.fixture(scope="module")
def record(face_folder, folder):
    """The file in which the quick check of the faces is remembered, and what it found."""
    records = folder / "checks"
    found = check(str(face_folder), find_jpegs(str(face_folder)), crop=None, records=records)
    (path,) = records.iterdir()
    return path, path.read_bytes(), found


@thoroughly
@given(st.data())
def test_what_is_remembered_of_a_check(record, face_folder, data):
    path, intact, found = record
    path.write_bytes(data.draw(st.binary() | damaged(intact)))
    again = check(str(face_folder), find_jpegs(str(face_folder)), crop=None, records=path.parent)
    assert len(again.usable) + len(again.unusable) == len(found.usable)


def zipped(compression, face=b"\xff\xd8 an image"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in ("img_align_celeba/000001.jpg", "img_align_celeba/000002.jpg", PARTITION_FILE):
            archive.writestr(name, face * 20)
    return file.getvalue()


KINDS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@thoroughly
@given(st.binary() | st.sampled_from(KINDS).map(zipped).flatmap(damaged))
def test_an_archive(folder, content):
    with tempfile.TemporaryDirectory(dir=folder) as place:
        archive, out = Path(place) / "a.zip", Path(place) / "deep" / "er"
        archive.write_bytes(content)
        refusing(lambda: prepare_celeba(archive, out, 2))
        files = [path for path in Path(place).rglob("*") if not path.is_dir() and path != archive]
        assert all(path.parent == out / "img_align_celeba" or path == out / PARTITION_FILE for path in files)
        assert not [path for path in files if path.name.endswith(".partial")]


@pytest.fixture(scope="module")
def parquet(face_paths):
    """A parquet file of three images."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is missing (the extra `parquet`)")
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    rows = [{"bytes": Path(path).read_bytes(), "path": None} for path in face_paths[:3]]
    write_table(pyarrow.table({"image": rows}), file)
    return file.getvalue()


@thoroughly
@given(st.data())
def test_a_parquet_file(folder, parquet, data):
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, out = Path(place) / "in", Path(place) / "out"
        source.mkdir()
        (source / "train-00000-of-00001.parquet").write_bytes(data.draw(st.binary() | damaged(parquet)))
        refusing(lambda: prepare_celeba(source, out, 3))
        files = [path for path in out.rglob("*") if not path.is_dir()]
        assert all(path.parent == out / "img_align_celeba" or path == out / PARTITION_FILE for path in files)
        assert not [path for path in files if path.name.endswith(".partial")]


@pytest.fixture(scope="module")
def pictures(face_paths, folder):
    for number in range(3):
        (folder / f"pictures/{number}.jpg").parent.mkdir(exist_ok=True)
        os.link(face_paths[number], folder / f"pictures/{number}.jpg")
    return folder / "pictures"


@thoroughly
@given(st.binary() | damaged(b"0.jpg 0\n1.jpg 1\r\n2.jpg 2\n"))
def test_a_partition_file(pictures, content):
    (pictures / PARTITION_FILE).write_bytes(content)
    refusing(lambda: open_folder(pictures))


@thoroughly
@given(st.binary().map(b"\xff\xd8".__add__), st.sampled_from([b"", b"\xff\xd9"]))
def test_bytes_that_begin_like_a_jpeg(folder, content, end):
    (folder / "a.jpg").write_bytes(content + end)
    inspect(str(folder / "a.jpg"))
