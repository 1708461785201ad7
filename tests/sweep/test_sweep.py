"""`fastae sweep`: six runs that are each what `fastae train` would have made, and that survive a stop."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from fastae.sweep.plan import Sweep, SweepConfig, article_seconds, open_sweep, read

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure
from fastae.losses import LOSSES
from fastae.runs.folder import RunFolder
from fastae.sweep import sweep as sweeping
from fastae.sweep.sweep import sweep
from fastae.training.distributed import Ranks

from ..commands import SMALL, begin_with, fastae, here, last_state, same_state, started, wait_for

LENGTH = 6
RUN = [
    *SMALL, "--iterations", LENGTH, "--log-every", 2, "--eval-every", 3, "--checkpoint-every", 2,
    "--gpu-sample-hz", 0,
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(face_folder, tmp_path_factory):
    """A finished sweep, and the process that made it."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    result = fastae("sweep", "--data", face_folder, "--out", out, *RUN)
    assert result.returncode == 0, result.stderr
    return out, result


def written(out):
    return json.loads((out / "sweep.json").read_text())


def states(out):
    return {run["name"]: run["state"] for run in written(out)["runs"]}


def config(face_folder, **others):
    return TrainConfig(
        data=str(face_folder), image_size=32, batch_size=4, log_every=2, gpu_sample_hz=0,
        **{"latent": 16, "iterations": LENGTH, "compile": False} | others,
    )  # fmt: skip


def test_trains_the_six_losses_each_from_its_own_seed(swept):
    out, _ = swept
    assert states(out) == dict.fromkeys(LOSSES, "finished")
    for number, loss in enumerate(LOSSES):
        settings = json.loads((out / loss / "config.json").read_text())["config"]
        assert (settings["loss"], settings["seed"]) == (loss, number)
        assert last_state(out / loss)["iteration"] == LENGTH
    assert all(run["held_out"] > 0 and run["seconds"] > 0 for run in written(out)["runs"])


def test_a_run_of_a_sweep_is_the_run_that_train_makes(swept, face_folder, tmp_path):
    out, _ = swept
    alone = tmp_path / "alone"
    # The fourth of the sweep: what is shared with the three before it changes no bit.
    result = fastae("train", "--loss", "pixel_mse", "--seed", 3, "--data", face_folder, "--out", alone, *RUN)
    assert result.returncode == 0, result.stderr
    for part in ("model", "optimizer"):
        assert same_state(last_state(out / "pixel_mse")[part], last_state(alone)[part]), part


def test_ends_with_a_table_and_the_articles_time(swept):
    _, result = swept
    rows = [line.split() for line in result.stdout.splitlines()]
    for loss in LOSSES:
        (row,) = [row for row in rows if row[:2] == [loss, "finished"]]
        assert row[2] == str(LENGTH)
    # 6 runs of 6 iterations of 4 images, of the article's 38,400,000 in 30 hours.
    assert article_seconds(144) == pytest.approx(0.405)
    assert "spent on 144 images; the article's GPU took 0 s for as many" in result.stdout


def test_the_same_command_goes_on_after_a_kill_and_leaves_what_is_finished(swept, face_folder, tmp_path):
    out = tmp_path / "out"
    command = ["sweep", "--losses", "minibatch_bce,minibatch_mse", "--data", face_folder, "--out", out, *RUN]
    with started(*command) as process:
        wait_for(process, "minibatch_mse: run 2 of 2")
        wait_for(process, "2/6")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert states(out) == {"minibatch_bce": "finished", "minibatch_mse": "running"}
    first = out / "minibatch_bce" / "checkpoints" / "0000006.pt"
    before = first.stat().st_mtime_ns
    result = fastae(*command)
    assert result.returncode == 0, result.stderr
    assert first.stat().st_mtime_ns == before
    assert states(out) == {"minibatch_bce": "finished", "minibatch_mse": "finished"}
    for loss in ("minibatch_bce", "minibatch_mse"):
        assert same_state(last_state(out / loss)["model"], last_state(swept[0] / loss)["model"])


def test_a_signal_stops_the_sweep_and_says_so(face_folder, tmp_path):
    out = tmp_path / "out"
    with started("sweep", "--data", face_folder, "--out", out, *RUN, "--iterations", 100_000) as process:
        wait_for(process, "4/100,000")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == "fastae: stopped by SIGTERM, all is saved; the same command goes on\n"
    assert list(states(out).values()) == ["stopped", *["waiting"] * 5]


