"""`fastae train --resume RUN`: continues the run in a folder from its newest valid checkpoint.

Settings that decide the optimization cannot be changed. Others can, such as the number of iterations, the
device or the data folder. If nothing is changed, the run ends in the same bits as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastae.config import FIXED, TrainConfig, flag
from fastae.errors import FastaeError
from fastae.experiment.definition import Experiment, ModelMaker, experiment_with
from fastae.experiment.losses import Elements
from fastae.runs import checkpoint
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder
from fastae.runs.weights import complete
from fastae.training.distributed import ALONE, Ranks, launched
from fastae.training.observers.callback import OnLog
from fastae.training.runner import train_in
from fastae.training.session import open_session
from fastae.utils.console import log, quieted
from fastae.utils.files import mode_at
from fastae.utils.paths import user_folder


def resume(
    run: str | Path,
    *,
    model: ModelMaker | None = None,
    losses: Mapping[str, Elements] | None = None,
    on_log: OnLog | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Resumes the run in the folder `run`; returns the folder.

    Args:
        run: the folder.
        model, losses: those that the run was trained with, if they are your own, as for `fastae.train`.
        on_log, quiet: as for `fastae.train`.
        settings: settings of TrainConfig that a resumed run may change, such as `iterations`.

    Raises:
        FastaeError: the folder holds no run, the run is in progress, or the model, a loss, the settings or
            the data would make it another run.
        RunFailure, Stopped: as `fastae.train`.
    """
    experiment = experiment_with(model, losses)
    launched()  # other ranks than the main one stay quiet, also after `quieted`
    with quieted(quiet):
        return resume_run(user_folder(run, "run"), settings, experiment, on_log=on_log)


def resume_run(
    path: Path,
    given: Mapping[str, Any],
    experiment: Experiment | None = None,
    *,
    on_log: OnLog | None = None,
) -> Path:
    """Resumes the run in the folder `path`, with the settings in `given` changed, as `resume` does."""
    ranks, run, experiment = launched(), RunFolder(path), experiment or Experiment()
    settings = run.read_config()
    with run.lock() if ranks.is_main else nullcontext():
        newest = reopen(run, settings, experiment, ranks)
        where = f"iteration {newest.iteration:,}" if newest else "the start: there is no checkpoint yet"
        log(f"resuming  {path} from {where}")
        before = newest.description if newest else run.read_description()
        config = changed(settings, given, path)
        if newest:
            iteration = newest.iteration
            if given.get("iterations", iteration) < iteration:
                raise FastaeError(
                    f"--iterations {given['iterations']:,} is less than the {iteration:,} that are done: "
                    "pass a larger value to train longer"
                )
            if option := config.ended_by(iteration, newest.seconds):
                if ranks.is_main:
                    complete(run, newest, config.keep)
                log(f"run       {path} is finished, at iteration {iteration:,}; {option} extends it")
                return path
        manifest = run.read_manifest(before) if newest or mode_at(run.manifest_file) else None
        session = open_session(
            config, ranks, manifest, experiment=experiment, overrides=earlier_choices(before, given)
        )
        train_in(session, run, newest, on_log=on_log)
    return path


def reopen(
    run: RunFolder, config: TrainConfig, experiment: Experiment | None = None, ranks: Ranks = ALONE
) -> Checkpoint | None:
    """Returns the newest valid checkpoint of a run; None if it has none yet. The folder must be locked.

    Raises FastaeError if no checkpoint is valid, if they are lost, or if the newest valid one was trained
    with settings other than `config`.
    """
    experiment = experiment or Experiment()
    described = run.read_description()
    experiment.require_model(described.model, f"the run in {str(run.path)!r}")
    require_loss(experiment, config, run)
    newest = checkpoint.newest(
        run.checkpoints, log, lambda trained: experiment.build_meta(trained.image_size, trained.latent)
    )
    if newest:
        for name, found in config.as_dict().items():
            expected = getattr(newest.description.config, name)
            if found != expected and name in FIXED:
                raise FastaeError(
                    f"{str(run.config_file)!r} says {flag(name)} {found}, but the checkpoint of iteration "
                    f"{newest.iteration:,} was trained with {expected}: restore config.json"
                )
            if found != expected and name != "out":
                log(f"differs   {flag(name)} was {expected} at iteration {newest.iteration:,}, is {found}")
    elif checkpoint.latest(run.checkpoints) is not None:
        raise FastaeError(f"{str(run.checkpoints)!r} holds no usable checkpoint: restore one")
    elif config.keep == 0 and mode_at(run.weights_file):
        raise FastaeError(
            f"the run in {str(run.path)!r} is finished, and kept no checkpoint (--keep 0): start a new run"
        )
    elif lost := run.lost_progress():
        raise FastaeError(
            f"the run in {str(run.path)!r} has lost its checkpoints ({lost}): "
            "restore them, or start a new run"
        )
    if ranks.is_main:
        run.remove_drafts()
    return newest


def require_loss(experiment: Experiment, config: TrainConfig, run: RunFolder) -> None:
    """Raises FastaeError unless the run's loss is one of the experiment's."""
    if config.loss not in experiment.losses:
        raise FastaeError(
            f"the run in {str(run.path)!r} was trained with the loss {config.loss}: pass its elements in "
            "Python, as losses="
        )


def changed(saved: TrainConfig, given: Mapping[str, Any], path: Path) -> TrainConfig:
    """Returns the run's settings with the given ones changed. Raises FastaeError for one that is fixed."""
    differing = [
        f"{flag(name)} {getattr(saved, name)}, not {given[name]}"
        for name in (*FIXED, "out")
        if name in given and given[name] != getattr(saved, name)
    ]
    if differing:
        raise FastaeError(f"the run in {str(path)!r} has {', '.join(differing)}: start a new run for that")
    return dataclasses.replace(saved, **given)


def earlier_choices(before: RunDescription, given: Collection[str]) -> dict[str, Any]:
    """Returns setting -> value for the data, loader and compilation of an earlier session, unless `given`."""
    chosen = {"data": before.data.folder, "loader": before.loader, "compile": before.compiled}
    return {name: value for name, value in chosen.items() if name not in given and value is not None}
