"""Some of many items, without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items, in their order, at equal distances from each other."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]
