"""Runs each model on its held-out images in float32: reconstructions, their errors, PSNR and SSIM.

The images are read from the folder that the user names. The folder that config.json names is used only under
the conditions of `known_folder`, since anybody may have written config.json, and the page shows the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from fastae.data import CropResize, load_images
from fastae.data.faces import synthetic as faces
from fastae.data.files.check import FileFault, was_checked
from fastae.data.files.folder import name_below
from fastae.data.files.manifest import DIGESTS, Manifest
from fastae.data.source import VARIABLE, open_source
from fastae.device.choose import Precision
from fastae.errors import FastaeError
from fastae.losses import psnr, squared_error
from fastae.report.groups import Group
from fastae.report.runs import Run, as_text
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import load_model
from fastae.training.evaluate import reconstruct
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.paths import user_path
from fastae.utils.sample import evenly_spaced

FLOAT32 = Precision(None, "float32")

MAX_SIDE, MAX_SET = 1024, 1 << 32
"""The most pixels of a side, and bytes of the held-out images of a data set: config.json may claim any."""

MAX_BATCH = 64 * 128 * 128
"""The number of pixels that go through the model at once."""

SHOWN = 3
"""The number of images in each of the groups best, median and worst."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out images of a run."""

    names: tuple[str, ...]
    """The files' names, relative to the data folder."""

    images: Tensor
    """float32 (N, 3, S, S) in [0, 1]."""


@dataclass(frozen=True)
class Measurement:
    """The quality of a run's model on its held-out images."""

    iteration: int
    """The iteration of the weights."""

    held_out: HeldOut

    reconstructions: np.ndarray
    """uint8 (N, S, S, 3)."""

    errors: np.ndarray
    """The mean squared error of each image, (N,)."""

    psnr: float
    """The mean PSNR of the images in dB, for a peak of 1."""

    ssim: float
    """The mean SSIM of the images, in [-1, 1]."""


@dataclass(frozen=True)
class Row:
    """One held-out image and its reconstructions by L models."""

    name: str

    pictures: np.ndarray
    """The original and its reconstructions, uint8 (1 + L, S, S, 3)."""

    errors: np.ndarray
    """The mean squared error of each reconstruction, (L,)."""


@dataclass(frozen=True)
class Gallery:
    """The reconstructions that the page shows."""

    columns: tuple[str, ...]
    """The labels of the groups of runs. A group is represented by its first run."""

    iterations: tuple[int, ...]
    """The iteration of each column's weights."""

    groups: Mapping[str, Sequence[Row]]
    """"best", "median" and "worst", or "all" -> rows."""

    count: int
    """The number of held-out images, from which the rows are chosen."""


