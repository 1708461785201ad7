"""Makes run folders without training: real config.json, metrics.csv, weights and gpu.json; chosen numbers."""

import dataclasses
import json
from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.data.files.folder import open_folder
from fastae.data.files.manifest import Manifest
from fastae.experiment.model import AutoEncoder
from fastae.monitor.files import REPORT
from fastae.monitor.recording import Phase
from fastae.monitor.summary import Diagnosis, Summary, UsageReport, Verdict
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, TRAIN, MetricsWriter
from fastae.runs.weights import write_weights
from fastae.sweep.folder import open_sweep
from fastae.utils.limits import Cores

REPOSITORY = Path(__file__).parents[2]

SMALL = {
    "image_size": 32, "latent": 16, "batch_size": 4, "iterations": 100, "eval_every": 50, "log_every": 10,
}  # fmt: skip
LOGGED = {1: 900_000.0, 50: 400_000.0, 100: 300_000.0}
EVALUATED = {0: 900_000.0, 50: 400_000.0, 100: 300_000.0}


def make_run(
    path, loss="minibatch_bce", *, train=LOGGED, held_out=EVALUATED, data="/gone/faces", kwh=(), weights=None,
    rate=100.0, quality=lambda step: {}, described=None, **settings,
):  # fmt: skip
    """Makes the folder of a run; returns its path.

    Args:
        path: the folder.
        loss: the name of the loss.
        train: iteration -> the loss_index that was logged of its batch.
        held_out: iteration -> the loss_index of the held-out images that was logged.
        data: the folder of the images, which need not exist.
        kwh: the energy of each session in gpu.json.
        weights: the seed of the model; None for a run without weights.
        rate: the images/s that were logged.
        quality: returns the PSNR and SSIM that were logged, given the iteration.
        described: more entries of config.json.
        **settings: more settings of the run.
    """
    config = TrainConfig(loss=loss, data=str(data), **{**SMALL, **settings})
    folder = RunFolder(path)
    path.mkdir(parents=True)
    images = {"folder": str(data), "train": 38, "held_out": 2, "split": "by name", "evaluated_on": 2}
    if Path(data).is_dir():
        manifest = open_folder(str(data)).manifest
        manifest.write(folder.manifest_file)
        images["fingerprint"] = manifest.fingerprint
    environment = {"fastae": "0.1.0", "commit": "abc", "packages": {"torch": "2.13.0"}}
    description = {"config": config.as_dict(), "data": images, "environment": environment, "loader": "dali"}
    description |= {"device": "AMD EPYC, 2 threads", "step": "float32", "compiled": False}
    folder.config_file.write_text(json.dumps(description | (described or {})))
    with MetricsWriter(folder.metrics_file) as metrics:
        for step in sorted({*train, *held_out}):
            if step in train:
                metrics.append(step, TRAIN, loss_index=train[step], images_per_second=rate)
            if step in held_out:
                metrics.append(step, HELD_OUT, loss_index=held_out[step], **quality(step))
    if kwh:
        (path / REPORT).write_text(json.dumps([dataclasses.asdict(_session(each)) for each in kwh]))
    if weights is not None:
        torch.manual_seed(weights)
        model = AutoEncoder(config.image_size, config.latent)
        write_weights(folder.weights_file, model.state_dict(), max(train))
    return path


def make_sweep(path, config, held_out=lambda run: EVALUATED, **others):
    """Makes a sweep, and its runs by `make_run`. `held_out` returns what a run has logged."""
    with open_sweep(config, path) as sweep:
        sweep.begin(config, Manifest("by name", {}, {}))
    for run in config.runs():
        described = {"seed": run.seed, "out": str(path / run.name), "held_out": held_out(run)}
        make_run(path / run.name, run.loss, **described, **others)
    return sweep


def _session(kwh):
    """Returns the report of a session in which the GPUs used this energy."""
    summary = Summary(
        seconds=120.0, cores=Cores(2, 2, 2), phases={Phase.TRAIN: 100.0, Phase.EVAL: 20.0},
        measured=Phase.TRAIN, gpus=(), host={}, data_wait=0.1, kwh=kwh,
    )  # fmt: skip
    return UsageReport(summary, Diagnosis(Verdict.CPU_BOUND, ()))
