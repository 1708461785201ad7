"""A run that was broken off, at any moment and in any way, goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from fastae.errors import FastaeError
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.training.resume import resume

from ..commands import SMALL, begin_with, curve, fastae, here, last_state, same_state, started, wait_for

LENGTH = 24
RUN = [
    *SMALL, "--iterations", LENGTH, "--log-every", 2, "--eval-every", 8, "--checkpoint-every", 3,
    "--gpu-sample-hz", 0, "--seed", 5,
]  # fmt: skip
LOADERS = {
    "resident": ["--loader", "resident"],
    "dali": ["--loader", "dali"],
    "resident-compiled": ["--loader", "resident", "--compile"],
    "dali-compiled": ["--loader", "dali", "--compile"],
}
SOAK = bool(os.environ.get("FASTAE_SOAK"))
KILLS = 20 if SOAK else 2
LINES = 6
"""The most log lines between two kills."""

KILLED_LENGTH = 4 * LINES * KILLS
"""So many iterations that none of the kills finds the run finished."""


@pytest.fixture(scope="module")
def uninterrupted(face_folder, tmp_path_factory):
    """The run that nothing happened to, for each way of running it; made once."""
    made = {}

    def run(kind, length=LENGTH):
        key = f"{kind}-{length}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / key
            arguments = [*RUN, *LOADERS[kind], "--iterations", length]
            result = fastae("train", "--data", face_folder, "--out", made[key], *arguments)
            assert result.returncode == 0, result.stderr
        return made[key]

    return run


@pytest.fixture
def broken_off(uninterrupted, tmp_path):
    """A copy of that run as it was at iteration 21, its last three iterations undone."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("resident"), run, symlinks=True)
    for path in (run / "checkpoints").glob(f"{LENGTH:07d}.pt*"):
        path.unlink()
    return run


def assert_the_same(run, whole, length=LENGTH):
    ours, theirs = last_state(run), last_state(whole)
    assert ours["iteration"] == length
    for part in ("model", "optimizer", "iteration"):
        assert same_state(ours[part], theirs[part]), part
    for tag in ("loss_index/train", "loss/minibatch_bce", "loss_index/held_out"):
        assert curve(run, tag) == curve(whole, tag), tag
    assert [step for step, _ in curve(run)] == [1, *range(2, length + 1, 2)]


def killed_at(moment, run, *arguments):
    """Starts fastae, and kills it in mid-run, so many log lines and a part of a second after it began."""
    with started("train", *arguments) as process:
        wait_for(process, f"run       {run}")
        for _ in range(int(moment)):
            wait_for(process, "images/s")
        time.sleep(moment % 1 * 0.1)
        assert process.poll() is None, "it was faster than the test expects"
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("kind", LOADERS if SOAK else ["resident"])
def test_a_killed_run_ends_in_the_same_bits_and_curves(uninterrupted, face_folder, tmp_path, kind):
    """Killed 20 times in the long form (make soak), each time at another moment; saves are among them."""
    moments = random.Random(kind)
    run = tmp_path / "run"
    new = ["--data", face_folder, "--out", run, *RUN, *LOADERS[kind], "--iterations", KILLED_LENGTH]
    drafts = 0
    for kill in range(KILLS):
        killed_at(moments.uniform(0, LINES), run, *(["--resume", run] if kill else new))
        drafts += len(list(run.glob("**/*.partial")))
    result = fastae("train", "--resume", run)
    assert result.returncode == 0, result.stderr
    assert_the_same(run, uninterrupted(kind, KILLED_LENGTH), KILLED_LENGTH)
    assert not list(run.glob("**/*.partial"))
    print(f"{kind}: {KILLS} kills, {drafts} of them while a checkpoint was being written")


def test_a_compiled_run_goes_on_compiled(uninterrupted, face_folder, tmp_path):
    run = tmp_path / "run"
    kind = "dali-compiled"
    killed_at(3.5, run, "--data", face_folder, "--out", run, *RUN, *LOADERS[kind])
    result = fastae("train", "--resume", run)
    assert ", compiled" in result.stdout, result.stderr
    assert_the_same(run, uninterrupted(kind))


