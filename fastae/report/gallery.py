"""The gallery: held-out images beside their reconstructions by one run of each loss, from its newest weights.

The images are read from the folder that the user names. The folder that config.json names is used only under
the conditions of `known_folder`, since anybody may have written config.json, and the page shows the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.data import CropResize, load_images
from fastae.data.faces import synthetic as faces
from fastae.data.files.check import was_checked
from fastae.data.files.faults import FileFault
from fastae.data.files.manifest import DIGESTS, Manifest
from fastae.data.source import VARIABLE, open_source
from fastae.device.choose import Precision
from fastae.errors import FastaeError
from fastae.experiment.losses import squared_error
from fastae.report.compare import Group
from fastae.report.runs import Run, as_text
from fastae.runs.folder import RunFolder
from fastae.runs.loaded_model import LoadedModel, load_model
from fastae.training.evaluate import reconstruct
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import track
from fastae.utils.pictures import encode_png, to_bytes
from fastae.utils.sample import evenly_spaced

FLOAT32 = Precision(None, "float32")

MAX_SIDE, MAX_SET = 1024, 1 << 32
"""The most pixels of a side, and bytes of a data set's held-out images. config.json may claim any number."""

MAX_BATCH = 64 * 128 * 128
"""The number of pixels that go through the model at once."""

SHOWN = 3
"""The number of images in each of the groups best, median and worst."""

PIXELS, GAP = 128, 2
"""The smallest side of a shown image, and the transparent pixels on its left and right."""


@dataclass(frozen=True)
class ModelColumn:
    """The reconstructions of the held-out images by one run's model."""

    label: str
    """The label of the group of runs that the run represents."""

    iteration: int
    """The iteration of the weights."""

    reconstructions: np.ndarray
    """uint8 (N, S, S, 3)."""

    errors: np.ndarray
    """The mean squared error of each image, (N,)."""


