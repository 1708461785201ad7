"""A run folder that anybody may have written: no wait, no flood, no traceback, nobody's pictures."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch

from fastae.errors import FastaeError
from fastae.report import quality
from fastae.report.make import make_report
from fastae.report.runs import find_runs
from fastae.runs.metrics import NAME

from .made import make_run

CPU = torch.device("cpu")


@contextmanager
def no_wait():
    """Has a wait for the other end of a pipe fail; what does not wait is not measured."""

    def wake(*_):
        pytest.fail("it waited")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def made(face_folder, tmp_path_factory):
    """A run with its images."""
    return make_run(tmp_path_factory.mktemp("made") / "run", data=face_folder, weights=0)


@pytest.fixture
def run(made, tmp_path):
    """One to change."""
    return shutil.copytree(made, tmp_path / "run")


def claim(run, **settings):
    """Has the run's config.json say so."""
    path = run / "config.json"
    described = json.loads(path.read_text())
    described["config"] |= settings
    path.write_text(json.dumps(described))


def pictures(page):
    """How many images of a page are pictures."""
    return page.read_text().count('src="data:image/png')


def put(how, path):
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_pipes_and_devices_are_not_read(how, run, face_folder):
    (run / "samples").mkdir()
    for name in ("events.out.tfevents.0", "samples/0000100.png", "nan.txt", "gpu.json", "model.safetensors"):
        put(how, run / name)
    with no_wait():
        assert pictures(make_report([run], data=str(face_folder))) == 0
        put(how, run / NAME)
        with pytest.raises(FastaeError, match=NAME):
            make_report([run])


def test_a_folder_that_config_json_names_is_not_opened(run, face_folder, monkeypatch):
    assert pictures(make_report([run])) == 0
    assert pictures(make_report([run], data=str(face_folder))) == 2
    monkeypatch.setenv("FASTAE_DATA", str(face_folder))
    assert pictures(make_report([run])) == 2


def test_no_picture_of_the_run_folder_is_shown(run, face_paths):
    (run / "samples").mkdir()
    (run / "samples" / "0000100.png").symlink_to(face_paths[0])
    assert pictures(make_report([run])) == 0


def test_a_model_or_images_of_any_size_are_refused_before_an_image_is_read(run, face_folder, monkeypatch):
    monkeypatch.setattr(quality, "load_images", lambda *_, **__: pytest.fail("images are read"))
    for limit in ("MAX_SIDE", "MAX_SET"):
        with monkeypatch.context() as patch:
            patch.setattr(quality, limit, 31)
            found, (warning,) = quality.measure(find_runs([run])[0], CPU, str(face_folder))
        assert not found and "32 pixels" in warning
    claim(run, image_size=4096)  # the weights do not fit
    assert not quality.measure(find_runs([run])[0], CPU, str(face_folder))[0]


def test_the_threads_that_it_claims_are_not_started(run, face_folder):
    claim(run, threads=100_000)
    with pytest.raises(FastaeError, match="--threads"):
        find_runs([run])
    claim(run, threads=256)
    assert quality.measure(find_runs([run])[0], CPU, str(face_folder))[0]


def test_errors_of_zero_are_reported(tmp_path):
    nothing = {0: 0.0, 50: 0.0, 100: 0.0}
    for loss in ("minibatch_bce", "minibatch_mse", "pixel_mse"):
        for seed in (0, 1):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, train=nothing, held_out=nothing)
    assert make_report([tmp_path]).is_file()


NUMBERS = ("", "nan", "inf", "-inf", "0", "-1", "1e300", "1e30", "5e-324", "1e-9", "300000", "123.5")
ANYTHING = (
    None, -1, 2**62, 1e308, 10**400, "x" * 10_000, [], [1], {"a": {"b": [1]}}, "<b>", "\x1b[31m", "\ud800",
)  # fmt: skip
CLAIMS = (
    {"image_size": 4096, "batch_size": 10**6, "iterations": 10**12, "seed": 2**62, "eval_images": 10**12},
    {"latent": 2**20, "minutes": 1e-300, "lr": 1e38, "threads": 256, "data": "a\nb"},
)


@pytest.mark.parametrize("shift", range(3))
def test_whatever_values_it_claims_there_is_a_page(shift, tmp_path):
    for number, loss in enumerate(("minibatch_bce", "minibatch_mse", "pixel_mse")):
        run = make_run(tmp_path / loss, loss)
        claim(run, **CLAIMS[(number + shift) % 2])
        described = json.loads((run / "config.json").read_text())
        names = ("data", "device", "step", "environment", "world_size", "resumed", "loader", "compiled")
        for place, name in enumerate(names):
            described[name] = ANYTHING[(place + 4 * shift + number) % len(ANYTHING)]
        (run / "config.json").write_text(json.dumps(described))
        with (run / NAME).open("a") as file:
            for row in range(12):
                cells = [NUMBERS[(row * (shift + 1) + column + number) % len(NUMBERS)] for column in range(8)]
                kind = ("train", "held_out")[row % 2]
                file.write(",".join((str(200 + row * 10 ** (3 * shift)), kind, *cells)) + "\n")
    assert make_report([tmp_path]).is_file()
