"""The store of decoded images is complete, verified, shared and rebuilt; `auto` chooses by its size."""

import json
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.data import CropResize
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders import choose, store
from fastae.data.loaders.decode import open_decoder
from fastae.errors import FastaeError
from fastae.experiment.augment import Augmentation
from fastae.utils import cache as caches
from fastae.utils.cache import entries

from .bad_files import bad_table
from .batches import differ, opened, same, take

CUDA = torch.device("cuda")


def batches(paths, cache, kind="resident", **options):
    return take(opened(paths, kind, cache=cache, **options).batches(), 6)


def stores(cache):
    return [path for path in cache.iterdir() if path.name.startswith("resident-")]


def test_resident_batches_equal_dalis_up_to_rounding(face_paths, tmp_path):
    # The augmentation amplifies the rounding, most of all in dark pixels.
    for augment, levels in (
        (Augmentation(0, 0, 0), 0.5),
        (Augmentation(), 1.5),
        (Augmentation(0.5, 1.0, 1.0), 5),
    ):
        options = {"augment": augment, "crop": 100}
        ours, theirs = (batches(face_paths, tmp_path, kind, **options) for kind in ("resident", "dali"))
        assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in ours)
        assert differ(ours, theirs) <= levels / 255 + 1e-5


def test_the_second_opening_builds_nothing_and_takes_no_lock(face_paths, tmp_path, monkeypatch):
    first = batches(face_paths, tmp_path)
    (entry,) = stores(tmp_path)
    made = entry.stat().st_mtime_ns
    monkeypatch.setattr(store, "_build", None)  # building again would fail
    monkeypatch.setattr(caches, "lock_entry", None)
    again = opened(face_paths, "host", cache=tmp_path)
    assert same(first, take(again.batches(), 6))
    assert entry.stat().st_mtime_ns == made
    assert str(entry / "pixels.npy") in Path("/proc/self/maps").read_text()  # shared, not copied


@pytest.mark.parametrize("change", ["size", "head", "tail", "list", "crop", "antialias", "decoder", "gpu"])
def test_whatever_the_pixels_depend_on_makes_another_store(face_paths, tmp_path, change, monkeypatch):
    paths = copies_of(face_paths[:10], tmp_path / "data")
    decoder = open_decoder(CropResize(), torch.device("cpu"))
    before = store._fingerprint(ImageFiles(paths), decoder)
    changes = {
        "size": {"size": 64},
        "crop": {"crop": 150},
        "antialias": {"antialias": True},
    }
    if change in changes:
        decoder = replace(decoder, crop_resize=CropResize(**changes[change]))
    elif change == "list":
        paths = paths[1:]
    elif change in ("head", "tail"):  # other bytes of the same size
        content = bytearray(Path(paths[9]).read_bytes())
        content[700 if change == "head" else -700] ^= 1
        Path(paths[9]).write_bytes(content)
    elif change == "decoder":
        monkeypatch.setattr(store, "version", lambda name: "9" if "nvjpeg" in name else None)
    else:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        decoder = replace(decoder, device=CUDA)
    assert store._fingerprint(ImageFiles(paths), decoder) != before


@pytest.mark.parametrize("bad", [[0], [3, 4], [9], [0, 3, 4, 5, 9]])
def test_every_run_that_opens_a_store_reports_its_bad_files(face_paths, tmp_path, monkeypatch, bad):
    paths = copies_of(face_paths[:10], tmp_path / "images")
    for number in bad:
        Path(paths[number]).write_bytes(bad_table(Path(paths[number]).read_bytes()))
    told = []
    first = batches(paths, tmp_path, on_replaced=lambda *them: told.append(them))
    assert [finding.path for finding, _ in told] == [paths[number] for number in bad]
    monkeypatch.setattr(store, "_build", None)  # building again would fail
    again = []
    second = batches(paths, tmp_path, on_replaced=lambda *them: again.append(them))
    assert again == told and same(first, second)


def test_a_store_is_rebuilt_after_its_bad_files_have_been_repaired(face_paths, tmp_path, monkeypatch, capsys):
    paths = copies_of(face_paths[:10], tmp_path / "images")
    intact = Path(paths[3]).read_bytes()
    Path(paths[3]).write_bytes(bad_table(intact))
    monkeypatch.setattr(store, "HASHED", 2)  # the first and the last
    with_bad = batches(paths, tmp_path)
    Path(paths[3]).write_bytes(intact)
    told = []
    repaired = batches(paths, tmp_path, on_replaced=lambda *them: told.append(them))
    assert "have been repaired: rebuilding resident-" in capsys.readouterr().out
    assert differ(repaired, with_bad) > 0.1 and told == [] and len(stores(tmp_path)) == 1


def flip_a_bit(store):
    pixels = np.load(store / "pixels.npy", mmap_mode="r+")
    pixels[17, 100, 1, 100] ^= 1
    pixels.flush()


def with_pipe(name):
    """Returns a function that replaces this file by a pipe, which would wait for a writer."""

    def damage(store):
        (store / name).unlink()
        os.mkfifo(store / name)

    return damage


def change_a_digest(store):
    marker = json.loads((store / "entry.json").read_text())
    marker["digests"]["pixels.npy"][0] ^= 1
    (store / "entry.json").write_text(json.dumps(marker))


