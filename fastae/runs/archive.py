"""What a checkpoint file may contain, checked before PyTorch reads it.

`torch.load(weights_only=True)` runs no code, but it decompresses, and makes byte arrays of any length: a file
of 1 MB can ask for all the memory. The checkpoints that fastae writes do neither.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

MAX_PICKLE = 1 << 24
"""Bytes of the record that lists the tensors; a checkpoint's has 20 kB."""

NAMES = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch LongStorage",
    "collections OrderedDict",
}
"""The functions and classes that a checkpoint's tensors are rebuilt by."""

NAMING = {"GLOBAL", "STACK_GLOBAL", "INST"}
"""The pickle instructions that name one."""


def require_plain(path: Path) -> None:
    """Raises ValueError if a file of `torch.save` holds more than tensors, or more bytes than it has."""
    try:
        content = _tensor_list(path)
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name in NAMING and argument not in NAMES:
                raise ValueError(f"it names {argument or 'something'!s:.60}, which no checkpoint does")
    except ValueError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ValueError(str(error) or type(error).__name__) from None


def _tensor_list(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its parts overlap")
        pickles = [record for record in records if record.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise ValueError("it is not one of fastae's")
        return archive.read(pickles[0])
