"""`fastae export`: writes a run's encoder and decoder as files that do not need fastae.

    encoder   images (N, 3, S, S) in [0, 1] -> codes (N, latent) in [-1, 1]
    decoder   codes (N, latent) -> images (N, 3, S, S) in [0, 1]

All are float32, and N is any number. `torch` is torch.export's program (*.pt2), `onnx` an ONNX graph. Each
file is read back and compared with the trained model before anything is written.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastae.device.compiling import require_temporary_folder
from fastae.errors import FastaeError
from fastae.runs.loaded_model import load_model
from fastae.utils.console import log, printable
from fastae.utils.files import atomic_write, made_folder, require_new_folder
from fastae.utils.paths import expand_home

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
PARTS = (("encoder", "images", "codes"), ("decoder", "codes", "images"))
"""The parts of the model, with the names of their inputs and outputs."""

BATCHES = (1, 3)
"""The batch sizes with which an exported part is verified."""

TOLERANCE = 1e-4
"""The largest accepted absolute difference from the trained model.

Values have a range of 1 (images) or 2 (codes). Other libraries sum a convolution's products in another order,
which usually changes results by 1e-6.
"""

ONNX_LIMIT = 2**31 - 2**20
"""The most bytes of weights in an ONNX file: protobuf's limit is 2 GiB."""

Function = Callable[[Tensor], Tensor]


def export(run: Path, kind: str, out: Path) -> None:
    """Writes a run's encoder and decoder into a new folder.

    Args:
        run: the run's folder.
        kind: the format, a key of SUFFIXES.
        out: the new folder.

    Raises:
        FastaeError: the run or the folder is wrong, packages are missing, the model is too large for the
            format, a file computes something else than the trained model, or `out` cannot be written.
    """
    out = expand_home(out)
    require_new_folder(out, "--out")
    if missing := [name for name in PACKAGES[kind] if not find_spec(name)]:
        raise FastaeError(f"--format {kind} needs more packages: pip install {' '.join(missing)}")
    require_temporary_folder()
    loaded = load_model(run)
    log(f"run       {printable(str(run))}: {loaded.config.loss}, iteration {loaded.iteration:,}")
    side = loaded.config.image_size
    images = torch.rand(max(BATCHES), 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        examples = {"images": images, "codes": loaded.model.encoder(images)}
    files: dict[Path, bytes] = {}
    lines: list[str] = []
    for name, takes, gives in PARTS:
        module, path = getattr(loaded.model, name), out / f"{name}{SUFFIXES[kind]}"
        files[path] = encode(module, kind, {takes: examples[takes]}, output=gives)
        difference = _largest_difference(decode(files[path], kind), module, examples[takes])
        if not difference <= TOLERANCE:  # also true for NaN
            raise FastaeError(
                f"{path.name} differs from the trained model by {difference:.2g}, more than {TOLERANCE:g}: "
                "nothing was written"
            )
        size = f"{len(files[path]) / 1e6:.1f} MB"
        lines.append(f"exported  {printable(str(path))}: {size}, differs from the model by {difference:.2g}")
    try:
        with made_folder(out), ExitStack() as failed:
            for path, content in files.items():
                failed.callback(path.unlink, missing_ok=True)  # all files, or none
                with atomic_write(path) as file:
                    file.write(content)
            failed.pop_all()
    except OSError as error:
        raise FastaeError(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    for line in lines:
        log(line)


def encode(module: nn.Module, kind: str, inputs: dict[str, Tensor], output: str) -> bytes:
    """Returns the content of a module's file. The module has one named input and one output."""
    weights = sum(weight.nbytes for weight in module.state_dict().values())
    if kind == "onnx" and weights > ONNX_LIMIT:
        raise FastaeError(f"ONNX cannot store {weights / 1e9:.1f} GB of weights, only 2: use --format torch")
    shapes = ({0: Dim("batch")},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about packages that are not needed
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it contains paths of this machine
        if kind == "torch":
            file = io.BytesIO()
            torch.export.save(program, file)
            return file.getvalue()
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert graph is not None  # only the old exporter returns None
    return graph.model_proto.SerializeToString()


def decode(content: bytes, kind: str) -> Function:
    """Returns the function that a file's content computes."""
    if kind == "torch":
        return torch.export.load(io.BytesIO(content)).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {entry.name: inputs.numpy()})[0])


def _largest_difference(function: Function, expected: Function, inputs: Tensor) -> float:
    """Returns the largest absolute difference of the outputs; NaN if either contains NaN."""
    with torch.no_grad():
        differences = [(function(inputs[:n]) - expected(inputs[:n])).abs().max() for n in BATCHES]
    return torch.stack(differences).max().item()  # torch's max keeps NaN, Python's may not
