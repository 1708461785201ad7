"""JSON files that anybody may have written: read within bounds, held against the types that are expected."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from fastae.utils.files import require_file

MAX_BYTES = 1 << 24
"""Of a file, unless another limit is given; what fastae writes has some ten kB."""


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """Raises OSError where it cannot be read, and ValueError for what is not JSON."""
    require_file(path)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def nested(values: Any, *names: str) -> Any:
    """values[name][name]..., or None where that is not there: such a file may hold anything."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def parse(kind: Any, value: Any) -> Any:
    """A JSON value as what `kind` says: a dataclass of such kinds, `tuple[X, ...]`, `list[X]`,
    `Mapping[str, X]`, `X | None`, an enum of strings, float (which an integer is, too), int, bool or str.

    Raises ValueError, which names the place, where it is anything else.
    """
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        (other,) = (each for each in arguments if each is not types.NoneType)
        return None if value is None else parse(other, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _as_dataclass(kind, value)
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        return kind(value)
    container = typing.get_origin(kind)
    if container is Mapping and isinstance(value, dict):
        return {parse(arguments[0], name): _within(name, arguments[1], each) for name, each in value.items()}
    if container in (tuple, list) and isinstance(value, list):
        return container(_within(place, arguments[0], each) for place, each in enumerate(value))
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("has too many digits") from None
    if type(value) is kind:
        return value
    raise ValueError(f"cannot be {value!r:.60}")


def _as_dataclass(kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"cannot be {value!r:.60}")
    kinds = typing.get_type_hints(kind)
    needed = {
        entry.name
        for entry in dataclasses.fields(kind)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"lacks {missing[0]}")
    if unknown := sorted(value.keys() - kinds.keys()):
        raise ValueError(f"has {unknown[0]!r:.60}, which is not known")
    return kind(**{name: _within(name, kinds[name], each) for name, each in value.items()})


def _within(place: str | int, kind: Any, value: Any) -> Any:
    try:
        return parse(kind, value)
    except ValueError as error:
        raise ValueError(f"{place!s:.60}: {error}") from None
