"""Measures the real step with each loader and on a fixed batch, and the budget of the six runs.

The loader tax is the extra time of an iteration with the loader, compared with a fixed batch that is on the
device already. Both are means, measured in one process. The budget is the time of the six runs on this
machine: iterations with the fastest loader, evaluations, and copies of the state for checkpoints.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
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
AT_ONCE = (2, 3, 6)


def measure(
    kind: str, images: str | None, batch_size: int, iterations: int, device: str, compiled: bool = True
) -> dict[str, Any]:
    """Measures one loader, in this process.

    Returns:
        "fixed" and "loader", the Window of each; "tax", as a share of a step; "evaluation" and "checkpoint",
        in seconds; "at_once", on GPUs only, the number of runs that take turns -> the seconds of an iteration
        of all of them. Or {"absent": reason}.
    """
    import torch

    from fastae.data import Tuning, open_loader
    from fastae.data.source import open_source
    from fastae.device.apply import apply
    from fastae.device.choose import Hardware, choose_device, choose_precision
    from fastae.training.evaluate import evaluate
    from fastae.training.step_timer import StepTimer, Window

    target = choose_device(device)
    on_gpu = target.type == "cuda"
    precision = choose_precision(target, amp=True)
    apply(Hardware(target, precision, compiled, compile_note=""))
    root = open_source(images)[0].root
    loader = open_loader(
        root,
        kind=kind,  # type: ignore[arg-type]
        batch_size=batch_size,
        device=target,
        seed=0,
        tuning=Tuning(compiled=compiled),
        cache=False,
    )
    if loader.kind != kind:
        return {"absent": f"is {loader.kind} on this device"}
    fixed_input = loader.example()

    def recorded() -> tuple[Any, str]:
        step = _step(batch_size, target, precision, compiled, loader.make_batch)
        return step, step.capture(fixed_input)

    step, graph = recorded()
    timer = StepTimer(target, batch_size)

    def run(inputs: Iterable[Any], number: int) -> Window:
        timer.begin()
        stream = iter(inputs)
        for _ in range(number):
            timer.fetch()
            batch = next(stream)
            timer.data_ready()
            step(*batch)
            timer.step_done()
        return timer.split().measure()

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
    stream = loader.inputs()
    run(stream, WARM_UP)
    fed = run(stream, iterations)
    held_out = torch.rand(EVALUATED, 3, SIZE, SIZE, device=target)
    # These are made last: a small card's memory suffices only for the loader and one run.
    others = [recorded()[0] for _ in range(max(AT_ONCE) - 1)] if on_gpu else []
    runs = [step, *others]
    return {
        "fixed": asdict(fixed),
        "loader": asdict(fed),
        "tax": fixed.images_per_second / fed.images_per_second - 1,
        "evaluation": seconds(lambda: evaluate(step.model, held_out, LOSS, precision), 2),
        "checkpoint": seconds(lambda: copy.deepcopy(step.state())),
        "at_once": {n: seconds(lambda: _in_turn(runs[:n], fixed_input)) / TURNS for n in AT_ONCE if on_gpu},  # noqa: B023
        "step": f"{precision.note}, {'compiled' if compiled else 'not compiled'}"
        + (f", {graph}" if graph else ""),
    }


TURNS = 50


def _in_turn(steps: list[Any], inputs: tuple[Any, ...]) -> None:
    """Runs the steps of several runs in turn, each on its own CUDA stream."""
    import torch

    streams = [torch.cuda.Stream() for _ in steps]
    for _ in range(TURNS):
        for step, stream in zip(steps, streams, strict=True):
            with torch.cuda.stream(stream):
                step(*inputs)


def _step(batch_size: int, device: Any, precision: Any, compiled: bool, make_batch: Callable) -> Any:
    import torch

    from fastae.experiment.model import AutoEncoder
    from fastae.training.step import TrainingStep, objective_of

    torch.manual_seed(0)
    model = AutoEncoder().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainingStep(
        model,
        loss=LOSS,
        batch_shape=(batch_size, 3, SIZE, SIZE),
        lr=1e-4,
        precision=precision,
        objective=objective_of(model, LOSS, precision, compiled),
        make_batch=make_batch,
    )


def measure_all(
    images: str | None, batch_size: int, quick: bool, device: str, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures each loader in a separate process; returns kind -> result of `measure`."""
    iterations = (5 if quick else 12) if device == "cpu" else 500
    common = {"images": images, "batch_size": batch_size, "iterations": iterations, "device": device}
    return {kind: isolated("benchmarks.endtoend:measure", {"kind": kind, **common}, log) for kind in LOADERS}


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

    If the batch size is not the article's, a step's time is scaled by its number of images. "at_once" is the
    fastest number of runs at once. Runs at once do not speed up evaluations and checkpoints.
    """
    measured = [found for found in results.values() if "loader" in found]
    if not measured:
        return {}
    best = max(measured, key=lambda found: found["loader"]["images_per_second"])
    scale = ARTICLE_LOSSES * ARTICLE_ITERATIONS * BATCH / batch_size
    # Means are used, since DALI decodes for several iterations at once, and only one of them waits for it.
    # `shares` are the times of n steps at once, relative to n steps one after the other.
    alone, fed = (batch_size / best[kind]["images_per_second"] for kind in ("fixed", "loader"))
    shares = {1: 1.0} | {int(n): seconds / (int(n) * alone) for n, seconds in best["at_once"].items()}
    at_once = min(shares, key=lambda n: shares[n])
    step = scale * alone * shares[at_once]
    loader = scale * max(0.0, fed - alone)
    return {
        "at_once": at_once,
        "step": step,
        "loader": loader,
        "evaluations": ARTICLE_LOSSES * ARTICLE_ITERATIONS / EVAL_EVERY * best["evaluation"],
        "checkpoints": (step + loader) / CHECKPOINT_SECONDS * best["checkpoint"],
    }


def budget_lines(parts: dict[str, float]) -> list[str]:
    """Returns the budget as lines; the last is the sum."""
    seconds = {name: value for name, value in parts.items() if name != "at_once"}
    shown = [f"  {name:12} {value / 3600:8,.2f} h" for name, value in seconds.items()]
    return [*shown, f"  {int(parts['at_once'])} at once: {in_words(sum(seconds.values()))}"]
