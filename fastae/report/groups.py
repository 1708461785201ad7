"""Runs that differ in nothing but the seed: one curve of the report, with a label that says what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastae.report.compare import CONDITIONS, FAR_ENOUGH, ends_finite
from fastae.report.runs import Run
from fastae.utils.console import printable

SETTINGS: Mapping[str, Callable[[Run], Any]] = {
    **CONDITIONS,
    "--amp": lambda run: run.config.amp,
    "--deterministic": lambda run: run.config.deterministic,
}
"""By what a user calls it: what the runs of a group have in common, besides the loss."""


@dataclass(frozen=True)
class Group:
    """Runs of one loss that share SETTINGS, each with a seed of its own.

    label: the loss and, if other runs of the report have other settings, the options that differ.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def loss(self) -> str:
        return self.runs[0].loss


def group_seeds(runs: Sequence[Run]) -> list[Group]:
    """The groups, in the order of their first runs; every run is in one.

    A run is by itself, and named in the label, if another one of its settings has its seed, if it ended in a
    loss that is not finite, or if it got less than half as far as the furthest.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.loss, *(value(run) for value in SETTINGS.values())), []).append(run)
    described = {
        same[0].path: " ".join((same[0].loss, *_differing(same[0], runs))) for same in alike.values()
    }
    groups = []
    for same in alike.values():
        together = _one_per_seed(same)
        taken = {run.path for run in together}
        divided = [together, *((run,) for run in same if run.path not in taken)]
        for each in filter(None, divided):
            name = f" ({printable(each[0].name)})" if len(same) > len(each) == 1 else ""
            groups.append(Group(f"{described[same[0].path]}{name}", each))
    return groups


def _one_per_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs whose mean means something."""
    furthest = max(run.iteration for run in runs)
    seeds: dict[int, Run] = {}
    for run in runs:
        if ends_finite(run) and run.iteration >= FAR_ENOUGH * furthest:
            seeds.setdefault(run.config.seed, run)
    return tuple(seeds.values())


def _differing(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    """The settings that most of these runs do not share with it, as a user types them."""
    for name, value in SETTINGS.items():
        if 2 * sum(value(each) == value(run) for each in runs) <= len(runs):
            yield _typed(name, value(run))


def _typed(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"--no-{name.removeprefix('--')}"
    return f"no {name}" if value is None else f"{name} {value}"
