"""The documentation links to files, and names tests, that exist."""

import re
from pathlib import Path

import pytest

PAGES = [Path(page) for page in ("README.md", "SECURITY.md", "benchmarks/README.md")] + [
    *Path("docs").glob("*.md")
]
TESTS = {
    name
    for path in Path("tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text())
}


def known(name, cut):
    return any(test.startswith(name) for test in TESTS) if cut else name in TESTS


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^()\s#:]+)(?:#[\w-]+)?\)", text)
    files = re.findall(r"`((?:fastae|tests|scripts|benchmarks)/[\w/]+\.\w+)", text)
    tests = re.findall(r"\b(test_\w+?)(\.\.\.|\b)(?!\.py)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [file for file in files if not Path(file).exists()] == []
    assert [name for name, cut in tests if not known(name, cut)] == []
