"""JSON files that anybody may have written are read as the expected type, or refused."""

import os
from dataclasses import dataclass

import pytest

from fastae.utils.files import write_json
from fastae.utils.json import read_json


@dataclass(frozen=True)
class Content:
    name: str
    sizes: dict[str, int]
    parts: tuple[float, ...] = ()


def test_written_json_is_read_back_even_with_undecodable_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9")  # a path that is not UTF-8, as Python represents it
    write_json(tmp_path / "a.json", {"name": name, "sizes": {name: 1}, "parts": [1, 2.5]})
    assert read_json(tmp_path / "a.json", Content) == Content(name, {name: 1}, (1.0, 2.5))


FULL = b'{"name": "a", "sizes": {}, "parts": [%s]}'


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text", b"\xff", b'{"name": "a"}', b'{"name": 1, "sizes": {}}', FULL % b"NaN", FULL % b"null",
        FULL % (b"1" * 5000), b"[" * 100_000, FULL % (b"1, " * 100_000 + b"1"),
    ],
    ids=range(10),
)  # fmt: skip
def test_invalid_content_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json", Content, limit=200_000)
