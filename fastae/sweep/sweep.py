"""`fastae sweep`: trains the runs of a sweep in one session, one after the other.

Under torchrun, the runs are distributed over the ranks: each rank trains its own runs on its own GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.experiment.definition import ModelMaker, experiment_with
from fastae.experiment.losses import Elements
from fastae.runs.checkpoint import Checkpoint
from fastae.runs.description import RunDescription
from fastae.runs.folder import RunFolder, new_run
from fastae.runs.weights import complete, finished_at
from fastae.sweep.folder import SweepFolder, open_sweep
from fastae.sweep.plan import PlannedRun, SweepConfig
from fastae.sweep.table import SweepTable
from fastae.training.distributed import Ranks, device_of, launched
from fastae.training.resume import earlier_choices, reopen
from fastae.training.runner import open_trainer
from fastae.training.session import Session, open_session
from fastae.training.signals import StopSignals
from fastae.utils.arguments import require_type
from fastae.utils.console import log
from fastae.utils.files import mode_at
from fastae.utils.paths import shell_word, user_folder


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep. Under torchrun, only the main rank has the failures, those of all ranks."""

    path: Path
    """The sweep's folder."""

    failed: Mapping[str, str]
    """Name of a run -> why it failed."""

    has_finished_runs: bool


def run_sweep(
    config: TrainConfig,
    names: Sequence[str] = (),
    *,
    model: ModelMaker | None = None,
    losses: Mapping[str, Elements] | None = None,
    repeats: int = 1,
    same_init: bool = True,
    out: str | Path | None = None,
) -> Path:
    """Trains once per loss; returns the sweep's folder. After an interruption, the same call resumes it.

    Args:
        config: the settings of all runs. Loss and folder differ; seeds are counted from its seed.
        names: the names of the losses. Default: all, the user's own included.
        model, losses: a model and elements of losses of your own, as for `fastae.train`.
        repeats: the number of runs of each loss, with different seeds.
        same_init: whether the losses of a repeat share initial weights and batches.
        out: the sweep's folder. Default: runs/TIME-sweep.

    Raises:
        FastaeError: the sweep cannot begin.
        RunFailure: a run has failed, or the folder cannot be written.
        Stopped: a signal stopped the sweep.
    """
    require_type(config, "config", TrainConfig)
    require_type(names, "names", list, tuple)  # the letters of a text would be taken for names
    experiment = experiment_with(model, losses)
    planned = SweepConfig(config, names, repeats=repeats, same_init=same_init, experiment=experiment)
    result = train_sweep(planned, user_folder(out, "out") if out else None)
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise RunFailure(f"{reasons}; the same call, with out={str(result.path)!r}, tries again")
    return result.path


def train_sweep(config: SweepConfig, path: Path | None = None) -> SweepResult:
    """Trains the runs of a sweep that are not finished. After an interruption, the same call resumes it.

    Args:
        config: the sweep's settings.
        path: its folder; None for a new one, runs/TIME-sweep.

    Raises:
        FastaeError: the sweep cannot begin.
        RunFailure: the sweep's folder cannot be written.
        Stopped: a signal stopped the sweep.
    """
    ranks = launched()
    with open_sweep(config, path) if ranks.is_main else nullcontext() as mine:
        folder = mine or SweepFolder(Path(ranks.broadcast("sweep")))
        try:
            failed = _train_runs(config, folder, ranks)
        except OSError as error:
            reason = f"cannot write to the sweep's folder: {error.strerror or error}"
            raise RunFailure(f"{reason}; {resume_hint(folder)}") from None
        finished = [run for run in config.runs() if finished_at(folder.run(run.name)) is not None]
    for name, reason in failed.items():
        log(f"failed    {name}: {reason}")
    return SweepResult(folder.path, failed, has_finished_runs=bool(finished))


def resume_hint(folder: SweepFolder) -> str:
    """Returns, in words, what resumes a sweep."""
    return f"the same command, with --out {shell_word(folder.path)}, resumes it"


