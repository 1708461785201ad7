"""`fastae export`: encoder and decoder of a run as two files that need no fastae, and a card beside them.

    encoder   images (N, 3, S, S) in [0, 1] -> codes (N, latent) in [-1, 1]
    decoder   codes (N, latent) -> images (N, 3, S, S) in [0, 1]

float32, N is any number. `torch` is torch.export's program (*.pt2), `onnx` an ONNX graph. What is
written is first read back and held against the trained model; either all files appear, or none.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastae.console import printable, say
from fastae.data.geometry import Geometry
from fastae.environment import describe_environment, version
from fastae.errors import FastaeError
from fastae.files import atomic_write, require_new_folder
from fastae.trained import LoadedModel, load_model

CARD = "model.json"
BATCHES = (1, 3)
"""Batch sizes that an exported part is tried with."""

TOLERANCE = 1e-4
"""Largest absolute difference from the trained model: values span 1 (images) or 2 (codes), and other
libraries sum a convolution's products in another order (differences of 1e-6 and less are usual)."""

ONNX_LIMIT = 2**31 - 2**20
"""Bytes of weights that one ONNX file can hold: protobuf ends at 2 GiB."""

ONNX_PACKAGES = "onnx onnxscript onnxruntime"

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """One of the two halves: `takes` and `gives` name its input and output; shapes without N."""

    name: str
    module: nn.Module
    takes: str
    gives: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    lowest_in: float

    def inputs(self, batch: int) -> Tensor:
        """Random ones of the range that is allowed, the same each time: float32 (batch, ...)."""
        uniform = torch.rand(batch, *self.shape_in, generator=torch.Generator().manual_seed(batch))
        return self.lowest_in + (1 - self.lowest_in) * uniform


@dataclass(frozen=True)
class Format:
    """encode: a part as a file's bytes. decode: such bytes as a function; None where that needs a
    package which is not installed."""

    suffix: str
    encode: Callable[[Part], bytes]
    decode: Callable[[bytes], Function | None]
    packages: tuple[str, ...]


def export(run: Path, kind: str, out: Path) -> None:
    """Writes encoder, decoder and card of `run` into the new folder `out`. kind: a key of FORMATS.

    Raises FastaeError for a wrong run or folder, missing packages, a model too large for the format, a
    file that does not do what the trained model does, and where `out` cannot be written.
    """
    require_new_folder(out, "--out")
    form = FORMATS[kind]
    if kind == "onnx":
        _require_onnx()
    trained = load_model(run)
    say(f"run       {printable(str(run))}: {trained.config.loss}, iteration {trained.iteration:,}")
    files: dict[str, bytes] = {}
    differences: dict[str, float | None] = {}
    for part in parts_of(trained):
        name = part.name + form.suffix
        files[name] = form.encode(part)
        differences[name] = _verify(part, name, form.decode(files[name]))
    card = describe(trained, kind, form, differences)
    files[CARD] = json.dumps(card, indent=2).encode() + b"\n"
    try:
        _write_all(out, files)
    except OSError as error:
        raise FastaeError(f"cannot write to {str(out)!r}: {error.strerror or error}") from None
    for name, difference in differences.items():
        checked = f"not verified: pip install {ONNX_PACKAGES.split()[-1]}"
        if difference is not None:
            sizes = " and ".join(map(str, BATCHES))
            checked = f"largest difference from the trained model {difference:.2g} (batches of {sizes})"
        size = f"{len(files[name]) / 1e6:.1f} MB"
        say(f"{name.split('.')[0]:8}  {printable(str(out / name))}: {size}, {checked}")
    say(f"card      {printable(str(out / CARD))}")


def parts_of(trained: LoadedModel) -> tuple[Part, Part]:
    """The encoder and the decoder of a trained model."""
    model, size = trained.model, trained.config.image_size
    images, codes = (3, size, size), (trained.config.latent,)
    return (
        Part("encoder", model.encoder, "images", "codes", images, codes, lowest_in=0),
        Part("decoder", model.decoder, "codes", "images", codes, images, lowest_in=-1),
    )


