"""The reconstruction losses: an element, such as the squared error, combined with a reduction.

The article gave TensorFlow an *unreduced* tensor for `pixel` and `sample`, and TensorFlow differentiates a
tensor as the sum of its elements. So the objective of `minibatch` is the mean, that of `sample` the sum over
an image of the batch mean, and that of `pixel` the sum of all elements. Their gradients are the mean's times
1, C*H*W and N*C*H*W (`Loss.gradient_scale`).

To add a loss, add its element to ELEMENTS: options, sweeps, reports and tests iterate over LOSSES. A loss of
a user's own needs no change here (`losses_with`).

Images are (N, C, H, W) in [0, 1]. The elements are computed in float32, whatever the inputs' type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastae.errors import SettingError

if TYPE_CHECKING:  # only methods of tensors are called, so listing the losses does not import torch
    from torch import Tensor

LOG_OFFSET = 0.001
"""Added inside both logarithms of the cross entropy, as the article does."""

OWN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
LOSS_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}")
"""The names that a user's elements, and losses, may have. They become parts of folder names."""

Elements = Callable[["Tensor", "Tensor"], "Tensor"]
"""A function of (reconstruction, images), both (N, C, H, W), that returns an error of the same shape."""


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """`(x - y)^2` for each element: float32, the shape of the images, in [0, 1]."""
    return (images.float() - reconstruction.float()).square()


def cross_entropy(reconstruction: Tensor, images: Tensor) -> Tensor:
    """`-(x log(y + 0.001) + (1 - x) log(1 - y + 0.001))` for each element: float32, in about [0, 6.91].

    The offset makes it slightly negative (-0.001) where a black or white pixel is reproduced.
    """
    x, y = images.float(), reconstruction.float()
    return -(x * (y + LOG_OFFSET).log() + (1 - x) * (1 - y + LOG_OFFSET).log())


@dataclass(frozen=True)
class Element:
    """How one value of a reconstruction is compared with the image's."""

    name: str
    """The last part of a loss's name."""

    label: str
    """The name in texts."""

    function: Elements

    shades: Mapping[str, str] | None = None
    """Name of a reduction -> the color of its curves, '#rrggbb'. Default: figures choose from OWN_SHADES."""

    filled: bool = True
    """Whether the markers of its curves are filled. Two elements with curves in one figure should differ."""


def _shades(light: str, medium: str, dark: str) -> Mapping[str, str]:
    return {"minibatch": light, "pixel": medium, "sample": dark}


CROSS_ENTROPY = Element(
    "bce", "cross entropy", cross_entropy, shades=_shades("#f3ab63", "#dd6b0d", "#7a2c00")
)
SQUARED_ERROR = Element(
    "mse", "squared error", squared_error, shades=_shades("#7fbbe8", "#2079bd", "#0a2f5c"), filled=False
)
ELEMENTS = (CROSS_ENTROPY, SQUARED_ERROR)
"""The elements whose losses fastae offers."""

OWN_SHADES = (
    _shades("#8fd3b6", "#1b9e77", "#06503a"),
    _shades("#c9b2e6", "#8a5cc2", "#432073"),
    _shades("#f2a7c8", "#d03a80", "#741040"),
    _shades("#d9cb6b", "#a08c00", "#4d4300"),
    _shades("#bfc4cb", "#7a828c", "#363c44"),
)
"""The colors of elements without their own, in the order in which a figure has them.

Further elements have the same colors with other dashes.
"""


@dataclass(frozen=True)
class Reduction:
    """How the elements of a batch become the objective."""

    name: str
    """The first part of a loss's name."""

    function: Callable[[Tensor], Tensor]
    """Returns the objective, a scalar, from the elements (N, C, H, W)."""

    gradient_scale: Callable[[Sequence[int]], int]
    """Returns the k in: gradient = k * gradient of the mean element; the argument is (N, C, H, W)."""

    width: float
    """The line width of its curves, in points. Curves of one element may coincide: the widest lies below."""

    marker: str
    """Matplotlib's name of the marker of its curves."""


MINIBATCH = Reduction("minibatch", lambda elements: elements.mean(), lambda shape: 1, width=5.0, marker="o")
PIXEL = Reduction("pixel", lambda elements: elements.sum(), math.prod, width=2.6, marker="s")
SAMPLE = Reduction(
    "sample",
    lambda elements: elements.mean(dim=0).sum(),
    lambda shape: math.prod(shape[1:]),
    width=1.0,
    marker="^",
)
REDUCTIONS = (MINIBATCH, PIXEL, SAMPLE)


@dataclass(frozen=True)
class Loss:
    """An element with a reduction. Calling it returns the article's objective, a float32 scalar.

    The mean of `element.function` is what is logged, whatever the reduction.
    """

    element: Element
    reduction: Reduction

    @property
    def name(self) -> str:
        """The name in settings and files, such as minibatch_bce."""
        return f"{self.reduction.name}_{self.element.name}"

    def __call__(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return self.reduction.function(self.element.function(reconstruction, images))

    def gradient_scale(self, shape: Sequence[int]) -> int:
        """Returns the k in: gradient of this loss = k * gradient of the mean element, for a batch's shape."""
        return self.reduction.gradient_scale(shape)


def _combined(elements: Iterable[Element]) -> Mapping[str, Loss]:
    """Returns name -> loss for each reduction of each element."""
    each = [Loss(element, reduction) for reduction in REDUCTIONS for element in elements]
    return MappingProxyType({loss.name: loss for loss in each})


LOSSES = _combined(ELEMENTS)
"""Name -> loss, in the order of the article's columns. It is read-only."""


def losses_with(own: Mapping[str, Elements]) -> Mapping[str, Loss]:
    """Returns LOSSES with those of a user's own elements, which can have every reduction.

    Args:
        own: name -> function of (reconstruction, images), both float32 (N, C, H, W) in [0, 1]. It returns the
            elements: float32, of the same shape. `{"l1": f}` adds minibatch_l1, pixel_l1 and sample_l1. It is
            called on PyTorch's meta device first, so constants must be moved with `.to(images.device)`.

    Raises:
        SettingError: a name is taken, or is not made of small letters, digits and underscores.
    """
    for name, function in own.items():
        if not isinstance(name, str) or not OWN_NAME.fullmatch(name):
            raise SettingError("losses", f"names must match {OWN_NAME.pattern}, which {name!r:.60} does not")
        if not callable(function):
            raise SettingError("losses", f"{name!r} must be a function of (reconstruction, images)")
    elements = [Element(name, name, function) for name, function in own.items()]
    found = _combined((*ELEMENTS, *elements))
    if len(found) < len(REDUCTIONS) * (len(ELEMENTS) + len(elements)):
        raise SettingError("losses", f"{', '.join(own)}: one of these names a loss that fastae has itself")
    return found


def _unknown(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Stands for an element whose function is in a user's program."""
    raise NotImplementedError("this loss is defined in a program of its own")


def loss_described(name: str, element: str | None, reduction: str | None) -> Loss:
    """Returns the loss that a run's description names. A user's own has its name and look, but no function.

    Args:
        name: the loss's name.
        element, reduction: the names of its parts, which older versions of fastae did not record.

    Raises:
        ValueError: no loss has this name, and the parts do not make one.
    """
    if name in LOSSES:
        return LOSSES[name]
    for each in REDUCTIONS:
        if each.name == reduction and element and OWN_NAME.fullmatch(element):
            loss = Loss(Element(element, element, _unknown), each)
            if loss.name == name:
                return loss
    raise ValueError(f"{name!r:.60} is not a loss: {', '.join(LOSSES)}")
