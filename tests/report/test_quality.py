"""Errors, PSNR, SSIM and the choice of images, against hand-made figures."""

import shutil

import numpy as np
import pytest
import torch

from fastae.report.quality import HeldOut, judge, make_gallery, measure, pick, read_samples, ssim
from fastae.report.runs import find_runs

from .made import draw_samples, make_run

CPU = torch.device("cpu")


def test_psnr_and_error_of_a_known_difference():
    images = torch.full((2, 3, 32, 32), 0.5)
    found = judge(HeldOut(("a", "b"), images), images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), 7)
    assert found.errors == pytest.approx([0.01, 0.0001], rel=1e-5)
    assert found.psnr == pytest.approx(30, rel=1e-5)  # the mean of 20 and 40 dB
    assert found.pictures.shape == found.originals.shape == (2, 32, 32, 3) and found.iteration == 7


def test_images_without_an_error_are_measured():
    images = torch.full((2, 3, 32, 32), 0.5)
    found = judge(HeldOut(("a", "b"), images), images, 1)
    assert found.psnr == np.inf and found.ssim == pytest.approx(1)


def test_ssim_is_that_of_wang_and_others():
    random = np.random.default_rng(0)
    one = random.random((32, 32, 3), dtype=np.float32)
    assert ssim(one, one) == pytest.approx(1)
    # Of constant images only the luminance term is left: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2.
    dark, light = np.full((32, 32, 3), 0.2, np.float32), np.full((32, 32, 3), 0.6, np.float32)
    assert ssim(dark, light) == pytest.approx((0.24 + 1e-4) / (0.40 + 1e-4), rel=1e-4)


def test_the_best_the_median_and_the_worst_are_picked():
    errors = np.random.default_rng(1).permutation(100)
    groups = {kind: errors[places].tolist() for kind, places in pick(errors).items()}
    assert groups == {"best": [0, 1, 2], "median": [48, 49, 50], "worst": [97, 98, 99]}
    assert pick(np.array([3.0, 1.0, 2.0])) == {"all": [1, 2, 0]}


def test_checkpoints_are_run_on_the_held_out_images_that_training_evaluated_on(
    tmp_path, face_folder, face_paths
):
    for seed, loss in enumerate(("minibatch_bce", "pixel_bce")):
        make_run(tmp_path / loss, loss, data=face_folder, weights=seed)
    runs, _ = find_runs([tmp_path])
    found, reasons = measure(runs, CPU, str(face_folder))
    one, other = (found[run.path] for run in runs)
    assert list(one.names) == [path.rsplit("/")[-1] for path in face_paths[-2:]] and reasons == []
    assert one.iteration == 100 and one.errors.shape == (2,)
    assert np.array_equal(one.originals, other.originals) and not np.array_equal(one.errors, other.errors)
    gallery = make_gallery(runs, found)
    assert gallery.columns == tuple(runs) and gallery.count == 2
    (rows,) = gallery.groups.values()
    worse = rows[1].errors.mean() - rows[0].errors.mean()
    assert len(rows) == 2 and worse >= 0 and rows[0].pictures.shape == (3, 32, 32, 3)


def test_images_that_nobody_named_are_asked_for_once_for_all_runs(tmp_path, face_folder):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss, weights=0, data=face_folder)
    found, (reason,) = measure(find_runs([tmp_path])[0], CPU)
    assert found == {} and "--data DIR" in reason and str(face_folder) in reason


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_named(tmp_path, face_folder):
    make_run(tmp_path / "young", "minibatch_bce", data=face_folder)
    hurt = make_run(tmp_path / "hurt", "pixel_bce", data=face_folder, weights=0)
    (path,) = (hurt / "checkpoints").glob("0*.pt")
    path.write_bytes(path.read_bytes()[:-100])
    found, reasons = measure(find_runs([tmp_path])[0], CPU, str(face_folder))
    assert found == {} and all(
        any(str(tmp_path / name) in each for each in reasons) for name in ("young", "hurt")
    )


@pytest.fixture
def data(face_folder, tmp_path_factory):
    """A data folder to change."""
    return shutil.copytree(face_folder, tmp_path_factory.mktemp("data") / "faces")


def names_of(folder, data):
    found, _ = measure(find_runs([folder])[0], CPU, str(data))
    return {path.name: list(each.names) for path, each in found.items()}


def test_each_run_is_measured_on_its_own_images_although_more_have_come_in(tmp_path, data):
    make_run(tmp_path / "first", data=data, weights=0)
    last = sorted(data.glob("*.jpg"))[-2:]
    for number in range(3):
        shutil.copy(last[0], data / f"zzz{number}.jpg")
    make_run(tmp_path / "second", data=data, weights=0)
    assert names_of(tmp_path, data) == {
        "first": [path.name for path in last], "second": ["zzz1.jpg", "zzz2.jpg"],
    }  # fmt: skip


def test_images_that_were_moved_are_found_where_the_user_says(tmp_path, data):
    make_run(tmp_path / "run", data=data, weights=0)
    assert names_of(tmp_path, data.rename(data.parent / "moved"))


@pytest.mark.parametrize("how", ["other images", "no list", "another list"])
def test_images_that_are_not_the_runs_are_not_measured(tmp_path, data, how):
    run = make_run(tmp_path / "run", data=data, weights=0)
    named = "images.json"
    if how == "other images":
        path = sorted(data.glob("*.jpg"))[-1]
        path.write_bytes(path.read_bytes() + bytes(1))
        named = path.name
    elif how == "another list":
        listed = (run / "images.json").read_text().replace("000001.jpg", "0.jpg", 1)
        (run / "images.json").write_text(listed)
    else:
        (run / "images.json").unlink()
    found, (reason,) = measure(find_runs([tmp_path])[0], CPU, str(data))
    assert not found and named in reason


def test_without_the_images_a_gallery_is_made_of_the_last_sample_sheets(tmp_path):
    for seed, loss in enumerate(("minibatch_bce", "pixel_bce")):
        draw_samples(make_run(tmp_path / loss, loss), 50, number=16, seed=9)
        draw_samples(tmp_path / loss, 100, number=16, seed=1 + seed)
    draw_samples(make_run(tmp_path / "other", "sample_bce"), 100, number=15)
    runs, _ = find_runs([tmp_path])
    found = {run.path: read_samples(run) for run in runs}
    gallery = make_gallery(runs, found)
    assert [run.loss for run in gallery.columns] == ["minibatch_bce", "pixel_bce"]
    assert gallery.iterations == (100, 100) and gallery.count == 16
    assert {kind: len(rows) for kind, rows in gallery.groups.items()} == {"best": 3, "median": 3, "worst": 3}
    errors = np.stack([found[run.path].errors for run in gallery.columns]).mean(axis=0)
    assert gallery.groups["best"][0].errors.mean() == pytest.approx(errors.min())
    assert gallery.groups["worst"][-1].errors.mean() == pytest.approx(errors.max())
