"""Measures figures with their spread, and runs each variant in a separate process."""

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
SECONDS, QUICK_SECONDS = 1.0, 0.2
"""The least seconds of a repeat, and of one with `--quick`."""

LIMIT = 900
"""The most seconds for a variant. On two cores the slowest takes 150: `resident` decodes all of CelebA."""
CHECKOUT = Path(__file__).parents[1]
"""The checkout's path, which is removed from logs."""


@dataclass(frozen=True)
class Figure:
    """The median and the range of several measurements, in `unit`."""

    unit: str
    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(values: Sequence[float], unit: str) -> Figure:
        return Figure(unit, statistics.median(values), min(values), max(values), len(values))


def rates(work: Callable[[], int], seconds: float = 0.0, repeats: int = REPEATS) -> Figure:
    """Measures the images/s of `work`, which returns its number of images. The caller warms it up.

    In each repeat, `work` is called until at least `seconds` have passed.
    """
    measured = []
    for _ in range(repeats):
        started, images, elapsed = time.perf_counter(), 0, 0.0
        while not images or elapsed < seconds:
            images += work()
            elapsed = time.perf_counter() - started
        measured.append(images / elapsed)
    return Figure.of(measured, "images/s")


def take(stream: Iterable[Any], number: int, device: str = "cpu") -> None:
    """Consumes `number` items, and waits until the device has finished."""
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
    """Calls a function in a separate process. Its arguments and result are JSON values.

    Args:
        function: "module:name".
        arguments: the function's arguments.
        log: is called with everything that the process prints.
        limit: the most seconds that it may take.
        **environment: additional environment variables.

    Returns:
        The function's result, or {"absent": reason} if it fails or takes too long: a variant that cannot run
        here does not prevent the others.
    """
    log(f"$ {function} {arguments}")
    started = time.perf_counter()
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
    log((output + errors).replace(f"{CHECKOUT}/", "") + f"({time.perf_counter() - started:.0f} s)\n")
    if late:
        return {"absent": f"no answer in {limit} s"}
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        named = re.findall(r"^[ |]*([\w.]*Error: .*)", errors, re.MULTILINE)
        reason = (named or errors.strip().splitlines() or ["it printed nothing"])[-1]
        return {"absent": f"failed: {reason[:200]}"}
    return json.loads(lines[-1])


def _kill(process: subprocess.Popen) -> None:
    """Kills a process and its worker processes, which keep its pipes open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))
