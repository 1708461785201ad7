"""Opens what runs under the same conditions share: hardware, data, one model, its compiled objectives.

A single run has a session of its own. A sweep has one session for all of its runs, so that the images are
decoded once and each kind of loss is compiled once.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastae.config import TrainConfig
from fastae.data import CropResize, Loader, Tuning
from fastae.data.files.folder import ImageFolder, count_faults
from fastae.data.files.jpeg import FileFault
from fastae.data.files.manifest import Manifest
from fastae.data.files.recovery import ImageFiles
from fastae.data.files.search import count_ignored
from fastae.data.loaders.choose import build_loader
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.loader import LoaderKind
from fastae.data.loaders.open import load_held_out
from fastae.data.loaders.sampler import Sampler
from fastae.data.source import open_source
from fastae.device.apply import apply
from fastae.device.choose import Hardware, choose_device, choose_precision, device_name
from fastae.device.compatibility import unusable_gpu_reason
from fastae.device.compiling import choose_compile, require_temporary_folder
from fastae.device.memory import require_room
from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES
from fastae.experiment.model import AutoEncoder, training_bytes
from fastae.runs.description import DataDescription, Environment, RunDescription
from fastae.training.distributed import ALONE, Ranks, device_of
from fastae.training.replaced_files import ReplacedFiles
from fastae.training.step import TrainingStep, objective_of
from fastae.training.sync_batch_norm import synchronize
from fastae.utils.cache import cache_folder, keep_kernels
from fastae.utils.console import log
from fastae.utils.environment import describe_environment
from fastae.utils.json import convert

_first_process: int | None = None
_seeding = threading.Lock()


@dataclass(frozen=True)
class Session:
    """One opened data set on one device."""

    config: TrainConfig
    """The settings as the user chose them. The runs of a sweep have other losses, seeds and folders."""

    ranks: Ranks
    hardware: Hardware

    environment: Environment
    """The versions of the software."""

    folder: ImageFolder
    """The images, divided into those to train on and those to evaluate on."""

    source: str
    """Where the images are from, in words."""

    replaced: ReplacedFiles
    """The files that turned out to be bad when they were read."""

    held_out: Tensor
    """The images to evaluate on: float32 (N, 3, S, S) on the device."""

    loader: Loader
    """The training batches of the first run. `reseeded` makes those of another run."""

    @property
    def skipped(self) -> list[FileFault]:
        """The files that are not trained on."""
        return [*self.folder.skipped, *self.replaced.found]

    def describe(self, config: TrainConfig, at_once: int = 1) -> RunDescription:
        """Describes a run with these settings.

        Args:
            config: the run's settings.
            at_once: how many runs take turns.
        """
        hardware, folder = self.hardware, self.folder
        layout = "channels-last" if config.channels_last else "channels-first"
        ranks = f"{self.ranks.size} ranks" if self.ranks.size > 1 else ""
        notes = (hardware.precision.note, layout, hardware.compile_note, ranks)
        return RunDescription(
            config,
            data=DataDescription(
                source=self.source,
                folder=os.path.abspath(folder.root),  # noqa: PTH100
                train=len(folder.train),
                held_out=len(folder.held_out),
                split=folder.manifest.split,
                evaluated_on=len(self.held_out),
                fingerprint=folder.manifest.fingerprint,
            ),
            loader=self.loader.kind,
            compiled=hardware.compiled,
            device=device_name(hardware.device),
            device_type=hardware.device.type,
            world_size=self.ranks.size,
            at_once=at_once,
            step=", ".join(filter(None, notes)),
            environment=self.environment,
        )


class Models:
    """One model, which each run trains from new initial weights, and its objectives, each compiled once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._model: AutoEncoder | None = None
        self._objectives: dict[Callable, nn.Module] = {}

    def step(self, config: TrainConfig, make_batch: Callable[..., Tensor]) -> TrainingStep:
        """Begins a training from the initial weights of `config.seed`, with a loader's `make_batch`."""
        hardware, ranks = self.session.hardware, self.session.ranks
        initial = build_model(config, hardware.device)
        if self._model is None:
            self._model = initial
            if config.sync_bn and ranks.size > 1:
                synchronize(self._model)
        else:  # in place, since what was compiled holds these weights
            self._model.load_state_dict(initial.state_dict())
        # The three reductions of an element have one objective: only Adam's eps differs.
        element = LOSSES[config.loss].element.function
        if element not in self._objectives:
            objective = objective_of(
                self._model,
                config.loss,
                hardware.precision,
                compiled=hardware.compiled,
                world_size=ranks.size,
            )
            if ranks.size > 1:
                # PyTorch 2.13 renames an argument, and warns of the name that 2.11 has.
                with warnings.catch_warnings(action="ignore", category=FutureWarning):
                    objective = DistributedDataParallel(
                        objective,
                        broadcast_buffers=False,  # the main rank evaluates and saves its own statistics
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
            make_batch=make_batch,
        )


