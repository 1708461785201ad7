"""`fastae reconstruct`: users' own images, of every kind, through a trained model."""

import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.data import Geometry, load_images
from fastae.device import Precision
from fastae.errors import FastaeError
from fastae.evaluate import reconstruct
from fastae.images import UnusableImage, find_images, load_image
from fastae.losses import loss_index, psnr, squared_error
from fastae.reconstruct import picture_name, reconstruct_files
from fastae.trained import load_model

from .conftest import largest_file
from .data import bad_files
from .test_cli import refused
from .test_train import fastae

FLOAT32 = Precision(None, "float32")
SMALL = Geometry(size=32)


@pytest.fixture(scope="module")
def photo():
    """An image without symmetry, of odd and even sides."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 52, 3), np.uint8)
    return Image.fromarray(noise.repeat(3, 0).repeat(3, 1)[:110, :153])


def as_bytes(path, geometry=SMALL):
    return (load_image(str(path), geometry) * 255).round().byte().permute(1, 2, 0).numpy()


# Pixels


@pytest.mark.parametrize(
    "geometry",
    [SMALL, Geometry(64, 32), Geometry(61, 48), Geometry(None, 128), Geometry(None, 48, antialias=True)],
    ids=str,
)
def test_a_jpeg_gives_the_pixels_of_the_data_path_bit_for_bit(photo, tmp_path, geometry):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(tmp_path / f"{orientation}.jpg", exif=exif, subsampling="4:2:0")
    photo.save(tmp_path / "progressive.jpg", progressive=True, subsampling="4:2:2")
    photo.convert("L").save(tmp_path / "grey.jpg")
    paths = sorted(map(str, tmp_path.iterdir()))
    ours = torch.stack([load_image(path, geometry) for path in paths])
    assert torch.equal(ours, load_images(paths, geometry, "cpu"))


def test_a_png_copy_of_a_jpeg_gives_the_same_pixels(face_paths, tmp_path):
    for number, path in enumerate(face_paths[:3]):
        copy = tmp_path / f"{number}.png"
        Image.open(path).save(copy)
        assert torch.equal(load_image(str(copy), SMALL), load_image(path, SMALL))


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "ppm", "webp", "mpo", "avif", "gif"])
def test_other_formats_show_the_same_image(face_paths, tmp_path, suffix):
    path = tmp_path / f"face.{suffix}"
    Image.open(face_paths[0]).save(path, quality=95)
    difference = np.abs(as_bytes(path).astype(int) - as_bytes(face_paths[0]))
    assert difference.mean() < (3 if suffix in ("webp", "mpo", "avif", "gif") else 0.001)


def test_grey_palette_and_one_bit_become_colour(tmp_path):
    shades = Image.linear_gradient("L").resize((32, 32))
    expected = np.asarray(shades.convert("RGB"))
    shades.save(tmp_path / "grey.png")
    shades.quantize(256).save(tmp_path / "palette.png")
    assert np.array_equal(as_bytes(tmp_path / "grey.png"), expected)
    assert np.abs(as_bytes(tmp_path / "palette.png").astype(int) - expected).max() <= 8
    shades.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(as_bytes(tmp_path / "bits.png"))) == {0, 255}


def test_cmyk_is_read_with_its_colours_the_right_way_round(tmp_path):
    Image.new("RGB", (40, 40), (200, 40, 90)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(as_bytes(tmp_path / "cmyk.jpg").astype(int) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("name", ["clear.png", "clear.webp", "clear.gif", "grey_clear.png"])
def test_what_is_transparent_is_white(tmp_path, name):
    image = Image.new("RGBA", (32, 32), (10, 20, 30, 0))  # a colour that nobody is to see
    image.paste((200, 0, 0, 255), (8, 8, 24, 24))
    if name == "grey_clear.png":
        image = image.convert("LA")
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    shown = as_bytes(tmp_path / name)
    assert (shown[0, 0] == 255).all()
    assert shown[16, 16, 2] < 70


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 128)).save(tmp_path / "veil.png")
    assert (as_bytes(tmp_path / "veil.png") == 127).all()


def png(width, height, depth, colour, rows):
    """A PNG of any kind, also such as Pillow does not write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bits_a_channel_are_cut_to_eight_not_clipped(tmp_path):
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    expected = np.asarray(Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB"))
    Image.fromarray(deep).save(tmp_path / "grey.png")
    Image.fromarray(deep).save(tmp_path / "grey.tif")
    (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 65535\n" + deep.astype(">u2").tobytes())
    rgb = deep[..., None].repeat(3, -1).astype(">u2")
    (tmp_path / "rgb.png").write_bytes(png(32, 32, 16, 2, b"".join(b"\0" + row.tobytes() for row in rgb)))
    for path in tmp_path.iterdir():
        assert np.array_equal(as_bytes(path), expected), path.name


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    for name in ("moves.gif", "moves.png", "moves.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(as_bytes(tmp_path / name).astype(int) - (255, 0, 0)).max() <= 2


def test_orientation_counts_in_every_format_and_once(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.tif", exif=exif)
    photo.save(tmp_path / "upright.png")
    for name in ("turned.png", "turned.tif"):
        assert np.array_equal(as_bytes(tmp_path / name), as_bytes(tmp_path / "upright.png")), name


# What cannot be used


def unusable(path, geometry=SMALL):
    with pytest.raises(UnusableImage) as caught:
        load_image(str(path), geometry)
    return str(caught.value)


def test_what_is_wrong_with_a_file_is_said(tmp_path, face_paths, photo):
    good = Path(face_paths[0]).read_bytes()
    for name, content, words in (
        ("empty.png", b"", "is empty"),
        ("text.png", b"no picture", "is not an image that can be read (JPEG, PNG, "),
        ("cut.jpg", good[: len(good) // 2], "is damaged: image file is truncated"),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        assert unusable(tmp_path / name).startswith(words)
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "float.tif")
    assert "32 bits a channel" in unusable(tmp_path / "float.tif")
    photo.save(tmp_path / "small.png")
    message = "is smaller than the 111x111 pixels that the run's --crop cuts out"
    assert unusable(tmp_path / "small.png", Geometry(111, 32)) == message
    os.mkfifo(tmp_path / "pipe.png")
    assert unusable(tmp_path / "pipe.png") == "is not a file"
    assert unusable(tmp_path / "missing.png") == "does not exist"
    assert unusable(tmp_path / "text.png" / "x.png") == "cannot be read: Not a directory"


def test_an_image_that_claims_to_be_huge_is_refused_unread(tmp_path):
    claim = "claims more than 100 megapixels: shrink it first"
    (tmp_path / "huge.png").write_bytes(png(65500, 65500, 8, 6, b""))
    (tmp_path / "over.png").write_bytes(png(10001, 10000, 8, 2, b""))
    assert unusable(tmp_path / "huge.png") == claim
    assert unusable(tmp_path / "over.png") == claim
    (tmp_path / "allowed.png").write_bytes(png(10000, 10000, 1, 0, b""))
    assert unusable(tmp_path / "allowed.png").startswith("is damaged")  # it was tried
    Image.new("P", (8, 8)).save(tmp_path / "huge.gif")
    content = (tmp_path / "huge.gif").read_bytes()
    (tmp_path / "huge.gif").write_bytes(content[:6] + struct.pack("<HH", 65500, 65500) + content[10:])
    assert unusable(tmp_path / "huge.gif") == claim


def test_no_broken_file_is_more_than_unusable(tmp_path, face_paths):
    good = Path(face_paths[0]).read_bytes()
    (tmp_path / "good.jpg").write_bytes(good)
    bad_files.make(tmp_path, good)
    for path in sorted(tmp_path.iterdir()):
        try:
            image = load_image(str(path), SMALL)
        except UnusableImage as reason:
            assert str(reason) and "\n" not in str(reason)
        else:
            assert image.shape == (3, 32, 32) and 0 <= image.min() <= image.max() <= 1


# Which files, and what becomes of their names


def test_folders_give_their_images_sorted_and_files_stay_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "b/deep/0.webp", "b/notes.txt", "b/._1.jpeg", "a.jpg", "c/x.txt",
                 "b/album.png/3.jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [f"{tmp_path}/{name}" for name in ("c", "a.jpg", "b", "none.jpg", "a.jpg")]
    found = [path.removeprefix(f"{tmp_path}/") for path in find_images(given)]
    assert found == [
        "c",
        "a.jpg",
        "b/1.jpeg",
        "b/2.PNG",
        "b/album.png/3.jpg",
        "b/deep/0.webp",
        "none.jpg",
        "a.jpg",
    ]
    assert unusable(tmp_path / "c") == "is a folder without images"


def test_pictures_have_names_of_their_own_that_hurt_nobody():
    names = [picture_name(row, path) for row, path in enumerate(("a/x.png", "b/x.jpg", "x.jpg"))]
    assert names == ["0000-x.png", "0001-x.png", "0002-x.png"]
    assert picture_name(3, "d/\x1b[31m\n\udcff.jpg") == "0003-_[31m__.png"
    assert len(picture_name(4, "\N{GRINNING FACE}" * 60 + ".jpg").encode()) < 230


# The command


@pytest.fixture(scope="module")
def mixed(small_run, face_paths, tmp_path_factory):
    """One call with good and bad files under awkward names, as a user makes it."""
    place = tmp_path_factory.mktemp("mixed")
    inside = place / "mine"
    inside.mkdir()
    (inside / "0.jpg").write_bytes(Path(face_paths[1]).read_bytes())
    (inside / "bad\n\x1b[31m.jpg").write_bytes(b"no picture")
    awkward = f"{inside}/ok\n\x1b[31m\udcff.png"  # the byte 0xff, as Python names it
    Image.open(face_paths[0]).save(awkward)
    out = place / "new" / "out"
    result = fastae(
        "reconstruct", small_run, face_paths[0], inside, face_paths[0], "gone.jpg",
        "--out", out, "--latent", out / "codes.npy",
    )  # fmt: skip
    return [face_paths[0], str(inside / "0.jpg"), awkward, face_paths[0]], out, result


def test_bad_images_are_named_the_others_done_and_the_exit_code_is_1(mixed):
    _, out, result = mixed
    assert result.returncode == 1 and not result.stderr
    lines = result.stdout.splitlines()
    left_out = [line for line in lines if line.startswith("left out  ")]
    assert left_out[0].split("mine/")[1].startswith("bad\\n\\x1b[31m.jpg is not an image")
    assert left_out[1:] == ["left out  gone.jpg does not exist", "left out  2 of 6, named above"]
    assert "\x1b" not in result.stdout and "ok\\n\\x1b[31m\\udcff.png" in result.stdout
    names = ["0000-000001.png", "0001-0.png", "0002-ok__[31m_.png", "0003-000001.png"]
    assert sorted(path.name for path in out.iterdir()) == [
        *names,
        "codes.images.json",
        "codes.npy",
        "sheet.png",
    ]


def test_reconstructions_errors_and_codes_are_those_of_the_trained_model(mixed, small_run):
    paths, out, result = mixed
    trained = load_model(small_run)
    originals = torch.stack([load_image(path, SMALL) for path in paths])
    assert torch.equal(originals[:2], load_images(paths[:2], SMALL, "cpu"))
    expected = reconstruct(trained.model, originals, FLOAT32)
    for row, picture in enumerate(sorted(out.glob("0*.png"))):
        pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1) / 255
        assert pixels.shape == (3, 32, 66)
        assert (pixels[:, :, :32] - originals[row]).abs().max() <= 0.51 / 255
        assert (pixels[:, :, 34:] - expected[row]).abs().max() <= 0.51 / 255

    errors = squared_error(expected, originals).mean((1, 2, 3)).tolist()
    found = re.findall(r"^ *([\d,]+) +([\d.]+) dB  ", result.stdout, re.M)
    printed = [(float(index.replace(",", "")), float(decibel)) for index, decibel in found]
    mean = sum(errors) / len(errors)
    for (index, decibel), error in zip(printed, [*errors, mean], strict=True):
        assert index == pytest.approx(loss_index(error), abs=1)
        assert decibel == pytest.approx(psnr(error), abs=0.051)

    codes = np.load(out / "codes.npy")
    assert codes.shape == (4, 16) and codes.dtype == np.float32
    with torch.inference_mode():
        assert np.abs(codes - trained.model.encoder(originals).numpy()).max() < 1e-5
    assert json.loads((out / "codes.images.json").read_text()) == paths
    assert np.asarray(Image.open(out / "sheet.png")).shape == (2 * 34, 4 * 34, 3)


def test_psnr_is_in_decibels_of_a_range_of_1():
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == float("inf")


def test_all_good_is_exit_code_0(small_run, face_paths, tmp_path, capsys):
    (tmp_path / "out").mkdir()  # empty is as good as new
    assert reconstruct_files(small_run, face_paths[:1], tmp_path / "out", None, "cpu") == 0
    assert "as in training" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_no_good_image_is_refused_and_leaves_no_folder(small_run, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(FastaeError, match=r"no usable image among the 1 given, so there is no '.*out'"):
        reconstruct_files(small_run, [str(tmp_path)], tmp_path / "out", None, "cpu")
    assert "text.jpg is not an image" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_wrong_run_or_folder_is_one_line(small_run, face_paths, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("kept")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json").write_bytes((small_run / "config.json").read_bytes())
    new = tmp_path / "new"
    for run, out, latent, device, words in (
        (tmp_path / "used", new, None, "cpu", "used' is not the folder of a run: no config.json"),
        (tmp_path / "young", new, None, "cpu", "young' holds no usable checkpoint"),
        (small_run, tmp_path / "used", None, "cpu", "--out .*used' is not empty: name a new folder"),
        (small_run, tmp_path / "used" / "precious", None, "cpu", "is a file: name a new folder"),
        (small_run, tmp_path / "used" / "precious" / "x", None, "cpu", "--out .* cannot be made"),
        (small_run, new, tmp_path / "codes.txt", "cpu", r"--latent .* must be named \*\.npy"),
        (small_run, new, tmp_path / "used" / "precious" / "c.npy", "cpu", "--latent .* cannot be made"),
        (small_run, new, None, "gpu", "--device 'gpu' is not one of"),
    ):
        with pytest.raises(FastaeError, match=words):
            reconstruct_files(run, face_paths[:1], out, latent, device)
        assert not new.exists()
    assert (tmp_path / "used" / "precious").read_text() == "kept"
    assert refused(fastae("reconstruct", tmp_path / "used", "x.jpg", "--out", new), "no config.json")


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing_half_written(small_run, face_paths, tmp_path):
    out = tmp_path / "out"
    with largest_file(100), pytest.raises(FastaeError, match=r"cannot write .*File too large"):
        reconstruct_files(small_run, face_paths[:1], out, None, "cpu")
    assert not list(out.iterdir())
