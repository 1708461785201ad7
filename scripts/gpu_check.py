"""All that needs a GPU, in one go: tests/gpu, the benchmark's sections, the decoder sweep.

Each part writes small files under --out and is skipped if they are there already, so that a second call
continues where the first was stopped. On a machine without a GPU it says so and does what it can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import click

PART_SECONDS = 1200
"""Limit of one part: a hanging one must not eat the time of the others. Several cold compiles fit."""


def parts(out: Path, gpu: bool, images: str | None) -> dict[str, list[str]]:
    """Name -> command; the file OUT/NAME.done marks a part that ended well."""
    python = sys.executable
    source = ["--images", images] if images else []
    common = ["--device", "cuda" if gpu else "cpu", "--threads", str(len(os.sched_getaffinity(0))), *source]
    sections = {
        section: [
            python, "-m", "benchmarks.throughput", "--only", section, "--out", str(out / section), *common,
        ]
        for section in ("steps", "endtoend", "loaders", "roofline")
    }  # fmt: skip
    # In one process: several would share the card.
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "--numprocesses=0",
        "tests/gpu",
        f"--junit-xml={out / 'tests.xml'}",
    ]
    sweep = [python, "-m", "benchmarks.sweep", *common, *([] if gpu else ["--batches", "5"])]
    return {"tests": tests, **sections, "sweep": sweep}


def run_part(command: Sequence[str], log: IO[str], seconds: float) -> int | str:
    """Its exit code, or why there is none. A part that is cut off takes along all that it has started."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    finally:
        if process.poll() is None:
            for pid in descendants(process.pid):  # benchmarks start sessions of their own: no group has all
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def descendants(pid: int) -> list[int]:
    """This process, its children, theirs, and so on, as far as they still run."""
    found = [pid]
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += descendants(int(child))
    return found


@click.command(help=__doc__)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the synthetic faces.")
def main(out: Path, images: str | None) -> None:
    import torch

    gpu = torch.cuda.is_available()
    out.mkdir(parents=True, exist_ok=True)
    print(f"device: {torch.cuda.get_device_name() if gpu else 'no CUDA device, so the CPU parts alone'}")
    failed = []
    for name, command in parts(out, gpu, images).items():
        done = out / f"{name}.done"
        if done.exists():
            print(f"{name:10} done before")
            continue
        started = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            code = run_part(command, log, PART_SECONDS)
        print(f"{name:10} {time.perf_counter() - started:6.0f} s  exit {code}", flush=True)
        if code == 0:
            done.touch()
        else:
            failed.append(name)
    if failed:
        print(f"not done: {', '.join(failed)}; see {out}/NAME.log, and call again")
        sys.exit(1)


if __name__ == "__main__":
    main()
