"""The commands that repeat runs: what was typed, a whole sweep in one."""

import json
import shlex

import click
import pytest

from fastae.cli.options import options_of
from fastae.config import TrainConfig
from fastae.data.files.manifest import Manifest
from fastae.losses import LOSSES
from fastae.report.commands import commands
from fastae.report.runs import find_runs
from fastae.runs.sweep_folder import SweepConfig, open_sweep

from .made import SMALL, make_run


def make_sweep(folder, config, out=None, **others):
    """A sweep's folder, with runs that say they were written to `out`."""
    out = out or folder
    with open_sweep(config, folder) as sweep:
        sweep.begin(config, Manifest("by name", {}, {}))
        for run in config.runs():
            make_run(folder / run.name, run.loss, seed=run.seed, out=str(out / run.name), **others)
    return find_runs([folder])[0]


def texts(runs, *report):
    """The commands as a shell reads them."""
    return [" ".join(command) for command in commands(runs, report)]


@pytest.mark.parametrize(
    ("losses", "repeats", "same_init", "seed"),
    [
        (tuple(LOSSES), 1, False, 0),
        (("pixel_bce", "sample_mse"), 2, False, 5),
        (("pixel_bce", "pixel_mse"), 2, True, 7),
    ],
)
def test_a_sweep_is_repeated_by_one_command(losses, repeats, same_init, seed, tmp_path):
    config = SweepConfig(TrainConfig(data="/gone/faces", seed=seed, **SMALL), losses, repeats, same_init)
    runs = make_sweep(tmp_path, config)
    command, report = texts(runs, ["x"])
    words = command.split()
    assert words[:2] == ["fastae", "sweep"] and report == "fastae report x"
    assert ("--losses" in words) == (len(losses) < 6) and ("--same-init" in words) == same_init
    assert ("--seed" in words) == (seed > 0) and (not seed or words[words.index("--seed") + 1] == str(seed))
    assert ("--repeats" in words) == (repeats > 1) and "--loss" not in words and "--at-once" not in words
    assert words[words.index("--out") + 1] == str(tmp_path) and words.count("--out") == 1
    # Some of its runs, and a sweep of another seed, are repeated run by run.
    assert texts(runs[:1])[0].startswith("fastae train --")
    written = json.loads((tmp_path / "sweep.json").read_text())
    for other in (seed + 1, 10**400, "x"):
        written["plan"]["seed"] = other
        (tmp_path / "sweep.json").write_text(json.dumps(written))
        assert len(texts(runs)) == len(runs) + 1


def test_the_folder_that_a_sweep_named_by_the_time_was_not_typed_and_turns_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SweepConfig(TrainConfig(data="/gone/faces", **SMALL), ("pixel_bce", "pixel_mse"))
    typed, named = tmp_path / "runs" / "mine", tmp_path / "runs" / "20260102-030405-sweep"
    make_sweep(typed, config, typed.relative_to(tmp_path), described={"at_once": 2})
    make_sweep(named, config, named.relative_to(tmp_path), described={"at_once": [3]})
    (first, _), (second, _) = (texts(find_runs([folder])[0]) for folder in (typed, named))
    assert "--out runs/mine" in first and "--at-once 2" in first
    assert "--out" not in second and "--at-once" not in second


def test_an_option_and_its_value_are_one_piece_and_give_the_settings_again(tmp_path):
    settings = {
        "loss": "sample_bce", "seed": 3, "amp": True, "channels_last": False, "minutes": 2.5,
        "data": "/a folder/with 'quotes' $HOME", "out": "a folder/run",
    }  # fmt: skip
    runs, _ = find_runs([make_run(tmp_path / "run", **settings)])

    @click.command()
    @options_of(TrainConfig)
    def parse(**values):
        return TrainConfig(**values)

    (_, name, *pieces), report = commands(runs, [["x y"], ["--data", "it's"]])
    assert name == "train" and {"--amp", "--no-channels-last", "--out 'a folder/run'"} <= set(pieces)
    assert parse.main(shlex.split(" ".join(pieces)), standalone_mode=False) == runs[0].config
    assert report == ("fastae", "report", "'x y'", """--data 'it'"'"'s'""")
