"""Reads from torchrun's environment variables which of several processes this one is."""

from __future__ import annotations

import os

from fastae.errors import SettingError
from fastae.utils.arguments import Range, require_int

MOST = 1_000_000
"""A limit for the number of processes."""


def torchrun_rank() -> tuple[int, int, int]:
    """Returns this process's rank, the number of ranks, and its rank on this machine: (0, 1, 0) if alone.

    Raises SettingError, naming the variable, if torchrun cannot have set it to its value.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return 0, 1, 0
    size = _number("WORLD_SIZE", Range(1, MOST))
    below = Range(0, size - 1)
    return _number("RANK", below), size, _number("LOCAL_RANK", below)


def local_ranks() -> int:
    """Returns the number of processes that torchrun started on this machine, this one included.

    Raises SettingError as `torchrun_rank` does.
    """
    return _number("LOCAL_WORLD_SIZE", Range(1, MOST)) if "LOCAL_WORLD_SIZE" in os.environ else 1


def _number(variable: str, within: Range) -> int:
    """Returns the value of an environment variable. Raises SettingError unless it is within the range."""
    text = os.environ[variable]
    if not (text.isdecimal() and len(text) < 10):
        raise SettingError(f"${variable}", f"must be a whole number, not {text!r:.60}: torchrun sets it")
    return require_int(int(text), f"${variable}", within)
