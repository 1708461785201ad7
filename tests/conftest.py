"""Images and runs that the tests share.

The tests use real DALI and real files. Only the compilation of loaders is off, unless a test asks for it.
"""

import os

# Before torch is imported, and for every process that a test starts: the models are tiny, and on a busy
# machine threads that wait for each other cost more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One folder for all tests, since each compiles the same kernels.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/tmp/fastae-tests-kernels")

import signal
from pathlib import Path

import pytest

from fastae.data.faces import synthetic as faces
from fastae.data.loaders import decode
from fastae.experiment import model
from fastae.training.runner import train
from fastae.training.signals import STOPPING

from . import narrow
from .helpers import CELEBA, copied, small_config

# A shell makes background jobs ignore these signals, and every process that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _handlers():
    """Undoes a test's changes to the handling of signals: fastae's main() makes Ctrl-C end the process."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SLOW = (
    "subprocess.Popen.__init__", "multiprocessing.process.BaseProcess.start",
    "torch.compile", "torch.Tensor.backward", "matplotlib.figure.Figure.savefig",
)  # fmt: skip
"""What a test with --quick must not call: it would start a process, compile, train or draw."""


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="skip each test that does what takes seconds")


@pytest.fixture(scope="session", autouse=True)
def _quick(pytestconfig):
    """With --quick, tests skip themselves when they do what takes seconds, so that no list is kept."""

    def skip(*_, **__):
        pytest.skip("is not quick")

    with pytest.MonkeyPatch.context() as monkeypatch:
        for function in SLOW if pytestconfig.getoption("quick") else ():
            monkeypatch.setattr(function, skip)
        yield


@pytest.fixture(scope="module")
def article_model():
    """Gives the model the article's channels. All other tests have a narrow one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, channels in narrow.ARTICLES.items():
            monkeypatch.setattr(model, name, channels)
        yield


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory):
    """A folder with 40 synthetic faces: 38 to train on, 2 held out."""
    folder = tmp_path_factory.mktemp("faces")
    faces.write(folder, 40)
    return folder


@pytest.fixture(scope="session")
def face_paths(face_folder):
    return sorted(str(path) for path in face_folder.glob("*.jpg"))


@pytest.fixture(scope="session")
def good(face_paths):
    """The bytes of a good JPEG, the first of `face_paths`."""
    return Path(face_paths[0]).read_bytes()


@pytest.fixture(scope="session")
def small_run(face_folder, tmp_path_factory):
    """The folder of a finished run: 4 iterations on synthetic faces of 32x32 pixels, with a latent of 16."""
    out = tmp_path_factory.mktemp("small_run") / "run"
    train(small_config(face_folder, out, batch_size=8, iterations=4, lr=1e-3, cache=False))
    return out


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of `small_run`, which a test may change."""
    return copied(small_run, tmp_path / "run")


@pytest.fixture(scope="session")
def celeba():
    """The folder of the real data set, if the machine has a part of it."""
    if not CELEBA.is_dir():
        pytest.skip(f"no CelebA at {CELEBA} (set FASTAE_CELEBA)")
    return CELEBA


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory):
    """Keeps tests and shared fixtures from using the user's data and cache folders.

    It also keeps loaders from being compiled, which takes seconds for every image size, unless a test asks
    for it.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(decode, "can_compile", lambda *device: False)
        monkeypatch.delenv("FASTAE_DATA", raising=False)
        monkeypatch.setenv("FASTAE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield
