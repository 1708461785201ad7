"""Makes click options from a dataclass: a field gives name, type, choices, default, group and help."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastae.config import flag
from fastae.errors import FastaeError, SettingError
from fastae.utils.paths import user_path


class PathType(click.Path):
    """A file or folder that need not exist, as a str or Path with `~` expanded.

    Raises FastaeError if the text is not a valid path.
    """

    def __init__(self, kind: type[str] | type[Path] = Path) -> None:
        super().__init__(path_type=kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = param.opts[0] if param else "path"
        path = user_path(os.fspath(value), name if name.startswith("-") else name.upper())
        return super().convert(path, param, ctx)


class InOrder(click.Group):
    """A group that lists its commands as they are defined, and reports wrong options and unusable files."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingError as error:
            is_python_name = error.name.isidentifier() and error.name.islower()
            name = flag(error.name) if is_python_name else error.name
            raise FastaeError(f"{name} {error.problem}") from None
        except OSError as error:
            if error.filename is None:
                raise
            reason = error.strerror or error
            raise FastaeError(f"cannot use {os.fsdecode(error.filename)!r}: {reason}") from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class GroupedCommand(click.Command):
    """A command without arguments, whose --help lists its options under headings."""

    allow_extra_args = True  # `invoke` refuses arguments with a hint: one may be meant for --data

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.args:
            stray = ctx.args[0]
            hint = f": for a folder of images write --data {stray}" if Path(stray).is_dir() else ""
            raise FastaeError(f"unexpected argument {stray!r}{hint}")
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


class GroupedOption(click.Option):
    """An option that --help lists under the heading `group`."""

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group


def options_of(config: type, leave_out: tuple[str, ...] = ()) -> Callable:
    """Returns a decorator that adds one option for each field of the dataclass `config`.

    Booleans become `--name/--no-name`. The help text says what a default of None means.
    """
    types = typing.get_type_hints(config)

    def decorate(command: Callable) -> Callable:
        for entry in reversed(dataclasses.fields(config)):
            if entry.name not in leave_out:
                command = _option(entry, types[entry.name])(command)
        return command

    return decorate


def _option(entry: dataclasses.Field, annotation: object) -> Callable:
    """Returns the decorator that adds the option of one field, whose type is `annotation`."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    kind: Any = kinds[0] if kinds else annotation
    choices, text = entry.metadata["choices"], entry.metadata["help"]
    if within := entry.metadata["within"]:
        text += f"  [{within}]"
    if kind is bool and entry.default is not None:  # else click would show --name or --no-name
        text += f"  [default: {'on' if entry.default else 'off'}]"
    name = flag(entry.name)
    return click.option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        entry.name,
        cls=GroupedOption,
        group=entry.metadata["group"],
        type=click.Choice(choices) if choices else None if kind is bool else kind,
        default=entry.default,
        show_default=entry.default is not None and kind is not bool,
        help=text,
        metavar=entry.metadata["metavar"],
    )
