"""A run's description in config.json is read back as it was written, and invalid parts get defaults."""

import json
from dataclasses import replace

import pytest

from fastae.config import TrainConfig
from fastae.errors import FastaeError
from fastae.experiment.losses import LOSSES, REDUCTIONS
from fastae.runs.description import DataDescription, Environment, RunDescription

CONFIG = TrainConfig(latent=16)
FULL = RunDescription(
    CONFIG,
    data=DataDescription("faces", "/faces", 38, 2, "by name", 2, "abc"),
    model="program.Model",
    element="own",
    reduction="pixel",
    compiled=False,
    environment=Environment(fastae="0.1.0", packages={"torch": "2.13.0"}),
    resumed=(5, 9),
)


def as_json(description):
    return json.loads(json.dumps(description.as_dict()))


def test_a_description_is_read_back_as_it_was_written():
    assert RunDescription.from_dict(as_json(FULL), "config.json") == FULL


def test_a_field_that_is_missing_or_of_another_type_has_its_default():
    written = as_json(FULL) | {"compiled": "yes", "model": [3], "resumed": 5, "environment": None}
    expected = RunDescription(CONFIG, data=FULL.data, element="own", reduction="pixel")
    assert RunDescription.from_dict(written, "config.json") == expected
    assert RunDescription.from_dict({"config": CONFIG.as_dict()}, "config.json") == RunDescription(CONFIG)


@pytest.mark.parametrize("values", [{}, {"config": {"latent": "16"}}])
def test_invalid_settings_are_refused(values):
    with pytest.raises(FastaeError, match=r"config\.json"):
        RunDescription.from_dict(values, "config.json")


def test_what_older_versions_wrote_is_read():
    """They took turns, shared batch statistics only if asked to, and named no parts of a loss."""
    written = {"config": CONFIG.as_dict() | {"sync_bn": True}, "at_once": 2}
    description = RunDescription.from_dict(written, "config.json")
    assert description == RunDescription(CONFIG) and description.loss is LOSSES[CONFIG.loss]
    with pytest.raises(FastaeError, match="'sync_bm' is not a setting"):
        RunDescription.from_dict({"config": {"sync_bm": True}}, "config.json")


def test_a_loss_of_ones_own_is_known_by_its_parts_and_an_unknown_name_is_an_error():
    own = replace(FULL, config=replace(CONFIG, loss="pixel_own"))
    assert own.loss.name == "pixel_own" and own.loss.reduction is REDUCTIONS[1]
    with pytest.raises(ValueError, match="minibatch_own"):
        _ = replace(own, config=replace(CONFIG, loss="minibatch_own")).loss
