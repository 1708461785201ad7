"""The runs' reconstructions of their held-out images, computed from their checkpoints: errors, PSNR, SSIM.

The images are the ones that training evaluated on. Checkpoints are run in float32, whatever they were trained
in. Each checkpoint is read once, for its weights and for its optimiser's state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from fastae import checkpoint
from fastae.data import Geometry, faces, load_images
from fastae.data.folder import name_below
from fastae.data.listing import Listing
from fastae.data.source import VARIABLE, open_source
from fastae.device import Precision
from fastae.errors import FastaeError
from fastae.evaluate import reconstruct
from fastae.losses import loss_index, psnr, squared_error
from fastae.report.adam import EpsReach, eps_reach
from fastae.report.gather import Run
from fastae.run import RunFolder
from fastae.session import spread
from fastae.trained import open_trained

FLOAT32 = Precision(None, "float32")

LARGEST_SIDE = 2048
LARGEST_SET = 1 << 32
"""Pixels, and bytes of one data set's held-out images as float32: config.json may claim any size."""

LARGEST_BATCH = 64 * 128 * 128
"""Pixels, of one channel, that go through the model at once."""

AGREEMENT = 0.05
"""How far the error computed here may be from the logged one: mixed precision and other decoders differ."""


@dataclass(frozen=True)
class HeldOut:
    """names: of the files, without the folder's. images: float32 (N, 3, S, S) in [0, 1]."""

    names: tuple[str, ...]
    images: Tensor
    note: str = ""


@dataclass(frozen=True)
class Quality:
    """Of one run's checkpoint at `iteration`, for each of the N held-out images, (N,) each.

    errors: mean squared error. psnr: decibels, of a peak of 1. ssim: in [-1, 1].
    pictures: uint8 (N, S, S, 3).
    """

    iteration: int
    errors: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    pictures: np.ndarray

    @property
    def loss_index(self) -> float:
        return loss_index(float(self.errors.mean()))


@dataclass
class Measured:
    """What was computed, by a run's folder; what could not be is told of in `notes`.

    held_out: the images that a run was measured on; runs of one data set share them.
    """

    held_out: dict[Path, HeldOut] = field(default_factory=dict)
    quality: dict[Path, Quality] = field(default_factory=dict)
    eps: dict[Path, EpsReach] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text and text not in self.notes:
            self.notes.append(text)


def measure(runs: Iterable[Run], device: torch.device, data: str | None = None) -> Measured:
    """Reads every checkpoint and runs the held-out images through it.

    data: the user's folder of the runs' images; None for $FASTAE_DATA, or else the synthetic faces. A folder
    that config.json names is not opened: anybody may have written it, and the page shows what is read.
    """
    measured = Measured()
    sets: dict[tuple[object, ...], HeldOut | FastaeError] = {}
    without: dict[str, list[str]] = {}
    for run in runs:
        try:
            state = checkpoint.newest(RunFolder(run.path).checkpoints, measured.note)
            if state and (reach := eps_reach(run, state["optimiser"])):
                measured.eps[run.path] = reach
            del state  # half a gigabyte
            trained = open_trained(run.path, device)
            held_out = _images_of(run, data, device, sets)
        except FastaeError as error:
            without.setdefault(str(error).replace(repr(str(run.path)), "its folder"), []).append(run.name)
            continue
        except OSError as error:
            without.setdefault(f"cannot be read, {error.strerror or error}", []).append(run.name)
            continue
        pixels = held_out.images.shape[-1] ** 2
        chunks = held_out.images.split(max(1, LARGEST_BATCH // pixels))
        reconstructions = torch.cat([reconstruct(trained.model, chunk, FLOAT32) for chunk in chunks])
        quality = compare_images(held_out.images, reconstructions, trained.iteration)
        measured.held_out[run.path], measured.quality[run.path] = held_out, quality
        measured.note(held_out.note)
        measured.note(_disagreement(run, quality))
    for reason, names in without.items():
        measured.note(f"no reconstructions, PSNR and SSIM of {', '.join(names)}: {reason}")
    return measured


def compare_images(images: Tensor, reconstructions: Tensor, iteration: int) -> Quality:
    """Both (N, 3, S, S) in [0, 1], on any device."""
    errors = squared_error(reconstructions, images).mean(dim=(1, 2, 3)).double().cpu().numpy()
    one, other = (_channels_last(each) for each in (images, reconstructions))
    return Quality(
        iteration=iteration,
        errors=errors,
        psnr=np.array([psnr(error) for error in errors]),
        ssim=np.array([ssim(*pair) for pair in zip(one, other, strict=True)]),
        pictures=as_bytes(reconstructions),
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


def as_bytes(images: Tensor) -> np.ndarray:
    """(N, 3, S, S) in [0, 1] -> uint8 (N, S, S, 3)."""
    return (_channels_last(images) * 255).round().clip(0, 255).astype(np.uint8)


def _channels_last(images: Tensor) -> np.ndarray:
    return images.float().permute(0, 2, 3, 1).cpu().numpy()


def _images_of(
    run: Run, data: str | None, device: torch.device, sets: dict[tuple[object, ...], HeldOut | FastaeError]
) -> HeldOut:
    """The run's held-out images, loaded once for all runs on the same ones. Raises FastaeError."""
    config, listing = run.config, RunFolder(run.path).began_with()
    key = (listing.fingerprint, config.crop, config.image_size, config.antialias, config.eval_images)
    if key not in sets:
        try:
            sets[key] = _load(run, listing, data, device)
        except FastaeError as error:
            sets[key] = error
    found = sets[key]
    if isinstance(found, FastaeError):
        raise found
    return found


def _load(run: Run, listing: Listing, data: str | None, device: torch.device) -> HeldOut:
    config = run.config
    if data is None and not os.environ.get(VARIABLE) and len(listing.sizes) != faces.COUNT:
        raise FastaeError("they need the images that it was trained on: name their folder with --data DIR")
    folder, _ = open_source(data, config.crop, began_with=listing)
    paths = spread(folder.held_out, config.eval_images)
    size = len(paths) * 3 * 4 * config.image_size**2
    if config.image_size > LARGEST_SIDE or size > LARGEST_SET:
        raise FastaeError(
            f"{len(paths):,} images of {config.image_size} pixels take {size / 1e9:,.1f} GB: too many to read"
        )
    geometry = Geometry(config.crop or folder.side, config.image_size, config.antialias)
    names = tuple(name_below(folder.root, path) for path in paths)
    lost = len(folder.skipped)
    note = f"{folder.root} has lost {lost:,} of the files that {run.name} began with: others replace them"
    return HeldOut(names, load_images(paths, geometry, device), note if lost else "")


def _disagreement(run: Run, quality: Quality) -> str:
    logged = run.held_out.at(quality.iteration)
    if not abs(quality.loss_index - logged) > AGREEMENT * logged:
        return ""
    return (
        f"{run.name}: its checkpoint gives a held-out error of {quality.loss_index:,.0f} here, and the run "
        f"logged {logged:,.0f} at iteration {quality.iteration:,}"
    )
