"""Errors, PSNR, SSIM and the choice of images, against hand-made figures."""

import shutil

import numpy as np
import pytest
import torch

from fastae.data.files.folder import open_folder
from fastae.report.groups import group_seeds
from fastae.report.quality import HeldOut, judge, make_gallery, measure, pick, ssim
from fastae.report.runs import find_runs
from fastae.utils.cache import cache_folder, check_records

from ..data.bad_files import bad_table
from .made import make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(face_folder, tmp_path_factory):
    """Two runs, with their images."""
    folder = tmp_path_factory.mktemp("made")
    for seed, loss in enumerate(("minibatch_bce", "pixel_bce")):
        make_run(folder / loss, loss, data=face_folder, weights=seed)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """One to change."""
    return shutil.copytree(made / "minibatch_bce", tmp_path / "run")


@pytest.fixture
def data(face_folder, tmp_path):
    """A data folder to change."""
    return shutil.copytree(face_folder, tmp_path / "faces")


def measured(folder, data=None):
    """By a run's name the names of its images, and the warnings."""
    found, warnings = measure(find_runs([folder])[0], CPU, data and str(data))
    return {path.name: list(each.held_out.names) for path, each in found.items()}, warnings


def test_error_psnr_and_ssim_of_a_known_difference():
    images = torch.full((2, 3, 32, 32), 0.5)
    found = judge(HeldOut(("a", "b"), images), images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), 7)
    assert found.errors == pytest.approx([0.01, 0.0001], rel=1e-5)
    assert found.psnr == pytest.approx(30, rel=1e-5)  # the mean of 20 and 40 dB
    assert found.reconstructions.shape == (2, 32, 32, 3) and found.iteration == 7
    same = judge(HeldOut(("a", "b"), images), images, 1)
    assert same.psnr == np.inf and same.ssim == pytest.approx(1)
    # Of constant images only the luminance term is left: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2.
    dark, light = np.full((32, 32, 3), 0.2, np.float32), np.full((32, 32, 3), 0.6, np.float32)
    assert ssim(dark, light) == pytest.approx((0.24 + 1e-4) / (0.40 + 1e-4), rel=1e-4)


def test_the_best_the_median_and_the_worst_are_picked():
    errors = np.random.default_rng(1).permutation(100)
    groups = {kind: errors[indices].tolist() for kind, indices in pick(errors).items()}
    assert groups == {"best": [0, 1, 2], "median": [48, 49, 50], "worst": [97, 98, 99]}
    assert pick(np.array([3.0, 1.0, 2.0])) == {"all": [1, 2, 0]}


def test_models_are_run_on_the_held_out_images_that_training_evaluated_on(made, face_folder, face_paths):
    runs, _ = find_runs([made])
    found, warnings = measure(runs, CPU, str(face_folder))
    one, other = (found[run.path] for run in runs)
    assert list(one.held_out.names) == [path.rsplit("/")[-1] for path in face_paths[-2:]] and warnings == []
    assert one.iteration == 100 and one.errors.shape == (2,) and not np.array_equal(one.errors, other.errors)
    gallery = make_gallery(group_seeds(runs), found)
    assert gallery.columns == ("minibatch_bce", "pixel_bce") and gallery.count == 2
    (rows,) = gallery.groups.values()
    worse = rows[1].errors.mean() - rows[0].errors.mean()
    assert len(rows) == 2 and worse >= 0 and rows[0].pictures.shape == (3, 32, 32, 3)


def test_images_that_nobody_named_are_asked_for_once_for_all_runs(made, face_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "cache"))
    found, (warning,) = measured(made)
    assert found == {} and "--data DIR" in warning and str(face_folder) in warning


def test_the_images_that_the_runs_were_trained_on_here_need_not_be_named(made, face_folder):
    open_folder(str(face_folder), records=check_records(cache_folder()))  # as training does
    assert [len(names) for names in measured(made)[0].values()] == [2, 2]


def test_settings_of_a_loss_have_columns_of_their_own_and_seeds_share_one(tmp_path, face_folder):
    for name, settings in {"a": {"lr": 1e-3}, "b": {"seed": 1}, "c": {"seed": 2}}.items():
        make_run(tmp_path / name, "pixel_mse", data=face_folder, weights=0, **settings)
    groups = group_seeds(find_runs([tmp_path])[0])
    gallery = make_gallery(groups, measure(find_runs([tmp_path])[0], CPU, str(face_folder))[0])
    assert set(gallery.columns) == {"pixel_mse --lr 0.001", "pixel_mse"}


def test_a_run_without_weights_or_with_damaged_ones_is_named(run, made, face_folder):
    young = make_run(run.parent / "young", "pixel_bce", data=face_folder)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    found, warnings = measured(run.parent, face_folder)
    assert found == {} and all(any(str(path) in each for each in warnings) for path in (young, run))


def test_each_run_is_measured_on_its_own_images_although_more_have_come_in_and_all_were_moved(tmp_path, data):
    make_run(tmp_path / "runs" / "first", data=data, weights=0)
    last = sorted(data.glob("*.jpg"))[-2:]
    for number in range(3):
        shutil.copy(last[0], data / f"zzz{number}.jpg")
    make_run(tmp_path / "runs" / "second", data=data, weights=0)
    found, _ = measured(tmp_path / "runs", data.rename(tmp_path / "moved"))
    assert found == {"first": [path.name for path in last], "second": ["zzz1.jpg", "zzz2.jpg"]}


def test_a_held_out_file_that_does_not_decode_is_replaced_as_in_training(tmp_path, data):
    *_, replacement, bad = sorted(data.glob("*.jpg"))
    bad.write_bytes(bad_table(bad.read_bytes()))
    run = make_run(tmp_path / "run", data=data, weights=0)
    found, (warning,) = measured(run, data)
    assert found == {"run": [replacement.name, replacement.name]} and str(bad) in warning


@pytest.mark.parametrize("how", ["other images", "no list", "another list"])
def test_images_that_are_not_the_runs_are_not_measured(run, data, how):
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
    found, (warning,) = measured(run, data)
    assert not found and named in warning
