"""What a run shows in TensorBoard: scalars, image grids, its settings as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import summary

from fastae.runs.events import EventFile


class Board:
    """TensorBoard's view of the run in `folder`; a context manager. Raises OSError as `EventFile` does."""

    def __init__(self, folder: Path) -> None:
        self._events = EventFile(folder)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Readable from outside, by a TensorBoard that looks on, when this returns."""
        for tag, value in values.items():
            self._events.write(summary.scalar(tag, value), iteration)
        self._events.flush()

    def picture(self, iteration: int, tag: str, picture: np.ndarray) -> None:
        """A uint8 (H, W, 3) array."""
        self._events.write(summary.image(tag, picture, dataformats="HWC"), iteration)

    def settings(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Shown under TensorBoard's Text as indented JSON."""
        indented = json.dumps(values, indent=2).replace("\n", "\n    ")
        self._events.write(summary.text("config", "    " + indented), iteration)  # four blanks: a code block

    def sync(self) -> None:
        """Returns when all of it is on the disk, as it must be before a checkpoint says so."""
        self._events.sync()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._events.close()
        except OSError:
            if kind is None:  # else what came first is told, not this
                raise
