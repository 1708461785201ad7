"""The cache folder: which entries are fastae's, what happens to killed builds, and the `cache` commands."""

import io
import os
import sys
import time
from contextlib import suppress
from unittest.mock import Mock

import click
import pytest

from fastae.data.files.folder import open_folder
from fastae.utils import cache as caches
from fastae.utils.cache import check_records, ensure_entry, entries

from ..commands import here, refuses, started, wait_for


def make(folder, size=1_000_000):
    """Makes an entry with one file of `size` bytes; returns its folder."""

    def fill(draft):
        (draft / "pixels.npy").write_bytes(bytes(size))

    ensure_entry(folder, "resident", "7 images of /my/data", fill)
    return folder


BUILD = """
import sys, time
from pathlib import Path
from fastae.utils.cache import ensure_entry

def fill(draft):
    (draft / "pixels.npy").write_bytes(b"half")
    print("under way", flush=True)
    time.sleep(600)

ensure_entry(Path(sys.argv[1]), "resident", "data", fill)
"""


def builder(folder):
    """Starts a process that builds `folder` until it is killed."""
    return started("-c", BUILD, folder, command=(sys.executable,))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_rebuild_that_is_interrupted_leaves_an_entry_that_is_listed(tmp_path, monkeypatch):
    """The damaged entry may be large: without its marker, nothing would ever remove it."""
    folder, discard = make(tmp_path / "resident-1"), caches._discard
    (folder / "pixels.npy").write_bytes(b"damaged")

    def interrupted(path):
        discard(path)
        if path.parent == folder:
            raise KeyboardInterrupt

    monkeypatch.setattr(caches, "_discard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert [entry.path for entry in entries(tmp_path)] == [folder]


def test_only_what_fastae_marked_is_listed_and_removed(tmp_path, capsys):
    cache = tmp_path / "cache"
    precious = ["faces-of-my-family/a.jpg", "checks-to-deposit/b", "resident-evil/c", ".faces-x.partial/d"]
    for name in precious:
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text("kept")
    (cache / "checksums.sha256").write_text("kept")
    (cache / "mine").mkdir()
    (cache / "mine" / "entry.json").write_text('{"kind": "faces", "title": "a diary"}')
    elsewhere = make(tmp_path / "elsewhere" / "resident-1")
    (cache / "resident-link").symlink_to(elsewhere)
    before = names(cache)
    make(cache / "resident-2")
    assert check_records(cache)
    here("cache", "list", "--cache-dir", cache)
    listed = capsys.readouterr().out
    assert "resident-2" in listed and not [name for name in before if name in listed]
    assert here("cache", "clear", "--cache-dir", cache, "--yes") == 0
    assert names(cache) == before and all((cache / name).exists() for name in precious)
    assert (elsewhere / "pixels.npy").exists()


def test_the_list_shows_data_size_and_last_use_and_clear_accepts_a_name(tmp_path, capsys):
    make(tmp_path / "resident-1", 3_000_000)
    os.utime(tmp_path / "resident-1" / "entry.json", (1e9, 1e9))
    here("cache", "list", "--cache-dir", tmp_path)
    line, total = capsys.readouterr().out.splitlines()
    assert all(part in line for part in ("3.0 MB", "2001-09-0", "resident-1", "7 images of /my/data"))
    assert "3.0 MB" in total
    (tmp_path / "resident-1" / "@eaDir").mkdir()  # file servers make such folders
    make(tmp_path / "resident-1")  # it is in order, so it is not rebuilt
    (entry,) = entries(tmp_path)
    assert entry.used > 1.7e9 and entry.size > 3_000_000
    make(tmp_path / "resident-2")
    assert here("cache", "clear", "resident-1", "--cache-dir", tmp_path) == 0
    assert names(tmp_path) == ["resident-2"]
    assert "'resident-1'" in refuses("cache", "clear", "resident-1", "--cache-dir", tmp_path)


@pytest.mark.parametrize("has_entry", [True, False])
def test_clear_removes_an_entry_beside_a_draft_that_was_killed_before_it_had_a_marker(tmp_path, has_entry):
    draft = tmp_path / ".resident-1.partial"
    if has_entry:
        make(tmp_path / "resident-1")
    draft.mkdir()
    (draft / ".partial-1-entry.json").write_bytes(b"{")
    assert here("cache", "clear", "--cache-dir", tmp_path, "--yes") == 0 and names(tmp_path) == []


@pytest.mark.parametrize(("answer", "left"), [("y\n", []), ("n\n", ["resident-1"]), ("", ["resident-1"])])
def test_clear_asks_before_it_removes_everything(tmp_path, answer, left, monkeypatch, capsys):
    make(tmp_path / "resident-1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    with suppress(click.Abort):  # without a terminal, or after Ctrl-D
        assert here("cache", "clear", "--cache-dir", tmp_path) == (1 if left else 0)
    assert "1.0 MB" in capsys.readouterr().out and names(tmp_path) == left


def test_drafts_of_killed_builds_are_removed_but_not_those_of_running_builds(tmp_path, capsys):
    one, two, three = (tmp_path / f"resident-{number}" for number in (1, 2, 3))
    with builder(one) as dead, builder(two) as alive:
        for process in (dead, alive):
            wait_for(process, "under way")
        dead.kill()
        dead.wait()
        assert ".resident-1.partial" in names(tmp_path)
        make(three)
        assert [entry.name for entry in entries(tmp_path)] == ["resident-2", "resident-3"]
        assert (tmp_path / ".resident-2.partial" / "pixels.npy").read_bytes() == b"half"
        assert here("cache", "clear", "--cache-dir", tmp_path, "--yes") == 1
        assert "resident-2" in capsys.readouterr().out
        assert [entry.name for entry in entries(tmp_path)] == ["resident-2"]
    make(two, 5)  # its build was killed, so it is built again
    assert (two / "pixels.npy").read_bytes() == bytes(5)
    assert here("cache", "clear", "--cache-dir", tmp_path, "--yes") == 0 and names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        ensure_entry(tmp_path / "a", "faces", "", Mock(side_effect=error))
    assert names(tmp_path) == []


def test_a_folder_of_the_users_is_not_written_to(tmp_path):
    (tmp_path / "file-checks").mkdir()
    (tmp_path / "file").write_text("")
    assert check_records(tmp_path) is None and names(tmp_path / "file-checks") == []
    assert check_records(tmp_path / "file") is None and entries(tmp_path / "file") == []


def test_kernels_are_kept_where_the_user_wants_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    caches.keep_kernels(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine" and names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "age", "kept"),
    [(b"", 60, []), (bytes(176), 60, []), (b"", 0, ["a.so"]), (caches.ELF, 60, ["a.so"])],
)
def test_a_library_whose_linker_was_killed_is_removed(tmp_path, monkeypatch, content, age, kept):
    """PyTorch would load it, and fail, in every later run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    caches.keep_kernels(tmp_path)
    library = tmp_path / "kernels" / "24" / "a.so"
    library.parent.mkdir()
    library.write_bytes(content)
    os.utime(library, (time.time() - age,) * 2)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    caches.keep_kernels(tmp_path)
    assert names(library.parent) == kept


def test_a_pipe_in_the_cache_does_not_block(tmp_path, face_folder):
    """Pipes among decoded images are in tests/data/test_store.py."""
    records = check_records(tmp_path)
    before = open_folder(face_folder, records=records)
    for path in records.iterdir():
        if path.suffix == ".msgpack":
            path.unlink()
            os.mkfifo(path)
    assert open_folder(face_folder, records=records) == before
    (records / "entry.json").unlink()
    os.mkfifo(records / "entry.json")
    assert check_records(tmp_path) is None and entries(tmp_path) == []
    os.mkfifo(tmp_path / ".resident-1.lock")
    os.mkfifo(tmp_path / "resident-1")
    assert (make(tmp_path / "resident-1") / "pixels.npy").is_file()


def test_a_link_at_the_path_of_an_entry_is_replaced_and_its_target_kept(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("kept")
    (tmp_path / "resident-1").symlink_to(mine)
    make(tmp_path / "resident-1")
    assert names(tmp_path) == ["mine", "resident-1"] and names(mine) == ["file"]
    assert not (tmp_path / "resident-1").is_symlink()
