"""The files a run began with are what it resumes, whatever its folder holds by then."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastae.data import folder as folders
from fastae.data import jpeg
from fastae.data import manifest as manifest
from fastae.data.folder import PARTITION_FILE, open_folder
from fastae.data.manifest import Manifest
from fastae.errors import FastaeError


@pytest.fixture
def root(face_folder, tmp_path):
    """A folder of one's own: nested, and with a name that is not UTF-8."""
    root = tmp_path / "below" / "faces"
    shutil.copytree(face_folder, root)
    (root / "deep").mkdir()
    names = sorted(root.glob("*.jpg"))
    names[3].rename(root / "deep" / "a.jpg")
    names[4].rename(root / os.fsdecode(b"\xff.jpg"))
    return root


def names(opened):
    return [os.path.relpath(path, opened.root) for path in (*opened.train, *opened.held_out)]


@pytest.mark.parametrize("ending", ["", "/", "/../faces"])
def test_nothing_happened(root, ending):
    opened = open_folder(f"{root}{ending}")
    images = opened.manifest
    assert [*images.train, *images.held_out] == names(opened)
    assert images.sizes == {name: (root / name).stat().st_size for name in names(opened)}
    assert open_folder(f"{root}{ending}", manifest=images) == opened
    assert open_folder(root).manifest == images


def test_it_is_read_as_it_was_written(root, tmp_path):
    images, path = open_folder(root).manifest, tmp_path / "images.json"
    images.write(path)
    assert "\\udcff.jpg" in path.read_text()
    again = Manifest.read(path)
    assert (again, again.fingerprint) == (images, images.fingerprint)


def test_a_list_too_long_to_be_read_again_is_refused(root, tmp_path, monkeypatch):
    images = open_folder(root).manifest
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    with pytest.raises(FastaeError, match="the names of 40 images are more than 100 bytes"):
        images.write(tmp_path / "images.json")
    assert not (tmp_path / "images.json").exists()


def test_what_differs_gives_another_fingerprint():
    one = Manifest("", {"a": 1, "b": 2}, {"c": 3})
    others = [
        Manifest("", {"a": 1, "b": 9}, {"c": 3}),
        Manifest("", {"a": 1, "x": 2}, {"c": 3}),
        Manifest("", {"b": 2, "a": 1}, {"c": 3}),
        Manifest("", {"a": 1}, {"b": 2, "c": 3}),
    ]
    assert len({images.fingerprint for images in (one, *others)}) == 5
    assert len(one.fingerprint) == 32


@pytest.mark.parametrize("how", ["gone", "empty"])
@pytest.mark.parametrize("place", [0, 5, 37])
def test_a_lost_file_leaves_its_place_to_the_next(root, how, place):
    before = open_folder(root)
    lost = Path(before.train[place])
    lost.unlink() if how == "gone" else lost.write_bytes(b"")
    found = open_folder(root, manifest=before.manifest)
    expected = list(before.train)
    expected[place] = before.train[(place + 1) % 38]
    assert (found.train, found.held_out) == (expected, before.held_out)
    assert [(finding.path, finding.fault.value) for finding in found.skipped] == [(str(lost), how)]
    assert found.manifest == before.manifest


def test_a_lost_held_out_file_likewise(root):
    before = open_folder(root)
    Path(before.held_out[0]).unlink()
    found = open_folder(root, manifest=before.manifest)
    assert (found.train, found.held_out) == (before.train, [before.held_out[1]] * 2)


def test_files_that_came_in_are_not_the_runs(root, monkeypatch):
    """Whatever they are: they change neither the split, nor the common side, nor exhaust the memory."""
    before = open_folder(root)
    Image.new("RGB", (40, 50)).save(root / "000.jpg")
    (root / "001.jpg").write_bytes(b"")
    Image.new("RGB", (3000, 3000)).save(root / "zzz.jpg")
    (root / PARTITION_FILE).write_text("no partition at all")
    (root.parent / PARTITION_FILE).write_text("nor this")
    monkeypatch.setattr(folders, "free_bytes", lambda device: 20_000_000)
    assert open_folder(root, manifest=before.manifest) == before


@pytest.mark.parametrize("lost", [2, 37, 38])
def test_too_many_lost_files_are_another_data_set(root, lost):
    before = open_folder(root)
    for path in before.train[:lost]:
        Path(path).unlink()
    with pytest.raises(FastaeError, match=f"is not what the run trains on: {lost} of 40 files are missing"):
        open_folder(root, manifest=before.manifest)


def test_one_in_a_hundred_may_be_lost(root, monkeypatch):
    monkeypatch.setattr(folders, "LOST_AT_MOST", 0.1)
    before = open_folder(root)
    for path in (*before.train[35:], before.held_out[0]):
        Path(path).unlink()
    found = open_folder(root, manifest=before.manifest)
    assert found.train == [*before.train[:35], *[before.train[0]] * 3]
    assert len(found.skipped) == 4


def test_the_only_held_out_file_cannot_be_replaced(root):
    before = open_folder(root)
    images = dataclasses.replace(before.manifest, held_out=dict([*before.manifest.held_out.items()][:1]))
    Path(before.held_out[0]).unlink()
    with pytest.raises(FastaeError, match="no file is left to train on, or none to evaluate on"):
        open_folder(root, manifest=images)


def test_another_size_is_another_data_set(root):
    before = open_folder(root)
    size = Path(before.train[7]).stat().st_size
    with Path(before.train[7]).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FastaeError, match=f"'{names(before)[7]}' had {size:,} bytes; restore them there"):
        open_folder(root, manifest=before.manifest)


def test_a_file_that_was_still_being_copied_is_listed_as_it_was_when_it_was_looked_at(root, monkeypatch):
    """All sizes are asked for at the beginning, and it may be minutes until a file's turn comes."""
    path = root / "late.jpg"
    whole = (root / "deep" / "a.jpg").read_bytes()
    path.write_bytes(whole[:300])
    inspect = jpeg.inspect

    def after_a_while(name):
        path.write_bytes(whole)
        return inspect(name)

    monkeypatch.setattr("fastae.data.check.inspect", after_a_while)
    images = open_folder(root).manifest
    assert images.sizes["late.jpg"] == len(whole)
    assert open_folder(root, manifest=images).skipped == []


def test_names_outside_the_folder_are_not_looked_for(root, face_paths):
    images = open_folder(root).manifest
    outside = os.path.relpath(face_paths[0], root)
    size = (root / outside).stat().st_size
    for name in (outside, str(face_paths[0])):
        found = open_folder(root, manifest=dataclasses.replace(images, train={name: size, **images.train}))
        assert found.train[0] == found.train[1] and len(found.train) == 39
        assert all(Path(path).resolve().is_relative_to(root.resolve()) for path in found.train)


def test_a_listing_of_nothing_is_refused(root):
    with pytest.raises(FastaeError, match="no file is left"):
        open_folder(root, manifest=Manifest("", {}, {}))
