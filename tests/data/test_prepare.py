"""Each form of CelebA can be trained on with its split. `prepare` unpacks safely, resumes, and verifies."""

import io
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fastae.data.files.folder import open_folder
from fastae.data.files.prepare import prepare_celeba
from fastae.errors import FastaeError
from fastae.utils.files import DRAFT

from ..commands import here
from .bad_files import put

NAMES = [f"{number:06d}.jpg" for number in range(1, 7)]


@pytest.fixture
def archive(tmp_path, face_paths):
    path = tmp_path / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, face in zip(NAMES, face_paths, strict=False):
            made.write(face, f"img_align_celeba/{name}")
        made.writestr("list_eval_partition.txt", "".join(f"{name} 0\n" for name in NAMES))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepare_unpacks_verifies_and_resumes(archive, tmp_path, face_paths):
    first = prepare_celeba(archive, tmp_path / "out", count=6)
    assert (first.present, first.faulty, first.complete) == (6, [], True)
    kept = (first.folder / NAMES[0]).stat().st_mtime_ns
    (first.folder / NAMES[1]).unlink()
    (first.folder / NAMES[2]).write_bytes(b"torn")
    for folder in (first.folder, first.folder.parent):
        (folder / f"{DRAFT}9-{NAMES[3]}").write_bytes(b"left by a killed process")
    assert prepare_celeba(archive, tmp_path / "out", count=6) == first
    assert (first.folder / NAMES[0]).stat().st_mtime_ns == kept
    assert contents(first.folder) == contents(put(face_paths, tmp_path / "expected", NAMES))
    assert not list((tmp_path / "out").glob(f"{DRAFT}*"))


PARTS = {"000001.jpg": 0, "162770.jpg": 0, "162771.jpg": 1, "182637.jpg": 1, "182638.jpg": 2, "202599.jpg": 2}
TXT = "".join(f"{name} {part}\n" for name, part in PARTS.items())
CSV = "image_id,partition\r\n" + TXT.replace(" ", ",").replace("\n", "\r\n")
ALIGNED, KAGGLE = "img_align_celeba", "img_align_celeba/img_align_celeba"
IMG, EVAL = "Img/img_align_celeba", "Eval/list_eval_partition.txt"

