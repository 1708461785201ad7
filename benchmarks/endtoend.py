"""The real loop: each loader feeding the real step, beside the same step on one fixed batch.

The loader's tax is what an iteration costs more with the loader than on a fixed batch, which is on the
device already: at the median, in one process.

    python -m benchmarks.endtoend [--images DIR] [--batch-size 64]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import click

from benchmarks.measure import isolated

LOADERS = ("resident", "dali")
LOSS = "minibatch_bce"
SIZE = 128
WARM_UP = 3


def measure(
    kind: str, images: str | None, batch_size: int, iterations: int, device: str, compiled: bool
) -> dict[str, Any]:
    """{"fixed", "loader": Window, "tax": share of a step, "step": what was switched on}."""
    import torch

    from fastae.data import open_loader
    from fastae.data.source import open_source
    from fastae.model import AutoEncoder
    from fastae.training.step import TrainingStep
    from fastae.training.step_timer import StepTimer, Window
    from fastae.utils.device import choose_kernels, choose_precision
    from fastae.utils.memory import keep_freed_memory

    target = torch.device(device)
    if target.type == "cpu":
        keep_freed_memory()
    choose_kernels(target, deterministic=False)
    precision = choose_precision(target, amp=True)
    root = open_source(images)[0].root
    loader = open_loader(
        root, kind=kind, batch_size=batch_size, device=target, seed=0, compiled=compiled, cache=None
    )
    if loader.kind != kind:
        raise AssertionError(f"asked for {kind}, measured {loader.kind}")
    torch.manual_seed(0)
    step = TrainingStep(
        AutoEncoder().to(target).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        loss=LOSS,
        batch_shape=(batch_size, 3, SIZE, SIZE),
        lr=1e-4,
        precision=precision,
        compiled=compiled,
        images_of=loader.images,
    )
    graph = step.record(loader.example())
    clock = StepTimer(target, batch_size)

    def run(inputs: Iterable[Any], number: int) -> Window:
        clock.begin()
        for batch in itertools.islice(inputs, number):
            clock.data_ready()
            step(*batch)
            clock.step_done()
        return clock.close()

    fixed_input = loader.example()
    run(itertools.repeat(fixed_input), WARM_UP)
    fixed = run(itertools.repeat(fixed_input), iterations)
    stream = loader.inputs()
    run(stream, WARM_UP)
    fed = run(stream, iterations)
    return {
        "fixed": asdict(fixed),
        "loader": asdict(fed),
        "tax": fed.step_p50 / fixed.step_p50 - 1,
        "step": f"{precision.note}, {'compiled' if compiled else 'not compiled'}"
        + (f", {graph}" if graph else ""),
    }


def measure_all(
    images: str | None, batch_size: int, quick: bool, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Each loader in its own process; kind -> what `measure` returns."""
    iterations = (5 if quick else 12) if device == "cpu" else 500
    common = ["--batch-size", str(batch_size), "--iterations", str(iterations), "--device", device]
    if images:
        common += ["--images", images]
    return {kind: isolated("benchmarks.endtoend", ["--one", kind, *common], log) for kind in LOADERS}


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """The results for a terminal."""
    shown = []
    for kind, found in results.items():
        if "loader" not in found:
            shown.append(f"  {kind:9} absent: {found['absent']}")
            continue
        window = found["loader"]
        p50, p95, p99 = (1e3 * window[f"step_{name}"] for name in ("p50", "p95", "p99"))
        shown.append(
            f"  {kind:9} {window['images_per_second']:8,.1f} images/s  step p50 {p50:,.1f}  p95 {p95:,.1f}  "
            f"p99 {p99:,.1f} ms  data wait {window['wait_share']:.2%}  loader tax {found['tax']:+.1%}"
        )
    return shown


@click.command(help=__doc__)
@click.option("--images", metavar="DIR", help="Default: $FASTAE_DATA, else the built-in synthetic faces.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--iterations", default=12, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
@click.option("--quick", is_flag=True)
@click.option("--one", type=click.Choice(LOADERS), help="This loader alone, as JSON.")
def main(
    images: str | None,
    batch_size: int,
    iterations: int,
    device: str,
    compiled: bool,
    quick: bool,
    one: str | None,
) -> None:
    if one:
        print(json.dumps(measure(one, images, batch_size, iterations, device, compiled)))
        return
    print("\n".join(lines(measure_all(images, batch_size, quick, device, log=lambda text: None))))


if __name__ == "__main__":
    main()
