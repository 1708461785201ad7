"""A file that goes bad between the check and its reading: reported, replaced, and the run goes on."""

import itertools
from pathlib import Path

import pytest
import torch

from fastae.data import Geometry, load_images, open_loader
from fastae.data.order import Order
from fastae.errors import FastaeError

TRUNCATED = slice(0, 2500)
WAYS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[TRUNCATED]),
    "emptied": lambda path: path.write_bytes(b""),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "not a JPEG": lambda path: path.write_bytes(b"x" * 5000),
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
