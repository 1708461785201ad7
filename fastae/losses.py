"""The six reconstruction losses of the experiment, and the yardstick that compares them.

Each loss combines an element (squared error or cross entropy) with one of three reductions. The article
gave TensorFlow an *unreduced* tensor for `pixel` and `sample`, and TensorFlow differentiates a tensor as the
sum of its elements. So the objective of `minibatch` is the mean, that of `sample` the sum over an image of
the batch mean, and that of `pixel` the sum of all elements. Their gradients are the mean's times 1, C*H*W and
N*C*H*W (`gradient_scale`).

Images are (N, C, H, W) in [0, 1]. Everything is computed in float32, whatever the inputs' type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # only methods of tensors are called, so listing the losses does not import torch
    from torch import Tensor

LOG_OFFSET = 0.001
"""Added inside both logarithms of the cross entropy, as the article does."""

LOSS_INDEX_SCALE = 1e7
"""The article plots the mean squared error times this number."""

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
"""The window (11 x 11 pixels) and the constants of SSIM that Wang et al. (2004) use, for values in [0, 1]."""


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """`(x - y)^2` for each element: float32, the shape of the images, in [0, 1]."""
    return (images.float() - reconstruction.float()).square()


def cross_entropy(reconstruction: Tensor, images: Tensor) -> Tensor:
    """`-(x log(y + 0.001) + (1 - x) log(1 - y + 0.001))` for each element: float32, in about [0, 6.91].

    The offset makes it slightly negative (-0.001) where a black or white pixel is reproduced.
    """
    x, y = images.float(), reconstruction.float()
    return -(x * (y + LOG_OFFSET).log() + (1 - x) * (1 - y + LOG_OFFSET).log())


ELEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": cross_entropy,
    "mse": squared_error,
}

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "minibatch": lambda elements: elements.mean(),
    "pixel": lambda elements: elements.sum(),
    "sample": lambda elements: elements.mean(dim=0).sum(),
}


def _objective(reduction: str, element: str) -> Callable[[Tensor, Tensor], Tensor]:
    reduce, measure = REDUCTIONS[reduction], ELEMENTS[element]
    return lambda reconstruction, images: reduce(measure(reconstruction, images))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f"{reduction}_{element}": _objective(reduction, element)
    for reduction in REDUCTIONS
    for element in ELEMENTS
}
"""Name -> objective(reconstruction, images), a float32 scalar; in the order of the article's columns."""


def element_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The element of the loss `name`. Its mean is logged, whatever the reduction."""
    return ELEMENTS[name.split("_")[1]]


def gradient_scale(name: str, shape: Sequence[int]) -> int:
    """The k in: gradient of LOSSES[name] = k * gradient of the mean element; `shape` is (N, C, H, W)."""
    reduction = name.split("_")[0]
    return {"minibatch": 1, "sample": math.prod(shape[1:]), "pixel": math.prod(shape)}[reduction]


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
