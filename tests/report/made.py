"""Run folders made without training: real config.json, metrics.csv, weights, gpu.json; chosen numbers."""

import dataclasses
import json
from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.data.files.folder import open_folder
from fastae.model import AutoEncoder
from fastae.monitor.files import REPORT
from fastae.monitor.recording import Phase
from fastae.monitor.summary import Diagnosis, Statistics, Summary, UsageReport, Verdict
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, NAME, TRAIN, MetricsWriter
from fastae.runs.weights import write_weights
from fastae.utils.limits import Cores

SMALL = {
    "image_size": 32, "latent": 16, "batch_size": 4, "iterations": 100, "eval_every": 50, "log_every": 10,
}  # fmt: skip
DEVICE = "AMD EPYC, 2 threads"


def make_run(
    folder,
    loss="minibatch_bce",
    *,
    train=None,
    held_out=None,
    data="/gone/faces",
    device=DEVICE,
    gpu=None,
    weights=None,
    rate=100.0,
    quality=lambda step: {},
    described=None,
    **settings,
):
    """A run of `loss` that logged these loss_index: iteration -> value.

    weights: seed of the model, None for no weights. gpu: UsageReports for gpu.json. quality: iteration ->
    the PSNR and SSIM that were logged. described: more of config.json.
    """
    config = TrainConfig(loss=loss, data=str(data), **{**SMALL, **settings})
    train = train if train is not None else {1: 900_000.0, 50: 400_000.0, 100: 300_000.0}
    held_out = held_out if held_out is not None else {0: 900_000.0, 50: 400_000.0, 100: 300_000.0}
    folder.mkdir(parents=True)
    description = {
        "config": config.as_dict(),
        "data": {"source": str(data), "folder": str(data), "train": 38, "held_out": 2, "split": "by name",
                 "evaluated_on": 2},
        "loader": "resident",
        "compiled": False,
        "device": device,
        "step": "float32, channels-last",
        "world_size": 1,
        "environment": {"fastae": "0.1.0", "commit": "abc", "packages": {"torch": "2.13.0"}},
    }  # fmt: skip
    if Path(data).is_dir():
        manifest = open_folder(str(data)).manifest
        description["data"]["fingerprint"] = manifest.fingerprint
        manifest.write(folder / "images.json")
    description |= described or {}
    (folder / "config.json").write_text(json.dumps(description))
    with MetricsWriter(folder / NAME) as metrics:
        for step in sorted({*train, *held_out}):
            if step in train:
                metrics.append(step, TRAIN, loss_index=train[step], images_per_second=rate)
            if step in held_out:
                metrics.append(step, HELD_OUT, loss_index=held_out[step], **quality(step))
    if gpu:
        (folder / REPORT).write_text(json.dumps([dataclasses.asdict(each) for each in gpu]))
    if weights is not None:
        torch.manual_seed(weights)
        model = AutoEncoder(config.image_size, config.latent)
        write_weights(RunFolder(folder).weights, model.state_dict(), max(train))
    return folder


def gpu_report(*energies):
    """As a run's monitor writes it: a session with each of these energies, in kWh."""
    statistics = {"cpu": Statistics("CPU use", "cores", 1.5, 1.0, 1.5, 2.0, 2.0)}
    whole = Summary(
        seconds=120.0, cores=Cores(2, 2, 2), phases={Phase.TRAIN: 100.0, Phase.EVAL: 20.0},
        measured=Phase.TRAIN, gpus=(), host=statistics, data_wait=0.1,
    )  # fmt: skip
    diagnosis = Diagnosis(Verdict.CPU_BOUND, ("--amp",))
    return [UsageReport(dataclasses.replace(whole, kwh=kwh), diagnosis) for kwh in energies]
