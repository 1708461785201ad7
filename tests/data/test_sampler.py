"""The order of images and the random parameters follow their definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastae.data.loaders.sampler import Sampler, permutation
from fastae.experiment.augment import Augmentation, AugmentParams
from fastae.utils.sample import evenly_spaced

RANGES = Augmentation(brightness=0.125, contrast=0.2, saturation=0.3)


def sampler(count=100, batch_size=16, seed=0):
    return Sampler(count, batch_size, seed, RANGES)


@settings(deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_each_epoch_contains_each_image_exactly_once(count, batch_size, seed):
    batches = [Sampler(count, batch_size, seed, RANGES).at(iteration) for iteration in range(12)]
    line = np.concatenate([params.indices for params in batches])
    for epoch in range(len(line) // count):
        assert sorted(line[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_batch_follows_from_seed_and_iteration_alone():
    before = sampler().at(10**6)
    sampler().at(0)
    permutation.cache_clear()
    after = sampler().at(10**6)
    assert np.array_equal(before.indices, after.indices)
    assert all(map(np.array_equal, before.augment, after.augment))


def test_another_seed_or_epoch_gives_another_order():
    assert not np.array_equal(permutation(0, 0, 100), permutation(0, 1, 100))
    one, other = sampler(seed=1).at(0), sampler(seed=2).at(0)
    assert not np.array_equal(one.indices, other.indices)
    assert not np.array_equal(one.augment.brightness, other.augment.brightness)


@settings(deadline=None)
@given(count=st.integers(5, 60), share=st.integers(1, 8), parts=st.integers(1, 5), shuffle=st.booleans())
def test_the_parts_of_a_batch_are_the_batch(count, share, parts, shuffle):
    """Without shuffling, the parts of an epoch's last batch differ by at most one image. None is empty."""
    ranks = [
        Sampler(count, share * parts, 0, RANGES, part=part, parts=parts, shuffle=shuffle)
        for part in range(parts)
    ]
    whole = Sampler(count, share * parts, 0, RANGES, shuffle=shuffle)
    for iteration in range(whole.batches_per_epoch):
        here = [rank for rank in ranks if iteration < rank.batches_per_epoch]
        indices, changes = zip(*(rank.at(iteration) for rank in here), strict=True)
        batch = whole.at(iteration)
        assert np.array_equal(np.concatenate(indices), batch.indices)
        assert all(map(np.array_equal, AugmentParams.joined(changes), batch.augment))
        lengths = [rank.length(iteration) for rank in here]
        assert lengths == [len(rank.part_indices(iteration)) for rank in here]
        assert min(lengths) > 0 and max(lengths) - min(lengths) <= 1
    numbers = [rank.batches_per_epoch for rank in ranks]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] - numbers[-1] in (0, 1)
    if not shuffle:
        epoch = [rank.at(number).indices for rank in ranks for number in range(rank.batches_per_epoch)]
        assert sorted(np.concatenate(epoch)) == list(range(count))


def test_parameters_are_uniform_in_their_ranges():
    all_params = [sampler(count=1000, batch_size=500).at(i).augment for i in range(100)]
    for name, low, high in (
        ("brightness", -0.125, 0.125),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.7, 1.3),
    ):
        values = np.concatenate([getattr(params, name) for params in all_params])
        assert values.dtype == np.float32
        assert low <= values.min() and values.max() <= high
        quartiles = np.quantile(values, (0.25, 0.5, 0.75))
        assert quartiles == pytest.approx(np.linspace(low, high, 5)[1:4], abs=0.01 * (high - low))
    flips = np.concatenate([params.flip for params in all_params])
    assert flips.mean() == pytest.approx(0.5, abs=0.01)


def test_parameters_of_one_batch_are_independent():
    drawn = np.stack(sampler(count=5000, batch_size=5000).at(3).augment)
    correlation = np.corrcoef(drawn.astype(float)) - np.eye(4)
    assert np.abs(correlation).max() < 0.06


def test_the_batches_of_a_seed_never_change():
    """A run resumed under a newer NumPy must see the same images: these numbers never change."""
    params = Sampler(10, 4, 7, RANGES).at(1)
    assert params.indices.tolist() == [3, 2, 7, 5]
    assert params.augment.brightness.tolist() == pytest.approx(
        [-0.015078, 0.0222429, 0.1093942, 0.0818723], abs=1e-7
    )


@pytest.mark.parametrize(("count", "number"), [(797, 256), (256, 256), (10, 256), (7, 1), (0, 16)])
def test_evenly_spaced_chooses_the_requested_number_of_items(count, number):
    chosen = evenly_spaced(range(count), number)
    assert len(set(chosen)) == len(chosen) == min(count, number) and chosen == sorted(chosen)
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
