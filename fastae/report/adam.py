"""How far Adam's eps lets the three reductions of a loss differ, read from a run's own optimiser state.

Adam moves a weight by lr * m / (sqrt(v) + eps). Gradients k times as large make m and sqrt(v) k times as
large, so k cancels, but for eps: k * g with eps is g with eps / k. fastae differentiates the mean always, so
v is in the same units for all six losses, and a reduction is its eps / k. What eps can change is the step of
weights whose sqrt(v) is not far above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastae.losses import gradient_scale
from fastae.report.gather import Run
from fastae.step import ADAM_BETAS, ADAM_EPS

NEAR = 10
"""sqrt(v) below this many times eps: the step is more than 1 / (1 + NEAR), 9 %, shorter than without eps."""


@dataclass(frozen=True)
class EpsReach:
    """loss's eps / k, and where the weights' sqrt(v) (bias-corrected, as Adam compares it) stands against it.

    near: share of the weights below NEAR * eps / k. median: of sqrt(v), in units of the gradient of the mean
    element. quiet: share of the weights that never had a gradient, which are not counted.
    """

    loss: str
    k: int
    eps: float
    near: float
    median: float
    quiet: float


def eps_reach(run: Run, optimiser: Mapping[str, Any]) -> EpsReach | None:
    """Of a checkpoint's optimiser state. None where that is not what this version of fastae writes."""
    size = run.config.image_size
    k = gradient_scale(run.loss, (run.config.batch_size, 3, size, size))
    eps = ADAM_EPS / k
    try:
        roots = torch.cat(
            [_root(float(each["step"]), each["exp_avg_sq"]) for each in optimiser["state"].values()]
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    moved = roots[roots > 0]
    if not len(moved):
        return None
    return EpsReach(
        loss=run.loss,
        k=k,
        eps=eps,
        near=float((moved < NEAR * eps).double().mean()),
        median=float(moved.median()),
        quiet=1 - len(moved) / len(roots),
    )


def _root(step: float, v: torch.Tensor) -> torch.Tensor:
    return (v.float() / (1 - ADAM_BETAS[1] ** step)).sqrt().flatten()
