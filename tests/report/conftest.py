"""A run with its images, made once for all tests of the report; a user's cache."""

import shutil

import pytest

from .made import make_run


@pytest.fixture(scope="session")
def made(face_folder, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", data=face_folder, weights=0)


@pytest.fixture
def run(made, tmp_path):
    """A copy, which may be changed."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache that knows no folder yet."""
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "cache"))
