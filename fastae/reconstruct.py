"""`fastae reconstruct`: a run's trained weights on a user's own images.

Files in; out comes a folder with one PNG an image, original beside reconstruction, and `sheet.png`, a
contact sheet of the first of them; the error of each is printed. The codes between encoder and decoder
can be kept as well. Images are cut out and resized as the run's training did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastae.console import printable, say
from fastae.data.geometry import Geometry
from fastae.device import choose_device
from fastae.errors import FastaeError
from fastae.files import atomic_write, require_new_folder, require_place, write_json
from fastae.images import UnusableImage, find_images, load_image
from fastae.losses import loss_index, psnr, squared_error
from fastae.picture import pairs, save_png, side_by_side
from fastae.trained import LoadedModel, load_model

BATCH = 32
NAMES_SUFFIX = ".images.json"
SHEET = "sheet.png"
SHEET_IMAGES = 96
"""Of more images than these the sheet shows the first: twelve rows of eight, each row twice."""

NAME_LENGTH = 50
"""Characters of an image's name that its PNG keeps: four bytes each at most, and a name may have 255."""


@dataclass
class Done:
    """What has been made: rows of `paths`, `errors` (mean squared) and `codes` (latent,) belong together.

    left_out: how many files could not be used. shown: originals and reconstructions for the sheet.
    """

    paths: list[str] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)
    shown: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    left_out: int = 0


def reconstruct_files(run: Path, places: Sequence[str], out: Path, latent: Path | None, device: str) -> int:
    """Reconstructs every image in `places` (files and folders); returns the exit code.

    0; or 1 where some could not be used, each named in a line. Raises FastaeError where none could, for
    a wrong `run`, `out` or `latent`, and where something cannot be written.
    """
    require_new_folder(out, "--out")
    if latent:
        _require_array_file(latent)
    trained = load_model(run, choose_device(device))
    config = trained.config
    geometry = Geometry(config.crop, config.image_size, config.antialias)
    say(f"run       {printable(str(run))}: {config.loss}, iteration {trained.iteration:,}")
    say(f"images    {geometry.in_words()}, as in training")
    paths = find_images(places)
    done = Done()
    try:
        for batch in _batches(_usable(paths, geometry, done)):
            _reconstruct(trained, batch, out, done)
        if not done.paths:
            raise FastaeError(f"no usable image among the {len(paths):,} given, so there is no {str(out)!r}")
        _conclude(done, len(paths), out, latent)
    except OSError as error:  # what is wrong with an image is an UnusableImage
        raise FastaeError(f"cannot write {str(error.filename or out)!r}: {error.strerror or error}") from None
    return 1 if done.left_out else 0


def _require_array_file(path: Path) -> None:
    if path.suffix != ".npy":
        raise FastaeError(
            f"--latent {str(path)!r} must be named *.npy; the images' names go to *{NAMES_SUFFIX}"
        )
    if path.is_dir():
        raise FastaeError(f"--latent {str(path)!r} is a folder: name a file")
    require_place(path.parent, "--latent")


def _usable(paths: Sequence[str], geometry: Geometry, done: Done) -> Iterator[tuple[str, Tensor]]:
    """Each file that can be used, with its pixels; a line for each other."""
    for path in paths:
        try:
            yield path, load_image(path, geometry)
        except UnusableImage as reason:
            done.left_out += 1
            say(f"left out  {printable(path)} {reason}")


def _batches(images: Iterator[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    batch: list[tuple[str, Tensor]] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _reconstruct(trained: LoadedModel, batch: list[tuple[str, Tensor]], out: Path, done: Done) -> None:
    """One batch through the model: a PNG and a line each."""
    device = next(trained.model.parameters()).device
    images = torch.stack([image for _, image in batch]).to(device)
    with torch.inference_mode():
        codes = trained.model.encoder(images)
        reconstructions = trained.model.decoder(codes)
    errors = squared_error(reconstructions, images).mean((1, 2, 3)).tolist()
    if not done.paths:
        out.mkdir(parents=True, exist_ok=True)
        say(f"{'loss_index':>12}  {'PSNR':>8}  image -> {printable(str(out))}/")
    for (path, _), original, reconstruction, error in zip(
        batch, images.cpu(), reconstructions.cpu(), errors, strict=True
    ):
        picture = out / picture_name(len(done.paths), path)
        save_png(side_by_side(original, reconstruction), picture)
        say(f"{_figures(error)}  {printable(path)} -> {picture.name}")
        done.paths.append(path)
        if len(done.shown) < SHEET_IMAGES:
            done.shown.append((original, reconstruction))
    done.errors += errors
    done.codes += list(codes.cpu().numpy())


def picture_name(row: int, path: str) -> str:
    """'0007-face.png': unique by the row of the image's code, and harmless whatever the file is called."""
    stem = "".join(character if character.isprintable() else "_" for character in Path(path).stem)
    return f"{row:04d}-{stem[:NAME_LENGTH]}.png"


def _figures(error: float) -> str:
    return f"{loss_index(error):>12,.0f}  {psnr(error):5.1f} dB"


def _conclude(done: Done, given: int, out: Path, latent: Path | None) -> None:
    """The totals, the contact sheet and the codes."""
    count = len(done.paths)
    say(f"{_figures(sum(done.errors) / count)}  all {count:,} together (PSNR of the mean error)")
    originals, reconstructions = (torch.stack(list(kind)) for kind in zip(*done.shown, strict=True))
    save_png(pairs(originals, reconstructions), out / SHEET)
    part = "" if len(done.shown) == count else f", the first {len(done.shown)} images"
    say(f"sheet     {printable(str(out / SHEET))}: originals over their reconstructions{part}")
    if latent:
        codes, names = np.stack(done.codes), latent.with_suffix(NAMES_SUFFIX)
        latent.parent.mkdir(parents=True, exist_ok=True)
        write_json(names, done.paths)
        with atomic_write(latent) as file:
            np.save(file, codes)
        shape = f"float32 {codes.shape}, rows named in {printable(names.name)}"
        say(f"codes     {printable(str(latent))}: {shape}")
    if done.left_out:
        say(f"left out  {done.left_out:,} of {given:,}, named above")
