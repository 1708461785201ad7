"""The six losses against NumPy in float64, and the factor k between their gradients."""

import numpy as np
import pytest
import torch

from fastae.losses import LOSSES, element_of, gradient_scale, loss_index

ARTICLE_ORDER = [
    "minibatch_bce", "minibatch_mse", "pixel_bce", "pixel_mse", "sample_bce", "sample_mse",
]  # fmt: skip


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the offset inside the logarithms matters there
    reconstruction = torch.rand(3, 3, 8, 8, generator=generator)
    reconstruction[0, 0, 0, :2] = torch.tensor([1.0, 0.0])
    return reconstruction, images


def tensor_in_numpy(name, reconstruction, images):
    """The tensor that the article handed to TensorFlow: scalar, (C, H, W) or (N, C, H, W)."""
    x, y = images.numpy().astype(np.float64), reconstruction.numpy().astype(np.float64)
    reduction, element = name.split("_")
    if element == "mse":
        elements = (x - y) ** 2
    else:
        elements = -(x * np.log(y + 0.001) + (1 - x) * np.log(1 - y + 0.001))
    return {
        "minibatch": elements.mean,
        "sample": lambda: elements.mean(axis=0),
        "pixel": lambda: elements,
    }[reduction]()


def test_the_six_in_the_articles_order():
    assert list(LOSSES) == ARTICLE_ORDER


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_objective_is_the_sum_of_the_articles_tensor(name, batch):
    expected = tensor_in_numpy(name, *batch).sum()
    objective = LOSSES[name](*batch)
    assert objective.shape == () and objective.dtype == torch.float32
    assert objective.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_what_is_logged_is_the_mean_of_the_articles_tensor(name, batch):
    expected = tensor_in_numpy(name, *batch).mean()
    assert element_of(name)(*batch).mean().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_gradient_is_k_times_that_of_the_mean(name, batch):
    reconstruction, images = batch
    y = reconstruction.double().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](y, images), y)
    (of_mean,) = torch.autograd.grad(element_of(name)(y, images).mean(), y)
    k = gradient_scale(name, images.shape)
    largest = of_mean.abs().max().item()
    torch.testing.assert_close(gradient, k * of_mean, rtol=1e-5, atol=1e-6 * k * largest)


def test_k_for_the_articles_batch():
    shape = (64, 3, 128, 128)
    assert gradient_scale("minibatch_mse", shape) == 1
    assert gradient_scale("sample_mse", shape) == 49_152
    assert gradient_scale("pixel_bce", shape) == 3_145_728


@pytest.mark.parametrize("name", ARTICLE_ORDER)
def test_half_precision_inputs_are_computed_in_float32(name, batch):
    reconstruction, images = (tensor.bfloat16() for tensor in batch)
    expected = LOSSES[name](reconstruction.float(), images.float())
    assert torch.equal(LOSSES[name](reconstruction, images), expected)


def test_loss_index_is_squared_error_times_ten_million():
    assert loss_index(0.0123) == pytest.approx(123_000)
