"""The resident store: the same batches as `dali`, kept on disk whole, verified, shared, rebuilt."""

import itertools
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.augment import Augmentation
from fastae.data import loader, open_loader, resident
from fastae.data.crop_resize import CropResize
from fastae.errors import FastaeError
from fastae.utils.cache import entries

from ..commands import SMALL, fastae
from ..test_cli import refused
from .bad_files import bad_table


def open_(paths, cache, kind="resident", **options):
    defaults = {"batch_size": 8, "device": "cpu", "seed": 3, "compiled": False}
    return open_loader(paths, kind=kind, cache=cache, **(defaults | options))


def batches(*arguments, number=6, **options):
    return list(itertools.islice(open_(*arguments, **options).batches(), number))


def stores(cache):
    return [path for path in cache.iterdir() if path.name.startswith("resident-")]


@pytest.mark.parametrize("crop", [None, 100])
@pytest.mark.parametrize("compiled", [False, True])
def test_gives_dalis_batches_to_the_rounding_of_its_pixels(face_paths, tmp_path, crop, compiled):
    options = {"crop_resize": CropResize(crop), "compiled": compiled}
    ours = batches(face_paths, tmp_path, **options)
    theirs = batches(face_paths, tmp_path, kind="dali", **options)
    for one, other in zip(ours, theirs, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last) and one.dtype == torch.float32
        assert (one - other).abs().max() <= 1 / 255 + 1e-5


def test_compiled_and_eager_passes_agree(face_paths, tmp_path):
    for kind in ("dali", "resident"):
        eager = batches(face_paths, tmp_path, kind=kind, compiled=False)
        compiled = batches(face_paths, tmp_path, kind=kind, compiled=True)
        assert max((a - b).abs().max() for a, b in zip(eager, compiled, strict=True)) <= 2e-6


def test_a_batch_stays_valid_while_it_is_held(face_paths, tmp_path):
    stream = open_(face_paths, tmp_path).batches()
    held = next(stream)
    copy = held.clone()
    for _ in itertools.islice(stream, 5):
        pass
    assert torch.equal(held, copy)


def test_continues_anywhere(face_paths, tmp_path):
    running = batches(face_paths, tmp_path, number=12)[11]
    assert torch.equal(running, next(open_(face_paths, tmp_path).batches(11)))


def test_the_second_opening_decodes_a_sample_alone(face_paths, tmp_path, monkeypatch):
    first = batches(face_paths, tmp_path)
    (store,) = stores(tmp_path)
    made = store.stat().st_mtime_ns
    monkeypatch.setattr(resident, "_build", None)  # building again would fail
    again = batches(face_paths, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert store.stat().st_mtime_ns == made


@pytest.mark.parametrize("change", ["size", "content", "list", "crop", "antialias"])
def test_whatever_the_pixels_follow_from_makes_another_store(face_paths, tmp_path, change):
    copies = []
    for number, path in enumerate(face_paths[:10]):
        copies.append(str(tmp_path / f"{number}.jpg"))
        shutil.copy2(path, copies[-1])
    cache = tmp_path / "cache"
    open_(copies, cache)
    crop_resize = CropResize()
    if change == "size":
        crop_resize = CropResize(size=64)
    elif change == "crop":
        crop_resize = CropResize(crop=150)
    elif change == "antialias":
        crop_resize = CropResize(antialias=True)
    elif change == "list":
        copies = copies[1:]
    else:
        Path(copies[3]).write_bytes(Path(face_paths[20]).read_bytes())
    fresh = open_(copies, cache, crop_resize=crop_resize)
    assert len(stores(cache)) == 2
    assert torch.equal(next(fresh.batches()), next(open_(copies, None, crop_resize=crop_resize).batches()))


@pytest.mark.parametrize("bad", [[0], [3, 4], [9], [0, 3, 4, 5, 9]])
def test_every_run_that_opens_a_store_reports_its_bad_files(face_paths, tmp_path, monkeypatch, bad):
    """One at either end is in the sample that is decoded again."""
    paths = copies_of(face_paths[:10], tmp_path / "images")
    for number in bad:
        Path(paths[number]).write_bytes(bad_table(Path(paths[number]).read_bytes()))
    told = []
    first = batches(paths, tmp_path, on_replaced=lambda *them: told.append(them))
    assert [finding.path for finding, _ in told] == [paths[number] for number in bad]
    monkeypatch.setattr(resident, "_build", None)  # building again would fail
    again = []
    second = batches(paths, tmp_path, on_replaced=lambda *them: again.append(them))
    assert again == told and all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    "written", ["", "[]", '{"3": "what"}', '{"10": "gone"}', '{"-1": "gone"}', '{"3": "gone"}']
)
def test_a_store_is_built_anew_whose_bad_files_are_good_by_now_or_its_list_damaged(
    face_paths, tmp_path, written
):
    intact = batches(face_paths[:10], tmp_path)
    (store,) = stores(tmp_path)
    (store / resident.BAD).write_text(written)
    assert all(map(torch.equal, intact, batches(face_paths[:10], tmp_path)))
    assert (store / resident.BAD).read_text() == "{}\n"


