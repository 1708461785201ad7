"""The article's convolutional autoencoder: images (N, 3, 128, 128) in [0, 1] to 512 numbers and back.

    encoder   conv5x5  3 -> 32 stride 1, then 64, 128, 256, 512 stride 2 (128 -> 8 pixels), each with
              batch norm, ReLU; linear 8*8*512 -> 512; tanh
    decoder   linear 512 -> 8*8*512; tanh; transposed conv5x5 stride 2 to 256, 128, 64, 32 (8 -> 128),
              each with batch norm, ReLU; conv5x5 -> 3; sigmoid

In the article, convolutions before batch norm have a bias. Batch norm subtracts the mean, and with it any
constant, so that these nine biases change nothing and their gradient is zero. They are omitted here.

TensorFlow, which the article used, pads a stride-2 5x5 convolution by (1, 2). `padding=2` pads by (2, 1) in
effect, as does `output_padding=1` in the transposed convolutions. If images and kernels are flipped along
both axes, the two networks are the same map, so that padding symmetrically loses nothing.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from fastae.utils.arguments import IMAGE_SIZE_MULTIPLE, LATENT, require_image_size, require_int

ENCODER_CHANNELS = (32, 64, 128, 256, 512)
DECODER_CHANNELS = (512, 256, 128, 64, 32)
KERNEL = 5


def _normalized(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """A convolution without bias, followed by batch norm and ReLU."""
    norm = nn.BatchNorm2d(convolution.out_channels, eps=1e-6)
    return [convolution, norm, nn.ReLU(inplace=True)]


class AutoEncoder(nn.Module):
    """The article's network for any size: `encoder` maps (N, 3, S, S) to (N, latent), and `decoder` back.

    Args:
        image_size: the side S of the images in pixels, a multiple of 16.
        latent: the length of the code.

    Raises:
        SettingError: one of the two is out of range.
    """

    def __init__(self, image_size: int = 128, latent: int = 512) -> None:
        super().__init__()
        image_size = require_image_size(image_size)
        latent = require_int(latent, "latent", LATENT)
        side = image_size // IMAGE_SIZE_MULTIPLE  # four convolutions of stride 2
        features = (ENCODER_CHANNELS[-1], side, side)
        half = KERNEL // 2

        encoder: list[nn.Module] = []
        inputs = 3
        for outputs in ENCODER_CHANNELS:
            stride = 1 if inputs == 3 else 2
            encoder += _normalized(nn.Conv2d(inputs, outputs, KERNEL, stride, padding=half, bias=False))
            inputs = outputs
        encoder += [nn.Flatten(), nn.Linear(math.prod(features), latent), nn.Tanh()]

        decoder: list[nn.Module] = [
            nn.Linear(latent, math.prod(features)),
            nn.Tanh(),
            nn.Unflatten(1, features),
        ]
        for inputs, outputs in itertools.pairwise(DECODER_CHANNELS):
            decoder += _normalized(
                nn.ConvTranspose2d(inputs, outputs, KERNEL, 2, padding=half, output_padding=1, bias=False)
            )
        decoder += [nn.Conv2d(DECODER_CHANNELS[-1], 3, KERNEL, padding=half), nn.Sigmoid()]

        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.apply(initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs images (N, 3, S, S) in [0, 1]: same shape and range."""
        return self.decoder(self.encoder(images))


def initialize(layer: nn.Module) -> None:
    """Sets the article's initial weights: normal, sigma = sqrt(2 / fan_in), cut at 2 sigma; biases zero.

    fan_in is the kernel's area x input channels, also for the transposed convolutions.
    """
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return
    if isinstance(layer, nn.Linear):
        fan_in = layer.in_features
    else:
        fan_in = math.prod(layer.kernel_size) * layer.in_channels
    sigma = math.sqrt(2 / fan_in)
    nn.init.trunc_normal_(layer.weight, std=sigma, a=-2 * sigma, b=2 * sigma)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
