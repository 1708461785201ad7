"""Rows of measurements on one clock, in bounded memory however long a run lasts."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

CAPACITY = 36_000
"""An hour at 10 Hz; with 20 columns 6 MB."""


class Samples:
    """At most `capacity` rows, evenly spaced over all that were offered.

    When it is full, every second row goes, and from then on every second one that is offered. What is
    left is a fair sample: means, percentiles and shares stay right, and a single peak may be missed.
    """

    def __init__(self, columns: int, capacity: int = CAPACITY) -> None:
        self._columns = columns
        self._capacity = capacity
        self._values = array("d")
        self._stride = 1
        self._offered = 0

    def add(self, row: Sequence[float]) -> None:
        if self._offered % self._stride == 0:
            if len(self._values) == self._capacity * self._columns:
                self._values = array("d", self.rows()[::2].tobytes())
                self._stride *= 2
            if self._offered % self._stride == 0:
                self._values.extend(row)
        self._offered += 1

    def rows(self) -> np.ndarray:
        """float64, (rows, columns): a copy."""
        return np.array(self._values).reshape(-1, self._columns)
