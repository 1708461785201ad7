"""Measures the real step with each loader and on a fixed batch, and the budget of the six runs.

The loader tax is the extra time of an iteration with the loader, compared with a fixed batch that is on the
device already. Both are means, measured in one process. The budget is the time of the six runs on this
machine: iterations with the fastest loader, evaluations, and copies of the state for checkpoints.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.measure import isolated
from benchmarks.roofline import BATCH, in_words
from fastae.experiment.article import ARTICLE_ITERATIONS, ARTICLE_LOSSES

LOADERS = ("resident", "host", "dali")
LOSS = "minibatch_bce"
SIZE = 128
WARM_UP = 3
EVALUATED = 256
"""The number of held-out images of an evaluation, which happens every EVAL_EVERY iterations."""
EVAL_EVERY = 1_000
CHECKPOINT_SECONDS = 600.0


def measure(
    kind: str, images: str | None, batch_size: int, iterations: int, device: str, compiled: bool = True
) -> dict[str, Any]:
    """Measures one loader, in this process.

    Returns:
        "fixed" and "loader", the speed with each; "tax", as a share of a step; "evaluation" and "checkpoint",
        in seconds.
    """
    import torch

    from fastae.data import Tuning, open_loader
    from fastae.data.source import open_source
    from fastae.device.apply import apply
    from fastae.device.choose import Hardware, choose_device, choose_precision
    from fastae.experiment.losses import LOSSES
    from fastae.training.clock import Clock
    from fastae.training.evaluate import evaluate

    target = choose_device(device)
    on_gpu = target.type == "cuda"
    precision = choose_precision(target, amp=True)
    hardware = Hardware(target, precision, compiled, compile_note="")
    apply(hardware)
    root = open_source(images)[0].root
    source = open_loader(
        root,
        split="train",
        kind=kind,  # type: ignore[arg-type]
        batch_size=batch_size,
        device=target,
        seed=0,
        tuning=Tuning(compiled=compiled),
        cache=False,
    ).source
    fixed_input = source.example()

    step = _step(batch_size, hardware, source.make_batch)
    graph = step.capture(fixed_input)

    def run(inputs: Iterable[Any], number: int) -> dict[str, float]:
        clock = Clock(target, batch_size, longest=number)
        clock.skip()
        stream = iter(inputs)
        for _ in range(number):
            clock.fetch()
            batch = next(stream)
            clock.data_ready()
            clock.step_done(step(*batch)[0])
        clock.close(torch.zeros(3, device=target))
        (window,) = clock.read()
        return {
            "images_per_second": window.images_per_second,
            "data_wait": window.data_wait_share,
            "step_p50": window.step_p50,
            "step_p95": window.step_p95,
        }

    def seconds(work: Callable[[], Any], number: int = 3) -> float:
        times = []
        for _ in range(number):
            started = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    run(itertools.repeat(fixed_input), WARM_UP)
    fixed = run(itertools.repeat(fixed_input), iterations)
    stream = source.inputs()
    run(stream, WARM_UP)
    fed = run(stream, iterations)

    def evaluation() -> Any:
        return evaluate(step.model, held_out, LOSSES[LOSS], precision=precision, iteration=0)

    held_out = torch.rand(EVALUATED, 3, SIZE, SIZE, device=target)
    return {
        "fixed": fixed,
        "loader": fed,
        "tax": fixed["images_per_second"] / fed["images_per_second"] - 1,
        "evaluation": seconds(evaluation, 2),
        "checkpoint": seconds(lambda: step.state().copied()),
        "step": f"{precision.note}, {'compiled' if compiled else 'not compiled'}"
        + (f", {graph}" if graph else ""),
    }


def _step(batch_size: int, hardware: Any, make_batch: Callable) -> Any:
    import torch

    from fastae.experiment.losses import LOSSES
    from fastae.experiment.model import AutoEncoder
    from fastae.training.step.objective import prepare
    from fastae.training.step.step import TrainingStep

    torch.manual_seed(0)
    model = AutoEncoder().to(hardware.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = (batch_size, 3, SIZE, SIZE)
    trained = prepare(model, hardware)
    return TrainingStep(trained, LOSSES[LOSS], batch_shape=shape, lr=1e-4, make_batch=make_batch)


def measure_all(
    images: str | None, batch_size: int, quick: bool, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures each loader in a separate process; returns kind -> result of `measure`."""
    iterations = (5 if quick else 10) if device == "cpu" else 500
    common = {"images": images, "batch_size": batch_size, "iterations": iterations, "device": device}
    kinds = [kind for kind in LOADERS if kind != "host" or device != "cpu"]  # it is resident there
    return {kind: isolated("benchmarks.endtoend:measure", {"kind": kind, **common}, log) for kind in kinds}


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the results as lines."""
    shown = []
    for kind, found in results.items():
        if "loader" not in found:
            shown.append(f"  {kind:9} absent: {found['absent']}")
            continue
        window = found["loader"]
        p50, p95 = (1e3 * window[f"step_{name}"] for name in ("p50", "p95"))
        shown.append(
            f"  {kind:9} {window['images_per_second']:8,.1f} images/s  step p50 {p50:,.1f}  p95 {p95:,.1f} ms"
            f"  data wait {window['data_wait']:.2%}  loader tax {found['tax']:+.1%}"
        )
    return shown


def budget(results: dict[str, dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Returns the total seconds of each part of the six runs on this machine; {} if nothing was measured.

    If the batch size is not the article's, a step's time is scaled by its number of images.
    """
    measured = [found for found in results.values() if "loader" in found]
    if not measured:
        return {}
    best = max(measured, key=lambda found: found["loader"]["images_per_second"])
    iterations = ARTICLE_LOSSES * ARTICLE_ITERATIONS
    # Means are used, since DALI decodes for several iterations together, and only one of them waits for it.
    alone, fed = (BATCH / best[kind]["images_per_second"] for kind in ("fixed", "loader"))
    step, loader = iterations * alone, iterations * max(0.0, fed - alone)
    return {
        "step": step,
        "loader": loader,
        "evaluations": iterations / EVAL_EVERY * best["evaluation"],
        "checkpoints": (step + loader) / CHECKPOINT_SECONDS * best["checkpoint"],
    }


def budget_lines(parts: dict[str, float]) -> list[str]:
    """Returns the budget as lines; the last is the sum."""
    shown = [f"  {name:12} {value / 3600:8,.2f} h" for name, value in parts.items()]
    return [*shown, f"  in total: {in_words(sum(parts.values()))}"]
