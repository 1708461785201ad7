"""The built-in data set: the same faces every time, of the promised kind, and whole or absent."""

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fastae.data import faces, portrait


def test_an_index_always_gives_the_same_face_and_another_index_another():
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
    # Eyes at the same height in every picture show as a dark band across the mean face.
    profile = pictures.mean((0, 3))[:, [64, 69, 74, 103, 108, 113]].mean(1)
    assert 106 <= 95 + profile[95:125].argmin() <= 118


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_they_are_drawn_once_and_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(faces, "COUNT", 3)
    draw = portrait.draw

    def fail(index):
        if index == 2:
            assert any(tmp_path.rglob("000001.jpg"))  # so the failure comes in the middle
            raise error
        return draw(index)

    with monkeypatch.context() as patch:
        patch.setattr(portrait, "draw", fail)
        with pytest.raises(type(error)):
            faces.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []
    folder = faces.ensure(tmp_path)
    assert len(list(folder.glob("*.jpg"))) == 3
    monkeypatch.setattr(portrait, "draw", None)  # a second drawing would fail
    assert faces.ensure(tmp_path) == folder
