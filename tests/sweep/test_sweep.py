"""`fastae sweep` makes six runs, each as `fastae train` would make it. A stopped sweep is resumed."""

import json
import shutil
import signal
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch
import torch.distributed as dist

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.experiment.losses import LOSSES
from fastae.runs.folder import RunFolder
from fastae.runs.sweep_folder import SweepConfig, SweepFolder, SweepRun, open_sweep
from fastae.sweep import sweep as sweeping
from fastae.sweep.sweep import run_sweep
from fastae.sweep.table import caption
from fastae.training import distributed
from fastae.training.distributed import Ranks
from fastae.training.runner import train
from fastae.training.trainer import Trainer

from ..commands import begin_with, here, killed_before_its_first_checkpoint, last_state, same_state
from ..helpers import copied, largest_file, small_config

LENGTH = 3
TWO = ("minibatch_bce", "minibatch_mse")


def settings(face_folder, **others):
    return small_config(face_folder, **{"iterations": LENGTH, "log_every": 2, "eval_every": 3} | others)


@pytest.fixture(scope="module")
def swept(face_folder, tmp_path_factory):
    """A finished sweep, and the lines that it printed."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with redirect_stdout(StringIO()) as output:
        run_sweep(SweepConfig(settings(face_folder)), out)
    return out, output.getvalue().splitlines()


@pytest.fixture
def copy(swept, tmp_path):
    """A copy of the sweep, in which all runs are marked as stopped in sweep.json."""
    copied(swept[0], tmp_path / "out")
    content = written(tmp_path / "out")
    for run in content["runs"]:
        run["state"] = "stopped"
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(content))
    return tmp_path / "out"


def written(out):
    """Returns the content of sweep.json."""
    return json.loads((out / "sweep.json").read_text())


def states(out):
    return {run["name"]: run["state"] for run in written(out)["runs"]}


def opened(config, folder):
    """Opens and closes a sweep's folder."""
    with open_sweep(config, folder) as opened:
        return opened


def test_a_sweep_trains_the_six_losses_each_from_its_own_seed(swept):
    out, lines = swept
    assert states(out) == dict.fromkeys(LOSSES, "finished")
    rows = [line.split() for line in lines]
    for number, (loss, run) in enumerate(zip(LOSSES, written(out)["runs"], strict=True)):
        config = json.loads((out / loss / "config.json").read_text())["config"]
        assert (config["loss"], config["seed"]) == (loss, number)
        assert last_state(out / loss)["iteration"] == run["iteration"] == LENGTH
        assert run["held_out"] > 0 and run["seconds"] > 0
        (row,) = [row for row in rows if row[:2] == [loss, "finished"]]
        assert row[2] == str(LENGTH)


@pytest.mark.parametrize(("hours", "ratio"), [(2, "2.5x faster"), (5, "1x faster"), (6, "1.2x slower")])
def test_the_time_is_compared_with_the_articles_for_as_many_images(hours, ratio):
    half = [SweepRun("one", "one", seed=0, iteration=50_000, seconds=1800 * hours)] * 2  # two half runs
    assert caption(half, TrainConfig()).endswith(f"the article's GPU took 5 h 00 min for as many: {ratio}")
    assert "article" not in caption(half, TrainConfig(image_size=64))  # an image takes less work


def test_a_run_of_a_sweep_ends_in_the_same_bits_as_the_run_that_train_makes(swept, face_folder, tmp_path):
    alone = train(settings(face_folder, out=tmp_path / "alone", loss="pixel_mse", seed=3))
    # It is the sweep's fourth run. What it shares with the three before it changes no bit.
    for part in ("model", "optimizer"):
        assert same_state(last_state(swept[0] / "pixel_mse")[part], last_state(alone)[part]), part


