"""Lowers a training step for sm_90: every kernel, the bytes that it moves, and the CUDA graph of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastae.config import TrainConfig
from fastae.data.loaders.batch_source import BatchSource
from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.decode import open_decoder
from fastae.data.loaders.host import HostSource
from fastae.data.loaders.resident import ResidentSource
from fastae.data.loaders.sampler import Sampler
from fastae.data.loaders.store import Store
from fastae.data.loaders.tuning import Tuning
from fastae.device.apply import use_device, use_tf32
from fastae.device.choose import Hardware, Precision, choose_device, choose_precision
from fastae.experiment.augment import Augmentation
from fastae.experiment.definition import Experiment
from fastae.experiment.losses import LOSSES
from fastae.training.session import batch_shape, build_model
from fastae.training.step.objective import TrainedModel, prepare
from fastae.training.step.step import CAPTURED, TrainingStep
from scripts.hollow_gpu.driver import LOG, Counts, Kernel, LibraryCall, captured_nodes, count_replays
from scripts.hollow_gpu.seams import replay_counters

IMAGES = 202_599
"""The number of CelebA's images: a store of 9.96e9 bytes, which exceeds 32-bit offsets."""


@dataclass(frozen=True)
class Step:
    """A step on the hollow GPU and the loader that feeds it."""

    step: TrainingStep
    loader: BatchSource
    trained: TrainedModel

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs on the device, as in the graph."""
        return [value.to(self.step.device) for value in self.loader.example()]


def make_step(
    config: TrainConfig,
    images: int = IMAGES,
    kind: type[TrainingStep] = TrainingStep,
    trained: TrainedModel | None = None,
    precision: Precision | None = None,
) -> Step:
    """Makes the step of `fastae train` with these settings, on an empty resident store.

    Args:
        config: the settings.
        images: the number of images in the store.
        kind: the class of the step.
        trained: the model of an earlier step, whose objective is compiled already.
        precision: the precision. Default: by the settings.
    """
    device = use_device(choose_device("cuda"))
    use_tf32(device)
    loader = stand_in_loader(config, images)
    precision = precision or choose_precision(device, config.amp)
    trained = trained or make_trained(config, precision)
    step = kind(
        trained,
        LOSSES[config.loss],
        batch_shape=batch_shape(config),
        lr=config.lr,
        make_batch=loader.make_batch,
    )
    count_replays(replay_counters(step))
    return Step(step, loader, trained)


def make_trained(config: TrainConfig, precision: Precision, world_size: int = 1) -> TrainedModel:
    """Makes the model, ready to be compiled on the hollow GPU."""
    device = choose_device("cuda")
    hardware = Hardware(device, precision, compiled=True, compile_note="")
    return prepare(build_model(Experiment(), config).to(device), hardware, world_size)


def stand_in_loader(
    config: TrainConfig, images: int, kind: type[ResidentSource | HostSource] = ResidentSource
) -> BatchSource:
    """Makes a loader over an empty store."""
    device, size = choose_device("cuda"), config.image_size
    where = torch.device("cpu") if kind is HostSource else device
    store = Store(
        torch.empty(images, size, 3, size, dtype=torch.uint8, device=where),
        torch.empty(images, 3, device=where),
        {},
    )
    decoder = open_decoder(CropResize(size=size), device, Tuning(threads=1, compiled=True))
    sampler = Sampler(images, config.batch_size, config.seed, Augmentation())
    return kind(store, sampler, decoder)


@contextmanager
def counting() -> Iterator[Callable[[], Counts]]:
    """Yields a function that returns the counts since the block began."""
    before = Counts.now()
    with redirect_stderr(StringIO()):  # Inductor prints the name of each module that it generates
        yield lambda: Counts.now() - before


def counted(work: Callable[[], Any]) -> Counts:
    """Returns the launches, copies and waits of a call."""
    with counting() as counts:
        work()
        return counts()


def lower(made: Step) -> tuple[Counts, list[Kernel], list[LibraryCall]]:
    """Compiles a step, and returns the counts, Triton kernels and library calls of a second one."""
    inputs = made.inputs
    counted(lambda: made.step._step(*inputs))
    first = len(LOG)
    counts = counted(lambda: made.step._step(*inputs))
    entries = LOG[first:]
    kernels = [entry for entry in entries if isinstance(entry, Kernel)]
    return counts, kernels, [entry for entry in entries if isinstance(entry, LibraryCall)]


def record(made: Step) -> tuple[str, Counts]:
    """Captures the step as a CUDA graph; returns the step's note and the counts of one replay."""
    with redirect_stderr(StringIO()):
        note = made.step.capture(made.loader.example())
    inputs = made.loader.example()
    return note, counted(lambda: made.step(*inputs))


