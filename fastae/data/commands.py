"""The commands `fastae check` and `fastae prepare`, which print counts, file names, and remedies."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from fastae.data.files.check import Check, check_folder
from fastae.data.files.faults import DECODER_FAULTS, USABLE, Fault, conversion
from fastae.data.files.folder import require_memory
from fastae.data.files.prepare import prepare_celeba
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.tuning import BATCH
from fastae.device.apply import use_device
from fastae.device.choose import choose_device
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import console, log
from fastae.utils.paths import shell_word

NAMES_SHOWN = 50


def check_and_report(folder: str, *, deep: bool, crop: int | None, as_json: bool) -> int:
    """Checks the images under `folder` and prints the result.

    Args:
        folder: the data folder.
        deep: whether to decode every file.
        crop: the smallest side of a usable image, in pixels.
        as_json: whether to print JSON.

    Returns:
        The exit code: 1 if a file cannot be used, else 0.
    """

    def find_faults(checked: Check) -> Iterable[Fault | None]:
        """Decodes the files by the decoder of `fastae train` on this machine."""
        require_memory(checked, crop, f"in {folder!r}")
        device = use_device(choose_device("auto"))
        return open_decoder(CropResize(crop), device).faults(checked.usable, together=BATCH)

    records = check_records(cache_folder())
    checked = check_folder(folder, crop=crop, records=records, find_faults=find_faults if deep else None)
    total = len(checked.usable) + len(checked.unusable)
    if as_json:
        faults = [
            {"path": file.path, "fault": file.fault.value, "usable": file.fault in USABLE}
            for file in checked.faults
        ]
        counts = {"files": total, "usable": len(checked.usable)}
        print(json.dumps({"folder": folder, **counts, "faults": faults}, indent=2))
    else:
        _log_check(folder, checked, total)
    return 1 if checked.unusable else 0


def _log_check(folder: str, checked: Check, total: int) -> None:
    """Logs the names of unusable files, and the number of files with each fault or peculiarity."""
    for file in checked.unusable[:NAMES_SHOWN]:
        log(f"{file.fault.value:28}  {file.path}")
    if len(checked.unusable) > NAMES_SHOWN:
        log(f"... and {len(checked.unusable) - NAMES_SHOWN:,} more: --json lists all")
    log(f"{folder}: {total:,} images{_sizes(checked)}")
    counts = Counter(file.fault for file in checked.faults)
    table = Table("", "files", "")
    for fault in filter(counts.get, Fault):
        table.add_row(fault.value, f"{counts[fault]:,}", _consequence(fault))
    table.add_row("usable", f"{len(checked.usable):,}", f"of {total:,}")
    console.print(table)
    if remedy := conversion(checked.faults):
        log(remedy)


def _sizes(checked: Check) -> str:
    """Returns ', 178x218 pixels', or the range of sizes; an empty text if no image is usable."""
    if not checked.shapes:
        return ""
    ends = (choose(checked.shapes, key=math.prod) for choose in (min, max))
    return f", {' to '.join(dict.fromkeys(f'{width}x{height}' for width, height in ends))} pixels"


def _consequence(fault: Fault) -> str:
    """Returns what training does with files that have this fault."""
    if fault in USABLE:
        return "decoded to RGB and used"
    # The quick check before training does not find these faults; decoding does.
    return "replaced in training" if fault in DECODER_FAULTS else "skipped in training"


def prepare_and_report(source: Path, out: Path, count: int) -> int:
    """Prepares CelebA and prints the result; returns the exit code, 1 if images are missing or faulty."""
    log("CelebA is for non-commercial research only and may not be redistributed.")
    done = prepare_celeba(source, out, count)
    log(f"{done.present:,} of {done.expected:,} images in {done.folder}, {len(done.faulty):,} faulty")
    if done.present > done.expected:
        log(f"more images than --count {done.expected} expects: add --count {done.present}", "yellow")
    elif done.present < done.expected:
        missing = f"{done.expected - done.present:,} of {done.expected:,} images are missing"
        log(f"{missing}: prepare a complete copy, or add --count {done.present} for a subset", "yellow")
    for kind, names in (("faulty", done.faulty), ("not plain files, skipped", done.skipped)):
        if names:
            log(f"{kind}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    train, valid, test = done.parts
    official = " (CelebA's official split)" if done.official else ""
    log(f"split: {train:,} to train on, {valid:,} to validate on, {test:,} to test on{official}")
    if not valid + test:
        log(
            "this split holds out no image: training will hold out the last 5 % of each folder instead",
            "yellow",
        )
    log(f"next: fastae train --amp --data {shell_word(done.folder)}")
    return 0 if done.complete else 1
