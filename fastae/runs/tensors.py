"""Files of tensors in the safetensors format, each with the SHA-256 of all that it contains.

safetensors' README defines the format: the header's length, a header in JSON, then the tensors' bytes.
Nothing in it can run code. The header's metadata begins with an entry `sha256`: the digest of the whole file
with 64 zeros in place of the digest.

The files are written tensor by tensor. The functions of the package safetensors copy all tensors at once, and
if the memory does not suffice for the copies, Rust panics: Python then raises a BaseException.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastae.utils.environment import __version__
from fastae.utils.files import atomic_write, require_file
from fastae.utils.json import MAX_JSON_BYTES, parse

KINDS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip
"""Type of a tensor -> its name in the format. Wider types come first, so that all tensors are aligned."""

ALIGNMENT = 8
"""The header is padded with blanks to a multiple of this number of bytes."""

NO_DIGEST = "0" * 64


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
    # The digest comes first: other entries, such as a folder's name, may contain 64 zeros, too.
    entries: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST, "fastae": __version__, **metadata}}
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

    Raises OSError if the file cannot be read, and ValueError if it is not in the format or is cut short.
    """
    return _read(path, with_tensors=False).metadata


def read_tensors(path: Path) -> TensorFile:
    """Reads a file and verifies its digest.

    The tensors take no more memory than the file has bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not in the format, or its digest is wrong.
    """
    _verify(path)
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool) -> TensorFile:
    """Reads a file by the package safetensors, which compares the tensors' sizes with the file's."""
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else []
            return TensorFile(file.metadata() or {}, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is not a safetensors file ({error!s:.120})") from None


def _verify(path: Path) -> None:
    """Raises ValueError unless a file has its digest."""
    require_file(path)
    with path.open("rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > MAX_JSON_BYTES:
            raise ValueError("it is not a safetensors file")
        text = file.read(size)
        metadata = parse(text, dict[str, Any]).get("__metadata__")
        if not isinstance(metadata, dict):
            raise ValueError("it was not written by fastae")
        recorded = metadata.get("sha256")
        digest = hashlib.sha256(length + text.replace(str(recorded).encode(), NO_DIGEST.encode(), 1))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != recorded:
        raise ValueError("its SHA-256 is not the recorded one")
