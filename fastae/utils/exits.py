"""What has to be done before the process ends, registered by modules that are imported late."""

from __future__ import annotations

from collections.abc import Callable

before_exit: list[Callable[[int], None]] = []
"""Functions that `fastae.cli.main` calls with the exit code. One may end the process itself."""
