"""What tests build runs with, and how they limit and interrupt a process."""

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from fastae.config import TrainConfig
from fastae.training.trainer import Trainer

CELEBA = Path(os.environ.get("FASTAE_CELEBA", "../shared/celeba/img_align_celeba"))
"""The folder of the real data set."""


def small_config(data, out=None, **others):
    """Returns the settings of a run that takes a second or two."""
    defaults = {"image_size": 32, "latent": 16, "compile": False, "batch_size": 4, "iterations": 2}
    return TrainConfig(data=str(data), out=out and str(out), **{**defaults, "gpu_sample_hz": 0, **others})


def small_model():
    """Makes a model that is not fastae's: it has nested layers, and any multiple of 4 pixels will do."""
    inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Sequential(inner),
        nn.ConvTranspose2d(8, 3, 4, stride=4),
        nn.Sigmoid(),
    )


def copied(run, to):
    """Copies a run or a sweep. Checkpoints, which fastae never changes in place, become hard links."""

    def copy(source, target):
        (os.link if "checkpoints" in source else shutil.copy2)(source, target)

    return shutil.copytree(run, to, symlinks=True, copy_function=copy)


@contextmanager
def _limited(kind, value):
    """Sets a limit of this process while the block runs."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def largest_file(size):
    """While the block runs, no file may grow beyond `size` bytes: the kernel refuses, as on a full disk."""
    return _limited(resource.RLIMIT_FSIZE, size)


def no_more_files():
    """While the block runs, the kernel refuses to open any file."""
    return _limited(resource.RLIMIT_NOFILE, 0)


def little_memory(size):
    """While the block runs, the kernel gives this process at most `size` more bytes of memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + size)


def at_iteration(monkeypatch, number, action):
    """Makes a run in this process call `action()` when iteration `number` begins."""
    advance = Trainer.advance

    def after_action(trainer):
        if trainer.iteration == number - 1:
            action()
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", after_action)
