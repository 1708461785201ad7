"""Reconstructions of held-out images, their errors, PSNR and SSIM.

With the images, which the user names, from the checkpoints in float32; without them from the sample sheets
that the runs drew, 16 images each. A folder that config.json names is not opened: anybody may have written
it, and the page shows what is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from fastae.data import CropResize, faces, load_images
from fastae.data.folder import name_below
from fastae.data.manifest import Manifest
from fastae.data.source import VARIABLE, open_source
from fastae.errors import FastaeError
from fastae.losses import LOSSES, psnr, squared_error
from fastae.report.runs import Run
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import load_model
from fastae.training.evaluate import reconstruct
from fastae.training.session import spread
from fastae.utils.device import Precision
from fastae.utils.pictures import read_sheet

FLOAT32 = Precision(None, "float32")

MAX_SIDE, MAX_SET = 1024, 1 << 32
"""Pixels, and bytes of one data set's held-out images as float32: config.json may claim any size."""

MAX_BATCH = 64 * 128 * 128
"""Pixels, of one channel, that go through the model at once."""

TRIES = 8
"""The last sample sheets that are tried."""

SHOWN = 3
"""Images of each of the groups best, median, worst."""


@dataclass(frozen=True)
class HeldOut:
    """names: of the files, without the folder's. images: float32 (N, 3, S, S) in [0, 1]."""

    names: tuple[str, ...]
    images: Tensor


@dataclass(frozen=True)
class Reconstructions:
    """Of one run at `iteration`: originals and pictures uint8 (N, S, S, 3), errors mean squared (N,).

    psnr (dB, of a peak of 1), ssim (in [-1, 1]): means over the images; nan for those of a sample sheet.
    """

    iteration: int
    names: tuple[str, ...]
    originals: np.ndarray
    pictures: np.ndarray
    errors: np.ndarray
    psnr: float = math.nan
    ssim: float = math.nan


@dataclass(frozen=True)
class Row:
    """One held-out image. pictures: uint8 (1 + L, S, S, 3), the original and its reconstructions.

    errors: mean squared, (L,).
    """

    name: str
    pictures: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """columns: the runs, one a loss. groups: "best" and so on -> rows. count: images they are chosen from."""

    columns: tuple[Run, ...]
    iterations: tuple[int, ...]
    groups: Mapping[str, tuple[Row, ...]]
    count: int


