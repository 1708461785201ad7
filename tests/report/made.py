"""Run folders made without training: real config.json, event files, checkpoints, gpu.json; chosen numbers."""

import dataclasses
import functools
import json
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from fastae import checkpoint
from fastae.config import TrainConfig
from fastae.data.folder import open_folder
from fastae.device import Precision
from fastae.model import AutoEncoder
from fastae.monitor.files import REPORT
from fastae.monitor.recording import Absence, Phase
from fastae.monitor.summary import Diagnosis, Statistics, Summary, UsageReport, Verdict
from fastae.step import TrainingStep

SMALL = {
    "image_size": 32,
    "latent": 16,
    "batch_size": 4,
    "iterations": 100,
    "eval_every": 50,
    "log_every": 10,
}
DEVICE = "AMD EPYC, 2 threads"
BEGAN = 1_700_000_000.0


def make_run(
    folder,
    loss="minibatch_bce",
    *,
    train=None,
    held_out=None,
    data="/gone/faces",
    device=DEVICE,
    environment=None,
    gpu=None,
    weights=None,
    rate=100.0,
    wait=0.01,
    described=None,
    **settings,
):
    """A run of `loss` that logged these loss_index: iteration -> value; a second an iteration.

    weights: seed of the model in its checkpoint, None for no checkpoint. gpu: a UsageReport for gpu.json.
    described: more of config.json.
    """
    config = TrainConfig(loss=loss, data=str(data), **{**SMALL, **settings})
    train = train if train is not None else {1: 900_000.0, 50: 400_000.0, 100: 300_000.0}
    held_out = held_out if held_out is not None else {0: 900_000.0, 50: 400_000.0, 100: 300_000.0}
    (folder / "checkpoints").mkdir(parents=True)
    description = {
        "config": config.as_dict(),
        "data": {"source": str(data), "folder": str(data), "train": 38, "held_out": 2, "split": "by name",
                 "evaluated_on": 2},
        "loader": "resident",
        "compiled": False,
        "device": device,
        "step": "float32, channels-last",
        "environment": environment or {"fastae": "0.1.0", "commit": "abc", "packages": {"torch": "2.13.0"}},
    }  # fmt: skip
    if Path(data).is_dir():
        listing = open_folder(str(data)).listing
        description["data"]["fingerprint"] = listing.fingerprint
        listing.write(folder / "images.json")
    description |= described or {}
    (folder / "config.json").write_text(json.dumps(description))
    scalars = {step: {"loss_index/train": value} for step, value in train.items()}
    for step in train:
        scalars[step] |= {
            "speed/images_per_second": rate,
            "speed/data_wait_share": wait,
            "speed/step_ms_p50": 1e3 * config.batch_size / rate,
            "speed/step_ms_p95": 2e3 * config.batch_size / rate,
        }
    for step, value in held_out.items():
        scalars.setdefault(step, {})["loss_index/held_out"] = value
    write_events(folder, [(BEGAN + step, step, scalars[step]) for step in sorted(scalars)])
    if gpu:
        (folder / REPORT).write_text(json.dumps(dataclasses.asdict(gpu)))
    if weights is not None:
        write_checkpoint(folder, config, weights, max(train, default=1))
    return folder


def write_events(folder, moments, name="1", sessions=(0,)):
    """An event file of (wall time, iteration, {tag: value}); `sessions`: which of them begin one."""
    path = folder / f"events.out.tfevents.{name}.host"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=moments[0][0], file_version="brain.Event:2").SerializeToString())
        for place, (moment, step, values) in enumerate(moments):
            if place in sessions:
                _write(writer, moment, step, summary.text("config", "{}"))
            for tag, value in values.items():
                _write(writer, moment, step, summary.scalar(tag, value))
    return path


def _write(writer, moment, step, content):
    writer.write(Event(wall_time=moment, step=step, summary=content).SerializeToString())


def write_checkpoint(folder, config, seed, iteration):
    """What one step on a random batch leaves."""
    state = {**_trained(seed, config.image_size, config.latent), "iteration": iteration}
    checkpoint.write(folder / "checkpoints", {**state, "config": config.as_dict(), "run": {}}, keep=3)


@functools.cache
def _trained(seed, size, latent):
    torch.manual_seed(seed)
    shape = (4, 3, size, size)
    step = TrainingStep(
        AutoEncoder(size, latent),
        loss="minibatch_bce",
        batch_shape=shape,
        lr=1e-4,
        precision=Precision(None, "float32"),
        compiled=False,
    )
    step(torch.rand(shape))
    return step.state()


def gpu_report(seconds=120.0, kwh=None, wait=0.1, **phases):
    """A report as the sampler writes it. Phases in seconds: train, eval, compile."""
    statistics = {"cpu": Statistics("CPU use", "cores", 1.5, 1.0, 1.5, 2.0, 2.0)}
    phases = {Phase(name): value for name, value in phases.items()}
    whole = Summary(
        seconds=seconds, poller_share=0.01, cores=2.0,
        phases=phases or {Phase.BEFORE: 10.0, Phase.WARM_UP: 10.0, Phase.TRAIN: 80.0, Phase.EVAL: 20.0},
        measured=Phase.TRAIN, gpus=(), host=statistics, data_wait=wait, kwh=kwh,
    )  # fmt: skip
    return UsageReport(None, whole, Diagnosis(Verdict.CPU_BOUND, ("--amp",)), Absence.CPU_RUN)
