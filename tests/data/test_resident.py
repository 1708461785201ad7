"""The store of decoded images: on disk whole, verified, shared, rebuilt; and what `auto` chooses by it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.augment import Augmentation
from fastae.data import CropResize, Tuning, open_loader
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders import loader, resident
from fastae.data.loaders.decode import open_decoder
from fastae.errors import FastaeError
from fastae.utils import cache as caches
from fastae.utils.cache import entries

from ..mounts import mounted, require_mounts
from .bad_files import bad_table

CUDA = torch.device("cuda")


def open_(paths, cache, kind="resident", compiled=False, **options):
    options = {"batch_size": 8, "device": "cpu", "seed": 3} | options
    return open_loader(paths, kind=kind, cache=cache, tuning=Tuning(compiled=compiled), **options)


def batches(*arguments, number=6, **options):
    return list(itertools.islice(open_(*arguments, **options).batches(), number))


def stores(cache):
    return [path for path in cache.iterdir() if path.name.startswith("resident-")]


def differ(ours, theirs):
    return max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True))


def test_gives_dalis_batches_to_the_rounding_of_its_pixels_compiled_or_not(face_paths, tmp_path):
    # The augmentation amplifies the rounding, that of dark pixels most.
    for augment, levels in (
        (Augmentation(0, 0, 0), 0.5),
        (Augmentation(), 1.5),
        (Augmentation(0.5, 1.0, 1.0), 5),
    ):
        options = {"augment": augment, "crop": 100}
        ours, theirs = (batches(face_paths, tmp_path, kind, **options) for kind in ("resident", "dali"))
        assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in ours)
        assert differ(ours, theirs) <= levels / 255 + 1e-5
    for kind in ("dali", "resident"):
        eager, compiled = (batches(face_paths, tmp_path, kind, compiled=value) for value in (False, True))
        assert differ(eager, compiled) <= 2e-6


def test_the_second_opening_builds_nothing_and_takes_no_lock(face_paths, tmp_path, monkeypatch):
    first = batches(face_paths, tmp_path)
    (store,) = stores(tmp_path)
    made = store.stat().st_mtime_ns
    monkeypatch.setattr(resident, "_build", None)  # building again would fail
    monkeypatch.setattr(caches, "lock_entry", None)
    again = open_(face_paths, tmp_path, kind="host")
    assert all(map(torch.equal, first, again.batches()))
    assert store.stat().st_mtime_ns == made
    assert str(store / "pixels.npy") in Path("/proc/self/maps").read_text()  # shared, not copied


@pytest.mark.parametrize("change", ["size", "head", "tail", "list", "crop", "antialias", "decoder", "gpu"])
def test_whatever_the_pixels_follow_from_makes_another_store(face_paths, tmp_path, change, monkeypatch):
    paths = copies_of(face_paths[:10], tmp_path / "data")
    decoder = open_decoder(CropResize(), torch.device("cpu"))
    before = resident._fingerprint(ImageFiles(paths), decoder)
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
        monkeypatch.setattr(resident, "version", lambda name: "9" if "nvjpeg" in name else None)
    else:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        decoder = replace(decoder, device=CUDA)
    assert resident._fingerprint(ImageFiles(paths), decoder) != before


@pytest.mark.parametrize("bad", [[0], [3, 4], [9], [0, 3, 4, 5, 9]])
def test_every_run_that_opens_a_store_reports_its_bad_files(face_paths, tmp_path, monkeypatch, bad):
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


def test_a_store_is_built_anew_whose_bad_files_are_good_by_now(face_paths, tmp_path, monkeypatch, capsys):
    paths = copies_of(face_paths[:10], tmp_path / "images")
    intact = Path(paths[3]).read_bytes()
    Path(paths[3]).write_bytes(bad_table(intact))
    monkeypatch.setattr(resident, "HASHED", 2)  # the first and the last
    with_bad = batches(paths, tmp_path)
    Path(paths[3]).write_bytes(intact)
    told = []
    repaired = batches(paths, tmp_path, on_replaced=lambda *them: told.append(them))
    assert "have been repaired: rebuilding resident-" in capsys.readouterr().out
    assert differ(repaired, with_bad) > 0.1 and told == [] and len(stores(tmp_path)) == 1


def changed(name, change):
    """A damage: what `change` makes of an array of the store, which is mapped."""

    def damage(store):
        array = np.load(store / name, mmap_mode="r+")
        change(array)
        array.flush()

    return damage


def flip_a_bit_of_each_image(pixels):
    pixels[:, 100, 1, 100] ^= 1


def with_pipe(name):
    """A damage: a pipe instead of this file, which would wait for a writer."""

    def damage(store):
        (store / name).unlink()
        os.mkfifo(store / name)

    return damage


def change_a_digest(store):
    marker = json.loads((store / "entry.json").read_text())
    marker["digests"]["pixels.npy"][0] ^= 1
    (store / "entry.json").write_text(json.dumps(marker))


NESTED_HEADER = np.lib.format.magic(1, 0) + (60_000).to_bytes(2, "little") + b"(" * 60_000
DAMAGES = {
    "a bit of each image": changed("pixels.npy", flip_a_bit_of_each_image),
    "means that are no numbers": changed("means.npy", lambda means: means.fill(np.nan)),
    "cut short": lambda store: os.truncate(store / "pixels.npy", 1_000_000),
    "a terabyte": lambda store: os.truncate(store / "pixels.npy", 1 << 40),
    "emptied": lambda store: os.truncate(store / "means.npy", 0),
    "removed": lambda store: (store / "means.npy").unlink(),
    "not an array": lambda store: (store / "pixels.npy").write_bytes(b"\x80\x04pickle"),
    "a nested header": lambda store: (store / "pixels.npy").write_bytes(NESTED_HEADER),
    "other bad files": lambda store: (store / "bad.json").write_text('{"3": "gone"}'),
    "a digest": change_a_digest,
    "no digests": lambda store: (store / "entry.json").write_text("{}"),
    "a folder": lambda store: ((store / "means.npy").unlink(), (store / "means.npy").mkdir()),
    **{f"a pipe, {name}": with_pipe(name) for name in ("pixels.npy", "means.npy", "bad.json", "entry.json")},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_reported_and_built_anew(face_paths, tmp_path, damage, capsys):
    paths = face_paths[:30]
    intact = batches(paths, tmp_path)
    (store,) = stores(tmp_path)
    DAMAGES[damage](store)
    capsys.readouterr()
    for times in (1, 0):
        assert all(map(torch.equal, intact, batches(paths, tmp_path)))
        lines = capsys.readouterr().out.splitlines()
        reports = [line for line in lines if line.startswith("resident  ")]
        assert len(reports) == times and all(f"rebuilding {store.name}" in line for line in reports)
    assert list(tmp_path.iterdir()) == [store] and [entry.path for entry in entries(tmp_path)] == [store]


def test_every_block_has_a_digest(face_paths, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "BLOCK", 100_000)
    open_(face_paths[:10], tmp_path)
    (entry,) = entries(tmp_path)
    blocks = -(-(entry.path / "pixels.npy").stat().st_size // 100_000)
    assert len(set(entry.marker.digests["pixels.npy"])) == blocks > 4
    assert entry.marker.digests.keys() == {"pixels.npy", "means.npy", "bad.json"}


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from fastae.data import Tuning, open_loader
from fastae.data.faces import synthetic as faces, portrait
from fastae.data.loaders import resident
from fastae.data.source import open_source
from fastae.utils.cache import entries

cache, images = map(Path, sys.argv[1:])
faces.COUNT = 40

def use():
    assert len(open_source(None, cache=cache)[0].train) == 38
    loader = open_loader(images, kind="resident", batch_size=8, device="cpu", seed=3, cache=cache,
                         tuning=Tuning(compiled=False))
    return next(loader.batches())

before = use()
subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
resident._build = portrait.draw = None  # building again would fail
assert (use() == before).all() and len(entries(cache)) == 3
"""


