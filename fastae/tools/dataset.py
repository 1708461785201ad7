"""What `fastae check` and `fastae prepare` print: counts, names, and what to do about them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich.table import Table

from fastae.data.check import Check, check
from fastae.data.crop_resize import CropResize
from fastae.data.decode import Decoder, open_decoder
from fastae.data.folder import find_jpegs
from fastae.data.jpeg import DECODER_FAULTS, Fault
from fastae.data.prepare import prepare_celeba
from fastae.data.tuning import Tuning
from fastae.errors import FastaeError
from fastae.utils.cache import cache_folder, check_records
from fastae.utils.console import console, log, printable
from fastae.utils.device import choose_device
from fastae.utils.files import atomic_write

NAMES_SHOWN = 50


def check_folder(folder: str, *, deep: bool, crop: int | None, report: str | None) -> int:
    """Checks the JPEGs under `folder` and prints what was found; returns the exit code, 0 or 1."""
    paths = find_jpegs(folder)
    decoder = _training_decoder(crop) if deep else None
    found = check(folder, paths, crop=crop, records=check_records(cache_folder()), decoder=decoder)
    if report == "-":
        print(_as_json(folder, len(paths), found))
    else:
        _show(len(paths), found)
        if report:
            try:
                with atomic_write(Path(report)) as file:
                    file.write(_as_json(folder, len(paths), found).encode() + b"\n")
            except OSError as error:
                raise FastaeError(f"cannot write {report!r}: {error.strerror or error}") from None
    return 1 if found.unusable else 0


def _training_decoder(crop: int | None) -> Decoder:
    """The one that `fastae train` uses on this machine. Raises FastaeError for a missing DALI."""
    return open_decoder(CropResize(crop), choose_device("auto"), Tuning(compiled=False))


def _show(total: int, found: Check) -> None:
    for finding in found.findings[:NAMES_SHOWN]:
        log(f"{finding.fault.value:24}  {printable(finding.path)}")
    if len(found.findings) > NAMES_SHOWN:
        log(f"... and {len(found.findings) - NAMES_SHOWN:,} more: --json FILE names all")
    counts = Counter(finding.fault for finding in found.findings)
    table = Table("", "files", "")
    for fault in Fault:
        if counts[fault]:
            table.add_row(fault.value, f"{counts[fault]:,}", _meaning(fault))
    table.add_row("usable", f"{len(found.usable):,}", f"of {total:,}")
    console.print(table)


def _meaning(fault: Fault) -> str:
    if fault.usable:
        return "decoded to colour and used"
    # Training makes the quick check, and meets these when it decodes them.
    return "replaced in training" if fault in DECODER_FAULTS else "skipped by training"


def _as_json(folder: str, total: int, found: Check) -> str:
    return json.dumps(
        {
            "folder": folder,
            "files": total,
            "usable": len(found.usable),
            "findings": [
                {"path": finding.path, "fault": finding.fault.value, "usable": finding.fault.usable}
                for finding in found.findings
            ],
        },
        indent=2,
    )


def prepare_and_report(source: Path, out: Path, count: int) -> int:
    """Prepares CelebA and prints what is there and what is missing; returns the exit code, 0 or 1."""
    log("CelebA is for non-commercial research only and may not be redistributed.")
    done = prepare_celeba(source, out, count)
    log(f"{done.present:,} of {done.expected:,} images in {done.folder}, {len(done.faulty):,} faulty")
    for kind, names in (
        ("missing", done.missing),
        ("faulty", done.faulty),
        ("skipped, not plain files", done.skipped),
    ):
        if names:
            shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            log(f"{kind}: {shown}")
    train, valid, test = done.parts
    official = " (CelebA's official split)" if done.official else ""
    log(f"split: {train:,} to train on, {valid:,} to validate on, {test:,} to test on{official}")
    log(f"next: fastae train --amp --data {done.folder}")
    return 0 if done.complete else 1
