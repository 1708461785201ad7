"""The rooms at the bottom know nothing of training, settings or commands."""

import re
from pathlib import Path

import pytest

ABOVE = re.compile(r"^\s*(?:from|import) (fastae\.(?:cli|config|report|runs|sweep|tools|training)\b.*)", re.M)


@pytest.mark.parametrize("room", ["data", "monitor", "utils"])
def test_a_lower_room_imports_none_above_it(room):
    sources = Path("fastae", room).glob("**/*.py")
    assert [found for path in sources for found in ABOVE.findall(path.read_text())] == []
