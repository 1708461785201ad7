"""JSON files that anybody may have written: read within bounds, as the types that are expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from fastae.utils.files import require_file

MAX_BYTES = 1 << 24
"""The limit of a file unless another is given; what fastae writes takes some ten kB."""


def read_json(path: Path, kind: Any = Any, limit: int = MAX_BYTES) -> Any:
    """The file's content as `kind`, for example a dataclass of numbers, texts, tuples and mappings.

    Raises OSError if it cannot be read, and ValueError, which names the place, for any other content.
    """
    require_file(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:  # Python's parser: msgspec's refuses the surrogates that stand for stray bytes in a path
        return convert(json.loads(content, parse_constant=_refuse), kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def convert(value: Any, kind: Any) -> Any:
    """JSON values, as `read_json` returns them, as `kind`. Raises ValueError."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def plain(value: Any) -> Any:
    """A value as it would be read again from a JSON file. Raises ValueError for one that JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{error}"[:120]) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