def test_one_failure_leaves_the_others_and_is_told(face_folder, tmp_path, monkeypatch, capsys):
    train_in = sweeping.train_in

    def failing(session, config, run, *rest):
        if config.loss == "minibatch_mse":
            raise RunFailure("out of memory at batch size 4")
        return train_in(session, config, run, *rest)

    monkeypatch.setattr(sweeping, "train_in", failing)
    out = tmp_path / "out"
    arguments = ["sweep", "--losses", "minibatch_bce,minibatch_mse,pixel_bce", "--data", face_folder]
    assert here(*arguments, "--out", out, *RUN) == 1
    assert list(states(out).values()) == ["finished", "failed", "finished"]
    assert "failed    minibatch_mse: out of memory at batch size 4" in capsys.readouterr().out
    monkeypatch.setattr(sweeping, "train_in", train_in)
    assert not sweep(SweepConfig(config(face_folder, checkpoint_every=2, eval_every=3), ("minibatch_bce",
        "minibatch_mse", "pixel_bce")), out).failed  # fmt: skip


def test_a_disk_that_is_full_for_the_plan_itself_is_one_line(face_folder, tmp_path, monkeypatch):
    write = Sweep.write

    def full(plan):
        if any(run.state == "running" for run in plan.entries):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(plan)

    settings = SweepConfig(config(face_folder, iterations=1), ("pixel_mse",))
    monkeypatch.setattr(Sweep, "write", full)
    with pytest.raises(RunFailure, match=r"No space left on device; the same command goes on"):
        sweep(settings, tmp_path)
    monkeypatch.setattr(Sweep, "write", write)
    assert not sweep(settings, tmp_path).failed


def test_same_init_and_repeats_choose_the_seeds(face_folder):
    def seeds(**others):
        return [(run.name, run.seed) for run in SweepConfig(config(face_folder, seed=7), **others).runs()]

    two = ("pixel_bce", "minibatch_bce")
    assert seeds(losses=two) == [("minibatch_bce", 7), ("pixel_bce", 9)]
    assert seeds(losses=two, same_init=True) == [("minibatch_bce", 7), ("pixel_bce", 7)]
    assert seeds(losses=two, repeats=2)[2:] == [("minibatch_bce-2", 13), ("pixel_bce-2", 15)]


def test_each_kind_of_loss_is_compiled_once(face_folder, tmp_path):
    from torch._dynamo.utils import counters

    def compiled_graphs(losses, out):
        counters.clear()
        torch._dynamo.reset()
        sweep(SweepConfig(config(face_folder, compile=True, iterations=2), losses), out)
        return counters["stats"]["unique_graphs"]

    one = compiled_graphs(("minibatch_bce",), tmp_path / "one")
    assert compiled_graphs(("minibatch_bce", "pixel_bce", "sample_bce"), tmp_path / "three") == one > 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--losses", "minibatch_bce,huber"], "--losses 'huber': not one of minibatch_bce"),
        (["--losses", ""], "--losses"),
        (["--repeats", "0"], "--repeats must be"),
        (["--repeats", 10**12], "--repeats must be"),
        (["--seed", 2**63 - 2], "--seed must be"),
        (["--lr", "0"], "--lr must be"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, options, line):
    result = fastae("sweep", "--out", tmp_path / "out", *options)
    assert result.returncode == 2 and line in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_settings_that_were_refused_leave_no_plan_that_refuses_the_right_ones(face_folder, tmp_path):
    def begin(**others):
        settings = replace(config(face_folder, iterations=1), **others)
        return sweep(SweepConfig(settings, ("pixel_mse",)), tmp_path / "out")

    (tmp_path / "out").mkdir()
    for wrong in ({"batch_size": 39}, {"crop": 5_000}):
        with pytest.raises(FastaeError, match=str(*wrong.values())):
            begin(**wrong)
        assert not list((tmp_path / "out").iterdir())
    assert not begin().failed
    with pytest.raises(FastaeError, match="holds a sweep with --latent 16, not 17"):
        begin(latent=17)


