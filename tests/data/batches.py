"""Opens loaders on the CPU, and compares their batches."""

import itertools

import torch

from fastae.data import Tuning, open_loader


def opened(paths, kind="dali", *, threads=2, compiled=False, **options):
    """Opens a loader of these files, with batches of eight unless another size is given."""
    options = {"batch_size": 8, "device": "cpu", "seed": 3} | options
    return open_loader(paths, kind=kind, tuning=Tuning(threads=threads, compiled=compiled), **options)


def take(batches, number):
    return list(itertools.islice(batches, number))


def same(ours, theirs):
    """Returns whether two lists of tensors are equal, bit for bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def differ(ours, theirs):
    """Returns the largest difference between two lists of batches."""
    return max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True))
