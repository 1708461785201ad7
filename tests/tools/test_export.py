"""`fastae export` writes files that compute what the trained model does, or no files at all."""

import io
import logging
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import fastae
from fastae.runs.loaded_model import load_model
from fastae.tools import export as exporting

from ..commands import here, refuses
from ..test_docs import readers_folder, run_all  # noqa: F401 (a fixture)

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """The folder that a call of the command has made, and what the command printed."""
    out = tmp_path_factory.mktemp("exported") / "deep" / "out"
    printed = io.StringIO()
    logging.getLogger("torch.onnx").addHandler(logging.StreamHandler(printed))
    with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not here("export", small_run, "--out", out)
    return out, printed.getvalue()


@pytest.mark.parametrize("batch", [2, 7])
def test_the_files_compute_what_the_model_does(exported, small_run, batch):
    def run_file(name, **inputs):
        """Runs an exported file as a user does, without fastae."""
        session = onnxruntime.InferenceSession(exported[0] / name)
        assert session.get_inputs()[0].shape[0] == "batch"
        given = {name: values.numpy() for name, values in inputs.items()}
        return torch.from_numpy(session.run(None, given)[0])

    model, images = load_model(small_run).model, torch.rand(batch, 3, 32, 32)
    with torch.no_grad():
        codes = model.encoder(images)
        assert (run_file("encoder.onnx", images=images) - codes).abs().max() < 1e-4
        assert (run_file("decoder.onnx", codes=codes) - model.decoder(codes)).abs().max() < 1e-4


@pytest.mark.usefixtures("readers_folder")
def test_the_code_of_the_page_about_a_trained_model_runs(exported):
    Path("model").symlink_to(exported[0])
    names = run_all("docs/using-a-model.md")
    assert names["reconstructions"].shape == (5, 3, 32, 32) and names["between"].shape == (8, 3, 32, 32)


def test_the_files_name_no_folder_of_the_machine_and_their_differences_are_logged(
    exported, small_run, face_folder
):
    out, printed = exported
    _, *parts = printed.splitlines()  # there is nothing else, such as an exporter's warning
    private = (Path(fastae.__file__).parent, Path(torch.__file__).parents[1], small_run, face_folder)
    for line, file in zip(parts, (out / "encoder.onnx", out / "decoder.onnx"), strict=True):
        assert str(file) in line and float(line.split()[-1]) < 1e-4
        assert not any(os.fsencode(folder) in file.read_bytes() for folder in private)
        assert b"fastae" not in file.read_bytes(), "the file refers to fastae"


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(small_run, tmp_path, monkeypatch, error):
    encoder = load_model(small_run).model.encoder
    monkeypatch.setattr(exporting, "encode", lambda *module: b"")
    monkeypatch.setattr(exporting, "decode", lambda *file: lambda images: encoder(images) + error)
    assert "computes codes" in refuses("export", small_run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_too_large_for_onnx_and_a_wrong_run_or_folder_are_refused(small_run, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("kept")
    command = ["export", small_run, "--out", tmp_path / "out"]
    assert "--out" in refuses(*command[:-1], tmp_path / "used")
    assert "config.json" in refuses("export", tmp_path, *command[2:])
    monkeypatch.setattr(exporting, "MAX_WEIGHTS", 1_000)
    assert "ONNX cannot store" in refuses(*command)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert "pip install onnxscript" in refuses(*command)
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "precious"]
