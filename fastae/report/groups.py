"""Groups runs that differ only in the seed: each group is one curve of the report, with a label."""

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
"""Option or description -> the value that the runs of a group have in common, besides the loss."""


@dataclass(frozen=True)
class Group:
    """Runs of one loss that share SETTINGS and have different seeds."""

    label: str
    """The loss and, if other runs of the report have other settings, the options that differ."""

    runs: tuple[Run, ...]

    @property
    def loss(self) -> str:
        return self.runs[0].loss


def group_seeds(runs: Sequence[Run]) -> list[Group]:
    """Divides the runs into groups, in the order of their first runs.

    A run forms its own group, with its name in the label, if another run has the same settings and seed, if
    its last loss is not finite, or if it has less than half of the iterations of the longest run.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.loss, *(value(run) for value in SETTINGS.values())), []).append(run)
    groups = []
    for same in alike.values():
        label = " ".join((same[0].loss, *_differing(same[0], runs)))
        together = _one_per_seed(same)
        for each in filter(None, (together, *((run,) for run in same if run not in together))):
            name = f" ({printable(each[0].name)})" if len(same) > len(each) == 1 else ""
            groups.append(Group(f"{label}{name}", each))
    return groups


def _one_per_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """One run per seed, without runs that are too short or end in a loss that is not finite."""
    furthest = max(run.iteration for run in runs)
    seeds: dict[int, Run] = {}
    for run in runs:
        if ends_finite(run) and run.iteration >= FAR_ENOUGH * furthest:
            seeds.setdefault(run.config.seed, run)
    return tuple(seeds.values())


def _differing(run: Run, runs: Sequence[Run]) -> Iterator[str]:
    """Yields the settings of `run` that most runs do not share, as a user types them."""
    for name, value in SETTINGS.items():
        if 2 * sum(value(each) == value(run) for each in runs) <= len(runs):
            yield _typed(name, value(run))


def _typed(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"--no-{name.removeprefix('--')}"
    return f"no {name}" if value is None else f"{name} {value}"
