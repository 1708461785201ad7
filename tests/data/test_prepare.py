"""CelebA as users have it: unpacked safely, resumable, verified."""

import io
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from fastae.data.folder import open_folder
from fastae.data.prepare import prepare_celeba
from fastae.errors import FastaeError

from ..commands import fastae, here
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
    done = prepare_celeba(archive, tmp_path / "out", count=6)
    assert (done.present, done.faulty, done.complete) == (6, [], True)
    for name, face in zip(NAMES, face_paths, strict=False):
        assert (done.folder / name).read_bytes() == Path(face).read_bytes()


def test_resumes_where_it_was_stopped(archive, tmp_path):
    images = tmp_path / "out" / "img_align_celeba"
    first = prepare_celeba(archive, tmp_path / "out", count=6)
    kept = (images / NAMES[0]).stat().st_mtime_ns
    (images / NAMES[1]).unlink()
    (images / NAMES[2]).write_bytes(b"torn")
    assert prepare_celeba(archive, tmp_path / "out", count=6) == first
    assert (images / NAMES[0]).stat().st_mtime_ns == kept


OFFICIAL = {
    "000001.jpg": 0,
    "162770.jpg": 0,
    "162771.jpg": 1,
    "182637.jpg": 1,
    "182638.jpg": 2,
    "202599.jpg": 2,
}
TXT = "".join(f"{name} {part}\n" for name, part in OFFICIAL.items())
CSV = "image_id,partition\r\n" + TXT.replace(" ", ",").replace("\n", "\r\n")
KAGGLE = "img_align_celeba/img_align_celeba"

