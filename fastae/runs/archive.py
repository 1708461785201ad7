"""Checks what a checkpoint file contains before PyTorch reads it.

`torch.load(weights_only=True)` runs no code, but it decompresses data and makes byte arrays of any length, so
a file of 1 MB can exhaust the memory. The checkpoints that fastae writes need neither.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

MAX_PICKLE = 1 << 24
"""The most bytes that the pickle which lists the tensors may have. In fastae's checkpoints it has 20 kB."""

NAMES = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch LongStorage",
    "collections OrderedDict",
}
"""The functions and classes that a checkpoint may name: those that rebuild its tensors."""

NAMING = {"GLOBAL", "STACK_GLOBAL", "INST"}
"""The pickle instructions that name a function or a class."""

REPEATABLE = NAMING | {"BINUNICODE"}
"""The instructions whose results a checkpoint may use again: names and texts.

If one list could contain another list twice, that list a third one twice, and so on, then code that walks
through a file of 1 kB could visit 2^40 lists.
"""


def require_plain(path: Path) -> None:
    """Raises ValueError unless a file of `torch.save` holds only tensors and plain values, uncompressed."""
    try:
        _require_tree(_tensor_list(path))
    except ValueError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ValueError(str(error) or type(error).__name__) from None


def _require_tree(content: bytes) -> None:
    """Raises ValueError unless a pickle names only NAMES and uses nothing twice but names and texts.

    The texts that it uses again may have MAX_PICKLE characters in total.
    """
    sizes: dict[Any, int] = {}  # key in the pickle's memo -> length of the name or text
    last_name, last_argument, repeated = "", None, 0
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in NAMING and argument not in NAMES:
            raise ValueError(f"it names {argument or 'a function'!s:.60}, which no checkpoint may contain")
        if name in ("BINPUT", "LONG_BINPUT") and last_name in REPEATABLE:
            sizes[argument] = len(str(last_argument))
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in sizes:
                raise ValueError("it contains one list or mapping twice, which no checkpoint may")
            repeated += sizes[argument]
            if repeated > MAX_PICKLE:
                raise ValueError("it repeats its texts too often")
        last_name, last_argument = name, argument


def _tensor_list(path: Path) -> bytes:
    """Returns the pickle that lists a checkpoint's tensors. Raises ValueError if fastae did not write it."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its parts overlap")
        pickles = [record for record in records if record.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise ValueError("it was not written by fastae")
        return archive.read(pickles[0])