def measure(
    runs: Iterable[Run], device: torch.device, data: str | None = None
) -> tuple[dict[Path, Reconstructions], list[str]]:
    """By a run's folder, what its checkpoint makes of its held-out images; and why some have none, in lines.

    data: the user's folder of the runs' images; None for $FASTAE_DATA, or else the synthetic faces.
    """
    found: dict[Path, Reconstructions] = {}
    loaded: dict[tuple[object, ...], HeldOut] = {}
    reasons: dict[str, None] = {}
    for run in runs:
        try:
            model = load_model(run.path, device)
            held_out = _held_out(run, data, device, loaded)
            chunks = held_out.images.split(max(1, MAX_BATCH // held_out.images.shape[-1] ** 2))
            pictures = torch.cat([reconstruct(model.model, chunk, FLOAT32) for chunk in chunks])
            found[run.path] = judge(held_out, pictures, model.iteration)
        except (FastaeError, OSError) as error:
            reasons[f"no PSNR and SSIM: {error}"] = None
    return found, list(reasons)


def judge(held_out: HeldOut, reconstructions: Tensor, iteration: int) -> Reconstructions:
    """reconstructions: (N, 3, S, S) in [0, 1], on the images' device."""
    errors = squared_error(reconstructions, held_out.images).mean(dim=(1, 2, 3)).double().cpu().numpy()
    originals, pictures = (
        each.float().permute(0, 2, 3, 1).cpu().numpy() for each in (held_out.images, reconstructions)
    )
    return Reconstructions(
        iteration=iteration,
        names=held_out.names,
        originals=_as_bytes(originals),
        pictures=_as_bytes(pictures),
        errors=errors,
        psnr=float(np.mean([psnr(error) for error in errors])),
        ssim=float(np.mean([ssim(*pair) for pair in zip(originals, pictures, strict=True)])),
    )


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two images (S, S, 3) in [0, 1], as Wang and others (2004) define it.

    A Gaussian window of sigma 1.5 (11 pixels), each channel by itself, their mean.
    """
    return float(
        structural_similarity(
            one, other, data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def read_samples(run: Run) -> Reconstructions | None:
    """The last sample sheet in the run's own folder; None if no sheet there can be read."""
    root, side = run.path.resolve(), run.config.image_size
    for path in sorted((run.path / "samples").glob("*.png"), reverse=True)[:TRIES]:
        with suppress(OSError, ValueError):
            if side <= MAX_SIDE and path.resolve().is_relative_to(root):  # a link may lead to anybody's
                originals, pictures = read_sheet(path, side)
                errors = [
                    np.square(a / 255 - b / 255).mean() for a, b in zip(originals, pictures, strict=True)
                ]
                names = tuple(f"image {number}" for number in range(1, 1 + len(errors)))
                return Reconstructions(int(path.stem), names, originals, pictures, np.array(errors))
    return None


def make_gallery(runs: Sequence[Run], found: Mapping[Path, Reconstructions]) -> Gallery | None:
    """Of each loss the first run that saw the same images as the first of all. None without any.

    runs: in order, those of most interest first.
    """
    shown = [run for run in runs if run.path in found and len(found[run.path].errors)]
    if not shown:
        return None
    first = found[shown[0].path]
    chosen: dict[str, Run] = {}
    for run in shown:
        if np.array_equal(found[run.path].originals, first.originals):
            chosen.setdefault(run.loss, run)
    columns = tuple(chosen[loss] for loss in LOSSES if loss in chosen)
    of_loss = [found[run.path] for run in columns]
    errors = np.stack([each.errors for each in of_loss])
    groups = {
        kind: tuple(
            Row(
                PurePosixPath(first.names[place]).stem,
                np.stack([first.originals[place], *(each.pictures[place] for each in of_loss)]),
                errors[:, place],
            )
            for place in places
        )
        for kind, places in pick(errors.mean(axis=0)).items()
    }
    return Gallery(columns, tuple(each.iteration for each in of_loss), groups, len(first.names))


def pick(errors: np.ndarray) -> dict[str, list[int]]:
    """Places of the best, middle and worst of these (N,), each group from best to worst.

    If there are too few for three groups, all of them are in one, "all".
    """
    ranked = [int(place) for place in np.argsort(errors, kind="stable")]
    if len(ranked) <= 3 * SHOWN:
        return {"all": ranked}
    middle = (len(ranked) - SHOWN) // 2
    return {
        "best": ranked[:SHOWN],
        "median": ranked[middle : middle + SHOWN],
        "worst": ranked[-SHOWN:],
    }


def _held_out(
    run: Run, data: str | None, device: torch.device, loaded: dict[tuple[object, ...], HeldOut]
) -> HeldOut:
    """The run's held-out images, loaded once for all runs on the same ones. Raises FastaeError."""
    config, manifest = run.config, RunFolder(run.path).manifest()
    key = (manifest.fingerprint, config.crop, config.image_size, config.antialias, config.eval_images)
    if key not in loaded:
        loaded[key] = _load(run, manifest, data, device)
    return loaded[key]


def _load(run: Run, manifest: Manifest, data: str | None, device: torch.device) -> HeldOut:
    config = run.config
    if data is None and not os.environ.get(VARIABLE) and len(manifest.sizes) != faces.COUNT:
        where = run.text("data", "folder")
        raise FastaeError(f"name the folder of the images with --data DIR (config.json names {where!r})")
    folder, _ = open_source(data, config.crop, manifest=manifest)
    paths = spread(folder.held_out, config.eval_images)
    size = len(paths) * 3 * 4 * config.image_size**2
    if config.image_size > MAX_SIDE or size > MAX_SET:
        raise FastaeError(
            f"{len(paths):,} images of {config.image_size} pixels take {size / 1e9:,.1f} GB: too many to read"
        )
    crop_resize = CropResize(config.crop or folder.side, config.image_size, config.antialias)
    names = tuple(name_below(folder.root, path) for path in paths)
    return HeldOut(names, load_images(paths, crop_resize, device))


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """In [0, 1] -> uint8; what is not finite is black."""
    return (np.nan_to_num(images) * 255).round().clip(0, 255).astype(np.uint8)
