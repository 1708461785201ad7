"""CelebA's images in Hugging Face's parquet files are converted with their split."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fastae.data.files.folder import open_folder
from fastae.data.files.prepare import prepare_celeba
from fastae.errors import FastaeError

from .bad_files import encoded

TRAIN = "train-00000-of-00001.parquet"


@pytest.fixture
def write():
    """Writes rows of images as the library `datasets` does, with other columns beside them."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is missing (the extra `parquet`)")
    from pyarrow.parquet import write_table

    def write(path, contents):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        rows = [None if content is None else {"bytes": content, "path": None} for content in contents]
        columns = {"celeb_id": list(range(len(rows))), "image": pyarrow.array(rows, image)}
        write_table(pyarrow.table(columns | {"Bald": [False] * len(rows)}), path, row_group_size=2)

    return write


@pytest.fixture
def jpegs(face_paths):
    return [Path(path).read_bytes() for path in face_paths]


def contents(done):
    return [path.read_bytes() for path in sorted(done.folder.iterdir())]


@pytest.mark.parametrize(
    ("layout", "valid"),
    [
        ("img_align+identity+attr/{part}-{number:05d}-of-00002.parquet", "valid"),
        ("img_align+identity+attr/{part}/{number:04d}.parquet", "validation"),  # the converted branch
        ("{part}-{number:05d}-of-00002.parquet", "valid"),
    ],
)
def test_parquet_files_become_jpegs_with_the_split(tmp_path, write, jpegs, layout, valid):
    source = tmp_path / "celeba"
    for part, number, images in (
        ("test", 0, jpegs[8:10]), ("train", 0, jpegs[:3]), ("train", 1, jpegs[3:6]), (valid, 0, jpegs[6:8]),
    ):  # fmt: skip
        write(source / layout.format(part=part, number=number), images)
    done = prepare_celeba(source, tmp_path / "out", 10)
    assert done.complete and done.parts == (6, 2, 2)
    names = [f"{number:06d}.jpg" for number in range(1, 11)]
    assert [path.name for path in sorted(done.folder.iterdir())] == names and contents(done) == jpegs[:10]
    assert [Path(path).name for path in open_folder(done.folder).train] == names[:6]


def test_pngs_are_encoded_like_celebas_jpegs(tmp_path, write, face_paths):
    original = encoded(Image.open(face_paths[0]), "JPEG", quality=75, subsampling="4:2:0")
    with Image.open(io.BytesIO(original)) as image:
        write(tmp_path / "in" / TRAIN, [encoded(image, "PNG")])
        pixels, quantization = np.asarray(image.convert("RGB"), float), image.quantization
    done = prepare_celeba(tmp_path / "in", tmp_path / "out", 1)
    with Image.open(done.folder / "000001.jpg") as image:
        assert (image.format, image.quantization) == ("JPEG", quantization)
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        assert np.abs(np.asarray(image.convert("RGB"), float) - pixels).mean() < 0.3


def test_existing_images_are_kept_unless_more_files_renumber_them(tmp_path, write, jpegs):
    source = tmp_path / "in"
    write(source / "train-00000-of-00002.parquet", jpegs[:3])
    write(source / "valid-00000-of-00001.parquet", jpegs[6:8])
    first = prepare_celeba(source, tmp_path / "out", 5)
    made = [path.stat().st_mtime_ns for path in sorted(first.folder.iterdir())]
    prepare_celeba(source, tmp_path / "out", 5)
    assert [path.stat().st_mtime_ns for path in sorted(first.folder.iterdir())] == made
    write(source / "train-00001-of-00002.parquet", jpegs[3:6])
    done = prepare_celeba(source, tmp_path / "out", 8)
    assert contents(done) == jpegs[:8] and done.parts == (6, 2, 0)


def test_the_links_of_hugging_faces_cache_are_read(tmp_path, write, jpegs):
    write(tmp_path / "blobs" / "5a1c", jpegs[:2])
    snapshot = tmp_path / "snapshots" / "2d73"
    snapshot.mkdir(parents=True)
    (snapshot / TRAIN).symlink_to("../../blobs/5a1c")
    (snapshot / "test-00000-of-00001.parquet").symlink_to("/dev/zero")
    assert contents(prepare_celeba(snapshot, tmp_path / "out", 2)) == jpegs[:2]


def test_rows_that_claim_too_much_are_not_decompressed(tmp_path, write, monkeypatch):
    write(tmp_path / TRAIN, [bytes(50 << 20)])
    monkeypatch.setattr("fastae.data.files.parquet.as_jpeg", None)
    with pytest.raises(FastaeError, match=r"claims 5[0-9],[0-9]{3},[0-9]{3} bytes"):
        prepare_celeba(tmp_path, tmp_path / "out", 1)


ROWS = {
    "a row without image": None,
    "not an image": b"junk",
    "other size": encoded(Image.new("RGB", (64, 64)), "PNG"),
    "huge": bytes((1 << 20) + 1),
}


@pytest.mark.parametrize("what", ["no parquet", "cut short", "only a path", *ROWS])
def test_the_error_for_a_file_that_is_not_celeba_names_the_file(tmp_path, write, jpegs, what):
    path = tmp_path / "in" / TRAIN
    write(path, [jpegs[0], ROWS.get(what, jpegs[1])])
    if what == "no parquet":
        path.write_bytes(b"PAR1 or so")
    elif what == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif what == "only a path":
        from pyarrow import table
        from pyarrow.parquet import write_table

        write_table(table({"image": ["/etc/passwd"]}), path)
    with pytest.raises(FastaeError, match=path.name):
        prepare_celeba(tmp_path / "in", tmp_path / "out", 2)
    assert not list((tmp_path / "out").rglob(".partial-*"))


def test_a_source_that_cannot_be_read_leaves_no_folder(tmp_path, write, jpegs, monkeypatch):
    unnamed = tmp_path / "in" / "images-00000-of-00001.parquet"
    write(unnamed, jpegs[:2])
    with pytest.raises(FastaeError, match=r"images-00000-of-00001.*part of the split"):
        prepare_celeba(tmp_path / "in", tmp_path / "out", 2)
    unnamed.rename(tmp_path / "in" / TRAIN)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(FastaeError, match="pip install pyarrow"):
        prepare_celeba(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
