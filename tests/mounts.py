"""Mounts a small file system over a folder for a single process, to fill a real disk or a real /dev/shm."""

import os
import subprocess

import pytest

SCRIPT = 'mount -t tmpfs -o "$1" tmpfs "$0" && shift && exec "$@"'


def mounted(path, options, *command):
    """Returns a command that runs `command` with a tmpfs at `path`, which no other process sees."""
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    return [*own, "sh", "-c", SCRIPT, str(path), options, *map(str, command)]


def require_mounts(path):
    """Skips the test if this user may not mount anything, as in most containers."""
    try:
        tried = subprocess.run(mounted(path, "size=4k", "true"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if tried.returncode:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
