"""A folder from elsewhere may contain links. fastae writes, changes and removes nothing through them."""

import os
import shutil

import pytest

from fastae.errors import FastaeError
from fastae.sweep.folder import open_sweep
from fastae.sweep.plan import SweepConfig
from fastae.utils.files import DRAFT, atomic_write, draft, open_own

from .commands import refuses
from .helpers import small_config


@pytest.fixture
def outside(tmp_path):
    """A folder of the user, which must be unchanged at the end of the test."""
    folder = tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    files = {folder / "file": "the user's", folder / "below" / "0000001.safetensors": "the user's, too"}
    for path, text in files.items():
        path.write_text(text)
    yield folder
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(files)
    assert {path: path.read_text() for path in files} == files


def plant(path, target):
    """Replaces what is at `path` by a link to `target`; returns `path`."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


FILES = (
    ".lock", "config.json", "images.json", "metrics.csv", "model.safetensors", "skipped.txt", "nan.txt",
    "gpu.json", "gpu.csv", "gpu.png", "trace.json.gz", "report.html", f"{DRAFT}trace.json.gz",
    "samples/0000006.png", "checkpoints/0000004.safetensors", "checkpoints/0000006.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "checkpoints", "samples", "report"])
def test_a_run_folder_with_a_link_where_fastae_writes_is_refused(run, outside, name):
    link = plant(run / name, outside / ("file" if name in FILES else "below"))
    assert str(link) in refuses("train", "--resume", run, "--iterations", 6)
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["minibatch_bce", "images.json", "sweep.json", ".lock", "report"])
def test_a_sweep_with_a_link_in_it_is_refused(face_folder, tmp_path, outside, name):
    (tmp_path / "sweep").mkdir()
    link = plant(tmp_path / "sweep" / name, outside / "file")
    config = SweepConfig(small_config(face_folder))
    refused = pytest.raises(FastaeError, match=r"is a link|is not empty|cannot be read|symbolic")
    with refused, open_sweep(config, tmp_path / "sweep"):
        pytest.fail("it was opened")
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["report.html", "report", "report/train.svg", "report/held-out.svg"])
def test_a_report_is_not_written_through_links(run, outside, name):
    (run / "report").mkdir()
    link = plant(run / name, outside / ("below" if name == "report" else "file"))
    assert "is a link" in refuses("report", run)
    assert link.is_symlink()


@pytest.mark.parametrize("kind", ["file", "dangling", "pipe"])
def test_writing_follows_no_link_and_replaces_only_regular_files(tmp_path, outside, kind):
    """Root could otherwise replace /dev/null by a file, which would break many programs."""
    path = tmp_path / "path"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        plant(path, outside / kind)
    before = path.lstat()
    for write in (atomic_write, draft):
        with pytest.raises(OSError, match="it is "), write(path):
            pytest.fail("it was opened")
    for mode in ("x", "w", "a"):
        with pytest.raises(OSError, match="it is "):
            open_own(path, mode)
    assert path.lstat() == before and not (outside / "dangling").exists()


def test_the_name_of_a_draft_cannot_be_guessed(tmp_path):
    """A library that writes to a draft would follow a link that somebody had made under its name."""
    names = set()
    for _ in range(2):
        with draft(tmp_path / "trace.json.gz") as path:
            names.add(path.name)
            assert path.name.startswith(DRAFT) and path.name.endswith(".json.gz") and path.is_file()
    assert len(names) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]
