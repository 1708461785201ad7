"""Captures a function of CUDA tensors as a CUDA graph and replays it: one launch for all its kernels."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from fastae.device.pipelines import no_pipelines

SETTLE = 0.2
"""Seconds to wait before a capture, in which a thread of DALI frees what pipelines that have ended have left.

It waits for the device, as `fastae.device.pipelines` describes. The device is idle, so it needs microseconds.
"""

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed. They are kept, since PyTorch's allocator of pinned memory points to them."""


def can_capture(device: torch.device) -> bool:
    """Returns whether the device has CUDA graphs."""
    return device.type == "cuda"


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Queues the block's work on a separate stream, after all earlier work and before all later work.

    CUDA demands this of a capture, and of the steps that warm it up.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


class GraphedFunction:
    """A function that is captured once, and replayed by every call. All calls return the same two tensors.

    The graph reads its inputs from fixed addresses. Each call copies its inputs there; they may lie in
    pinned memory. An instance must be made within `side_stream`, on which the function has run before.

    Args:
        function: what is captured.
        example: inputs of the shapes and types that every call has.
        device: the CUDA device.

    Raises:
        RuntimeError: the function cannot be captured, because it synchronises or allocates memory, or a
            DALI pipeline is alive on the device. The stream and PyTorch's memory are then as before, but the
            caller must drop whatever the function has kept, such as gradients.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], example: Sequence[Tensor], device: torch.device
    ) -> None:
        self._inputs = [value.to(device, copy=True) for value in example]
        self._graph, self._outputs = _capture(function, self._inputs, device)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for captured, value in zip(self._inputs, inputs, strict=True):
            captured.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


def _capture(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], device: torch.device
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]]:
    """Captures a call of `function`. Returns the graph, and the outputs that each replay overwrites."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with no_pipelines(device), _no_garbage_collection():
        torch.cuda.synchronize(device)
        time.sleep(SETTLE)
        torch.cuda.empty_cache()  # the graph cannot use cached memory: it allocates from its own pool
        # The calls of other threads must not break the capture.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = function(*inputs)
            graph.capture_end()
        except BaseException:
            _abandon(graph, pool, device)
            raise
    return graph, outputs


def _abandon(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], device: torch.device) -> None:
    """Ends a failed capture: gives back the stream, and the memory that PyTorch would keep."""
    try:
        graph.capture_end()
    except RuntimeError:  # CUDA has invalidated the capture
        _failed.append(graph)
        # Some versions of PyTorch have called the first already, and raise an error if it is called again.
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):
                end(device.index, pool)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switches the garbage collector off: freeing an old graph or stream during a capture would break it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
