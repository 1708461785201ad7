"""The files that a run began with, by name and size: what it is resumed on, whatever became of its folder.

Which image is number i of an epoch follows from the list alone. A file that was lost since leaves its place
to the next, as one does that goes bad in mid-run, so that all the others stay where they were; files that
came in are not the run's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastae.data.folder import ImageFolder
from fastae.data.mending import stand_ins
from fastae.errors import FastaeError

LOST_AT_MOST = 0.01
"""The share of the files whose loss is an accident; more, and it is another data set. One is always."""


@dataclass(frozen=True)
class Listing:
    """Names below the data folder -> bytes, in the order of training and of evaluation."""

    train: Mapping[str, int]
    held_out: Mapping[str, int]

    @classmethod
    def of(cls, folder: ImageFolder) -> Listing:
        sizes = folder.sizes
        train, held_out = (
            {_name(path, folder.root): sizes[path] for path in paths}
            for paths in (folder.train, folder.held_out)
        )
        return cls(train, held_out)

    @property
    def fingerprint(self) -> str:
        """Tells one data set from another wherever it lies: 32 hexadecimal digits of names, split, sizes."""
        digest = hashlib.sha256()
        for sizes in (self.train, self.held_out):
            listed = "\0".join(f"{name}\0{size}" for name, size in sizes.items())
            digest.update(listed.encode(errors="surrogatepass") + b"\0\0")
        return digest.hexdigest()[:32]

    def find(self, folder: ImageFolder) -> tuple[ImageFolder, list[str]]:
        """`folder` as it was when the run began, and the names of the files that are lost or bad by now.

        Raises FastaeError where a file has another size, or too many are lost. Names are looked for among
        those that the folder was found to hold: whoever wrote this listing names nothing outside it.
        """
        there = {_name(path, folder.root): path for path in folder.sizes}
        train, lost = _paths(self.train, there, folder)
        held_out, more = _paths(self.held_out, there, folder)
        return replace(folder, train=train, held_out=held_out), lost + more


def _paths(
    listed: Mapping[str, int], there: Mapping[str, str], folder: ImageFolder
) -> tuple[list[str], list[str]]:
    """The paths of these files, or of those that stand in for them, and the names of the lost."""
    names = list(listed)
    lost = {place for place, name in enumerate(names) if name not in there}
    if len(lost) == len(names) or len(lost) > max(1, LOST_AT_MOST * len(names)):
        raise _other(folder, f"{len(lost):,} of {len(names):,} files are missing or bad")
    for name, size in listed.items():
        if name in there and folder.sizes[there[name]] != size:
            raise _other(folder, f"{name!r:.200} had {size:,} bytes")
    read = stand_ins(lost, len(names))
    return [there[names[read.get(place, place)]] for place in range(len(names))], [
        names[place] for place in sorted(lost)
    ]


def _other(folder: ImageFolder, why: str) -> FastaeError:
    return FastaeError(
        f"{folder.root!r} is not what the run trains on: {why}; "
        "restore the files, or name their folder with --data"
    )


def _name(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")