def test_ranks_agree_on_the_images_of_the_first(face_folder, tmp_path):
    """Each lists the folder by itself, and a file may come in between."""
    settings, out, data = SweepConfig(config(tmp_path / "faces")), tmp_path / "out", tmp_path / "faces"
    shutil.copytree(face_folder, data)
    with open_sweep(settings, out) as plan:
        first, _ = sweeping.open_session(settings.train, plan, Ranks(0, 2))
        shutil.copy(data / "000001.jpg", data / "000.jpg")
        late = read(out)
        late.manifest = lambda: None  # it looked before the first had written
        second, _ = sweeping.open_session(settings.train, late, Ranks(1, 2, 1))
    assert second.folder.manifest == first.folder.manifest
    assert second.folder.train == first.folder.train


def test_two_sweeps_in_one_folder_are_one_too_many(face_folder, tmp_path):
    one, other = (SweepConfig(config(face_folder, latent=latent), ("pixel_mse",)) for latent in (16, 17))
    with open_sweep(one, tmp_path):
        for late in (one, other):  # the other would else replace a plan whose first run is about to begin
            with pytest.raises(FastaeError, match="another sweep is at work in"):
                sweep(late, tmp_path)
        assert written(tmp_path)["plan"]["latent"] == 16
    with open_sweep(other, tmp_path) as plan:
        assert plan.plan["latent"] == written(tmp_path)["plan"]["latent"] == 17


def test_sweeps_without_a_name_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with (
        open_sweep(SweepConfig(TrainConfig()), None) as one,
        open_sweep(SweepConfig(TrainConfig()), None) as two,
    ):
        assert [one.folder.name, two.folder.name] == ["now-sweep", "now-sweep-2"]


def test_a_run_of_a_sweep_keeps_what_somebody_has_put_in_its_folder(face_folder, tmp_path):
    settings = SweepConfig(config(face_folder, iterations=1), ("pixel_mse",))
    opened(settings, tmp_path)
    (tmp_path / "pixel_mse").mkdir()
    (tmp_path / "pixel_mse" / "precious").touch()
    (failed,) = sweep(settings, tmp_path).failed
    assert "is not empty" in failed.error and (tmp_path / "pixel_mse" / "precious").exists()


def test_data_that_were_moved_are_found_by_data(swept, face_folder, tmp_path, capsys):
    out, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(swept[0], out, symlinks=True)
    shutil.copytree(face_folder, moved)
    shutil.copy(moved / "000001.jpg", moved / "000.jpg")  # not the sweep's
    (out / "pixel_bce" / "checkpoints" / "0000006.pt").unlink()
    plan = written(out)
    next(run for run in plan["runs"] if run["name"] == "pixel_bce")["state"] = "stopped"
    (out / "sweep.json").write_text(json.dumps(plan))
    here("sweep", "--data", moved, "--out", out, *RUN)
    assert f"data      {moved}: 38 images" in capsys.readouterr().out
    assert same_state(last_state(out / "pixel_bce")["model"], last_state(swept[0] / "pixel_bce")["model"])


def test_a_run_that_began_with_other_images_than_the_sweeps_is_not_gone_on_with(
    swept, face_folder, tmp_path, capsys
):
    out = tmp_path / "out"
    shutil.copytree(swept[0], out, symlinks=True)
    plan = written(out)
    for run in plan["runs"]:
        run["state"] = "stopped"
    (out / "sweep.json").write_text(json.dumps(plan))
    run = out / "sample_bce"
    images = RunFolder(run).manifest()
    begin_with(run, replace(images, train=dict(reversed(images.train.items()))))
    assert here("sweep", "--data", face_folder, "--out", out, *RUN) == 1
    assert states(out) == dict.fromkeys(LOSSES, "finished") | {"sample_bce": "failed"}
    assert "sample_bce failed: it began with other images than the sweep" in capsys.readouterr().out


def opened(settings, folder):
    with open_sweep(settings, folder) as plan:
        return plan


def test_a_folder_of_another_plan_is_refused_with_what_differs(swept, face_folder, tmp_path):
    out, _ = swept
    other = SweepConfig(config(face_folder, lr=0.5, iterations=9), same_init=True)
    with pytest.raises(
        FastaeError, match=r"--iterations 6, not 9, --lr 0\.0001, not 0\.5, --same-init False"
    ):
        opened(other, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FastaeError, match="is not empty and holds no sweep"):
        opened(other, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    (tmp_path / "full" / "sweep.json").write_text('{"plan": {}, "runs": [{"name": 1}]}')
    with pytest.raises(FastaeError, match="cannot be read as a sweep"):
        opened(other, tmp_path / "full")
    assert (tmp_path / "full" / "sweep.json").exists()
