"""CelebA as users have it: unpacked safely, resumable, verified."""

import io
import os
import stat
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


def test_a_link_in_an_archive_is_not_made(tmp_path, face_paths):
    path, out = tmp_path / "links.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as made:
        link = zipfile.ZipInfo("img_align_celeba/000001.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
        made.write(face_paths[1], "img_align_celeba/000002.jpg")
    assert prepare_celeba(path, out, count=2).faulty == ["000001.jpg"]
    assert not any(file.is_symlink() for file in out.rglob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_entries_with_one_name_the_last_counts(tmp_path, face_paths):
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, face in (("a/000001.jpg", 0), ("000001.jpg", 1), ("000001.jpg", 2)):
            made.write(face_paths[face], name)
    done = prepare_celeba(path, tmp_path / "out", count=1)
    assert (done.folder / "000001.jpg").read_bytes() == Path(face_paths[2]).read_bytes()


def test_names_in_other_scripts_are_not_the_data_sets(tmp_path, face_paths):
    path = tmp_path / "digits.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.write(face_paths[0], "\u0660\u0660\u0660\u0660\u0660\u0661.jpg")
    with pytest.raises(FastaeError, match="holds no image named like CelebA's"):
        prepare_celeba(path, tmp_path / "out")


def test_many_small_entries_may_not_add_up_to_a_full_disk(tmp_path, monkeypatch, archive):
    monkeypatch.setattr("fastae.data.prepare.MAX_TOTAL", 20_000)
    with pytest.raises(FastaeError, match="bytes in all: this is not CelebA"):
        prepare_celeba(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["stored", "deflated", "bzip2", "lzma", "encrypted", "cut short"])
def test_a_damaged_archive_is_one_line_and_leaves_no_part_of_a_file(tmp_path, face_paths, kind):
    methods = {"deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", methods.get(kind, zipfile.ZIP_STORED)) as made:
        made.write(face_paths[0], "000001.jpg")
    content = bytearray(buffer.getvalue())
    if kind == "encrypted":
        for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.rindex(header) + flags] |= 1
    elif kind == "cut short":
        del content[len(content) // 2 :]
    else:
        content[60:1_000] = b"\xa5" * 940
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(FastaeError, match="is not a readable zip archive"):
        prepare_celeba(path, tmp_path / "out", count=1)
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_pipes_are_not_waited_for(tmp_path, face_paths):
    images = tmp_path / "in"
    images.mkdir()
    os.link(face_paths[0], images / NAMES[0])
    os.mkfifo(images / NAMES[1])
    (images / NAMES[2]).symlink_to("/dev/zero")
    done = prepare_celeba(images, tmp_path / "out", count=3)
    assert (done.present, done.missing) == (1, NAMES[1:3])
    with pytest.raises(FastaeError, match="is not a file"):
        prepare_celeba(images / NAMES[1], tmp_path / "out")


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
