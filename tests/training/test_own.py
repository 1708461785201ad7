"""A user's own model and losses, and a callback: trained, resumed and refused as fastae's are."""

import functools
import json

import pytest
import torch
from torch import nn

import fastae
from fastae.errors import FastaeError, SettingError
from fastae.experiment.losses import LOSSES
from fastae.training.resume import resume
from fastae.training.runner import train

from ..commands import last_training, refuses, same_state
from ..helpers import small_config, small_model


def absolute_error(reconstruction, images):
    assert reconstruction.dtype == images.dtype == torch.float32
    return (reconstruction - images).abs()


OWN = {"model": small_model, "losses": {"own": absolute_error}}


@pytest.mark.parametrize(
    "settings", [{}, {"compile": True, "amp": True}], ids=["eager float32", "compiled bf16"]
)
def test_an_own_model_and_loss_are_resumed_to_the_same_bits(face_folder, tmp_path, settings):
    config = functools.partial(small_config, face_folder, loss="sample_own", **settings)
    whole = train(config(tmp_path / "whole", iterations=5), **OWN)
    run = train(config(tmp_path / "run", iterations=3), **OWN)
    assert resume(run, **OWN, iterations=5) == run
    assert same_state(last_training(run), last_training(whole))
    described = json.loads((run / "config.json").read_text())
    assert (described["element"], described["reduction"]) == ("own", "sample")
    assert described["model"] == "tests.helpers.small_model"


def test_an_own_element_is_logged_as_its_mean_and_trains_as_its_reduction(face_folder, tmp_path):
    """The squared error under another name is the same loss."""
    own = {"losses": {"own": lambda reconstruction, images: (reconstruction - images).square()}}
    runs = [
        train(small_config(face_folder, tmp_path / "own", loss="pixel_own"), **own),
        train(small_config(face_folder, tmp_path / "mse", loss="pixel_mse")),
    ]
    assert same_state(*map(last_training, runs))
    rows = [(run / "metrics.csv").read_text().splitlines()[1].split(",")[:4] for run in runs]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def own_run(face_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    return train(small_config(face_folder, out, loss="minibatch_own"), **OWN)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, r"the model tests\.helpers\.small_model: pass it in Python"),
        ({"model": small_model}, "the loss minibatch_own: pass its elements"),
    ],
)
def test_what_is_missing_to_resume_is_named(own_run, given, missing):
    with pytest.raises(FastaeError, match=missing):
        resume(own_run, **given, iterations=9)


def test_the_command_line_says_that_python_is_needed(own_run, tmp_path):
    for command in (["train", "--resume", own_run], ["export", own_run, "--out", tmp_path / "out"]):
        assert "pass it in Python" in refuses(*command)


def test_a_model_of_other_shapes_does_not_resume_the_run(own_run):
    with pytest.raises(FastaeError, match="no usable checkpoint"):
        resume(own_run, **OWN | {"model": lambda: fastae.AutoEncoder(32, 16)}, iterations=9)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.used(images)


def with_buffer(value):
    model = nn.Conv2d(3, 3, 1)
    model.register_buffer("mask", value)
    return model


def test_a_buffer_that_no_checkpoint_can_hold_is_refused(face_folder, tmp_path):
    with pytest.raises(FastaeError, match="mask is not finite: register it with persistent=False"):
        train(
            small_config(face_folder, tmp_path / "run"), model=lambda: with_buffer(torch.tensor(-torch.inf))
        )
    assert not (tmp_path / "run").exists()


