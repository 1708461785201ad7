"""Adam as TensorFlow 1 computes it (`tf.raw_ops.ApplyAdam`), which the article's program used.

With the gradient g of a weight w in its t-th update,

    m <- b1 m + (1 - b1) g
    v <- b2 v + (1 - b2) g^2
    w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

So eps is added to the root of the *uncorrected* second moment. The paper's Algorithm 1 and PyTorch add it to
the root of v / (1 - b2^t), which makes the same eps weigh less: by a factor of sqrt(1 - b2^t), which is
1/31.6 in the first update, 1/3.2 in the 100th and 1/1.3 in the 1,000th. The reductions of a loss differ by
eps alone (`fastae.experiment.losses`), so it has to be the article's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8

COPY_OPTIONS: dict[str, Any] = {"combo_kernels": True, "realize_reads_threshold": 0}
"""Options of Inductor: launch few kernels, and do not compute `step_size` for each weight."""


def step_size(step: Tensor, lr: Tensor) -> Tensor:
    """Returns `lr sqrt(1 - b2^t) / (1 - b1^t)` as a float32 scalar; `step` is t, `lr` the learning rate."""
    first, second = (1 - beta ** step.double() for beta in BETAS)
    return (lr * second.sqrt() / first).float()


class Adam(torch.optim.Optimizer):
    """TensorFlow's Adam for float32 weights. `mean`, `square` and `step_count` are its whole state.

    A weight may be differentiated through a copy in bf16 (`fastae.training.step.weight_copies`). `step` then
    reads the copy's gradient, and writes the weight and the copy. The tensors of the state are never
    replaced, since a CUDA graph holds them.

    Args:
        weights: name -> weight.
        lr: the learning rate.
        eps: the epsilon of the formula above.
        copies: name of a weight -> its copy in bf16. If there is one, `step` is compiled.
    """

    grad_scale: Tensor
    """The scale of the loss, by which `step` divides the gradients. A GradScaler sets it for each step."""

    found_inf: Tensor
    """1 if a gradient is not finite, and `step` is to change nothing, else 0. A GradScaler sets it, too."""

    _step_supports_amp_scaling = True  # tells GradScaler to set these two instead of waiting for the device

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        lr: float,
        eps: float = EPSILON,
        copies: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._weights = list(weights.values())
        self.leaves = [(copies or {}).get(name, weight) for name, weight in weights.items()]
        """The tensors that are differentiated: of each weight its copy, or the weight itself."""
        super().__init__(self.leaves, {})
        self.mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        """Name of a weight -> the moving mean of its gradient, m: float32, in the weight's memory format."""
        self.square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        """Name of a weight -> the moving mean of its squared gradient, v."""
        like = self._weights[0]
        self.step_count = torch.zeros((), dtype=torch.int64).to(like.device)
        """The number of updates so far, t: an int64 scalar."""
        # They are tensors, since a compiled update would be compiled again for each new number.
        self._lr, self._eps = like.new_tensor(lr, dtype=torch.float64), like.new_tensor(eps)
        self._eps_number = eps
        self._corrected = like.new_tensor(torch.inf)
        self._update = (
            torch.compile(_update_with_copies, dynamic=False, options=COPY_OPTIONS) if copies else None
        )

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Updates all weights. Each of them must have a gradient."""
        gradients = [cast(Tensor, leaf.grad) for leaf in self.leaves]
        means, squares = list(self.mean.values()), list(self.square.values())
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self.step_count += 1 if found_inf is None else 1 - found_inf.long()
        if self._update:
            each = (self._weights, self.leaves, gradients, means, squares)
            self._update(self.step_count, self._lr, self._eps, *each)
            return
        # PyTorch's fused kernel divides by 1 - b^t itself, which is 1 for an infinite t.
        torch._fused_adam_(
            self._weights,
            gradients,
            means,
            squares,
            [],
            [self._corrected] * len(gradients),
            lr=step_size(self.step_count, self._lr),
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=self._eps_number,
            amsgrad=False,
            maximize=False,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Sets the state to that of a new optimizer, in place, also after a step was interrupted."""
        vars(self).pop("grad_scale", None)
        vars(self).pop("found_inf", None)
        for value in (self.step_count, *self.mean.values(), *self.square.values()):
            value.zero_()

    @torch.no_grad()
    def restore(self, step: Tensor, mean: Mapping[str, Tensor], square: Mapping[str, Tensor]) -> None:
        """Copies a state of the same weights into this one, whatever its device and memory format."""
        self.step_count.copy_(step)
        for own, given in ((self.mean, mean), (self.square, square)):
            for name, value in own.items():
                value.copy_(given[name])


def _update_with_copies(step: Tensor, lr: Tensor, eps: Tensor, *each: Sequence[Tensor]) -> None:
    """Does one update, and copies the weights.

    `each` has the weights, their copies, the copies' gradients, and the moving means of gradients and
    squares.
    """
    size = step_size(step, lr)
    for weight, copy, gradient, mean, square in zip(*each, strict=True):
        exact = gradient.float()
        mean.lerp_(exact, 1 - BETAS[0])
        square.lerp_(exact.square(), 1 - BETAS[1])
        weight.sub_(size * mean / (square.sqrt() + eps))
        copy.copy_(weight)
