"""One training step: make the batch, forward, loss, backward, Adam; compiled, or one CUDA graph.

Two facts make it the same step for all six losses. The gradients of the three reductions differ only by a
constant factor k, and Adam on k * g with eps is Adam on g with eps / k. So the step always differentiates
the mean, which overflows in no precision, and gives Adam eps / k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from subprocess import CalledProcessError
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastae.device.choose import Precision
from fastae.experiment.losses import LOSSES, squared_error
from fastae.experiment.model import AutoEncoder
from fastae.runs.checkpoint import moments_like
from fastae.training import cuda_graph as graph
from fastae.training.relu import recompute_masks
from fastae.training.weight_copies import CopyingAdam, WeightCopies

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WARM_UP = 3
"""The number of steps before the CUDA graph is captured. Compiling, and the allocations of cuDNN and Adam,
happen in them."""

GPU_OPTIONS: dict[str, str | int | bool | Callable] = {"realize_reads_threshold": 16, "combo_kernels": True}
"""Options of Inductor. A value that kernels read up to 16 times is recomputed instead of stored, which
`recompute_masks` needs. Small kernels that do not depend on each other are launched as one."""

ATTEMPTS = 2
"""The number of captures that are tried: another thread may have disturbed the first."""


class Objective(nn.Module):
    """The model with its loss.

    Maps images (N, 3, S, S) in [0, 1] to the mean loss element, which is differentiated, and to the mean
    squared error: two float32 scalars.
    """

    def __init__(self, model: AutoEncoder, loss: str, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.copies: dict[str, Tensor] = {}
        """Name of a weight -> the tensor that is used and differentiated instead of it."""

        self.element = LOSSES[loss].element.function
        self.precision = precision

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision.autocast(images.device):
            if self.copies:
                reconstruction = functional_call(self.model, self.copies, images, tie_weights=False)
            else:
                reconstruction = self.model(images)
        objective = self.element(reconstruction, images).mean()
        return objective, squared_error(reconstruction.detach(), images).mean()


def objective_of(
    model: AutoEncoder, loss: str, precision: Precision, compiled: bool, world_size: int = 1
) -> nn.Module:
    """Makes the objective of `loss`. If it is compiled, it suits only its first batch's shape.

    The state dict of the model keeps its names. `world_size` ranks train the model.
    """
    objective = Objective(model, loss, precision)
    if not compiled:
        return objective
    options = None
    if next(model.parameters()).is_cuda:
        recompute_masks(model)
        options = GPU_OPTIONS
        if world_size == 1 and precision.dtype is torch.bfloat16:  # several ranks share float32 gradients
            objective.copies = WeightCopies(model)
    return cast(nn.Module, torch.compile(objective, dynamic=False, fullgraph=True, options=options))


class TrainingStep:
    """The training of a model: `step(*inputs)` trains on one batch.

    A call returns the mean loss element and the mean squared error, two float32 scalars on the device.
    Reading one waits for the device, so the loop reads them only when it logs. The next call may overwrite
    them. The inputs' shapes must not change from call to call. If the model is on a GPU, inputs may lie in
    pinned memory.

    Args:
        model: the model, whose weights are trained in place.
        loss: the name of the loss.
        batch_shape: (N, 3, S, S).
        lr: Adam's learning rate.
        precision: the precision of the objective.
        objective: the result of `objective_of` for this model.
        make_batch: makes images (N, 3, S, S) from the inputs, as a loader's `make_batch` does. It is part of
            the step, so that the CUDA graph contains it.
    """

    def __init__(
        self,
        model: AutoEncoder,
        *,
        loss: str,
        batch_shape: Sequence[int],
        lr: float,
        precision: Precision,
        objective: nn.Module,
        make_batch: Callable[..., Tensor] = lambda images: images,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.make_batch = make_batch
        copies = getattr(objective, "copies", {})
        self._leaves = [copies.get(name, weight) for name, weight in model.named_parameters()]
        adam = partial(CopyingAdam, weights=model.parameters()) if copies else torch.optim.Adam
        self.optimizer = adam(
            self._leaves,
            lr=lr,
            betas=ADAM_BETAS,
            eps=ADAM_EPS / LOSSES[loss].gradient_scale(batch_shape),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.scaler = self._new_scaler()
        self._objective = objective
        self._captured: graph.GraphedFunction | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self._captured is not None:
            return self._captured(*inputs)
        return self._step(*(value.to(self.device, non_blocking=True) for value in inputs))

    def capture(self, example: Sequence[Tensor]) -> str:
        """On a GPU, captures the whole step as a CUDA graph, which later calls replay.

        It must be called before training. It trains a few steps on the inputs `example`, and undoes them.
        Returns what was done, in words; "" on a CPU.
        """
        if not graph.can_capture(self.device):
            return ""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        for _ in range(ATTEMPTS):
            try:
                self._captured = self._graphed(example)
                note = "one CUDA graph per step"
            # CalledProcessError: from the C compiler that Triton starts.
            except (RuntimeError, CalledProcessError) as error:
                note = f"no CUDA graph ({str(error).splitlines()[0]:.120})"
                self._forget()
            self._undo(weights)
            if self._captured is not None:
                break
        return note

    def _graphed(self, example: Sequence[Tensor]) -> graph.GraphedFunction:
        """Captures the step, and verifies that a replay trains. Raises RuntimeError."""
        with graph.side_stream(self.device):
            for _ in range(WARM_UP):
                self._step(*(value.to(self.device) for value in example))
            self.optimizer.zero_grad(set_to_none=True)
            captured = graph.GraphedFunction(self._step, example, self.device)
        # A graph that was captured on another device or stream is empty. PyTorch only warns about that.
        before = [int(counter) for counter in self._counters()]
        captured(*example)
        if [int(counter) - 1 for counter in self._counters()] != before:
            raise RuntimeError("a replay did not update the model")
        return captured

    def _forget(self) -> None:
        """Drops what an interrupted step has left: gradients in the failed graph's memory, and flags."""
        self.optimizer.zero_grad(set_to_none=True)
        for flag in ("grad_scale", "found_inf"):
            self.optimizer.__dict__.pop(flag, None)
        self.scaler = self._new_scaler()

    def _undo(self, weights: dict[str, Tensor]) -> None:
        """Sets weights and optimizer back to their start; in place, since a graph holds the tensors."""
        self.model.load_state_dict(weights)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.scaler.load_state_dict(self._new_scaler().state_dict())

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaling)

    def gradient_norm(self) -> Tensor:
        """Returns the 2-norm of the last step's gradients of the mean loss element: a float32 scalar."""
        # The gradients are not scaled any more: fused Adam has divided them by the loss scale, in place.
        gradients = [leaf.grad.float() for leaf in self._leaves if leaf.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def state(self) -> dict[str, Any]:
        """Returns model, optimizer and scaler as state dicts, from which `restore` continues."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`, which `fastae.runs.checkpoint` has compared with the model.

        The tensors are changed in place, since a captured graph holds them. Adam's moments take the memory
        format of the weights, which Adam's kernel assumes; it may be another than in the run before.
        """
        self.model.load_state_dict(state["model"])
        for index, (weight, leaf) in enumerate(zip(self.model.parameters(), self._leaves, strict=True)):
            own = self.optimizer.state[leaf]
            for name, like in moments_like(weight).items():
                own.setdefault(name, torch.zeros_like(like)).copy_(state["optimizer"]["state"][index][name])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _step(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on inputs that are on the device. This is what a CUDA graph contains."""
        images = self.make_batch(*inputs)
        self.optimizer.zero_grad(set_to_none=True)
        objective, error = self._objective(images)
        self.scaler.scale(objective).backward()
        # Fused Adam takes the scale and the overflow flag as tensors: no wait for the device here.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return objective.detach(), error

    def _counters(self) -> list[Tensor]:
        """Returns the number of batches that each batch norm has seen: int64 scalars."""
        return [buffer for buffer in self.model.buffers() if not buffer.is_floating_point()]
