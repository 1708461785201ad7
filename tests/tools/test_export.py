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
from ..helpers import largest_file


@pytest.fixture(scope="module", params=["torch", "onnx"])
def exported(request, small_run, tmp_path_factory):
    """The folder that a call of the command has made, and what the command printed."""
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp(request.param) / "deep" / "out"
    printed = io.StringIO()
    logging.getLogger("torch.onnx").addHandler(logging.StreamHandler(printed))
    with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not here("export", small_run, "--format", request.param, "--out", out)
    return out, printed.getvalue()


def run_file(path, inputs):
    """Runs an exported file as a user does, without fastae."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[0] == "batch"
    takes, gives = ("images", "codes") if path.stem == "encoder" else ("codes", "images")
    return torch.from_numpy(session.run([gives], {takes: inputs.numpy()})[0])


def test_the_files_compute_what_the_model_does_and_name_no_folder_of_the_machine(
    exported, small_run, face_folder
):
    out, printed = exported
    decoder, encoder = sorted(out.iterdir())
    model = load_model(small_run).model
    for batch in (2, 7):
        images = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            codes = model.encoder(images)
            assert (run_file(encoder, images) - codes).abs().max() < 1e-4
            assert (run_file(decoder, codes) - model.decoder(codes)).abs().max() < 1e-4
    _, *parts = printed.splitlines()  # there is nothing else, such as an exporter's warning
    for line, file in zip(parts, (encoder, decoder), strict=True):
        assert str(file) in line and float(line.split()[-1]) < 1e-4
        for private in (
            Path(fastae.__file__).parent,
            Path(torch.__file__).parents[1],
            small_run,
            face_folder,
        ):
            assert os.fsencode(private) not in file.read_bytes()
        assert b"fastae" not in file.read_bytes(), "the file refers to fastae"


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(small_run, tmp_path, monkeypatch, error):
    encoder = load_model(small_run).model.encoder
    monkeypatch.setattr(exporting, "encode", lambda *arguments, **output: b"")
    monkeypatch.setattr(exporting, "decode", lambda *file: lambda images: encoder(images) + error)
    assert "encoder.pt2 " in refuses("export", small_run, "--format", "torch", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_exported_file(small_run, tmp_path, monkeypatch):
    sizes = {"images": 1_000, "codes": 2_000_000}
    monkeypatch.setattr(exporting, "encode", lambda module, kind, inputs, output: bytes(sizes[min(inputs)]))
    monkeypatch.setattr(exporting, "decode", lambda *file: None)
    monkeypatch.setattr(exporting, "_largest_difference", lambda *functions: 0.0)
    with largest_file(1_000_000):
        command = ["export", small_run, "--format", "torch", "--out", tmp_path / "new" / "out"]
        assert "File too large" in refuses(*command)
    assert not (tmp_path / "new").exists()


def test_a_model_too_large_for_onnx_and_a_wrong_run_or_folder_are_refused(small_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("kept")
    onnx = ["export", small_run, "--format", "onnx", "--out", tmp_path / "out"]
    assert "--out" in refuses(*onnx[:-1], tmp_path / "used")
    assert "config.json" in refuses("export", tmp_path, *onnx[2:])
    monkeypatch.setattr(exporting, "ONNX_LIMIT", 1_000_000)
    assert "--format torch" in refuses(*onnx)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert "pip install onnxscript" in refuses(*onnx)
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "precious"]
