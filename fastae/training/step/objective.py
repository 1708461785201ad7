"""What a step differentiates: the model with a loss, compiled and shared by the ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from fastae.device.choose import Hardware, Precision
from fastae.device.compiling import allow_recompiling
from fastae.experiment.losses import Element, squared_error
from fastae.training.step.relu import recompute_masks
from fastae.training.step.sync_batch_norm import synchronize
from fastae.training.step.weight_copies import WeightCopies

GPU_OPTIONS: dict[str, str | int | bool | Callable] = {"realize_reads_threshold": 16, "combo_kernels": True}
"""Options of Inductor. A value that kernels read up to 16 times is recomputed instead of stored, which
`recompute_masks` needs. Small kernels that do not depend on each other are launched as one."""


class Objective(nn.Module):
    """The model with an element of a loss.

    Maps images (N, 3, S, S) in [0, 1] to the mean element, which is differentiated, and to the mean squared
    error: two float32 scalars.

    Args:
        model: the model.
        element: the element.
        precision: the precision of the model's arithmetic. The element is computed in float32.
        copies: name of a weight -> the tensor that is used and differentiated instead of it.
    """

    def __init__(
        self, model: nn.Module, element: Element, precision: Precision, copies: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.element = element.function
        self.precision = precision
        self.copies = dict(copies)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision.autocast(images.device):
            if self.copies:
                reconstruction = functional_call(self.model, self.copies, images, tie_weights=False)
            else:
                reconstruction = self.model(images)
        objective = self.element(reconstruction.float(), images).mean()
        return objective, squared_error(reconstruction.detach(), images).mean()


@dataclass
class TrainedModel:
    """One model, which the runs of a session train one after the other, and its objectives.

    Each objective is compiled once. The reductions of an element share one, since they differ by Adam's
    epsilon alone. Use `prepare` to make it.
    """

    model: nn.Module
    hardware: Hardware
    world_size: int = 1
    """The number of ranks that train the model together."""

    initial_seed: int | None = None
    """The seed whose initial weights the model has; None if it has been trained."""

    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a weight -> the bf16 copy that is differentiated instead of it."""

    objectives: dict[str, nn.Module] = field(default_factory=dict)
    """Name of an element -> the compiled objective."""

    kernels: str | None = None
    """What is special about cuDNN's kernels, in words; None if they have not been chosen."""

    def eager(self, element: Element) -> Objective:
        """Makes the objective of an element, not compiled."""
        return Objective(self.model, element, self.hardware.precision, self.copies)

    def objective(self, element: Element) -> nn.Module:
        """Returns the objective of an element. A compiled one suits only its first batch's shape."""
        if element.name not in self.objectives:
            objective: nn.Module = self.eager(element)
            if self.hardware.compiled:
                options = GPU_OPTIONS if self.hardware.device.type == "cuda" else None
                compiled = torch.compile(objective, dynamic=False, fullgraph=True, options=options)
                objective = cast(nn.Module, compiled)
            self.objectives[element.name] = self._shared(objective)
        return self.objectives[element.name]

    def _shared(self, objective: nn.Module) -> nn.Module:
        """Returns an objective whose gradients are averaged over the ranks."""
        if self.world_size == 1:
            return objective
        # PyTorch 2.13 renames an argument, and warns of the name that 2.11 has.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            return DistributedDataParallel(
                objective,
                broadcast_buffers=False,  # batch norm's are the same on all ranks; the main rank's are saved
                gradient_as_bucket_view=True,
            )


def prepare(
    model: nn.Module, hardware: Hardware, world_size: int = 1, initial_seed: int | None = None
) -> TrainedModel:
    """Makes a model ready to be trained on its device: replaces layers, and copies weights where that helps.

    Raises SettingError if its batch norms cannot be shared by several ranks.
    """
    if hardware.compiled:
        allow_recompiling()
    if world_size > 1:
        synchronize(model)
    copies: Mapping[str, Tensor] = {}
    if hardware.compiled and hardware.device.type == "cuda":
        recompute_masks(model)
        if world_size == 1 and hardware.precision.dtype is torch.bfloat16:  # ranks share float32 gradients
            copies = WeightCopies(model)
    return TrainedModel(model, hardware, world_size, initial_seed, copies)
