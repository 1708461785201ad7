"""Errors, PSNR, SSIM, the choice of images and the reach of Adam's eps, against hand-made figures."""

import shutil

import numpy as np
import pytest
import torch

from fastae.report.adam import eps_reach
from fastae.report.gallery import pick
from fastae.report.gather import gather
from fastae.report.quality import compare_images, measure, ssim

from .made import make_run

CPU = torch.device("cpu")


def test_psnr_and_error_of_a_known_difference():
    images = torch.full((2, 3, 32, 32), 0.5)
    quality = compare_images(images, images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1), 7)
    assert quality.errors == pytest.approx([0.01, 0.0001], rel=1e-5)
    assert quality.psnr == pytest.approx([20, 40], rel=1e-5)
    assert quality.loss_index == pytest.approx(50_500, rel=1e-5)
    assert quality.pictures.shape == (2, 32, 32, 3) and quality.iteration == 7


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
    assert groups == {"best": [0, 1, 2], "median": [48, 49, 50], "worst": [96, 97, 98, 99]}
    assert pick(np.array([3.0, 1.0, 2.0])) == {"all": [1, 2, 0]}


def test_the_reach_of_eps_is_the_share_of_weights_with_little_gradient(tmp_path):
    ((run,), _) = gather([make_run(tmp_path / "run", "minibatch_mse")])
    step = 10.0
    correction = 1 - 0.999**step
    roots = torch.tensor([1e-4, 2e-4, 3e-4, 5e-8, 0.0])  # of the bias-corrected v; 5e-8 is below 10 eps
    state = {"step": torch.tensor(step), "exp_avg_sq": roots.double().square() * correction}
    reach = eps_reach(run, {"state": {0: state}})
    assert (reach.k, reach.eps) == (1, 1e-8)
    assert (reach.near, reach.quiet) == (pytest.approx(1 / 4), pytest.approx(1 / 5))
    assert reach.median == pytest.approx(1e-4, rel=1e-3)
    ((pixel,), _) = gather([make_run(tmp_path / "pixel", "pixel_mse")])
    assert eps_reach(pixel, {"state": {0: state}}).eps == pytest.approx(1e-8 / (4 * 3 * 32 * 32))
    assert eps_reach(pixel, {"state": {0: state}}).near == 0


def test_an_optimiser_state_of_another_kind_is_no_reach(tmp_path):
    ((run,), _) = gather([make_run(tmp_path / "run")])
    assert eps_reach(run, {}) is None
    assert eps_reach(run, {"state": {0: {"step": 1}}}) is None


def test_checkpoints_are_run_on_the_held_out_images_that_training_evaluated_on(
    tmp_path, face_folder, face_paths
):
    for seed, loss in enumerate(("minibatch_bce", "pixel_bce")):
        make_run(tmp_path / loss, loss, data=face_folder, weights=seed)
    runs, _ = gather([tmp_path])
    measured = measure(runs, CPU, str(face_folder))
    one, other = (measured.quality[run.path] for run in runs)
    held_out = measured.held_out[runs[0].path]
    assert [name.rsplit("/")[-1] for name in held_out.names] == [
        path.rsplit("/")[-1] for path in face_paths[-2:]
    ]
    assert held_out is measured.held_out[runs[1].path]
    assert one.iteration == 100 and one.errors.shape == (2,)
    assert not np.array_equal(one.errors, other.errors)
    # What make_run logged is not what these weights give: that is said.
    assert sum("its checkpoint gives a held-out error of" in note for note in measured.notes) == 2


def test_data_that_nobody_named_are_one_line_for_all_runs(tmp_path, face_folder):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss, weights=0, data=face_folder)
    measured = measure(gather([tmp_path])[0], CPU)
    assert measured.quality == {}
    (note,) = measured.notes
    assert "minibatch_bce, pixel_bce" in note and "--data DIR" in note
    assert len(measured.eps) == 2  # the optimisers' states are there all the same


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_told_of(tmp_path, face_folder):
    make_run(tmp_path / "young", "minibatch_bce", data=face_folder)
    hurt = make_run(tmp_path / "hurt", "pixel_bce", data=face_folder, weights=0)
    (path,) = (hurt / "checkpoints").glob("0*.pt")
    path.write_bytes(path.read_bytes()[:-100])
    measured = measure(gather([tmp_path])[0], CPU)
    assert measured.quality == {}
    assert any("is damaged: its SHA-256" in note for note in measured.notes)
    assert any("of young, hurt: its folder holds no usable checkpoint" in n for n in measured.notes)


@pytest.fixture
def data(face_folder, tmp_path_factory):
    """A data folder to change."""
    return shutil.copytree(face_folder, tmp_path_factory.mktemp("data") / "faces")


def measured_names(measured, run):
    (found,) = (held_out for path, held_out in measured.held_out.items() if path.name == run)
    return list(found.names)


def test_each_run_is_measured_on_its_own_images_although_more_have_come_in(tmp_path, data):
    make_run(tmp_path / "first", data=data, weights=0)
    last = sorted(data.glob("*.jpg"))[-2:]
    for number in range(3):
        shutil.copy(last[0], data / f"zzz{number}.jpg")
    make_run(tmp_path / "second", data=data, weights=0)
    measured = measure(gather([tmp_path])[0], CPU, str(data))
    assert measured_names(measured, "first") == [path.name for path in last]
    assert measured_names(measured, "second") == ["zzz1.jpg", "zzz2.jpg"]
    assert not any("has lost" in note for note in measured.notes)


def test_lost_images_are_told_of(tmp_path, data):
    make_run(tmp_path / "run", data=data, weights=0)
    *_, other, last = sorted(data.glob("*.jpg"))
    last.unlink()
    measured = measure(gather([tmp_path])[0], CPU, str(data))
    assert measured_names(measured, "run") == [other.name] * 2
    assert any("has lost 1 of the files that run began with: others" in note for note in measured.notes)


def test_data_that_were_moved_are_found_where_the_user_says(tmp_path, data):
    for loss in ("minibatch_bce", "pixel_bce"):
        make_run(tmp_path / loss, loss, data=data, weights=0)
    moved = data.rename(data.parent / "moved")
    measured = measure(gather([tmp_path])[0], CPU, str(moved))
    assert len(measured.quality) == 2
    assert len({id(held_out) for held_out in measured.held_out.values()}) == 1


@pytest.mark.parametrize("how", ["other images", "no list", "another list"])
def test_images_that_are_not_the_runs_are_not_measured(tmp_path, data, how):
    run = make_run(tmp_path / "run", data=data, weights=0)
    if how == "other images":
        path = sorted(data.glob("*.jpg"))[-1]
        path.write_bytes(path.read_bytes() + bytes(1))
        named = path.name
    elif how == "another list":
        listed = (run / "images.json").read_text().replace("000001.jpg", "0.jpg", 1)
        (run / "images.json").write_text(listed)
        named = "images.json"
    else:
        (run / "images.json").unlink()
        named = "images.json"
    measured = measure(gather([tmp_path])[0], CPU, str(data))
    assert not measured.quality
    assert any("no reconstructions" in note and named in note for note in measured.notes)
