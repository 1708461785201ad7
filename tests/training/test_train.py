"""A whole run as a user starts it: a subprocess on real JPEGs, and what it leaves behind."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastae.data import CropResize, load_images
from fastae.model import AutoEncoder
from fastae.training.evaluate import evaluate
from fastae.utils.device import Precision
from fastae.utils.pictures import GAP, MARGIN, TITLE

from ..commands import SMALL, fastae, here


@pytest.fixture(scope="module")
def finished(face_folder, tmp_path_factory):
    """One run of 12 iterations, and the process that made it."""
    out = tmp_path_factory.mktemp("run") / "out"
    result = fastae(
        "train", "--loss", "pixel_bce", "--amp", "--data", face_folder, "--out", out, *SMALL,
        "--iterations", 12, "--log-every", 5, "--eval-every", 6, "--seed", 1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.fixture(scope="module")
def events(finished):
    accumulator = EventAccumulator(str(finished[0]), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_prints_plain_lines_and_ends_with_what_to_look_at(finished):
    out, result = finished
    lines = result.stdout.splitlines()
    assert any(
        re.match(r" 5/12  loss \d+\.\d{4}  loss_index +[\d,]+  [\d,.]+ images/s  ", line) for line in lines
    )
    assert lines[-3] == f"run       {out}"
    assert lines[-2] == f"picture   {out}/samples/0000012.png"
    assert lines[-1] == f"curves    tensorboard --logdir {out.parent}"
    assert "\x1b" not in result.stdout


def test_config_json_holds_settings_versions_and_device(finished):
    written = json.loads((finished[0] / "config.json").read_text())
    assert written["config"]["loss"] == "pixel_bce"
    assert written["config"]["iterations"] == 12
    assert written["config"]["lr"] == 1e-4
    assert len(written["data"]["fingerprint"]) == 32
    assert written["data"] | {"folder": "", "source": "", "fingerprint": ""} == {
        "fingerprint": "",
        "source": "",
        "folder": "",
        "train": 38,
        "held_out": 2,
        "split": "the last 5 % by name",
        "evaluated_on": 2,
    }
    assert written["environment"]["packages"]["torch"] == torch.__version__
    assert written["device"] and written["step"]


def test_scalars_stand_where_they_were_logged(events):
    logged = ["loss/pixel_bce", "loss_index/train", "speed/images_per_second",
              "speed/data_wait_share", "speed/step_ms_p50", "speed/step_ms_p95"]  # fmt: skip
    for tag in logged:
        assert [event.step for event in events.Scalars(tag)] == [1, 5, 6, 10, 12], tag
    for tag in ("loss_index/held_out", "loss/pixel_bce/held_out"):
        assert [event.step for event in events.Scalars(tag)] == [0, 6, 12], tag
    watched = {tag for tag in events.Tags()["scalars"] if tag.startswith("utilisation/")}
    assert set(events.Tags()["scalars"]) - watched == {
        *logged,
        "loss_index/held_out",
        "loss/pixel_bce/held_out",
    }
    assert all(0 <= event.value <= 1 for event in events.Scalars("speed/data_wait_share"))


def test_the_logged_loss_is_a_mean_whatever_the_reduction(events):
    # An untrained network's cross entropy is near log 2 an element; pixel's sum would be 10,000.
    assert 0.5 < events.Scalars("loss/pixel_bce")[0].value < 1.2


def test_pictures_and_settings_are_in_tensorboard_and_on_disk(finished, events):
    out, _ = finished
    assert [event.step for event in events.Images("held_out/original_over_reconstruction")] == [
        0,
        6,
        12,
    ]
    assert events.Tags()["tensors"] == ["config/text_summary"]
    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == ["0000000.png", "0000006.png", "0000012.png"]


def test_the_picture_shows_held_out_originals_above(finished, face_paths):
    sheet = np.asarray(Image.open(finished[0] / "samples" / "0000012.png"))
    loaded = load_images(face_paths[-2:], CropResize(size=32), "cpu").permute(0, 2, 3, 1).numpy()
    for column, original in enumerate(loaded):
        left = MARGIN + column * (32 + GAP)
        assert np.abs(sheet[TITLE : TITLE + 32, left : left + 32] / 255 - original).max() < 0.51 / 255


def test_the_checkpoint_is_a_plain_state_dict_that_gives_the_logged_figures(finished, events, face_paths):
    state = torch.load(finished[0] / "checkpoints" / "last.pt", weights_only=True)
    assert state["iteration"] == 12 and state["config"]["loss"] == "pixel_bce"
    assert not any("_orig_mod" in name for name in state["model"])
    model = AutoEncoder(32, 16)
    model.load_state_dict(state["model"])
    held_out = load_images(face_paths[-2:], CropResize(size=32), "cpu")
    result = evaluate(model, held_out, "pixel_bce", Precision(None, "float32"))
    logged = events.Scalars("loss_index/held_out")[-1].value
    assert result.loss_index == pytest.approx(logged, rel=0.02)  # logged under bf16


def test_training_lowers_the_held_out_error(face_folder, tmp_path):
    result = fastae(
        "train", "--data", face_folder, "--out", tmp_path / "run", *SMALL,
        "--iterations", 60, "--lr", 1e-3, "--eval-every", 60,
    )  # fmt: skip
    first, last = re.search(
        r"held-out loss_index ([\d,]+) at the start, ([\d,]+) at the end", result.stdout
    ).groups()
    assert int(last.replace(",", "")) < 0.6 * int(first.replace(",", ""))


def test_the_same_seed_gives_the_same_weights(face_folder, tmp_path):
    def weights(name, seed):
        here("train", "--data", face_folder, "--out", tmp_path / name, *SMALL, "--iterations", 3,
             "--seed", seed)  # fmt: skip
        return torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"]

    one, again, other = weights("a", 5), weights("b", 5), weights("c", 6)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["encoder.0.weight"], other["encoder.0.weight"])


def test_minutes_ends_a_run_early_and_well(face_folder, tmp_path):
    result = fastae(
        "train", "--data", face_folder, "--out", tmp_path / "run", *SMALL,
        "--minutes", 0.05, "--log-every", 10,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert 1 < state["iteration"] < 100_000


def test_tensorboard_itself_serves_the_tags(finished):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", finished[0], "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        tags = _ask(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", 30)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)
    (run,) = tags.values()
    assert {"loss/pixel_bce", "loss_index/train", "loss_index/held_out"} <= set(run)


def _ask(url, seconds):
    """JSON from a server that is starting: not empty, within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if content := json.load(answer):
                    return content
        except OSError:
            pass
        assert time.monotonic() < deadline, "TensorBoard did not serve the run in time"
        time.sleep(0.2)
