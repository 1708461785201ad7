"""All that needs a GPU, in one go: tests/gpu, the benchmark's sections, the decoder sweep.

Each part writes small files under --out and is left out when they are there already, so that a second
call goes on where the first was stopped. On a machine without a GPU it says so and does what it can.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click

PART_SECONDS = 240
"""Limit of one part: a hanging one must not eat the time of the others."""


def parts(out: Path, gpu: bool, images: str | None) -> dict[str, list[str]]:
    """Name -> command; the file OUT/NAME.done marks a part that ended well."""
    python = sys.executable
    source = ["--images", images] if images else []
    device = ["--device", "cuda" if gpu else "cpu"]
    sections = {
        section: [
            python,
            "-m",
            "benchmarks.throughput",
            "--only",
            section,
            "--out",
            str(out / section),
            *source,
            *device,
        ]
        for section in ("steps", "endtoend", "loaders", "roofline")
    }
    tests = [python, "-m", "pytest", "-q", "tests/gpu", f"--junit-xml={out / 'tests.xml'}"]
    sweep = [python, "-m", "benchmarks.sweep", *source, *device]
    return {"tests": tests, **sections, "sweep": [*sweep, *([] if gpu else ["--batches", "5"])]}


@click.command(help=__doc__)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the embedded faces.")
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
            try:
                code = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, timeout=PART_SECONDS, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"stopped after {PART_SECONDS} s"
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
