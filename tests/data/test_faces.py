"""The default data set: the same faces every time, of the promised kind, and whole or absent."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fastae.data import faces, portrait


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    faces.write(folder, 60)
    return folder


def test_an_index_always_gives_the_same_face():
    first = portrait.draw(7)
    portrait.draw(8)  # nothing carries over from one face to the next
    assert first.shape == (218, 178, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, portrait.draw(7))


def test_indices_give_different_faces():
    small = [portrait.draw(index)[::8, ::8].astype(float) for index in range(1, 13)]
    for i, one in enumerate(small):
        for other in small[:i]:
            assert np.abs(one - other).mean() > 5


def test_the_files_are_baseline_jpegs_of_celeba_size(folder: Path):
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"{index:06d}.jpg" for index in range(1, 61)]
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (178, 218))
            assert "progressive" not in picture.info
            assert JpegImagePlugin.get_sampling(picture) == 2  # 4:2:0
    assert 6000 < np.mean([path.stat().st_size for path in paths]) < 8000


def test_a_file_holds_the_face_of_its_number(folder: Path):
    with Image.open(folder / "000005.jpg") as picture:
        difference = np.asarray(picture, float) - portrait.draw(5)
    assert np.abs(difference).mean() < 6


def test_the_faces_vary_but_stay_in_place(folder: Path):
    pictures = np.stack([np.asarray(Image.open(path), float) for path in folder.iterdir()])
    background, cheeks = pictures[:, :20, :20], pictures[:, 125:140, 75:102]
    assert background.mean((1, 2)).std(0).min() > 25
    assert cheeks.mean((1, 2)).std(0).min() > 25
    # Eyes at the same height in every picture show as a dark band across the mean face.
    profile = pictures.mean((0, 3))[:, [64, 69, 74, 103, 108, 113]].mean(1)
    assert 106 <= 95 + profile[95:125].argmin() <= 118


def test_ensure_makes_the_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faces, "COUNT", 3)
    cache = tmp_path / "a" / "b"
    folder = faces.ensure(cache)
    assert [path.name for path in cache.iterdir()] == [folder.name]
    assert len(list(folder.glob("*.jpg"))) == 3
    before = [path.stat().st_mtime_ns for path in [folder, *sorted(folder.glob("*.jpg"))]]

    monkeypatch.setattr(portrait, "draw", None)  # a second drawing would fail
    assert faces.ensure(cache) == folder
    assert [path.stat().st_mtime_ns for path in [folder, *sorted(folder.glob("*.jpg"))]] == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    monkeypatch.setattr(faces, "COUNT", 3)
    draw = portrait.draw

    def fail(index: int) -> np.ndarray:
        if index == 2:
            assert any(tmp_path.rglob("000001.jpg"))  # so the failure comes in the middle
            raise error
        return draw(index)

    with monkeypatch.context() as patch:
        patch.setattr(portrait, "draw", fail)
        with pytest.raises(type(error)):
            faces.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(list(faces.ensure(tmp_path).glob("*.jpg"))) == 3


def _ensure_few(cache: Path) -> int:
    faces.COUNT = 40
    return len(list(faces.ensure(cache).glob("*.jpg")))


def test_two_processes_at_once_both_get_all_faces(tmp_path: Path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_ensure_few, [tmp_path, tmp_path], chunksize=1) == [40, 40]
    assert len(list(tmp_path.iterdir())) == 1
