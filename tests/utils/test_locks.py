"""Locks on file systems where flock(2) fails, as on some network file systems."""

import errno
import fcntl
import os

import pytest

from fastae.errors import FastaeError
from fastae.utils.files import hold_lock


@pytest.fixture
def flock(monkeypatch):
    """A function that makes flock fail with an error."""

    def fail_with(code):
        def failing(descriptor, operation):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", failing)

    return fail_with


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock_is_refused(tmp_path, flock, code):
    flock(code)
    with pytest.raises(FastaeError, match=os.strerror(code)), hold_lock(tmp_path, "run"):
        pass