def damage_newest(run, how):
    newest = run / "checkpoints" / "0000021.pt"
    content = bytearray(newest.read_bytes())
    if how == "torn":
        newest.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 3] ^= 1
        newest.write_bytes(content)
    elif how == "empty":
        newest.write_bytes(b"")
    elif how == "no digest":
        newest.with_name(newest.name + ".sha256").unlink()
    else:
        newest.write_bytes(b"not a checkpoint")
        digest = subprocess.run(["sha256sum", newest], capture_output=True, text=True, check=True).stdout
        newest.with_name(newest.name + ".sha256").write_text(digest)


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "no digest", "no zip at all"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(broken_off, how):
    damage_newest(broken_off, how)
    told = []
    state = checkpoint.newest(broken_off / "checkpoints", told.append)
    assert state["iteration"] == 18
    (line,) = told
    assert "0000021.pt" in line


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(broken_off, uninterrupted):
    damage_newest(broken_off, "flipped")
    result = fastae("train", "--resume", broken_off)
    assert result.returncode == 0, result.stderr
    assert "from iteration 18" in result.stdout
    assert_the_same(broken_off, uninterrupted("resident"))


def test_checkpoints_are_what_sha256sum_checks_and_three_are_kept(uninterrupted):
    folder = uninterrupted("resident") / "checkpoints"
    names = sorted(path.name for path in folder.glob("*.pt"))
    assert names == ["0000018.pt", "0000021.pt", "0000024.pt", "last.pt"]
    assert (folder / "last.pt").resolve().name == "0000024.pt"
    sums = [path.name for path in folder.glob("*.sha256")]
    assert len(sums) == 3
    assert subprocess.run(["sha256sum", "-c", *sums], cwd=folder, check=False).returncode == 0


def test_more_iterations_go_on_from_the_end(uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("resident"), run, symlinks=True)
    finished = fastae("train", "--resume", run)
    assert finished.returncode == 0 and "is finished, at iteration 24" in finished.stdout
    result = fastae("train", "--resume", run, "--iterations", LENGTH + 4)
    assert result.returncode == 0, result.stderr
    assert [step for step, _ in curve(run)] == [1, *range(2, LENGTH + 5, 2)]
    written = json.loads((run / "config.json").read_text())
    assert written["config"]["iterations"] == LENGTH + 4
    assert written["resumed"] == [LENGTH]


def test_a_run_without_a_checkpoint_begins_again(broken_off, uninterrupted):
    shutil.rmtree(broken_off / "checkpoints")
    (broken_off / "checkpoints").mkdir()
    result = fastae("train", "--resume", broken_off)
    assert "from the beginning, since there is no checkpoint yet" in result.stdout, result.stderr
    assert_the_same(broken_off, uninterrupted("resident"))


def refused(*arguments):
    result = fastae("train", *arguments)
    assert result.returncode == 2, result.stdout
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in result.stdout
    return line


def test_what_would_be_another_run_is_refused_by_name(broken_off):
    line = refused("--resume", broken_off, "--lr", 0.1, "--seed", 5, "--loss", "pixel_mse")
    assert "has --lr 0.0001, not 0.1, --loss minibatch_bce, not pixel_mse: start a new run" in line


def test_a_list_of_other_images_is_refused(broken_off):
    images = RunFolder(broken_off).manifest()
    moved = replace(images, train=dict(reversed(images.train.items())))
    moved.write(broken_off / "images.json")
    with pytest.raises(FastaeError, match=r"images.json' lists other images than the run began with: rest"):
        resume(broken_off, {})
    (broken_off / "images.json").unlink()
    with pytest.raises(FastaeError, match="the list of its images, cannot be read: No such file"):
        resume(broken_off, {})


