"""Runs everything that needs a GPU: tests/gpu, the benchmark, and the speed of runs and sweeps.

Parts that may crash or hang come first, then speed, since the time on a card may end early.

Each part is a command with a time limit. OUT/NAME.done marks a part that succeeded, so that a second call
continues after an interruption. Without a GPU, smaller parts run on the CPU, to show that they work.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import click

from fastae.config import TrainConfig
from fastae.monitor.files import read_report
from fastae.monitor.host import family
from fastae.monitor.text import headline

PART_SECONDS = 1200
"""The time limit of a part, so that a hanging one leaves time for the others. Several cold compiles fit."""

LOADERS = [kind for kind in TrainConfig.__dataclass_fields__["loader"].metadata["choices"] if kind != "auto"]
SECTIONS = ("steps", "loaders", "endtoend", "roofline")


def parts(out: Path, on_gpu: bool, images: str | None) -> dict[str, list[str]]:
    """Returns name -> command, in order. Each command writes to OUT/NAME."""
    fastae, python = [sys.executable, "-m", "fastae"], [sys.executable, "-m"]
    cores = str(len(os.sched_getaffinity(0)))
    benchmark = ["--device", "cuda" if on_gpu else "cpu", "--threads", cores]
    benchmark += ["--images", images] if images else []
    run = ["--device", "cuda", "--amp", "--iterations", "3000", "--eval-every", "3000"]
    if not on_gpu:
        run = ["--device", "cpu", "--iterations", "12", "--no-compile", "--batch-size", "4"]
        run += ["--image-size", "32", "--latent", "16", "--gpu-sample-hz", "50"]
    run += ["--data", images] if images else []
    throughput = [*python, "benchmarks.throughput", *benchmark, "--only"]
    batches = [] if on_gpu else ["--batches", "5"]

    def tests(*names: str) -> list[str]:
        """Returns a command that runs tests in one process, since several would share the card."""
        report = f"--junit-xml={out / names[0]}.xml"
        return [
            *python,
            "pytest",
            "-q",
            "--numprocesses=0",
            report,
            *(f"tests/gpu/test_{x}.py" for x in names),
        ]

    return {
        "decoding": tests("decoding"),
        "ranks": tests("ranks"),
        "resume": tests("resume"),
        "recording": tests("recording", "gpu"),
        **{name: [*throughput, name, "--out", str(out / name)] for name in SECTIONS},
        "decoders": [*python, "benchmarks.sweep", *benchmark, *batches],
        **{kind: [*fastae, "train", *run, "--loader", kind, "--out", str(out / kind)] for kind in LOADERS},
        "sweep": [*fastae, "sweep", *run, "--out", str(out / "sweep")],
        "verdicts": tests("nvml"),
    }  # fmt: skip


def results(out: Path) -> Iterator[str]:
    """Yields a line with the images/s of training for each run that is done."""
    for kind in LOADERS:
        if (out / f"{kind}.done").exists():
            report = read_report(out / kind)
            rate = report.summary.images_per_second or 0
            yield f"--loader {kind:8} {rate:8,.0f} images/s  {headline(report)}"


def run_part(command: Sequence[str], log: IO[str], seconds: float) -> int | str:
    """Runs a part; returns its exit code, or the reason why there is none. No process is left behind."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    finally:
        if process.poll() is None:
            for pid in family(process.pid):  # benchmarks start new sessions, so no process group contains all
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@click.command(help=__doc__)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the synthetic faces.")
@click.option("--only", metavar="A,B,...", help="Run only these parts.")
def main(out: Path, images: str | None, only: str | None) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    out.mkdir(parents=True, exist_ok=True)
    print(f"device: {torch.cuda.get_device_name() if on_gpu else 'no CUDA device, so the CPU'}")
    failed = []
    for name, command in parts(out, on_gpu, images).items():
        done = out / f"{name}.done"
        if done.exists() or (only and name not in only.split(",")):
            continue
        shutil.rmtree(out / name, ignore_errors=True)  # left by an interrupted call
        started = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            code = run_part(command, log, PART_SECONDS)
        print(f"{name:10} {time.perf_counter() - started:6.0f} s  exit {code}", flush=True)
        for checkpoints in (out / name).glob("**/checkpoints"):  # 300 MB each
            shutil.rmtree(checkpoints)
        if code == 0:
            done.touch()
        else:
            failed.append(name)
    print("\n".join(results(out)))
    if failed:
        print(f"not done: {', '.join(failed)}; see {out}/NAME.log, and run the command again")
        sys.exit(1)


if __name__ == "__main__":
    main()