@dataclass(frozen=True)
class Gallery:
    """Held-out images and their reconstructions. The page shows some of them."""

    source: tuple[object, ...]
    """What determines the images: equal for runs that were evaluated on the same ones."""

    names: Sequence[str]
    """The files' names, without folders and suffixes."""

    images: Tensor
    """float32 (N, 3, S, S) in [0, 1]."""

    columns: list[ModelColumn] = field(default_factory=list)

    @property
    def groups(self) -> dict[str, list[int]]:
        """The groups that `pick` makes by the images' mean errors over the columns."""
        return pick(np.mean([column.errors for column in self.columns], axis=0))

    def png(self, *indices: int) -> bytes:
        """Returns a PNG with a row for each index: the image and its reconstructions."""
        chosen = list(indices)
        columns = [column.reconstructions[chosen] for column in self.columns]
        rows = np.stack([to_bytes(self.images[chosen]), *columns], axis=1)
        scale = -(-PIXELS // rows.shape[3])
        rows = rows.repeat(scale, axis=2).repeat(scale, axis=3)
        opaque = np.concatenate([rows, np.full_like(rows[..., :1], 255)], axis=-1)
        padded = np.pad(opaque, ((0, 0), (0, 0), (0, 0), (GAP, GAP), (0, 0)))
        count, across, height, width, channels = padded.shape
        return encode_png(padded.swapaxes(1, 2).reshape(count * height, across * width, channels))


def make_gallery(
    groups: Sequence[Group], device: torch.device, data: str | None = None
) -> tuple[Gallery | None, list[str]]:
    """Makes the gallery, with the first run of each group that can reconstruct the gallery's images.

    Args:
        groups: the groups of runs. The gallery has the images of the first run whose images are found.
        device: the device of the models.
        data: the folder of the images. Default: `known_folder`, else $FASTAE_DATA, else the synthetic faces.

    Returns:
        The gallery, or None if no run has weights and images; and warnings about runs that lack them.
    """
    gallery: Gallery | None = None
    warnings: list[str] = []
    others: dict[str, None] = {}
    for group in track(groups, "reconstructing"):
        for run in filter(_has_model, group.runs):
            try:
                manifest = RunFolder(run.path).read_manifest()
                if gallery and gallery.source != _source(run, manifest):
                    others[group.label] = None
                    continue
                loaded = load_model(run.path, device)
                gallery = gallery or open_gallery(run, manifest, data, device=device, warn=warnings.append)
            except (FastaeError, OSError) as error:
                warnings.append(f"no reconstructions: {error}")
                continue
            gallery.columns.append(_column(group.label, loaded, gallery.images))
            others.pop(group.label, None)
            break
    if others:
        warnings.append(
            f"no reconstructions by {', '.join(others)}: evaluated on other images than those shown, or with "
            "another --crop, --image-size, --antialias or --eval-images"
        )
    if bare := [group.label for group in groups if not any(map(_has_model, group.runs))]:
        warnings.append(f"no reconstructions by {', '.join(bare)}: no weights, or a model of a user's own")
    return gallery, list(dict.fromkeys(warnings))


def open_gallery(
    run: Run, manifest: Manifest, data: str | None, device: torch.device, warn: Callable[[str], None]
) -> Gallery:
    """Loads the images that the run was evaluated on. Undecodable files are replaced as in training.

    Raises FastaeError if the images are not found, differ from the run's, or are too large.
    """
    config = run.config
    data = data or known_folder(run, manifest)
    if data is None and not os.environ.get(VARIABLE) and len(manifest.sizes) != faces.FACES:
        where = as_text(run.description.data.folder)
        raise FastaeError(f"give the folder of the images by --data DIR; config.json names {where!r}")
    folder, _ = open_source(data, config.crop, manifest=manifest)
    indices = evenly_spaced(range(len(folder.held_out)), config.eval_images)
    size = len(indices) * 3 * 4 * config.image_size**2
    if config.image_size > MAX_SIDE or size > MAX_SET:
        raise FastaeError(
            f"{len(indices):,} images of {config.image_size} pixels take {size / 1e9:,.1f} GB: too much"
        )
    paths = [folder.held_out[index] for index in indices]

    def on_replaced(bad: FileFault, substitute: str) -> None:
        paths[:] = [substitute if path == bad.path else path for path in paths]
        warn(f"{bad.path}: {bad.fault.value}; replaced by {substitute}")

    crop_resize = CropResize(config.crop or folder.side, config.image_size, config.antialias)
    images = load_images(folder.held_out, crop_resize, device, indices=indices, on_replaced=on_replaced)
    return Gallery(_source(run, manifest), [Path(path).stem for path in paths], images)


def known_folder(run: Run, manifest: Manifest) -> str | None:
    """Returns the folder of images that config.json names, if it may be opened; otherwise None.

    A folder may be opened only if fastae has read it before, according to this user's cache. So a config.json
    from elsewhere cannot cause a network folder to be mounted or a disk to be searched. Since the page shows
    the images, the author of the manifest must also know the files: the manifest must contain all digests,
    which `open_folder` compares, like names and sizes. Unprintable names are never opened.
    """
    named = run.description.data.folder
    digested = evenly_spaced([*manifest.train, *manifest.held_out], DIGESTS)
    if named is None or not named.isprintable() or not set(digested) <= manifest.digests.keys():
        return None
    # fastae writes absolute paths without "..", which behind a link does not lead where abspath says.
    is_known = named == os.path.abspath(named) and was_checked(named, check_records(cache_folder()))  # noqa: PTH100
    return named if is_known and os.path.isdir(named) else None  # noqa: PTH112 (False without permission)


def _has_model(run: Run) -> bool:
    """Returns whether fastae knows the run's model, and its folder has weights or checkpoints."""
    folder = RunFolder(run.path)
    return not run.has_own_model and (folder.weights_file.exists() or folder.checkpoints.exists())


def _source(run: Run, manifest: Manifest) -> tuple[object, ...]:
    """Returns what determines the images that a run was evaluated on."""
    config = run.config
    return manifest.fingerprint, config.crop, config.image_size, config.antialias, config.eval_images


def _column(label: str, loaded: LoadedModel, images: Tensor) -> ModelColumn:
    """Reconstructs the images (N, 3, S, S) with a run's model."""
    chunks = images.split(max(1, MAX_BATCH // loaded.config.image_size**2))
    reconstructions = torch.cat([reconstruct(loaded.model, chunk, FLOAT32) for chunk in chunks])
    errors = squared_error(reconstructions, images).mean(dim=(1, 2, 3)).double().cpu().numpy()
    return ModelColumn(label, loaded.iteration, to_bytes(reconstructions), errors=errors)


def pick(errors: np.ndarray) -> dict[str, list[int]]:
    """Returns heading -> indices of the best, median and worst of the errors (N,), each from best to worst.

    If there are too few errors for three groups, all are in one group.
    """
    ranked = np.argsort(errors, kind="stable").tolist()
    if len(ranked) <= 3 * SHOWN:
        return {"From best to worst": ranked}
    middle = (len(ranked) - SHOWN) // 2
    return {"Best": ranked[:SHOWN], "Median": ranked[middle : middle + SHOWN], "Worst": ranked[-SHOWN:]}
