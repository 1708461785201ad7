"""A resumed run uses the files that it began with, even if its folder has changed."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastae.data.files import folder as folders
from fastae.data.files import manifest
from fastae.data.files.folder import open_folder
from fastae.data.files.inspect import inspect
from fastae.data.files.manifest import Manifest
from fastae.errors import FastaeError


@pytest.fixture
def root(face_folder, tmp_path):
    """A copy of the faces in nested folders, with one name that is not UTF-8."""
    root = tmp_path / "below" / "faces"
    shutil.copytree(face_folder, root)
    (root / "deep").mkdir()
    names = sorted(root.glob("*.jpg"))
    names[3].rename(root / "deep" / "a.jpg")
    names[4].rename(root / os.fsdecode(b"\xff.jpg"))
    return root


@pytest.fixture
def before(root):
    """The folder as it was when the run began."""
    return open_folder(root)


def names(opened):
    return [os.path.relpath(path, opened.root) for path in (*opened.train, *opened.held_out)]


@pytest.mark.parametrize("ending", ["", "/", "/../faces"])
def test_an_unchanged_folder_is_opened_as_before_by_any_path(root, before, tmp_path, ending, monkeypatch):
    opened = open_folder(f"{root}{ending}")
    images, path = opened.manifest, tmp_path / "images.json"
    assert [*images.train, *images.held_out] == names(opened)
    assert images.sizes == {name: (root / name).stat().st_size for name in names(opened)}
    assert open_folder(f"{root}{ending}", manifest=images) == opened
    assert before.manifest == images
    images.write(path)
    again = Manifest.read(path)
    assert (again, again.fingerprint) == (images, images.fingerprint)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(FastaeError, match=r"too many images: .* 40 .* 100 bytes"):
        images.write(path)
    assert path.stat().st_size > 100


def test_any_difference_gives_another_fingerprint():
    train, held_out = {"a": 1, "b": 2}, {"c": 3}
    all_images = [
        Manifest("", train, held_out), Manifest("", train, held_out, {"a": "0f"}),
        Manifest("", {"a": 1, "b": 9}, held_out), Manifest("", {"a": 1, "x": 2}, held_out),
        Manifest("", {"b": 2, "a": 1}, held_out), Manifest("", {"a": 1}, {"b": 2, "c": 3}),
    ]  # fmt: skip
    assert len({images.fingerprint for images in all_images}) == 6


@pytest.mark.parametrize("fault", ["gone", "empty"])
@pytest.mark.parametrize("index", [0, 5, 37, 38])
def test_a_lost_file_is_replaced_by_the_next(root, before, fault, index):
    expected = [*before.train, *before.held_out]
    lost = Path(expected[index])
    lost.unlink() if fault == "gone" else lost.write_bytes(b"")
    found = open_folder(root, manifest=before.manifest)
    expected[index] = before.held_out[1] if index == 38 else before.train[(index + 1) % 38]
    assert [*found.train, *found.held_out] == expected
    assert [(each.path, each.fault.value) for each in found.skipped] == [(str(lost), fault)]
    assert found.manifest == before.manifest


def test_files_that_were_added_are_ignored(root, before, monkeypatch):
    """They change neither the split nor the common side, and cannot exhaust the memory."""
    Image.new("RGB", (40, 50)).save(root / "000.jpg")
    (root / "001.jpg").write_bytes(b"")
    Image.new("RGB", (3000, 3000)).save(root / "zzz.jpg")
    (root / "list_eval_partition.txt").write_text("no partition at all")
    monkeypatch.setattr(folders, "free_bytes", lambda: 20_000_000)
    assert open_folder(root, manifest=before.manifest) == before


@pytest.mark.parametrize("lost", [2, 37, 38])
def test_too_many_lost_files_are_another_data_set(root, before, lost, monkeypatch):
    for path in before.train[:lost]:
        Path(path).unlink()
    with pytest.raises(FastaeError, match=f"{lost} of 40 files are missing"):
        open_folder(root, manifest=before.manifest)
    if lost == 2:
        monkeypatch.setattr(folders, "LOST_AT_MOST", 0.1)
        assert open_folder(root, manifest=before.manifest).train[:3] == [before.train[2]] * 3


def test_other_images_with_the_same_names_sizes_and_dates_are_refused(root, before):
    assert len(before.manifest.digests) == manifest.DIGESTS
    path = root / [*before.manifest.digests][-1]
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(FastaeError, match="has changed since the run began"):
        open_folder(root, manifest=before.manifest)


def test_a_folder_without_the_runs_images_is_refused(root, before):
    with pytest.raises(FastaeError, match="all files to train on"):
        open_folder(root, manifest=Manifest("", {}, {}))
    only = dataclasses.replace(before.manifest, held_out=dict([*before.manifest.held_out.items()][:1]))
    Path(before.held_out[0]).unlink()
    with pytest.raises(FastaeError, match="all files to evaluate on"):
        open_folder(root, manifest=only)
    size = Path(before.train[7]).stat().st_size
    with Path(before.train[7]).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FastaeError, match=f"'{names(before)[7]}' no longer has {size:,} bytes"):
        open_folder(root, manifest=before.manifest)


def test_a_file_that_was_still_being_copied_is_listed_with_its_size_at_inspection(root, monkeypatch):
    """The check reads all stamps first, and may inspect a file only minutes later."""
    path = root / "late.jpg"
    whole = (root / "deep" / "a.jpg").read_bytes()
    path.write_bytes(whole[:300])

    def after_a_while(name):
        path.write_bytes(whole)
        return inspect(name)

    monkeypatch.setattr("fastae.data.files.check.inspect", after_a_while)
    images = open_folder(root).manifest
    assert images.sizes["late.jpg"] == len(whole)
    assert open_folder(root, manifest=images).skipped == []


def test_files_outside_the_folder_are_not_opened(root, before, face_paths):
    images, outside = before.manifest, os.path.relpath(face_paths[0], root)
    size = (root / outside).stat().st_size
    for name in (outside, str(face_paths[0])):
        found = open_folder(root, manifest=dataclasses.replace(images, train={name: size, **images.train}))
        assert found.train[0] == found.train[1] and len(found.train) == 39
        assert all(Path(path).resolve().is_relative_to(root.resolve()) for path in found.train)
