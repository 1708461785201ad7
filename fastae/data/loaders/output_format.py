"""The type and range of the values of a loader's batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastae.errors import SettingError
from fastae.utils.arguments import Range, require_number

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)

MEAN, STD = Range(-1e6, 1e6), Range(1e-6, 1e6)


@dataclass(frozen=True)
class OutputFormat:
    """The format of batches: (x - mean) / std of images x in [0, 1], or uint8 in [0, 255]."""

    dtype: torch.dtype = torch.float32
    """One of DTYPES. Values are rounded to the nearest."""

    mean: float | Sequence[float] = 0.0
    """One number, or one per channel."""

    std: float | Sequence[float] = 1.0
    """One number, or one per channel. It is more than 0."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            names = ", ".join(str(dtype) for dtype in DTYPES)
            raise SettingError("dtype", f"must be one of {names}, not {self.dtype!r:.60}")
        for name, within in (("mean", MEAN), ("std", STD)):
            object.__setattr__(self, name, _per_channel(getattr(self, name), name, within))
        if self.dtype == torch.uint8 and (self.mean, self.std) != ((0.0,) * 3, (1.0,) * 3):
            raise SettingError("dtype", "torch.uint8 has a fixed range of 0 to 255: leave out mean and std")

    @property
    def norm(self) -> np.ndarray:
        """The mean and 1 / std of each channel: float32 (2, 3)."""
        return np.array([self.mean, np.reciprocal(self.std)], np.float32)


def _per_channel(value: Any, name: str, within: Range) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence | np.ndarray | torch.Tensor) else (value,) * 3
    if len(values) != 3:
        raise SettingError(name, f"must be one number or three, not {value!r:.60}")
    for number in values:
        require_number(number, name, within)
    return tuple(map(float, values))
