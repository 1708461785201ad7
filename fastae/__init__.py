"""Trains one CelebA autoencoder with the losses of an article of 2017, or with your own.

Public names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastae import data
    from fastae.config import TrainConfig
    from fastae.data import open_loader
    from fastae.errors import FastaeError
    from fastae.experiment.losses import LOSSES
    from fastae.experiment.model import AutoEncoder
    from fastae.monitor.watch import watch
    from fastae.report.make import make_report
    from fastae.runs.loaded_model import load_model
    from fastae.sweep.sweep import run_sweep
    from fastae.training.resume import resume
    from fastae.training.runner import train

__all__ = [
    "LOSSES",
    "AutoEncoder",
    "FastaeError",
    "TrainConfig",
    "data",
    "load_model",
    "make_report",
    "open_loader",
    "resume",
    "run_sweep",
    "train",
    "watch",
]

_MODULES = {
    "__version__": "utils.environment",
    "FastaeError": "errors",
    "LOSSES": "experiment.losses",
    "AutoEncoder": "experiment.model",
    "TrainConfig": "config",
    "load_model": "runs.loaded_model",
    "open_loader": "data",
    "make_report": "report.make",
    "resume": "training.resume",
    "run_sweep": "sweep.sweep",
    "train": "training.runner",
    "watch": "monitor.watch",
}
"""The module that defines each name; `data` is itself a module."""


def __getattr__(name: str) -> Any:
    if name == "data":
        return import_module("fastae.data")
    if name not in _MODULES:
        raise AttributeError(f"module 'fastae' has no attribute {name!r}")
    return getattr(import_module(f"fastae.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
