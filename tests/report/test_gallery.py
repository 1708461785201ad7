"""Which runs and images the gallery shows, and how they are found."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastae.report.compare import group_seeds
from fastae.report.gallery import Gallery, ModelColumn, make_gallery, pick
from fastae.report.runs import find_runs
from fastae.runs.loaded_model import load_model
from fastae.utils.pictures import to_bytes

from ..data.bad_files import bad_table
from .made import make_run


@pytest.fixture
def data(face_folder, tmp_path):
    """A data folder that a test may change."""
    return shutil.copytree(face_folder, tmp_path / "faces")


def gallery_of(folder, data=None):
    return make_gallery(group_seeds(find_runs([folder])[0]), torch.device("cpu"), data and str(data))


def names_of(folder, data):
    """Returns the sorted names of the images, and the warnings."""
    gallery, warnings = gallery_of(folder, data)
    return sorted(gallery.names), warnings


def labels_of(gallery):
    return [column.label for column in gallery.columns]


def test_the_best_the_median_and_the_worst_are_picked():
    errors = np.random.default_rng(1).permutation(100)
    groups = {kind: errors[places].tolist() for kind, places in pick(errors).items()}
    assert groups == {"Best": [0, 1, 2], "Median": [48, 49, 50], "Worst": [97, 98, 99]}
    assert [*pick(np.array([3.0, 1.0, 2.0])).values()] == [[1, 2, 0]]


@pytest.mark.parametrize(("side", "shown"), [(32, 128), (48, 144), (256, 256)])
def test_a_row_is_an_image_and_its_reconstructions_of_at_least_128_pixels(side, shown):
    images = torch.rand(3, 3, side, side)
    made = ModelColumn("pixel_mse", 1, to_bytes(1 - images), np.zeros(3))
    rows = np.asarray(Image.open(io.BytesIO(Gallery((), "abc", images, [made]).png(0, 2))))
    assert rows.shape == (2 * shown, 2 * (shown + 4), 4) and not rows[:, :2].any()
    scale = shown // side
    for row, index in enumerate((0, 2)):
        cells = rows[row * shown : (row + 1) * shown : scale, :, :3]
        assert np.array_equal(cells[:, 2 : shown + 2 : scale], to_bytes(images)[index])
        assert np.array_equal(cells[:, shown + 6 : 2 * shown + 6 : scale], made.reconstructions[index])


def test_models_are_run_on_the_held_out_images_that_training_evaluated_on(run, face_folder):
    make_run(run.parent / "other", "pixel_bce", data=face_folder, weights=1)
    gallery, warnings = gallery_of(run.parent, face_folder)
    assert labels_of(gallery) == ["minibatch_bce", "pixel_bce"] and warnings == []
    assert [column.iteration for column in gallery.columns] == [100, 100]
    assert gallery.names == [path.stem for path in sorted(face_folder.glob("*.jpg"))[-2:]]
    ((best, worst),) = gallery.groups.values()
    errors = np.array([column.errors for column in gallery.columns])
    assert errors[:, best].mean() <= errors[:, worst].mean()
    for column in gallery.columns:
        shown = np.square((column.reconstructions - to_bytes(gallery.images).astype(float)) / 255)
        assert column.errors == pytest.approx(shown.mean(axis=(1, 2, 3)), rel=0.01)


def test_unknown_images_are_asked_for_once_for_all_runs(run, face_folder, cache):
    shutil.copytree(run, run.parent / "again")
    gallery, (warning,) = gallery_of(run.parent)
    assert gallery is None and "--data DIR" in warning and str(face_folder) in warning


def test_each_setting_of_a_loss_has_a_column_by_the_first_seed_with_weights(tmp_path, face_folder):
    for name, settings in {"a": {"lr": 1e-3}, "b": {"seed": 1, "weights": None}, "c": {"seed": 2}}.items():
        make_run(tmp_path / name, "pixel_mse", data=face_folder, **{"weights": 0, **settings})
    gallery, warnings = gallery_of(tmp_path, face_folder)
    assert labels_of(gallery) == ["pixel_mse --lr 0.001", "pixel_mse"] and warnings == []


def test_runs_that_were_evaluated_on_other_images_are_named_and_their_weights_are_not_loaded(
    tmp_path, face_folder, monkeypatch
):
    loaded = []
    monkeypatch.setattr(
        "fastae.report.gallery.load_model", lambda path, *rest: loaded.append(path) or load_model(path, *rest)
    )
    shown = make_run(tmp_path / "shown", data=face_folder, weights=0)
    for seed in range(2):
        other = {"seed": seed, "image_size": 48}
        make_run(tmp_path / f"other-{seed}", "pixel_mse", data=face_folder, weights=0, **other)
    made, (warning,) = gallery_of(tmp_path, face_folder)
    assert len(made.columns) == 1 and loaded == [shown]
    assert "pixel_mse" in warning and "--image-size" in warning and "minibatch_bce" not in warning


def test_damaged_weights_and_runs_without_weights_are_named(run, face_folder):
    make_run(run.parent / "copied", "pixel_bce", data=face_folder)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    gallery, (damaged, bare) = gallery_of(run.parent, face_folder)
    assert gallery is None and str(run) in damaged and "pixel_bce" in bare


def test_a_run_keeps_its_images_after_files_were_added_and_the_folder_was_moved(tmp_path, data):
    first = make_run(tmp_path / "runs" / "first", data=data, weights=0)
    last = sorted(data.glob("*.jpg"))[-2:]
    for number in range(3):
        shutil.copy(last[0], data / f"zzz{number}.jpg")
    second = make_run(tmp_path / "runs" / "second", "pixel_mse", data=data, weights=0)
    moved = data.rename(tmp_path / "moved")
    assert names_of(first, moved) == ([path.stem for path in last], [])
    assert names_of(second, moved) == (["zzz1", "zzz2"], [])
    made, (warning,) = gallery_of(tmp_path / "runs", moved)
    assert len(made.columns) == 1 and "pixel_mse" in warning


def test_a_held_out_file_that_does_not_decode_is_replaced_as_in_training(tmp_path, data):
    *_, replacement, bad = sorted(data.glob("*.jpg"))
    bad.write_bytes(bad_table(bad.read_bytes()))
    names, (warning,) = names_of(make_run(tmp_path / "run", data=data, weights=0), data)
    assert names == [replacement.stem, replacement.stem] and str(bad) in warning


@pytest.mark.parametrize("how", ["other images", "no list", "another list"])
def test_images_that_are_not_the_runs_are_not_shown(run, data, how):
    named = "images.json"
    listed = run / named
    if how == "other images":
        path = sorted(data.glob("*.jpg"))[-1]
        path.write_bytes(path.read_bytes() + bytes(1))
        named = path.name
    elif how == "another list":
        listed.write_text(listed.read_text().replace("000001.jpg", "0.jpg", 1))
    else:
        listed.unlink()
    gallery, (warning,) = gallery_of(run, data)
    assert gallery is None and named in warning
