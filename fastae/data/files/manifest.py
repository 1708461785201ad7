"""The list of the files that a run or a sweep began with, by name and size: images.json in its folder.

For some files the digest of the content is stored too, so that other images with the same names and sizes are
detected.

The index of each image follows from this list alone, so that a run can be resumed after its data folder has
changed. A file that was lost is replaced by the next one (`fastae.data.files.recovery`), all other files keep
their indices, and files that were added are ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastae.errors import FastaeError
from fastae.utils.files import atomic_write, open_unblocked
from fastae.utils.json import read_json

NAME = "images.json"
DIGESTS = 16
"""The number of files whose content is compared when a run is resumed. Reading all would take minutes."""

MAX_MANIFEST_BYTES = 1 << 27
"""The maximum size of images.json in bytes, enough for some five million images. CelebA takes 4 MB."""


def content_digest(path: str) -> str | None:
    """The SHA-256 of a file's content in hexadecimal; None if it cannot be read or is not a regular file."""
    try:
        with open_unblocked(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Manifest:
    """The files of a run. Names are relative to the data folder."""

    split: str
    """The rule that divided the files, in words."""

    train: Mapping[str, int]
    """Name -> size in bytes of each file to train on. Image i is the i-th file, from 0."""

    held_out: Mapping[str, int]
    """Name -> size in bytes of each held-out file, in the order of evaluation."""

    digests: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the content in hexadecimal, for DIGESTS of the files."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Name -> size in bytes of every file."""
        return {**self.train, **self.held_out}

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that are the same for the same files in any folder."""
        digest = hashlib.sha256()
        for sizes in (self.train, self.held_out):
            listed = "\0".join(f"{name}\0{size}" for name, size in sizes.items())
            digest.update(listed.encode(errors="surrogatepass") + b"\0\0")
        for name, content in self.digests.items():
            digest.update(f"{name}\0{content}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Writes the file. Raises OSError, or FastaeError if the file would be too large to be read again."""
        content = json.dumps(dataclasses.asdict(self), indent=0, separators=(",", ":")).encode()
        if len(content) > MAX_MANIFEST_BYTES:
            raise FastaeError(
                f"too many images: the list of {len(self.sizes):,} exceeds {MAX_MANIFEST_BYTES:,} bytes"
            )
        with atomic_write(path) as file:
            file.write(content)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads the file. Raises FastaeError if it is missing or damaged."""
        try:
            return read_json(path, cls, MAX_MANIFEST_BYTES)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FastaeError(f"the list of images {str(path)!r} cannot be read: {reason}") from None
