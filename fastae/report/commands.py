"""Finds the commands that repeat runs and make their report, as a user types them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.experiment.losses import ELEMENTS, LOSSES
from fastae.report.runs import Run
from fastae.runs.folder import RUNS
from fastae.sweep.folder import SweepFolder
from fastae.sweep.plan import SweepConfig
from fastae.utils.console import printable
from fastae.utils.json import convert
from fastae.utils.paths import shell_word

BY_TIME = re.compile(r"\d{8}-\d{6}-sweep.*")
"""The names of sweeps' folders that the user did not choose."""

Command = tuple[str, ...]
"""The words and options of a command: "fastae", "train", "--lr 0.001". Lines may break between them."""


def commands(runs: Sequence[Run], report: Sequence[Sequence[str]]) -> Iterator[Command]:
    """Yields the commands that repeat the runs, and the command of this report.

    A complete sweep is one command. `report` contains the arguments of `fastae report`, each option together
    with its value.
    """
    for folder in dict.fromkeys(run.path.parent for run in runs):
        beside = [run for run in runs if run.path.parent == folder]
        if sweep := _sweep_of(folder, beside):
            losses = [["--losses", ",".join(sweep.losses)]] if {*sweep.losses} != {*LOSSES} else []
            own = [*losses, *_options(sweep, "train", "experiment", "losses")]
            # A run's --out is below the sweep's, whose default contains the time.
            out = Path(beside[0].config.out or "").parent
            is_chosen = out.parts and not (out.parent == RUNS and BY_TIME.fullmatch(out.name))
            named = [["--out", str(out)]] if is_chosen else []
            yield _command("sweep", [*own, *_options(sweep.train, "loss", "out"), *named])
        else:
            yield from map(_repeat, beside)
    yield _command("report", report)


def _command(name: str, arguments: Sequence[Sequence[str]]) -> Command:
    """Returns a command of fastae, quoted for a shell."""
    return ("fastae", name, *(" ".join(map(shell_word, words)) for words in arguments))


def _repeat(run: Run) -> Command:
    """Returns the command that repeats a run, or a comment if only a user's program can."""
    if run.has_own_model or run.loss.element not in ELEMENTS:
        what = f"{run.loss.name} with {run.model} model, seed {run.config.seed}"
        return (f"# {printable(run.name)}: {what}, trained by a user's own program",)
    return _command("train", _options(run.config))


def _options(config: TrainConfig | SweepConfig, *skip: str) -> list[Sequence[str]]:
    """Returns settings that differ from their defaults and are not in `skip`, as options with values."""
    options: list[Sequence[str]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in skip or value == field.default:
            continue
        if isinstance(value, bool):
            options.append([flag(field.name if value else f"no_{field.name}")])
        else:
            options.append([flag(field.name), str(value)])
    return options


def _sweep_of(folder: Path, runs: Sequence[Run]) -> SweepConfig | None:
    """Returns the settings of the sweep in a folder, or None unless the given runs are all of its runs."""
    try:
        plan = SweepFolder(folder).read_settings()
        train = convert(runs[0].config.as_dict() | {"seed": plan.get("seed")}, TrainConfig)
        sweep = SweepConfig(
            train,
            losses=convert(plan.get("losses"), tuple[str, ...]),
            repeats=convert(plan.get("repeats"), int),
            same_init=convert(plan.get("same_init"), bool),
        )
    except (FastaeError, ValueError):
        return None
    planned = {(run.name, run.loss, run.seed) for run in sweep.runs()}
    is_complete = planned == {(run.path.name, run.loss.name, run.config.seed) for run in runs}
    return sweep if is_complete and not any(run.has_own_model for run in runs) else None
