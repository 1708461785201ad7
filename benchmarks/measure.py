"""Figures with their spread, and variants that each run in a process of their own."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPEATS = 5
LIMIT = 900
"""Seconds for one variant. On two cores the slowest takes 150: `resident` decoding all of CelebA."""
CHECKOUT = Path(__file__).parents[1]
"""Removed from logs, which are read elsewhere."""


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


def rates(work: Callable[[], int], repeats: int = REPEATS) -> Figure:
    """Images/s of `work`, which returns how many it did; call it once before, to warm up."""
    measured = []
    for _ in range(repeats):
        started = time.perf_counter()
        images = work()
        measured.append(images / (time.perf_counter() - started))
    return Figure.of(measured, "images/s")


def take(stream: Iterable[Any], number: int, device: str = "cpu") -> None:
    """Consumes `number` items, and waits for the device to have made them."""
    for _ in itertools.islice(stream, number):
        pass
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def isolated(
    function: str,
    arguments: dict[str, Any],
    log: Callable[[str], None],
    limit: int = LIMIT,
    **environment: str,
) -> dict[str, Any]:
    """What `function`, "module:name", returns in a process of its own; its arguments and result are JSON.

    Everything that it prints goes to `log`. A variant that fails, or has not ended after `limit` seconds,
    gives {"absent": why}: one that cannot run here must not end the others.
    """
    log(f"$ {function} {arguments}")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
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


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))
