"""What a run trains: the article's model and losses, or a user's own.

Before a run begins, its model is tried on the meta device, where tensors have shapes but no values. So a
model or a loss that cannot be trained is refused at once, and the FLOPs of a step are counted, not assumed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastae.errors import FastaeError, SettingError
from fastae.experiment.losses import LOSSES, Elements, Loss, losses_with
from fastae.experiment.model import AutoEncoder

ModelMaker = Callable[[], nn.Module]
"""Makes a user's own model, which maps (N, 3, S, S) in [0, 1] to the same shape."""

_seeding = threading.Lock()

ARTICLES_MODEL = f"{AutoEncoder.__module__}.{AutoEncoder.__qualname__}"


@dataclass(frozen=True)
class Experiment:
    """The model and the losses that runs can have. `Experiment()` is the article's."""

    make_model: ModelMaker | None = None
    """Makes a user's own model; None for the article's."""

    losses: Mapping[str, Loss] = field(default_factory=lambda: LOSSES)

    @property
    def model_name(self) -> str:
        """The name of the model's class or function, as a run records it."""
        if self.make_model is None:
            return ARTICLES_MODEL
        named = self.make_model if hasattr(self.make_model, "__qualname__") else type(self.make_model)
        return f"{named.__module__}.{named.__qualname__}"  # type: ignore[union-attr]

    def build(self, image_size: int, latent: int, seed: int = 0) -> nn.Module:
        """Makes a model in training mode, with the initial weights of `seed`: the same on every device.

        A user's own model knows its size itself.
        """
        with _seeding, torch.random.fork_rng(devices=[]):  # a user's program may use the same generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' as well
            model = self.make_model() if self.make_model else AutoEncoder(image_size, latent)
        return model.train()

    def build_meta(self, image_size: int, latent: int) -> nn.Module:
        """Makes the model on the meta device, where it takes no memory."""
        with torch.device("meta"):
            return self.build(image_size, latent)

    def loss(self, name: str) -> Loss:
        """Returns the loss of this name. Raises SettingError if there is none."""
        if name not in self.losses:
            raise SettingError("loss", f"{name!r:.60} is not one of: {', '.join(self.losses)}")
        return self.losses[name]

    def require_model(self, name: str | None, what: str) -> None:
        """Raises FastaeError unless the model of `what`, a run, can be made.

        Args:
            name: the name that the run records; None for a run of an older version.
            what: the run, in words.
        """
        if self.make_model is None and name not in (None, ARTICLES_MODEL):
            raise FastaeError(
                f"{what} was trained with the model {name!s:.200}: pass it in Python, as model="
            )


def experiment_with(
    model: ModelMaker | None = None, losses: Mapping[str, Elements] | None = None
) -> Experiment:
    """Returns the article's experiment with a user's own model and further losses.

    Raises SettingError if `model` cannot be called, or as `losses_with` does.
    """
    if isinstance(model, nn.Module) or not (model is None or callable(model)):
        raise SettingError(
            "model", f"must be a callable without arguments that returns a model, not {model!r:.60}"
        )
    return Experiment(model, losses_with(losses or {}))


@dataclass(frozen=True)
class StepCost:
    """What a training step takes, by shapes alone."""

    image_flops: float
    """The FLOPs per image of the convolutions and matrix products, forward and backward, as is usual for MFU.

    A multiply-add counts as two. The gradient of the first layer's input is not computed.
    """

    state_bytes: int
    """The bytes of the weights, their gradients and Adam's two moments, all in float32."""


def step_cost(model: nn.Module, loss: Loss, batch_shape: Sequence[int]) -> StepCost:
    """Computes the cost of a step from a model on the meta device.

    Args:
        model: the model, from `build_meta`.
        loss: the loss.
        batch_shape: (N, 3, S, S).

    Raises:
        SettingError: the model or the loss cannot be trained on batches of this shape.
    """
    images = torch.empty(*batch_shape, device="meta")
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            raise SettingError("model", f"must have float32 weights: {name} is {weight.dtype}")
    try:
        with FlopCounterMode(display=False) as counter:
            reconstruction = model(images)
            require_shape(reconstruction, images, "model")
            require_elements(loss, reconstruction, images).mean().backward()
            require_trainable(model)
    except (RuntimeError, ValueError, TypeError) as error:
        what = f"cannot be trained on a batch of shape {tuple(batch_shape)}: {error!s:.200}"
        raise SettingError("model", what) from error
    weights = sum(weight.numel() for weight in model.parameters())
    return StepCost(counter.get_total_flops() / len(images), state_bytes=4 * 4 * weights)


def require_elements(loss: Loss, reconstruction: Tensor, images: Tensor) -> Tensor:
    """Returns the elements of a loss. Raises SettingError unless they have the shape of the images."""
    try:
        elements = loss.element.function(reconstruction.float(), images)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        shape = tuple(images.shape)
        raise SettingError(
            "losses", f"{loss.element.name} fails for shape {shape}: {error!s:.200}"
        ) from error
    require_shape(elements, images, "losses")
    return elements


def require_trainable(model: nn.Module) -> None:
    """Raises SettingError unless each of a model's weights has a gradient."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            raise SettingError("model", f"must train all of its weights: {name} is frozen; use a buffer")
        if weight.grad is None:
            raise SettingError("model", f"must use all of its weights: {name} has no gradient")


def require_shape(value: object, images: Tensor, argument: str) -> None:
    """Raises SettingError, naming the argument, unless a value has the shape of the images."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != tuple(images.shape):
        raise SettingError(
            argument, f"must return {tuple(images.shape)} for images of that shape, not {shape}"
        )
