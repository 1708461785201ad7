"""Files of tensors in the safetensors format, each with the SHA-256 of all that it contains.

safetensors' README defines the format: the header's length, a header in JSON, then the tensors' bytes.
Nothing in it can run code. Here the header's metadata has an entry `sha256`, the digest of the whole file
with that entry as 64 zeros.

The files are written tensor by tensor. The functions of the package safetensors copy all tensors at once, and
if the memory does not suffice for the copies, Rust panics: Python then raises a BaseException.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write, require_file

KINDS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip
"""Type of a tensor -> its name in the format. Wider types come first, so that all tensors are aligned."""

ALIGNMENT = 8
"""The header is padded with blanks to a multiple of this number of bytes."""

NO_DIGEST = "0" * 64
WITHOUT_DIGEST = ("0.1.0", "0.2.0")
"""The versions of fastae that wrote no digest."""

MAX_HEADER = 100_000_000
"""The most bytes of a header, as in the package safetensors."""


@dataclass(frozen=True)
class TensorFile:
    """The content of a file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    """Name -> tensor, in the CPU's memory."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file to the disk, or replaces it.

    Args:
        path: the file.
        tensors: name -> tensor on the CPU, of any memory format.
        metadata: entries of the header. The version of fastae and the digest are added.

    Raises:
        OSError: the file cannot be written. An earlier file is then unchanged.
    """
    kinds = list(KINDS)
    ordered = dict(sorted(tensors.items(), key=lambda named: (kinds.index(named[1].dtype), named[0])))
    entries: dict[str, Any] = {
        "__metadata__": {**metadata, "fastae": __version__, "sha256": NO_DIGEST},
    }
    end = 0
    for name, value in ordered.items():
        start, end = end, end + value.nbytes
        entries[name] = {"dtype": KINDS[value.dtype], "shape": [*value.shape], "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256(head)
    for value in ordered.values():
        digest.update(_bytes_of(value))
    with atomic_write(path) as file:
        file.write(head.replace(NO_DIGEST.encode(), digest.hexdigest().encode(), 1))
        for value in ordered.values():
            file.write(_bytes_of(value))


def _bytes_of(value: Tensor) -> Any:
    """Returns the bytes of a tensor in row-major order; a copy if it is channels-last."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def read_metadata(path: Path) -> Mapping[str, str]:
    """Returns the metadata of a file without verifying its digest.

    Raises OSError if the file cannot be read, and ValueError if it is not in the format.
    """
    return _read(path).metadata


def read_tensors(path: Path) -> TensorFile:
    """Reads a file and verifies its digest.

    The tensors take no more memory than the file has bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not in the format, or its digest is wrong.
    """
    require_file(path)
    with path.open("rb") as file:
        metadata, found = _digest(file)
    is_old = metadata.get("fastae") in WITHOUT_DIGEST and "sha256" not in metadata
    if not is_old and metadata.get("sha256") != found:
        raise ValueError("its SHA-256 is not the recorded one")
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool = False) -> TensorFile:
    """Reads a file by the package safetensors, which checks the offsets of the tensors."""
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else []
            return TensorFile(file.metadata() or {}, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is not a safetensors file ({error!s:.120})") from None


def _digest(file: BinaryIO) -> tuple[Mapping[str, Any], str]:
    """Returns the metadata of an open file, and the digest of its content without the recorded one."""
    length = file.read(8)
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > MAX_HEADER:
        raise ValueError("it is not a safetensors file")
    head = file.read(size)
    try:
        metadata = json.loads(head)["__metadata__"]
        recorded = metadata.get("sha256", "")
        if not isinstance(recorded, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("it is not a safetensors file of fastae") from None
    digest = hashlib.sha256(
        length + head.replace(recorded.encode(), NO_DIGEST.encode(), 1 if recorded else 0)
    )
    for chunk in _chunks(file):
        digest.update(chunk)
    return metadata, digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yields the rest of a file in pieces."""
    return iter(lambda: file.read(1 << 20), b"")