FORMS = {
    # Form -> the images' folder and the split file in the source, whether it is zipped, the part passed.
    "original zip": (ALIGNED, None, True, ""),
    "original zip beside the split": (ALIGNED, "../list_eval_partition.txt", True, ""),
    "Kaggle's zip": (KAGGLE, "list_eval_partition.csv", True, ""),
    "Kaggle's, unpacked": (KAGGLE, "list_eval_partition.csv", False, ""),
    "Kaggle's outer folder": (KAGGLE, "list_eval_partition.csv", False, ALIGNED),
    "Kaggle's inner folder": (KAGGLE, "list_eval_partition.csv", False, KAGGLE),
    "torchvision's": (ALIGNED, "list_eval_partition.txt", False, ""),
    "above torchvision's": ("celeba/img_align_celeba", "celeba/list_eval_partition.txt", False, ""),
    "the authors' folders": (IMG, EVAL, False, ""),
    "the authors' images": (IMG, EVAL, False, IMG),
    "images alone": (ALIGNED, None, False, ALIGNED),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_trained_on_and_prepared_with_the_official_split(tmp_path, face_paths, form, capsys):
    images, split, zipped, given = FORMS[form]
    source = tmp_path / "in" / "source"
    put(face_paths, source / images, PARTS)
    if split:
        (source / split).parent.mkdir(exist_ok=True)
        (source / split).write_bytes((CSV if split.endswith("csv") else TXT).encode())
    if zipped:
        source = Path(shutil.make_archive(str(tmp_path / "in" / "celeba"), "zip", source))
    elif split:
        assert_official(source / given)
    assert here("prepare", "celeba", source / given, "--out", tmp_path / "out", "--count", 6) == 0
    assert "6 of 6 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "list_eval_partition.txt").read_text() == TXT
    assert_official(tmp_path / "out")


def assert_official(folder):
    held_out = open_folder(folder).held_out
    assert sorted(Path(path).name for path in held_out) == [name for name, part in PARTS.items() if part]


def test_unaligned_images_with_the_same_names_are_not_copied(tmp_path, face_paths):
    aligned = put(face_paths, tmp_path / "in" / "img_align_celeba", NAMES[:1])
    put(face_paths[1:], tmp_path / "in" / "img_celeba", NAMES[:1])
    assert contents(prepare_celeba(tmp_path / "in", tmp_path / "out").folder) == contents(aligned)


def test_a_users_own_split_is_kept_and_may_name_any_images(archive, tmp_path, face_paths):
    prepare_celeba(archive, tmp_path / "out", count=6)
    own = tmp_path / "out" / "list_eval_partition.txt"
    own.write_text(own.read_text().replace("000004.jpg 0", "000004.jpg 1") + "nobody.jpg 2\n")
    done = prepare_celeba(tmp_path / "out" / "img_align_celeba", tmp_path / "again", count=6)
    assert done.parts == (5, 1, 0) and not done.official
    mine = put(face_paths, tmp_path / "mine", ["a b.jpeg", "b.jpeg", "c.jpeg"])
    for name, lines in {"csv": "a b.jpeg,2\nb.jpeg,0\n", "txt": "a b.jpeg 2\nb.jpeg 0\n"}.items():
        split = mine / f"list_eval_partition.{name}"
        split.write_text(lines)
        assert [*open_folder(mine).manifest.held_out] == ["a b.jpeg"]
        split.unlink()


@pytest.mark.parametrize("split", ["000001.jpg 0\n000002.jpg train\n", "000001.jpg,0,1\n", "\0"])
def test_the_error_for_an_invalid_split_names_the_file_and_the_line(tmp_path, face_paths, split):
    put(face_paths, tmp_path, NAMES)
    (tmp_path / "list_eval_partition.csv").write_text(split)
    for use in (lambda: prepare_celeba(tmp_path, tmp_path / "out"), lambda: open_folder(tmp_path)):
        with pytest.raises(FastaeError, match=r"list_eval_partition\.csv:[12]: expected 'NAME 0\|1\|2'"):
            use()


def test_wrong_dimensions_and_broken_images_are_faulty(tmp_path, face_paths):
    images = put(face_paths, tmp_path / "in", NAMES[2:3])
    Image.open(face_paths[0]).resize((100, 100)).save(images / NAMES[0])
    (images / NAMES[1]).write_bytes(b"")
    assert prepare_celeba(images, tmp_path / "out", count=3).faulty == NAMES[:2]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_entry_is_written_outside_the_folder(tmp_path, good):
    path = tmp_path / "evil.zip"
    evil = ["../../000001.jpg", "/tmp/000002.jpg", "a/../../b/000003.jpg", "../list_eval_partition.txt"]
    with zipfile.ZipFile(path, "w") as made:
        for name in (*evil, "../escape.txt", "\u0660\u0660\u0660\u0660\u0660\u0661.jpg", "a/000004.jpg"):
            made.writestr(name, good[::-1])
        for number, kind in enumerate((stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)):
            entry = zipfile.ZipInfo(f"00001{number}.jpg")
            entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
            made.writestr(entry, "/etc/passwd")
            evil.append(entry.filename)
        made.writestr("000004.jpg", good)  # of two entries with one name, the last counts
    done = prepare_celeba(path, tmp_path / "deep" / "er" / "out", count=1)
    assert done.complete and done.skipped == evil
    assert contents(done.folder) == {"000004.jpg": good}
    written = [file.name for file in tmp_path.rglob("*") if not file.is_dir()]
    assert sorted(written) == ["000004.jpg", "evil.zip", "list_eval_partition.txt"]


def test_decompression_bombs_are_refused(tmp_path, archive, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("000001.jpg", bytes(50_000_000))
    content, size = buffer.getvalue(), (50_000_000).to_bytes(4, "little")
    path, out = tmp_path / "bomb.zip", tmp_path / "out"
    for bomb in (content, content.replace(size, (1_000).to_bytes(4, "little"))):
        path.write_bytes(bomb)
        with pytest.raises(FastaeError, match=r"larger than CelebA|not a readable zip archive"):
            prepare_celeba(path, out)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / NAMES[0]).touch()
    os.truncate(tmp_path / "in" / NAMES[0], 1 << 40)
    with pytest.raises(FastaeError, match="larger than CelebA"):
        prepare_celeba(tmp_path / "in", out)
    assert not list(out.rglob("*.jpg"))
    monkeypatch.setattr("fastae.data.files.prepare.MAX_TOTAL", 20_000)
    with pytest.raises(FastaeError, match="all images together, are larger than CelebA"):
        prepare_celeba(archive, out)


KINDS = ["stored", "deflated", "bzip2", "lzma", "encrypted", "cut short", "empty", "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_an_error_and_leaves_no_partial_file(tmp_path, good, kind):
    methods = {"deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", methods.get(kind, zipfile.ZIP_STORED)) as made:
        made.writestr("000001.jpg", good)
    content = bytearray(buffer.getvalue())
    if kind == "encrypted":
        for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.rindex(header) + flags] |= 1
    elif kind == "cut short":
        del content[len(content) // 2 :]
    else:
        content[60:1_000] = b"\xa5" * 940
    path = tmp_path / "a.zip"
    path.write_bytes({"empty": b"", "text": b"no archive"}.get(kind, content))
    with pytest.raises(FastaeError, match="is not a readable zip archive"):
        prepare_celeba(path, tmp_path / "out", count=1)
    assert not (tmp_path / "out").exists()


def test_only_the_regular_files_of_a_folder_are_copied(tmp_path, face_paths):
    images = put(face_paths, tmp_path / "in", NAMES[:1])
    secret = tmp_path / "secret"
    secret.write_text("of nobody's business")
    os.mkfifo(images / NAMES[1])
    for name, target in zip(NAMES[2:], ("/dev/zero", secret, NAMES[0], "nowhere"), strict=True):
        (images / name).symlink_to(target)
    (images / "list_eval_partition.txt").symlink_to(secret)
    done = prepare_celeba(images, tmp_path / "out", count=1)
    assert done.complete and sorted(Path(path).name for path in done.skipped) == NAMES[1:]
    assert [*contents(done.folder)] == NAMES[:1]
    assert (tmp_path / "out" / "list_eval_partition.txt").read_text() == "000001.jpg 0\n"
    with pytest.raises(FastaeError, match="is not a file"):
        prepare_celeba(images / NAMES[1], tmp_path / "out")


def test_a_folder_that_is_a_link_is_not_entered(tmp_path, face_paths):
    private = put(face_paths, tmp_path / "private", NAMES[:1])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "img_align_celeba").symlink_to(private)
    with pytest.raises(FastaeError, match="skipped links and devices: 1"):
        prepare_celeba(tmp_path / "in", tmp_path / "out")
    (tmp_path / "link").symlink_to(private)  # a link that the user passes is followed
    assert prepare_celeba(tmp_path / "link", tmp_path / "out", count=1).complete


def test_a_source_without_images_leaves_no_folder(tmp_path):
    (tmp_path / "in" / "img_align_celeba" / "deeper").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as made:
        made.writestr("list_eval_partition.txt", TXT)
    for source in ("in", "empty.zip", "none", "x" * 300, "a\0b"):
        with pytest.raises(FastaeError):
            prepare_celeba(tmp_path / source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
