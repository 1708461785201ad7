"""A CUDA device for each test here. On the hollow GPU (scripts/hollow_gpu) a test ends before its numbers."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from fastae.device.choose import Hardware, choose_precision
from fastae.experiment.losses import LOSSES
from fastae.experiment.model import AutoEncoder
from fastae.training.step.objective import prepare
from fastae.training.step.step import TrainingStep

SIZE, BATCH = 64, 8
SHAPE = (BATCH, 3, SIZE, SIZE)


@pytest.fixture(scope="session", autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="module", autouse=True)
def _articles(article_model):
    pass


@pytest.fixture(scope="session")
def cuda():
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def hollow(_gpu):
    return torch.cuda.get_device_name().startswith("hollow")


@pytest.fixture
def results(hollow):
    """To be called before numbers are compared."""

    def require():
        if hollow:
            pytest.skip("run up to here: the hollow GPU computes nothing")

    return require


@pytest.fixture(scope="session")
def real_gpu(hollow):
    """Skips a test that needs a real GPU throughout."""
    if hollow:
        pytest.skip("needs a real GPU")


@pytest.fixture(scope="session")
def dali(hollow):
    """For a test in which DALI uses the GPU. A larger stand-in, which sets this variable, has that too."""
    if hollow and "HOLLOW_PROJECT" not in os.environ:
        pytest.skip("needs a GPU that DALI can use")


@pytest.fixture
def gpu_process(dali, hollow):
    """Runs code in a process of its own: a crash there fails one test, and its contexts are its own.

    On the hollow GPU the code's assertions are not evaluated.
    """

    def run(code):
        command = [sys.executable, *(["-O"] if hollow else []), "-c", textwrap.dedent(code)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr[-2000:]}"

    return run


def small_model(device):
    torch.manual_seed(0)
    return AutoEncoder(SIZE, 32).to(device).to(memory_format=torch.channels_last)


def prepared(model, precision=None, compiled=True):
    """A model that is ready to be trained on its device."""
    device = next(model.parameters()).device
    precision = precision or choose_precision(device, amp=True)
    return prepare(model, Hardware(device, precision, compiled=compiled, compile_note=""))


def make_step(
    model, *, loader=None, loss="minibatch_bce", precision=None, compiled=True, copies=True, **options
):
    """A training step on the batches of `loader`, or on images if there is none."""
    trained = prepared(model, precision, compiled)
    if not copies:
        trained.copies = {}
    if loader:
        options["make_batch"] = loader.make_batch
    return TrainingStep(trained, LOSSES[loss], batch_shape=SHAPE, lr=1e-4, **options)