def open_session(
    user_config: TrainConfig,
    ranks: Ranks = ALONE,
    manifest: Manifest | None = None,
    *,
    at_once: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> Session:
    """Opens what runs with these settings share.

    Args:
        user_config: the settings. Runs of the session may have another loss, seed and folder.
        ranks: the processes that share the run.
        manifest: the images of a run that is resumed; None for those that are there now.
        at_once: how many runs take turns.
        overrides: name of a setting -> the value that is used instead of the user's, such as the loader that
            was chosen automatically before the run was resumed.

    Raises:
        FastaeError: something is wrong with the settings, the device or the data.
    """
    refuse_forked()
    config = replace(user_config, **(overrides or {}))
    config.require_ranks(ranks.size)
    cache = cache_folder(config.cache_dir)
    keep_kernels(cache)
    hardware = open_hardware(config, ranks)
    folder, source = open_source(config.data, config.crop, cache=cache, manifest=manifest)
    replaced = ReplacedFiles()
    crop_resize = CropResize(config.crop or folder.side, config.image_size, config.antialias)
    folder, held_out = load_held_out(
        folder,
        crop_resize,
        hardware.device,
        Tuning(threads=config.threads),
        number=config.eval_images,
        is_resumed=manifest is not None,
        on_replaced=replaced.add,
    )
    log(f"data      {source}")
    log(
        f"images    {len(folder.train):,} to train on, {len(folder.held_out):,} held out "
        f"({folder.manifest.split})"
    )
    if folder.ignored:
        log(f"ignored   {count_ignored(folder.ignored)}: training reads JPEG files only")
    if folder.skipped:
        lost = " (bad since the run began: replaced by the next)" if manifest else ""
        log(f"skipped   {count_faults(folder.skipped)}{lost}; skipped.txt names them", "yellow")
    files = ImageFiles(folder.train, replaced.add)
    sampler = Sampler(
        count=len(files),
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=config.augmentation,
        part=ranks.rank,
        parts=ranks.size,
    )
    decoder = open_decoder(crop_resize, hardware.device, loader_tuning(config.threads, hardware))
    kind = cast(LoaderKind, config.loader)
    kept_in = cache if config.cache else None
    loader = build_loader(files, sampler, decoder, kind=kind, cache=kept_in)
    log(f"loader    {loader.kind}" + (f" ({loader.note})" if loader.note else ""))
    if not config.amp and choose_precision(hardware.device, amp=True).dtype:
        log("hint      bf16 or fp16 is faster than float32 on this device: pass --amp")
    environment = convert(describe_environment(), Environment)
    return Session(
        config=user_config,
        ranks=ranks,
        hardware=hardware,
        environment=environment,
        folder=folder,
        source=source,
        replaced=replaced,
        held_out=held_out,
        loader=loader,
    )


def open_hardware(config: TrainConfig, ranks: Ranks) -> Hardware:
    """Chooses device, precision and compilation for these settings, and applies them to this process.

    Raises FastaeError if the device does not exist or has too little memory, or without a temporary folder.
    """
    require_temporary_folder()
    name = device_of(config.device, ranks)
    if name == "auto" and (reason := unusable_gpu_reason()):
        log(f"warning   training on the CPU: {reason}", "yellow")
        name = "cpu"
    device, images = choose_device(name), config.iterations * config.batch_size
    compiled, note = choose_compile(config.compile, device, images=images, minutes=config.minutes)
    hardware = Hardware(
        device,
        choose_precision(device, config.amp),
        compiled=compiled,
        compile_note=note,
        deterministic=config.deterministic,
    )
    model = f"training a model of --image-size {config.image_size} and --latent {config.latent}"
    require_room(training_bytes(config.image_size, config.latent), model, hardware.device)
    apply(hardware)
    return hardware


def loader_tuning(threads: int | None, hardware: Hardware) -> Tuning:
    """Chooses how the training images are decoded and augmented."""
    tuning = Tuning(threads=threads, compiled=hardware.compiled)
    # The JPEG engine decodes some images, chosen by size, and its pixels differ from the CUDA cores'.
    return replace(tuning, hw_decoder_load=0.0) if hardware.deterministic else tuning


def refuse_forked() -> None:
    """Raises FastaeError in a fork of a process that has trained: a fork lacks that process's threads."""
    global _first_process
    if _first_process not in (None, os.getpid()):
        raise FastaeError(
            "this process is a fork of one that has trained already, without its threads: "
            "start it by multiprocessing's 'spawn' instead"
        )
    _first_process = os.getpid()


def build_model(config: TrainConfig, device: torch.device) -> AutoEncoder:
    """Makes the model with the initial weights of `config.seed`, which are the same on every device."""
    with _seeding, torch.random.fork_rng(devices=[]):  # a user's program may use the same generator
        torch.manual_seed(config.seed)
        model = AutoEncoder(config.image_size, config.latent)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
