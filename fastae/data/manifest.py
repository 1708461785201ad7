"""The files that a run or a sweep began with, by name and size: images.json in its folder.

Which image is number i of an epoch follows from this list alone, so a run is resumed with it whatever became
of its data folder. A file that was lost since is replaced by the next (`fastae.data.recovery`), all others
keep their places, and files that were added are not the run's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastae.errors import FastaeError
from fastae.utils.files import atomic_write
from fastae.utils.json import read_json

NAME = "images.json"
MAX_BYTES = 1 << 27
"""Size of the file: some five million images. CelebA's takes 4 MB."""


@dataclass(frozen=True)
class Manifest:
    """split: the rule that divided the files, in words.

    train, held_out: names below the data folder -> bytes, in the order of training and of evaluation.
    """

    split: str
    train: Mapping[str, int]
    held_out: Mapping[str, int]

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