def test_runs_that_take_turns_end_in_the_same_bits_as_runs_that_do_not(swept, face_folder, tmp_path, capsys):
    run_sweep(
        SweepConfig(settings(face_folder), ("minibatch_bce", "minibatch_mse", "pixel_bce")), tmp_path, 2
    )
    assert list(states(tmp_path).values()) == ["finished"] * 3
    for loss in states(tmp_path):
        ours, alone = last_state(tmp_path / loss), last_state(swept[0] / loss)
        assert all(same_state(ours[part], alone[part]) for part in ("model", "optimizer")), loss
        assert json.loads((tmp_path / loss / "config.json").read_text())["at_once"] == 2
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "data wait" in line]
    assert lines[:4] == ["minibatch_bce", "minibatch_mse"] * 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_stops_the_sweep_and_the_same_command_resumes_it(
    swept, face_folder, tmp_path, monkeypatch, at_once
):
    config, advance = SweepConfig(settings(face_folder, checkpoint_every=1), TWO), Trainer.advance

    def signalled(trainer):
        if trainer._config.loss == TWO[1] and trainer.iteration == 0:
            signal.raise_signal(signal.SIGTERM)
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", signalled)
    with pytest.raises(Stopped) as stopped:
        run_sweep(config, tmp_path, at_once)
    assert stopped.value.exit_code == 143
    assert states(tmp_path) == dict(
        zip(TWO, ("finished" if at_once == 1 else "stopped", "stopped"), strict=True)
    )
    monkeypatch.undo()
    first = tmp_path / TWO[0] / "checkpoints" / f"{LENGTH:07d}.pt"
    before = first.stat().st_mtime_ns if at_once == 1 else None
    run_sweep(config, tmp_path, at_once)
    assert before in (None, first.stat().st_mtime_ns)
    assert list(states(tmp_path).values()) == ["finished"] * 2
    for loss in TWO:
        assert same_state(last_state(tmp_path / loss)["model"], last_state(swept[0] / loss)["model"])


def test_ranks_share_the_runs_and_train_on_the_images_of_the_first_rank(face_folder, tmp_path, monkeypatch):
    """The second rank trains when the first one has only to wait for it."""
    data, store, losses = tmp_path / "data", dist.HashStore(), (*TWO, "pixel_bce")
    shutil.copytree(face_folder, data)
    config, trained = SweepConfig(settings(data, iterations=1), losses), []

    def second(_seconds):
        trained.append([name for name, state in states(out).items() if state == "finished"])
        shutil.copy(data / "000001.jpg", data / "000.jpg")  # a file is added meanwhile
        monkeypatch.setattr(sweeping, "launched", lambda: Ranks(1, 2, 1))
        run_sweep(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "_torchrun_store", lambda: store)
    monkeypatch.setattr(sweeping, "launched", lambda: Ranks(0, 2))
    monkeypatch.setattr(sweeping.time, "sleep", second)
    out = tmp_path / "runs" / "now-sweep"
    monkeypatch.setattr("time.strftime", lambda form: "now")
    run_sweep(config)
    assert trained == [["minibatch_bce", "pixel_bce"]]
    assert states(out) == dict.fromkeys(losses, "finished")
    manifests = {(out / name / "images.json").read_text() for name in (*losses, ".")}
    assert len(manifests) == 1


def test_a_failed_run_is_reported_and_the_others_are_trained(face_folder, tmp_path, monkeypatch, capsys):
    open_trainer = sweeping.open_trainer

    def failing(models, config, *rest, **options):
        if config.loss == "minibatch_mse":
            raise RunFailure("out of memory at batch size 4")
        return open_trainer(models, config, *rest, **options)

    monkeypatch.setattr(sweeping, "open_trainer", failing)
    config = SweepConfig(settings(face_folder, iterations=1), (*TWO, "pixel_bce"))
    run_sweep(config, tmp_path)
    assert list(states(tmp_path).values()) == ["finished", "failed", "finished"]
    assert "failed    minibatch_mse: out of memory at batch size 4" in capsys.readouterr().out
    monkeypatch.undo()
    _, runs = run_sweep(config, tmp_path)
    assert {run.state for run in runs} == {"finished"} and not any(run.error for run in runs)


