"""The models of a session: their initial weights."""

from concurrent.futures import ThreadPoolExecutor

import torch

from fastae.training.session import build_model

from ..commands import same_state
from ..conftest import small_config


def test_models_made_at_once_have_the_weights_of_their_seeds_and_the_users_generator_is_left_alone():
    """PyTorch's generator is the process's."""
    config = small_config("nowhere", "out", image_size=64)
    alone = build_model(config, torch.device("cpu")).state_dict()
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: build_model(config, torch.device("cpu")).state_dict(), range(8)))
    assert all(same_state(alone, other) for other in made)
    assert torch.equal(torch.get_rng_state(), before)
