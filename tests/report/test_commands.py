"""The commands that repeat runs: they contain the settings, and one command repeats a whole sweep."""

import json
import shlex

import click
import pytest

from fastae.cli.options import options_of
from fastae.config import TrainConfig
from fastae.experiment.losses import LOSSES
from fastae.report.commands import commands
from fastae.report.runs import find_runs
from fastae.sweep.plan import SweepConfig

from .made import SMALL, make_run, make_sweep


def texts(runs, *report):
    """Returns the commands as a shell reads them."""
    return [" ".join(command) for command in commands(runs, report)]


@pytest.mark.parametrize(
    ("losses", "repeats", "same_init", "seed", "options"),
    [
        (tuple(LOSSES), 1, True, 0, ""),
        (("pixel_bce", "sample_mse"), 2, True, 5, " --losses pixel_bce,sample_mse --repeats 2"),
        (("pixel_bce",), 2, False, 7, " --losses pixel_bce --repeats 2 --no-same-init"),
    ],
)
def test_a_sweep_is_repeated_by_one_command(losses, repeats, same_init, seed, options, tmp_path):
    config = SweepConfig(TrainConfig(data="/gone/faces", seed=seed, **SMALL), losses, repeats, same_init)
    make_sweep(tmp_path, config)
    runs, _ = find_runs([tmp_path])
    command, report = texts(runs, ["x"])
    assert command.startswith(f"fastae sweep{options} --iterations 100 ") and report == "fastae report x"
    assert (f"--seed {seed}" in command) == (seed > 0)
    assert "--loss " not in command and command.count("--out") == command.count(f"--out {tmp_path}") == 1
    # Only some of its runs, or the runs of a sweep with another seed, are repeated one by one.
    assert texts(runs[:1])[0].startswith("fastae train --")
    written = json.loads((tmp_path / "sweep.json").read_text())
    for other in (seed + 1, 10**400, "x"):
        written["seed"] = other
        (tmp_path / "sweep.json").write_text(json.dumps(written))
        assert len(texts(runs)) == len(runs) + 1


def test_a_command_keeps_options_with_their_values_and_parses_to_the_same_settings(tmp_path):
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
    assert name == "train" and {"--amp", "--no-channels-last", "--seed 3"} <= set(pieces)
    parsed = parse.main(shlex.split(" ".join(pieces)), standalone_mode=False)
    assert parsed == runs[0].config
    assert report == ("fastae", "report", "'x y'", """--data 'it'"'"'s'""")
