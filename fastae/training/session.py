"""What runs under the same conditions share: the device, the opened data, one model, its compiled losses.

One run has a session of its own; a sweep has one for all of its runs, so that the images are decoded once
and each kind of loss is compiled once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastae.config import TrainConfig
from fastae.data import Geometry, load_images, open_loader
from fastae.data.check import Finding
from fastae.data.folder import count_faults
from fastae.data.loader import Loader
from fastae.data.manifest import Listing
from fastae.data.recovery import NoneLeft
from fastae.data.source import open_source
from fastae.errors import FastaeError
from fastae.losses import element_of
from fastae.model import AutoEncoder
from fastae.runs.folder import RunFolder
from fastae.training.distributed import ALONE, Ranks, device_of
from fastae.training.out_of_memory import require_room
from fastae.training.step import TrainingStep, objective_of
from fastae.training.sync_batch_norm import synchronise
from fastae.utils.cache import cache_folder
from fastae.utils.console import printable, say
from fastae.utils.device import choose_compile, choose_device, choose_kernels, choose_precision, describe
from fastae.utils.environment import describe_environment
from fastae.utils.memory import keep_freed_memory

Item = TypeVar("Item")

_first_process: int | None = None


class Session:
    """Opened by the settings of a run. `run` is the one under way, whose skipped.txt names the bad files.

    began_with: the images of a run that goes on; None for those that are there now.

    device, precision, compiled: what was chosen. folder, source: the data, and where they are from.
    loader: training batches; held_out: float32 (N, 3, S, S) on the device, to evaluate on.

    Raises FastaeError for what is wrong with the settings, the device or the data.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks = ALONE,
        run: RunFolder | None = None,
        began_with: Listing | None = None,
    ) -> None:
        refuse_forked()
        self.ranks = ranks
        self.run = run if ranks.first else None
        self.device = choose_device(device_of(config.device, ranks))
        require_room(config, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        choose_kernels(self.device, config.deterministic)
        self.precision = choose_precision(self.device, config.amp)
        self.compiled, self._compile_note = choose_compile(
            config.compile, self.device, config.iterations * config.batch_size, config.minutes or math.inf
        )
        cache = cache_folder(config.cache_dir)
        self.folder, self.source = open_source(config.data, config.crop, cache, began_with)
        self.geometry = Geometry(config.crop or self.folder.side, config.image_size, config.antialias)
        self.replaced: list[Finding] = []
        while True:
            try:
                self.held_out = self._load_held_out(config)
                break
            except NoneLeft as error:
                if began_with:
                    raise
                self.folder = self.folder.without(error.found)
        say(
            f"data      {self.source}: {len(self.folder.train):,} images to train on, "
            f"{len(self.folder.held_out):,} held out ({self.folder.listing.split})"
        )
        if self.folder.skipped and began_with:
            first, *others = self.folder.skipped
            lost = f"{printable(first.path):.200}" + (f" and {len(others):,} more" if others else "")
            say(f"lost      {lost} since the run began: replaced by the next in order")
        elif self.folder.skipped:
            where = f"named in {run.skipped}" if run else "fastae check --deep names them"
            say(f"skipped   {count_faults(self.folder.skipped)}: {where}")
        self.loader: Loader = open_loader(
            self.folder.train,
            batch_size=config.batch_size,
            device=self.device,
            seed=config.seed,
            augmentation=config.augmentation,
            geometry=self.geometry,
            threads=config.threads,
            kind=config.loader,
            compiled=self.compiled,
            cache=cache if config.cache else None,
            on_replaced=self._report_replaced,
            part=ranks.rank,
            parts=ranks.size,
        )
        say(f"loader    {self.loader.kind}" + (f" ({self.loader.note})" if self.loader.note else ""))
        self._environment = describe_environment()
        self._model: AutoEncoder | None = None
        self._objectives: dict[Callable, nn.Module] = {}

    def step(self, config: TrainConfig, loader: Loader) -> TrainingStep:
        """A new training of the one model, from the initial weights of `config.seed`."""
        initial = build_model(config, self.device)
        if self._model is None:
            self._model = initial
            if config.sync_bn and not self.ranks.alone:
                synchronise(self._model)
        else:  # in place: what was compiled holds these very weights
            self._model.load_state_dict(initial.state_dict())
        return TrainingStep(
            self._model,
            loss=config.loss,
            batch_shape=(config.batch_size, 3, config.image_size, config.image_size),
            lr=config.lr,
            precision=self.precision,
            compiled=self.compiled,
            images_of=loader.images,
            objective=self._objective(self._model, config.loss),
            skip_non_finite=config.on_nan == "skip",
        )

    def describe(self, config: TrainConfig, graph_note: str) -> dict[str, Any]:
        """What config.json and every checkpoint say of a run."""
        layout = "channels-last" if config.channels_last else "channels-first"
        ranks = "" if self.ranks.alone else f"{self.ranks.size} ranks"
        notes = (self.precision.note, layout, self._compile_note, graph_note, ranks)
        return {
            "config": config.as_dict(),
            "data": {
                "source": self.source,
                "folder": os.path.abspath(self.folder.root),  # noqa: PTH100
                "train": len(self.folder.train),
                "held_out": len(self.folder.held_out),
                "split": self.folder.listing.split,
                "evaluated_on": len(self.held_out),
                "fingerprint": self.folder.listing.fingerprint,
            },
            "loader": self.loader.kind,
            "compiled": self.compiled,
            "device": describe(self.device),
            "world_size": self.ranks.size,
            "step": ", ".join(filter(None, notes)),
            "environment": self._environment,
        }

    def _objective(self, model: AutoEncoder, loss: str) -> nn.Module:
        # The three reductions of an element are one objective: what differs is Adam's eps.
        element = element_of(loss)
        if element not in self._objectives:
            objective = objective_of(model, loss, self.precision, self.compiled)
            if not self.ranks.alone:
                objective = DistributedDataParallel(
                    objective,
                    broadcast_buffers=False,  # rank 0 evaluates and saves, by its own statistics
                    gradient_as_bucket_view=True,
                )
            self._objectives[element] = objective
        return self._objectives[element]

    def _load_held_out(self, config: TrainConfig) -> Tensor:
        held_out = self.folder.held_out
        indices = spread(range(len(held_out)), config.eval_images)
        return load_images(
            held_out,
            self.geometry,
            self.device,
            config.threads,
            indices=indices,
            on_replaced=self._report_replaced,
        )

    def _report_replaced(self, bad: Finding, substitute: str) -> None:
        self.replaced.append(bad)
        say(f"{printable(bad.path)}: {bad.fault.value}; replaced by {printable(substitute)}")
        if self.run:
            self.run.note_skipped([bad])


def refuse_forked() -> None:
    """Raises FastaeError in a fork of a process that has trained: its threads are not there, and it hangs."""
    global _first_process
    if _first_process not in (None, os.getpid()):
        raise FastaeError(
            "this process is a fork of one that has trained already, without its threads: "
            "start it by multiprocessing's 'spawn' instead"
        )
    _first_process = os.getpid()


def build_model(config: TrainConfig, device: torch.device) -> AutoEncoder:
    """The model with the initial weights of `config.seed`, the same on every device."""
    torch.manual_seed(config.seed)
    model = AutoEncoder(config.image_size, config.latent)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of these, evenly spaced, so that they stand for all of them."""
    stride = max(1, math.ceil(len(items) / number))
    return list(items[::stride])
