"""Copies of the weights in bf16 that the optimizer writes, so that autocast need not cast the weights.

With autocast alone, a compiled step reads each float32 weight to write it in bf16, and each bf16 gradient to
write it in float32: 12 bytes per weight. The weights and Adam's moments stay float32, and checkpoints contain
only these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CAST_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""The layers whose weights autocast casts."""


class WeightCopies(dict[str, Tensor]):
    """Name -> bf16 copy, for the weights of a model's CAST_LAYERS; empty if some weights have two names.

    `fastae.experiment.adam.Adam` writes the copies. They also follow the model when it loads a state dict.
    Layers of derived classes have none, since they may use their weights in float32 as well.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = dict(model.named_parameters(remove_duplicate=False))
        if len(weights) > len(dict(model.named_parameters())):
            return  # Adam would update one of the two copies only
        for path, layer in model.named_modules():
            own = dict(layer.named_parameters(prefix=path, recurse=False))
            # A layer with other weights computes its weight from them, in float32.
            if type(layer) in CAST_LAYERS and own.keys() <= {f"{path}.weight", f"{path}.bias"}:
                self |= {name: weight.detach().bfloat16().requires_grad_() for name, weight in own.items()}
        model.register_load_state_dict_post_hook(self._load)

    @torch.no_grad()
    def _load(self, model: nn.Module, _keys: object) -> None:
        for name, copy in self.items():
            copy.copy_(model.get_parameter(name))
