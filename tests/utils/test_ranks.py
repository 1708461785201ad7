"""Torchrun's variables: a value that it cannot have set is refused by name."""

from itertools import product

import pytest

from fastae.errors import SettingError
from fastae.utils.ranks import local_ranks, torchrun_rank

from ..commands import refuses

GOOD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.fixture
def launch(monkeypatch):
    """A function that sets the variables."""

    def launch(**others):
        for name, value in (GOOD | others).items():
            monkeypatch.setenv(name, value)

    return launch


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert (torchrun_rank(), local_ranks()) == ((0, 1, 0), 1)


def test_the_rank_is_read(launch):
    launch(LOCAL_WORLD_SIZE="2")
    assert (torchrun_rank(), local_ranks()) == ((1, 2, 0), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(GOOD, ["abc", "", "-1", "1.5", "9" * 5000]),
        ("RANK", "5"),
        ("LOCAL_RANK", "2"),
        ("WORLD_SIZE", "0"),
    ],
)
def test_a_value_that_torchrun_cannot_have_set_is_refused(launch, tmp_path, name, value):
    """A rank that is none of the others' would wait for them for a day."""
    launch(**{name: value})
    if name == "LOCAL_WORLD_SIZE":
        with pytest.raises(SettingError, match=rf"^\${name} must be"):
            local_ranks()
    else:
        line = refuses("train", "--out", tmp_path / "run")
        assert line.startswith(f"${name} must be") and len(line) < 200 and not list(tmp_path.iterdir())
