"""Imports run downwards only, by the rows of docs/design.md's table of modules."""

import ast
import re
from pathlib import Path

import pytest

ROWS = re.findall(r"^\| `([\w/]+?)(?:/|\.py)` \|", Path("docs/design.md").read_text(), re.M)
"""The table's first column from top to bottom: what lies in fastae/, such as config and data/files."""

PUBLIC = {"__init__", "__main__"}
"""The names by which the package is imported or started; they lie above all rows."""


def row(name):
    """Returns the index of the row of a module or package, such as data/files/jpeg; None if it has none."""
    fits = [entry for entry in ROWS if f"{name}/".startswith(f"{entry}/")]
    return ROWS.index(max(fits, key=len)) if fits else None


def imports(path):
    """Yields what a file imports of fastae, at its top or within a function, such as data/source."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name[7:].replace(".", "/") for name in names if name.startswith("fastae."))


MODULES = {str(path.relative_to("fastae"))[:-3]: path for path in Path("fastae").rglob("*.py")}


def test_every_module_is_in_a_row_and_every_row_has_modules():
    assert {name for name in MODULES if row(name) is None} == PUBLIC
    assert {row(name) for name in MODULES} == {None, *range(len(ROWS))}


@pytest.mark.parametrize("entry", ROWS)
def test_a_row_imports_nothing_from_a_row_above_it(entry):
    own = ROWS.index(entry)
    found = {name: set(imports(path)) for name, path in MODULES.items() if row(name) == own}
    # What has no row is a name of the root package, which imports from the top.
    assert [
        (name, each) for name in found for each in found[name] if row(each) is None or row(each) < own
    ] == []