FORMS = {
    # The images' folder in the source, the split's file, whether it is zipped, and what of it is given.
    "original zip": ("img_align_celeba", None, True, ""),
    "original zip beside the split": ("img_align_celeba", "../list_eval_partition.txt", True, ""),
    "Kaggle's zip": (KAGGLE, "list_eval_partition.csv", True, ""),
    "Kaggle's, unpacked": (KAGGLE, "list_eval_partition.csv", False, ""),
    "Kaggle's outer folder": (KAGGLE, "list_eval_partition.csv", False, "img_align_celeba"),
    "Kaggle's inner folder": (KAGGLE, "list_eval_partition.csv", False, KAGGLE),
    "torchvision's": ("img_align_celeba", "list_eval_partition.txt", False, ""),
    "above torchvision's": ("celeba/img_align_celeba", "celeba/list_eval_partition.txt", False, ""),
    "the authors' folders": ("Img/img_align_celeba", "Eval/list_eval_partition.txt", False, ""),
    "images alone": ("img_align_celeba", None, False, "img_align_celeba"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_prepared_with_the_official_split(tmp_path, face_paths, form):
    images, split, zipped, given = FORMS[form]
    source = tmp_path / "in" / "source"
    (source / images).mkdir(parents=True)
    for name, face in zip(OFFICIAL, face_paths, strict=False):
        os.link(face, source / images / name)
    if split:
        (source / split).parent.mkdir(exist_ok=True)
        (source / split).write_bytes((CSV if split.endswith("csv") else TXT).encode())
    if zipped:
        source = Path(shutil.make_archive(str(tmp_path / "in" / "celeba"), "zip", source))
    result = here("prepare", "celeba", source / given, "--out", tmp_path / "out", "--count", 6)
    assert result == 0
    assert (tmp_path / "out" / "list_eval_partition.txt").read_text() == TXT
    opened = open_folder(tmp_path / "out" / "img_align_celeba")
    assert sorted(opened.listing.held_out) == [name for name, part in OFFICIAL.items() if part]


def test_a_split_of_ones_own_is_kept(archive, tmp_path):
    prepare_celeba(archive, tmp_path / "out", count=6)
    own = tmp_path / "out" / "list_eval_partition.txt"
    own.write_text(own.read_text().replace("000004.jpg 0", "000004.jpg 1"))
    done = prepare_celeba(tmp_path / "out" / "img_align_celeba", tmp_path / "again", count=6)
    assert done.parts == (5, 1, 0) and not done.official


@pytest.mark.parametrize(
    "split", ["000001.jpg 0\n000002.jpg train\n", "000001.jpg,0,1\n", "../../x.jpg 0\n", "\0"]
)
def test_a_split_that_is_none_is_named_with_its_line(tmp_path, face_paths, split):
    os.link(face_paths[0], tmp_path / "000001.jpg")
    (tmp_path / "list_eval_partition.csv").write_text(split)
    with pytest.raises(FastaeError, match=r"list_eval_partition\.csv:[12]: expected '000001\.jpg 0\|1\|2'"):
        prepare_celeba(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("count", [5, 6, 7])
def test_count_is_the_number_of_images_whatever_their_names(tmp_path, face_paths, count):
    for name, face in zip(OFFICIAL, face_paths, strict=False):
        os.link(face, tmp_path / name)
    done = prepare_celeba(tmp_path, tmp_path / "out", count)
    assert done.complete == (count == 6) and done.missing == []


def test_where_all_of_celeba_is_expected_what_is_missing_has_a_name(archive, tmp_path):
    done = prepare_celeba(archive, tmp_path / "out")
    assert (len(done.missing), done.missing[0], done.missing[-1]) == (202_593, "000007.jpg", "202599.jpg")


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
    evil = ("../../000001.jpg", "/tmp/000002.jpg", "a/../../b/000003.jpg", "../list_eval_partition.txt")
    with zipfile.ZipFile(path, "w") as made:
        for name in (*evil, "../escape.txt", "000004.jpg"):
            made.writestr(name, face)
    out = tmp_path / "deep" / "er" / "out"
    done = prepare_celeba(path, out, count=1)
    assert done.complete and done.skipped == list(evil)
    assert sorted(file.name for file in out.rglob("*") if file.is_file()) == [
        "000004.jpg",
        "list_eval_partition.txt",
    ]
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


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_an_entry_that_claims_to_be_no_plain_file_is_skipped(tmp_path, face_paths, kind):
    path, out = tmp_path / "links.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("img_align_celeba/000001.jpg", "list_eval_partition.txt"):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
            made.writestr(entry, "/etc/passwd")
        made.write(face_paths[1], "img_align_celeba/000002.jpg")
    done = prepare_celeba(path, out, count=1)
    assert done.complete and done.skipped == ["img_align_celeba/000001.jpg", "list_eval_partition.txt"]
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
    assert not (tmp_path / "out").exists()


def test_of_a_folder_nothing_but_its_plain_files_is_taken(tmp_path, face_paths):
    images = tmp_path / "in"
    images.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("of nobody's business")
    os.link(face_paths[0], images / NAMES[0])
    os.mkfifo(images / NAMES[1])
    for name, target in zip(NAMES[2:], ("/dev/zero", secret, images / NAMES[0], "nowhere"), strict=True):
        (images / name).symlink_to(target)
    (images / "list_eval_partition.txt").symlink_to(secret)
    done = prepare_celeba(images, tmp_path / "out", count=1)
    assert done.complete and sorted(Path(path).name for path in done.skipped) == NAMES[1:]
    assert [path.name for path in done.folder.iterdir()] == NAMES[:1]
    assert (tmp_path / "out" / "list_eval_partition.txt").read_text() == "000001.jpg 0\n"
    with pytest.raises(FastaeError, match="is not a file"):
        prepare_celeba(images / NAMES[1], tmp_path / "out")


def test_a_folder_that_is_a_link_is_not_entered(tmp_path, face_paths):
    (tmp_path / "private").mkdir()
    os.link(face_paths[0], tmp_path / "private" / NAMES[0])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "img_align_celeba").symlink_to(tmp_path / "private")
    with pytest.raises(FastaeError, match=r"links and devices are not taken: .*img_align_celeba"):
        prepare_celeba(tmp_path / "in", tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "private")  # named by the user, it may be one
    assert prepare_celeba(tmp_path / "link", tmp_path / "out", count=1).complete


def test_a_source_without_images_leaves_no_folder(tmp_path):
    (tmp_path / "in" / "img_align_celeba" / "deeper").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as made:
        made.writestr("list_eval_partition.txt", TXT)
    for source in ("in", "empty.zip", "none", "x" * 300, "a\0b"):
        with pytest.raises(FastaeError):
            prepare_celeba(tmp_path / source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_huge_file_of_a_folder_is_not_copied(tmp_path):
    (tmp_path / NAMES[0]).touch()
    os.truncate(tmp_path / NAMES[0], 1 << 40)
    with pytest.raises(FastaeError, match="this is not CelebA"):
        prepare_celeba(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_what_is_no_archive_is_one_line(tmp_path, content):
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    assert refused(
        fastae("prepare", "celeba", path, "--out", tmp_path / "out"), "is not a readable zip archive"
    )


def test_the_command_tells_counts_and_the_licence_once(archive, tmp_path):
    result = fastae("prepare", "celeba", archive, "--out", tmp_path / "out", "--count", 8)
    assert result.returncode == 1
    assert result.stdout.count("non-commercial research") == 1
    assert "6 of 8 images in " in result.stdout
    result = fastae("prepare", "celeba", archive, "--out", tmp_path / "out", "--count", 6)
    assert result.returncode == 0 and "next: fastae train --amp --data" in result.stdout
    assert refused(fastae("prepare", "celeba", tmp_path / "none.zip", "--out", tmp_path), "does not exist")
