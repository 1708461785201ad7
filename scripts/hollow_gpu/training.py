"""Makes runs on a hollow GPU: training, evaluation, checkpoints, resume, a second run, `--loader host`."""

from __future__ import annotations

import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch

from fastae.config import TrainConfig
from fastae.data.files.check import Check
from fastae.data.files.folder import ImageFolder
from fastae.data.files.manifest import Manifest
from fastae.data.loaders.host import HostSource
from fastae.experiment.definition import Experiment, step_cost
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.description import Environment
from fastae.runs.folder import RunFolder, new_run
from fastae.training.distributed import ALONE
from fastae.training.replaced_files import ReplacedFiles
from fastae.training.resume import reopen
from fastae.training.runner import open_trainer
from fastae.training.session import Session, batch_shape, build_model, open_hardware
from fastae.training.signals import StopSignals
from fastae.training.step.objective import prepare
from fastae.training.trainer import Trainer
from fastae.utils.console import console
from scripts.hollow_gpu import lowering
from scripts.hollow_gpu.driver import Counts
from scripts.hollow_gpu.seams import count_replays_everywhere

IMAGES = 4_096
QUIET = (3, 4)
"""Iterations after the start or the resume that neither log nor evaluate nor save."""


def drive(config: TrainConfig) -> dict[str, int]:
    """Trains, resumes, trains another loss, and trains from host memory; any error of a run is raised.

    Returns the number of waits of the loop's thread, by run.
    """
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        console.quiet = True
        settings = replace(
            config,
            iterations=16,
            log_every=12,
            eval_every=8,
            checkpoint_every=8,
            gpu_sample_hz=0,
            device="cuda",
        )
        count_replays_everywhere()
        session = stand_in_session(settings)
        counts["new"] = train(session, settings, Path(folder) / "one")
        counts["resumed"] = resume(session, replace(settings, iterations=24), Path(folder) / "one")
        counts["second"] = train(session, replace(settings, loss="pixel_mse"), Path(folder) / "two")
        loader = lowering.stand_in_loader(config, IMAGES, HostSource)
        session = replace(session, loader=loader)
        counts["host"] = train(session, replace(settings, loader="host"), Path(folder) / "three")
        console.quiet = False
    return counts


def stand_in_session(config: TrainConfig) -> Session:
    """Makes a session with an empty resident store and empty held-out images."""
    names = {f"{number:06d}.jpg": 1 for number in range(IMAGES)}
    folder = ImageFolder(
        root="/nowhere",
        train=list(names),
        held_out=["held_out.jpg"],
        manifest=Manifest("stand-in", names, {"held_out.jpg": 1}),
        checked=Check({}, []),
    )
    experiment = Experiment()
    meta = experiment.build_meta(config.image_size, config.latent)
    cost = step_cost(meta, experiment.loss(config.loss), batch_shape(config))
    hardware = open_hardware(config, ALONE, cost)
    size = config.image_size
    return Session(
        config=config,
        experiment=experiment,
        ranks=ALONE,
        hardware=hardware,
        cost=cost,
        trained=prepare(build_model(experiment, config).to(hardware.device), hardware),
        environment=Environment(),
        folder=folder,
        source="stand-in",
        replaced=ReplacedFiles(),
        held_out=torch.zeros(64, 3, size, size, device=hardware.device),
        loader=lowering.stand_in_loader(config, IMAGES),
    )


def train(session: Session, config: TrainConfig, path: Path) -> int:
    """Trains a new run; returns the number of synchronisations in QUIET iterations."""
    with new_run(path, config.loss) as run:
        return run_to_end(session, config, run, None)


def resume(session: Session, config: TrainConfig, path: Path) -> int:
    """Resumes a run; returns the number of synchronisations in QUIET iterations."""
    run = RunFolder(path)
    with run.lock():
        newest = reopen(run, config)
        assert newest is not None and newest.iteration == 16
        return run_to_end(session, config, run, newest)


def run_to_end(session: Session, config: TrainConfig, run: RunFolder, newest: Checkpoint | None) -> int:
    """Trains a run to its end; returns the number of synchronisations in QUIET iterations."""
    with StopSignals() as stops, open_trainer(session, config, run, stops, newest) as trainer:
        return count_syncs(trainer)


def count_syncs(trainer: Trainer) -> int:
    """Counts synchronisations in QUIET iterations. Raises RuntimeError unless these replay a graph."""
    start, quiet = trainer.iteration, 0
    going = True
    while going:
        before = Counts.now()
        going = trainer.advance()
        if trainer.iteration - start in QUIET:
            counts = Counts.now() - before
            quiet += counts.synchronisations
            if counts.replays != 1:
                raise RuntimeError(f"iteration {trainer.iteration} is not a replay: {counts}")
    return quiet
