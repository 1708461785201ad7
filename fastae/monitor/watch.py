"""The utilisation report for any training loop: `fastae.watch`.

A step ends when the loop asks for the next batch, so that the loop needs no other changes. A window of steps
is measured once the device has reached its end: nothing waits for the device until the block ends.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastae.device.choose import find_device
from fastae.errors import FastaeError, SettingError
from fastae.monitor.loop_timer import WARM_UP, LoopTimer, Marks
from fastae.monitor.monitor import Monitor, local_gpus
from fastae.monitor.recording import Phase
from fastae.monitor.summary import RunInfo
from fastae.monitor.text import show_reports
from fastae.utils.arguments import Range, require_choice, require_int, require_number
from fastae.utils.console import HarmlessConsole, log
from fastae.utils.ranks import current_rank

Batch = TypeVar("Batch")

COUNT = Range(0, 1_000_000)

BLOCKS = (Phase.COMPILE, Phase.EVAL, Phase.SAVE, Phase.OTHER)
"""The phases of `Watch.phase`."""


class Watch(AbstractContextManager):
    """Measures a training loop and the machine while the block runs, and writes a report at its end.

    The report is also written after an exception or Ctrl-C. An error of the measurement is logged, and does
    not end the loop. If several processes train together, by torch.distributed or torchrun, only the main
    rank measures: its own loop, and, under torchrun, the GPUs of all ranks on its machine.

    Args:
        folder: the folder for gpu.json, gpu.csv and gpu.png, which is made if it is missing. If it has a
            report, another part is added.
        device: the device that trains. Default: CUDA's current device if there is one, else the CPU.
        hz: the number of samples per second; 0 for no report.

    Raises:
        FastaeError: an argument is wrong, or, when the block begins, the folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, *, device: str | torch.device | None = None, hz: float = 2.0
    ) -> None:
        require_number(hz, "hz", Range(0, 1000))
        rank, self._ranks = current_rank()
        is_main = not rank  # None before Lightning has started the other ranks
        found = find_device(device) if is_main else torch.device("cpu")
        self._folder, self._hz = Path(folder), hz if is_main else 0.0
        info = RunInfo(ranks=self._ranks, on_gpu=found.type == "cuda")
        self._monitor = Monitor(self._folder, self._hz, local_gpus(found, self._ranks), info)
        self._timer = LoopTimer(found)
        self._has_begun = self._has_ended = self._is_looping = self._has_replayed = False
        self._is_measuring = True
        self._unsteady = WARM_UP
        """The number of next batches whose speed is not representative."""
        self._images = self._in_step = self._replay_asked = 0
        self._due = 0.0
        self._closed: deque[tuple[Marks, int, bool]] = deque()
        """The marks of a window, the number of its images, and whether its batches were replayed."""

    def __enter__(self) -> Watch:
        if self._has_begun:
            raise FastaeError("a watch can be used for one block: call fastae.watch again")
        try:
            if self._hz:
                self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError("folder", f"{str(self._folder)!r} cannot be made: {error.strerror}") from None
        self._has_begun = True
        self._monitor.__enter__()
        self._monitor.enter(Phase.OTHER)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._end_loop()
        self._try(self._read, kind is None)
        if self._replay_asked and self._hz and not self._has_replayed:
            log(f"headroom  not measured: no loop had {self._replay_asked} batches after the warm-up")
        self._has_ended = True
        self._monitor.__exit__(kind, *rest)

    def __call__(
        self, loader: Iterable[Batch], images: int | None = None, replay: int = 0
    ) -> Iterator[Batch]:
        """Returns an iterator over the loader's batches, which measures the loop.

        With `replay`, the loop also trains twice on some batches that it has just seen, without waiting for
        its loader, and the report has the speed of the second time. This happens once in each watch, after
        the warm-up. During the first time, the loader fills its queue, so that the batches that follow are
        not measured, either.

        Args:
            loader: any iterable of batches.
            images: the images of a batch. Default: the length of the first dimension of its first tensor.
            replay: the number of batches to hold in memory and replay.

        Raises:
            FastaeError: an argument is wrong, the block does not run, or another loop of this watch runs.
        """
        if not hasattr(loader, "__iter__"):
            raise SettingError("loader", f"must be iterable, not {loader!r:.60}")
        images = None if images is None else require_int(images, "images", COUNT)
        self._replay_asked = replay = require_int(replay, "replay", COUNT)
        self._require_block()
        return self._iterate(loader, images, replay)

    def _iterate(self, loader: Iterable[Batch], images: int | None, replay: int) -> Iterator[Batch]:
        if self._is_looping:
            raise FastaeError("a watch measures one loop at a time: do not watch the inner loop")
        self._is_looping = True
        held: list[Batch] = []
        to_hold = 0 if self._has_replayed else replay
        try:
            self._try(self._enter, Phase.WARM_UP if self._unsteady else Phase.TRAIN)
            for batch in loader:
                is_steady = not self._unsteady
                yield from self._step(batch, images)
                if not is_steady:
                    # Not in a method that may fail: all ranks must replay at the same batch.
                    self._unsteady -= 1
                    if not self._unsteady:
                        self._try(self._enter, Phase.TRAIN)
                elif len(held) < to_hold:
                    held.append(batch)
                    if len(held) == to_hold:
                        yield from self._replay(held, images)
                        held, to_hold = [], 0
        finally:
            self._end_loop()

    def _replay(self, held: Sequence[Batch], images: int | None) -> Iterator[Batch]:
        """Yields the batches twice, and measures the second time."""
        self._has_replayed, self._unsteady = True, len(held)
        for _ in range(2):
            self._try(self._enter, Phase.REPLAY)
            for batch in held:
                yield from self._step(batch, images)
        self._try(self._enter, Phase.REPLAY, True)

    def _step(self, batch: Batch, images: int | None) -> Iterator[Batch]:
        self._try(self._begin_step, batch, images)
        yield batch
        self._try(self._end_step)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Leaves the time of the block out of the loop's figures. The report has it under this name.

        Args:
            name: "compile", "eval", "save" or "other".

        Raises:
            FastaeError: there is no such phase, or the block does not run.
        """
        require_choice(name, "phase", BLOCKS)
        self._require_block()
        before = self._monitor.phase or Phase.OTHER
        self._try(self._timer.exclude if before in BLOCKS else self._timer.fetch)
        self._monitor.enter(Phase(name))
        try:
            yield
        finally:
            self._try(self._timer.exclude)
            self._monitor.enter(before)

    @property
    def summary(self) -> str:
        """The text that `fastae gpu FOLDER` prints: table, verdict and advice; "" if there is no report.

        Raises FastaeError before the block has ended.
        """
        if not self._has_ended:
            raise FastaeError("watch.summary exists when the block of `with fastae.watch(...)` has ended")
        screen = io.StringIO()
        if self._monitor.reports:
            show_reports(self._monitor.reports, HarmlessConsole(file=screen, width=120))
        return screen.getvalue().rstrip()

    def _require_block(self) -> None:
        """Raises FastaeError unless the block runs."""
        if not self._has_begun or self._has_ended:
            raise FastaeError("a watch works only inside its block: with fastae.watch(folder) as watch")

    def _try(self, measure: Callable[..., None], *arguments: Any) -> None:
        """Calls a function. After an error, which is logged, it calls nothing: the loop matters more."""
        try:
            if self._is_measuring:
                measure(*arguments)
        except Exception as error:
            self._is_measuring = False
            log(f"monitor   the loop is no longer measured: {error}", "yellow")

    def _enter(self, phase: Phase, is_replayed: bool = False) -> None:
        """Ends the window, and begins the next one in this phase."""
        marks = self._timer.cut()
        if marks.ends:
            self._closed.append((marks, self._images, is_replayed))
        self._read()
        self._monitor.enter(phase)
        self._images, self._due = 0, time.monotonic() + 1 / (self._hz or 1)
        self._timer.skip()

    def _begin_step(self, batch: object, images: int | None) -> None:
        self._timer.data_ready()
        self._in_step = self._ranks * (first_dimension(batch) if images is None else images)

    def _end_step(self) -> None:
        self._timer.end_step()
        self._images += self._in_step
        if time.monotonic() >= self._due and self._monitor.phase is not Phase.REPLAY:
            self._enter(self._monitor.phase or Phase.TRAIN)

    def _end_loop(self) -> None:
        if self._is_looping:
            self._is_looping = False
            self._try(self._enter, Phase.OTHER)

    def _read(self, wait: bool = False) -> None:
        """Measures the closed windows whose end the device has reached. With `wait`, waits for it."""
        while self._closed and self._closed[0][0].are_reached(wait):
            marks, images, is_replayed = self._closed.popleft()
            self._monitor.record(marks.measure(images), is_replayed)


def first_dimension(batch: object) -> int:
    """Returns the length of the first dimension of the first tensor in a batch; 0 if there is no tensor."""
    shape = getattr(batch, "shape", None)
    if isinstance(shape, Sequence):
        return int(shape[0]) if shape else 0
    parts = [*batch.values()] if isinstance(batch, Mapping) else batch
    return next(filter(None, map(first_dimension, parts)), 0) if isinstance(parts, list | tuple) else 0


watch = Watch
