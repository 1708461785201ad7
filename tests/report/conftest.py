"""A run with its images, which is made once for all tests of the report, and an empty cache."""

import shutil

import pytest

from .made import make_run


@pytest.fixture(scope="session")
def made(face_folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", data=face_folder, weights=0)


@pytest.fixture
def run(made, tmp_path):
    """A copy of `made`, which a test may change."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The empty cache of a user who has read no folder yet."""
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "cache"))
