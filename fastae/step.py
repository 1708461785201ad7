"""One training step: make the images, forward, loss, backward, Adam; compiled, or one CUDA graph.

Two facts make it the same step for all six losses. The three reductions differ by a constant factor k
of the gradient, and Adam on k*g with eps is Adam on g with eps / k. So the mean is differentiated
always, which no precision overflows on, and k goes into Adam's eps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastae.device import Precision
from fastae.graph import GraphedFunction
from fastae.losses import element_of, gradient_scale, squared_error
from fastae.model import AutoEncoder

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
WARM_UP = 3
"""Steps before a CUDA graph is recorded: compiling, and the allocations of cuDNN and Adam, happen there."""


def as_they_are(images: Tensor) -> Tensor:
    """What a loader whose inputs are the images themselves makes of them."""
    return images


class TrainingStep:
    """`step(*inputs)` trains on one batch and returns (mean loss element, mean squared error).

    images_of: makes a batch (N, 3, S, S) of the inputs, a loader's `images`; part of the step, so that
    it too is in the CUDA graph. Both results are float32 scalars on the device: reading one waits for
    the device, so the loop does that only when it logs; the next step may overwrite them. Shapes must
    not change from call to call: the step is compiled for one.
    """

    def __init__(
        self,
        model: AutoEncoder,
        *,
        loss: str,
        batch_shape: Sequence[int],
        lr: float,
        precision: Precision,
        compiled: bool,
        images_of: Callable[..., Tensor] = as_they_are,
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.element = element_of(loss)
        self.images_of = images_of
        self.optimiser = torch.optim.Adam(
            model.parameters(),
            lr=lr,
            betas=ADAM_BETAS,
            eps=ADAM_EPS / gradient_scale(loss, batch_shape),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.needs_scaling)
        # A function is compiled, not the module: the state dict keeps its plain names.
        self._measure = (
            torch.compile(self._forward, dynamic=False, fullgraph=True) if compiled else self._forward
        )
        self._run: Callable[..., tuple[Tensor, Tensor]] = self._step

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(*inputs)

    def record(self, example: Sequence[Tensor]) -> str:
        """On CUDA, records the whole step as one graph, which later calls replay; says what was done.

        Call it before training and before DALI starts, whose threads may synchronise the device, which
        a recording does not survive. The steps that it trains on `example` to warm up are undone.
        """
        if self.device.type != "cuda":
            return ""
        if self.precision.needs_scaling:
            return "no CUDA graph (fp16 skips steps that overflow, which a graph cannot)"
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            self._run = GraphedFunction(self._step, example, WARM_UP)
        except RuntimeError as error:
            note = f"no CUDA graph ({str(error).splitlines()[0]:.120})"
        else:
            note = "one CUDA graph a step"
        # In place, since the graph holds these very tensors.
        self.model.load_state_dict(before)
        for state in self.optimiser.state.values():
            for value in state.values():
                value.zero_()
        return note

    def _step(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images_of(*inputs)
        self.optimiser.zero_grad(set_to_none=True)
        objective, error = self._measure(images)
        self.scaler.scale(objective).backward()
        # Fused Adam takes the scale and the overflow flag as tensors: no wait for the device here.
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return objective.detach(), error

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.precision.autocast(self.device):
            reconstruction = self.model(images)
        objective = self.element(reconstruction, images).mean()
        return objective, squared_error(reconstruction.detach(), images).mean()
