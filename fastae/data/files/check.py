"""Finds the files of a data set that cannot be trained on, before training starts.

The quick check, which training runs too, reads the headers and the end of each file. It records the results,
so that the next check reads only new and changed files. The deep check also decodes every file, with the same
decoder as training.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fastae.data.files.faults import USABLE, Fault, FileFault
from fastae.data.files.inspect import Inspection, inspect, is_image
from fastae.data.files.search import find_files, name_below, no_images
from fastae.utils.console import track
from fastae.utils.files import atomic_write, require_file

VERSION = 6
"""The version of the records. It changes with their format and with the results of `inspect`."""

DIGEST_BYTES = 32
"""The length of a SHA-256, with which a file of records begins."""

Stamp = tuple[int, int]
"""A file's size in bytes, and the low 63 bits of its modification time in ns, which may exceed 64 bits."""

Records = dict[bytes, tuple[Stamp, Inspection]]
"""Path -> the file's stamp, and the inspection of the file when it had that stamp."""


@dataclass(frozen=True)
class Check:
    """The result of a check, in the order of the checked paths."""

    sizes: dict[str, int]
    """Path of each usable file -> its size in bytes."""

    faults: list[FileFault]
    """All files with a fault, including the usable ones (`USABLE`)."""

    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) in pixels -> number of usable images of this size."""

    @property
    def usable(self) -> list[str]:
        return list(self.sizes)

    @property
    def unusable(self) -> list[FileFault]:
        return [file for file in self.faults if file.fault not in USABLE]

    @property
    def side(self) -> int | None:
        """The shorter side of the usable images in pixels, if it is the same for all."""
        sides = set(map(min, self.shapes))
        return sides.pop() if len(sides) == 1 else None


DeepCheck = Callable[[Check], Iterable[Fault | None]]
"""Decodes the usable files of a check, and yields the fault of each, None if it has none."""


def check_folder(
    root: str,
    *,
    crop: int | None,
    records: Path | None,
    find_faults: DeepCheck | None = None,
    listed: Container[str] | None = None,
) -> Check:
    """Checks the images under a folder. Other files, such as texts, are ignored.

    Args:
        root: the data folder.
        crop: the minimum length of an image's shorter side in pixels.
        records: the folder in which results are recorded, if any.
        find_faults: decodes the usable files of a check, and yields the fault of each, for the deep check.
        listed: the names of the files to check, relative to `root`. Default: all.

    Raises:
        FastaeError: the folder does not exist, or contains no image.
        DecoderError: the decoder fails even for a valid picture.
    """
    paths = find_files(root)
    if listed is not None:
        paths = [path for path in paths if name_below(root, path) in listed]
    inspected = _quick_check(root, paths, records)
    if listed is None:
        inspected = {path: image for path, image in inspected.items() if is_image(path, image.fault)}
        if not inspected:
            raise no_images(root, paths)
    return _checked(inspected, crop, find_faults)


def check_files(paths: Sequence[str], crop: int | None) -> Check:
    """Checks files as `check_folder` does, without records. Each is taken for an image."""
    return _checked({path: inspect(path) for path in track(paths, "checking files")}, crop)


def _checked(
    inspected: Mapping[str, Inspection], crop: int | None, find_faults: DeepCheck | None = None
) -> Check:
    faults = {path: image.fault for path, image in inspected.items()}
    for path, image in inspected.items():
        if image.fault in USABLE and crop and min(image.width, image.height) < crop:
            faults[path] = Fault.TOO_SMALL
    checked = _result(inspected, faults)
    if find_faults is None:
        return checked
    decoded = track(find_faults(checked), "decoding files", total=len(checked.sizes))
    faults |= {path: fault for path, fault in zip(checked.sizes, decoded, strict=True) if fault}
    return _result(inspected, faults)


def _result(inspected: Mapping[str, Inspection], faults: Mapping[str, Fault | None]) -> Check:
    usable = [path for path in faults if faults[path] in USABLE]
    return Check(
        sizes={path: inspected[path].size for path in usable},
        faults=[FileFault(path, fault) for path, fault in faults.items() if fault],
        shapes=Counter((inspected[path].width, inspected[path].height) for path in usable),
    )


def was_checked(root: str, records: Path | None) -> bool:
    """Whether `root` was checked before, according to the records. The folder itself is not read."""
    return records is not None and os.path.isfile(_records_file(root, records))


def stamp(path: str) -> Stamp | None:
    """Returns the stamp of a file, which changes when the file does; None if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns & (1 << 63) - 1


def _quick_check(root: str, paths: Sequence[str], records: Path | None) -> dict[str, Inspection]:
    file = records and _records_file(root, records)
    known = _read_records(file) if file else {}
    keys = {path: os.fsencode(name_below(root, path)) for path in paths}  # however the root is written
    # Stamps are taken before the files are read: a file that changes meanwhile is inspected again
    # by the next check.
    stamps = {path: stamp(path) for path in paths}
    inspected = {
        path: known[key][1]
        for path in paths
        if (key := keys[path]) in known and known[key][0] == stamps[path]
    }
    if unknown := [path for path in paths if path not in inspected]:
        inspected |= {path: inspect(path) for path in track(unknown, "checking files")}
        if file:
            _write_records(file, {keys[path]: (at, inspected[path]) for path, at in stamps.items() if at})
    return {path: inspected[path] for path in paths}


def _records_file(root: str, records: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return records / f"{name}-v{VERSION}.msgpack"


def _read_records(file: Path) -> Records:
    """Reads the records. Returns {} if the file is missing or damaged, so that all images are inspected."""
    with suppress(Exception):  # a parser may raise any error for a damaged file
        require_file(file)
        digest, content = (read := file.read_bytes())[:DIGEST_BYTES], read[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:
            return msgspec.msgpack.decode(content, type=Records)
    return {}


def _write_records(file: Path, records: Mapping[bytes, tuple[Stamp, Inspection]]) -> None:
    with suppress(OSError):  # an unwritable cache costs time, but must not end a run
        file.parent.mkdir(parents=True, exist_ok=True)
        content = msgspec.msgpack.encode(records)
        with atomic_write(file) as output:
            output.write(hashlib.sha256(content).digest() + content)
