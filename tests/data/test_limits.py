"""What a data folder can demand of the machine is limited, and an error or fault names each limit."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data.files import faults, jpeg
from fastae.data.files import folder as folders
from fastae.data.files.faults import USABLE, Fault
from fastae.data.files.folder import RULE, open_folder
from fastae.data.files.inspect import inspect
from fastae.data.files.search import find_files
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.errors import FastaeError

from .bad_files import claiming, encoded, put

SIDE = int(faults.MAX_PIXELS**0.5)
CONTENTS = {
    "the most pixels": (None, lambda good: claiming(good, SIDE, SIDE)),
    "one row more": (Fault.TOO_LARGE, lambda good: claiming(good, SIDE + 1, SIDE)),
    "the fewest bytes": (None, lambda good: claiming(good, 4_000, 4_000)),
    "half of these bytes": (Fault.TRUNCATED, lambda good: claiming(good, 4_000, 4_000)[:20_000] + good[-2:]),
    "metadata without a length": (Fault.HEADER_CUT, lambda good: good[:2] + b"\xff\xe0\0\0" + good[2:]),
    "endless fill": (Fault.HEADER_CUT, lambda good: good[:2] + b"\xff" * (8 << 20) + good[2:]),
    "endless comments": (Fault.HEADER_CUT, lambda good: good[:2] + b"\xff\xfe\0\x02" * (2 << 20) + good[2:]),
    "endless tables": (
        Fault.HEADER_CUT,
        lambda good: good.replace(b"\xff\xda", b"\xff\xdb\0\x02" * (2 << 20) + b"\xff\xda"),
    ),
    **{
        f"endless {content}": (
            Fault.END_MISSING,
            lambda good, content=content: good[:-2] + b"\xff\xfe\0\x02" + content * (8 << 20),
        )
        for content in (b"\xff", b"\xff\xd0", b"\xff\xfe\0\x02", b"\xff\xda\0\x02", b"\xff\0")
    },
}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_intact_pngs_with_the_fewest_bytes_pass(tmp_path, mode):
    image = Image.new(mode, (8_192, 2_000))
    assert fault_of(encoded(image, "PNG", compress_level=9), tmp_path) in USABLE


def fault_of(content, folder):
    (folder / "a.jpg").write_bytes(content)
    return inspect(str(folder / "a.jpg")).fault


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_at_or_beyond_a_limit_has_the_expected_fault(tmp_path, good, what):
    fault, content = CONTENTS[what]
    assert fault_of(content(good), tmp_path) == fault


@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"progressive": True}]
)
def test_intact_images_with_the_fewest_bytes_pass(tmp_path, options):
    for mode, color in (("RGB", (0, 0, 0)), ("RGB", (200, 100, 50)), ("L", 90)):
        image = Image.new(mode, (2_000, 2_000), color)
        options = options if mode == "RGB" else {}
        content = encoded(image, "JPEG", quality=1, optimize=True, **options)
        assert fault_of(content, tmp_path) in USABLE


def test_images_whose_batches_would_not_fit_into_memory_are_refused_with_the_remedy(
    tmp_path, face_paths, monkeypatch
):
    put(face_paths[:4], tmp_path)
    monkeypatch.setattr(folders, "free_bytes", lambda: 4 * 3 * 150**2)
    open_folder(tmp_path, crop=150)
    with pytest.raises(FastaeError, match=r"only 0\.0 GB are free: set a smaller crop"):
        open_folder(tmp_path, crop=151)
    with pytest.raises(FastaeError, match="set a smaller crop"):
        open_folder(tmp_path)


@pytest.mark.parametrize("progressive", [True, False])
def test_an_image_with_too_many_scans_has_a_fault(tmp_path, face_paths, progressive):
    content = encoded(Image.open(face_paths[0]), "JPEG", progressive=progressive)
    if not progressive:  # a scan for each component
        content = content[: content.index(b"\xff\xda")] + b"\xff\xd9"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x28"
    room = jpeg.MAX_SCANS - content.count(b"\xff\xda")
    for scans, few in ((room, True), (room + 1, False), (100_000, False)):
        fault = fault_of(content[:-2] + scan * scans + b"\xff\xd9", tmp_path)
        assert (fault != Fault.TOO_MANY_SCANS) == few, scans


PREVIEW = b"\xff\xd8" + b"\xff\xda\0\x08" * 100 + b"\xff\xd9"
FILM = b"\0\0\0\x18ftypmp42" + bytes(range(255)) * 2_000
INTACT = {
    "much metadata": lambda jpeg: jpeg[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 60 + jpeg[2:],
    "a preview behind it": lambda jpeg: jpeg + PREVIEW + bytes(8_000),
    "a film behind it": lambda jpeg: jpeg + FILM,
    "markers behind it": lambda jpeg: jpeg + b"\xff\xda\xff\xd8\xff\xff" * 500_000,
}


@pytest.mark.parametrize("progressive", [False, True])
def test_an_image_with_an_end_marker_is_intact_whatever_else_the_file_contains(
    tmp_path, face_paths, progressive
):
    """The comment of each image contains scan markers and an end marker, too."""
    content = encoded(Image.open(face_paths[0]), "JPEG", progressive=progressive, comment=PREVIEW)
    for what, change in INTACT.items():
        fault = fault_of(change(content), tmp_path)
        assert fault == (Fault.PROGRESSIVE if progressive else None), what
        decoder = open_decoder(CropResize(), torch.device("cpu"))
        assert list(decoder.faults([str(tmp_path / "a.jpg")])) == [None], what
    for behind in (b"", bytes(8_000), FILM):
        assert fault_of(content[:-200] + behind, tmp_path) == Fault.END_MISSING


def test_folders_may_be_nested_deeper_than_the_recursion_limit(tmp_path, good):
    folders = [f"{tmp_path}{'/a' * depth}" for depth in range(1, 1_101)]
    image = Path(f"{folders[-1]}/x.jpg")
    for folder in folders:
        os.mkdir(folder)  # noqa: PTH102 (pathlib calls itself for each level)
    image.write_bytes(good)
    try:
        assert find_files(str(tmp_path)) == [str(image)]
    finally:  # pytest cannot remove folders at this depth
        image.unlink()
        for folder in reversed(folders):
            os.rmdir(folder)  # noqa: PTH106


@contextmanager
def as_nobody():
    """Runs the block as another user if the user is root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.setresuid(65_534, 65_534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_without_read_permission_is_reported(good):
    root = Path(tempfile.mkdtemp())  # other users cannot read pytest's own folders
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
                find_files(str(root / "closed"))
    finally:
        (root / "closed").chmod(0o700)
        shutil.rmtree(root)


def test_a_name_that_is_too_long_or_a_link_to_itself_is_reported_as_missing(tmp_path):
    (tmp_path / "round").symlink_to("round")
    for path in ("x" * 300, tmp_path / "round"):
        with pytest.raises(FastaeError, match="does not exist"):
            find_files(str(path))


def test_a_partition_file_that_is_a_pipe_is_ignored_and_a_huge_one_is_refused(tmp_path, face_paths):
    put(face_paths[:3], tmp_path)
    partition = tmp_path / "list_eval_partition.txt"
    os.mkfifo(partition)
    assert open_folder(tmp_path).manifest.split == RULE
    partition.unlink()
    partition.touch()
    os.truncate(partition, 1 << 40)
    with pytest.raises(FastaeError, match=r"list_eval_partition\.txt"):
        open_folder(tmp_path)
