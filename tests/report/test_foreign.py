"""A run folder that anybody may have written: no wait, no flood, no traceback, nobody's pictures."""

import io
import json
import os
import signal
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.events import BEFORE_ALL, rewind
from fastae.report import quality
from fastae.report.gather import gather
from fastae.report.make import make_report

from .made import make_run, write_events

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


def colours(page):
    """The mean colour of every picture that is embedded in a page."""
    import base64
    import re

    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text())
    images = [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in found]
    return [tuple(np.asarray(image).mean(axis=(0, 1)).round().astype(int)) for image in images]


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize("where", ["events.out.tfevents.0", "samples/0000100.png", "nan.txt"])
def test_pipes_and_devices_are_not_read(how, where, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "samples").mkdir()
    if how == "pipe":
        os.mkfifo(run / where)
    else:
        (run / where).symlink_to("/dev/zero")
    with no_wait():
        assert make_report([run]).is_file()
    ((found,), _) = gather([run])
    assert (found.iteration, found.non_finite_steps()) == (100, 0)


def test_resuming_does_not_read_pipes_and_devices(tmp_path):
    write_events(tmp_path, [(1.0, 1, {"loss": 1.0})])
    os.mkfifo(tmp_path / "events.out.tfevents.pipe")
    (tmp_path / "events.out.tfevents.zero").symlink_to("/dev/zero")
    with no_wait():
        rewind(tmp_path, BEFORE_ALL)
    assert (tmp_path / "events.out.tfevents.pipe").is_fifo()


def test_a_folder_that_config_json_names_is_not_opened(face_folder, tmp_path):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    assert colours(make_report([run])) == []
    assert len(colours(make_report([run], data=str(face_folder)))) >= 2


def test_the_environments_folder_is_the_users(face_folder, tmp_path, monkeypatch):
    runs, _ = gather([make_run(tmp_path / "run", data=face_folder, weights=0)])
    assert not quality.measure(runs, CPU).quality
    monkeypatch.setenv("FASTAE_DATA", str(face_folder))
    assert quality.measure(runs, CPU).quality


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_picture_elsewhere_is_not_shown(link, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (64, 64), "red").save(elsewhere / "0000100.png")
    run = make_run(tmp_path / "run")
    if link == "folder":
        (run / "samples").symlink_to(elsewhere)
    else:
        (run / "samples").mkdir()
        (run / "samples" / "0000100.png").symlink_to(elsewhere / "0000100.png")
    assert colours(make_report([run])) == []


def test_a_model_that_does_not_fit_is_refused_before_an_image_is_read(face_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    claim(run, image_size=16384)
    monkeypatch.setattr(quality, "load_images", lambda *_: pytest.fail("images are read"))
    assert not quality.measure(gather([run])[0], CPU, str(face_folder)).quality


@pytest.mark.parametrize("limit", ["LARGEST_SIDE", "LARGEST_SET"])
def test_images_of_any_size_are_refused_although_a_model_fits(limit, face_folder, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    monkeypatch.setattr(quality, limit, 31)
    monkeypatch.setattr(quality, "load_images", lambda *_: pytest.fail("images are read"))
    measured = quality.measure(gather([run])[0], CPU, str(face_folder))
    assert not measured.quality and any("32 pixels" in note for note in measured.notes)


def test_the_threads_that_it_claims_are_not_started(face_folder, tmp_path):
    run = make_run(tmp_path / "run", data=face_folder, weights=0)
    claim(run, threads=100_000)
    assert quality.measure(gather([run])[0], CPU, str(face_folder)).quality


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
    (run / "samples").mkdir()
    Image.new("RGB", (64, 64), "blue").save(run / "samples" / "0000050.png")
    (run / "samples" / "0000100.png").write_bytes(content[1])
    assert (0, 0, 255) in colours(make_report([run]))


def test_errors_of_zero_are_reported(tmp_path):
    nothing = {0: 0.0, 50: 0.0, 100: 0.0}
    for loss in ("minibatch_bce", "minibatch_mse", "pixel_mse"):
        for seed in (0, 1):
            make_run(tmp_path / f"{loss}-{seed}", loss, seed=seed, train=nothing, held_out=nothing)
    assert make_report([tmp_path]).is_file()


def test_images_without_an_error_are_measured():
    images = torch.full((2, 3, 32, 32), 0.5)
    measured = quality.compare_images(images, images, 1)
    assert measured.psnr.tolist() == [np.inf] * 2 and measured.ssim == pytest.approx(1)
