"""Each image comes with its own target: with each kind of loader, on ranks, with bad files, and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.data import Tuning, open_loader
from fastae.data.loaders.host import HostSource
from fastae.errors import FastaeError

from .bad_files import bad_table
from .batches import take

CLASSES = ["ant", "bee", "cat"]
"""Class i is seen in the pixels: its images are brightest in channel i."""


@pytest.fixture
def labelled(tmp_path):
    """A folder of three classes with seven images each; those of `cat` are deeper."""
    for index, name in enumerate(CLASSES):
        folder = tmp_path / "animals" / name / ("deeper" if name == "cat" else "")
        folder.mkdir(parents=True)
        color = [230 if channel == index else 40 for channel in range(3)]
        for number in range(7):
            Image.new("RGB", (48, 40), tuple(color)).save(folder / f"{number}.jpg")
    return tmp_path / "animals"


def opened(source, kind="resident", **options):
    options = {"image_size": 16, "device": "cpu", "cache": False, "tuning": Tuning(compiled=False)} | options
    loader = open_loader(source, 6, kind="resident" if kind == "host" else kind, **options)
    if kind == "host":  # as on a GPU, which this test has not
        loader.source = HostSource(loader.source.store, loader.source.sampler, loader.source.decoder)
    return loader


def assert_true(loader, iteration, images, targets):
    """Compares a batch's targets with its pixels and with the folders of the files that were read."""
    assert targets.dtype == torch.int64
    assert images.mean((2, 3)).argmax(1).tolist() == targets.tolist()
    folders = [Path(loader.paths[index]).parts for index in loader.indices(iteration)]
    assert all(loader.classes[target] in parts for target, parts in zip(targets, folders, strict=True))


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("shard", [(0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["dali", "host", "resident"])
def test_targets_are_the_classes_of_the_files_that_were_read(labelled, kind, shard, augment):
    """The last ant does not decode, so that a bee replaces it. A bee that `dali` reads again is lost."""
    bad = labelled / "ant" / "6.jpg"
    bad.write_bytes(bad_table(bad.read_bytes()))
    loader = opened(labelled, kind, shard=shard, augment=augment, targets="folders")
    assert loader.classes == CLASSES
    for iteration, batch in enumerate(take(loader.batches(), 4)):
        assert_true(loader, iteration, *batch)
    if kind == "dali":
        (labelled / "bee" / "6.jpg").unlink()
    for iteration, batch in enumerate(take(loader.batches(3), 5), start=3):
        assert_true(loader, iteration, *batch)
    for number, batch in enumerate(loader.epoch(2)):
        assert_true(loader, 2 * len(loader) + number, *batch)


def test_a_split_keeps_the_numbers_of_the_classes_and_holds_out_each(labelled, capsys):
    """No bee is usable."""
    for path in (labelled / "bee").iterdir():
        path.write_bytes(b"")
    train, held_out = (
        opened(labelled, split=split, targets="folders", augment=False) for split in ("train", "held_out")
    )
    assert train.classes == held_out.classes == CLASSES
    assert torch.cat([targets for _, targets in train]).tolist() == [0] * 6 + [2] * 6
    assert torch.cat([targets for _, targets in held_out]).tolist() == [0, 2]
    assert capsys.readouterr().out.count("12 to train on, 2 held out") == 2


@pytest.mark.parametrize(
    ("values", "dtype", "shape"),
    [
        (range(21), torch.int64, ()),
        ([number / 2 for number in range(21)], torch.float64, ()),
        (np.arange(21, dtype=np.int32), torch.int32, ()),
        (np.ones((21, 2, 3), np.float32), torch.float32, (2, 3)),
        (torch.ones(21, 40) > 0, torch.bool, (40,)),
    ],
    ids=["integers", "floats", "int32", "arrays", "tensor"],
)
def test_values_by_file_keep_their_dtype_and_shape(labelled, values, dtype, shape):
    files = [str(labelled / "none.jpg"), *sorted(map(str, labelled.glob("**/*.jpg")))]
    values = np.asarray(values)
    with_skipped = np.concatenate([values[:1], values])
    by_order = opened(files, augment=False, targets=with_skipped)
    by_path = opened(files, augment=False, targets=dict(zip(files, with_skipped, strict=True)))
    for loader in (by_order, by_path):
        targets = [targets for _, targets in loader]
        assert targets[0].shape == (6, *shape) and targets[0].dtype == dtype
        assert np.array_equal(torch.cat(targets).numpy(), values)


def test_targets_may_be_a_tensor_with_gradients(labelled):
    files = sorted(map(str, labelled.glob("**/*.jpg")))
    loader = opened(files, augment=False, targets=torch.arange(21.0).requires_grad_())
    assert torch.cat([targets for _, targets in loader]).tolist() == list(range(21))


def test_keys_are_names_below_the_folder_or_names_that_only_one_file_has(labelled):
    (labelled / "bee" / "0.jpg").rename(labelled / "bee" / "one.jpg")
    names = [path.relative_to(labelled) for path in sorted(labelled.glob("**/*.jpg"))]
    values = {name: number for number, name in enumerate(names)}
    values["one.jpg"] = values.pop(Path("bee/one.jpg"))
    loader = opened(labelled, augment=False, targets=values)
    assert torch.cat([targets for _, targets in loader]).tolist() == list(range(21))
    with pytest.raises(FastaeError, match=r"^targets has no value for 20 files, such as .*ant/0\.jpg"):
        opened(labelled, targets={f"{name}.jpg": 1 for name in (*range(7), "one")})


@pytest.mark.parametrize(
    "targets",
    [3, "classes", range(21), {}, {"0.jpg": 1}, {3: 1}, np.arange(21)],
    ids=str,
)
def test_wrong_targets_of_a_folder_are_named(labelled, targets):
    with pytest.raises(FastaeError, match=r"^targets ") as caught:
        opened(labelled, targets=targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "targets", ["folders", 3, [1], ["a"] * 7, [[1], [1, 2], *[[1]] * 5], [None] * 7], ids=str
)
def test_wrong_targets_of_a_list_are_named(labelled, targets):
    with pytest.raises(FastaeError, match=r"^targets "):
        opened(sorted((labelled / "ant").iterdir()), targets=targets)


def test_a_file_in_no_folder_has_no_class(labelled):
    (labelled / "ant" / "0.jpg").rename(labelled / "0.jpg")
    with pytest.raises(FastaeError, match=r"^targets .*animals/0\.jpg"):
        opened(labelled, targets="folders")
