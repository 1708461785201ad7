"""The room's imports run downwards, over few floors, and out of it only to leaves."""

import ast
from functools import cache
from pathlib import Path

import fastae.monitor

ROOM = Path(fastae.monitor.__file__).parent
LEAVES = {"fastae.errors", "fastae.utils.console", "fastae.utils.files", "fastae.utils.parsing"}


def imports(module):
    tree = ast.parse((ROOM / f"{module}.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name and name.startswith("fastae")}


@cache
def floor(module):
    below = [name.removeprefix("fastae.monitor.") for name in imports(module) if ".monitor." in name]
    return 1 + max(map(floor, below), default=0)


def test_the_floors():
    modules = [path.stem for path in ROOM.glob("*.py")]
    assert max(map(floor, modules)) <= 4
    outside = {name for module in modules for name in imports(module) if ".monitor." not in name}
    assert outside <= LEAVES
