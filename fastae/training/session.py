"""Opens what runs under the same conditions share: hardware, data, one model, its compiled objectives.

A single run has a session of its own. A sweep has one session for all of its runs, so that the images are
decoded once and each kind of loss is compiled once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastae.config import TrainConfig
from fastae.data import CropResize, Tuning
from fastae.data.files.faults import FileFault, count_faults
from fastae.data.files.folder import ImageFolder
from fastae.data.files.manifest import Manifest
from fastae.data.files.recovery import ImageFiles
from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.choose import build_source
from fastae.data.loaders.decode import open_decoder, refuse_forked
from fastae.data.loaders.open import load_held_out
from fastae.data.loaders.sampler import Sampler
from fastae.data.source import open_source
from fastae.device.apply import apply
from fastae.device.cards import peak_flops
from fastae.device.choose import Hardware, choose_device, choose_precision, device_name
from fastae.device.compatibility import unusable_gpu_reason
from fastae.device.compiling import choose_compile, require_temporary_folder
from fastae.device.memory import require_room
from fastae.errors import SettingError
from fastae.experiment.definition import Experiment, StepCost, require_elements, step_cost
from fastae.monitor.summary import RunInfo
from fastae.runs.description import DataDescription, Environment, RunDescription
from fastae.runs.tensors import KINDS
from fastae.training.distributed import ALONE, Ranks, device_of, launched
from fastae.training.replaced_files import ReplacedFiles
from fastae.training.step.layers import set_tensors
from fastae.training.step.objective import TrainedModel, prepare
from fastae.training.step.step import TrainingStep
from fastae.utils.arguments import LoaderKind
from fastae.utils.cache import cache_folder, keep_kernels
from fastae.utils.console import log
from fastae.utils.environment import describe_environment
from fastae.utils.json import convert


@dataclass(frozen=True)
class Session:
    """One opened data set and one model on one device."""

    config: TrainConfig
    """The settings as the user chose them. The runs of a sweep have other losses, seeds and folders."""

    experiment: Experiment
    ranks: Ranks
    hardware: Hardware
    cost: StepCost

    trained: TrainedModel
    """The model, which each run trains from new initial weights."""

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

    loader: BatchSource
    """The training batches of the first run. `reseeded` makes those of another run."""

    @property
    def skipped(self) -> list[FileFault]:
        """The files that are not trained on."""
        return [*self.folder.skipped, *self.replaced.found]

    def new_step(self, config: TrainConfig, make_batch: Callable[..., Tensor]) -> TrainingStep:
        """Begins a training from the initial weights of `config.seed`, with a loader's `make_batch`."""
        images = torch.empty(batch_shape(config), device="meta")
        require_elements(self.experiment.loss(config.loss), images, images)  # a sweep has several losses
        if self.trained.initial_seed != config.seed:
            initial = build_model(self.experiment, config)
            set_tensors(self.trained.model, initial.state_dict(), dict(initial.named_buffers()))
        self.trained.initial_seed = None
        return TrainingStep(
            self.trained,
            self.experiment.loss(config.loss),
            batch_shape=batch_shape(config),
            lr=config.lr,
            make_batch=make_batch,
        )

    def info(self, config: TrainConfig) -> RunInfo:
        """Returns the properties of a run by which its use of the machine is judged."""
        hardware = self.hardware
        return RunInfo(
            loader=self.loader.kind,
            compiled=hardware.compiled,
            amp=config.amp,
            batch_size=config.batch_size,
            ranks=self.ranks.size,
            on_gpu=hardware.device.type == "cuda",
            image_flops=self.cost.image_flops,
            peak_flops=peak_flops(hardware.device, hardware.precision),
        )

    def describe(self, config: TrainConfig, capture: str, resumed: tuple[int, ...] = ()) -> RunDescription:
        """Describes a run.

        Args:
            config: the run's settings.
            capture: what was done to capture its step, in words.
            resumed: the iterations from which it was resumed.
        """
        hardware, folder, loss = self.hardware, self.folder, self.experiment.loss(config.loss)
        layout = "channels-last" if config.channels_last else "channels-first"
        ranks = f"{self.ranks.size} ranks" if self.ranks.size > 1 else ""
        notes = (hardware.precision.note, layout, hardware.compile_note, ranks, capture)
        return RunDescription(
            config,
            model=self.experiment.model_name,
            element=loss.element.name,
            reduction=loss.reduction.name,
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
            step=", ".join(filter(None, notes)),
            environment=self.environment,
            resumed=resumed,
        )


