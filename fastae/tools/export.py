"""`fastae export`: writes a run's encoder and decoder as ONNX files, which do not need fastae.

    encoder.onnx   images (N, 3, S, S) in [0, 1] -> codes (N, latent) in [-1, 1]
    decoder.onnx   codes (N, latent) -> images (N, 3, S, S) in [0, 1]

All are float32, and N is any number. Each file is read back and compared with the trained model before
anything is written.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastae.device.compiling import require_temporary_folder
from fastae.errors import FastaeError
from fastae.experiment.model import AutoEncoder
from fastae.runs.loaded_model import load_model
from fastae.utils.console import log
from fastae.utils.files import atomic_write, made_folder, require_new_folder

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

BATCHES = (1, 3)
"""The batch sizes with which an exported part is verified."""

TOLERANCE = 1e-4
"""The largest accepted absolute difference from the trained model.

Values have a range of 1 (images) or 2 (codes). Other libraries sum a convolution's products in another order,
which usually changes results by 1e-6.
"""

MAX_WEIGHTS = 2**31 - 2**20
"""The most bytes of weights in an ONNX file: protobuf's limit is 2 GiB."""

Function = Callable[[Tensor], Tensor]


def export(run: Path, out: Path) -> None:
    """Writes a run's encoder and decoder into a new folder.

    Args:
        run: the run's folder.
        out: the new folder.

    Raises:
        FastaeError: the run or the folder is wrong, packages are missing, the model is too large for ONNX, a
            file computes something else than the trained model, or `out` cannot be written.
    """
    require_new_folder(out, "--out")
    if missing := [name for name in PACKAGES if not find_spec(name)]:
        raise FastaeError(f"export needs more packages: pip install {' '.join(missing)}")
    require_temporary_folder()
    loaded = load_model(run)
    log(f"run       {run}: {loaded.config.loss}, iteration {loaded.iteration:,}")
    model = cast(AutoEncoder, loaded.model)  # `load_model` returns another only if it is passed
    encoder, decoder, side = model.encoder, model.decoder, loaded.config.image_size
    images = torch.rand(max(BATCHES), 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = encoder(images)
    files = {
        out / "encoder.onnx": _verified(encoder, images, "images", "codes"),
        out / "decoder.onnx": _verified(decoder, codes, "codes", "images"),
    }
    try:
        with made_folder(out), ExitStack() as failed:
            for path, (content, _) in files.items():
                failed.callback(path.unlink, missing_ok=True)  # all files, or none
                with atomic_write(path) as file:
                    file.write(content)
            failed.pop_all()
    except OSError as error:
        raise FastaeError(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    for path, (content, difference) in files.items():
        log(f"exported  {path}: {len(content) / 1e6:.1f} MB, differs from the model by {difference:.2g}")


def _verified(module: nn.Module, inputs: Tensor, input_name: str, output_name: str) -> tuple[bytes, float]:
    """Returns a module's file, and its largest difference from the module. Raises FastaeError."""
    content = encode(module, inputs, input_name, output_name)
    difference = _largest_difference(decode(content), module, inputs)
    if not difference <= TOLERANCE:  # also true for NaN
        raise FastaeError(
            f"the file that computes {output_name} differs from the trained model by {difference:.2g}, more "
            f"than {TOLERANCE:g}: nothing was written"
        )
    return content, difference


def encode(module: nn.Module, inputs: Tensor, input_name: str, output_name: str) -> bytes:
    """Returns the content of a module's ONNX file. Raises FastaeError if the module is too large."""
    weights = sum(weight.nbytes for weight in module.state_dict().values())
    if weights > MAX_WEIGHTS:
        raise FastaeError(
            f"ONNX cannot store {weights / 1e9:.1f} GB of weights, only 2: fastae.load_model reads the run"
        )
    shapes = ({0: Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about packages that are not needed
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(module, (inputs,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert graph is not None  # only the old exporter returns None
    return graph.model_proto.SerializeToString()


def decode(content: bytes) -> Function:
    """Returns the function that an ONNX file's content computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {entry.name: inputs.numpy()})[0])


def _largest_difference(function: Function, expected: Function, inputs: Tensor) -> float:
    """Returns the largest absolute difference of the outputs; NaN if either contains NaN."""
    with torch.no_grad():
        differences = [(function(inputs[:n]) - expected(inputs[:n])).abs().max() for n in BATCHES]
    return torch.stack(differences).max().item()  # torch's max keeps NaN, Python's may not
