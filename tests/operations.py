"""A CUDA graph's stand-in on the CPU: a function's operations, recorded and run again into the same memory.

Like a graph it knows nothing of Python: a number that was read into Python, or a tensor that is made anew for
each step, is replayed as it was at the recording.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "lift_fresh")
"""Operations that wait for a GPU: they bring values to the host, or (lift_fresh: torch.tensor) from it."""


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class RefuseWaits(TorchDispatchMode):
    """Within it an operation is an error that would have the host wait for a GPU, or mixes devices."""

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
    """Within it one operation is an error, as CUDA refuses some in a recording."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == self.name:
            raise RuntimeError("CUDA error: operation not permitted\nand much more")
        return function(*args, **(kwargs or {}))


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, tensors(result)))
        return result


class ReplayedFunction:
    """As `fastae.training.cuda_graph.GraphedFunction`."""

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
    """As the module `fastae.training.cuda_graph`, for any device."""

    def __init__(self, function=ReplayedFunction):
        self.GraphedFunction = function

    def can_capture(self, device):
        return True

    def side_stream(self, device):
        return nullcontext()
