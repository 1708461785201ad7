"""Images that the tests share. Real DALI, real files; nothing is mocked."""

import os

# Before torch is imported, and for every process that a test starts: the models are tiny, and on a busy
# machine threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import subprocess
import sys
from contextlib import contextmanager
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
def small_run(face_folder, tmp_path_factory):
    """The folder of a finished run: 4 iterations on synthetic faces, 32x32, 16 numbers a code."""
    out = tmp_path_factory.mktemp("small_run") / "run"
    command = [
        sys.executable, "-m", "fastae", "train", "--data", face_folder, "--out", out, "--no-cache",
        "--no-compile", "--image-size", "32", "--latent", "16", "--batch-size", "8", "--iterations", "4",
        "--lr", "1e-3", "--gpu-sample-hz", "0",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return out


@contextmanager
def largest_file(size):
    """Within it the kernel refuses to write files of more bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
