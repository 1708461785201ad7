"""JSON files that anybody may have written: read within bounds, as the types that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fastae.utils.files import require_file

MAX_BYTES = 1 << 24
"""Of a file, unless another limit is given; what fastae writes has some ten kB."""


def read_json(path: Path, kind: Any = Any, limit: int = MAX_BYTES) -> Any:
    """The file's content as `kind`: a dataclass, say, of numbers, texts, tuples and mappings.

    Raises OSError if it cannot be read, and ValueError, which names the place, for anything else in it.
    """
    require_file(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return _checked(msgspec.json.decode, content, kind)


def convert(value: Any, kind: Any) -> Any:
    """JSON values, as `read_json` returns them, as `kind`. Raises ValueError."""
    return _checked(msgspec.convert, value, kind)


def _checked(read: Any, value: Any, kind: Any) -> Any:
    try:
        return read(value, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def nested(values: Any, *names: str) -> Any:
    """values[name][name]..., or None if that is not there: such a file may hold anything."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