DAMAGES = {
    "a bit": flip_a_bit,
    "cut short": lambda store: os.truncate(store / "pixels.npy", 1_000_000),
    "a terabyte": lambda store: os.truncate(store / "pixels.npy", 1 << 40),
    "emptied": lambda store: os.truncate(store / "means.npy", 0),
    "removed": lambda store: (store / "means.npy").unlink(),
    "other bad files": lambda store: (store / "bad.json").write_text('{"3": "gone"}'),
    "a digest": change_a_digest,
    "no digests": lambda store: (store / "entry.json").write_text("{}"),
    "a folder": lambda store: ((store / "means.npy").unlink(), (store / "means.npy").mkdir()),
    **{f"a pipe, {name}": with_pipe(name) for name in ("pixels.npy", "means.npy", "bad.json", "entry.json")},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_reported_and_rebuilt(face_paths, tmp_path, damage, monkeypatch, capsys):
    monkeypatch.setattr(caches, "BLOCK", 100_000)  # several blocks, as real stores have
    paths = face_paths[:30]
    intact = batches(paths, tmp_path)
    (store,) = stores(tmp_path)
    DAMAGES[damage](store)
    capsys.readouterr()
    for times in (1, 0):
        assert same(intact, batches(paths, tmp_path))
        lines = capsys.readouterr().out.splitlines()
        reports = [line for line in lines if line.startswith("resident  ")]
        assert len(reports) == times and all(f"rebuilding {store.name}" in line for line in reports)
    assert list(tmp_path.iterdir()) == [store] and [entry.path for entry in entries(tmp_path)] == [store]


def test_two_loaders_that_open_a_store_at_once_build_it_once(face_paths, tmp_path, monkeypatch):
    """The lock excludes other threads just as it excludes other processes."""
    builds, build = [], store._build
    monkeypatch.setattr(store, "_build", lambda *given, **rest: builds.append(0) or build(*given, **rest))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda paths: batches(paths, tmp_path), [face_paths] * 2)
    assert same(one, other) and len(stores(tmp_path)) == len(builds) == 1


GB = 10**9
CELEBA = ImageFiles([""] * 202_599)


@pytest.mark.parametrize(
    ("device", "on_device", "on_host", "ranks", "kind"),
    [
        ("cuda", 24 * GB, 64 * GB, 8, "resident"),
        ("cuda", 12 * GB, 64 * GB, 3, "host"),
        ("cuda", 12 * GB, 64 * GB, 4, "dali"),
        ("cuda", 12 * GB, 12 * GB, 1, "dali"),
        ("cpu", 64 * GB, 64 * GB, 3, "resident"),
        ("cpu", 64 * GB, 64 * GB, 4, "dali"),
    ],
)
def test_auto_chooses_the_fastest_that_fits(monkeypatch, device, on_device, on_host, ranks, kind):
    """The ranks of a machine share its memory."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    free = {device: on_device, "cpu": on_host}
    monkeypatch.setattr(choose, "free_memory", lambda device: free[device.type])
    decoder = open_decoder(CropResize(), torch.device(device, 0))
    assert choose._choose_kind(CELEBA, decoder, None)[0] == kind


def test_auto_needs_disk_space_unless_the_store_exists_already(face_paths, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100))
    assert opened(face_paths, "auto", cache=tmp_path).kind == "dali"
    opened(face_paths, "resident", cache=tmp_path)
    chosen = opened(face_paths, "auto", cache=tmp_path)
    assert chosen.kind == "resident" and chosen.note


@pytest.mark.parametrize("cache", ["/proc/fastae", "file/cache"])
def test_auto_chooses_dali_if_the_cache_cannot_be_written(face_paths, tmp_path, cache):
    (tmp_path / "file").touch()
    chosen = opened(face_paths, "auto", cache=tmp_path / cache)
    assert chosen.kind == "dali" and str(tmp_path / cache) in chosen.note


def test_auto_uses_a_store_in_a_cache_that_cannot_be_written(face_paths, tmp_path, monkeypatch):
    opened(face_paths, "resident", cache=tmp_path)
    monkeypatch.setattr(choose, "is_writable", lambda cache: False)
    assert opened(face_paths, "auto", cache=tmp_path).kind == "resident"


def copies_of(paths, folder):
    """Copies files to a new folder, with another modification time. Returns their paths."""
    folder.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, folder / Path(path).name)
        os.utime(folder / Path(path).name, (1e9, 1e9))
    return sorted(str(path) for path in folder.iterdir())


def test_the_same_files_elsewhere_are_not_decoded_again(face_paths, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = batches(copies_of(face_paths, tmp_path / "here"), cache)
    (entry,) = entries(cache)
    assert f"{len(face_paths)} images of {tmp_path}/here" in entry.marker.data
    monkeypatch.setattr(store, "_build", None)  # building again would fail
    there = copies_of(face_paths, tmp_path / "un" / "der" / "there")
    assert same(first, batches(there, cache))


def test_images_that_do_not_fit_into_memory_are_refused(face_paths, monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda device: 100_000)
    with pytest.raises(FastaeError, match="use the dali loader"):
        opened(face_paths, "resident", cache=False)


def test_an_unusable_cache_folder_gives_a_one_line_error(face_paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FastaeError, match=r"cannot keep the decoded images in .*another cache folder"):
        opened(face_paths, "resident", cache=tmp_path / "file")