@pytest.mark.parametrize("how", ["two are gone", "one has grown"])
def test_other_data_are_refused(broken_off, face_folder, tmp_path, how):
    other = tmp_path / "other"
    shutil.copytree(face_folder, other)
    first, second, *_ = sorted(other.glob("*.jpg"))
    if how == "two are gone":
        first.unlink()
        second.unlink()
        why = "2 of 40 files are missing or bad"
    else:
        why = f"'{first.name}' had {first.stat().st_size:,} bytes"
        first.write_bytes(first.read_bytes() + bytes(1))
    line = refused("--resume", broken_off, "--data", other)
    assert line.endswith(
        f"{str(other)!r} is not what the run trains on: {why}; "
        "restore them there, or resume with --data FOLDER"
    )


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_file_that_went_bad_since_does_not_end_the_run(face_folder, tmp_path, capsys, loader):
    """It is as if it had gone bad in mid-run: the next is read instead, and no other image moves."""
    data, run, other = tmp_path / "data", tmp_path / "run", tmp_path / "other"
    shutil.copytree(face_folder, data)
    here("train", "--data", data, "--out", run, *RUN, *LOADERS[loader], "--iterations", LENGTH // 2)
    shutil.copytree(run, other, symlinks=True)
    bad, stand_in, *_ = sorted(data.glob("*.jpg"))
    bad.unlink()
    (data / "000.jpg").write_bytes(stand_in.read_bytes())  # a new file, first by name: not the run's
    for until in (LENGTH // 2 + 4, LENGTH):
        resume(run, {"iterations": until})
        assert f"lost      {bad} since the run began" in capsys.readouterr().out
    assert (run / "skipped.txt").read_text() == f"gone\t{bad}\n"

    # The same by hand: the stand-in under the lost one's name, in a run that is told it began with it.
    bad.write_bytes(stand_in.read_bytes())
    images = RunFolder(other).manifest()
    images = replace(images, train={**images.train, bad.name: bad.stat().st_size})
    begin_with(other, images)
    resume(other, {"iterations": LENGTH})
    assert same_state(last_state(run)["model"], last_state(other)["model"])
    assert curve(run) == curve(other)


def test_data_that_were_moved_are_found_by_data(broken_off, face_folder, tmp_path, uninterrupted):
    moved = tmp_path / "moved"
    shutil.copytree(face_folder, moved)
    result = fastae("train", "--resume", broken_off, "--data", moved)
    assert result.returncode == 0, result.stderr
    assert_the_same(broken_off, uninterrupted("resident"))


def test_another_version_is_said(broken_off):
    # What the checkpoint says, since config.json may be of a later session.
    newest = broken_off / "checkpoints" / "0000021.pt"
    state = torch.load(newest, weights_only=True)
    state["run"]["environment"]["packages"]["torch"] = "1.0"
    torch.save(state, newest)
    digest = subprocess.run(["sha256sum", newest], capture_output=True, text=True, check=True).stdout
    newest.with_name(newest.name + ".sha256").write_text(digest)
    result = fastae("train", "--resume", broken_off)
    assert result.returncode == 0, result.stderr
    assert f"differs   torch was 1.0, is {torch.__version__}: equal to rounding only" in result.stdout


@pytest.mark.parametrize("what", ["nothing", "a file", "no run", "damaged", "unknown setting"])
def test_what_is_no_run_is_refused(tmp_path, broken_off, what):
    folder = tmp_path / "folder"
    if what == "a file":
        folder.write_text("")
    elif what == "no run":
        folder.mkdir()
    elif what in ("damaged", "unknown setting"):
        folder = broken_off
        config = {"config": {"loss": "minibatch_bce", "os": "system"}}
        (folder / "config.json").write_text("{" if what == "damaged" else json.dumps(config))
    assert str(folder) in refused("--resume", folder)


def test_two_runs_in_one_folder_are_one_too_many(broken_off, face_folder):
    with started("train", "--resume", broken_off, "--iterations", 100_000) as process:
        wait_for(process, "images/s")
        assert "another run is at work in" in refused("--resume", broken_off)
        assert "is not empty" in refused("--data", face_folder, "--out", broken_off)
        process.kill()
        process.wait()
    # The dead process's lock went with it.
    assert fastae("train", "--resume", broken_off, "--iterations", 22).returncode == 0
