"""A file that goes bad between the check and its reading: reported, replaced, and the run goes on."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data import Geometry, load_images, open_loader
from fastae.data.mending import ImageFiles
from fastae.data.order import Order
from fastae.errors import FastaeError

from ..commands import SMALL, started, wait_for
from .bad_files import claiming

TRUNCATED = slice(0, 2500)
WAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[TRUNCATED]),
    "emptied": lambda path: path.write_bytes(b""),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "not a JPEG": lambda path: path.write_bytes(b"x" * 5000),
    "huge": lambda path: path.write_bytes(claiming(path.read_bytes(), 65_500, 65_500)),
    "removed": lambda path: path.unlink(),
}


@pytest.fixture
def paths(tmp_path, face_paths):
    """Twelve images of one's own, to damage."""
    copies = []
    for number in range(12):
        copy = tmp_path / f"{number:02d}.jpg"
        copy.write_bytes(Path(face_paths[number]).read_bytes())
        copies.append(str(copy))
    return copies


def open_(paths, kind="dali", told=None, cache=None):
    return open_loader(
        paths, kind=kind, batch_size=4, device="cpu", seed=0, compiled=False, cache=cache,
        on_replaced=None if told is None else lambda bad, other: told.append((bad, other)),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dali", "resident"])
@pytest.mark.parametrize("way", WAYS)
def test_the_next_good_image_stands_in_and_nothing_else_changes(paths, way, kind):
    substituted = [*paths[:5], paths[7], paths[7], *paths[7:]]
    expected = list(itertools.islice(open_(substituted, kind).batches(), 9))
    told = []
    loader_paths = list(paths)
    WAYS[way](Path(paths[5]))
    WAYS[way](Path(paths[6]))
    got = list(itertools.islice(open_(loader_paths, kind, told).batches(), 9))
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    assert sorted(bad.path for bad, _ in told) == paths[5:7]
    assert told[-1][1] == paths[7]


def test_a_file_that_goes_bad_in_mid_run(paths):
    told = []
    batches = open_(paths, told=told).batches()
    epoch = 3
    before = list(itertools.islice(batches, epoch))
    Path(paths[0]).write_bytes(b"")
    after = list(itertools.islice(batches, 4 * epoch))
    assert len(before) + len(after) == 15
    assert [bad.fault.value for bad, _ in told] == ["empty"]
    assert open_(paths).order == Order(12, 4, 0, open_(paths).order.augmentation)


def test_evaluation_images_are_mended_too(paths):
    expected = load_images([paths[0], paths[2], paths[2]], Geometry(), "cpu")
    Path(paths[1]).write_bytes(b"")
    assert torch.equal(load_images(paths[:3], Geometry(), "cpu"), expected)


def test_a_folder_that_vanishes_is_one_clear_error(paths):
    batches = open_(paths).batches()
    next(batches)
    for path in paths:
        Path(path).unlink()
    with pytest.raises(FastaeError, match="none of the 12 images can be read any more"):
        for _ in itertools.islice(batches, 10):
            pass


@pytest.mark.parametrize("gone", [1.0, 0.5])
def test_thousands_of_files_that_vanish_are_noticed_at_once(tmp_path, face_paths, gone):
    """Found batch by batch, each with a new pipeline, they would take minutes."""
    paths = [str(tmp_path / f"{number:05d}.jpg") for number in range(3_000)]
    for path, face in zip(paths, itertools.cycle(face_paths)):
        os.link(face, path)
    told = []
    batches = open_loader(
        paths, kind="dali", batch_size=64, device="cpu", seed=0, compiled=False, cache=None,
        geometry=Geometry(size=16), on_replaced=lambda bad, _: told.append(bad.path),
    ).batches()  # fmt: skip
    next(batches)
    lost = paths[: int(gone * len(paths))]
    for path in lost:
        Path(path).unlink()
    started = time.perf_counter()
    if gone == 1:
        with pytest.raises(FastaeError, match="none of the 3000 images can be read any more"):
            next(itertools.islice(batches, 10, None))
        assert told == []
    else:
        next(itertools.islice(batches, 10, None))
        assert sorted(told) == lost
    assert time.perf_counter() - started < 10


def test_a_resident_run_does_not_need_its_folder_any_more(paths):
    expected = list(itertools.islice(open_(paths, "resident").batches(), 12))
    batches = open_(paths, "resident").batches()
    first = next(batches)
    shutil.rmtree(Path(paths[0]).parent)
    assert all(map(torch.equal, [first, *itertools.islice(batches, 11)], expected))


def test_a_file_that_dali_alone_refuses_is_found(paths, tmp_path):
    """An image that is smaller than the crop, by now: nothing is wrong with the file itself."""
    told = []
    batches = open_loader(
        paths, kind="dali", batch_size=4, device="cpu", seed=0, compiled=False, cache=None,
        geometry=Geometry(crop=100), on_replaced=lambda bad, _: told.append(bad),
    ).batches()  # fmt: skip
    next(batches)
    for path in paths[3:5]:
        Image.new("RGB", (60, 60)).save(path)
    next(itertools.islice(batches, 12, None))
    assert sorted(bad.path for bad in told) == paths[3:5]
    assert {bad.fault.value for bad in told} == {"does not decode"}


@pytest.mark.parametrize("failures", [1, 2])
def test_a_file_that_was_just_being_written_is_tried_once_more(paths, failures):
    """By the time it is looked at it is whole again, so that nothing is found to be bad."""
    left = iter(range(failures))

    def stream(position):
        for item in range(position, 5):
            if item == 3 and next(left, None) is not None:
                raise RuntimeError("DALI's")
            yield item

    items = ImageFiles(paths).mended(stream, lambda position: range(12), lambda some: True)
    if failures == 1:
        assert list(items) == [0, 1, 2, 3, 4]
    else:
        with pytest.raises(RuntimeError, match="DALI's"):
            list(items)


@pytest.mark.parametrize("refused", [1, 8, 9, 12])
def test_a_decoder_that_refuses_many_whole_files_is_to_blame_itself(paths, refused):
    """A GPU that is lost, say: the files are not declared bad for that."""
    told, bad = [], set(paths[:refused])

    def stream(position):
        if bad & set(files.paths):
            raise RuntimeError("DALI's")
        yield from range(position, 5)

    files = ImageFiles(paths, lambda finding, _: told.append(finding.path))
    items = files.mended(stream, lambda position: range(12), lambda some: not bad & set(some))
    if refused <= 8:
        assert list(items) == [0, 1, 2, 3, 4] and told == paths[:refused]
    else:
        with pytest.raises(RuntimeError, match="DALI's"):
            list(items)
        assert told == []


def test_a_file_cut_short_while_it_is_read_does_not_kill_the_process(paths):
    """Mapped into memory, it did: a read behind the new end of the file is SIGBUS."""
    for path in paths:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:-2] + bytes(300_000) + whole[-2:])
    cutting = f"""
import os, time
files = [(path, open(path, "rb").read()) for path in {paths!r}]
end = time.monotonic() + 60
while time.monotonic() < end:
    for path, whole in files:
        file = os.open(path, os.O_RDWR)
        os.ftruncate(file, 10)
        os.pwrite(file, whole, 0)
        os.close(file)
"""
    reading = f"""
import time, torch
from fastae.data.geometry import Geometry
from fastae.data.pipeline import Engine, read_regions
end, failures = time.monotonic() + 1, 0
while time.monotonic() < end:
    try:
        batches = ({paths!r} for _ in range(50))
        for _ in read_regions(batches, Geometry(100), Engine(torch.device("cpu"), 12, 2)):
            if time.monotonic() > end:
                break
    except RuntimeError:
        failures += 1
print(failures)
"""
    cutter = subprocess.Popen([sys.executable, "-c", cutting])
    try:
        reader = subprocess.run([sys.executable, "-c", reading], capture_output=True, text=True, check=False)
    finally:
        cutter.kill()
        cutter.wait()
    assert reader.returncode == 0, reader.stderr[-1000:]
    assert int(reader.stdout) > 0


def test_a_run_whose_folder_vanishes_ends_in_one_line(paths, tmp_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("vanished") / "run"
    options = ["--loader", "dali", "--out", out, *SMALL, "--log-every", 1, "--gpu-sample-hz", 0]
    with started("train", "--data", tmp_path, *options) as run:
        wait_for(run, "images/s")
        shutil.rmtree(tmp_path)
        said = run.communicate(timeout=60)[1]
        assert run.returncode == 1
    (line,) = said.splitlines()
    assert "none of the 11 images can be read any more: is the folder gone?; nothing was saved yet" in line
    assert line.endswith(f"fastae train --resume {out}")
