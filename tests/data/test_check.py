"""The check names the fault of each bad file, and records its results."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastae.data.files.check import check_folder
from fastae.data.files.folder import open_folder
from fastae.data.files.inspect import inspect
from fastae.data.files.search import find_files
from fastae.data.loaders.open import open_loader
from fastae.errors import FastaeError

from ..commands import SMALL, here
from ..helpers import no_more_files
from . import bad_files


def checked(folder, records=None):
    return check_folder(str(folder), crop=None, records=records)


def faults(found):
    return {Path(each.path).name: each.fault.value for each in found.faults}


def test_the_check_names_the_fault_of_each_of_sixty_bad_files_and_decodes_none(tmp_path, good, face_paths):
    expected = bad_files.make(tmp_path, good)
    bad_files.put(face_paths[:8], tmp_path)
    decoded = []
    found = check_folder(
        str(tmp_path), crop=100, records=None,
        find_faults=lambda check: decoded.extend(check.usable) or [None] * len(check.usable),
    )  # fmt: skip
    assert len(expected) >= 60
    assert faults(found) == expected
    assert [Path(path).name for path in found.usable] == [f"{number}.jpg" for number in range(8)]
    assert decoded == found.usable


def test_the_deep_check_uses_the_decoder_of_training(tmp_path, good, face_paths, capsys):
    """Pillow and libjpeg accept two orientations. A gray file that does not decode is counted once."""
    grey = bad_files.encoded(Image.open(face_paths[0]).convert("L"), "JPEG")
    for name, content in (
        ("a", good), ("bad_table", bad_files.bad_table(good)), ("empty", b""),
        ("grey", bad_files.bad_table(grey)), ("two_orientations", bad_files.two_orientations(good)),
    ):  # fmt: skip
        (tmp_path / f"{name}.jpg").write_bytes(content)
    assert faults(checked(tmp_path)) == {"empty.jpg": "empty", "grey.jpg": "gray"}
    assert here("check", tmp_path, "--deep") == 1
    rows = [row.split("│")[1:4] for row in capsys.readouterr().out.splitlines() if row.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["empty", "1", "skipped in training"],
        ["does not decode", "3", "replaced in training"],
        ["usable", "1", "of 5"],
    ]


@pytest.mark.parametrize("year", [1600, 1969, 2300, 9999])
def test_a_file_may_have_a_modification_time_in_any_year(tmp_path, good, year, monkeypatch):
    path = tmp_path / "images" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(good)
    moment = (year - 1970) * 31_556_952 * 10**9 + 1
    os.utime(path, ns=(moment, moment))
    first = checked(path.parent, records=tmp_path / "records")
    monkeypatch.setattr("fastae.data.files.check.inspect", None)
    assert checked(path.parent, records=tmp_path / "records") == first


def test_results_are_recorded_until_a_file_changes(tmp_path, good, monkeypatch):
    folder, records = tmp_path / "images", tmp_path / "records"
    folder.mkdir()
    for name in ("0.jpg", "1.jpg", os.fsdecode(b"\xff.jpg")):
        (folder / name).write_bytes(good)
    inspected = []
    monkeypatch.setattr(
        "fastae.data.files.check.inspect", lambda path: inspected.append(Path(path).name) or inspect(path)
    )
    first = checked(folder, records=records)
    assert len(inspected) == 3 and first.side == 178
    assert checked(folder, records=records) == first and len(inspected) == 3
    monkeypatch.chdir(tmp_path)
    checked("images", records=records)  # another name of the same folder
    assert len(inspected) == 3
    (folder / "1.jpg").write_bytes(b"")
    assert faults(checked(folder, records=records)) == {"1.jpg": "empty"}
    assert inspected[3:] == ["1.jpg"]
    found = checked(folder, records=records)
    (record,) = records.iterdir()
    intact = record.read_bytes()
    flipped = (intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :] for at in range(0, len(intact), 5))
    for content in (b"", b"junk", intact[:-1], *flipped):  # damaged records are ignored
        record.write_bytes(content)
        assert checked(folder, records=records) == found


def test_fastae_check_prints_names_escaped(tmp_path, good, capsys):
    (tmp_path / "a\n\x1b[31mred\u202e.jpg").write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"")
    (tmp_path / "good.JPG").write_bytes(good)
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "round").symlink_to("round")
    assert here("check", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "a\\n\\x1b[31mred\\u202e.jpg" in printed and "\\udcff" in printed
    assert "\x1b" not in printed and "\u202e" not in printed
    assert here("check", tmp_path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["usable"]) == (3, 1)
    assert [each["fault"] for each in found["faults"]] == ["empty", "empty"]


def test_files_are_recognised_by_their_content(tmp_path, good, face_paths, small_run):
    png = bad_files.encoded(Image.open(face_paths[0]), "PNG")
    contents = {
        **dict.fromkeys(("a.jfif", "b.png", "c", "d.txt", "e.v1.2"), good),
        **dict.fromkeys(("f.jpg", "g.PNG", "h"), png),
        **dict.fromkeys(("i.txt", "j.csv", "k.json", "l", "m.npy", "_SUCCESS"), b"000001.jpg 0\n"),
        **dict.fromkeys((".partial-9-000020.jpg", ".DS_Store", ".n/o.jpg"), good),
        "p.txt": b"", "q.png": b"",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "r").symlink_to("nowhere")
    shutil.copytree(small_run, tmp_path / "runs" / "mine")  # it has pictures, in samples/
    found = checked(tmp_path)
    assert [Path(path).name for path in found.usable] == [
        "a.jfif", "b.png", "c", "d.txt", "e.v1.2", "f.jpg", "g.PNG", "h"
    ]  # fmt: skip
    assert faults(found) == {"q.png": "empty"}


def test_other_formats_are_named_with_the_remedy_by_every_command(tmp_path, small_run, face_paths, capsys):
    folder = bad_files.put(face_paths[:6], tmp_path / "photos")
    for name, kind in (("a", "WEBP"), ("b.jpg", "WEBP"), ("c.gif", "GIF")):
        Image.open(face_paths[0]).save(folder / name, kind)
    (folder / "d.heic").write_bytes(b"\0\0\0 ftypheic" + bytes(90))

    def printed(*command):
        here(*command)
        return capsys.readouterr().out

    def loaded():
        open_loader(folder, 2, device="cpu", image_size=16, cache=False)
        return capsys.readouterr().out

    for text in (
        loaded(), printed("check", folder),
        printed("train", "--data", folder, "--out", tmp_path / "run", *SMALL, "--iterations", 1),
        printed("reconstruct", small_run, folder, "--out", tmp_path / "out"),
    ):  # fmt: skip
        assert "convert to 8-bit RGB JPEGs or PNGs: WebP, GIF, HEIC" in text


def test_too_few_images_are_an_error_that_says_why(tmp_path, face_folder, face_paths):
    assert here("check", face_folder) == 0
    (tmp_path / "celeba.zip").touch()
    for path in (tmp_path, tmp_path / "celeba.zip"):
        with pytest.raises(FastaeError, match="fastae prepare celeba"):
            open_folder(str(path))
    (tmp_path / "celeba.zip").unlink()
    (tmp_path / "a.jpg").write_bytes(b"")
    bad_files.put(face_paths, tmp_path, ["b.jpg"])
    with pytest.raises(FastaeError, match=r"1 usable image.*skipped: 1 empty"):
        open_folder(tmp_path)


def test_too_many_open_files_are_not_a_fault_of_the_file(face_folder, face_paths):
    with no_more_files():
        for read in (lambda: inspect(face_paths[0]), lambda: find_files(str(face_folder))):
            with pytest.raises(FastaeError, match=r"Too many open files.*ulimit -n"):
                read()
