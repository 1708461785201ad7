"""`fastae reconstruct`: a run's model on a user's own images.

Files in; out comes a folder with one PNG per image, original beside reconstruction, and `sheet.png`, a
contact sheet of the first of them; the error of each is printed. The codes between encoder and decoder can
be saved, too. Images are cropped and resized as in the run's training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.data.crop_resize import CropResize
from fastae.errors import FastaeError
from fastae.losses import loss_index, psnr, squared_error
from fastae.model import AutoEncoder
from fastae.runs.loaded_model import load_model
from fastae.tools.images import UnusableImage, find_images, load_image
from fastae.utils.console import log, printable
from fastae.utils.device import choose_device
from fastae.utils.files import atomic_write, require_new_folder, require_place, write_json
from fastae.utils.pictures import pairs, save_png, side_by_side

BATCH = 32
NAMES_SUFFIX = ".images.json"
SHEET_IMAGES = 96
"""The most that the contact sheet shows: twelve rows of eight, each row twice."""

Row = tuple[str, Tensor, Tensor, Tensor, float]
"""Path, original and reconstruction (3, S, S), code (latent,), mean squared error; float32 on the CPU."""


def reconstruct_files(
    run: Path, places: Sequence[str], out: Path, codes_file: Path | None, device: str
) -> int:
    """Reconstructs every image in `places` (files and folders); returns the exit code.

    0; or 1 if some could not be used, each named in a line. Raises FastaeError if none could, for a wrong
    `run`, `out` or `codes_file`, and if something cannot be written.
    """
    require_new_folder(out, "--out")
    if codes_file:
        _require_codes_file(codes_file)
    loaded = load_model(run, choose_device(device))
    config = loaded.config
    crop_resize = CropResize(config.crop, config.image_size, config.antialias)
    log(f"run       {printable(str(run))}: {config.loss}, iteration {loaded.iteration:,}")
    log(f"images    {crop_resize.in_words()}, as in training")
    given = find_images(places)
    try:
        paths, codes = _write_pictures(_reconstructions(loaded.model, given, crop_resize), out)
        if not paths:
            raise FastaeError(f"no usable image among the {len(given):,} given: {str(out)!r} was not made")
        if codes_file:
            _write_codes(codes_file, paths, codes)
    except OSError as error:  # what is wrong with an image is an UnusableImage
        raise FastaeError(f"cannot write {str(error.filename or out)!r}: {error.strerror or error}") from None
    skipped = len(given) - len(paths)
    if skipped:
        log(f"skipped   {skipped:,} of {len(given):,}, named above")
    return 1 if skipped else 0


def _require_codes_file(path: Path) -> None:
    if path.suffix != ".npy" or path.is_dir():
        raise FastaeError(f"--codes {str(path)!r} must be a file named *.npy; *{NAMES_SUFFIX} goes beside it")
    require_place(path.parent, "--codes")


def _reconstructions(model: AutoEncoder, paths: Sequence[str], crop_resize: CropResize) -> Iterator[Row]:
    """The usable images in order; each other one is logged."""
    device = next(model.parameters()).device
    for start in range(0, len(paths), BATCH):
        usable = {}
        for row, path in enumerate(paths[start : start + BATCH], start):
            try:
                usable[row] = load_image(path, crop_resize)
            except UnusableImage as reason:
                log(f"skipped   {printable(path)}: {reason}")
        if usable:
            originals = torch.stack(list(usable.values()))
            with torch.inference_mode():
                codes = model.encoder(originals.to(device))
                images = model.decoder(codes).cpu()
            errors = squared_error(images, originals).mean((1, 2, 3)).tolist()
            yield from zip(
                (paths[row] for row in usable), originals, images, codes.cpu(), errors, strict=True
            )


def _write_pictures(rows: Iterable[Row], out: Path) -> tuple[list[str], list[np.ndarray]]:
    """A PNG and a line per image, and the contact sheet; returns the paths and codes of all."""
    paths: list[str] = []
    codes: list[np.ndarray] = []
    errors: list[float] = []
    shown: list[tuple[Tensor, Tensor]] = []
    for path, original, reconstruction, code, error in rows:
        if not paths:
            out.mkdir(parents=True, exist_ok=True)
            log(f"{'loss_index':>12}  {'PSNR':>8}  image -> {printable(str(out))}/")
        picture = out / picture_name(len(paths), path)
        save_png(side_by_side(original, reconstruction), picture)
        log(f"{_figures(error)}  {printable(path)} -> {picture.name}")
        paths.append(path)
        codes.append(code.numpy())
        errors.append(error)
        if len(shown) < SHEET_IMAGES:
            shown.append((original, reconstruction))
    if paths:
        log(f"{_figures(sum(errors) / len(errors))}  mean of {len(errors):,} (PSNR of the mean error)")
        sheet = out / "sheet.png"
        originals, reconstructions = map(torch.stack, zip(*shown, strict=True))
        save_png(pairs(originals, reconstructions), sheet)
        log(f"sheet     {printable(str(sheet))}: {len(shown):,} originals over their reconstructions")
    return paths, codes


def picture_name(row: int, path: str) -> str:
    """'0007-face.png': unique by the row of the image's code, and harmless whatever the file is called."""
    stem = "".join(character if character.isprintable() else "_" for character in Path(path).stem)
    return f"{row:04d}-{stem[:50]}.png"  # a name may have 255 bytes, a character four


def _figures(error: float) -> str:
    return f"{loss_index(error):>12,.0f}  {psnr(error):5.1f} dB"


def _write_codes(file: Path, paths: list[str], codes: list[np.ndarray]) -> None:
    rows, names = np.stack(codes), file.with_suffix(NAMES_SUFFIX)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(names, paths)
    with atomic_write(file) as content:
        np.save(content, rows)
    log(f"codes     {printable(str(file))}: float32 {rows.shape}, rows named in {printable(names.name)}")