def test_a_full_disk_at_the_start_of_a_sweep_is_reported_in_one_line(face_folder, tmp_path):
    config = SweepConfig(settings(face_folder, iterations=1), ("pixel_mse",))
    run_sweep(SweepConfig(settings(face_folder, iterations=1), ("pixel_mse",)), tmp_path / "first")
    folder = tmp_path / "new" / "sweep"
    with (
        largest_file(100),
        pytest.raises(FastaeError, match=r"cannot write the sweep folder .*too large") as refusal,
    ):
        run_sweep(config, folder)
    assert refusal.value.exit_code == 2 and not folder.parent.exists()
    content = written(tmp_path / "first")
    content["runs"][0]["state"] = "stopped"
    (tmp_path / "first" / "sweep.json").write_text(json.dumps(content))
    with largest_file(100), pytest.raises(RunFailure, match=r"File too large; .*--out"):
        run_sweep(config, tmp_path / "first")
    _, (run,) = run_sweep(config, tmp_path / "first")
    assert run.state == "finished"


def test_same_init_and_repeats_choose_the_seeds(face_folder):
    def seeds(**others):
        return [(run.name, run.seed) for run in SweepConfig(settings(face_folder, seed=7), **others).runs()]

    two = ("pixel_bce", "minibatch_bce")
    assert seeds(losses=two) == [("minibatch_bce", 7), ("pixel_bce", 9)]
    assert seeds(losses=two, same_init=True) == [("minibatch_bce", 7), ("pixel_bce", 7)]
    assert seeds(losses=two, repeats=2)[2:] == [("minibatch_bce-2", 13), ("pixel_bce-2", 15)]


def test_each_kind_of_loss_is_compiled_once(face_folder, tmp_path):
    from torch._dynamo.utils import counters

    def compiled_graphs(losses, out):
        counters.clear()
        torch._dynamo.reset()
        run_sweep(SweepConfig(settings(face_folder, compile=True, iterations=1, loader="dali"), losses), out)
        return counters["stats"]["unique_graphs"]

    one = compiled_graphs(("minibatch_bce",), tmp_path / "one")
    assert compiled_graphs(("minibatch_bce", "pixel_bce"), tmp_path / "two") == one > 0


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
    with pytest.raises(FastaeError, match=line) as refusal:
        here("sweep", "--out", tmp_path / "out", *options)
    assert refusal.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_refused_settings_leave_no_plan_behind(face_folder, tmp_path):
    def begin(**others):
        return run_sweep(SweepConfig(settings(face_folder, iterations=1, **others), ("pixel_mse",)), tmp_path)

    for wrong, message in (({"batch_size": 39}, "39"), ({"crop": 5_000}, "the crop")):
        with pytest.raises(FastaeError, match=message):
            begin(**wrong)
        assert not list(tmp_path.iterdir())
    begin()
    with pytest.raises(FastaeError, match="holds a sweep with --latent 16, not 17"):
        begin(latent=17)


