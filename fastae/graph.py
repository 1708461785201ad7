"""A function of CUDA tensors, recorded once as a CUDA graph and replayed: one launch for all its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class GraphedFunction:
    """Replays `function` on copies of its inputs in fixed places; returns the same tensors every time.

    Raises RuntimeError where the function cannot be recorded: it synchronises, or allocates anew.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, Tensor]], example: Sequence[Tensor], warm_up: int
    ) -> None:
        self._inputs = [value.clone() for value in example]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # as CUDA demands of what precedes a recording
            for _ in range(warm_up):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads' calls, DALI's above all, must not break the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs
