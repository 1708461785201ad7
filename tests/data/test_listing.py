"""The files a run began with are what it goes on with, whatever its folder holds by then."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from fastae.data import listing
from fastae.data.folder import open_folder
from fastae.data.listing import Listing
from fastae.errors import FastaeError
from fastae.files import write_json
from fastae.run import RunFolder


@pytest.fixture
def root(face_folder, tmp_path):
    """A folder of one's own: nested, and with a name that is not UTF-8."""
    root = tmp_path / "faces"
    shutil.copytree(face_folder, root)
    (root / "deep").mkdir()
    names = sorted(root.glob("*.jpg"))
    names[3].rename(root / "deep" / "a.jpg")
    names[4].rename(root / os.fsdecode(b"\xff.jpg"))
    return root


def names(folder):
    return [os.path.relpath(path, folder.root) for path in (*folder.train, *folder.held_out)]


@pytest.mark.parametrize("ending", ["", "/"])
def test_nothing_happened(root, ending):
    folder = open_folder(f"{root}{ending}")
    images = Listing.of(folder)
    assert list(images.train) + list(images.held_out) == names(folder)
    assert images.find(folder) == (folder, [])
    assert images == Listing.of(open_folder(root))


def test_it_is_read_as_it_was_written(root, tmp_path):
    images = Listing.of(open_folder(root))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_json(run.images, dataclasses.asdict(images))
    assert "\\udcff.jpg" in run.images.read_text()
    again = run.began_with()
    assert (again, again.fingerprint) == (images, images.fingerprint)


def test_what_differs_gives_another_fingerprint():
    one = Listing({"a": 1, "b": 2}, {"c": 3})
    others = [
        Listing({"a": 1, "b": 9}, {"c": 3}),
        Listing({"a": 1, "x": 2}, {"c": 3}),
        Listing({"b": 2, "a": 1}, {"c": 3}),
        Listing({"a": 1}, {"b": 2, "c": 3}),
    ]
    assert len({images.fingerprint for images in (one, *others)}) == 5
    assert len(one.fingerprint) == 32


@pytest.mark.parametrize("how", ["removed", "emptied"])
@pytest.mark.parametrize("place", [0, 5, 37])
def test_a_lost_file_leaves_its_place_to_the_next(root, how, place):
    before = open_folder(root)
    images = Listing.of(before)
    lost = root / names(before)[place]
    lost.unlink() if how == "removed" else lost.write_bytes(b"")
    (root / "000.jpg").write_bytes((root / "deep" / "a.jpg").read_bytes())  # first by name, and not the run's
    found, told = images.find(open_folder(root))
    expected = list(before.train)
    expected[place] = before.train[(place + 1) % 38]
    assert (found.train, found.held_out) == (expected, before.held_out)
    assert told == [names(before)[place]]


def test_a_lost_held_out_file_likewise(root):
    before = open_folder(root)
    images = Listing.of(before)
    Path(before.held_out[0]).unlink()
    found, told = images.find(open_folder(root))
    assert (found.train, found.held_out) == (before.train, [before.held_out[1]] * 2)
    assert told == [names(before)[38]]


@pytest.mark.parametrize("lost", [2, 37, 38])
def test_too_many_lost_files_are_another_data_set(root, lost):
    images = Listing.of(before := open_folder(root))
    for path in before.train[:lost]:
        Path(path).unlink()
    with pytest.raises(FastaeError, match=f"is not what the run trains on: {lost} of 38 files are missing"):
        images.find(open_folder(root))


def test_one_in_a_hundred_may_be_lost(root, monkeypatch):
    monkeypatch.setattr(listing, "LOST_AT_MOST", 0.1)
    images = Listing.of(before := open_folder(root))
    for path in before.train[35:]:
        Path(path).unlink()
    found, told = images.find(open_folder(root))
    assert found.train == [*before.train[:35], *[before.train[0]] * 3]
    assert len(told) == 3


def test_another_size_is_another_data_set(root):
    images = Listing.of(before := open_folder(root))
    with Path(before.train[7]).open("ab") as file:
        file.write(b"\0")
    size = Path(before.train[7]).stat().st_size - 1
    with pytest.raises(FastaeError, match=f"'{names(before)[7]}' had {size:,} bytes; restore the files"):
        images.find(open_folder(root))


def test_names_outside_the_folder_are_not_looked_for(root, face_paths):
    folder = open_folder(root)
    outside = os.path.relpath(face_paths[0], root)
    size = (root / outside).stat().st_size
    for name in (outside, str(face_paths[0])):
        images = Listing({**Listing.of(folder).train, name: size}, {"x": 1})
        with pytest.raises(FastaeError, match="1 of 1 files are missing"):
            images.find(folder)
        found, told = dataclasses.replace(images, held_out=Listing.of(folder).held_out).find(folder)
        assert told == [name] and set(found.train) <= set(folder.sizes)


def test_a_listing_of_nothing_is_refused(root, tmp_path):
    run = RunFolder(tmp_path)
    run.images.write_text(json.dumps({"train": {}, "held_out": {}}))
    with pytest.raises(FastaeError, match="0 of 0 files"):
        run.began_with().find(open_folder(root))
