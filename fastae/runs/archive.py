"""What may be inside a checkpoint that anybody may have written, looked at before PyTorch reads it.

`torch.load(weights_only=True)` runs no code, but it unpacks what is compressed and makes byte arrays of any
length: a file of 1 MB can ask for all the memory. What fastae writes has neither.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

MAX_PICKLE = 1 << 24
"""Bytes of the part that says which tensors there are; a checkpoint's has 20 kB."""

NAMES = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch LongStorage",
    "collections OrderedDict",
}
"""Functions and classes that a checkpoint's tensors are rebuilt by."""

NAMING = {"GLOBAL", "STACK_GLOBAL", "INST"}
"""Pickle's instructions that name one."""


def require_plain(path: Path) -> None:
    """Raises ValueError if a file of `torch.save` holds more than tensors, or more bytes than it has."""
    try:
        instructions = _instructions(path)
    except ValueError:
        raise
    except Exception as error:  # whatever zipfile raises over a damaged archive
        raise ValueError(str(error) or type(error).__name__) from None
    for name, argument in instructions:
        if name in NAMING and argument not in NAMES:
            raise ValueError(f"it names {argument or 'something'!s:.60}, which no checkpoint does")


def _instructions(path: Path) -> list[tuple[str, Any]]:
    """Of the pickle in it: each one's name and argument."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its parts overlap")
        pickles = [record for record in records if record.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise ValueError("it is not one of fastae's")
        return [(code.name, argument) for code, argument, _ in pickletools.genops(archive.read(pickles[0]))]
