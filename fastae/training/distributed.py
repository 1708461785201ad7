"""Several processes that train together, as torchrun starts them; a process alone is rank 0 of 1."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fastae.errors import FastaeError, RunFailure, Stopped
from fastae.utils.console import console

PATIENCE = timedelta(days=1)
"""For which a rank waits for the main one, which may be decoding a data set."""


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `size`. local: its number on this machine, which is that of its GPU."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """The one that logs and saves."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor that each has; all must call."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, *flags: bool, device: torch.device) -> list[bool]:
        """Each flag: whether it is set on any rank; all must call."""
        if self.size == 1:
            return list(flags)
        shared = torch.tensor(flags, device=device, dtype=torch.int32)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.bool().tolist()

    def share(self, name: str, text: str = "") -> str:
        """The main rank's `text`, on all ranks, before they are `joined`; the others wait for it.

        Raises RunFailure if the main rank has ended.
        """
        if self.size > 1:
            try:
                store = _torchrun_store()
                if not self.is_main:
                    return store.get(f"fastae/{name}").decode()
                store.set(f"fastae/{name}", text)
            except (RuntimeError, ValueError) as error:
                raise RunFailure(f"another rank ended, or cannot be reached: {error!s:.200}") from None
        return text


ALONE = Ranks()


@cache
def _torchrun_store() -> dist.Store:
    """The names and values that torchrun keeps for all ranks."""
    store, *_ = next(rendezvous("env://"))
    store.set_timeout(PATIENCE)
    return store


def launched() -> Ranks:
    """Who this process is, by torchrun's environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return ALONE
    ranks = Ranks(*(int(os.environ[name]) for name in names))
    if not ranks.is_main:
        console.quiet = True
    return ranks


def device_of(name: str, ranks: Ranks) -> str:
    """`--device` for one of several ranks: each takes its own GPU, if there are any."""
    if ranks.size == 1 or name == "cpu" or not (torch.cuda.is_available() or name != "auto"):
        return name
    if name not in ("auto", "cuda"):
        raise FastaeError(f"--device {name} under torchrun: use cuda, each rank takes its own")
    return f"cuda:{ranks.local}"


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """While the block runs, the ranks can exchange tensors of this device.

    After an exception they stay joined: parting would wait for kernels of NCCL, and those for a rank that
    never comes. The process must end then, by `end_process`.
    """
    if ranks.size == 1:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    except Stopped:  # all ranks have agreed on it
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def end_process(code: int, error: Exception | None = None) -> None:
    """Ends this process at once if an exception has left the ranks joined; otherwise does nothing.

    error: is printed with its traceback before that.
    Whatever frees memory of the GPU would wait for it, and so for the other ranks, which wait for this one:
    only when it has ended does torchrun end them.
    """
    if dist.is_available() and dist.is_initialized():
        if error:
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
