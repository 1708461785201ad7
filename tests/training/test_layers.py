"""Layers are replaced wherever they are in a model, and what cannot be replaced is an error."""

import copy

import pytest
import torch
from torch import nn

from fastae.errors import SettingError
from fastae.training.step.relu import RecomputedReLU, recompute_masks
from fastae.training.step.sync_batch_norm import SyncBatchNorm2d, synchronize
from fastae.training.step.weight_copies import WeightCopies


class Block(nn.Module):
    """A residual block, as many autoencoders nest them."""

    def __init__(self, channels):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, x):
        return x + self.path(x)


@pytest.fixture
def nested():
    return nn.ModuleDict({"down": nn.Sequential(Block(4), nn.ModuleList([Block(4)])), "up": Block(4)})


def test_nested_layers_are_replaced_and_the_state_dict_keeps_its_names(nested):
    before = copy.deepcopy(nested)
    assert (recompute_masks(nested), synchronize(nested)) == (3, 3)
    kinds = [type(layer) for layer in nested.modules()]
    assert kinds.count(RecomputedReLU) == kinds.count(SyncBatchNorm2d) == 3
    assert not {nn.ReLU, nn.BatchNorm2d} & set(kinds)
    assert nested.state_dict().keys() == before.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(value, nested.state_dict()[name])


def test_a_layer_that_stands_in_two_places_stays_one_layer():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(norm, nn.Sequential(norm))
    assert synchronize(model) == 1
    assert model[0] is model[1][0]


def test_a_model_that_is_itself_the_layer_is_an_error():
    with pytest.raises(RuntimeError, match="the model itself"):
        recompute_masks(nn.ReLU())


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


@pytest.mark.parametrize(
    "norm",
    [OwnNorm(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None)],
    ids=["derived", "1d", "no weights", "cumulative mean"],
)
def test_a_batch_norm_whose_statistics_cannot_be_shared_is_refused_by_name(norm):
    with pytest.raises(SettingError, match=f"inner.0 is a {type(norm).__name__}"):
        synchronize(nn.ModuleDict({"inner": nn.Sequential(norm)}))


def test_weights_of_plain_layers_have_copies_and_a_model_with_shared_weights_has_none(nested):
    assert len(WeightCopies(nested)) == 6  # weight and bias of three convolutions
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert not WeightCopies(nn.Sequential(first, second))
