"""`Loader`: the batches of image files for anybody's training loop, epoch by epoch or without end.

A batch is a function of (seed, iteration). So a loader's whole state is where it is: epoch and batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.faults import FileFault
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.decode import refuse_forked
from fastae.errors import SettingError
from fastae.utils.arguments import Range, require_int
from fastae.utils.console import log

ITERATION = Range(0, 2**63 - 1)


class Loader:
    """Yields batches, made by `open_loader`: images, or (images, targets) if it was opened with targets.

    Images are (N, 3, H, W), channels-last, in the format asked for, and targets (N, ...), both on its device.
    `iter(loader)` yields the batches of one epoch. The next `iter(loader)` yields those of the next epoch, or
    the same ones again if the last batch was not reached. `len(loader)` is the number of batches per epoch.

    Attributes:
        source: makes the batches.
        skipped: the files that cannot be used. Each has a `path` and a `fault`.
        classes: the names of the classes for `targets="folders"`; the target i means `classes[i]`.
    """

    # A framework would take a loader with an attribute `dataset`, `sampler` or `batch_sampler` for PyTorch's.

    def __init__(
        self,
        source: BatchSource,
        files: ImageFiles,
        skipped: Sequence[FileFault] = (),
        targets: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.skipped = skipped
        self.classes = classes
        self._files = files
        self._targets = targets
        self._next = self._reached = (0, 0)
        self._has_logged = False

    def __repr__(self) -> str:
        return (
            f"Loader(kind={self.kind!r}, images={len(self._files)}, batch_size={self.batch_size}, "
            f"image_size={self.source.decoder.crop_resize.size}, device={str(self.device)!r})"
        )

    @property
    def kind(self) -> str:
        """How the batches are made: "dali", "host" or "resident"."""
        return self.source.kind

    @property
    def note(self) -> str:
        """Why `auto` chose this kind, in words."""
        return self.source.note

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.source.device

    @property
    def batch_size(self) -> int:
        """The number of images in a batch of all ranks together."""
        return self.source.sampler.batch_size

    @property
    def paths(self) -> Sequence[str]:
        """The file of each image by index. A bad file is replaced by that of another image."""
        return self._files.paths

    def __len__(self) -> int:
        return self.source.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Any]:
        return self._continue(*self._next)

    def _continue(self, epoch: int, done: int) -> Iterator[Any]:
        """Yields the batches of an epoch after the first `done`."""
        self._note(epoch, done)
        batches = self.batches(epoch * len(self) + done)
        for number, batch in zip(range(done + 1, len(self) + 1), batches, strict=False):
            self._note(epoch, number)
            yield batch

    def _note(self, epoch: int, done: int) -> None:
        """Notes that `done` batches of an epoch were yielded.

        A loop may stop after `len(loader)` batches without asking for another: the last one ends the epoch.
        """
        self._reached = (epoch, done)
        if done >= len(self):
            self._next = self._reached = (epoch + 1, 0)

    def epoch(self, number: int) -> Iterator[Any]:
        """Yields the batches of this epoch, from 0. It does not change what `iter(loader)` yields next."""
        number = require_int(number, "number", ITERATION)
        return itertools.islice(self.batches(number * len(self)), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Makes the next `iter(loader)` yield this epoch, from 0.

        A loader that is in this epoch by `load_state_dict` still continues where the state was saved.
        """
        epoch = require_int(epoch, "epoch", ITERATION)
        if epoch != self._next[0]:
            self._next = (epoch, 0)
        self._reached = self._next

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Yields the batches of iterations start, start + 1, ..., without end.

        Raises SettingError if `start` is not a valid iteration number, and FastaeError in a forked process.
        """
        start = require_int(start, "start", ITERATION)
        refuse_forked()
        if self.source.compiles and not self._has_logged:
            log("compiling the loader's pixel operations: the first batch takes up to half a minute")
        self._has_logged = True
        batches = self.source.batches(start)
        if self._targets is None:
            return batches
        return ((images, self._targets_of(start + ahead)) for ahead, images in enumerate(batches))

    def _targets_of(self, iteration: int) -> Tensor:
        """The targets of a batch that was just made: those of the files that were really read."""
        assert self._targets is not None
        targets = torch.from_numpy(self._targets[self._files.sources[self.indices(iteration)]])
        if self.device.type == "cpu":
            return targets
        return targets.pin_memory().to(self.device, non_blocking=True)

    def indices(self, iteration: int) -> np.ndarray:
        """The images of a batch, or of this rank's part of it: indices of `paths`, int64 (N,).

        Batch k of epoch e is iteration `e * len(loader) + k`.
        """
        return self.source.sampler.part_indices(require_int(iteration, "iteration", ITERATION))

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch of the latest `iter(loader)`, and how many of its batches were yielded."""
        epoch, batch = self._reached
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next `iter(loader)` continue after the batches that were yielded before `state_dict`.

        Raises SettingError if the state is not of a loader with as many images, the same batches and seed.
        """
        for name, ours in self._identity().items():
            if (theirs := state.get(name)) != ours:
                raise SettingError(
                    "state", f"is not of this loader: its {name} is {theirs!r:.60}, not {ours}"
                )
        self._next = self._reached = (
            require_int(state.get("epoch"), "epoch", ITERATION),
            require_int(state.get("batch"), "batch", ITERATION),
        )

    def _identity(self) -> dict[str, Any]:
        """What a loader that continues another must have in common with it."""
        sampler = self.source.sampler
        names = ("count", "batch_size", "parts", "seed", "shuffle")
        return {name: getattr(sampler, name) for name in names}
