"""The six losses and SSIM agree with NumPy in float64; the losses' gradients differ by the factor k."""

import numpy as np
import pytest
import torch

from fastae.experiment.losses import LOSSES
from fastae.experiment.metrics import loss_index, ssim

ARTICLE_ORDER = ["minibatch_bce", "minibatch_mse", "pixel_bce", "pixel_mse", "sample_bce", "sample_mse"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the offset inside the logarithms matters there
    reconstruction = torch.rand(3, 3, 8, 8, generator=generator)
    reconstruction[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    return reconstruction, images


def tensor_in_numpy(name, reconstruction, images):
    """Returns the tensor that the article passed to TensorFlow: a scalar, (C, H, W) or (N, C, H, W)."""
    x, y = images.numpy().astype(np.float64), reconstruction.numpy().astype(np.float64)
    reduction, element = name.split("_")
    if element == "mse":
        elements = (x - y) ** 2
    else:
        elements = -(x * np.log(y + 0.001) + (1 - x) * np.log(1 - y + 0.001))
    return {"minibatch": elements.mean(), "sample": elements.mean(axis=0), "pixel": elements}[reduction]


def test_the_six_losses_are_in_the_articles_order():
    assert list(LOSSES) == ARTICLE_ORDER


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_objective_and_logged_value_are_sum_and_mean_of_the_articles_tensor(name, batch):
    expected = tensor_in_numpy(name, *batch)
    objective = LOSSES[name](*batch)
    assert objective.shape == () and objective.dtype == torch.float32
    assert objective.item() == pytest.approx(expected.sum(), rel=1e-5)
    assert LOSSES[name].element.function(*batch).mean().item() == pytest.approx(expected.mean(), rel=1e-5)
    half = [tensor.bfloat16() for tensor in batch]
    assert torch.equal(LOSSES[name](*half), LOSSES[name](*(tensor.float() for tensor in half)))


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_gradient_is_k_times_that_of_the_mean(name, batch):
    reconstruction, images = batch
    y = reconstruction.double().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](y, images), y)
    (of_mean,) = torch.autograd.grad(LOSSES[name].element.function(y, images).mean(), y)
    k = LOSSES[name].gradient_scale(images.shape)
    torch.testing.assert_close(gradient, k * of_mean, rtol=1e-5, atol=1e-6 * k * of_mean.abs().max().item())


def test_loss_index_is_the_mean_squared_error_in_the_articles_unit():
    assert loss_index(0.0123) == pytest.approx(123_000)


def ssim_in_numpy(x, y):
    """Returns the SSIM of two channels (H, W) by its definition, window by window."""
    distance = np.arange(-5, 6)
    weights = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top, left in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
        a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        variances = (weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2)).sum()
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        found.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    return np.mean(found)


def test_ssim_agrees_with_its_definition():
    images = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    noisy = (images + torch.linspace(-0.3, 0.3, 20)).clamp(0, 1)
    pairs = zip(noisy.double().numpy(), images.double().numpy(), strict=True)
    expected = [np.mean([ssim_in_numpy(*each) for each in zip(x, y, strict=True)]) for x, y in pairs]
    assert ssim(noisy, images).tolist() == pytest.approx(expected, rel=1e-9)
    assert ssim(images, images).tolist() == pytest.approx([1, 1]) and ssim(1 - images, images).max() < 0
