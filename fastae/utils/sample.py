"""Takes evenly spaced samples, without randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], number: int) -> list[Item]:
    """Returns at most `number` of the items, in order and at equal distances."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]
