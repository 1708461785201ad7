"""A run's description in config.json is read back as it was written, and invalid parts get defaults."""

import pytest

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.runs.description import DataDescription, Environment, RunDescription
from fastae.utils.json import plain

CONFIG = TrainConfig(latent=16)
FULL = RunDescription(
    CONFIG,
    data=DataDescription("faces", "/faces", 38, 2, "by name", 2, "abc"),
    compiled=False,
    at_once=2,
    environment=Environment(fastae="0.1.0", packages={"torch": "2.13.0"}),
    resumed=(5, 9),
)


def test_a_description_is_read_back_as_it_was_written():
    assert RunDescription.from_dict(plain(FULL.as_dict()), "config.json") == FULL


def test_a_field_that_is_missing_or_of_another_type_has_its_default():
    written = plain(FULL.as_dict()) | {"compiled": "yes", "at_once": [3], "resumed": 5, "environment": None}
    expected = RunDescription(CONFIG, data=FULL.data)
    assert RunDescription.from_dict(written, "config.json") == expected
    assert RunDescription.from_dict({"config": CONFIG.as_dict()}, "config.json") == RunDescription(CONFIG)


@pytest.mark.parametrize("values", [{}, {"config": {"latent": "16"}}])
def test_invalid_settings_are_refused(values):
    with pytest.raises(FastaeError, match=r"config\.json"):
        RunDescription.from_dict(values, "config.json")


def test_a_session_that_continues_adds_its_iteration_and_keeps_the_most_turns():
    resumed = RunDescription(CONFIG, device="another").resumed_from(FULL, 12)
    assert (resumed.device, resumed.at_once, resumed.resumed) == ("another", 2, (5, 9, 12))
