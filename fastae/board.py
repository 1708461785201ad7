"""What a run shows in TensorBoard: scalars, image grids, its settings as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


class Board:
    """TensorBoard event files in `folder`; a context manager, since events are written behind."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, iteration)

    def picture(self, iteration: int, tag: str, picture: np.ndarray) -> None:
        """A uint8 (H, W, 3) array."""
        self._writer.add_image(tag, picture, iteration, dataformats="HWC")

    def settings(self, values: Mapping[str, Any]) -> None:
        """Shown under TensorBoard's Text as indented JSON."""
        indented = json.dumps(values, indent=2).replace("\n", "\n    ")
        self._writer.add_text("config", "    " + indented)  # four blanks: Markdown's code block

    def flush(self) -> None:
        self._writer.flush()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
