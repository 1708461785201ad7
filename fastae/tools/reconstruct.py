"""`fastae reconstruct`: applies a run's model to a user's own images.

It writes a folder with a PNG per image, the original beside its reconstruction, and `sheet.png`, a contact
sheet of the first images, and prints each image's error. Images are cropped and resized as in the run's
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastae.data.loaders.crop_resize import CropResize
from fastae.device.apply import use_device
from fastae.device.choose import choose_device
from fastae.errors import FastaeError
from fastae.experiment.losses import squared_error
from fastae.experiment.metrics import loss_index, psnr
from fastae.runs.loaded_model import load_model
from fastae.tools.images import UnusableImage, find_images, load_image
from fastae.utils.console import log
from fastae.utils.files import require_new_folder
from fastae.utils.paths import expand_home
from fastae.utils.pictures import pairs, save_png, side_by_side

BATCH = 32
SHEET_IMAGES = 96
"""The most images of the contact sheet: twelve rows of eight originals, over their reconstructions."""


class Result(NamedTuple):
    """An image and its reconstruction, float32 (3, S, S) on the CPU."""

    path: str
    original: Tensor
    reconstruction: Tensor

    error: float
    """The mean squared error."""


def reconstruct_files(run: Path, images: Sequence[str], out: Path, device: str) -> int:
    """Reconstructs images.

    Args:
        run: the run's folder.
        images: files, or folders of images.
        out: the new folder for the pictures.
        device: the device of the model.

    Returns:
        The exit code: 1 if some images were skipped, else 0.

    Raises:
        FastaeError: no image can be used, an argument is wrong, or a file cannot be written.
    """
    out = expand_home(out)
    require_new_folder(out, "--out")
    loaded = load_model(run, use_device(choose_device(device)))
    config = loaded.config
    crop_resize = CropResize(config.crop, config.image_size, config.antialias)
    log(f"run       {run}: {config.loss}, iteration {loaded.iteration:,}")
    log(f"images    {crop_resize.in_words()}, as in training")
    given = find_images(list(map(expand_home, images)))
    try:
        used = _write_pictures(_reconstruct(loaded.model, given, crop_resize), out)
    except OSError as error:  # a fault of an image is an UnusableImage
        raise FastaeError(f"cannot write {str(error.filename or out)!r}: {error.strerror or error}") from None
    if not used:
        raise FastaeError(f"none of the {len(given):,} images can be used: {str(out)!r} was not made")
    if skipped := len(given) - used:
        log(f"skipped   {skipped:,} of {len(given):,} images, listed above", "yellow")
    return 1 if skipped else 0


def _reconstruct(model: nn.Module, paths: Sequence[str], crop_resize: CropResize) -> Iterator[Result]:
    """Yields the results of the usable images in order. The others are logged."""
    device = next(model.parameters()).device
    for start in range(0, len(paths), BATCH):
        used, loaded = [], []
        for path in paths[start : start + BATCH]:
            try:
                loaded.append(load_image(path, crop_resize))
                used.append(path)
            except UnusableImage as reason:
                log(f"skipped   {path}: {reason}")
        if used:
            originals = torch.stack(loaded)
            with torch.inference_mode():
                images = model(originals.to(device)).cpu()
            errors = squared_error(images, originals).mean((1, 2, 3)).tolist()
            yield from map(Result, used, originals, images, errors)


def _write_pictures(results: Iterable[Result], out: Path) -> int:
    """Writes a PNG and logs a line per image, and writes the contact sheet; returns the number of images."""
    errors: list[float] = []
    shown: list[tuple[Tensor, Tensor]] = []
    for result in results:
        if not errors:
            out.mkdir(parents=True, exist_ok=True)
            log(f"{'loss_index':>12}  {'PSNR':>8}  image -> {out}/")
        picture = out / picture_name(len(errors), result.path)
        save_png(side_by_side(result.original, result.reconstruction), picture)
        log(f"{_figures(result.error)}  {result.path} -> {picture.name}")
        errors.append(result.error)
        if len(shown) < SHEET_IMAGES:
            shown.append((result.original, result.reconstruction))
    if errors:
        log(f"{_figures(sum(errors) / len(errors))}  mean of {len(errors):,} (PSNR of the mean error)")
        originals, reconstructions = map(torch.stack, zip(*shown, strict=True))
        save_png(pairs(originals, reconstructions), out / "sheet.png")
        log(f"sheet     {out}/sheet.png: {len(shown):,} originals over their reconstructions")
    return len(errors)


def picture_name(row: int, path: str) -> str:
    """Returns a file name such as '0007-face.png', unique by its number and without control characters."""
    stem = "".join(character if character.isprintable() else "_" for character in Path(path).stem)
    return f"{row:04d}-{stem[:50]}.png"  # a name may have 255 bytes, and a character may have four


def _figures(error: float) -> str:
    """Returns a mean squared error as loss_index and PSNR."""
    return f"{loss_index(error):>12,.0f}  {psnr(error):5.1f} dB"