def describe(
    trained: LoadedModel, kind: str, form: Format, differences: dict[str, float | None]
) -> dict[str, Any]:
    """The card: what the files are, what they take, and what they come from; JSON values, no paths."""
    config = trained.config
    geometry = Geometry(config.crop, config.image_size, config.antialias)
    return {
        "model": "fastae convolutional autoencoder",
        "format": kind,
        "parts": {
            part.name: {
                "file": part.name + form.suffix,
                "input": {"name": part.takes, "shape": ["N", *part.shape_in], "dtype": "float32"},
                "output": {"name": part.gives, "shape": ["N", *part.shape_out], "dtype": "float32"},
                "largest_difference": differences[part.name + form.suffix],
            }
            for part in parts_of(trained)
        },
        "images": {
            "size": config.image_size,
            "crop": config.crop,
            "antialias": config.antialias,
            "preparation": f"{geometry.in_words()}; bilinear with half-pixel centres",
            "channels": "RGB",
            "range": [0, 1],
            "normalisation": "bytes / 255, nothing else",
        },
        "codes": {"length": config.latent, "range": [-1, 1]},
        "training": {
            "loss": config.loss,
            "iteration": trained.iteration,
            "batch_size": config.batch_size,
            "learning_rate": config.lr,
            "seed": config.seed,
            "environment": trained.run.describe().get("environment"),
        },
        "verification": {"batch_sizes": BATCHES, "tolerance": TOLERANCE},
        "exported_with": describe_environment()
        | {"format_packages": {name: version(name) for name in form.packages}},
    }


def _verify(part: Part, name: str, function: Function | None) -> float | None:
    """The largest difference between what the file gives and what the trained part gives."""
    if function is None:
        return None
    with torch.inference_mode():
        differences = [
            (function(inputs) - part.module(inputs)).abs().max() for inputs in map(part.inputs, BATCHES)
        ]
    largest = torch.stack(differences).max().item()  # torch's maximum: Python's may pass over NaN
    if not largest <= TOLERANCE:  # which NaN is not either
        raise FastaeError(
            f"{name} differs from the trained model by {largest:.2g}, and {TOLERANCE:g} is the most allowed: "
            "nothing was written"
        )
    return largest


def _program(part: Part) -> ExportedProgram:
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(part.module, (part.inputs(2),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files and folders of the machine it was made on
    return program


def _torch_bytes(part: Part) -> bytes:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_program(part), file)
    return file.getvalue()


def _torch_function(content: bytes) -> Function:
    return torch.export.load(io.BytesIO(content)).module()


def _onnx_bytes(part: Part) -> bytes:
    weights = sum(weight.numel() * weight.element_size() for weight in part.module.state_dict().values())
    if weights > ONNX_LIMIT:
        raise FastaeError(
            f"the {part.name} has {weights / 1e9:.1f} GB of weights, and an ONNX file holds 2 at most: "
            "use --format torch"
        )
    with _quiet():
        graph = torch.onnx.export(
            _program(part),
            dynamo=True,
            input_names=[part.takes],
            output_names=[part.gives],
            dynamic_shapes=({0: "batch"},),  # names the dimension, which the program leaves open
            verbose=False,
        )
    assert graph is not None  # it is None for the old exporter alone
    return graph.model_proto.SerializeToString()


def _onnx_function(content: bytes) -> Function | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {entry.name: inputs.numpy()})[0])


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FastaeError(
            f"--format onnx needs {error.name or error}, which is missing: pip install {ONNX_PACKAGES}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' remarks on themselves and on packages that are not needed are nothing to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """All of the files, or none."""
    written: list[Path] = []
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)
            written.append(folder / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise


FORMATS = {
    "torch": Format(".pt2", _torch_bytes, _torch_function, ("torch",)),
    "onnx": Format(".onnx", _onnx_bytes, _onnx_function, ("torch", *ONNX_PACKAGES.split())),
}
