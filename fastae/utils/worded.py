"""Enums whose members have a text for messages."""

from __future__ import annotations

from enum import StrEnum


class Worded(StrEnum):
    """An enum whose members are (value, text): the value is for files and code, the text for messages."""

    text: str

    def __new__(cls, value: str, text: str) -> Worded:
        member = str.__new__(cls, value)
        member._value_, member.text = value, text
        return member
