"""A whole run on real JPEGs, and the files that it leaves."""

import csv
import json
import re
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from fastae.data import CropResize, load_images
from fastae.device.choose import Precision
from fastae.experiment.losses import LOSSES, Element
from fastae.experiment.metrics import ssim
from fastae.experiment.model import AutoEncoder
from fastae.runs.metrics import COLUMNS, read_metrics
from fastae.training.evaluate import BATCH, evaluate
from fastae.training.trainer import is_log_step
from fastae.utils.pictures import GAP, MARGIN, TITLE

from ..commands import SMALL, here, last_checkpoint

LOGGED, EVALUATED = [1, 2, 5, 10, 20, 30], [0, 15, 30]


@pytest.fixture(scope="module")
def finished(article_model, face_folder, tmp_path_factory):
    """The folder of a run of 30 iterations, and the lines that it printed."""
    out = tmp_path_factory.mktemp("run") / "=1+1"
    with redirect_stdout(StringIO()) as output:
        here(
            "train", "--loss", "pixel_bce", "--amp", "--data", face_folder, "--out", out, *SMALL, "--seed", 1,
            "--iterations", 30, "--log-every", 20, "--eval-every", 15, "--lr", 1e-3, "--batch-size", 8,
        )  # fmt: skip
    return out, output.getvalue().splitlines()


@pytest.fixture(scope="module")
def events(finished):
    accumulator = EventAccumulator(str(finished[0]), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_a_run_prints_plain_lines_and_ends_with_its_folder_picture_and_curves(finished):
    out, lines = finished
    line = r" 5/30  loss \d+\.\d{4}  loss_index +[\d,]+  [\d,.]+ images/s  data wait [\d.]+%  ETA "
    assert sum(bool(re.match(line, each)) for each in lines) == 1
    assert lines[-4].startswith(f"run       {out} (")
    assert "MB of it is the checkpoint" in lines[-3]
    assert lines[-2] == f"picture   {out}/samples/0000030.png"
    assert re.fullmatch(rf"curves    (\S*/)?tensorboard --logdir {out.parent}", lines[-1])
    assert not any("\x1b" in each for each in lines)


def test_config_json_holds_settings_versions_and_device(finished):
    written = json.loads((finished[0] / "config.json").read_text())
    assert written["config"]["loss"] == "pixel_bce"
    assert (written["config"]["iterations"], written["config"]["lr"]) == (30, 1e-3)
    assert len(written["data"]["fingerprint"]) == 32
    numbers = {"train": 38, "held_out": 2, "evaluated_on": 2}
    assert {name: written["data"][name] for name in numbers} == numbers
    assert written["environment"]["packages"]["torch"] == torch.__version__
    assert written["device"] and written["step"]


def test_metrics_csv_and_tensorboard_have_the_same_points(finished, events):
    metrics = read_metrics(finished[0] / "metrics.csv")
    tags = {
        ("train", "loss"): "loss/pixel_bce", ("train", "loss_index"): "loss_index/train",
        ("train", "images_per_second"): "speed/images_per_second",
        ("train", "data_wait"): "speed/data_wait_share", ("train", "grad_norm"): "gradient_norm",
        ("train", "step_p50_ms"): "speed/step_ms_p50", ("train", "step_p95_ms"): "speed/step_ms_p95",
        ("held_out", "loss"): "loss/pixel_bce/held_out", ("held_out", "loss_index"): "loss_index/held_out",
        ("held_out", "psnr"): "psnr/held_out", ("held_out", "ssim"): "ssim/held_out",
    }  # fmt: skip
    for (kind, name), tag in tags.items():
        rows = getattr(metrics, kind)
        assert rows.iterations.tolist() == (sorted({*LOGGED, 15}) if kind == "train" else EVALUATED)
        points = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]
        assert list(zip(rows.iterations.tolist(), rows.values[name].tolist(), strict=True)) == points, tag
    assert {name for _, name in tags} == set(COLUMNS)
    others = set(events.Tags()["scalars"]) - set(tags.values())
    assert all(tag.startswith("utilisation/") for tag in others)


def test_no_text_in_a_table_is_a_formula(finished):
    """A table program would compute it. The name of the run's folder is one."""
    for table in finished[0].glob("*.csv"):
        for row in csv.reader(table.open(newline="")):
            for cell in row:
                with suppress(ValueError):
                    cell = str(abs(float(cell)))
                assert not cell.startswith(("=", "+", "-", "@"))


def test_log_steps_come_early_then_evenly():
    assert [step for step in range(1, 181) if is_log_step(step, 60)] == [1, 2, 5, 10, 20, 50, 60, 120, 180]


def test_training_lowers_the_held_out_error_and_logs_means(finished):
    metrics = read_metrics(finished[0] / "metrics.csv")
    first, *_, last = metrics.held_out.values["loss_index"]
    assert last < 0.9 * first
    # An untrained network's cross entropy is near log 2 per element; the sum of pixel_bce would be 10,000.
    assert 0.5 < metrics.train.values["loss"][0] < 1.2


def test_pictures_and_settings_are_in_tensorboard_and_on_disk(finished, events):
    pictures = events.Images("held_out/original_over_reconstruction")
    assert [event.step for event in pictures] == EVALUATED
    assert "config/text_summary" in events.Tags()["tensors"]
    names = sorted(path.name for path in (finished[0] / "samples").iterdir())
    assert names == [f"{iteration:07d}.png" for iteration in EVALUATED]


def test_the_picture_shows_held_out_originals_above_reconstructions(finished, face_paths):
    sheet = np.asarray(Image.open(finished[0] / "samples" / "0000030.png"))
    loaded = load_images(face_paths[-2:], CropResize(size=32), "cpu").permute(0, 2, 3, 1).numpy()
    for column, original in enumerate(loaded):
        left = MARGIN + column * (32 + GAP)
        assert np.abs(sheet[TITLE : TITLE + 32, left : left + 32] / 255 - original).max() < 0.51 / 255


def test_the_checkpoint_has_the_weights_that_give_the_logged_figures(finished, events, face_paths):
    found = last_checkpoint(finished[0])
    assert found.iteration == 30 and found.description.config.loss == "pixel_bce"
    model = AutoEncoder(32, 16)
    model.load_state_dict(found.training.model)
    held_out = load_images(face_paths[-2:], CropResize(size=32), "cpu")
    float32 = Precision(None, "float32")
    result = evaluate(model, held_out, LOSSES["pixel_bce"], precision=float32, iteration=30)
    logged = events.Scalars("loss_index/held_out")[-1].value
    assert result.loss_index == pytest.approx(logged, rel=0.02)  # logged under bf16


def test_an_evaluation_takes_a_batch_at_a_time_and_the_mean_of_all_images():
    sizes = []

    def absolute_error(reconstruction, images):
        sizes.append(len(images))
        return (reconstruction - images).abs()

    images, blur = torch.rand(BATCH + 6, 3, 16, 16), nn.AvgPool2d(3, 1, 1)
    loss = replace(LOSSES["pixel_mse"], element=Element("l1", "absolute error", absolute_error))
    result = evaluate(blur, images, loss, precision=Precision(None, "float32"), iteration=1)
    error = (blur(images) - images).square().mean((1, 2, 3))
    assert sizes == [BATCH, 6]
    assert result.loss == pytest.approx((blur(images) - images).abs().mean().item())
    assert result.loss_index == pytest.approx(1e7 * error.mean().item())
    assert result.psnr == pytest.approx(-10 * error.log10().mean().item())
    assert result.ssim == pytest.approx(ssim(blur(images), images).mean().item())
