"""Copies of the weights in bf16 that the optimizer writes, so that autocast need not cast the weights.

With autocast alone, a compiled step reads each float32 weight to write it in bf16, and each bf16 gradient to
write it in float32: 12 bytes per weight. The weights and Adam's moments stay float32, and checkpoints contain
only these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastae.experiment.model import AutoEncoder
from fastae.runs.checkpoint import moments_like

OPTIONS: dict[str, Any] = {"combo_kernels": True, "realize_reads_threshold": 0}
"""Options of Inductor: launch few kernels, and do not compute the powers of Adam's betas for each weight."""


class WeightCopies(dict[str, Tensor]):
    """Name -> bf16 copy, for the weights that autocast casts, which are all but those of batch norm.

    `CopyingAdam` writes the copies. They also follow the model when it loads a state dict. A model may have
    several sets of copies. It must load a state dict before it is trained with another set.
    """

    def __init__(self, model: AutoEncoder) -> None:
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                for name, weight in layer.named_parameters():
                    self[f"{path}.{name}"] = weight.detach().bfloat16().requires_grad_()
        model.register_load_state_dict_post_hook(self._load)

    @torch.no_grad()
    def _load(self, model: nn.Module, _keys: object) -> None:
        for name, copy in self.items():
            copy.copy_(model.get_parameter(name))


class CopyingAdam(torch.optim.Adam):
    """A compiled Adam that reads the gradients of copies, and updates the weights and the copies.

    Its state dict is that of `torch.optim.Adam` for the weights.

    Args:
        copies: for each weight its copy, or the weight itself.
        weights: the float32 weights.
        options: those of `torch.optim.Adam`.
    """

    def __init__(self, copies: Iterable[Tensor], weights: Iterable[Tensor], **options: Any) -> None:
        super().__init__(copies, **options)
        self._copies, self._weights = self.param_groups[0]["params"], list(weights)
        # These are tensors, since the update would be compiled again for each new number.
        self._lr = self._weights[0].new_tensor(self.defaults["lr"])
        self._eps = self._weights[0].new_tensor(self.defaults["eps"])
        self._update = torch.compile(_update, dynamic=False, options=OPTIONS)

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Updates all weights. Each of them must have a gradient."""
        if not self.state:
            for copy, weight in zip(self._copies, self._weights, strict=True):
                self.state[copy] = {key: torch.zeros_like(like) for key, like in moments_like(weight).items()}
        # The moments are in the order of `moments_like`.
        steps, means, squares = zip(*(self.state[copy].values() for copy in self._copies), strict=True)
        torch._foreach_add_(steps, 1)
        gradients = [copy.grad for copy in self._copies]
        each = self._weights, self._copies, gradients, means, squares
        self._update(steps[0], self._lr, self._eps, self.defaults["betas"], *each)


def _update(
    step: Tensor, lr: Tensor, eps: Tensor, betas: tuple[float, float], *each: Iterable[Tensor]
) -> None:
    """Does one step of Adam.

    `each` has the weights, their copies, the gradients, and the moving means of gradients and their squares.
    """
    of_mean, of_square = (1 - beta ** step.double() for beta in betas)
    size, root = (lr / of_mean).float(), of_square.sqrt().float()
    for weight, copy, gradient, mean, square in zip(*each, strict=True):
        exact = gradient.float()
        mean.lerp_(exact, 1 - betas[0])
        square.lerp_(exact.square(), 1 - betas[1])
        weight.sub_(size * mean / (square.sqrt() / root + eps))
        copy.copy_(weight)
