"""Runs everything that needs a GPU: tests/gpu, the benchmark, and the speed of runs and sweeps.

Parts that may crash or hang come first, then speed, since the time on a card may end early.

Each part is a command with a time limit. OUT/NAME.gpu-done marks a part that succeeded, so that a second call
continues after an interruption. Without a GPU, smaller parts run on the CPU, to show that they work
(NAME.cpu-done).
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

from fastae.config import TrainConfig
from fastae.monitor.files import read_report
from fastae.monitor.host import family
from fastae.monitor.recording import Phase
from fastae.monitor.text import headline
from fastae.utils.limits import usable_cores

PART_SECONDS = 900
"""The time limit of a part that compiles nothing, so that one that hangs leaves time for the others."""

COMPILE_SECONDS = 600
"""What is added for each step that a part compiles, in seconds of one core: several times what it takes."""

MEMORY_LIMIT = 64
"""MiB by which the memory of the long run may grow after its first tenth."""

LOADERS = [kind for kind in TrainConfig.__dataclass_fields__["loader"].metadata["choices"] if kind != "auto"]
SECTIONS = {"steps": 20, "loaders": 0, "endtoend": 3, "roofline": 0}
"""Section of `benchmarks.throughput` -> the number of steps that it compiles."""

RESUMED = [f"{kernels}-{kind}" for kernels in ("deterministic", "fastest") for kind in ("dali", "resident")]
"""The cases of tests/gpu/test_resume.py. Each is a part of its own, since each compiles with empty caches."""


@dataclass(frozen=True)
class Part:
    """A command that writes to OUT/NAME."""

    command: list[str]

    compiles: int = 1
    """The number of steps that it compiles."""

    fault_of: Callable[[Path], str] = lambda folder: ""
    """Returns, in words, what is wrong with what the command wrote to a folder; "" if nothing is."""

    def seconds(self, cores: float) -> float:
        """Returns the time limit on a machine with so many cores. Part of a compilation needs one alone."""
        return PART_SECONDS + self.compiles * COMPILE_SECONDS / min(cores, 8)


def parts(out: Path, on_gpu: bool, images: str | None) -> dict[str, Part]:
    """Returns name -> part, in order."""
    fastae, python = [sys.executable, "-m", "fastae"], [sys.executable, "-m"]
    benchmark = ["--device", "cuda" if on_gpu else "cpu", "--threads", str(math.ceil(usable_cores()))]
    benchmark += ["--images", images] if images else []
    run = ["--device", "cuda", "--amp", "--iterations", "3000", "--minutes", "10"]
    long, short = ["--iterations", "20000", "--checkpoint-every", "1000"], ["--iterations", "500"]
    if not on_gpu:
        run = ["--device", "cpu", "--iterations", "12", "--no-compile", "--batch-size", "4"]
        run += ["--image-size", "32", "--latent", "16", "--gpu-sample-hz", "50"]
        short = []
    run += ["--data", images] if images else []
    throughput = [*python, "benchmarks.throughput", *benchmark, "--only"]
    batches = [] if on_gpu else ["--batches", "5"]

    def tests(module: str, case: str = "", compiles: int = 0) -> Part:
        """Returns a part that runs tests in one process, since several would share the card."""
        report = f"--junit-xml={out / module}{case and f'-{case}'}.xml"
        command = [*python, "pytest", "-q", "--numprocesses=0", report, f"tests/gpu/test_{module}.py"]
        return Part(command + (["-k", case] if case else []), compiles)

    def train(kind: str) -> Part:
        command = [*fastae, "train", *run, "--loader", kind, "--out", str(out / kind)]
        is_long = kind == "resident" and on_gpu
        return Part([*command, *long], fault_of=memory_fault) if is_long else Part(command)

    def sweep(name: str, *own: str) -> Part:
        return Part([*fastae, "sweep", *run, *short, *own, "--out", str(out / name)], compiles=2)

    some = ["--losses", "pixel_mse,minibatch_mse,minibatch_bce"]
    return {
        "decoding": tests("decoding"),
        "ranks": tests("ranks", compiles=2),
        **{f"resume-{case}": tests("resume", case, compiles=2) for case in RESUMED},
        "recording": tests("recording", compiles=8),
        "gpu": tests("gpu", compiles=2),
        **{
            name: Part([*throughput, name, "--out", str(out / name)], compiles)
            for name, compiles in SECTIONS.items()
        },
        "decoders": Part([*python, "benchmarks.sweep", *benchmark, *batches], compiles=0),
        **{kind: train(kind) for kind in LOADERS},
        "sweep": sweep("sweep"),
        **{f"sweep-{kind}": sweep(f"sweep-{kind}", *some, "--loader", kind) for kind in ("dali", "host")},
        "verdicts": tests("nvml"),
    }


def memory_growth(run: Path) -> float:
    """Returns how many MiB more, of a GPU or the host, the last tenth of training took than the second tenth.

    The least of each tenth counts, since a checkpoint that is being written takes memory for a while.
    """
    with (run / "gpu.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == Phase.TRAIN]
    growth = [0.0]
    for column in ("gpu/memory [GiB]", "host/memory [GiB]"):
        used = [float(cell) for row in rows if (cell := row.get(column))]
        if tenth := len(used) // 10:
            growth.append(1024 * (min(used[-tenth:]) - min(used[tenth : 2 * tenth])))
    return max(growth)


def memory_fault(run: Path) -> str:
    """Returns, in words, by how much a run's memory grew, if that is too much; else ""."""
    growth = memory_growth(run)
    return f"its memory grew by {growth:.0f} MiB" if growth > MEMORY_LIMIT else ""


def done_file(out: Path, name: str, on_gpu: bool) -> Path:
    """Returns the file that says that a part has succeeded, on a GPU or without one."""
    return out / f"{name}.{'gpu' if on_gpu else 'cpu'}-done"


def results(out: Path, on_gpu: bool) -> Iterator[str]:
    """Yields a line with the images/s of training for each run that is done."""
    for kind in LOADERS:
        if done_file(out, kind, on_gpu).exists():
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
@click.option("--only", metavar="A,B,...", help="Run only the parts whose names begin so.")
def main(out: Path, images: str | None, only: str | None) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    out.mkdir(parents=True, exist_ok=True)
    print(f"device: {torch.cuda.get_device_name() if on_gpu else 'no CUDA device, so the CPU'}")
    failed = []
    for name, part in parts(out, on_gpu, images).items():
        done = done_file(out, name, on_gpu)
        if done.exists() or (only and not name.startswith(tuple(only.split(",")))):
            continue
        shutil.rmtree(out / name, ignore_errors=True)  # left by an interrupted call
        started = time.perf_counter()
        with (out / f"{name}.log").open("w") as log:
            code = run_part(part.command, log, part.seconds(usable_cores()))
        if code == 0:
            code = part.fault_of(out / name) or 0
        print(f"{name:29} {time.perf_counter() - started:6.0f} s  exit {code}", flush=True)
        for checkpoints in (out / name).glob("**/checkpoints"):  # 300 MB each
            shutil.rmtree(checkpoints)
        if code == 0:
            done.touch()
        else:
            failed.append(name)
    print("\n".join(results(out, on_gpu)))
    if failed:
        print(f"not done: {', '.join(failed)}; see {out}/NAME.log, and run the command again")
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, on which the child is ended
    main()
