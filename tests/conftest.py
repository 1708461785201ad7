"""Images that the tests share. Real DALI, real files; nothing is mocked."""

import os

# Before torch is imported, and for every process that a test starts: the models are tiny, and on a busy
# machine threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One folder for all tests, since each compiles the same kernels.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/tmp/fastae-tests-kernels")

import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastae.config import TrainConfig
from fastae.data.faces import synthetic as faces
from fastae.data.loaders import decode
from fastae.training.runner import train
from fastae.training.trainer import Trainer

CELEBA = Path(os.environ.get("FASTAE_CELEBA", "../shared/celeba/img_align_celeba"))


# A shell starts background jobs with these ignored, and so would be every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
def good(face_paths):
    """The bytes of a good JPEG: of the first of these paths."""
    return Path(face_paths[0]).read_bytes()


@pytest.fixture(scope="session")
def small_run(face_folder, tmp_path_factory):
    """The folder of a finished run: 4 iterations on synthetic faces, 32x32, 16 numbers a code."""
    out = tmp_path_factory.mktemp("small_run") / "run"
    train(small_config(face_folder, out, batch_size=8, iterations=4, lr=1e-3, cache=False))
    return out


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of it, to be changed."""
    return copied(small_run, tmp_path / "run")


def small_config(data, out=None, **others):
    """Settings of a run that takes a second or two."""
    defaults = {"image_size": 32, "latent": 16, "compile": False, "batch_size": 4, "iterations": 2}
    return TrainConfig(data=str(data), out=out and str(out), **{**defaults, "gpu_sample_hz": 0, **others})


def copied(run, to):
    """A copy of a run's or sweep's folder; checkpoints, which fastae never changes in place, are links."""

    def copy(source, target):
        (os.link if source.endswith(".pt") else shutil.copy2)(source, target)

    return shutil.copytree(run, to, symlinks=True, copy_function=copy)


@contextmanager
def _limited(kind, value):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def largest_file(size):
    """Within it the kernel refuses to write files of more bytes, as a full disk does."""
    return _limited(resource.RLIMIT_FSIZE, size)


def no_more_files():
    """Within it the kernel refuses to open any file."""
    return _limited(resource.RLIMIT_NOFILE, 0)


def little_memory(size):
    """Within it the kernel refuses to give this process more than so many bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + size)


@pytest.fixture(scope="session")
def celeba():
    """The real data set's folder, where the machine has a part of it."""
    if not CELEBA.is_dir():
        pytest.skip(f"no CelebA at {CELEBA} (set FASTAE_CELEBA)")
    return CELEBA


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory):
    """No test, and no fixture of several, reads or fills the user's data and cache folders.

    Nor is a loader compiled unless a test asks for it: that takes seconds for every size of image.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(decode, "can_compile", lambda *device: False)
        monkeypatch.delenv("FASTAE_DATA", raising=False)
        monkeypatch.setenv("FASTAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def at_iteration(monkeypatch, number, action):
    """Has `action()` called when iteration `number` of a run in this process begins."""
    advance = Trainer.advance

    def after_action(trainer):
        if trainer.iteration == number - 1:
            action()
        return advance(trainer)

    monkeypatch.setattr(Trainer, "advance", after_action)
