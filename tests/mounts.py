"""A small file system over a folder, for one process alone: a real full disk, a real full /dev/shm."""

import os
import subprocess

import pytest

SCRIPT = 'mount -t tmpfs -o "$1" tmpfs "$0" && shift && exec "$@"'


def mounted(path, options, *command):
    """The command that runs `command` with a tmpfs mounted at `path`, where others do not see it."""
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    return [*own, "sh", "-c", SCRIPT, str(path), options, *map(str, command)]


def require_mounts(path):
    """Skips where this user may not mount anything, as in most containers."""
    try:
        tried = subprocess.run(mounted(path, "size=4k", "true"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if tried.returncode:
        pytest.skip(f"nothing may be mounted here: {tried.stderr.strip()}")