def test_a_second_sweep_in_a_folder_is_refused(face_folder, tmp_path):
    one, other = (SweepConfig(settings(face_folder, latent=latent), ("pixel_mse",)) for latent in (16, 17))
    with open_sweep(one, tmp_path):
        for late in (one, other):
            with pytest.raises(FastaeError, match="is locked by another sweep"):
                run_sweep(late, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_of_a_sweep_keeps_files_that_somebody_put_in_its_folder(face_folder, tmp_path):
    (tmp_path / "pixel_mse").mkdir()
    (tmp_path / "pixel_mse" / "precious").touch()
    config = SweepConfig(settings(face_folder, iterations=1), ("pixel_mse",))
    (tmp_path / "sweep.json").write_text(json.dumps({"plan": config.plan(), "runs": []}))
    _, (run,) = run_sweep(config, tmp_path)
    assert "is not empty" in run.error and (tmp_path / "pixel_mse" / "precious").exists()


def test_moved_data_are_found_by_the_option_data(copy, swept, face_folder, tmp_path, capsys):
    """A run that began with other images than the sweep is not resumed."""
    moved = tmp_path / "moved"
    shutil.copytree(face_folder, moved)
    shutil.copy(moved / "000001.jpg", moved / "000.jpg")  # a file that is not among the sweep's images
    killed_before_its_first_checkpoint(copy / "pixel_bce")
    images = RunFolder(copy / "sample_bce").read_manifest()
    begin_with(copy / "sample_bce", replace(images, train=dict(reversed(images.train.items()))))
    _, runs = run_sweep(SweepConfig(settings(moved)), copy)
    assert states(copy) == dict.fromkeys(LOSSES, "finished") | {"sample_bce": "failed"}
    assert [run.name for run in runs if "other images" in run.error] == ["sample_bce"]
    printed = capsys.readouterr().out
    assert f"data      {moved}\n" in printed and "images    38 to train on" in printed
    assert same_state(last_state(copy / "pixel_bce")["model"], last_state(swept[0] / "pixel_bce")["model"])


def test_a_folder_of_another_plan_is_refused_with_the_differences(swept, face_folder, tmp_path):
    other = SweepConfig(settings(face_folder, lr=0.5, iterations=9), same_init=True)
    with pytest.raises(
        FastaeError, match=r"--iterations 3, not 9, --lr 0\.0001, not 0\.5, --same-init False"
    ):
        opened(other, swept[0])
    (tmp_path / "file").touch()
    with pytest.raises(FastaeError, match="is not empty and holds no sweep"):
        opened(other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "sweep.json").write_text('{"plan": {}, "runs": [{"name": 1}]}')
    with pytest.raises(FastaeError, match="cannot be read as a sweep"):
        opened(other, tmp_path)
    assert SweepFolder(tmp_path).file.exists()


def test_runs_that_take_turns_are_not_profiled(face_folder, tmp_path):
    """PyTorch has one profiler in a process: a second one that starts makes the first crash."""
    with pytest.raises(FastaeError, match="--profile"):
        run_sweep(SweepConfig(settings(face_folder, profile=3)), tmp_path / "sweep", at_once=2)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_names_the_option_that_resumes_it(face_folder, tmp_path, monkeypatch):
    """Without --out the same command would begin another sweep."""
    monkeypatch.chdir(tmp_path)
    advance = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda each: signal.raise_signal(signal.SIGTERM) or advance(each))
    with pytest.raises(Stopped) as stopped:
        run_sweep(SweepConfig(settings(face_folder), TWO[:1]))
    (folder,) = tmp_path.glob("runs/*")
    assert f"--out {folder.relative_to(tmp_path)}" in str(stopped.value)


def test_figures_that_runs_logged_survive_a_killed_sweep(swept, copy, face_folder):
    """A killed sweep leaves no figures in sweep.json, and a run may have been resumed on its own."""
    content = written(copy)
    for run in content["runs"]:
        run |= {"state": "running", "iteration": 0, "seconds": 0.0, "held_out": None, "loss_index": None}
    (copy / "sweep.json").write_text(json.dumps(content))
    _, runs = run_sweep(SweepConfig(settings(face_folder)), copy)
    for run, before in zip(runs, written(swept[0])["runs"], strict=True):
        assert run.state == "finished" and run.iteration == LENGTH
        assert (run.loss_index, run.held_out) == pytest.approx((before["loss_index"], before["held_out"]))
        assert run.seconds == pytest.approx(before["seconds"])


def test_weights_and_not_sweep_json_decide_whether_a_run_is_finished(swept, face_folder, tmp_path, capsys):
    copied(swept[0], tmp_path / "out")
    content = written(tmp_path / "out")
    assert {run["state"] for run in content["runs"]} == {"finished"}
    first, second = list(LOSSES)[:2]
    weights = tmp_path / "out" / first / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    shutil.rmtree(tmp_path / "out" / second)
    _, runs = run_sweep(SweepConfig(settings(face_folder)), tmp_path / "out")
    assert {run.state for run in runs} == {"finished"} == set(states(tmp_path / "out").values())
    assert weights.read_bytes() == before
    again, once = (last_state(out / second)["model"] for out in (tmp_path / "out", swept[0]))
    assert same_state(again, once)
    assert capsys.readouterr().out.count("but it has no weights") == 2


def test_a_run_that_was_killed_between_its_weights_and_sweep_json_is_finished(
    face_folder, tmp_path, monkeypatch
):
    """With keep 0 it has no checkpoint, which would show that it is finished."""
    config = SweepConfig(settings(face_folder, iterations=1, keep=0), ("pixel_mse",))
    run_sweep(config, tmp_path)
    content = written(tmp_path)
    content["runs"][0]["state"] = "running"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    monkeypatch.setattr(sweeping.time, "sleep", lambda seconds: pytest.fail("it is waited for"))
    run_sweep(config, tmp_path)
    assert states(tmp_path) == {"pixel_mse": "finished"}
