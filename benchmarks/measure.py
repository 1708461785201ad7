"""Figures with their spread, and variants that each run in a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPEATS = 5
LIMIT = 900
"""Seconds for one variant. On two cores the slowest takes 150: `resident` decoding all of CelebA."""
CHECKOUT = Path(__file__).parents[1]
"""Left out of logs, which are read elsewhere."""


@dataclass(frozen=True)
class Figure:
    """A measured quantity over several repeats; values in `unit`."""

    unit: str
    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(values: Sequence[float], unit: str) -> Figure:
        return Figure(unit, statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.low:,.4g}-{self.high:,.4g}) {self.unit}"


def rates(work: Callable[[], int], repeats: int = REPEATS) -> Figure:
    """Items a second of `work`, which returns how many it did; call it once before, to warm up."""
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        items = work()
        measured.append(items / (time.perf_counter() - started))
    return Figure.of(measured, "images/s")


def isolated(
    module: str, arguments: Sequence[str], log: Callable[[str], None], limit: int = LIMIT, **environment: str
) -> dict[str, Any]:
    """What `python -m MODULE ARGUMENTS` prints as its last line, as JSON.

    Everything else that it prints goes to `log`. A variant that fails, or has not ended after `limit`
    seconds, comes back as {"absent": why}: one that cannot run here must not end the others.
    """
    command = [sys.executable, "-m", module, *arguments]
    log(f"$ python -m {module} {' '.join(arguments)}")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        start_new_session=True,
    )
    late = False
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        _kill(process)
        output, errors = process.communicate()
    except BaseException:  # Ctrl-C does not reach another session
        _kill(process)
        raise
    log((output + errors).replace(f"{CHECKOUT}/", ""))
    if late:
        return {"absent": f"no answer in {limit} s"}
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        named = re.findall(r"^[ |]*([\w.]*Error: .*)", errors, re.MULTILINE)
        reason = (named or errors.strip().splitlines() or ["it printed nothing"])[-1]
        return {"absent": f"failed: {reason[:200]}"}
    return json.loads(lines[-1])


def _kill(process: subprocess.Popen) -> None:
    """With its worker processes, which keep its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
