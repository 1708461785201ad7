"""A run folder that anybody may have written: no wait, no flood, no traceback, nobody's pictures."""

import json
import os
import signal
import struct
import zlib
from contextlib import contextmanager

import pytest
import torch

from fastae.errors import FastaeError
from fastae.report import quality
from fastae.report.make import make_report
from fastae.report.runs import find_runs
from fastae.runs.events import BEFORE_ALL, rewind
from fastae.runs.metrics import NAME

from .made import draw_samples, make_run, write_events

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


def claim(run, **settings):
    """Has the run's config.json say so."""
    path = run / "config.json"
    described = json.loads(path.read_text())
    described["config"] |= settings
    path.write_text(json.dumps(described))


def pictures(page):
    """How many images of a page are pictures."""
    return page.read_text().count('src="data:image/png')


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize("where", ["events.out.tfevents.0", "samples/0000100.png", "nan.txt", "gpu.json"])
def test_pipes_and_devices_are_not_read(how, where, tmp_path):
    run = make_run(tmp_path / "run")
    if where.startswith("events"):
        (run / NAME).unlink()
        write_events(run, [(100, {"loss_index/train": 1.0})])
    (run / "samples").mkdir()
    if how == "pipe":
        os.mkfifo(run / where)
    else:
        (run / where).symlink_to("/dev/zero")
    with no_wait():
        assert make_report([run]).is_file()
    ((found,), _) = find_runs([run])
    assert (found.iteration, found.non_finite_steps()) == (100, 0)


@pytest.mark.parametrize("how", ["pipe", "device"])
def test_metrics_that_are_no_file_are_refused(how, tmp_path):
    run = make_run(tmp_path / "run")
    (run / NAME).unlink()
    if how == "pipe":
        os.mkfifo(run / NAME)
    else:
        (run / NAME).symlink_to("/dev/zero")
    with no_wait(), pytest.raises(FastaeError, match=NAME):
        make_report([run])


def test_resuming_does_not_read_pipes_and_devices(tmp_path):
    write_events(tmp_path, [(1, {"loss": 1.0})])
    os.mkfifo(tmp_path / "events.out.tfevents.pipe")
    (tmp_path / "events.out.tfevents.zero").symlink_to("/dev/zero")
    with no_wait():
        rewind(tmp_path, BEFORE_ALL)
    assert (tmp_path / "events.out.tfevents.pipe").is_fifo()


def test_a_folder_that_config_json_names_is_not_opened(face_folder, tmp_path):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    assert pictures(make_report([run])) == 0
    assert pictures(make_report([run], data=str(face_folder))) == 2


def test_the_environments_folder_is_the_users(face_folder, tmp_path, monkeypatch):
    runs, _ = find_runs([make_run(tmp_path / "run", data=face_folder, weights=0)])
    assert not quality.measure(runs, CPU)[0]
    monkeypatch.setenv("FASTAE_DATA", str(face_folder))
    assert quality.measure(runs, CPU)[0]


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_picture_elsewhere_is_not_shown(link, tmp_path):
    other, run = make_run(tmp_path / "other"), make_run(tmp_path / "run")
    draw_samples(other, 100)
    if link == "folder":
        (run / "samples").symlink_to(other / "samples")
    else:
        (run / "samples").mkdir()
        (run / "samples" / "0000100.png").symlink_to(other / "samples" / "0000100.png")
    assert pictures(make_report([run])) == 0 and pictures(make_report([other])) == 2


def test_a_model_that_does_not_fit_is_refused_before_an_image_is_read(face_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    claim(run, image_size=16384)
    monkeypatch.setattr(quality, "load_images", lambda *_: pytest.fail("images are read"))
    assert not quality.measure(find_runs([run])[0], CPU, str(face_folder))[0]


@pytest.mark.parametrize("limit", ["MAX_SIDE", "MAX_SET"])
def test_images_of_any_size_are_refused_although_a_model_fits(limit, face_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    monkeypatch.setattr(quality, limit, 31)
    monkeypatch.setattr(quality, "load_images", lambda *_: pytest.fail("images are read"))
    found, (reason,) = quality.measure(find_runs([run])[0], CPU, str(face_folder))
    assert not found and "32 pixels" in reason


def test_the_threads_that_it_claims_are_not_started(face_folder, tmp_path):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    claim(run, threads=100_000)
    assert quality.measure(find_runs([run])[0], CPU, str(face_folder))[0]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=8, height=8, data=None, before=b""):
    data = zlib.compress(bytes(height * (1 + 3 * width))) if data is None else data
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "text": b"no picture",
        "data that are none": png(data=b"garbage"),
        "too little data": png(data=zlib.compress(b"1")),
        "a claim of 10^9 pixels": png(40_000, 25_000, data=b""),
        "no pixels": png(0, 0),
        "a text of 100 MB": png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        "a palette of one byte": png(before=chunk(b"PLTE", b"1") + chunk(b"tRNS", b"")),
        "a header of one byte": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"1") + chunk(b"IEND", b""),
        "only the signature": b"\x89PNG\r\n\x1a\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_picture_is_passed_over(content, tmp_path):
    run = make_run(tmp_path / "run")
    draw_samples(run, 50)
    (run / "samples" / "0000100.png").write_bytes(content[1])
    assert pictures(make_report([run])) == 2


def test_errors_of_zero_are_reported(tmp_path):
    nothing = {0: 0.0, 50: 0.0, 100: 0.0}
    for loss in ("minibatch_bce", "minibatch_mse", "pixel_mse"):
        for seed in (0, 1):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, train=nothing, held_out=nothing)
    assert make_report([tmp_path]).is_file()


NUMBERS = ("", "nan", "inf", "-inf", "0", "-1", "1e300", "1e30", "5e-324", "1e-9", "300000", "123.5")
ANYTHING = (
    None,
    -1,
    2**62,
    1e308,
    float("nan"),
    "x" * 10_000,
    [],
    [1],
    {"a": {"b": [1]}},
    "<b>",
    "\x1b[31m",
    "\ud800",
)
CLAIMS = (
    {"image_size": 2**40, "batch_size": 2**62, "iterations": 2**62, "seed": 2**62, "eval_images": 2**60},
    {"latent": 2**60, "minutes": 1e-300, "lr": 1e300, "threads": 2**60, "data": "a\nb"},
)


@pytest.mark.parametrize("shift", range(4))
def test_whatever_values_it_claims_there_is_a_page(shift, tmp_path):
    for number, loss in enumerate(("minibatch_bce", "minibatch_mse", "pixel_mse")):
        run = make_run(tmp_path / loss, loss)
        claim(run, **CLAIMS[(number + shift) % 2])
        described = json.loads((run / "config.json").read_text())
        for place, name in enumerate(
            ("data", "device", "step", "environment", "world_size", "resumed", "loader")
        ):
            described[name] = ANYTHING[(place + 3 * shift + number) % len(ANYTHING)]
        (run / "config.json").write_text(json.dumps(described))
        with (run / NAME).open("a") as file:
            for row in range(12):
                cells = [NUMBERS[(row * (shift + 1) + column + number) % len(NUMBERS)] for column in range(8)]
                kind = ("train", "held_out")[row % 2]
                file.write(",".join((str(200 + row * 10 ** (3 * shift)), kind, *cells)) + "\n")
    assert make_report([tmp_path]).is_file()
