"""Files of every kind that fastae reads, with anything in them: each is read, or refused by a FastaeError.

A few dozen contents of each kind in `make test`; with FASTAE_FUZZ, which `make fuzz` sets, thousands.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastae.config import TrainConfig
from fastae.data.files.check import check_folder
from fastae.data.files.folder import open_folder
from fastae.data.files.manifest import Manifest
from fastae.data.files.prepare import prepare_celeba
from fastae.data.files.search import find_files
from fastae.errors import FastaeError
from fastae.monitor.files import read_reports
from fastae.monitor.text import show_reports
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.tensors import write_tensors
from fastae.sweep.folder import SweepFolder
from fastae.sweep.plan import SweepConfig
from fastae.utils.cache import Marker, damage
from fastae.utils.console import HarmlessConsole

from ..test_untrusted import foreign_report

EXAMPLES = 2_000 if "FASTAE_FUZZ" in os.environ else 25
# Not `deadline`: on a busy machine any example may wait.
thoroughly = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FASTAE_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

numbers = st.integers() | st.floats() | st.sampled_from([2**63, 10**400, -1, 0])
words = st.text(max_size=20) | st.sampled_from(["", "../..", "\0", "\x1b[31m", "a\nb", "\udcff"])
anything = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def changed(draw: Callable, value: Any) -> Any:
    """A JSON value with something else at one point in it, one thing less or one more."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(anything)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    value = value.copy()
    what = draw(st.sampled_from(["inside", "inside", "inside", "less", "more"]))
    if what == "inside":
        value[key] = draw(changed(value[key]))
    elif what == "less":
        del value[key]
    elif isinstance(value, dict):
        value[draw(words)] = draw(anything)
    else:
        value.append(draw(anything))
    return value


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """The same bytes but for some; cut short, or longer."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # The ends are where headers and directories are.
        start = draw(st.integers(0, 200) | st.integers(0, len(content)) | st.integers(-400, -1))
        content[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    if draw(st.integers(0, 4)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def settings_of_a_run(path, pictures):
    config = RunFolder(path.parent).read_config()
    assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict())), "config.json") == config


def images_of_a_run(path, pictures):
    images = Manifest.read(path)
    opened = open_folder(pictures, manifest=images)
    assert {*opened.train, *opened.held_out} <= set(find_files(str(pictures)))
    assert (len(opened.train), len(opened.held_out)) == (len(images.train), len(images.held_out))


def usage_report(path, pictures):
    reports, screen = read_reports(path.parent), io.StringIO()
    show_reports(reports, HarmlessConsole(file=screen, width=200))
    assert all(character.isprintable() or character == "\n" for character in screen.getvalue())


def plan_of_a_sweep(path, pictures):
    """Whatever the file says, a sweep is opened only if it says what the command says."""
    config = SweepConfig(TrainConfig())
    SweepFolder(path.parent).require_resumable(config)
    assert json.loads(path.read_bytes()) == config.settings()


def checkpoint_of_a_run(path, pictures):
    lines = []
    found = checkpoint.newest(path.parent, lines.append)
    assert found or (len(lines) == 1 and "\n" not in lines[0])


def marker_of_a_cache_entry(path, pictures):
    path.with_name("pixels.npy").write_bytes(b"pixels")
    if reason := damage(path.parent):
        raise FastaeError(reason)


def records_of_a_check(path, pictures):
    folder = path.with_suffix("")
    found = check_folder(str(pictures), crop=None, records=folder)
    (records,) = folder.iterdir()
    path.replace(records)
    assert check_folder(str(pictures), crop=None, records=folder) == found


def celeba(path, pictures):
    """An archive, or a parquet file in a folder."""
    out = path.parent / "deep" / "er" / "out"
    try:
        prepare_celeba(path if path.suffix == ".zip" else path.parent, out, 2)
    finally:
        written = [each for each in path.parents[1].rglob("*") if each.is_file() and each != path]
        assert all(each.parent in (out, out / "img_align_celeba") for each in written)
        assert all(each.suffix in (".jpg", ".txt") for each in written)


def split_file(path, pictures):
    for each in pictures.iterdir():
        os.link(each, path.with_name(each.name))
    assert len(open_folder(path.parent).manifest.sizes) == 3


NAMES = {
    "config.json": settings_of_a_run,
    "images.json": images_of_a_run,
    "gpu.json": usage_report,
    "sweep.json": plan_of_a_sweep,
    "0000001.safetensors": checkpoint_of_a_run,
    "entry.json": marker_of_a_cache_entry,
    "records.msgpack": records_of_a_check,
    "celeba.zip": celeba,
    "train-0.parquet": celeba,
    "list_eval_partition.txt": split_file,
}
JSON = [name for name in NAMES if name.endswith(".json")]


@pytest.fixture(scope="module")
def pictures(face_paths, tmp_path_factory):
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in face_paths[:3]:
        os.link(path, folder / Path(path).name)
    return folder


@pytest.fixture(scope="module")
def intact(pictures, face_paths, tmp_path_factory):
    """A function: name of a file -> contents to damage."""
    records = tmp_path_factory.mktemp("records")
    check_folder(str(pictures), crop=None, records=records)

    def saved(write):
        file = io.BytesIO()
        write(file)
        return file.getvalue()

    def archive(compression):
        with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
            for name in ("000001.jpg", "b/000002.jpg", "list_eval_partition.txt"):
                archive.writestr(name, b"000001.jpg 0\n" * 20)
        return file.getvalue()

    weights = records.with_name("weights.safetensors")
    state = {"iteration": 1, "scaler": {}, "config": {}, "run": {}, "seconds": 0.0}
    tensors = {"model/weight": torch.ones(3, 4), "step": torch.tensor(0)}
    write_tensors(weights, tensors, {"state": json.dumps(state)})
    marker = Marker("resident", "images", "1", {"pixels.npy": [zlib.crc32(b"pixels")]})
    contents = {
        "config.json": [{"config": TrainConfig().as_dict(), "data": {}}],
        "images.json": [dataclasses.asdict(open_folder(pictures).manifest)],
        "gpu.json": [[foreign_report("text")]],
        "sweep.json": [SweepConfig(TrainConfig()).settings()],
        "0000001.safetensors": [weights.read_bytes()],
        "entry.json": [dataclasses.asdict(marker)],
        "records.msgpack": [path.read_bytes() for path in records.iterdir()],
        "celeba.zip": [archive(zipfile.ZIP_STORED), archive(zipfile.ZIP_DEFLATED)],
        "list_eval_partition.txt": [b"000001.jpg 0\n000002.jpg 1\r\n", b"image_id,partition\r\n000001.jpg,0"],
    }
    with suppress(ImportError):
        import pyarrow
        from pyarrow.parquet import write_table

        rows = [{"bytes": Path(path).read_bytes(), "path": None} for path in face_paths[:3]]
        table = pyarrow.table({"image": rows})
        contents["train-0.parquet"] = [saved(lambda file: write_table(table, file))]
    return lambda name: contents.get(name, [b""])


def read(folder, name, content, pictures):
    path = folder / "in" / name
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    NAMES[name](path, pictures)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
@thoroughly
@given(data=st.data())
def test_any_content_is_read_or_refused(intact, pictures, tmp_path_factory, name, data):
    good = data.draw(st.sampled_from(intact(name)))
    change = damaged(good) if isinstance(good, bytes) else changed(good)
    content = data.draw(st.binary() | change | change)
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder, suppress(FastaeError):
        read(Path(folder), name, content, pictures)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "train-0.parquet"])
def test_intact_content_is_read(intact, pictures, tmp_path, name):
    read(tmp_path, name, intact(name)[0], pictures)


@pytest.mark.parametrize("name", JSON)
def test_json_that_no_parser_likes(pictures, tmp_path, name):
    path = tmp_path / name
    for content in ("[" * 200_000, '{"a":' * 200_000, "9" * 5_000, ""):
        path.write_text(content)
        with pytest.raises(FastaeError):
            NAMES[name](path, pictures)
    os.truncate(path, 1 << 40)
    with pytest.raises(FastaeError):
        NAMES[name](path, pictures)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FastaeError):
        NAMES[name](path, pictures)
