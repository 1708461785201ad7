"""CelebA as users have it: unpacked safely, resumable, verified."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from fastae.data.prepare import prepare_celeba
from fastae.errors import FastaeError

from ..commands import fastae
from ..test_cli import refused

NAMES = [f"{number:06d}.jpg" for number in range(1, 7)]


@pytest.fixture
def archive(tmp_path, face_paths):
    path = tmp_path / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, face in zip(NAMES, face_paths, strict=False):
            made.write(face, f"img_align_celeba/{name}")
        made.writestr("list_eval_partition.txt", "".join(f"{name} 0\n" for name in NAMES))
    return path


def test_unpacks_and_verifies(archive, tmp_path, face_paths):
    done = prepare_celeba(archive, tmp_path / "out", count=7)
    assert done.present == 6 and done.missing == ["000007.jpg"] and not done.faulty and done.partition
    for name, face in zip(NAMES, face_paths, strict=False):
        assert (done.folder / name).read_bytes() == Path(face).read_bytes()


def test_goes_on_where_it_was_stopped(archive, tmp_path):
    images = tmp_path / "out" / "img_align_celeba"
    first = prepare_celeba(archive, tmp_path / "out", count=6)
    kept = (images / NAMES[0]).stat().st_mtime_ns
    (images / NAMES[1]).unlink()
    (images / NAMES[2]).write_bytes(b"torn")
    assert prepare_celeba(archive, tmp_path / "out", count=6) == first
    assert (images / NAMES[0]).stat().st_mtime_ns == kept


@pytest.mark.parametrize("form", ["the data set's folder", "the images' folder"])
def test_takes_a_folder(tmp_path, face_paths, form):
    images = tmp_path / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    for name, face in zip(NAMES, face_paths, strict=False):
        os.link(face, images / name)
    (images.parent / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    source = images if form == "the images' folder" else images.parent
    done = prepare_celeba(source, tmp_path / "out", count=6)
    assert done.present == 6 and not done.missing and not done.faulty and done.partition


def test_wrong_dimensions_and_broken_images_are_faulty(tmp_path, face_paths):
    images = tmp_path / "in"
    images.mkdir()
    from PIL import Image

    Image.open(face_paths[0]).resize((100, 100)).save(images / NAMES[0])
    (images / NAMES[1]).write_bytes(b"")
    os.link(face_paths[2], images / NAMES[2])
    assert prepare_celeba(images, tmp_path / "out", count=3).faulty == NAMES[:2]


def test_no_entry_leaves_the_folder(tmp_path, face_paths):
    face = Path(face_paths[0]).read_bytes()
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("../../000001.jpg", "/tmp/000002.jpg", "a/../../b/000003.jpg", "../escape.txt"):
            made.writestr(name, face)
    out = tmp_path / "deep" / "er" / "out"
    prepare_celeba(path, out, count=3)
    assert sorted(file.name for file in out.rglob("*") if file.is_file()) == NAMES[:3]
    assert not list(tmp_path.glob("*.jpg")) and not (tmp_path / "escape.txt").exists()


def test_a_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("000001.jpg", bytes(50_000_000))
    with pytest.raises(FastaeError, match="claims 50,000,000 bytes: this is not CelebA"):
        prepare_celeba(path, tmp_path / "out")


def test_an_archive_that_lies_about_a_size_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("000001.jpg", bytes(500_000))
    lie = buffer.getvalue().replace((500_000).to_bytes(4, "little"), (1_000).to_bytes(4, "little"))
    path = tmp_path / "lie.zip"
    path.write_bytes(lie)
    out = tmp_path / "out"
    with pytest.raises(FastaeError):
        prepare_celeba(path, out)
    assert not list(out.rglob("*.jpg"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_what_is_no_archive_is_one_line(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    assert refused(
        fastae("prepare", "celeba", path, "--out", tmp_path / "out"), "is not a readable zip archive"
    )


def test_the_command_says_what_is_missing_and_the_licence_once(archive, tmp_path):
    result = fastae("prepare", "celeba", archive, "--out", tmp_path / "out", "--count", 8)
    assert result.returncode == 1
    assert result.stdout.count("non-commercial research") == 1
    assert "6 images in " in result.stdout and "missing: 000007.jpg, 000008.jpg" in result.stdout
    result = fastae("prepare", "celeba", archive, "--out", tmp_path / "out", "--count", 6)
    assert result.returncode == 0 and "next: fastae train --amp --data" in result.stdout
    assert refused(fastae("prepare", "celeba", tmp_path / "none.zip", "--out", tmp_path), "does not exist")
