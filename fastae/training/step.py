"""One training step: make the images, forward, loss, backward, Adam; compiled, or one CUDA graph.

Two facts make it the same step for all six losses. The three reductions differ by a constant factor k
of the gradient, and Adam on k*g with eps is Adam on g with eps / k. So the mean is differentiated
always, which no precision overflows on, and k goes into Adam's eps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from subprocess import CalledProcessError
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastae.losses import element_of, gradient_scale, squared_error
from fastae.model import AutoEncoder
from fastae.runs.checkpoint import moments_like
from fastae.training import cuda_graph as graph
from fastae.training.relu import recompute_masks
from fastae.training.weight_copies import CopyingAdam, WeightCopies
from fastae.utils.device import Precision

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WARM_UP = 3
"""Steps before a CUDA graph is recorded: compiling, and the allocations of cuDNN and Adam, happen there."""

GPU_OPTIONS: dict[str, str | int | bool | Callable] = {"realize_reads_threshold": 16, "combo_kernels": True}
"""Inductor's. What kernels read up to 16 times is computed anew instead of stored, as `recompute_masks`
needs; small kernels that do not depend on each other are launched as one."""

ATTEMPTS = 2
"""Recordings that are tried: another thread may have disturbed the first."""


class Objective(nn.Module):
    """Images (N, 3, S, S) -> (mean loss element to differentiate, mean squared error): float32 scalars."""

    def __init__(self, model: AutoEncoder, loss: str, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.copies: dict[str, Tensor] = {}
        """By their names, tensors that are used, and differentiated, instead of the model's weights."""

        self.element = element_of(loss)
        self.precision = precision

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision.autocast(images.device):
            reconstruction = functional_call(self.model, self.copies, images, tie_weights=False)
        objective = self.element(reconstruction, images).mean()
        return objective, squared_error(reconstruction.detach(), images).mean()


def objective_of(
    model: AutoEncoder, loss: str, precision: Precision, compiled: bool, world_size: int = 1
) -> nn.Module:
    """The objective of `loss`, compiled for one shape; the model itself keeps its plain names."""
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
    """`step(*inputs)` trains on one batch and returns (mean loss element, mean squared error).

    objective: from `objective_of(model, ...)`. images_of: makes a batch (N, 3, S, S) of the inputs, the
    `images` of a loader; part of the step, so that it too is in the CUDA graph.

    Both results are float32 scalars on the device: reading one waits for the device, so the loop does
    that only when it logs; the next step may overwrite them. Shapes must not change from call to call:
    the step is compiled for one. Inputs may lie in pinned memory if the model is on a GPU.
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
        images_of: Callable[..., Tensor] = lambda images: images,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.images_of = images_of
        copies = getattr(objective, "copies", {})
        self._leaves = [copies.get(name, weight) for name, weight in model.named_parameters()]
        adam = partial(CopyingAdam, weights=model.parameters()) if copies else torch.optim.Adam
        self.optimizer = adam(
            self._leaves,
            lr=lr,
            betas=ADAM_BETAS,
            eps=ADAM_EPS / gradient_scale(loss, batch_shape),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.scaler = self._new_scaler()
        self._objective = objective
        self._recorded: graph.GraphedFunction | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self._recorded is not None:
            return self._recorded(*inputs)
        return self._step(*(value.to(self.device, non_blocking=True) for value in inputs))

    def record(self, example: Sequence[Tensor]) -> str:
        """On CUDA, records the whole step as one graph, which later calls replay; returns what was done.

        Call it before training. The steps that it trains on `example` to warm up are undone.
        """
        if not graph.can_record(self.device):
            return ""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        for _ in range(ATTEMPTS):
            try:
                self._recorded = self._graphed(example)
                note = "one CUDA graph a step"
            except (RuntimeError, CalledProcessError) as error:  # the latter from Triton's compiler of C
                note = f"no CUDA graph ({str(error).splitlines()[0]:.120})"
                self._forget()
            self._undo(weights)
            if self._recorded is not None:
                break
        return note

    def _graphed(self, example: Sequence[Tensor]) -> graph.GraphedFunction:
        """The step as a graph, of which a replay is known to train. Raises RuntimeError."""
        with graph.side_stream(self.device):
            for _ in range(WARM_UP):
                self._step(*(value.to(self.device) for value in example))
            self.optimizer.zero_grad(set_to_none=True)
            recorded = graph.GraphedFunction(self._step, example, self.device)
        # A graph that was recorded on another device or stream is empty, of which PyTorch only warns.
        before = [int(counter) for counter in self._counters()]
        recorded(*example)
        if [int(counter) - 1 for counter in self._counters()] != before:
            raise RuntimeError("a replay of it does not train")
        return recorded

    def _forget(self) -> None:
        """Drops what an interrupted step has left: gradients in a failed graph's memory, flags."""
        self.optimizer.zero_grad(set_to_none=True)
        for flag in ("grad_scale", "found_inf"):
            self.optimizer.__dict__.pop(flag, None)
        self.scaler = self._new_scaler()

    def _undo(self, weights: dict[str, Tensor]) -> None:
        """Back to these weights and a new optimizer: in place, since a graph holds these very tensors."""
        self.model.load_state_dict(weights)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.scaler.load_state_dict(self._new_scaler().state_dict())

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision.needs_scaling)

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the last step's gradients of the mean loss element: a float32 scalar."""
        # Not scaled any more: fused Adam divides them by the loss scale and stores them back.
        gradients = [leaf.grad.float() for leaf in self._leaves if leaf.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def state(self) -> dict[str, Any]:
        """Model, optimizer and scaler as state dicts: what `restore` continues from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`, whose tensors `fastae.runs.checkpoint` has compared with the model's.

        In place, since a recorded graph holds these very tensors. Adam's moments take the memory format of
        the weights, which may be another than in the run before: its kernel assumes that.
        """
        self.model.load_state_dict(state["model"])
        for index, (weight, leaf) in enumerate(zip(self.model.parameters(), self._leaves, strict=True)):
            own = self.optimizer.state[leaf]
            for name, like in moments_like(weight).items():
                own.setdefault(name, torch.zeros_like(like)).copy_(state["optimizer"]["state"][index][name])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _step(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images_of(*inputs)
        self.optimizer.zero_grad(set_to_none=True)
        objective, error = self._objective(images)
        self.scaler.scale(objective).backward()
        # Fused Adam takes the scale and the overflow flag as tensors: no wait for the device here.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return objective.detach(), error

    def _counters(self) -> list[Tensor]:
        """How many batches each batch norm has seen: int64 scalars."""
        return [buffer for buffer in self.model.buffers() if not buffer.is_floating_point()]