def _train_runs(config: SweepConfig, folder: SweepFolder, ranks: Ranks) -> Mapping[str, str]:
    """Trains this rank's runs; the main rank then waits for the other ranks.

    Returns name -> reason of the runs that have failed, on the main rank.
    """
    mine = config.runs_of(ranks.rank, ranks.size)
    to_do = [run for run in mine if finished_at(folder.run(run.name)) is None]
    session = _open_session(config, folder, ranks) if to_do else None
    if ranks.is_main:
        if session:
            folder.begin(config, session.folder.manifest)
        ranks.broadcast("sweep", str(folder.path))
    failed: dict[str, str] = {}
    with SweepTable(folder, config, ranks.size) as table:
        table.failed = failed
        if session:
            with StopSignals() as stops:
                for planned in to_do:
                    table.current = planned.name
                    if reason := _train_one(session, config, planned, folder, stops):
                        failed[planned.name] = reason
        table.current = None
        for others in ranks.gather("failed", json.dumps(failed)):
            failed |= json.loads(others)
    return failed if ranks.is_main else {}  # a rank that ended with an error would end the others


def _open_session(config: SweepConfig, folder: SweepFolder, ranks: Ranks) -> Session:
    """Opens the session that all runs of this rank share.

    If the sweep is resumed, the session uses the data and the loader of the runs that have begun, and
    compiles as they did, except for what the user sets to other than the default now.
    """
    train = config.train
    folders = (folder.run(run.name) for run in config.runs())
    begun = next((run for run in folders if mode_at(run.config_file)), None)
    before = begun.read_description() if begun else RunDescription(train)
    given = [name for name, value in train.as_dict().items() if value != getattr(TrainConfig, name)]
    choices = earlier_choices(before, given)
    return open_session(
        replace(train, loss=config.runs()[0].loss, data=train.data or before.config.data),
        manifest=folder.read_manifest(),
        experiment=config.experiment,
        overrides=choices | {"device": device_of(train.device, ranks)},
    )


def _train_one(
    session: Session, config: SweepConfig, planned: PlannedRun, folder: SweepFolder, stops: StopSignals
) -> str | None:
    """Trains a run from its newest checkpoint to its end. Returns why it failed; None if it did not.

    Raises Stopped, with what resumes the sweep, and OSError if its folder cannot be written.
    """
    run = folder.run(planned.name)
    settings = replace(session.config, loss=planned.loss, seed=planned.seed, out=str(run.path))
    try:
        with _begun_or_new(run, settings, session) as newest:
            number = config.runs().index(planned) + 1
            verb = "resumes" if newest else "begins"
            log("")
            log(f"{planned.name}: run {number} of {len(config.runs())} {verb}, seed {planned.seed}")
            if newest and settings.ended_by(newest.iteration, newest.seconds):
                complete(run, newest, settings.keep)
                return None
            with open_trainer(session, settings, run, stops, newest, bar=False) as trainer:
                while trainer.advance():
                    pass
    except Stopped as stopped:
        hint = resume_hint(folder)
        raise Stopped(stopped.caught, f"stopped by {stopped.caught.name}; {hint}") from None
    except FastaeError as error:
        log(f"{planned.name} failed: {error}")
        return str(error)
    return None


@contextmanager
def _begun_or_new(run: RunFolder, config: TrainConfig, session: Session) -> Iterator[Checkpoint | None]:
    """Locks a run's folder, and yields the run's newest checkpoint, which is None if there is none.

    The folder is made if the run has not begun. Raises FastaeError if the run began with other images than
    those of the session.
    """
    if not mode_at(run.config_file):
        with new_run(run.path, config.loss, "the run folder"):
            yield None
        return
    with run.lock():
        newest = reopen(run, config, session.experiment)
        manifest = session.folder.manifest
        if newest and run.read_manifest(newest.description).fingerprint != manifest.fingerprint:
            raise FastaeError(
                f"the run began with other images than the sweep's; to resume it alone: {run.resume_command}"
            )
        yield newest
