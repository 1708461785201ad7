"""JSON files that anybody may have written: read within bounds, as the types that are expected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from fastae.utils.files import require_file

T = TypeVar("T")

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


def convert_known(values: Any, kind: type[T], **known: Any) -> T:
    """JSON values as the dataclass `kind`. What is missing or of another type has its field's default.

    known: fields that are not taken from `values`.
    """
    for name, hint in get_type_hints(kind).items():
        value = values.get(name) if isinstance(values, Mapping) else None
        if name in known:
            continue
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            known[name] = convert_known(value, hint)
        elif value is not None:
            with suppress(ValueError):
                known[name] = convert(value, hint)
    return kind(**known)


def plain(value: Any) -> Any:
    """A value as it would be read again from a JSON file. Raises ValueError for one that JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{error}"[:120]) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
