"""The model's FLOPs by PyTorch's counter agree with the formulas for its layers."""

import pytest

from benchmarks.roofline import layers
from fastae.experiment.definition import Experiment, step_cost
from fastae.experiment.losses import LOSSES
from fastae.utils.console import rate_text

pytestmark = pytest.mark.usefixtures("article_model")


def training_flops(image_size=128, latent=512):
    shape = (2, 3, image_size, image_size)
    return step_cost(Experiment().build_meta(image_size, latent), LOSSES["pixel_bce"], shape).image_flops


@pytest.mark.parametrize(("image_size", "latent"), [(128, 512), (48, 16)])
def test_flops_are_those_of_the_layers(image_size, latent):
    assert (
        training_flops(image_size, latent) == sum(layer.flops for layer in layers(3, image_size, latent)) / 3
    )


def test_flops_of_the_articles_model_and_rates_in_words():
    assert training_flops() == pytest.approx(10.7e9, rel=0.01)
    assert (rate_text(2.134e14), rate_text(3.72e9)) == ("213 TFLOP/s", "3.72 GFLOP/s")
