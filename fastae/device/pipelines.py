"""Keeps DALI's pipelines and the capture of CUDA graphs apart.

DALI frees memory in a thread, which first waits for the whole device. While any stream of the device is
captured, CUDA refuses this wait, whatever the capture's error mode, and DALI does not catch the error: the
process is aborted. So a graph may be captured only while no pipeline is alive on the device.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_abandoned: weakref.WeakSet[Any] = weakref.WeakSet()

_building_or_capturing = Lock()


@contextmanager
def no_capture() -> Iterator[None]:
    """Lets no graph be captured during the block, in which a pipeline is built."""
    with _building_or_capturing:
        yield


@contextmanager
def no_pipelines(device: torch.device) -> Iterator[None]:
    """Lets fastae build no pipeline during the block, in which a graph is captured.

    Raises RuntimeError if a pipeline is alive on the device.
    """
    with _building_or_capturing:
        if _alive_on(device):
            gc.collect()  # an error that was raised while it ran may hold it, in a cycle
        if _alive_on(device):
            raise RuntimeError(f"a DALI pipeline is open on {device}")
        yield


def abandon(pipeline: Any) -> None:
    """Makes DALI forget a pipeline that does not return. Otherwise DALI would wait for it at exit."""
    type(pipeline)._pipes.discard(weakref.ref(pipeline))  # no public call does this
    _abandoned.add(pipeline)


def _alive_on(device: torch.device) -> bool:
    """Returns whether a pipeline is alive on a GPU, also one that fastae did not make."""
    dali = sys.modules.get("nvidia.dali")
    known = [pipeline() for pipeline in list(dali.Pipeline._pipes)] if dali else []
    return any(each is not None and each.device_id == device.index for each in [*known, *_abandoned])