class ReadsItsLoss(TrainingStep):
    """A step that waits for the device, as a control: CUDA refuses to capture it."""

    def _step(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        objective, error = super()._step(*inputs)
        float(objective)
        return objective, error


def lower_shared(config: TrainConfig) -> tuple[Counts, int]:
    """Runs the objective, forward and backward, with batch norm over two ranks that exchange nothing.

    Returns its counts and the number of kernels that spill.
    """
    device = use_device(choose_device("cuda"))
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        shared = make_trained(config, choose_precision(device, config.amp), world_size=2)
        trained = replace(shared, world_size=1)  # without DDP, whose reducer needs ranks that answer
        objective = trained.objective(LOSSES[config.loss].element)
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        images = torch.empty(shape, device=device).contiguous(memory_format=torch.channels_last)
        counted(lambda: objective(images)[0].backward())
        first = len(LOG)
        counts = counted(lambda: objective(images)[0].backward())
        return counts, spills([entry for entry in LOG[first:] if isinstance(entry, Kernel)])
    finally:
        dist.destroy_process_group()


def layout(tensor: Tensor) -> str:
    """Returns a tensor's dtype, shape and layout in words: 'bf16[64, 32, 128, 128] NHWC'."""
    dtype = str(tensor.dtype).removeprefix("torch.").replace("float", "f")
    text = f"{dtype}{list(tensor.shape)}"
    if tensor.dim() != 4:
        return text
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return f"{text} NHWC"
    return f"{text} {'NCHW' if tensor.is_contiguous() else tensor.stride()}"


def lines(kernels: Sequence[Kernel], libraries: Sequence[LibraryCall]) -> Iterator[str]:
    """Yields a line per kernel, and then the bytes moved in the forward and the backward pass."""
    yield f"{'':9}{'MB':>9} {'registers':>9} {'stack':>5}  {'grid':18} kernel"
    for kernel in kernels:
        direction = "backward" if kernel.backward else "forward"
        name = kernel.name.removeprefix("triton_")
        numbers = f"{kernel.megabytes:9.2f} {kernel.registers:9} {kernel.stack:5}"
        yield f"{direction:9}{numbers}  {kernel.grid!s:18} {name}"
    yield "cuDNN and cuBLAS:"
    for call in libraries:
        yield f"  {call.name:21} {', '.join(map(layout, call.tensors))}"
    for direction in ("forward", "backward"):
        chosen = [kernel for kernel in kernels if kernel.backward == (direction == "backward")]
        yield f"{direction:9}{len(chosen):4} x, {sum(kernel.megabytes for kernel in chosen):,.0f} MB"
    images = [tensor for call in libraries for tensor in call.tensors if tensor.dim() == 4]
    wrong = sum(not layout(tensor).endswith("NHWC") for tensor in images)
    yield f"of {len(images)} inputs of convolutions not channels-last: {wrong}"
    small = sum(kernel.megabytes < 1 for kernel in kernels)
    yield f"kernels that move less than 1 MB: {small}; most registers {max(k.registers for k in kernels)}"


def spills(kernels: Sequence[Kernel]) -> int:
    """Returns the number of kernels that keep values in memory because they lack registers."""
    return sum(kernel.stack > 0 for kernel in kernels)


def summary(kernels: Sequence[Kernel], counts: Counts, note: str, replay: Counts) -> dict[str, Any]:
    """Returns the figures by which a change of the step is judged."""
    return {
        "triton_launches": counts.triton,
        "megabytes": round(counts.megabytes, 1),
        "spills": spills(kernels),
        "host_syncs": counts.synchronisations + replay.synchronisations,
        "recorded": note == CAPTURED,
        "library_calls": counts.library,
        "aten_launches": counts.aten,
        "graph_nodes": captured_nodes(),
    }
