"""A run's folder is locked while the run is in progress, and is removed if the run never began."""

import pytest

from fastae.errors import FastaeError
from fastae.runs.folder import RunFolder, new_run
from fastae.training import runner
from fastae.training.runner import train

from ..commands import SMALL, here, last_iteration
from ..helpers import small_config


def test_a_second_run_is_refused_while_the_first_still_opens_its_data(face_folder, tmp_path, monkeypatch):
    refusals, open_session = [], runner.open_session

    def slow(config, *rest, **options):
        with pytest.raises(FastaeError) as refusal:
            train(small_config(face_folder, config.out, iterations=3))
        refusals.append(str(refusal.value))
        return open_session(config, *rest, **options)

    monkeypatch.setattr(runner, "open_session", slow)
    run = train(small_config(face_folder, tmp_path / "run"))
    assert len(refusals) == 1 and str(run) in refusals[0]
    assert last_iteration(run) == 2


def test_runs_without_a_name_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with new_run(None, "a") as one, new_run(None, "a") as two, new_run(None, "a") as three:
        assert [run.path.name for run in (one, two, three)] == ["now-a", "now-a-2", "now-a-3"]
        assert all(run.path.is_dir() for run in (one, two, three))
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_not_begun_is_not_to_be_resumed(tmp_path):
    """A rank may be killed while it starts. The main one then removes the folder."""
    assert "--resume" not in RunFolder(tmp_path / "run").resume_hint()


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "checkpoints/0000001.safetensors"])
def test_a_folder_that_is_in_use_is_neither_used_nor_changed(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("kept")
    with pytest.raises(FastaeError, match="is not empty"), new_run(tmp_path, "a"):
        pass
    assert (tmp_path / name).read_text() == "kept" and not (tmp_path / ".lock").exists()


def test_a_run_that_fails_before_it_begins_leaves_nothing(face_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for out in ([], ["--out", "a/b"], ["--out", "mine"]):
        with pytest.raises(FastaeError, match="too small for the crop"):
            here("train", "--data", face_folder, *out, *SMALL, "--crop", 5000)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
