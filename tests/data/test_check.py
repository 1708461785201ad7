"""Bad files: each is named for what it is, none ends a run, and the good ones' batches stay the same."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastae.data import CropResize, Tuning, open_loader
from fastae.data.check import check
from fastae.data.decode import open_decoder
from fastae.data.folder import find_jpegs, open_folder
from fastae.data.jpeg import inspect
from fastae.errors import FastaeError

from ..commands import SMALL, fastae, here
from ..test_cli import refused
from . import bad_files

CROP = 100


@pytest.fixture
def mixed(tmp_path, face_paths):
    """A folder of eight good faces among all the bad files, and what is wrong with each."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = Path(face_paths[0]).read_bytes()
    (folder / "good.jpg").write_bytes(good)
    expected = bad_files.make(folder, good)
    (folder / "good.jpg").unlink()
    for number, path in enumerate(face_paths[:8]):
        os.link(path, folder / f"face{number}.jpg")
    return folder, expected


def checked(folder, deep=False, **options):
    options = {"crop": None, "records": None} | options
    decoder = (
        open_decoder(CropResize(), torch.device("cpu"), Tuning(threads=2, compiled=False)) if deep else None
    )
    return check(str(folder), find_jpegs(str(folder)), decoder=decoder, **options)


def test_each_of_at_least_forty_bad_files_is_named(mixed):
    folder, expected = mixed
    found = checked(folder, crop=CROP)
    assert len(expected) >= 40
    assert {Path(f.path).name: f.fault.value for f in found.findings} == expected
    assert [Path(path).name for path in found.usable] == [f"face{n}.jpg" for n in range(8)]


def test_none_is_fatal_and_the_good_images_batches_are_unchanged(mixed, face_paths):
    folder, _ = mixed
    opened = open_folder(folder, CROP)

    def first(source):
        loader = open_loader(
            source, kind="dali", batch_size=4, device="cpu", seed=0, tuning=Tuning(compiled=False)
        )
        return next(loader.batches(2))

    assert torch.equal(first(opened.train + opened.held_out), first(face_paths[:8]))


def test_grey_and_progressive_images_are_remarked_upon_and_used(tmp_path, face_paths):
    image = Image.open(face_paths[0])
    image.convert("L").save(tmp_path / "grey.jpg")
    image.save(tmp_path / "progressive.jpg", progressive=True)
    found = checked(tmp_path)
    assert [f.fault.value for f in found.findings] == ["grey", "progressive"]
    assert len(found.usable) == 2 and not found.unusable
    batch = next(
        open_loader(
            found.usable, kind="dali", batch_size=2, device="cpu", seed=0, tuning=Tuning(compiled=False)
        ).batches()
    )
    assert batch.shape == (2, 3, 128, 128)


def test_large_metadata_and_bytes_after_the_end_are_no_fault(tmp_path, face_paths):
    good = Path(face_paths[0]).read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    (tmp_path / "metadata.jpg").write_bytes(good[:2] + comment * 3 + good[2:])
    (tmp_path / "appended.jpg").write_bytes(good + b"\n" * 100)
    assert checked(tmp_path).findings == []


def test_the_deep_check_asks_the_decoder_that_trains(tmp_path, face_paths):
    """Pillow and libjpeg take the turned ones: it is DALI that does not know which way is up."""
    good = Path(face_paths[0]).read_bytes()
    refused = {"bad_table.jpg": bad_files.bad_table(good), "two_ways_up.jpg": bad_files.two_ways_up(good)}
    for name, content in (refused | {"a.jpg": good, "b.jpg": good}).items():
        (tmp_path / name).write_bytes(content)
    assert checked(tmp_path).findings == []
    found = checked(tmp_path, deep=True)
    assert {Path(f.path).name: f.fault.value for f in found.findings} == dict.fromkeys(
        refused, "does not decode"
    )
    assert [Path(path).name for path in found.usable] == ["a.jpg", "b.jpg"]


def test_a_grey_file_that_does_not_decode_is_one_finding(tmp_path, face_paths):
    path = tmp_path / "grey.jpg"
    Image.open(face_paths[0]).convert("L").save(path)
    path.write_bytes(bad_files.bad_table(path.read_bytes()))
    (finding,) = checked(tmp_path, deep=True).findings
    assert finding.fault.value == "does not decode"


