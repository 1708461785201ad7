"""`fastae export`: files that do what the trained model does, or no files at all."""

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastae
from fastae import checkpoint
from fastae import export as exporting
from fastae.errors import FastaeError
from fastae.export import FORMATS, export
from fastae.trained import open_trained

from .conftest import largest_file
from .test_cli import refused
from .test_train import fastae as command


@pytest.fixture(scope="module")
def as_torch(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("torch") / "deep" / "out"
    return out, command("export", small_run, "--format", "torch", "--out", out)


@pytest.fixture(scope="module")
def as_onnx(small_run, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("onnx") / "out"
    return out, command("export", small_run, "--format", "onnx", "--out", out)


def names(out):
    return sorted(path.name for path in out.iterdir())


def expected(small_run):
    """Batches of 1, 2 and 7 images, their codes and reconstructions by the trained model itself."""
    model = open_trained(small_run).model
    generator = torch.Generator().manual_seed(9)
    for batch in (1, 2, 7):
        images = torch.rand(batch, 3, 32, 32, generator=generator)
        with torch.inference_mode():
            codes = model.encoder(images)
            yield images, codes, model.decoder(codes)


def test_torch_programs_do_what_the_model_does(as_torch, small_run):
    out, result = as_torch
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert names(out) == ["decoder.pt2", "encoder.pt2", "model.json"]
    encoder, decoder = (torch.export.load(out / f"{part}.pt2").module() for part in ("encoder", "decoder"))
    for images, codes, reconstructions in expected(small_run):
        with torch.inference_mode():
            assert (encoder(images) - codes).abs().max() < 1e-5
            assert (decoder(codes) - reconstructions).abs().max() < 1e-5


def test_onnx_graphs_do_what_the_model_does(as_onnx, small_run):
    import onnxruntime

    out, result = as_onnx
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert names(out) == ["decoder.onnx", "encoder.onnx", "model.json"]
    encoder, decoder = (onnxruntime.InferenceSession(out / f"{part}.onnx") for part in ("encoder", "decoder"))
    assert encoder.get_inputs()[0].shape == ["batch", 3, 32, 32]
    for images, codes, reconstructions in expected(small_run):
        (found,) = encoder.run(["codes"], {"images": images.numpy()})
        assert np.abs(found - codes.numpy()).max() < 1e-4
        (found,) = decoder.run(["images"], {"codes": codes.numpy()})
        assert np.abs(found - reconstructions.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_check_and_its_result_are_printed(kind, request):
    out, result = request.getfixturevalue(f"as_{kind}")
    lines = result.stdout.splitlines()
    assert lines[0].endswith("minibatch_bce, iteration 4")
    for line, part in zip(lines[1:3], ("encoder", "decoder"), strict=True):
        assert line.startswith(f"{part}   {out}/{part}")
        assert "largest difference from the trained model " in line and "(batches of 1 and 3)" in line
    assert lines[3:] == [f"card      {out}/model.json"]


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_card_says_what_goes_in_and_where_it_comes_from(kind, request):
    card = json.loads((request.getfixturevalue(f"as_{kind}")[0] / "model.json").read_text())
    encoder, decoder = card["parts"]["encoder"], card["parts"]["decoder"]
    assert encoder["input"] == {"name": "images", "shape": ["N", 3, 32, 32], "dtype": "float32"}
    assert encoder["output"] == decoder["input"] == {"name": "codes", "shape": ["N", 16], "dtype": "float32"}
    assert 0 <= encoder["largest_difference"] <= card["verification"]["tolerance"] == 1e-4
    assert card["images"] == {
        "size": 32,
        "crop": None,
        "antialias": False,
        "preparation": "the largest centred square, resized to 32x32; bilinear with half-pixel centres",
        "channels": "RGB",
        "range": [0, 1],
        "normalisation": "bytes / 255, nothing else",
    }
    assert card["training"]["loss"] == "minibatch_bce" and card["training"]["iteration"] == 4
    assert card["training"]["environment"]["packages"]["torch"] == torch.__version__
    assert card["exported_with"]["fastae"] == fastae.__version__


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_no_file_names_a_folder_of_the_machine(kind, request, small_run, face_folder):
    out, _ = request.getfixturevalue(f"as_{kind}")
    code, packages = Path(fastae.__file__).parent, Path(torch.__file__).parent.parent
    for path in out.iterdir():
        content = path.read_bytes()
        for folder in (code, packages, small_run, face_folder):
            assert os.fsencode(folder) not in content, path.name
        assert path.name == "model.json" or b"fastae" not in content  # nor do they need its code


def test_a_file_that_does_something_else_is_not_written(small_run, tmp_path, monkeypatch):
    def spoilt(part):
        program = torch.export.load(io.BytesIO(FORMATS["torch"].encode(part)))
        next(iter(program.state_dict.values())).data[0] += 0.1
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue()

    monkeypatch.setitem(FORMATS, "spoilt", replace(FORMATS["torch"], encode=spoilt))
    with pytest.raises(FastaeError, match=r"encoder\.pt2 differs .* and 0\.0001 is the most allowed"):
        export(small_run, "spoilt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers_are_not_written(small_run, tmp_path):
    trained = open_trained(small_run)
    state = checkpoint.newest(small_run / "checkpoints", print)
    state["model"]["encoder.16.bias"].fill_(float("nan"))
    state["optimiser"] = {}
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes(trained.run.config.read_bytes())
    checkpoint.write(run / "checkpoints", state, keep=1)
    with pytest.raises(FastaeError, match=r"encoder\.pt2 differs from the trained model by nan"):
        export(run, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_line_with_the_remedy(small_run, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # so that importing it fails
    remedy = "needs onnxscript, which is missing: pip install onnx onnxscript onnxruntime"
    with pytest.raises(FastaeError, match=remedy):
        export(small_run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_onnxruntime_the_files_are_written_and_said_to_be_unverified(
    small_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    unverified = replace(FORMATS["onnx"], encode=lambda part: part.name.encode())
    monkeypatch.setitem(FORMATS, "unverified", unverified)
    export(small_run, "unverified", tmp_path / "out")
    assert capsys.readouterr().out.count("not verified: pip install onnxruntime") == 2
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["parts"]["encoder"]["largest_difference"] is None


def test_a_model_too_large_for_an_onnx_file_is_refused(small_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(exporting, "ONNX_LIMIT", 1_000_000)
    with pytest.raises(FastaeError, match="use --format torch"):
        export(small_run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_leaves_nothing(small_run, tmp_path, monkeypatch):
    growing = replace(
        FORMATS["torch"],
        encode=lambda part: bytes(1_000 if part.name == "encoder" else 2_000_000),
        decode=lambda content: None,
    )
    monkeypatch.setitem(FORMATS, "growing", growing)
    with largest_file(1_000_000), pytest.raises(FastaeError, match=r"cannot write to .*File too large"):
        export(small_run, "growing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_run_or_folder_is_one_line(small_run, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("kept")
    with pytest.raises(FastaeError, match=r"--out .*used' is not empty: name a new folder"):
        export(small_run, "torch", tmp_path / "used")
    with pytest.raises(FastaeError, match="is not the folder of a run"):
        export(tmp_path, "torch", tmp_path / "new")
    assert names(tmp_path / "used") == ["precious"]
    assert refused(command("export", small_run, "--format", "tflite", "--out", "x"), "'tflite'")
