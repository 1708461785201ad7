"""`fastae reconstruct` applies a trained model to users' own images of every kind."""

import os
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.data import CropResize, load_images
from fastae.data.files import png
from fastae.data.files.faults import Fault
from fastae.experiment.losses import squared_error
from fastae.experiment.metrics import loss_index, psnr
from fastae.runs.loaded_model import load_model
from fastae.tools.images import UnusableImage, find_images, load_image
from fastae.utils.pictures import pairs, to_bytes

from ..commands import here, refuses
from ..data import bad_files

SMALL = CropResize(size=32)


@pytest.fixture(scope="module")
def photo():
    """An asymmetric image with an even and an odd side."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 52, 3), np.uint8)
    return Image.fromarray(noise.repeat(3, 0).repeat(3, 1)[:110, :153])


def pixels_of(path):
    """Returns a loaded image's pixels as signed integers, which can be subtracted."""
    return to_bytes(load_image(str(path), SMALL)[None])[0].astype(int)


def interlaced(image):
    """Returns an interlaced PNG, which Pillow reads but does not write."""
    pixels, data = np.asarray(image.convert("RGB")), b""
    for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        data += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::across])
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return png.START + b"".join(bad_files.png_chunk(*chunk) for chunk in chunks)


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    "crop_resize", [SMALL, CropResize(64, 32), CropResize(61, 48), CropResize(None, 128),
                    CropResize(None, 48, antialias=True)], ids=str,
)  # fmt: skip
def test_a_jpeg_or_png_gives_the_pixels_of_training_bit_for_bit(photo, tmp_path, crop_resize):
    for orientation in range(1, 9):
        photo.save(tmp_path / f"{orientation}.jpg", exif=with_orientation(orientation), subsampling="4:2:0")
    photo.save(tmp_path / "progressive.jpg", progressive=True, subsampling="4:2:2")
    photo.convert("L").save(tmp_path / "grey.jpg")
    photo.save(tmp_path / "turned.png", exif=with_orientation(6))
    alpha = Image.linear_gradient("L").resize(photo.size)
    for name, image in (
        ("rgb", photo), ("gray", photo.convert("L")), ("clear", Image.merge("RGBA", (*photo.split(), alpha))),
        ("palette", photo.quantize(99)), ("bit", photo.convert("1")),
        ("gray clear", Image.merge("LA", (alpha, alpha))),
    ):  # fmt: skip
        image.save(tmp_path / f"{name}.png")
    photo.quantize(9).save(tmp_path / "palette clear.png", transparency=bytes(range(9)))
    (tmp_path / "interlaced.png").write_bytes(interlaced(photo))
    paths = sorted(map(str, tmp_path.iterdir()))
    ours = torch.stack([load_image(path, crop_resize) for path in paths])
    assert torch.equal(ours, load_images(paths, crop_resize, "cpu"))


def test_every_format_and_color_mode_becomes_rgb(photo, tmp_path):
    grey = Image.linear_gradient("L").resize((32, 32))
    rgb = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    pink = Image.new("RGB", (32, 32), (200, 40, 90))
    for name, image, expected, tolerance in (
        *((f"rgb.{suffix}", rgb, rgb, 0) for suffix in ("bmp", "tiff", "ppm")),
        *((f"rgb.{suffix}", rgb, rgb, 3) for suffix in ("jpg", "mpo", "webp", "avif")),
        ("rgb.gif", rgb, rgb, 9),
        ("cmyk.jpg", pink.convert("CMYK"), pink, 2),
    ):
        image.save(tmp_path / name, quality=95)
        difference = pixels_of(tmp_path / name) - np.asarray(expected.convert("RGB"))
        assert np.abs(difference).mean() <= tolerance, name
    photo.save(tmp_path / "upright.png")
    for name in ("turned.png", "turned.tif"):
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=with_orientation(6))
        assert (pixels_of(tmp_path / name) == pixels_of(tmp_path / "upright.png")).all(), name


