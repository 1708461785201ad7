"""The network of the article: its layers, its initial weights, and the claims about biases and padding."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastae.experiment.losses import cross_entropy
from fastae.experiment.model import AutoEncoder

WITH_WEIGHTS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear

pytestmark = pytest.mark.usefixtures("article_model")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoEncoder()


def test_layers_are_the_articles_in_order(model):
    layers = [layer for layer in model.modules() if not list(layer.children())]
    described = [
        (type(layer).__name__, *layer.weight.shape)
        if isinstance(layer, WITH_WEIGHTS)
        else type(layer).__name__
        for layer in layers
    ]
    norm = ["BatchNorm2d", "ReLU"]
    assert described == [
        ("Conv2d", 32, 3, 5, 5), *norm, ("Conv2d", 64, 32, 5, 5), *norm, ("Conv2d", 128, 64, 5, 5), *norm,
        ("Conv2d", 256, 128, 5, 5), *norm, ("Conv2d", 512, 256, 5, 5), *norm,
        "Flatten", ("Linear", 512, 8 * 8 * 512), "Tanh", ("Linear", 8 * 8 * 512, 512), "Tanh", "Unflatten",
        ("ConvTranspose2d", 512, 256, 5, 5), *norm, ("ConvTranspose2d", 256, 128, 5, 5), *norm,
        ("ConvTranspose2d", 128, 64, 5, 5), *norm, ("ConvTranspose2d", 64, 32, 5, 5), *norm,
        ("Conv2d", 3, 32, 5, 5), "Sigmoid",
    ]  # fmt: skip
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert all(norm.eps == 1e-6 and norm.track_running_stats for norm in norms)
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_299_459


def with_the_articles_biases(model):
    """Returns a copy whose convolutions add a bias to each channel before batch norm, as the article's do."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.randn(layer.out_channels, dtype=layer.weight.dtype))
    return model


def test_a_bias_before_batch_norm_changes_nothing():
    torch.manual_seed(0)
    ours = AutoEncoder(32, 16).double()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    articles = with_the_articles_biases(ours)
    added = {name for name, _ in articles.named_parameters()} - {name for name, _ in ours.named_parameters()}
    assert len(added) == 9

    def gradients(model):
        reconstruction = model(images)
        cross_entropy(reconstruction, images).mean().backward()
        return reconstruction, {name: weight.grad for name, weight in model.named_parameters()}

    (same, theirs), (reconstruction, expected) = gradients(articles), gradients(ours)
    torch.testing.assert_close(same, reconstruction, rtol=1e-9, atol=1e-12)
    for name, gradient in theirs.items():
        # float32's rounding, since the loss is computed in it.
        scale = 1e-6 * max(value.abs().max() for value in expected.values())
        wanted = torch.zeros_like(gradient) if name in added else expected[name]
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=scale, msg=name)


@pytest.mark.parametrize(("image_size", "latent"), [(16, 4), (64, 10)])
def test_the_model_maps_images_to_codes_and_to_images_in_the_unit_interval(image_size, latent):
    model, images = AutoEncoder(image_size, latent), torch.rand(2, 3, image_size, image_size)
    assert model.encoder(images).shape == (2, latent)
    reconstruction = model(images)
    assert reconstruction.shape == images.shape
    assert reconstruction.min() >= 0 and reconstruction.max() <= 1


def test_initial_weights_are_a_normal_cut_at_two_sigma(model):
    # A standard normal cut at +-2 has this standard deviation.
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    for layer in model.modules():
        if not isinstance(layer, WITH_WEIGHTS):
            continue
        inputs = layer.weight.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1]
        sigma = math.sqrt(2 / (inputs if isinstance(layer, nn.Linear) else 25 * inputs))
        assert layer.weight.abs().max() <= 2 * sigma * (1 + 1e-6)
        tolerance = 4 / math.sqrt(layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(cut * sigma, rel=tolerance)
        assert abs(layer.weight.mean().item()) < tolerance * sigma
        assert layer.bias is None or not layer.bias.any()


def tensorflow_padded(model, x):
    """Applies the model's layers with the padding of TensorFlow's SAME, which is (1, 2) for stride 2."""
    for layer in (*model.encoder, *model.decoder):
        if isinstance(layer, nn.Conv2d):
            before, after = (1, 2) if layer.stride == (2, 2) else (2, 2)
            padded = functional.pad(x, (before, after, before, after))
            x = functional.conv2d(padded, layer.weight, layer.bias, layer.stride)
        elif isinstance(layer, nn.ConvTranspose2d):
            # The transpose of the convolution that TensorFlow pads by (1, 2): 2n + 3 outputs, cut to 2n.
            x = functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2)[:, :, 1:-2, 1:-2]
        else:
            x = layer(x)
    return x


def test_symmetric_padding_is_tensorflows_padding_of_mirrored_images():
    torch.manual_seed(0)
    ours = AutoEncoder(32, 16).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    mirrored = AutoEncoder(32, 16).double()
    state = dict(ours.state_dict())
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = value.flip(2, 3)
    side = 2  # the feature maps before the latent are 512 x 2 x 2, and are mirrored too
    into, out = "encoder.16.weight", "decoder.0.weight"
    state[into] = state[into].reshape(16, 512, side, side).flip(2, 3).reshape(16, -1)
    state[out] = state[out].reshape(512, side, side, 16).flip(1, 2).reshape(-1, 16)
    mirrored.load_state_dict(state)

    expected = tensorflow_padded(mirrored, images.flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(ours(images), expected, rtol=1e-9, atol=1e-10)
    # The mirror is needed: without it the outputs differ.
    assert (ours(images) - tensorflow_padded(ours, images)).abs().max() > 1e-4