def test_a_filled_cache_that_is_read_only_is_used(face_folder, tmp_path):
    require_mounts(tmp_path)
    command = mounted(tmp_path, "size=32m", sys.executable, "-c", READ_ONLY, tmp_path, face_folder)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_build_leaves_nothing(face_paths, tmp_path, monkeypatch, error):
    def break_off(pixels, files, decoder):
        assert list(tmp_path.glob(".resident-*.partial/pixels.npy"))
        raise error

    monkeypatch.setattr(resident, "_fill", break_off)
    with pytest.raises((KeyboardInterrupt, FastaeError)) as caught:
        open_(face_paths, tmp_path)
    if isinstance(error, OSError):
        assert "No space left on device; use another cache folder" in str(caught.value)
    assert not stores(tmp_path) and not list(tmp_path.glob("*.partial"))


OPENING = """
import sys
from fastae.data import Tuning, open_loader
loader = open_loader(sys.argv[1], kind="resident", batch_size=8, device="cpu", seed=3, cache=sys.argv[2],
                     tuning=Tuning(compiled=False))
print(next(loader.batches()).sum().item())
"""


def test_two_processes_build_one_store(face_folder, tmp_path):
    command = [sys.executable, "-c", OPENING, str(face_folder), str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, other = (run.communicate(timeout=600)[0].splitlines()[-1] for run in runs)
    assert one == other and len(stores(tmp_path)) == 1


GB = 10**9
CELEBA = ImageFiles([""] * 202_599)


@pytest.mark.parametrize(
    ("device", "on_device", "on_host", "at_once", "kind"),
    [
        ("cuda", 24 * GB, 64 * GB, 1, "resident"),
        ("cuda", 24 * GB, 64 * GB, 6, "host"),
        ("cuda", 80 * GB, 64 * GB, 6, "resident"),
        ("cuda", 12 * GB, 64 * GB, 1, "host"),
        ("cuda", 12 * GB, 12 * GB, 1, "dali"),
        ("cpu", 64 * GB, 64 * GB, 1, "resident"),
        ("cpu", 64 * GB, 64 * GB, 6, "dali"),
        ("cpu", 12 * GB, 12 * GB, 1, "dali"),
    ],
)
def test_auto_chooses_the_fastest_that_fits(monkeypatch, device, on_device, on_host, at_once, kind):
    """Runs at once all need some of the device's memory."""
    free = {device: on_device, "cpu": on_host}
    monkeypatch.setattr(loader, "free_memory", lambda device: free[device.type])
    decoder = open_decoder(CropResize(), torch.device(device, 0))
    assert loader._choose_kind(CELEBA, decoder, None, at_once)[0] == kind


@pytest.mark.parametrize(("at_once", "kind"), [(1, "resident"), (6, "dali")])
def test_auto_leaves_memory_for_all_runs_at_once(monkeypatch, face_paths, at_once, kind):
    monkeypatch.setattr(loader, "free_memory", lambda device: 4 * loader.store_bytes(len(face_paths), 16))
    opened = loader.open_loader(face_paths, 4, image_size=16, device="cpu", cache=False, at_once=at_once)
    assert opened.kind == kind


def test_auto_needs_room_on_the_disk_unless_the_images_are_there_already(face_paths, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100))
    assert open_(face_paths, tmp_path, kind="auto").kind == "dali"
    open_(face_paths, tmp_path)
    chosen = open_(face_paths, tmp_path, kind="auto")
    assert chosen.kind == "resident" and chosen.note


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
    (entry,) = entries(cache)
    assert f"{len(face_paths)} images of {tmp_path}/here" in entry.marker.data
    monkeypatch.setattr(resident, "_build", None)  # building again would fail
    there = copies_of(face_paths, tmp_path / "un" / "der" / "there")
    assert all(map(torch.equal, first, batches(there, cache)))


def test_images_that_do_not_fit_into_memory_are_refused_not_killed(face_paths, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 100_000)
    with pytest.raises(FastaeError, match="use the dali loader"):
        open_(face_paths, False)


def test_an_unusable_cache_folder_is_one_line(face_paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FastaeError, match=r"cannot keep the decoded images in .*another cache folder"):
        open_(face_paths, tmp_path / "file")
