"""Finds which of several processes this one is, mostly from torchrun's environment variables."""

from __future__ import annotations

import os

from fastae.errors import SettingError
from fastae.utils.arguments import Range, require_int
from fastae.utils.limits import usable_cores

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


def current_rank() -> tuple[int | None, int]:
    """Returns this process's rank and the number of ranks in anybody's program; (0, 1) if it is alone.

    They are those of torch.distributed if it is initialised, else those of torchrun. The rank is None if only
    the number is known: Lightning's launcher sets no RANK. Raises SettingError as `torchrun_rank` does.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    size = _number("WORLD_SIZE", Range(1, MOST)) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return 0, 1
    return _number("RANK", Range(0, size - 1)) if "RANK" in os.environ else None, size


def local_ranks() -> int:
    """Returns the number of processes that torchrun started on this machine, this one included.

    Raises SettingError as `torchrun_rank` does.
    """
    return _number("LOCAL_WORLD_SIZE", Range(1, MOST)) if "LOCAL_WORLD_SIZE" in os.environ else 1


def rank_cores() -> int:
    """Returns the number of cores for each of the ranks that share this machine, at least 1."""
    return max(1, int(usable_cores() / local_ranks()))


def _number(variable: str, within: Range) -> int:
    """Returns the value of an environment variable. Raises SettingError unless it is within the range."""
    text = os.environ[variable]
    if not (text.isdecimal() and len(text) < 10):
        raise SettingError(f"${variable}", f"must be a whole number, not {text!r:.60}: torchrun sets it")
    return require_int(int(text), f"${variable}", within)
