"""A run's folder: nobody else's while the run is under way, and not there where it never began."""

import pytest

from fastae import train as training
from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.runs.folder import RunFolder, new_run
from fastae.training.resume import resume
from fastae.training.runner import train
from fastae.training.session import Session

from ..commands import SMALL, here, last_state
from ..conftest import largest_file


def settings(face_folder, out, **others):
    return TrainConfig(
        data=str(face_folder), out=out and str(out), image_size=32, latent=16, batch_size=4, compile=False,
        gpu_sample_hz=0, **{"iterations": 2} | others,
    )  # fmt: skip


def test_a_second_run_is_refused_while_the_first_still_opens_its_data(face_folder, tmp_path, monkeypatch):
    refusals = []

    class Slow(Session):
        def __init__(self, config, *rest):
            with pytest.raises(FastaeError) as refusal:
                train(settings(face_folder, config.out, iterations=3))
            refusals.append(str(refusal.value))
            super().__init__(config, *rest)

    monkeypatch.setattr(training, "Session", Slow)
    run = train(settings(face_folder, tmp_path / "run"))
    assert len(refusals) == 1 and str(run) in refusals[0]
    assert last_state(run)["iteration"] == 2


def test_runs_without_a_name_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with new_run(None, "a") as one, new_run(None, "a") as two, new_run(None, "a") as three:
        assert [run.path.name for run in (one, two, three)] == ["now-a", "now-a-2", "now-a-3"]
        assert all(run.path.is_dir() for run in (one, two, three))
    assert not list(tmp_path.iterdir())


def test_a_run_that_began_and_ended_in_between_is_not_resumed(tmp_path):
    with new_run(tmp_path / "run", "a") as run:
        run.config.write_text("{}")
    with pytest.raises(FastaeError, match="is not empty"), new_run(tmp_path / "run", "a"):
        pass
    assert (tmp_path / "run" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("there", [True, False])
def test_a_disk_that_is_full_at_the_start_leaves_a_place_for_the_same_command(face_folder, tmp_path, there):
    """--out may be there, empty, or be made with the folder above it."""
    out = tmp_path / "runs" / "one"
    if there:
        out.mkdir(parents=True)
    train(
        settings(face_folder, tmp_path / "first")
    )  # so that the cache has its own: what fails is the folder
    with largest_file(100), pytest.raises(FastaeError, match="cannot write the run folder"):
        train(settings(face_folder, out))
    assert not list(out.iterdir()) if there else not out.parent.exists()
    assert last_state(train(settings(face_folder, out)))["iteration"] == 2


def test_what_a_kill_before_the_beginning_leaves_is_taken_for_nothing(face_folder, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "samples").mkdir()
    for name in (".lock", "images.json", "skipped.txt", ".config.json.1.partial"):
        (out / name).write_text("left")
    train(settings(face_folder, out))
    assert not (out / "skipped.txt").exists() and not list(out.glob(".*.partial"))
    assert last_state(resume(out, {"iterations": 3}))["iteration"] == 3


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/0000001.pt", ".hidden"])
def test_what_may_be_somebodys_is_neither_used_nor_removed(tmp_path, name):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    for file in (".lock", "images.json", name):
        (out / file).write_text("kept")
    with pytest.raises(FastaeError, match="is not empty"), new_run(out, "a"):
        pass
    assert (out / name).read_text() == (out / "images.json").read_text() == "kept"


def test_a_run_that_fails_before_it_begins_leaves_nothing(face_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ([], ["--out", "a/b"]):
        with pytest.raises(FastaeError, match="--crop 5000"):
            here("train", "--data", face_folder, *out, *SMALL, "--crop", 5000)
        assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(FastaeError, match="--crop 5000"):
        here("train", "--data", face_folder, "--out", "mine", *SMALL, "--crop", 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_a_lock_ends_with_its_block(tmp_path):
    run = RunFolder(tmp_path)
    for _ in range(2):
        with run.locked(), pytest.raises(FastaeError, match="another run is at work"), run.locked():
            pass
