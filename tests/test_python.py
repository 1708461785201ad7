"""fastae as a library: short calls work, and an error begins with the name of the wrong argument."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastae
from fastae.data import Augmentation, CropResize, Tuning, load_images, open_loader
from fastae.errors import FastaeError

KINDS = pytest.mark.parametrize("kind", ["dali", "resident"])
EAGER = Tuning(compiled=False)


def test_public_names_are_listed_without_importing_torch_and_exist():
    code = "import sys, fastae; assert {'data', '__version__', *fastae.__all__} <= set(dir(fastae)); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(fastae.__getattr__(name) for name in fastae.__all__)
    assert fastae.data.Augmentation and fastae.data.CropResize and fastae.data.Tuning and fastae.__version__


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastae.load_model(None), lambda: fastae.train({}), lambda: fastae.resume(3),
        lambda: fastae.run_sweep(None), lambda: fastae.make_report("run"), lambda: fastae.make_report([None]),
        lambda: fastae.load_model(""), lambda: fastae.train(fastae.TrainConfig(out="a\0b")),
    ],
)  # fmt: skip
def test_an_argument_of_another_type_is_a_fastae_error(call):
    with pytest.raises(FastaeError):
        call()


def test_open_loader_needs_only_a_folder(face_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("HOME", str(face_folder.parent))
    loader = open_loader(f"~/{face_folder.name}", 8, image_size=32, cache=tmp_path, tuning=EAGER)
    assert repr(loader) == ("Loader(kind='resident', images=40, batch_size=8, image_size=32, device='cpu')")
    listed = open_loader(map(Path, loader.paths), 8, image_size=32, cache=tmp_path, tuning=EAGER)
    for one, other in itertools.islice(zip(loader, listed, strict=True), 2):
        assert one.shape == (8, 3, 32, 32) and torch.equal(one, other)
    home = [f"~/{face_folder.name}/000001.jpg"]
    assert torch.equal(load_images(home), load_images([face_folder / "000001.jpg"], CropResize(), "cpu"))


WRONG = {
    "batch_size": [0, -3, "8", 2.0, True, None, 41],
    "seed": [-1, "0", 2**63],
    "image_size": [0, -1, "64", 5000],
    "crop": [0, "100"],
    "antialias": [1],
    "split": ["val", None, 3],
    "kind": ["tape", None],
    "augment": [None, 0.5, "yes"],
    "flip": ["no", 1],
    "shuffle": [0],
    "device": ["gpu", "cuda:99", "meta", 3.5],
    "cache": [None, 1],
    "tuning": [None],
    "shard": [(1, 1), (0, 0), 3, (0, 1, 2), "all"],
    "targets": ["class", 3],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=str
)
def test_a_wrong_argument_is_named(face_folder, name, value):
    with pytest.raises(FastaeError, match=f"^{name} ") as caught:
        open_loader(face_folder, **{"batch_size": 8, "cache": False, "tuning": EAGER} | {name: value})
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", [3, None, [], [3], [b"a.jpg"], "", "a\0b", "s3://bucket", "none", ["none"]]
)
def test_a_wrong_source_is_named(source):
    with pytest.raises(FastaeError, match=r"source|folder 'none' does not exist|no usable image"):
        open_loader(source)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("start", lambda loader: loader.batches(-1)),
        ("start", lambda loader: loader.batches(1.5)),
        ("split", lambda loader: open_loader(loader.paths, split="held_out")),
        ("shard", lambda loader: open_loader(loader.paths[:1], 2, augment=False, shard=(0, 2))),
        ("epoch", lambda loader: loader.set_epoch(-1)),
        ("number", lambda loader: loader.epoch("1")),
        ("iteration", lambda loader: loader.indices(-1)),
        ("state", lambda loader: loader.load_state_dict({})),
        ("batch", lambda loader: loader.load_state_dict(loader.state_dict() | {"batch": None})),
        ("device", lambda loader: open_loader(loader.paths, device="cuda")),
        ("device", lambda loader: load_images(loader.paths, device="cuda")),
        ("device", lambda loader: fastae.load_model("run", device="cuda")),
        ("crop_resize", lambda loader: load_images(loader.paths, 64)),
        ("image_size", lambda loader: fastae.AutoEncoder(image_size=100)),
        ("latent", lambda loader: fastae.AutoEncoder(latent="512")),
        ("brightness", lambda loader: Augmentation(brightness=2)),
        ("contrast", lambda loader: Augmentation(contrast="0.2")),
        ("size", lambda loader: CropResize(size=0)),
        ("threads", lambda loader: Tuning(threads=0)),
        ("hw_decoder_load", lambda loader: Tuning(hw_decoder_load=2)),
    ],
)
def test_a_wrong_argument_of_another_function_is_named(face_paths, monkeypatch, name, action):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loader = open_loader(face_paths, 8, cache=False, tuning=EAGER)
    with pytest.raises(FastaeError, match=f"^{name} "):
        action(loader)


def test_numbers_of_numpy_are_accepted(face_paths):
    ranges = Augmentation(np.float32(0.5), np.float64(0), 0)
    loader = open_loader(face_paths, np.int64(8), augment=ranges, seed=np.uint8(3), kind="dali")
    assert next(loader.batches(np.int32(2))).shape == (8, 3, 128, 128)


@KINDS
@pytest.mark.parametrize(
    ("split", "numbers"), [("train", range(1, 39)), ("held_out", [39, 40]), ("all", range(1, 41))]
)
def test_a_split_without_augmentation_is_in_order_and_unchanged(face_folder, kind, split, numbers):
    loader = open_loader(
        face_folder, 16, split=split, augment=False, image_size=48, kind=kind, cache=False, tuning=EAGER
    )
    assert [Path(path).name for path in loader.paths] == [f"{number:06d}.jpg" for number in numbers]
    expected = load_images(loader.paths, CropResize(size=48), "cpu")
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == -(-len(numbers) // 16)
        assert max(map(len, batches)) <= 16
        tolerance = 1e-6 if kind == "dali" else 0.51 / 255
        assert (torch.cat(batches) - expected).abs().max() <= tolerance
    assert torch.equal(next(loader.batches(len(loader) - 1)), batches[-1])


@KINDS
def test_flips_colors_and_order_can_be_set_separately(face_paths, kind):
    def batch(**options):
        loader = open_loader(face_paths, 40, image_size=48, kind=kind, cache=False, tuning=EAGER, **options)
        return next(loader.batches(3)).clone()

    plain = batch(augment=False)
    flipped = batch(augment=False, flip=True)
    turned = [not torch.equal(one, other) for one, other in zip(plain, flipped, strict=True)]
    assert 10 < sum(turned) < 30
    for index, turn in enumerate(turned):
        assert (flipped[index] - (plain[index].flip(2) if turn else plain[index])).abs().max() < 1e-6
    shuffled = batch(augment=False, shuffle=True)
    assert not torch.equal(shuffled, plain)
    assert sorted(image.sum().item() for image in shuffled) == pytest.approx(
        sorted(image.sum().item() for image in plain)
    )
    colored = batch(flip=False, shuffle=False)
    assert (colored - plain).abs().mean() > 0.01
    assert torch.equal(batch(), batch(flip=True, shuffle=True, augment=Augmentation()))


def test_a_folder_and_a_list_of_files_accept_the_same_files(tmp_path, face_paths, capsys):
    image = Image.open(face_paths[0])
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("L").save(tmp_path / "grey.jpg")
    image.save(tmp_path / "png.jpg", "PNG")
    image.save(tmp_path / "webp.jpg", "WEBP")
    (tmp_path / "cut.jpg").write_bytes(Path(face_paths[1]).read_bytes()[:2000])
    (tmp_path / "no.jpg").symlink_to("nowhere")
    image.resize((90, 120)).save(tmp_path / "small.jpg")
    for number in range(3):
        os.link(face_paths[number], tmp_path / f"{number}.jpg")
    options = {"crop": 100, "kind": "dali", "augment": False, "tuning": EAGER}
    files = sorted(tmp_path.iterdir())
    whole, listed = (
        open_loader(source, split="all", **options) for source in (tmp_path, [*files, *files[:2]])
    )
    assert [Path(path).name for path in whole.paths] == ["0.jpg", "1.jpg", "2.jpg", "grey.jpg", "png.jpg"]
    assert listed.paths == [*whole.paths, *whole.paths[:2]]
    assert whole.skipped == listed.skipped and len(whole.skipped) == 5
    assert capsys.readouterr().out.count("loader.skipped") == 2
    assert torch.equal(next(iter(whole)), next(iter(listed))[:5])
    with pytest.raises(FastaeError, match=r"no usable image among the 1 file .*cmyk.*CMYK"):
        open_loader([tmp_path / "cmyk.jpg"])
