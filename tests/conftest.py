"""Images that the tests share. Real DALI, real files; nothing is mocked."""

import os
from pathlib import Path

import pytest

from fastae.data import faces

CELEBA = Path(os.environ.get("FASTAE_CELEBA", "../shared/celeba/img_align_celeba"))


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory):
    """40 synthetic faces, flat: 38 to train on, 2 held out."""
    folder = tmp_path_factory.mktemp("faces")
    faces.write(folder, 40)
    return folder


@pytest.fixture(scope="session")
def face_paths(face_folder):
    return sorted(str(path) for path in face_folder.glob("*.jpg"))


@pytest.fixture(scope="session")
def celeba():
    """The real data set's folder, where the machine has a part of it."""
    if not CELEBA.is_dir():
        pytest.skip(f"no CelebA at {CELEBA} (set FASTAE_CELEBA)")
    return CELEBA


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's data and cache folders."""
    monkeypatch.delenv("FASTAE_DATA", raising=False)
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
