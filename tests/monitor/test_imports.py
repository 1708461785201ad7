"""The lower packages do not import training, settings or commands."""

import re
from pathlib import Path

import pytest

ABOVE = re.compile(r"^\s*(?:from|import) (fastae\.(?:cli|config|report|runs|sweep|tools|training)\b.*)", re.M)


@pytest.mark.parametrize("package", ["data", "monitor", "utils"])
def test_a_lower_package_imports_no_package_above_it(package):
    sources = Path("fastae", package).glob("**/*.py")
    assert [found for path in sources for found in ABOVE.findall(path.read_text())] == []
