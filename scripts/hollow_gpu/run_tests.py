"""Runs tests/gpu on the hollow GPU. A test fails where it compares numbers that a GPU computed.

HOLLOW_VENV/bin/python -m scripts.hollow_gpu.run_tests [arguments of pytest]
"""

from __future__ import annotations

import sys

from scripts.hollow_gpu.driver import install, relaunch


def main() -> int:
    relaunch()
    import pytest

    install()
    return pytest.main(["--numprocesses=0", *(sys.argv[1:] or ["tests/gpu"])])


if __name__ == "__main__":
    sys.exit(main())
