"""The files that a run or a sweep began with, by name and size: images.json in its folder.

Of some files it also keeps the content's digest: other images of the same names and sizes are recognised.

Which image is number i of an epoch follows from this list alone, so a run is resumed with it whatever became
of its data folder. A file that was lost since is replaced by the next (`fastae.data.files.recovery`), all
others keep their places, and files that were added are not the run's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastae.errors import FastaeError
from fastae.utils.files import atomic_write
from fastae.utils.json import read_json

NAME = "images.json"
DIGESTS = 16
"""Files whose content is compared when a run is resumed; to read all of them would take minutes."""

MAX_BYTES = 1 << 27
"""Size of the file: some five million images. CelebA's takes 4 MB."""


def content_digest(path: str) -> str | None:
    """The SHA-256 of a file's content in hexadecimal; None if it cannot be read, or is not a file by now."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Manifest:
    """split: the rule that divided the files, in words.

    train, held_out: names below the data folder -> bytes, in the order of training and of evaluation.
    digests: names -> SHA-256 of the files' content, of DIGESTS of them.
    """

    split: str
    train: Mapping[str, int]
    held_out: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """All names -> bytes."""
        return {**self.train, **self.held_out}

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, the same for the same files in any folder."""
        digest = hashlib.sha256()
        for sizes in (self.train, self.held_out):
            listed = "\0".join(f"{name}\0{size}" for name, size in sizes.items())
            digest.update(listed.encode(errors="surrogatepass") + b"\0\0")
        for name, content in self.digests.items():
            digest.update(f"{name}\0{content}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Raises OSError, and FastaeError if it would be too large to be read again."""
        content = json.dumps(dataclasses.asdict(self), indent=0, separators=(",", ":")).encode()
        if len(content) > MAX_BYTES:
            raise FastaeError(f"the names of {len(self.sizes):,} images are more than {MAX_BYTES:,} bytes")
        with atomic_write(path) as file:
            file.write(content)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises FastaeError if it is missing or damaged."""
        try:
            return read_json(path, cls, MAX_BYTES)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FastaeError(f"{str(path)!r}, the list of its images, cannot be read: {reason}") from None
