"""Replaces CUDA graphs on the CPU: records a function's operations, and runs them again on the same memory.

Like a graph, it records nothing of Python. A number that was read into Python, or a tensor that each step
makes anew, is replayed with its value from the recording.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "lift_fresh")
"""Operations that wait for a GPU: they copy values to the host, or from it (lift_fresh, by torch.tensor)."""


def tensors(values):
    """Returns the tensors in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class RefuseWaits(TorchDispatchMode):
    """While the block runs, an operation that would wait for a GPU, or that mixes devices, is an error."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(WAITS):
            raise AssertionError(f"{function} waits for the device")
        result = function(*args, **(kwargs or {}))
        devices = {tensor.device for tensor in tensors((args, kwargs, result))}
        if len(devices) > 1:
            raise AssertionError(f"{function} copies between devices")
        return result


class Refuse(TorchDispatchMode):
    """While the block runs, the operation `name` is an error, as CUDA refuses some during a capture."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == self.name:
            raise RuntimeError("CUDA error: operation not permitted\nand much more")
        return function(*args, **(kwargs or {}))


class _Recording(TorchDispatchMode):
    """Records the operations of the block, with their arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, tensors(result)))
        return result


class ReplayedFunction:
    """Replaces `fastae.training.step.cuda_graph.GraphedFunction`."""

    def __init__(self, function, example, device):
        self.inputs = [value.clone() for value in example]
        with RefuseWaits(), _Recording() as recording:
            self.outputs = function(*self.inputs)
        self.calls = recording.calls

    @torch.no_grad()
    def __call__(self, *inputs):
        for target, value in zip(self.inputs, inputs, strict=True):
            target.copy_(value)
        for function, args, kwargs, results in self.calls:
            for target, value in zip(results, tensors(function(*args, **kwargs)), strict=True):
                if target.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                    target.copy_(value)
        return self.outputs


class Graphs:
    """Replaces the module `fastae.training.step.cuda_graph`, for any device."""

    def __init__(self, function=ReplayedFunction):
        self.GraphedFunction = function

    def can_capture(self, device):
        return True

    def side_stream(self, device):
        return nullcontext()
