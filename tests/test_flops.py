"""The model's arithmetic, against PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastae.flops import rate_text, training_flops
from fastae.losses import LOSSES
from fastae.model import AutoEncoder


@pytest.mark.parametrize(("image_size", "latent"), [(32, 512), (48, 16)])
def test_flops_are_pytorchs_count(image_size, latent):
    counter = FlopCounterMode(display=False)
    model = AutoEncoder(image_size, latent)
    images = torch.rand(4, 3, image_size, image_size)
    with counter:
        LOSSES["minibatch_mse"](model(images), images).backward()
    assert 4 * training_flops(image_size, latent) == counter.get_total_flops()


def test_the_articles_step_in_round_numbers():
    assert training_flops() == pytest.approx(10.7e9, rel=0.01)


def test_rates_for_people():
    assert (rate_text(2.134e14), rate_text(3.72e9)) == ("213 TFLOP/s", "3.72 GFLOP/s")
