"""Reads JSON files from untrusted sources: their size is limited, and their types are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from fastae.utils.files import require_file

MAX_JSON_BYTES = 1 << 24
"""The default limit of a file's size in bytes. The files that fastae writes have some ten kB."""


def read_json(path: Path, kind: Any = Any, limit: int = MAX_JSON_BYTES) -> Any:
    """Returns the file's content as an instance of `kind`.

    Args:
        path: a JSON file.
        kind: the expected type, for example a dataclass of numbers, strings, tuples and mappings.
        limit: the most bytes that the file may have.

    Raises:
        OSError: the file cannot be read.
        ValueError: the content is not of this type; the message names the entry that is wrong.
    """
    require_file(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return parse(content, kind)


def parse(content: str | bytes, kind: Any = Any) -> Any:
    """Returns a JSON text as an instance of `kind`. Raises ValueError as `read_json` does."""
    try:  # by Python's parser: msgspec's rejects surrogates, which encode undecodable bytes of paths
        return convert(json.loads(content, parse_constant=_refuse), kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def convert(value: Any, kind: Any) -> Any:
    """Returns a JSON value as an instance of `kind`. Raises ValueError if it is of another type."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a valid JSON number")
