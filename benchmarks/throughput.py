"""Measures loaders, training step, end to end, roofline, and the budget of the six runs.

    make throughput
    python -m benchmarks.throughput --only loaders,steps --quick

It prints one page and writes a record to --out, or, of all sections without --quick, to benchmarks/records/.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click

from benchmarks import endtoend, loaders, record, roofline, steps
from benchmarks.measure import QUICK_SECONDS, SECONDS
from fastae.cli.options import PathType
from fastae.data.source import VARIABLE
from fastae.errors import FastaeError
from fastae.experiment.definition import Experiment, step_cost
from fastae.experiment.losses import LOSSES
from fastae.utils.environment import describe_environment

LATENT = 512
SECTIONS = ("loaders", "steps", "endtoend", "roofline")


def run(sections: tuple[str, ...], images: str | None, threads: int, quick: bool, device: str) -> Any:
    """Measures and prints the sections; returns (result, page, log)."""
    import torch

    from fastae.device.choose import device_name

    page: list[str] = []
    log: list[str] = []

    def show(*lines: str) -> None:
        for line in lines:
            page.append(line)
            print(line, flush=True)

    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.throughput " + " ".join(sys.argv[1:]),
        "device": device_name(torch.device(device)),
        "environment": describe_environment(),
        "settings": {
            "threads": threads,
            "quick": quick,
            "images": "built-in synthetic faces" if images is None else "a folder of JPEGs",
        },
    }
    # On a CPU a step of 64 takes seconds, and the rate hardly depends on the batch size.
    batch_size = 16 if device == "cpu" else 64
    seconds = QUICK_SECONDS if quick else SECONDS
    show(
        f"fastae throughput: {result['device']}, {result['date']}, commit {result['environment']['commit']}",
        "",
    )
    if "loaders" in sections:
        show(f"Loaders: JPEG -> augmented float batch of {loaders.BATCH}, {threads} threads or workers each")
        result["loaders"] = loaders.measure_all(images, threads, seconds, device, log.append)
        show(*loaders.lines(result["loaders"]), "")
    if "steps" in sections:
        show(f"Training step on one fixed batch of {batch_size}, one change at a time")
        result["steps"] = steps.measure_all(batch_size, seconds, device, log.append)
        model, loss = Experiment().build_meta(steps.SIZE, LATENT), LOSSES[steps.LOSS]
        flops = step_cost(model, loss, (batch_size, 3, steps.SIZE, steps.SIZE)).image_flops
        show(*steps.lines(result["steps"], batch_size, flops), "")
    if "endtoend" in sections:
        show(f"End to end: the real step of {batch_size}, fed by each loader")
        result["endtoend"] = endtoend.measure_all(images, batch_size, quick, device, log.append)
        show(*endtoend.lines(result["endtoend"]), "")
    if "roofline" in sections:
        show("Roofline: what a step of 64 must cost")
        show(*roofline.lines(), "")
    if budget := endtoend.budget(result.get("endtoend", {}), batch_size):
        result["budget"] = budget
        show("Budget: the six runs of 100,000 iterations of 64, by the figures measured here")
        show(*endtoend.budget_lines(budget))
    return result, page, "\n".join(log)


@click.command(help=__doc__)
@click.option("--only", default=",".join(SECTIONS), show_default=True, help="Sections, comma-separated.")
@click.option(
    "--images",
    metavar="DIR",
    type=PathType(str),
    help="Default: $FASTAE_DATA, else the built-in synthetic faces.",
)
@click.option("--threads", default=2, show_default=True, help="Loader threads or workers.")
@click.option("--device", default=None, help="cpu or cuda. Default: cuda if there is one.")
@click.option("--quick", is_flag=True, help="Fewer and shorter repeats, for a first impression.")
@click.option("--out", metavar="DIR", help="Folder of the record; - for none.")
def main(**options: Any) -> None:
    try:
        _main(**options)
    except FastaeError as error:
        print(f"throughput: error: {error}", file=sys.stderr)
        sys.exit(2)


def _main(
    only: str,
    images: str | None,
    threads: int,
    device: str | None,
    quick: bool,
    out: str | None,
) -> None:
    sections = tuple(only.split(","))
    if unknown := set(sections) - set(SECTIONS):
        raise FastaeError(f"--only: {', '.join(sorted(unknown))} is not among {', '.join(SECTIONS)}")
    from fastae.device.choose import choose_device

    chosen = choose_device(device or "auto").type
    started = time.perf_counter()
    images = images or os.environ.get(VARIABLE)
    result, page, log = run(sections, images, threads, quick, chosen)
    is_whole = set(sections) == set(SECTIONS) and not quick  # a part must not replace the record of a day
    if out != "-" and (out or is_whole):
        folder = Path(out) if out else record.folder_of(result["device"])
        record.save(folder, result, page, log)
        if not out:
            record.index()
        print(f"\nrecord    {folder}  ({time.perf_counter() - started:.0f} s)")
    if problems := steps.disagreements(result.get("steps", {steps.VARIANTS[0]: {}})):
        raise FastaeError("; ".join(problems))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, on which the child is ended
    main()
