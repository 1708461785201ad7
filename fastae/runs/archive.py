"""What a checkpoint file may contain, checked before PyTorch reads it.

`torch.load(weights_only=True)` runs no code, but it decompresses, and makes byte arrays of any length: a file
of 1 MB can ask for all the memory. The checkpoints that fastae writes do neither.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

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

REPEATABLE = NAMING | {"BINUNICODE"}
"""The instructions whose results may be used again: names and texts. Were a list used twice in a list that is
used twice, and so on, a file of 1 kB would hold 2^40 lists for everything that walks through them."""


def require_plain(path: Path) -> None:
    """Raises ValueError if a file of `torch.save` holds more than tensors, or more bytes than it has."""
    try:
        _require_tree(_tensor_list(path))
    except ValueError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ValueError(str(error) or type(error).__name__) from None


def _require_tree(content: bytes) -> None:
    """Raises ValueError if a pickle names other functions, or is larger when it is read than it is itself."""
    sizes: dict[Any, int] = {}
    """Of the remembered names and texts, by their number."""
    last, argument_before, repeated = "", None, 0
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in NAMING and argument not in NAMES:
            raise ValueError(f"it names {argument or 'something'!s:.60}, which no checkpoint does")
        if name in ("BINPUT", "LONG_BINPUT") and last in REPEATABLE:
            sizes[argument] = len(str(argument_before))
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in sizes:
                raise ValueError("it holds one list or mapping in two places, which no checkpoint does")
            repeated += sizes[argument]
            if repeated > MAX_PICKLE:
                raise ValueError("it repeats its texts, which no checkpoint does")
        last, argument_before = name, argument


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
