"""The built-in faces are the same every time, look like CelebA's files, and are complete or absent."""

import shutil
from dataclasses import replace

import numpy as np
from PIL import Image, JpegImagePlugin

from fastae.data.faces import portrait
from fastae.data.faces import synthetic as faces
from fastae.data.source import open_source
from fastae.training.resume import resume_run
from fastae.training.runner import train

from ..commands import here, last_iteration
from ..helpers import small_config


def test_an_index_always_gives_the_same_face_and_other_indices_other_faces():
    first = portrait.draw(7)
    small = [portrait.draw(index)[::8, ::8].astype(float) for index in range(1, 13)]
    assert (first.shape, first.dtype) == ((218, 178, 3), np.uint8)
    np.testing.assert_array_equal(first, portrait.draw(7))
    for i, one in enumerate(small):
        for other in small[:i]:
            assert np.abs(one - other).mean() > 5


def test_the_files_are_baseline_jpegs_of_celeba_size(face_folder):
    paths = sorted(face_folder.iterdir())
    assert [path.name for path in paths] == [f"{index:06d}.jpg" for index in range(1, 41)]
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (178, 218))
            assert "progressive" not in picture.info
            assert JpegImagePlugin.get_sampling(picture) == 2  # 4:2:0
    assert 6000 < np.mean([path.stat().st_size for path in paths]) < 8500
    with Image.open(paths[4]) as picture:
        assert np.abs(np.asarray(picture, float) - portrait.draw(5)).mean() < 6


def test_the_faces_vary_but_stay_in_place(face_paths):
    pictures = np.stack([np.asarray(Image.open(path), float) for path in face_paths])
    background, cheeks = pictures[:, :20, :20], pictures[:, 125:140, 75:102]
    assert background.mean((1, 2)).std(0).min() > 25
    assert cheeks.mean((1, 2)).std(0).min() > 25
    # The eyes are at the same height in every picture: the mean face has a dark band there.
    profile = pictures.mean((0, 3))[:, [64, 69, 74, 103, 108, 113]].mean(1)
    assert 106 <= 95 + profile[95:125].argmin() <= 118


def test_faces_are_drawn_once_and_compared_with_digests_from_that_drawing(tmp_path, monkeypatch):
    """Another JPEG quality simulates another processor or Pillow, whose rounding differs."""
    monkeypatch.setattr(faces, "FACES", 3)
    monkeypatch.setattr(faces, "QUALITY", 85)
    folder = faces.ensure(tmp_path)
    assert len(list(folder.glob("*.jpg"))) == 3
    monkeypatch.setattr(portrait, "draw", None)  # a second drawing would fail
    assert faces.ensure(tmp_path) == folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.jpg")}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_old_faces_can_be_read_while_new_ones_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "FACES", 3)
    folder, draw, seen = faces.ensure(tmp_path), portrait.draw, []
    flip_a_bit(folder / "000002.jpg")
    monkeypatch.setattr(portrait, "draw", lambda index: seen.append(len(contents(folder))) or draw(index))
    faces.ensure(tmp_path)
    assert seen == [3, 3, 3] and list(tmp_path.iterdir()) == [folder]


def test_a_run_on_the_faces_can_be_resumed_after_the_cache_was_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "FACES", 12)
    first, second = tmp_path / "cache", tmp_path / "other"
    run = train(replace(small_config("none", tmp_path / "run"), data=None, cache_dir=str(first)))
    assert here("cache", "clear", "--cache-dir", first, "--yes") == 0
    assert list(first.iterdir()) == []
    resume_run(run, {"iterations": 4, "cache_dir": str(second)})
    assert last_iteration(run) == 4
    assert len(list((second / faces.FOLDER_NAME).glob("*.jpg"))) == 12


def test_a_folder_with_the_faces_name_outside_the_cache_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "FACES", 3)
    copy = tmp_path / "mine" / faces.FOLDER_NAME
    shutil.copytree(faces.ensure(tmp_path / "one"), copy)
    (copy / "000002.jpg").unlink()
    images, _ = open_source(str(copy), cache=tmp_path / "two")
    assert images.root == str(copy) and len(images.train) == 1
