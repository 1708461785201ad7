"""Which held-out images to show, and what their errors have in common across the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from fastae.losses import loss_index
from fastae.report.compare import in_order
from fastae.report.gather import Run
from fastae.report.quality import HeldOut, Measured, Quality, as_bytes

SHOWN = {"best": 3, "median": 3, "worst": 4}
"""How many images of each kind."""

HARD = 0.1
"""The share of images that are called the worst of a loss."""


@dataclass(frozen=True)
class Row:
    """One held-out image. pictures: uint8 (1 + L, S, S, 3), the original and each loss's reconstruction.

    errors: loss_index of the image, (L,).
    """

    name: str
    pictures: np.ndarray
    errors: tuple[float, ...]

    @property
    def stem(self) -> str:
        """Of the file's name: as much as a phone has room for."""
        return PurePosixPath(self.name).stem


@dataclass(frozen=True)
class Gallery:
    """losses: the columns. groups: "best" and so on -> rows, best first.

    correlation: of the images' ranks by error, between two losses, the mean over all pairs; nan for one loss.
    shared: of a loss's worst tenth of images, the share that is in the worst tenth of every loss.
    count: images that all this was computed on. skipped: runs that saw other images.
    """

    losses: tuple[str, ...]
    groups: Mapping[str, Sequence[Row]]
    correlation: float
    shared: float
    hard: int
    count: int
    size: int
    skipped: tuple[str, ...]


def make_gallery(runs: Sequence[Run], measured: Measured) -> Gallery | None:
    """Of each loss the run with the lowest seed, among those on the same images. None without any.

    runs: in order, those of most interest first: the images are those of the first that was measured.
    """
    shown = [run for run in runs if run.path in measured.quality]
    if not shown:
        return None
    held_out = measured.held_out[shown[0].path]
    chosen: dict[str, Run] = {}
    for run in shown:
        if measured.held_out[run.path] is held_out:
            chosen.setdefault(run.loss, run)
    losses = in_order(chosen)
    qualities = [measured.quality[chosen[loss].path] for loss in losses]
    errors = np.stack([quality.errors for quality in qualities])
    correlation, hard, shared = _in_common(errors)
    return Gallery(
        losses=tuple(losses),
        groups={
            kind: [_row(held_out, place, qualities) for place in places]
            for kind, places in pick(errors.mean(axis=0)).items()
        },
        correlation=correlation,
        shared=shared,
        hard=hard,
        count=len(held_out.names),
        size=held_out.images.shape[-1],
        skipped=tuple(run.name for run in shown if measured.held_out[run.path] is not held_out),
    )


def pick(errors: np.ndarray) -> dict[str, list[int]]:
    """Places of the best, middle and worst of these (N,), each group from best to worst.

    Where there are too few for three groups, all of them are in one, "all".
    """
    ranked = [int(place) for place in np.argsort(errors, kind="stable")]
    if len(ranked) <= sum(SHOWN.values()):
        return {"all": ranked}
    middle = (len(ranked) - SHOWN["median"]) // 2
    return {
        "best": ranked[: SHOWN["best"]],
        "median": ranked[middle : middle + SHOWN["median"]],
        "worst": ranked[-SHOWN["worst"] :],
    }


def _in_common(errors: np.ndarray) -> tuple[float, int, float]:
    """Of (L, N) errors: mean rank correlation of two losses, size of a worst tenth, share that all share."""
    losses, images = errors.shape
    hard = max(1, round(HARD * images))
    if losses < 2 or images < 3:
        return float("nan"), hard, float("nan")
    ranks = errors.argsort(axis=1).argsort(axis=1)
    correlations = np.atleast_2d(np.corrcoef(ranks))[np.triu_indices(losses, 1)]
    worst = set.intersection(*(set(order[-hard:].tolist()) for order in errors.argsort(axis=1)))
    return float(correlations.mean()), hard, len(worst) / hard


def _row(held_out: HeldOut, place: int, qualities: Sequence[Quality]) -> Row:
    original = as_bytes(held_out.images[place : place + 1])
    return Row(
        held_out.names[place],
        np.concatenate([original, *(quality.pictures[place : place + 1] for quality in qualities)]),
        tuple(loss_index(float(quality.errors[place])) for quality in qualities),
    )
