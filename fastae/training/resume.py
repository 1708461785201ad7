"""`fastae train --resume RUN`: the run in a folder goes on from its newest whole checkpoint.

What decides the optimisation is the run's own and cannot be changed. What does not (more iterations, another
device, where the data lie) may be given anew. With nothing changed, the run ends in the same bits as one that
was never stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastae.config import TrainConfig, flag
from fastae.errors import FastaeError
from fastae.model import meta_model
from fastae.runs import checkpoint
from fastae.runs.checkpoint import State
from fastae.runs.folder import RunFolder
from fastae.training.distributed import ALONE, Ranks, launched
from fastae.training.runner import show_results, train_in
from fastae.training.session import Session
from fastae.utils.console import printable, say
from fastae.utils.parsing import nested


def resume(path: Path, given: Mapping[str, Any]) -> Path:
    """Goes on with the run in `path`; `given` are the settings to change. Returns the folder.

    Raises FastaeError where that is no run, another process is at work in it, or what is given, or the data,
    would make it another run; else as `fastae.training.runner.train`.
    """
    ranks, run = launched(), RunFolder(path)
    saved = run.settings()
    with run.locked() if ranks.first else nullcontext():
        state = reopen(run, saved, ranks)
        where = (
            f"iteration {state['iteration']:,}"
            if state
            else "the beginning, since there is no checkpoint yet"
        )
        say(f"resuming  {path} from {where}")
        before = state["run"] if state else run.describe()
        config = changed(saved, given, path)
        if state and state["iteration"] >= config.iterations:
            say(f"run       {path} is finished, at iteration {state['iteration']:,}; --iterations goes on")
            return path
        session = Session(as_before(config, given, before), ranks, run, run.began_with())
        compare(session, config, before)
        train_in(session, config, run, state)
    show_results(run)
    return path


def reopen(run: RunFolder, config: TrainConfig, ranks: Ranks = ALONE) -> State | None:
    """Clears up a run's folder, which is locked; its newest whole checkpoint, or None where it has none yet.

    Raises FastaeError where it has some, and none of them can be used.
    """
    if ranks.first:
        run.remove_drafts()
    state = checkpoint.newest(run.checkpoints, say, meta_model(config.image_size, config.latent))
    if state is None and checkpoint.latest(run.checkpoints) is not None:
        raise FastaeError(
            f"{str(run.checkpoints)!r} holds no usable checkpoint: restore one, or remove all to begin again"
        )
    return state


def changed(saved: TrainConfig, given: Mapping[str, Any], path: Path) -> TrainConfig:
    """The run's settings with those that were given. Raises FastaeError for one that is fixed."""
    fixed = {entry.name for entry in dataclasses.fields(TrainConfig) if not entry.metadata["free"]}
    differing = [
        f"{flag(name)} {getattr(saved, name)}, not {value}"
        for name, value in given.items()
        if name in fixed and value != getattr(saved, name)
    ]
    if differing:
        raise FastaeError(f"the run in {str(path)!r} has {', '.join(differing)}: start a new run for that")
    return dataclasses.replace(saved, **given)


def as_before(config: TrainConfig, given: Mapping[str, Any], before: Mapping[str, Any]) -> TrainConfig:
    """The settings with what was chosen automatically then, where nothing else is given now."""
    found = {
        "data": _of(before, str, "data", "folder"),
        "loader": _of(before, str, "loader"),
        "compile": _of(before, bool, "compiled"),
    }
    kept = {name: value for name, value in found.items() if name not in given and value is not None}
    return dataclasses.replace(config, **kept)


def compare(session: Session, config: TrainConfig, before: Mapping[str, Any]) -> None:
    """Says what differs and is sound."""
    now = session.describe(config, "")
    for what, then, is_now in (
        ("device", _of(before, str, "device"), now["device"]),
        ("loader", _of(before, str, "loader"), now["loader"]),
        ("compiled", _of(before, bool, "compiled"), now["compiled"]),
        *(
            (name, _of(before, str, "environment", "packages", name), version)
            for name, version in now["environment"]["packages"].items()
        ),
    ):
        if then is not None and then != is_now:
            say(f"differs   {what} was {printable(str(then))}, is {is_now}: equal to rounding only")


def _of(values: Any, kind: type, *names: str) -> Any:
    """The value at values[name][name]... where it is of this kind, else None."""
    found = nested(values, *names)
    return found if isinstance(found, kind) else None
