"""Click options made from a dataclass: the field gives name, type, default and help, in one place."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastae.config import flag
from fastae.utils.paths import require_path


class PathType(click.Path):
    """A file or folder that need not exist, as `kind`. Raises FastaeError for what cannot be a path."""

    def __init__(self, kind: type[str] | type[Path] = Path) -> None:
        super().__init__(path_type=kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = param.opts[0] if param else "path"
        require_path(os.fspath(value), name if name.startswith("-") else name.upper())
        return super().convert(value, param, ctx)


def options_of(config: type, leave_out: tuple[str, ...] = ()) -> Callable:
    """A decorator that adds one option for each field of the dataclass `config`.

    Booleans become `--name/--no-name`. A default of None is shown by the help text alone.
    """
    types = typing.get_type_hints(config)

    def decorate(command: Callable) -> Callable:
        for entry in reversed(dataclasses.fields(config)):
            if entry.name not in leave_out:
                command = _option(entry, types[entry.name])(command)
        return command

    return decorate


def _option(entry: dataclasses.Field, annotation: object) -> Callable:
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    kind = kinds[0] if kinds else annotation
    name = flag(entry.name)
    return click.option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        entry.name,
        type=None if kind is bool else kind,
        default=entry.default,
        show_default=entry.default is not None,
        help=entry.metadata["help"],
        metavar=entry.metadata["metavar"],
    )