def measure(
    runs: Iterable[Run], device: torch.device, data: str | None = None
) -> tuple[dict[Path, Measurement], list[str]]:
    """Measures the quality of each run's model.

    Args:
        runs: the runs.
        device: the device of the models.
        data: the folder of the runs' images. Default: `known_folder`, else $FASTAE_DATA, else the synthetic
            faces.

    Returns:
        Measurements by run folder, and warnings about runs without one.
    """
    found: dict[Path, Measurement] = {}
    opened: dict[tuple[object, ...], HeldOut] = {}
    warnings: list[str] = []
    for run in runs:
        try:
            loaded = load_model(run.path, device)
            config, manifest = run.config, RunFolder(run.path).manifest()
            key = (manifest.fingerprint, config.crop, config.image_size, config.antialias, config.eval_images)
            if key not in opened:
                opened[key] = open_held_out(run, manifest, data, device, warnings.append)
            chunks = opened[key].images.split(max(1, MAX_BATCH // config.image_size**2))
            reconstructions = torch.cat([reconstruct(loaded.model, chunk, FLOAT32) for chunk in chunks])
            found[run.path] = judge(opened[key], reconstructions, loaded.iteration)
        except (FastaeError, OSError) as error:
            warnings.append(f"no reconstructions, PSNR and SSIM: {error}")
    return found, list(dict.fromkeys(warnings))


def open_held_out(
    run: Run, manifest: Manifest, data: str | None, device: torch.device, warn: Callable[[str], None]
) -> HeldOut:
    """Loads the images that the run was evaluated on. Undecodable files are replaced as in training.

    Raises FastaeError if the images are not found, differ from the run's, or are too large.
    """
    config = run.config
    data = data or known_folder(run, manifest)
    if data is None and not os.environ.get(VARIABLE) and len(manifest.sizes) != faces.COUNT:
        where = as_text(run.description.data.folder)
        raise FastaeError(f"give the folder of the images by --data DIR (config.json names {where!r})")
    folder, _ = open_source(data, config.crop, manifest=manifest)
    indices = evenly_spaced(range(len(folder.held_out)), config.eval_images)
    size = len(indices) * 3 * 4 * config.image_size**2
    if config.image_size > MAX_SIDE or size > MAX_SET:
        raise FastaeError(
            f"{len(indices):,} images of {config.image_size} pixels take {size / 1e9:,.1f} GB: too much"
        )
    replaced: dict[str, str] = {}

    def on_replaced(bad: FileFault, substitute: str) -> None:
        replaced[bad.path] = substitute
        warn(f"{bad.path}: {bad.fault.value}; replaced by {substitute}")

    crop_resize = CropResize(config.crop or folder.side, config.image_size, config.antialias)
    images = load_images(folder.held_out, crop_resize, device, indices=indices, on_replaced=on_replaced)
    paths = [folder.held_out[index] for index in indices]
    while replaced.keys() & set(paths):  # a replacement may have been replaced too
        paths = [replaced.get(path, path) for path in paths]
    return HeldOut(tuple(name_below(folder.root, path) for path in paths), images)


def known_folder(run: Run, manifest: Manifest) -> str | None:
    """The folder of images that config.json names, if it may be opened; otherwise None.

    A folder may be opened only if fastae has read it before, according to this user's cache. So a config.json
    from elsewhere cannot cause a network folder to be mounted or a disk to be searched. Since the page shows
    the images, the author of the manifest must also know the files: the manifest must contain all digests,
    which `open_folder` compares, like names and sizes.
    """
    named = run.description.data.folder
    digested = evenly_spaced([*manifest.train, *manifest.held_out], DIGESTS)
    if named is None or not set(digested) <= manifest.digests.keys():
        return None
    try:
        user_path(named, "data")
    except FastaeError:
        return None
    # fastae writes absolute paths without "..", which behind a link does not lead where abspath says.
    is_known = named == os.path.abspath(named) and was_checked(named, check_records(cache_folder()))  # noqa: PTH100
    return named if is_known and Path(named).is_dir() else None


def judge(held_out: HeldOut, reconstructions: Tensor, iteration: int) -> Measurement:
    """Measures reconstructions (N, 3, S, S) in [0, 1], on the device of the images."""
    errors = squared_error(reconstructions, held_out.images).mean(dim=(1, 2, 3)).double().cpu().numpy()
    pairs = zip(*map(_channels_last, (held_out.images, reconstructions)), strict=True)
    return Measurement(
        iteration,
        held_out,
        to_bytes(reconstructions),
        errors,
        psnr=float(np.mean([psnr(error) for error in errors])),
        ssim=float(np.mean([ssim(*pair) for pair in pairs])),
    )


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """The structural similarity of two images (S, S, 3) in [0, 1], as defined by Wang et al. (2004).

    The window is Gaussian with sigma 1.5 (11 pixels). The result is the mean over the channels.
    """
    return float(
        structural_similarity(
            one, other, data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def make_gallery(groups: Sequence[Group], found: Mapping[Path, Measurement]) -> Gallery | None:
    """Makes the gallery, with the first run of each group that has the gallery's held-out images.

    These images are those of the first measured run; `groups` are in order of interest. Returns None if no
    run was measured.
    """
    measured = [[found[run.path] for run in group.runs if run.path in found] for group in groups]
    held_out = next((each.held_out for group in measured for each in group), None)
    if held_out is None:
        return None
    chosen = {
        group.label: alike[0]
        for group, each in zip(groups, measured, strict=True)
        if (alike := [one for one in each if one.held_out is held_out])
    }
    shown = list(chosen.values())
    errors = np.stack([each.errors for each in shown])
    pictures = np.stack([to_bytes(held_out.images), *(each.reconstructions for each in shown)])
    groups_of_rows = {
        kind: [
            Row(PurePosixPath(held_out.names[index]).stem, pictures[:, index], errors[:, index])
            for index in indices
        ]
        for kind, indices in pick(errors.mean(axis=0)).items()
    }
    return Gallery(
        tuple(chosen), tuple(each.iteration for each in shown), groups_of_rows, len(held_out.names)
    )


def pick(errors: np.ndarray) -> dict[str, list[int]]:
    """The indices of the best, median and worst of the errors (N,), each group from best to worst.

    If there are too few for three groups, all are in one group, "all".
    """
    ranked = np.argsort(errors, kind="stable").tolist()
    if len(ranked) <= 3 * SHOWN:
        return {"all": ranked}
    middle = (len(ranked) - SHOWN) // 2
    return {"best": ranked[:SHOWN], "median": ranked[middle : middle + SHOWN], "worst": ranked[-SHOWN:]}


def to_bytes(images: Tensor) -> np.ndarray:
    """(N, 3, S, S) in [0, 1] -> uint8 (N, S, S, 3). NaN becomes black."""
    return (np.nan_to_num(_channels_last(images)) * 255).round().astype(np.uint8)


def _channels_last(images: Tensor) -> np.ndarray:
    return images.float().permute(0, 2, 3, 1).cpu().numpy()
