"""Finds the commands that repeat runs and make their report, as a user types them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.losses import LOSSES
from fastae.report.runs import Run
from fastae.runs.folder import RUNS
from fastae.runs.sweep_folder import SweepConfig, SweepFolder
from fastae.utils.json import convert

Command = tuple[str, ...]
"""The words and options of a command: "fastae", "train", "--lr 0.001". Lines may break between them."""


def commands(runs: Sequence[Run], report: Sequence[Sequence[str]]) -> Iterator[Command]:
    """Yields the commands that repeat the runs, one for a complete sweep, and the command of this report.

    `report` contains the arguments of `fastae report`, each option together with its value.
    """
    for folder in dict.fromkeys(run.path.parent for run in runs):
        beside = [run for run in runs if run.path.parent == folder]
        if sweep := _sweep_of(folder, beside):
            yield _command("sweep", [*_sweep_options(sweep, beside), *options(sweep.train, ["loss", "out"])])
        else:
            yield from (_command("train", options(run.config)) for run in beside)
    yield _command("report", report)


def options(config: TrainConfig, skip: Sequence[str] = ()) -> list[Sequence[str]]:
    """The settings that differ from their defaults and are not in `skip`, as options with their values."""
    values = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default and field.name not in skip
    }
    return [
        [flag(name if value else f"no_{name}")] if isinstance(value, bool) else [flag(name), str(value)]
        for name, value in values.items()
    ]


def _command(name: str, arguments: Sequence[Sequence[str]]) -> Command:
    return ("fastae", name, *map(shlex.join, arguments))


def _sweep_options(sweep: SweepConfig, runs: Sequence[Run]) -> Iterator[Sequence[str]]:
    """Yields the sweep's own options that differ from their defaults; `runs` are the sweep's runs."""
    if len(sweep.losses) < len(LOSSES):
        yield ["--losses", ",".join(sweep.losses)]
    if sweep.repeats > 1:
        yield ["--repeats", str(sweep.repeats)]
    if sweep.same_init:
        yield ["--same-init"]
    if (at_once := max(run.description.at_once for run in runs)) > 1:
        yield ["--at-once", str(at_once)]
    # A run's --out is below the sweep's, whose default contains the time.
    out = Path(runs[0].config.out or "").parent
    if out.parts and not (out.parent == RUNS and re.fullmatch(r"\d{8}-\d{6}-sweep.*", out.name)):
        yield ["--out", str(out)]


def _sweep_of(folder: Path, runs: Sequence[Run]) -> SweepConfig | None:
    """The sweep in a folder, if the given runs are all of its runs."""
    try:
        plan = SweepFolder(folder).read().plan
        own = {name: plan.get(name) for name in ("losses", "repeats", "same_init")}
        train = runs[0].config.as_dict() | {"seed": plan.get("seed")}
        sweep: SweepConfig = convert({"train": train, **own}, SweepConfig)
    except (FastaeError, ValueError):
        return None
    found = {(run.path.name, run.loss, run.config.seed) for run in runs}
    return sweep if found == {(run.name, run.loss, run.seed) for run in sweep.runs()} else None