def open_session(
    user_config: TrainConfig,
    ranks: Ranks = ALONE,
    manifest: Manifest | None = None,
    *,
    experiment: Experiment | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Session:
    """Opens what runs with these settings share.

    Args:
        user_config: the settings. Runs of the session may have another loss, seed and folder.
        ranks: the processes that share the run.
        manifest: the images of a run that is resumed; None for those that are there now.
        experiment: the model and the losses; None for the article's.
        overrides: name of a setting -> the value that is used instead of the user's, such as the loader that
            was chosen automatically before the run was resumed.

    Raises:
        FastaeError: something is wrong with the settings, the device or the data.
    """
    refuse_forked()
    config = replace(user_config, **(overrides or {}))
    experiment = experiment or Experiment()
    meta = experiment.build_meta(config.image_size, config.latent)
    require_writable(meta)
    cost = step_cost(meta, experiment.loss(config.loss), batch_shape(config))
    cache = cache_folder(config.cache_dir)
    keep_kernels(cache)
    hardware = open_hardware(config, ranks, cost)
    folder, source = open_source(config.data, config.crop, cache=cache, manifest=manifest)
    replaced = ReplacedFiles(launched().is_main)  # in a sweep, `ranks` has this rank alone
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
    log_images(folder, is_resumed=manifest is not None)
    files = ImageFiles(folder.train, replaced.add)
    loader = open_batches(files, config, ranks, hardware, crop_resize, cache)
    if not (config.amp or manifest) and choose_precision(hardware.device, amp=True).dtype:
        log("hint      bf16 or fp16 is faster than float32 on this device: pass --amp")
    model = build_model(experiment, config)
    require_finite(model)
    return Session(
        config=user_config,
        experiment=experiment,
        ranks=ranks,
        hardware=hardware,
        cost=cost,
        trained=prepare(model.to(hardware.device), hardware, ranks.size, config.seed),
        environment=convert(describe_environment(), Environment),
        folder=folder,
        source=source,
        replaced=replaced,
        held_out=held_out,
        loader=loader,
    )


def log_images(folder: ImageFolder, is_resumed: bool) -> None:
    """Logs how the images are divided, and which files are not among them."""
    log(f"images    {folder.division}")
    if folder.skipped:
        lost = " (bad since the run began: replaced by the next)" if is_resumed else ""
        log(f"skipped   {count_faults(folder.skipped)}{lost}; skipped.txt names them", "yellow")


def open_batches(
    files: ImageFiles,
    config: TrainConfig,
    ranks: Ranks,
    hardware: Hardware,
    crop_resize: CropResize,
    cache: Path,
) -> BatchSource:
    """Opens the loader of this rank's part of the training batches. Raises FastaeError."""
    sampler = Sampler(
        count=len(files),
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=config.augmentation,
        part=ranks.rank,
        parts=ranks.size,
    )
    decoder = open_decoder(crop_resize, hardware.device, loader_tuning(config.threads, hardware))
    kept_in = cache if config.cache else None
    kind, agree = cast(LoaderKind, config.loader), partial(ranks.broadcast, "loader")
    loader = build_source(files, sampler, decoder, kind=kind, cache=kept_in, agree=agree)
    log(f"loader    {loader.kind}" + (f" ({loader.note})" if loader.note else ""))
    return loader


def open_hardware(config: TrainConfig, ranks: Ranks, cost: StepCost) -> Hardware:
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
    require_room(cost.state_bytes, f"training at --image-size {config.image_size}", hardware.device)
    apply(hardware)
    return hardware


def loader_tuning(threads: int | None, hardware: Hardware) -> Tuning:
    """Chooses how the training images are decoded and augmented."""
    tuning = Tuning(threads=threads, compiled=hardware.compiled)
    # The JPEG engine decodes some images, chosen by size, and its pixels differ from the CUDA cores'.
    return replace(tuning, hw_decoder_load=0.0) if hardware.deterministic else tuning


def require_writable(model: nn.Module) -> None:
    """Raises SettingError unless a checkpoint can hold a model's state dict."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.dtype not in KINDS:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise SettingError("model", f"cannot be saved: {name} is {kind}, or has no shape yet")


def require_finite(model: nn.Module) -> None:
    """Raises SettingError unless a model's initial state is finite, as a checkpoint's must be."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise SettingError("model", f"{name} is not finite: register it with persistent=False")


def batch_shape(config: TrainConfig) -> tuple[int, int, int, int]:
    """Returns (N, C, H, W) of the batch of all ranks."""
    return config.batch_size, 3, config.image_size, config.image_size


def build_model(experiment: Experiment, config: TrainConfig) -> nn.Module:
    """Makes the model with the initial weights of `config.seed`, which are the same on every device."""
    model = experiment.build(config.image_size, config.latent, config.seed)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload]
