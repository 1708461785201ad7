"""`fastae reconstruct` applies a trained model to users' own images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.data import CropResize, load_images
from fastae.experiment.losses import squared_error
from fastae.experiment.metrics import loss_index, psnr
from fastae.runs.loaded_model import load_model
from fastae.utils.pictures import pairs, to_bytes

from ..commands import here, refuses
from ..data import bad_files


def test_good_files_with_awkward_names_are_used_and_bad_ones_skipped(small_run, face_paths, tmp_path, capsys):
    """An image that is named twice is used, or skipped, once."""
    inside, out = tmp_path / "mine", tmp_path / "new" / "out"
    inside.mkdir()
    (inside / "0.jpg").write_bytes(Path(face_paths[1]).read_bytes())
    (inside / "bad\n\x1b[31m.jpg").write_bytes(b"no picture")
    (inside / "table.jpg").write_bytes(bad_files.bad_table((inside / "0.jpg").read_bytes()))
    awkward = f"{inside}/ok\n\x1b[31m\udcff{60 * '😀'}.png"  # the byte 0xff, as Python names it
    Image.open(face_paths[0]).save(awkward)
    lost = "gone.jpg", inside / "0.jpg" / "below.jpg"
    given = (face_paths[0], inside, face_paths[0], *lost, lost[0])
    code = here("reconstruct", small_run, *given, "--out", out)
    printed = capsys.readouterr().out
    assert code == 1 and "\x1b" not in printed and "ok\\n\\x1b[31m\\udcff😀" in printed
    bad, gone, below, undecodable, total = (
        line for line in printed.splitlines() if line.startswith("skipped ")
    )
    assert "mine/bad\\n\\x1b[31m.jpg" in bad and "gone.jpg" in gone and "table.jpg" in undecodable
    assert "unreadable" in below and "4 of 7" in total
    pictures = ["0000-000001.png", "0001-0.png", f"0002-ok__[31m_{41 * '😀'}.png"]
    assert sorted(path.name for path in out.iterdir()) == [*pictures, "sheet.png"]

    model = load_model(small_run).model
    paths = [face_paths[0], str(inside / "0.jpg"), awkward]
    # In the batch, the next good image replaces the one that does not decode.
    batch = load_images([*paths, paths[0]], CropResize(size=32), "cpu")
    with torch.inference_mode():
        originals, reconstructions = batch[:3], model(batch)[:3]
    assert np.array_equal(Image.open(out / "sheet.png"), pairs(originals, reconstructions))
    for row, name in enumerate(pictures):
        picture = np.asarray(Image.open(out / name))
        assert picture.shape == (32, 66, 3)
        assert np.array_equal(picture[:, :32], to_bytes(originals)[row])
        assert np.array_equal(picture[:, 34:], to_bytes(reconstructions)[row])
    errors = squared_error(reconstructions, originals).mean((1, 2, 3)).tolist()
    figures = re.findall(r"^ *([\d,]+) +([\d.]+) dB  ", printed, re.M)
    for (index, decibel), error in zip(figures, [*errors, sum(errors) / 3], strict=True):
        assert float(index.replace(",", "")) == pytest.approx(loss_index(error), abs=1)
        assert float(decibel) == pytest.approx(psnr(error), abs=0.051)


def test_files_of_every_fault_are_skipped_and_named(small_run, good, tmp_path, capsys):
    faults = bad_files.make(tmp_path, good)
    (tmp_path / "good.jpg").write_bytes(good)
    assert here("reconstruct", small_run, tmp_path, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "good.jpg -> " in printed
    unnamed = [name for name in faults if f"skipped   {tmp_path / name}: " not in printed]
    assert all(name.startswith("too small for the crop") for name in unnamed)  # this run has no crop


def test_reconstruct_succeeds_with_an_unusable_gpu(small_run, face_paths, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert here("reconstruct", small_run, face_paths[0], "--out", tmp_path) == 0  # it is empty


def test_a_wrong_run_image_folder_or_device_is_refused_and_nothing_is_made(
    small_run, face_paths, good, tmp_path
):
    image, used, young, new = face_paths[0], tmp_path / "used", tmp_path / "young", tmp_path / "new"
    used.mkdir()
    (used / "precious").write_text("kept")
    young.mkdir()
    (young / "config.json").write_bytes((small_run / "config.json").read_bytes())
    (young / "table.jpg").write_bytes(bad_files.bad_table(good))
    for run, given, out, options, word in (
        (used, image, new, (), "config.json"),
        (young, image, new, (), "young"),
        (small_run, used / "precious", new, (), "none of the images"),
        (small_run, young / "table.jpg", new, (), "none of the 1 images"),
        (small_run, used, new, (), "no JPEG or PNG"),
        (small_run, "https://a/b.jpg", new, (), "IMAGE"),
        (small_run, image, used, (), "--out"),
        (small_run, image, used / "precious", (), "--out"),
        (small_run, image, used / "precious" / "x", (), "--out"),
        (small_run, image, new, ("--device", "gpu"), "--device"),
    ):
        assert word in refuses("reconstruct", run, given, "--out", out, *options)
        assert not new.exists()
    assert (used / "precious").read_text() == "kept"
