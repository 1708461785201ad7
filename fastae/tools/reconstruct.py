"""`fastae reconstruct`: applies a run's model to a user's own images.

It writes a folder with a PNG per image, the original beside its reconstruction, and `sheet.png`, a contact
sheet of the first images, and prints each image's error. Images are checked, decoded, cropped and resized as
in the run's training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastae.data.files.check import check_files, check_folder
from fastae.data.files.faults import count_faults
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.pixel_ops import to_batch
from fastae.device.apply import use_device
from fastae.device.choose import choose_device
from fastae.errors import FastaeError
from fastae.experiment.losses import squared_error
from fastae.experiment.metrics import loss_index, psnr
from fastae.runs.loaded_model import load_model
from fastae.utils.console import log
from fastae.utils.files import require_new_folder
from fastae.utils.pictures import pairs, save_png, side_by_side

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
        images: files, or folders of images. An image that is named twice is used once.
        out: the new folder for the pictures.
        device: the device of the model.

    Returns:
        The exit code: 1 if some images were skipped, else 0.

    Raises:
        FastaeError: no image can be used, an argument is wrong, or a file cannot be written.
    """
    require_new_folder(out, "--out")
    loaded = load_model(run, use_device(choose_device(device)))
    config = loaded.config
    crop_resize = CropResize(config.crop, config.image_size, config.antialias)
    log(f"run       {run}: {config.loss}, iteration {loaded.iteration:,}")
    log(f"images    {crop_resize.in_words()}, as in training")
    checks = [
        check_folder(path, crop=config.crop, records=None)
        if os.path.isdir(path)  # noqa: PTH112 (False without permission)
        else check_files([path], config.crop)
        for path in images
    ]
    skipped = [*dict.fromkeys(file for check in checks for file in check.unusable)]
    usable = dict.fromkeys(path for check in checks for path in check.usable)
    files = ImageFiles([*usable], on_replaced=lambda file, _: skipped.append(file))
    try:
        used = _write_pictures(_reconstruct(loaded.model, files, crop_resize), out) if files else 0
    except OSError as error:
        raise FastaeError(f"cannot write {str(error.filename or out)!r}: {error.strerror or error}") from None
    for file in skipped:
        log(f"skipped   {file.path}: {file.fault.value}")
    faults = count_faults(skipped)
    if not used:
        raise FastaeError(f"none of the images can be used ({faults}): {str(out)!r} was not made")
    if skipped:
        log(f"skipped   {len(skipped):,} of {len(skipped) + used:,} images: {faults}", "yellow")
    return 1 if skipped else 0


def _reconstruct(model: nn.Module, files: ImageFiles, crop_resize: CropResize) -> Iterator[Result]:
    """Yields the results of the images in order, without those that do not decode."""
    device = next(model.parameters()).device
    start = 0
    for originals in map(to_batch, open_decoder(crop_resize, device).decode(files)):
        with torch.inference_mode():
            images = model(originals)
        errors = squared_error(images, originals).mean((1, 2, 3)).tolist()
        paths = files.own[start : start + len(originals)]
        results = map(Result, paths, originals.cpu(), images.cpu(), errors)
        yield from (result for index, result in enumerate(results, start) if index not in files.bad)
        start += len(originals)


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
