"""Run folders made without training: real config.json, metrics.csv, checkpoints, gpu.json; chosen numbers."""

import dataclasses
import functools
import json
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from fastae.config import TrainConfig
from fastae.data.folder import open_folder
from fastae.model import AutoEncoder
from fastae.monitor.files import REPORT
from fastae.monitor.recording import Absence, Phase
from fastae.monitor.summary import Diagnosis, Statistics, Summary, UsageReport, Verdict
from fastae.runs import checkpoint
from fastae.runs.folder import RunFolder
from fastae.runs.metrics import HELD_OUT, NAME, TRAIN, MetricsWriter
from fastae.training.step import TrainingStep
from fastae.utils.device import Precision
from fastae.utils.pictures import sample_sheet, save_png

SMALL = {
    "image_size": 32,
    "latent": 16,
    "batch_size": 4,
    "iterations": 100,
    "eval_every": 50,
    "log_every": 10,
}
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
    described=None,
    **settings,
):
    """A run of `loss` that logged these loss_index: iteration -> value.

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
        "world_size": 1,
        "environment": {"fastae": "0.1.0", "commit": "abc", "packages": {"torch": "2.13.0"}},
    }  # fmt: skip
    if Path(data).is_dir():
        listing = open_folder(str(data)).listing
        description["data"]["fingerprint"] = listing.fingerprint
        listing.write(folder / "images.json")
    description |= described or {}
    (folder / "config.json").write_text(json.dumps(description))
    with MetricsWriter(folder / NAME) as metrics:
        for step in sorted({*train, *held_out}):
            if step in train:
                metrics.append(step, TRAIN, loss_index=train[step], images_per_second=rate)
            if step in held_out:
                metrics.append(step, HELD_OUT, loss_index=held_out[step])
    if gpu:
        (folder / REPORT).write_text(json.dumps(dataclasses.asdict(gpu)))
    if weights is not None:
        write_checkpoint(folder, config, weights, max(train, default=1))
    return folder


def write_events(folder, points, name="1"):
    """An event file of (iteration, {tag: value})."""
    path = folder / f"events.out.tfevents.{name}.host"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for step, values in points:
            for tag, value in values.items():
                event = Event(wall_time=1.0, step=step, summary=summary.scalar(tag, value))
                writer.write(event.SerializeToString())
    return path


def draw_samples(folder, iteration, number=2, seed=0, size=32):
    """The sample sheet of a run, of random images."""
    generator = torch.Generator().manual_seed(seed)
    originals = torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0))
    pictures = torch.rand(number, 3, size, size, generator=generator)
    (folder / "samples").mkdir(exist_ok=True)
    save_png(sample_sheet(originals, pictures, iteration), RunFolder(folder).sample(iteration))


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


def gpu_report(kwh):
    """As the sampler writes it."""
    statistics = {"cpu": Statistics("CPU use", "cores", 1.5, 1.0, 1.5, 2.0, 2.0)}
    whole = Summary(
        seconds=120.0, poller_share=0.01, cores=2.0, phases={Phase.TRAIN: 100.0, Phase.EVAL: 20.0},
        measured=Phase.TRAIN, gpus=(), host=statistics, data_wait=0.1, kwh=kwh,
    )  # fmt: skip
    return UsageReport(None, whole, Diagnosis(Verdict.CPU_BOUND, ("--amp",)), Absence.CPU_RUN)
