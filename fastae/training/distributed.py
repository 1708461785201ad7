"""Several processes that train together, started by torchrun. A process alone is rank 0 of 1."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
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
from fastae.utils.exits import before_exit
from fastae.utils.ranks import torchrun_rank

PATIENCE = timedelta(days=1)
"""The longest time for which a rank waits for the main rank, which may be decoding a data set."""

POLL_SECONDS = 2.0
"""The seconds between two looks at whether all ranks have finished."""


@dataclass(frozen=True)
class Ranks:
    """The number of this process among those that train together."""

    rank: int = 0
    """The number of this process, from 0."""

    size: int = 1
    """The number of processes."""

    local: int = 0
    """The number of this process among those on this machine, which is the number of its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean of a tensor over the ranks. All ranks must call."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, *flags: bool, device: torch.device) -> list[bool]:
        """Returns for each flag whether it is set on any rank. All ranks must call."""
        if self.size == 1:
            return list(flags)
        shared = torch.tensor(flags, device=device, dtype=torch.int32)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.bool().tolist()

    def broadcast(self, name: str, text: str = "") -> str:
        """Returns the main rank's `text` on all ranks, which need not be `joined`. The others wait for it.

        Raises RunFailure if the main rank has ended.
        """
        if self.size > 1:
            try:
                store, key = _torchrun_store(), self._key(name)
                if not self.is_main:
                    return store.get(key).decode()
                store.set(key, text)
            except (RuntimeError, ValueError) as error:
                raise _lost(error) from None
        return text

    def gather(self, name: str, text: str) -> list[str]:
        """Returns the texts of the other ranks on the main rank, which waits for them; [] on the others."""
        if self.size == 1:
            return []
        store, key = _torchrun_store(), self._key(name)
        if not self.is_main:
            store.set(f"{key}/{self.rank}", text)
            return []
        keys = [f"{key}/{rank}" for rank in range(1, self.size)]
        while not store.check(keys):  # if another rank dies, torchrun ends this one
            time.sleep(POLL_SECONDS)
        return [store.get(key).decode() for key in keys]

    def _key(self, name: str) -> str:
        """Returns a key for the ranks' store, another one for each exchange of this name."""
        _exchanges[name, self.rank] += 1
        return f"fastae/{name}/{_exchanges[name, self.rank]}"


_exchanges: Counter[tuple[str, int]] = Counter()
"""Name of an exchange and rank -> how often this process has taken part as this rank."""

ALONE = Ranks()


@cache
def _torchrun_store() -> dist.Store:
    """Opens the store of names and values that torchrun keeps for all ranks."""
    store, *_ = next(rendezvous("env://"))
    store.set_timeout(PATIENCE)
    return store


def launched() -> Ranks:
    """Reads from torchrun's environment which rank this process is. Only the main one logs from then on.

    Raises SettingError if a variable has a value that torchrun does not set.
    """
    ranks = Ranks(*torchrun_rank())
    if not ranks.is_main:
        console.quiet = True
    return ranks


def device_of(name: str, ranks: Ranks) -> str:
    """Returns the device that a rank uses for `--device name`. Each of several ranks has its own GPU.

    Raises FastaeError if one GPU was named for several ranks.
    """
    if ranks.size == 1 or name == "cpu" or not (torch.cuda.is_available() or name != "auto"):
        return name
    if name not in ("auto", "cuda"):
        raise FastaeError(
            f"--device {name} cannot be used under torchrun: use --device cuda, each rank takes its own GPU"
        )
    return f"cuda:{ranks.local}"


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """While the block runs, the ranks can exchange tensors on this device.

    After an exception they stay joined, and the process must be ended by `end_process`: destroying the
    process group would wait for NCCL's kernels, which wait for a rank that never arrives.
    """
    if ranks.size == 1:
        yield
        return
    if end_process not in before_exit:
        before_exit.append(end_process)
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from None
    try:
        yield
    except Stopped:  # all ranks have agreed on it
        _leave_group()
        raise
    _leave_group()


def _lost(error: Exception) -> RunFailure:
    return RunFailure(f"another rank ended, or cannot be reached: {error!s:.200}")


def _leave_group() -> None:
    """Destroys the process group, after unused objects of DDP, which refer to it, are freed."""
    gc.collect()
    dist.destroy_process_group()


def end_process(code: int) -> None:
    """Ends this process at once if an exception has left the ranks joined; otherwise does nothing.

    An orderly end would free memory of the GPU, and so wait for the GPU, which waits for the other ranks.
    Torchrun ends the other ranks only when this process has ended. `code` is the exit code.
    """
    if dist.is_available() and dist.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
