"""Targets: one value per image of a loader, such as its class, found by folder, file name or order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastae.data.files.folder import name_below
from fastae.errors import SettingError

FOLDERS = "folders"


class Found(NamedTuple):
    """The files of a loader."""

    paths: list[str]
    """The files to read, by index."""

    known: Sequence[str]
    """All files of the source, also of another split or skipped; for a list, the list as it was given."""

    root: str | None
    """The folder that the files were found in; None for a list of files."""


def find_targets(targets: Any, files: Found) -> tuple[np.ndarray, list[str]]:
    """Returns the target of each file, (M, ...), and the names of the classes if folders are the classes.

    Args:
        targets: "folders", a mapping from file to value, or one value per file of a list.
        files: the loader's files.

    Raises:
        SettingError: `targets` lacks a file, or is something else.
    """
    if isinstance(targets, str):
        return _by_folder(targets, files)
    if isinstance(targets, Mapping):
        return _numbers(_by_name(targets, files)), []
    if files.root is not None:
        raise SettingError(
            "targets", "in order need a list of files: for a folder, pass a mapping from name to value"
        )
    values = _numbers(targets)
    if values.shape[:1] != (len(files.known),):
        raise SettingError("targets", f"must have one value for each of the {len(files.known):,} files")
    usable = set(files.paths)
    return values[[path in usable for path in files.known]], []


def _by_folder(targets: str, files: Found) -> tuple[np.ndarray, list[str]]:
    if targets != FOLDERS or files.root is None:
        raise SettingError(
            "targets", f"must be {FOLDERS!r} (of a folder), values or a mapping, not {targets!r:.60}"
        )
    folders = {path: name_below(files.root, path).partition("/") for path in files.known}
    if outside := next((path for path in files.paths if not folders[path][1]), None):
        raise SettingError("targets", f"{outside!r:.200} is in none of the folders that name the classes")
    # Skipped files count, so that a class keeps its number if none of its files is usable.
    classes = sorted({name for name, slash, _ in folders.values() if slash})
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[folders[path][0]] for path in files.paths]), classes


def _by_name(targets: Mapping[Any, Any], files: Found) -> list[Any]:
    """Returns the value of each file by its path, its path below the folder, or its unique name."""
    values = {os.fspath(key) if isinstance(key, os.PathLike) else key: targets[key] for key in targets}
    names = Counter(map(os.path.basename, set(files.known)))

    def key(path: str) -> str | None:
        name = os.path.basename(path)
        keys = (path, name_below(files.root or "", path), *[name] * (names[name] == 1))
        return next((key for key in keys if key in values), None)

    keys = {path: key(path) for path in files.paths}
    if missing := [path for path, key in keys.items() if key is None]:
        raise SettingError(
            "targets",
            f"has no value for {len(missing):,} files, such as {missing[0]!r:.200}: "
            "its keys must be file names, or paths below the folder if names repeat",
        )
    return [values[keys[path]] for path in files.paths]


def _numbers(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
        torch.from_numpy(array[:0])
    except (TypeError, ValueError, IndexError):
        raise SettingError("targets", "must be numbers, or arrays of one shape, one per file") from None
    return array
