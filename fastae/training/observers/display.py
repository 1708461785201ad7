"""Shows how far a run is: a live bar on a terminal, elsewhere a line per log step; then its result."""

from __future__ import annotations

import math

import torch
from rich.progress import BarColumn, Progress, TextColumn

from fastae.config import TrainConfig
from fastae.device.memory import peak_memory, total_memory
from fastae.monitor.summary import RunInfo
from fastae.runs.folder import RunFolder
from fastae.training.clock import Window
from fastae.training.evaluate import Evaluation
from fastae.training.observers.observer import Observer
from fastae.utils.console import console, duration, log, rate_text
from fastae.utils.limits import peak_bytes

WIDE = 110
"""The width in columns from which the bar shows everything. In a narrower terminal it hides the loss and the
wait for data."""

PROJECTED_AFTER, LONG_RUN = 10, 15 * 60
"""The iterations after which a hint is logged if the run will take more than LONG_RUN seconds."""


def line_of(window: Window, wide: bool = True) -> str:
    """Returns the line that shows a log step."""
    rate = f"{window.images_per_second:,.1f} images/s"
    ending = f"  ETA {duration(window.remaining)}" if math.isfinite(window.remaining) else ""
    if wide:
        return (
            f"loss {window.loss:.4f}  loss_index {window.loss_index:>9,.0f}  {rate}  "
            f"data wait {window.data_wait_share:.1%}{ending}"
        )
    return f"loss_index {window.loss_index:,.0f}  {rate}{ending}"


class Display(Observer):
    """Logs what happens. On a terminal, a bar shows the run's progress instead of a line per log step.

    Args:
        config: the run's settings.
        start: the iteration that the run continues from; 0 for a new run.
        on_cpu: whether the run trains on a CPU.
        bar: whether to show the bar, if the output is a terminal.
    """

    def __init__(self, config: TrainConfig, *, start: int, on_cpu: bool, bar: bool) -> None:
        self._config = config
        self._on_cpu = on_cpu
        self._total = "" if config.minutes else f"/{config.iterations:,}"
        self._project_at: float = start + PROJECTED_AFTER
        self._bar = Progress(
            TextColumn(f"{{task.fields[iteration]:,}}{self._total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=console.quiet or not (bar and console.is_terminal),  # a bar would take the user's output
            refresh_per_second=4,
            transient=True,  # otherwise the bar stays on the screen, and after Ctrl-C it does so twice
            expand=True,
        )
        self._task = self._bar.add_task("train", total=1.0, iteration=0, status="first step ...")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def step(self, iteration: int, done: float) -> None:
        self._bar.update(self._task, completed=done, iteration=iteration)

    def window(self, window: Window) -> None:
        if console.is_terminal:
            self._bar.update(self._task, status=line_of(window, wide=console.width >= WIDE))
        else:
            width = len(self._total) - 1 if self._total else 7
            log(f"{window.iteration:>{width},}{self._total}  {line_of(window)}")
        if window.iteration >= self._project_at:
            self._project_at = math.inf
            self._hint(window.remaining)

    def _hint(self, remaining: float) -> None:
        """Logs what would shorten a long run."""
        if remaining > LONG_RUN:
            remedies = ["--minutes N", "--iterations N"]
            remedies += ["--image-size 64"] if self._config.image_size > 64 else []
            remedies += ["a GPU"] if self._on_cpu else []
            log(f"hint      at this rate the run takes {duration(remaining)}; shorter with:")
            log(f"          {', '.join(remedies)}")

    def evaluation(self, evaluation: Evaluation) -> None:
        log(f"iteration {evaluation.iteration:,}: held-out loss_index {evaluation.loss_index:,.0f}")

    def finish(self, is_complete: bool) -> None:
        self._bar.stop()


class Result(Observer):
    """Logs the result of a complete run: held-out error, speed without the first step, and memory.

    Args:
        run: the run's folder.
        info: the properties of the run that its speed is judged by.
        device: the device that trains.
        start: the iteration that the run continues from. A window of the first step alone is left out.
    """

    def __init__(self, run: RunFolder, info: RunInfo, device: torch.device, start: int) -> None:
        self._run = run
        self._info = info
        self._device = device
        self._start = start
        self._windows: list[Window] = []

    def window(self, window: Window) -> None:
        self._windows.append(window)

    def finish(self, is_complete: bool) -> None:
        if is_complete:
            log("")
            log(f"held-out loss_index {self._errors()}", "bold")
            log(self._speed())
            log(self._memory())

    def _errors(self) -> str:
        """Returns the held-out errors at the run's beginning and at its end, in words."""
        ends = (0, self._windows[-1].iteration)
        errors = {iteration: self._run.held_out_error(iteration) for iteration in ends}
        return ", ".join(
            f"{error:,.0f} at iteration {iteration:,}"
            for iteration, error in errors.items()
            if error is not None
        )

    def _speed(self) -> str:
        """Returns images/s, the wait for data, and FLOP/s with its share of the device's peak, in words."""
        windows, first_step = self._windows, ""
        if windows[0].iteration == self._start + 1:
            first_step = f"first step {windows[0].seconds:.1f} s, "
            windows = windows[1:] or windows
        seconds = sum(window.seconds for window in windows)
        rate = sum(window.images for window in windows) / seconds
        wait = sum(window.data_wait for window in windows) / seconds
        flops, peak = rate * self._info.image_flops, self._info.peak_flops
        share = f" ({flops / self._info.ranks / peak:.1%} of the peak)" if peak else ""
        return f"{rate:,.1f} images/s, data wait {wait:.2%}, {first_step}{rate_text(flops)}{share}"

    def _memory(self) -> str:
        """Returns the most memory that was used, in words."""
        text = f"peak memory {peak_bytes() / 2**30:.1f} GiB"
        if peak := peak_memory():
            used, reserved, total = (count / 2**30 for count in (*peak, total_memory(self._device)))
            text += f"; on the GPU PyTorch used {used:.1f} GiB and reserved {reserved:.1f} of {total:.1f}"
        return text
