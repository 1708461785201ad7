"""The yardsticks that compare reconstructions, whatever the loss: loss_index, PSNR and SSIM."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only methods of tensors are called
    from torch import Tensor

LOSS_INDEX_SCALE = 1e7
"""The article plots the mean squared error times this number."""

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""The window (11 x 11 pixels) and the constants of SSIM that Wang et al. (2004) use, for values in [0, 1]."""


def loss_index(squared_error_mean: float) -> float:
    """The yardstick that is logged with every loss: the mean squared error x 1e7, as the article plots it."""
    return squared_error_mean * LOSS_INDEX_SCALE


def psnr(squared_error_mean: float) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in dB; infinite if the error is zero."""
    return -10 * math.log10(squared_error_mean) if squared_error_mean else math.inf


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """The structural similarity of each pair of images, as Wang et al. (2004) define it.

    Local means, variances and the covariance are weighted by a Gaussian window. They are computed in float64:
    in TF32, which a GPU would use for float32, the variances would lose their precision.

    Args:
        reconstruction, images: (N, C, H, W) in [0, 1], H and W at least 11.

    Returns:
        float64 (N,) in [-1, 1]: the mean over the channels and over the windows that lie in the image.
    """
    x, y = reconstruction.double(), images.double()
    rows, columns = (_windows(size, x) for size in x.shape[-2:])

    def local(values: Tensor) -> Tensor:
        return rows @ values @ columns.mT

    mean_x, mean_y = local(x), local(y)
    covariance = local(x * y) - mean_x * mean_y
    variances = local(x * x + y * y) - mean_x**2 - mean_y**2
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _windows(size: int, like: Tensor) -> Tensor:
    """Returns weights (size - 10, size), with the dtype and device of `like`.

    Each row has the weights of one Gaussian window that lies within `size` pixels.
    """
    pixels = like.new_tensor(range(size))
    distances = pixels - pixels[SSIM_RADIUS : size - SSIM_RADIUS, None]
    weights = (-0.5 * (distances / SSIM_SIGMA) ** 2).exp() * (distances.abs() <= SSIM_RADIUS)
    return weights / weights.sum(dim=1, keepdim=True)