class WithState(nn.Conv2d):
    def get_extra_state(self):
        return {"not": "a tensor"}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"model": lambda: nn.Conv2d(3, 4, 1)}, r"model must return \(4, 3, 32, 32\) .*\(4, 4, 32, 32\)"),
        ({"model": lambda: nn.Conv2d(5, 3, 1)}, "model cannot be trained on a batch of shape"),
        ({"model": lambda: with_buffer(torch.zeros(2).cfloat())}, "cannot be saved: mask is torch.complex64"),
        ({"model": lambda: WithState(3, 3, 1)}, "cannot be saved: _extra_state is dict"),
        (
            {"model": lambda: nn.Conv2d(3, 3, 1).requires_grad_(False)},
            "weight is frozen|does not require grad",
        ),
        ({"losses": {"own": lambda one, other: one.nothing}}, "losses own fails for shape"),
        ({"model": Unused}, "unused.weight has no gradient"),
        ({"model": lambda: nn.Conv2d(3, 3, 1).half()}, "float32"),
        ({"model": nn.Conv2d(3, 3, 1)}, "must be a callable"),
        ({"model": "Model"}, "must be a callable"),
        ({"losses": {"own": lambda one, other: (one - other).abs().mean()}}, "losses must return"),
        ({"losses": {"Own": absolute_error}}, "losses names must match"),
        ({"losses": {"mse": absolute_error}}, "fastae has itself"),
        ({"losses": {"own": 1}}, "must be a function"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_data_are_opened(tmp_path, own, message):
    losses = {"own": absolute_error} | own.get("losses", {})
    config = small_config("/no/data", tmp_path / "run", loss="minibatch_own")
    with pytest.raises(FastaeError, match=message):
        train(config, **own | {"losses": losses})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["minibatch_unknown", "mse", "../mse", "minibatch mse", ""])
def test_an_unknown_loss_is_refused_with_those_that_exist(face_folder, tmp_path, loss):
    with pytest.raises(SettingError, match=", ".join(LOSSES)):
        train(small_config(face_folder, tmp_path / "run", loss=loss))


def test_the_losses_are_read_only():
    with pytest.raises(TypeError):
        LOSSES["own"] = absolute_error


def test_on_log_gets_every_row_and_quiet_prints_nothing(face_folder, tmp_path, capsys):
    rows = []
    run = train(small_config(face_folder, tmp_path / "run"), on_log=rows.append, quiet=True)
    assert capsys.readouterr().out == ""
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    assert sorted((row.kind, row.iteration) for row in rows) == sorted(
        (kind, int(iteration)) for iteration, kind in (line.split(",")[:2] for line in lines)
    )
    assert {name for row in rows for name in row.values} == set(header.split(",")[2:])
    resume(run, iterations=3, on_log=rows.append, quiet=True)
    assert rows[-1].iteration == 3 and capsys.readouterr().out == ""


def test_an_exception_of_on_log_ends_the_run_which_can_be_resumed(face_folder, tmp_path):
    class Pruned(Exception):
        pass

    def prune(entry):
        if entry.iteration == 3:
            raise Pruned

    config = small_config(face_folder, tmp_path / "run", iterations=9, checkpoint_every=2, log_every=1)
    with pytest.raises(Pruned):
        train(config, on_log=prune)
    whole = train(small_config(face_folder, tmp_path / "whole", iterations=5))
    assert same_state(last_training(resume(tmp_path / "run", iterations=5)), last_training(whole))


def test_an_error_of_on_log_that_looks_like_a_full_disk_reaches_the_caller(face_folder, tmp_path):
    """So does what caused it."""

    def unreachable(entry):
        raise ConnectionError("tracker unreachable") from TimeoutError("no answer")

    with pytest.raises(ConnectionError, match="tracker unreachable") as caught:
        train(small_config(face_folder, tmp_path / "run"), on_log=unreachable)
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(face_folder, tmp_path):
    run = train(small_config(face_folder, tmp_path / "run"), model=lambda: small_model().eval())
    assert last_training(run)["model"]["1.0.1.num_batches_tracked"] == 2


class Noisy(nn.Module):
    """Has a random buffer that is not in its state dict."""

    def __init__(self):
        super().__init__()
        self.inner = small_model()
        self.register_buffer("noise", torch.randn(()), persistent=False)

    def forward(self, images):
        return self.inner(images + 0.1 * self.noise)


def test_each_run_of_a_sweep_has_the_buffers_of_its_own_seed(face_folder, tmp_path):
    """Also those outside of the state dict, and also a run that is resumed or whose model is loaded."""
    sweep = fastae.run_sweep(
        small_config(face_folder), ["pixel_mse"], model=Noisy, repeats=2, out=tmp_path / "sweep"
    )
    alone = small_config(face_folder, tmp_path / "alone", loss="pixel_mse", seed=1)
    assert same_state(last_training(sweep / "pixel_mse-2"), last_training(train(alone, model=Noisy)))
    noise = [fastae.load_model(run, model=Noisy).model.noise for run in (sweep / "pixel_mse-2", alone.out)]
    assert torch.equal(*noise) and noise[0] != 0
