"""`fastae sweep`: the runs of a plan one after the other, over one opened data set and one compiled model.

Started by torchrun, the runs are dealt out: each rank trains its own, on its own GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastae.config import TrainConfig
from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.runs.checkpoint import State
from fastae.runs.folder import RunFolder, new_run
from fastae.sweep.plan import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    Entry,
    Sweep,
    SweepConfig,
    open_sweep,
    read,
)
from fastae.sweep.table import SweepTable, announce
from fastae.training.distributed import Ranks, device_of, launched
from fastae.training.resume import as_before, compare, reopen
from fastae.training.runner import train_in
from fastae.training.session import Session
from fastae.utils.console import say

POLL_SECONDS = 2.0


def sweep(config: SweepConfig, folder: Path | None = None) -> Sweep:
    """Runs what is not finished of the sweep in `folder`; returns it, its failed runs marked.

    Raises FastaeError where it cannot begin or write, and Stopped after a signal; the same call goes on.
    """
    ranks = launched()
    with open_on_all_ranks(config, folder, ranks) as plan:
        try:
            run_all(config.train, plan, ranks)
        except OSError as error:
            raise RunFailure(
                f"cannot write to the sweep's folder {str(plan.folder)!r}: {error.strerror or error}; "
                "the same command goes on"
            ) from None
    for entry in plan.failed:
        say(f"failed    {entry.name}: {entry.error}")
    return plan


@contextmanager
def open_on_all_ranks(config: SweepConfig, folder: Path | None, ranks: Ranks) -> Iterator[Sweep]:
    """The first rank opens it, the others hear where it is."""
    if not ranks.first:
        yield read(Path(ranks.hear("sweep")))
        return
    with open_sweep(config, folder) as plan:
        ranks.tell("sweep", str(plan.folder))
        yield plan


def run_all(config: TrainConfig, plan: Sweep, ranks: Ranks) -> None:
    """What this rank is to do of the plan, one run after the other. Raises OSError."""
    with SweepTable(plan, config) as table:
        mine = [entry.name for entry in plan.entries[ranks.rank :: ranks.size]]
        todo = [name for name in mine if plan.entry(name).state != FINISHED]
        for name in todo:
            plan.change(name, state=WAITING)
        if todo:
            session, settings = open_session(config, plan, ranks)
            for name in todo:
                train_one(session, settings, plan, plan.entry(name), table)
        if ranks.first:
            wait_for_others(plan)


def open_session(config: TrainConfig, plan: Sweep, ranks: Ranks) -> tuple[Session, TrainConfig]:
    """What all runs share, on all ranks: images, and, in a sweep that goes on, loader and compiling."""
    config = replace(config, device=device_of(config.device, ranks))
    runs = [RunFolder(plan.folder / entry.name) for entry in plan.entries]
    before = next((run.describe() for run in runs if run.config.exists()), {})
    pinned = as_before(config, {"data": config.data} if config.data else {}, before)
    session = Session(pinned, began_with=plan.began_with())
    agreed = plan.agree_on(session.folder.listing)
    if agreed.fingerprint != session.folder.listing.fingerprint:
        # Another rank was first, and a file came or went between the two.
        session = Session(pinned, began_with=agreed)
    compare(session, pinned, before)
    return session, config


def train_one(session: Session, settings: TrainConfig, plan: Sweep, entry: Entry, table: SweepTable) -> None:
    """One run to its end, from its last checkpoint where it has one; its failure is written down."""
    path = plan.folder / entry.name
    config = replace(settings, loss=entry.loss, seed=entry.seed, out=str(path))
    entry = plan.change(entry.name, state=RUNNING, error="")
    table.start(entry)
    outcome: dict[str, Any] = {"state": STOPPED}
    try:
        with begun_or_new(path, config) as (run, state):
            if not run.new and run.began_with().fingerprint != session.folder.listing.fingerprint:
                raise FastaeError(
                    f"it began with other images than the sweep; fastae train --resume {path} goes on with it"
                )
            entry.iteration = state["iteration"] if state else 0
            names = [other.name for other in plan.entries]
            announce(entry, names.index(entry.name) + 1, len(names))
            if entry.iteration < config.iterations:
                outcome["held_out"] = train_in(session, config, run, state, table)
        outcome["state"] = FINISHED
    except Stopped as stopped:
        raise Stopped(
            stopped.caught, f"stopped by {stopped.caught.name}, all is saved; the same command goes on"
        ) from None
    except FastaeError as error:
        outcome |= {"state": FAILED, "error": str(error)}
        say(f"{entry.name} failed: {error}")
    finally:
        table.record(**outcome)
        table.entry = None


@contextmanager
def begun_or_new(path: Path, config: TrainConfig) -> Iterator[tuple[RunFolder, State | None]]:
    """A run's folder, locked, and its newest checkpoint; a new folder for a run that has not begun."""
    run = RunFolder(path)
    if run.config.exists():
        with run.locked():
            yield run, reopen(run, config)
    else:
        with new_run(path, config.loss, "the run folder") as run:
            yield run, None


def wait_for_others(plan: Sweep) -> None:
    """Returns when no other rank has a run to do; one that died takes this process with it (torchrun)."""
    plan.refresh()
    while any(entry.state in (WAITING, RUNNING) for entry in plan.entries):
        time.sleep(POLL_SECONDS)
        plan.refresh()