def test_an_animation_gives_its_first_frame_and_transparency_is_dropped(tmp_path):
    clear = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    for name in ("clear.png", "clear.webp", "clear.tif"):
        clear.save(tmp_path / name, lossless=True, exact=True)
        assert (pixels_of(tmp_path / name) == (10, 20, 30)).all(), name
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "lime")]
    for name in ("moves.gif", "moves.png", "moves.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(pixels_of(tmp_path / name) - (255, 0, 0)).max() <= 2, name


def test_more_than_8_bits_per_channel_are_refused_not_clipped(tmp_path):
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "grey.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 65535\n" + deep.astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        assert "8 bits" in reason_against(path), path.name


def reason_against(path, crop_resize=SMALL):
    """Returns the one line that says why a file cannot be used."""
    with pytest.raises(UnusableImage) as caught:
        load_image(str(path), crop_resize)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unusable_files_are_refused_and_broken_ones_raise_no_other_error(tmp_path, good, photo):
    bad_files.make(tmp_path, good)
    for path in tmp_path.iterdir():
        with suppress(UnusableImage):
            image = load_image(str(path), SMALL)
            assert image.shape == (3, 32, 32) and 0 <= image.min() <= image.max() <= 1
    for name, content in (
        ("empty.png", b""),
        ("text.png", b"no picture"),
        ("cut.jpg", good[: len(good) // 2]),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("huge.ppm", b"P6 65500 65500 255\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert reason_against(tmp_path / name)
    photo.save(tmp_path / "photo.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "--crop is 111" in reason_against(tmp_path / "photo.png", CropResize(111, 32))
    assert "not a file" in reason_against(tmp_path / "pipe.png")
    assert reason_against(tmp_path / "missing.png") == "does not exist"
    assert reason_against(tmp_path / "text.png" / "x.png") == Fault.UNREADABLE


def test_folders_give_their_images_sorted_and_files_stay_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "b/deep/0.webp", "b/notes.txt", "b/._1.jpeg", "a.jpg", "c/x.txt",
                 "b/album.png/3.jpg", "b/.hidden/4.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([f"{tmp_path}/{name}" for name in ("c", "a.jpg", "b", "none.jpg", "a.jpg")])
    assert [path.removeprefix(f"{tmp_path}/") for path in found] == [
        "c", "a.jpg", "b/1.jpeg", "b/2.PNG", "b/album.png/3.jpg", "b/deep/0.webp", "none.jpg", "a.jpg",
    ]  # fmt: skip
    assert "folder" in reason_against(tmp_path / "c")


def test_good_files_with_awkward_names_are_used_and_bad_ones_skipped(small_run, face_paths, tmp_path, capsys):
    inside, out = tmp_path / "mine", tmp_path / "new" / "out"
    inside.mkdir()
    (inside / "0.jpg").write_bytes(Path(face_paths[1]).read_bytes())
    (inside / "bad\n\x1b[31m.jpg").write_bytes(b"no picture")
    awkward = f"{inside}/ok\n\x1b[31m\udcff{60 * '😀'}.png"  # the byte 0xff, as Python names it
    Image.open(face_paths[0]).save(awkward)
    code = here("reconstruct", small_run, face_paths[0], inside, face_paths[0], "gone.jpg", "--out", out)
    printed = capsys.readouterr().out
    assert code == 1 and "\x1b" not in printed and "ok\\n\\x1b[31m\\udcff😀" in printed
    bad, gone, total = (line for line in printed.splitlines() if line.startswith("skipped "))
    assert "mine/bad\\n\\x1b[31m.jpg" in bad and "gone.jpg" in gone and "2 of 6" in total
    pictures = ["0000-000001.png", "0001-0.png", f"0002-ok__[31m_{41 * '😀'}.png", "0003-000001.png"]
    assert sorted(path.name for path in out.iterdir()) == [*pictures, "sheet.png"]

    paths = [face_paths[0], str(inside / "0.jpg"), awkward, face_paths[0]]
    model = load_model(small_run).model
    originals = torch.stack([load_image(path, SMALL) for path in paths])
    with torch.inference_mode():
        reconstructions = model(originals)
    assert np.array_equal(Image.open(out / "sheet.png"), pairs(originals, reconstructions))
    for row, name in enumerate(pictures):
        picture = np.asarray(Image.open(out / name))
        assert picture.shape == (32, 66, 3)
        assert np.array_equal(picture[:, :32], to_bytes(originals)[row])
        assert np.array_equal(picture[:, 34:], to_bytes(reconstructions)[row])
    errors = squared_error(reconstructions, originals).mean((1, 2, 3)).tolist()
    figures = re.findall(r"^ *([\d,]+) +([\d.]+) dB  ", printed, re.M)
    for (index, decibel), error in zip(figures, [*errors, sum(errors) / 4], strict=True):
        assert float(index.replace(",", "")) == pytest.approx(loss_index(error), abs=1)
        assert float(decibel) == pytest.approx(psnr(error), abs=0.051)


def test_reconstruct_succeeds_with_an_unusable_gpu(small_run, face_paths, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert here("reconstruct", small_run, face_paths[0], "--out", tmp_path) == 0  # it is empty


def test_a_wrong_run_image_folder_or_device_is_refused_and_nothing_is_made(small_run, face_paths, tmp_path):
    image, used, young, new = face_paths[0], tmp_path / "used", tmp_path / "young", tmp_path / "new"
    used.mkdir()
    (used / "precious").write_text("kept")
    young.mkdir()
    (young / "config.json").write_bytes((small_run / "config.json").read_bytes())
    for run, given, out, options, word in (
        (used, image, new, (), "config.json"),
        (young, image, new, (), "young"),
        (small_run, used / "precious", new, (), "none of the 1 images"),
        (small_run, image, used, (), "--out"),
        (small_run, image, used / "precious", (), "--out"),
        (small_run, image, used / "precious" / "x", (), "--out"),
        (small_run, image, new, ("--device", "gpu"), "--device"),
    ):
        assert word in refuses("reconstruct", run, given, "--out", out, *options)
        assert not new.exists()
    assert (used / "precious").read_text() == "kept"
