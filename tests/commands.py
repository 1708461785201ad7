"""Starts fastae as a user does, mostly in a separate process, and reads or changes what a run has left."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastae.cli.main import cli
from fastae.errors import FastaeError
from fastae.runs import checkpoint
from fastae.runs.metrics import read_metrics

ROOT = Path(__file__).parents[1]
FASTAE = (sys.executable, "-m", "fastae")
NARROW = (sys.executable, "-P", str(Path(__file__).with_name("narrow.py")))
"""Fastae with the narrow model that the tests' own process has."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
"""Starts a program on two ranks."""
SMALL = ["--image-size", "32", "--latent", "16", "--batch-size", "4", "--no-compile"]


def fastae(*arguments, cwd=None, preexec=None, **environment):
    """Runs a fastae command to its end, in a separate process."""
    options = {"cwd": cwd, "env": os.environ | environment, "preexec_fn": preexec}
    return subprocess.run([*FASTAE, *map(str, arguments)], capture_output=True, text=True, **options)


def here(*arguments):
    """Runs a command in this process, which saves the seconds of a start; returns the exit code."""
    return cli.main([*map(str, arguments)], standalone_mode=False)


def refuses(*arguments):
    """Runs a command that fastae must refuse, in this process; returns the one line of the error."""
    with pytest.raises(FastaeError) as caught:
        here(*arguments)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def started(*arguments, command=FASTAE, cwd=None, group=False, **environment):
    """Yields a running process, which is killed at the end of the block if it still runs.

    Args:
        *arguments: the arguments of the command.
        command: the command, which is fastae by default.
        cwd: the process's folder.
        group: whether the process leads a process group of its own.
        **environment: additional environment variables.
    """
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        start_new_session=group,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process, text, seconds=600):
    """Reads a process's lines until one contains `text`; returns them. Fails after `seconds`."""
    lines, deadline = [], time.monotonic() + seconds
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
        assert time.monotonic() < deadline, f"no {text!r} in time: {lines}"
    raise AssertionError(f"it ended without {text!r}: {lines} {process.stderr.read()}")


def wait_until(condition, seconds=60):
    """Calls `condition` until it returns what is true, and returns that. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)
    return value


def wait_until_ended(pid):
    """Waits until a killed process has died. It is a zombie until its parent asks for its exit code."""

    def has_ended():
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    wait_until(has_ended)


def last_checkpoint(run):
    """Returns a run's newest checkpoint."""
    return checkpoint.newest(run / "checkpoints", print)


def last_iteration(run):
    """Returns the iteration of a run's newest checkpoint."""
    return last_checkpoint(run).iteration


def last_training(run):
    """Returns the weights, moments and scaler in a run's newest checkpoint, as nested dicts."""
    return vars(last_checkpoint(run).training)


def claim(run, part="config", /, **values):
    """Writes values into the settings of a run's config.json, or into another part; returns its content."""
    described = json.loads((run / "config.json").read_text())
    described[part] |= values
    (run / "config.json").write_text(json.dumps(described))
    return described


def begin_with(run, images):
    """Rewrites a run so that it appears to have begun with these images: its files and newest checkpoint."""
    images.write(run / "images.json")
    claim(run, "data", fingerprint=images.fingerprint)
    last = checkpoint.newest(run / "checkpoints", print)
    data = replace(last.description.data, fingerprint=images.fingerprint)
    checkpoint.write(
        run / "checkpoints", replace(last, description=replace(last.description, data=data)), keep=1
    )


def killed_before_its_first_checkpoint(run):
    """Rewrites a run's folder so that the run appears to have been killed before its first checkpoint."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "model.safetensors").unlink(missing_ok=True)
    rows = (run / "metrics.csv").read_bytes().splitlines(keepends=True)
    (run / "metrics.csv").write_bytes(b"".join(rows[:5]))


def same_state(one, other):
    """Returns whether two values, such as nested states, have the same bits."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_state(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def curve(run, tag="loss_index/train"):
    """Returns (iteration, value) of every point, as TensorBoard shows them."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def two_ranks_train_as_one(data, folder, *options):
    """Trains here, and on two ranks until the second gets a SIGTERM; both end at iteration 10, alike.

    Different rounding, of TF32 too, moves weights by some 0.3 % of what Adam moves them by at most. Gradients
    or statistics that are not shared move them by 25 % or more.
    """
    run = ["train", "--data", data, *SMALL, "--lr", 1e-3, "--seed", 2, "--log-every", 1, *options]
    one, two = folder / "one", folder / "two"
    here(*run, "--iterations", 10, "--out", one)
    command = [*TORCHRUN, "-m", "tests.rank", *run, "--iterations", 100_000, "--out", two]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert "stopped by SIGTERM at iteration 10" in ended.stderr, ended.stderr
    assert ended.stdout.count("iteration 0:") == 1  # one rank logs
    weights, other = (torch.load(folder / f"two.{rank}", map_location="cpu") for rank in (0, 1))
    assert same_state(weights, other)
    for name, expected in last_training(one)["model"].items():
        if "running" in name:
            torch.testing.assert_close(weights[name], expected, rtol=0.02, atol=2e-3, msg=name)
        else:
            assert (weights[name] - expected).abs().float().mean() < 0.05 * 10 * 1e-3, name
    logged, expected = (read_metrics(each / "metrics.csv").train.values for each in (two, one))
    for column in ("loss", "loss_index", "grad_norm"):
        assert logged[column].tolist() == pytest.approx(expected[column].tolist(), rel=0.02)
