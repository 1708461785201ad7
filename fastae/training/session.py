"""What runs under the same conditions share: the device, the opened data, one model, its compiled objectives.

One run has a session of its own; a sweep has one for all of its runs, so that the images are decoded once
and each kind of loss is compiled once.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastae.config import TrainConfig
from fastae.data import CropResize, Loader, Tuning, load_images
from fastae.data.files.folder import ImageFolder, count_faults, count_ignored
from fastae.data.files.jpeg import FileFault
from fastae.data.files.manifest import Manifest
from fastae.data.files.recovery import ImageFiles, NoneLeft
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.loader import LoaderKind, build_loader
from fastae.data.loaders.sampler import Sampler
from fastae.data.source import open_source
from fastae.errors import FastaeError
from fastae.losses import element_of
from fastae.model import AutoEncoder
from fastae.runs.description import DataDescription, Environment, RunDescription
from fastae.runs.folder import RunFolder
from fastae.training.compatibility import unusable_gpu_reason
from fastae.training.distributed import ALONE, Ranks, device_of
from fastae.training.out_of_memory import require_room
from fastae.training.step import TrainingStep, objective_of
from fastae.training.sync_batch_norm import synchronize
from fastae.utils import device as devices
from fastae.utils.cache import cache_folder, keep_kernels
from fastae.utils.console import console, log, printable
from fastae.utils.environment import describe_environment
from fastae.utils.json import convert
from fastae.utils.limits import keep_freed_memory
from fastae.utils.sample import evenly_spaced

NAMED = 3
"""Replaced files that the log names; of more it gives the number."""

_first_process: int | None = None
_seeding = threading.Lock()


@dataclass(frozen=True)
class Hardware:
    """What runs use. compile_note: whether torch.compile is used, and why, in words."""

    device: torch.device
    precision: devices.Precision
    compiled: bool
    compile_note: str


class ReplacedFiles:
    """The files that turned out to be bad while they were read, each replaced by another."""

    def __init__(self) -> None:
        self.found: list[FileFault] = []
        self.runs: list[RunFolder] = []
        """The runs in progress; each lists these files."""

    def add(self, bad: FileFault, substitute: str) -> None:
        """For loaders: a file is bad, and is replaced by another."""
        self.found.append(bad)
        for run in self.runs:
            run.note_skipped([bad])
        quiet, number = console.quiet, len(self.found)
        console.quiet = quiet and not self.runs  # from then on each rank reads other files
        if number <= NAMED:
            log(f"{printable(bad.path)}: {bad.fault.value}; replaced by {printable(substitute)}")
        elif number.bit_count() == 1:  # at 4, 8, 16, ...
            log(f"{number:,} files that cannot be decoded were replaced: skipped.txt names them")
        console.quiet = quiet


@dataclass(frozen=True)
class Session:
    """One opened data set on one device."""

    ranks: Ranks
    hardware: Hardware
    environment: Environment
    images: ImageFolder
    source: str
    """Where the images are from, in words."""

    replaced: ReplacedFiles
    held_out: Tensor
    """The images to evaluate on: float32 (N, 3, S, S) on the device."""

    loader: Loader
    """Training batches."""

    @property
    def skipped(self) -> list[FileFault]:
        """The files that are not trained on."""
        return [*self.images.skipped, *self.replaced.found]

    def describe(self, config: TrainConfig, graph_note: str = "", at_once: int = 1) -> RunDescription:
        """What a run with these settings is made with.

        graph_note: what `TrainingStep.record` returned. at_once: how many runs take turns.
        """
        hardware, images = self.hardware, self.images
        layout = "channels-last" if config.channels_last else "channels-first"
        ranks = f"{self.ranks.size} ranks" if self.ranks.size > 1 else ""
        notes = (hardware.precision.note, layout, hardware.compile_note, graph_note, ranks)
        return RunDescription(
            config,
            data=DataDescription(
                source=self.source,
                folder=os.path.abspath(images.root),  # noqa: PTH100
                train=len(images.train),
                held_out=len(images.held_out),
                split=images.manifest.split,
                evaluated_on=len(self.held_out),
                fingerprint=images.manifest.fingerprint,
            ),
            loader=self.loader.kind,
            compiled=hardware.compiled,
            device=devices.describe(hardware.device),
            device_type=hardware.device.type,
            world_size=self.ranks.size,
            at_once=at_once,
            step=", ".join(filter(None, notes)),
            environment=self.environment,
        )


class Models:
    """One model, trained anew by each run that takes it, and its objectives, each compiled once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._model: AutoEncoder | None = None
        self._objectives: dict[Callable, nn.Module] = {}

    def step(self, config: TrainConfig, images_of: Callable[..., Tensor]) -> TrainingStep:
        """A new training, from the initial weights of `config.seed`. images_of: a loader's `images`."""
        hardware, ranks = self.session.hardware, self.session.ranks
        initial = build_model(config, hardware.device)
        if self._model is None:
            self._model = initial
            if config.sync_bn and ranks.size > 1:
                synchronize(self._model)
        else:  # in place: what was compiled holds these very weights
            self._model.load_state_dict(initial.state_dict())
        # The three reductions of an element are one objective: what differs is Adam's eps.
        element = element_of(config.loss)
        if element not in self._objectives:
            objective = objective_of(
                self._model, config.loss, hardware.precision, hardware.compiled, ranks.size
            )
            if ranks.size > 1:
                # PyTorch 2.13 renames an argument, and warns of the name that 2.11 has.
                with warnings.catch_warnings(action="ignore", category=FutureWarning):
                    objective = DistributedDataParallel(
                        objective,
                        broadcast_buffers=False,  # the main rank evaluates and saves, by its own statistics
                        gradient_as_bucket_view=True,
                    )
            self._objectives[element] = objective
        return TrainingStep(
            self._model,
            loss=config.loss,
            batch_shape=(config.batch_size, 3, config.image_size, config.image_size),
            lr=config.lr,
            precision=hardware.precision,
            objective=self._objectives[element],
            images_of=images_of,
        )