DAMAGES = ["flipped pixels", "cut short", "no means", "not an array", "an archive", "other numbers", "nested"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_built_anew(face_paths, tmp_path, damage, capsys):
    intact = batches(face_paths, tmp_path)
    (store,) = stores(tmp_path)
    pixels = store / "pixels.npy"
    if damage == "flipped pixels":
        array = np.load(pixels, mmap_mode="r+")
        array[:] = ~array
        array.flush()
    elif damage == "cut short":
        os.truncate(pixels, pixels.stat().st_size // 2)
    elif damage == "no means":
        (store / "means.npy").unlink()
    elif damage == "an archive":
        np.savez((store / "means.npy").open("wb"), np.zeros(3))
    elif damage == "other numbers":
        np.save(store / "means.npy", np.load(store / "means.npy").astype(np.complex64))
    elif damage == "nested":
        header = np.lib.format.magic(1, 0) + (60_000).to_bytes(2, "little") + b"(" * 60_000
        pixels.write_bytes(header)
    else:
        pixels.write_bytes(b"\x80\x04pickle")
    assert all(torch.equal(a, b) for a, b in zip(intact, batches(face_paths, tmp_path), strict=True))
    assert ("pixels differ from the images" in capsys.readouterr().out) == (damage == "flipped pixels")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_build_leaves_nothing(face_paths, tmp_path, monkeypatch, error):
    def break_off(pixels, files, decoder):
        assert list(tmp_path.glob(".resident-*.partial/pixels.npy"))
        raise error

    monkeypatch.setattr(resident, "_fill", break_off)
    with pytest.raises((KeyboardInterrupt, FastaeError)) as caught:
        open_(face_paths, tmp_path)
    if isinstance(error, OSError):
        assert "No space left on device; use --cache-dir, --no-cache" in str(caught.value)
    assert not stores(tmp_path) and not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_line(face_folder, tmp_path):
    """A real one: a file system of 64 KiB would need root; a limit on file size does as well."""
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; trap '' XFSZ; exec {sys.executable} -m fastae train --data "
         f"{face_folder} --loader resident --cache-dir {tmp_path} --out {tmp_path}/run {' '.join(SMALL)}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused(result, "cannot keep the decoded images", "--no-cache")
    assert not stores(tmp_path) and not (tmp_path / "run").exists()


def test_two_runs_share_one_store(face_folder, tmp_path):
    command = [
        sys.executable, "-m", "fastae", "train", "--data", str(face_folder), "--loader", "resident",
        "--cache-dir", str(tmp_path), *SMALL, "--iterations", "2", "--out",
    ]  # fmt: skip
    runs = [
        subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(stores(tmp_path)) == 1
    one, other = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"] for name in "ab"
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_auto_says_what_it_chose_and_why(face_paths, tmp_path, monkeypatch):
    chosen = open_(face_paths, tmp_path, kind="auto")
    assert chosen.kind == "resident" and chosen.note.startswith("0.00 GB of images, ")
    monkeypatch.setattr(loader, "free_bytes", lambda device: 100_000)
    chosen = open_(face_paths, tmp_path, kind="auto")
    assert chosen.kind == "dali" and "is half of the free memory" in chosen.note
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100))
    chosen = open_(face_paths, tmp_path, kind="auto")
    assert chosen.kind == "dali" and "GB free in" in chosen.note


def test_memory_stays_flat_over_epochs(face_paths, tmp_path):
    def resident_megabytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    for kind in ("dali", "resident"):
        stream = open_(face_paths, tmp_path, kind=kind).batches()
        epoch = len(face_paths) // 8
        for _ in itertools.islice(stream, 5 * epoch):
            pass
        before = resident_megabytes()
        for _ in itertools.islice(stream, 20 * epoch):
            pass
        assert resident_megabytes() - before < 30


def copies_of(paths, folder):
    """The same files in a folder of their own, as of another time."""
    folder.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, folder / Path(path).name)
        os.utime(folder / Path(path).name, (1e9, 1e9))
    return sorted(str(path) for path in folder.iterdir())


def test_the_same_files_elsewhere_are_not_decoded_again(face_paths, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = batches(copies_of(face_paths, tmp_path / "here"), cache)
    (store,) = stores(cache)
    (entry,) = entries(cache)
    assert f"{len(face_paths)} images of {tmp_path}/here" in entry.marker.data
    os.utime(store / "entry.json", (1e9, 1e9))
    monkeypatch.setattr(resident, "_build", None)  # building again would fail
    there = copies_of(face_paths, tmp_path / "un" / "der" / "there")
    again = batches(there, cache)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert entries(cache)[0].used > 1.7e9


@pytest.mark.parametrize("place", [700, -700])
def test_other_bytes_of_the_same_size_make_another_store(face_paths, tmp_path, place):
    paths = copies_of(face_paths[:10], tmp_path / "data")
    open_(paths, tmp_path / "cache")
    content = bytearray(Path(paths[9]).read_bytes())
    content[place] ^= 1
    Path(paths[9]).write_bytes(content)
    open_(paths, tmp_path / "cache")
    assert len(stores(tmp_path / "cache")) == 2


def test_images_that_do_not_fit_into_memory_are_refused_not_killed(face_paths, monkeypatch):
    monkeypatch.setattr(resident, "free_bytes", lambda device: 100_000)
    with pytest.raises(FastaeError, match="--loader dali"):
        open_(face_paths, None)


def test_an_unusable_cache_folder_is_one_line(face_folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = fastae(
        "train", "--data", face_folder, "--loader", "resident", "--cache-dir", tmp_path / "file", *SMALL
    )  # fmt: skip
    assert refused(result, "cannot keep the decoded images", "--cache-dir")
    result = fastae("train", "--loader", "fast")
    assert refused(result, "--loader 'fast' is not one of: auto, dali, resident")


def test_strong_augmentation_stays_in_the_unit_interval(face_paths, tmp_path):
    (batch,) = batches(face_paths, tmp_path, number=1, augmentation=Augmentation(0.5, 1.0, 1.0))
    assert batch.min() >= 0 and batch.max() <= 1
