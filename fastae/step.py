"""One training step: forward, loss, backward, Adam; with autocast, channels-last and torch.compile.

Two facts make it the same step for all six losses. The three reductions differ by a constant factor k
of the gradient, and Adam on k*g with eps is Adam on g with eps / k. So the mean is differentiated
always, which no precision overflows on, and k goes into Adam's eps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastae.device import Precision
from fastae.losses import element_of, gradient_scale, squared_error
from fastae.model import AutoEncoder

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


class TrainingStep:
    """`step(images)` trains on one batch and returns (mean loss element, mean squared error).

    Both are float32 scalars on the device: reading one waits for the device, so the loop does that
    only when it logs. Shapes must not change from call to call: the step is compiled for one.
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
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = precision
        self.element = element_of(loss)
        self.optimiser = torch.optim.Adam(
            model.parameters(),
            lr=lr,
            betas=ADAM_BETAS,
            eps=ADAM_EPS / gradient_scale(loss, batch_shape),
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.needs_scaling)
        # A function is compiled, not the module: the state dict keeps its plain names.
        self._measure = (
            torch.compile(self._forward, dynamic=False, fullgraph=True) if compiled else self._forward
        )

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
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
