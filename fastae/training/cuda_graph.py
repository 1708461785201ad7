"""A function of CUDA tensors, recorded once as a CUDA graph and replayed: one launch for all its kernels."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

SETTLE = 0.05
"""Seconds before a recording in which such a thread, on a device that is idle, is done."""

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose recording failed: PyTorch's allocator of pinned memory keeps pointers to them."""


def can_record(device: torch.device) -> bool:
    """Whether the device has CUDA graphs."""
    return device.type == "cuda"


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Runs what the block queues on a stream of its own, after all work before it and before all after it.

    CUDA demands this of a recording, and of the steps that warm it up.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


class GraphedFunction:
    """Replays `function` on copies of its inputs in fixed places; returns the same tensors every time.

    Inputs may lie in pinned memory: they are copied straight to where the graph reads them. Make one within
    a `side_stream`, on which the function has run before.

    Raises RuntimeError if the function cannot be recorded: it synchronises, or allocates anew. Memory and
    stream are as before then; what the function itself keeps, gradients above all, is the caller's to drop.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], example: Sequence[Tensor], device: torch.device
    ) -> None:
        self._inputs = [value.to(device, copy=True) for value in example]
        self._graph, self._outputs = _capture(function, self._inputs, device)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _capture(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], device: torch.device
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with _no_garbage_collection():
        torch.cuda.synchronize(device)
        # DALI frees batches in a thread that synchronises the device, which CUDA forbids during a recording.
        time.sleep(SETTLE)
        torch.cuda.empty_cache()  # the graph's memory is its own
        # Other threads' calls, DALI's above all, must not break the recording.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = function(*inputs)
            graph.capture_end()
        except BaseException:
            _abandon(graph, pool, device)
            raise
    return graph, outputs


def _abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], device: torch.device) -> None:
    """Ends a recording that failed, which gives the stream back, and its memory, which PyTorch would keep."""
    try:
        graph.capture_end()
    except RuntimeError:  # CUDA has invalidated the capture
        _failed.append(graph)
        # The first is done already in some versions of PyTorch, and then an error.
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):
                end(device.index, pool)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """In a recording: an old graph or stream that were collected would be freed, which breaks it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
