"""Compares the results of cuDNN's fastest kernels with those of its deterministic ones.

cuDNN is asked for its fastest kernels, and chooses by time alone. On some GPUs, some of its kernels have
computed wrong gradients (https://github.com/pytorch/pytorch/issues/150700), which would spoil a run unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)

TOLERANCE = 0.02
"""The norm of the difference of two results, divided by the norm of one. Rounding to bf16 makes 0.004."""


def are_right(differentiate: Callable[[], None]) -> bool:
    """Returns whether the fastest kernels agree with the deterministic ones in all convolutions of a step.

    Each convolution is computed twice from the same inputs. The gradients of whole steps could not be
    compared: rounding alone makes those of the first layers differ by 20 % in bf16.

    Args:
        differentiate: runs a model forward and backward, not compiled.
    """
    with _Comparison() as comparison:
        differentiate()
    return not comparison.errors or not (torch.stack(comparison.errors) > TOLERANCE).any().item()


class _Comparison(TorchDispatchMode):
    """Computes the convolutions of the block twice, and collects the relative errors."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        if function in CONVOLUTIONS:
            with deterministic_kernels():  # PyTorch keeps cuDNN's choices for them separately
                expected = function(*args, **(kwargs or {}))
            # One tensor, or the gradients of input, weight and bias: None for those that nothing needs.
            for one, other in zip(tree_leaves(results), tree_leaves(expected), strict=True):
                if one is not None:
                    self._compare(one, other)
        return results

    def _compare(self, result: Tensor, expected: Tensor) -> None:
        # A product of zeros gives 0 / 0 = NaN, and an overflow in fp16 as well. Neither is an error.
        self.errors.append((result.float() - expected.float()).norm() / expected.float().norm())


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Makes cuDNN use kernels of its deterministic engines, which it chooses by rules instead of timings.

    `cudnn.flags` would also set whether TF32 is used.
    """
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