@pytest.mark.parametrize("year", [1600, 1969, 2300, 9999])
def test_a_file_may_be_dated_in_any_year(tmp_path, face_paths, year, monkeypatch):
    folder, records = tmp_path / "images", tmp_path / "records"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(Path(face_paths[0]).read_bytes())
    moment = (year - 1970) * 31_556_952 * 10**9 + 1
    os.utime(folder / "a.jpg", ns=(moment, moment))
    first = checked(folder, records=records)
    monkeypatch.setattr("fastae.data.check.inspect", None)
    assert checked(folder, records=records) == first


def test_answers_are_remembered_until_a_file_changes(tmp_path, face_paths, monkeypatch):
    folder, records = tmp_path / "images", tmp_path / "records"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(Path(face_paths[number]).read_bytes())
    looked_at = []
    monkeypatch.setattr(
        "fastae.data.check.inspect", lambda path: looked_at.append(Path(path).name) or inspect(path)
    )
    checked(folder, records=records)
    assert looked_at == ["0.jpg", "1.jpg", "2.jpg"]
    first = checked(folder, records=records)
    assert len(looked_at) == 3 and first.side == 178
    (folder / "1.jpg").write_bytes(b"")
    assert checked(folder, records=records).unusable[0].fault.value == "empty"
    assert looked_at[3:] == ["1.jpg"]


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_a_broken_record_is_as_good_as_none(tmp_path, face_folder, content):
    found = checked(face_folder, records=tmp_path)
    (record,) = tmp_path.iterdir()
    record.write_bytes(content)
    assert checked(face_folder, records=tmp_path) == found


def test_the_quick_check_looks_at_fifteen_thousand_files_a_second(face_paths):
    inspect(face_paths[0])
    started = time.process_time()
    for path in face_paths * 25:
        inspect(path)
    assert len(face_paths) * 25 / (time.process_time() - started) > 15_000


def test_fastae_check_prints_names_and_counts_and_exits_1(mixed, tmp_path):
    folder, expected = mixed
    report = tmp_path / "report.json"
    result = fastae("check", folder, "--crop", CROP, "--json", report)
    assert result.returncode == 1, result.stderr
    for name, fault in expected.items():
        assert any(fault in line and name in line for line in result.stdout.splitlines()), name
    assert "usable" in result.stdout and f"of {len(expected) + 8}" in result.stdout
    written = json.loads(report.read_text())
    assert written["files"] == len(expected) + 8 and written["usable"] == 8
    assert {Path(f["path"]).name: f["fault"] for f in written["findings"]} == expected


def test_fastae_check_says_of_each_fault_what_training_does(tmp_path, face_paths, capsys):
    good = Path(face_paths[0]).read_bytes()
    (tmp_path / "a.jpg").write_bytes(bad_files.bad_table(good))
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(good)
    assert here("check", tmp_path, "--deep") == 1
    rows = [row.split("│")[1:4] for row in capsys.readouterr().out.splitlines() if row.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["empty", "1", "skipped by training"],
        ["does not decode", "1", "replaced in training"],
        ["usable", "1", "of 3"],
    ]


def test_fastae_check_exits_0_where_all_is_well(face_folder):
    result = fastae("check", face_folder, "--deep", "--json", "-")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["usable"] == 40
    assert refused(fastae("check", face_folder / "missing"), "does not exist")


def test_hostile_names_are_printed_harmlessly(tmp_path, face_paths):
    (tmp_path / "a\n\x1b[31mred\u202e.jpg").write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(b"")
    os.link(face_paths[0], tmp_path / "good.jpg")
    result = fastae("check", tmp_path)
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout
    assert "a\\n\\x1b[31mred\\u202e.jpg" in result.stdout and "\\udcff" in result.stdout


def test_train_leaves_bad_files_out_and_names_them(mixed, tmp_path):
    folder, expected = mixed
    out = tmp_path / "run"
    result = fastae(
        "train", "--data", folder, "--crop", CROP, "--out", out, *SMALL, "--iterations", 2
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "skipped" in result.stdout and "not a JPEG" in result.stdout
    lines = dict(line.split("\t")[::-1] for line in (out / "skipped.txt").read_text().splitlines())
    assert {Path(path).name: fault for path, fault in lines.items()} == expected


def test_train_fails_where_too_few_remain(tmp_path, face_paths):
    (tmp_path / "a.jpg").write_bytes(b"")
    os.link(face_paths[0], tmp_path / "b.jpg")
    assert refused(fastae("train", "--data", tmp_path), "1 usable JPEG", "skipped: 1 empty")
    with pytest.raises(FastaeError, match="2 too small for --crop 500"):
        os.link(face_paths[1], tmp_path / "c.jpg")
        open_folder(tmp_path, crop=500)
