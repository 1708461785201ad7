"""Several processes that train together, as torchrun starts them; a process alone is rank 0 of 1.

torchrun's environment says who is who: nothing here starts or counts processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fastae.errors import FastaeError, RunFailure
from fastae.utils.console import console


@dataclass(frozen=True)
class Ranks:
    """rank: of `size`, this process. local: its number on this machine, which is that of its GPU."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """The one that logs and saves."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor that each has; all must call."""
        if self.alone:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def largest(self, value: int, device: torch.device) -> int:
        """The largest of the ranks' values; all must call."""
        if self.alone:
            return value
        shared = torch.tensor(value, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def tell(self, name: str, text: str) -> None:
        """Gives the other ranks what they `hear` under this name, before they are `joined`."""
        if not self.alone:
            _store().set(f"fastae/{name}", text)

    def hear(self, name: str) -> str:
        """Waits for what the first rank tells. Raises RunFailure where it has ended."""
        try:
            return _store().get(f"fastae/{name}").decode()
        except RuntimeError as error:
            raise RunFailure(f"the first rank ended, or cannot be reached: {error!s:.200}") from None


ALONE = Ranks()


@cache
def _store() -> dist.Store:
    """The ranks' shared memory of names and values, which torchrun keeps for their rendezvous."""
    store, *_ = next(rendezvous("env://"))
    return store


def launched() -> Ranks:
    """Who this process is, by torchrun's environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return ALONE
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    if not ranks.first:
        console.quiet = True
    return ranks


def device_of(name: str, ranks: Ranks) -> str:
    """`--device` for one of several ranks: each its own GPU where there are any."""
    if ranks.alone or name == "cpu" or not (torch.cuda.is_available() or name != "auto"):
        return name
    if name not in ("auto", "cuda"):
        raise FastaeError(f"--device {name} under torchrun: use cuda, each rank takes its own")
    return f"cuda:{ranks.local}"


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """While the block runs, the ranks can exchange tensors of this device."""
    if ranks.alone:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