def open_session(
    config: TrainConfig, ranks: Ranks = ALONE, manifest: Manifest | None = None, at_once: int = 1
) -> Session:
    """Everything that runs with these settings share.

    manifest: the images of a run that is resumed; None for those that are there now. at_once: how many runs
    take turns. Raises FastaeError for what is wrong with the settings, the device or the data.
    """
    refuse_forked()
    config.require_ranks(ranks.size)
    cache = cache_folder(config.cache_dir)
    keep_kernels(cache)
    hardware = choose_hardware(config, ranks)
    images, source = open_source(config.data, config.crop, cache, manifest)
    replaced = ReplacedFiles()
    crop_resize = CropResize(config.crop or images.side, config.image_size, config.antialias)
    images, held_out = load_held_out(
        images, config, hardware.device, crop_resize, replaced, is_resumed=manifest is not None
    )
    log(f"data      {source}")
    log(
        f"images    {len(images.train):,} to train on, {len(images.held_out):,} held out "
        f"({images.manifest.split})"
    )
    if images.ignored:
        log(f"ignored   {count_ignored(images.ignored)}: training reads JPEG files only")
    if images.skipped:
        lost = ", gone or bad since the run began: replaced by the next" if manifest else ""
        log(f"skipped   {count_faults(images.skipped)}{lost}; skipped.txt names them", "yellow")
    files = ImageFiles(images.train, replaced.add)
    sampler = Sampler(len(files), config.batch_size, config.seed, config.augmentation, ranks.rank, ranks.size)
    decoder = open_decoder(crop_resize, hardware.device, loader_tuning(config, hardware))
    kind = cast(LoaderKind, config.loader)
    loader = build_loader(files, sampler, decoder, kind, cache if config.cache else None, at_once)
    log(f"loader    {loader.kind}" + (f" ({loader.note})" if loader.note else ""))
    if not config.amp and devices.choose_precision(hardware.device, amp=True).dtype:
        log("hint      bf16 or fp16 is faster than float32 on this device: pass --amp")
    environment = convert(describe_environment(), Environment)
    return Session(ranks, hardware, environment, images, source, replaced, held_out, loader)


def choose_hardware(config: TrainConfig, ranks: Ranks) -> Hardware:
    """What `config` runs on here. Raises FastaeError for a device that is not there, or too small, and
    without a temporary folder."""
    devices.require_temporary_folder()
    name = device_of(config.device, ranks)
    if name == "auto" and (reason := unusable_gpu_reason()):
        log(f"warning   training on the CPU: {reason}", "yellow")
        name = "cpu"
    device = devices.choose_device(name)
    require_room(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    devices.choose_kernels(device, config.deterministic)
    compiled, note = devices.choose_compile(
        config.compile, device, config.iterations * config.batch_size, config.minutes or math.inf
    )
    return Hardware(device, devices.choose_precision(device, config.amp), compiled, note)


def loader_tuning(config: TrainConfig, hardware: Hardware) -> Tuning:
    """How the training images are decoded and augmented."""
    tuning = Tuning(threads=config.threads, compiled=hardware.compiled)
    # The JPEG engine's pixels are not those of the GPU's cores; which images it gets depends on their sizes.
    return replace(tuning, hw_decoder_load=0.0) if config.deterministic else tuning


def load_held_out(
    images: ImageFolder,
    config: TrainConfig,
    device: torch.device,
    crop_resize: CropResize,
    replaced: ReplacedFiles,
    *,
    is_resumed: bool,
) -> tuple[ImageFolder, Tensor]:
    """Decodes the images to evaluate on. A new run divides its files anew if none of these can be decoded."""
    while True:
        held_out = images.held_out
        try:
            return images, load_images(
                held_out,
                crop_resize,
                device,
                Tuning(threads=config.threads),
                indices=evenly_spaced(range(len(held_out)), config.eval_images),
                on_replaced=replaced.add,
            )
        except NoneLeft as error:
            if is_resumed:
                raise
            images = images.without(error.found)


def refuse_forked() -> None:
    """Raises FastaeError in a fork of a process that has trained, where its threads are missing."""
    global _first_process
    if _first_process not in (None, os.getpid()):
        raise FastaeError(
            "this process is a fork of one that has trained already, without its threads: "
            "start it by multiprocessing's 'spawn' instead"
        )
    _first_process = os.getpid()


def build_model(config: TrainConfig, device: torch.device) -> AutoEncoder:
    """The model with the initial weights of `config.seed`, the same on every device."""
    with _seeding, torch.random.fork_rng(devices=[]):  # the generator is the process's, and maybe its user's
        torch.manual_seed(config.seed)
        model = AutoEncoder(config.image_size, config.latent)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
