"""What a data folder can ask of the machine is limited, and each limit has a name."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data.files import folder as folders
from fastae.data.files import jpeg
from fastae.data.files.check import check
from fastae.data.files.folder import find_jpegs, open_folder
from fastae.data.files.jpeg import USABLE, Fault, FileFault, inspect
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.errors import FastaeError

from .bad_files import claiming


def test_an_image_that_claims_65500_by_65500_pixels_meets_no_decoder(tmp_path, good, face_paths):
    (tmp_path / "huge.jpg").write_bytes(claiming(good, 65_500, 65_500))
    os.link(face_paths[1], tmp_path / "a.jpg")
    decoded = []
    found = check(
        str(tmp_path), find_jpegs(str(tmp_path)), crop=None, records=None,
        find_faults=lambda paths: decoded.extend(paths) or [None],
    )  # fmt: skip
    assert found.faults == [FileFault(str(tmp_path / "huge.jpg"), Fault.TOO_LARGE)]
    assert decoded == found.usable == [str(tmp_path / "a.jpg")]


def test_the_largest_image_that_may_be_decoded(tmp_path, good):
    side = int(jpeg.MAX_PIXELS**0.5)
    for height, fault in ((side, None), (side + 1, Fault.TOO_LARGE)):
        (tmp_path / "a.jpg").write_bytes(claiming(good, height, side))
        assert inspect(str(tmp_path / "a.jpg")).fault == fault


def test_a_claim_that_so_few_bytes_cannot_hold_is_truncated(tmp_path, good):
    whole = claiming(good, 4_000, 4_000)
    (tmp_path / "a.jpg").write_bytes(whole)
    assert inspect(str(tmp_path / "a.jpg")).fault is None
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2] + whole[-2:])
    assert inspect(str(tmp_path / "a.jpg")).fault == Fault.TRUNCATED


@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"progressive": True}]
)
def test_the_emptiest_images_that_are_whole_pass(tmp_path, options):
    for mode, color in (("RGB", (0, 0, 0)), ("RGB", (200, 100, 50)), ("L", 90)):
        image = Image.new(mode, (2_000, 2_000), color)
        image.save(tmp_path / "a.jpg", quality=1, optimize=True, **(options if mode == "RGB" else {}))
        fault = inspect(str(tmp_path / "a.jpg")).fault
        assert fault in USABLE


def test_images_whose_batches_would_not_fit_into_memory_are_refused_with_the_remedy(
    tmp_path, face_paths, monkeypatch
):
    for number in range(4):
        os.link(face_paths[number], tmp_path / f"{number}.jpg")
    monkeypatch.setattr(folders, "free_bytes", lambda: 4 * 3 * 150**2)
    open_folder(tmp_path, crop=150)
    with pytest.raises(FastaeError, match=r"decoded, and 0\.0 GB are free: set a smaller crop"):
        open_folder(tmp_path, crop=151)
    with pytest.raises(FastaeError, match="set a smaller crop"):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["fill", "comments", "tables", "sparse"])
def test_an_endless_header_ends_soon(tmp_path, good, content):
    frame = good.index(b"\xff\xc0")
    path = tmp_path / "a.jpg"
    path.write_bytes(
        {
            "fill": good[:2] + b"\xff" * (8 << 20),
            "comments": good[:2] + b"\xff\xfe\x00\x02" * (2 << 20),
            "tables": good[: frame + 19] + b"\xff\xdb\x00\x02" * (2 << 20),  # behind the frame header
            "sparse": good[:2] + b"\xff\xe0\xff\xff",
        }[content]
        + good[2:]
    )
    if content == "sparse":
        os.truncate(path, 1 << 40)
    assert inspect(str(path)).fault == Fault.HEADER_CUT


@pytest.mark.parametrize("kind", ["progressive", "one component a scan"])
def test_scans_are_counted_where_each_is_a_pass_over_the_image(tmp_path, face_paths, kind):
    image, path = Image.open(face_paths[0]), tmp_path / "a.jpg"
    image.save(path, progressive=kind == "progressive")
    jpeg_bytes = path.read_bytes()
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x28"
    if kind != "progressive":
        jpeg_bytes = jpeg_bytes[: jpeg_bytes.index(b"\xff\xda")] + b"\xff\xd9"
    room = jpeg.MAX_SCANS - jpeg_bytes.count(b"\xff\xda")
    for scans, few in ((room, True), (room + 1, False), (100_000, False)):
        path.write_bytes(jpeg_bytes[:-2] + scan * scans + b"\xff\xd9")
        fault = inspect(str(path)).fault
        assert (fault != Fault.TOO_MANY_SCANS) == few, scans


PREVIEW = b"\xff\xd8" + b"\xff\xda\0\x08" * 100 + b"\xff\xd9"
INTACT = {
    "scans and an end in its metadata": lambda jpeg: (
        jpeg[:2] + b"\xff\xe2" + (len(PREVIEW) + 2).to_bytes(2) + PREVIEW + jpeg[2:]
    ),
    "much metadata": lambda jpeg: jpeg[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 60 + jpeg[2:],
    "a preview behind it": lambda jpeg: jpeg + PREVIEW + bytes(8_000),
    "a film behind it": lambda jpeg: jpeg + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 2_000,
    "markers behind it": lambda jpeg: jpeg + b"\xff\xda\xff\xd8\xff\xff" * 500_000,
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("what", INTACT)
def test_an_intact_picture_passes_whatever_else_its_file_holds(tmp_path, face_paths, progressive, what):
    path = tmp_path / "a.jpg"
    Image.open(face_paths[0]).save(path, progressive=progressive)
    path.write_bytes(INTACT[what](path.read_bytes()))
    assert inspect(str(path)).fault == (Fault.PROGRESSIVE if progressive else None)
    assert list(open_decoder(CropResize(), torch.device("cpu")).faults([str(path)])) == [None]


def test_metadata_of_no_length_are_left_to_the_decoder(tmp_path, good):
    path = tmp_path / "a.jpg"
    path.write_bytes(good[:2] + b"\xff\xe0\0\0" + good[2:])
    assert inspect(str(path)).fault is None
    Image.open(path).load()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("behind", [b"", bytes(8_000), b"\0\0\0\x18ftypmp42" + bytes(range(255)) * 100])
def test_a_picture_cut_short_has_no_end_marker_whatever_is_behind_it(
    tmp_path, face_paths, progressive, behind
):
    path = tmp_path / "a.jpg"
    Image.open(face_paths[0]).save(path, progressive=progressive, comment=PREVIEW)
    path.write_bytes(path.read_bytes()[:-200] + behind)
    assert inspect(str(path)).fault == Fault.END_MISSING


@pytest.mark.parametrize("content", [b"\xff", b"\xff\xd0", b"\xff\xfe\0\x02", b"\xff\xda\0\x02", b"\xff\0"])
def test_an_endless_picture_ends_soon(tmp_path, good, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(good[:-2] + b"\xff\xfe\0\x02" + content * ((32 << 20) // len(content)))
    assert inspect(str(path)).fault == Fault.END_MISSING


def test_folders_nested_deeper_than_calls_may_be(tmp_path, good):
    folders = [f"{tmp_path}{'/a' * depth}" for depth in range(1, 1_101)]
    image = Path(f"{folders[-1]}/x.jpg")
    for folder in folders:
        os.mkdir(folder)  # noqa: PTH102 (pathlib calls itself for each level)
    image.write_bytes(good)
    try:
        assert find_jpegs(str(tmp_path)) == [str(image)]
    finally:  # pytest's own tidying up gives up at such a depth
        image.unlink()
        for folder in reversed(folders):
            os.rmdir(folder)  # noqa: PTH106


@contextmanager
def as_nobody():
    """Root may read everything, so root is not root within this."""
    if os.geteuid():
        yield
        return
    os.setresuid(65_534, 65_534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_that_may_not_be_read_is_named_not_passed_over(good):
    root = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        root.chmod(0o755)
        (root / "closed").mkdir()
        for name in ("a.jpg", "b.jpg", "closed/c.jpg"):
            (root / name).write_bytes(good)
        (root / "closed").chmod(0)
        with as_nobody():
            (finding,) = open_folder(root).skipped
            assert (finding.path, finding.fault.value) == (f"{root}/closed", "unreadable")
            with pytest.raises(FastaeError, match="closed' cannot be read: Permission denied"):
                find_jpegs(str(root / "closed"))
    finally:
        (root / "closed").chmod(0o700)
        shutil.rmtree(root)


def test_a_name_that_is_too_long_and_a_link_to_itself_do_not_exist(tmp_path):
    (tmp_path / "round").symlink_to("round")
    for path in ("x" * 300, tmp_path / "round"):
        with pytest.raises(FastaeError, match="does not exist"):
            find_jpegs(str(path))


@pytest.mark.parametrize("content", ["huge", "a pipe"])
def test_a_partition_file_that_is_none(tmp_path, face_paths, content):
    for number in range(3):
        os.link(face_paths[number], tmp_path / f"{number}.jpg")
    partition = tmp_path / "list_eval_partition.txt"
    if content == "a pipe":
        os.mkfifo(partition)
        assert open_folder(tmp_path).manifest.split == "the last 5 % by name"
        return
    partition.touch()
    os.truncate(partition, 1 << 40)
    with pytest.raises(FastaeError, match=r"list_eval_partition\.txt"):
        open_folder(tmp_path)
