"""The sampler: a thread that reads GPUs and host so many times a second, all on one clock.

On an AMD EPYC (Zen 5) it costs, at 10 Hz, 0.2 % of a core for the host alone, and 0.3 % with one GPU whose
NVML is a stand-in. What a real driver adds is not measured yet; whatever it is, the sampler holds itself to
BUDGET by sampling less often.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastae.monitor.gpu_reader import GPU_METRICS, GpuReader, Metric
from fastae.monitor.host import HOST_METRICS, HostReader
from fastae.monitor.nvml import Gpu
from fastae.monitor.samples import CAPACITY, Samples

BUDGET = 0.005
"""The most CPU time that the sampler may take, as a share of one core."""

FREE_START = 0.02
"""Seconds of CPU time that it may take before the budget counts, so that a short run is sampled as well."""

SLOW_PERIOD = 1.0
LONGEST_STOP = 2.0
"""Seconds that `stop` waits for a reading in progress: a lost GPU may never answer."""

IMAGES_PER_SECOND = Metric("images_per_second", "images/s", "images/s")
DATA_WAIT = Metric("data_wait", "data wait", "%")
LOOP_METRICS = (IMAGES_PER_SECOND, DATA_WAIT)

BEFORE, COMPILE, WARM_UP, TRAIN, EVAL = "before", "compile", "warm-up", "train", "eval"


@dataclass
class Progress:
    """What the loop itself has counted in one phase: images, seconds, and seconds without data."""

    images: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True)
class Recording:
    """What was sampled. `rows` is float64, one row a sample and one column for each of `columns`.

    `times`: seconds since the start; `phases`: the phase of each row; `columns`: "gpu0/power" -> its place
    and metric; `not_offered`, `errors`: by column, or by GPU; `sampler_share`: CPU time of the sampler as a
    share of one core.
    """

    seconds: float
    times: np.ndarray
    phases: tuple[str, ...]
    rows: np.ndarray
    columns: Mapping[str, Metric]
    gpus: tuple[Gpu, ...] = ()
    not_offered: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    progress: Mapping[str, Progress] = field(default_factory=dict)
    samples: int = 0
    sampler_share: float = 0.0

    def column(self, name: str) -> np.ndarray:
        return self.rows[:, list(self.columns).index(name)]


class Poller:
    """`start`, then from the loop `enter(phase)` and `record(...)`, then `stop`, then `recording()`.

    None of these raises, and none waits for a GPU.
    """

    def __init__(
        self, gpus: Sequence[GpuReader], host: HostReader, hz: float, capacity: int = CAPACITY
    ) -> None:
        self._gpus = list(gpus)
        self._host = host
        self._period = 1 / hz
        names = [
            *((f"gpu{place}/", metric) for place in range(len(gpus)) for metric in GPU_METRICS),
            *(("host/", metric) for metric in HOST_METRICS),
            *(("loop/", metric) for metric in LOOP_METRICS),
        ]
        self.columns = {prefix + metric.name: metric for prefix, metric in names}
        self._samples_kept = Samples(2 + len(self.columns), capacity)
        self._phases = [BEFORE]
        self._phase = 0
        self._progress: dict[str, Progress] = {}
        self._loop = [math.nan] * len(LOOP_METRICS)
        self._sums = np.zeros((2, len(self.columns)))
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._started = self._ended = self._next_slow = time.monotonic()
        self._samples = 0
        self._cpu_seconds = 0.0
        self._failure: str | None = None

    def start(self) -> None:
        self._started = self._next_slow = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after a last reading."""
        self._stopping.set()
        self._thread.join(LONGEST_STOP)
        self._ended = time.monotonic()

    def enter(self, phase: str) -> None:
        """What follows belongs to this phase of the run."""
        with self._lock:
            if self._phases[self._phase] in (COMPILE, WARM_UP):
                self._loop = [math.nan] * len(LOOP_METRICS)  # a rate while compiling says nothing of later
            if phase not in self._phases:
                self._phases.append(phase)
            self._phase = self._phases.index(phase)

    def record(self, images: float, seconds: float, wait_share: float) -> None:
        """The loop's own figures since the last call."""
        with self._lock:
            done = self._progress.setdefault(self._phases[self._phase], Progress())
            done.images += images
            done.seconds += seconds
            done.waited += wait_share * seconds
            self._loop = [images / seconds if seconds else math.nan, 100 * wait_share]

    def means(self) -> dict[str, float]:
        """The mean of each GPU and host column since the last call; without those that had no value."""
        with self._lock:
            (sums, counts), self._sums = self._sums, np.zeros_like(self._sums)
        return {
            name: float(total / count)
            for name, total, count in zip(self.columns, sums, counts, strict=True)
            if count and not name.startswith("loop/")
        }

    def recording(self) -> Recording:
        with self._lock:
            table = self._samples_kept.rows()
        missing = {f"host/{name}": why for name, why in self._host.not_offered.items()}
        errors = [] if self._failure is None else [f"the sampler ended early: {self._failure}"]
        if self._thread.is_alive():
            errors.append("the sampler did not end: a reading never came back")
        for place, reader in enumerate(self._gpus):
            missing |= {f"gpu{place}/{name}": why for name, why in reader.not_offered.items()}
            errors += [f"gpu{place}: {count} x {name}" for name, count in reader.errors.items()]
            if reader.lost:
                errors.append(f"gpu{place} stopped answering: {reader.lost}")
        seconds = self._ended - self._started
        return Recording(
            seconds=seconds,
            times=table[:, 0],
            phases=tuple(self._phases[int(place)] for place in table[:, 1]),
            rows=table[:, 2:],
            columns=self.columns,
            gpus=tuple(reader.gpu for reader in self._gpus),
            not_offered=missing,
            errors=tuple(errors),
            progress=dict(self._progress),
            samples=self._samples,
            sampler_share=self._cpu_seconds / seconds if seconds else 0.0,
        )

    def _run(self) -> None:
        try:
            while True:
                last = self._stopping.is_set()
                self._sample(last)
                self._cpu_seconds = time.thread_time()
                if last:
                    return
                self._stopping.wait(self._pause())
        except Exception as error:  # whatever it is, the run must not be harmed
            self._failure = f"{type(error).__name__}: {error}"

    def _pause(self) -> float:
        """Seconds to the next reading: on the grid of --gpu-sample-hz, or later where the budget is spent."""
        elapsed = time.monotonic() - self._started
        on_grid = (elapsed // self._period + 1) * self._period
        within_budget = (self._cpu_seconds - FREE_START) / BUDGET
        return max(on_grid, within_budget) - elapsed

    def _sample(self, last: bool) -> None:
        now = time.monotonic()
        slow = last or now >= self._next_slow
        if slow:
            self._next_slow = now + SLOW_PERIOD - self._period / 2
        host = self._host.read() if slow and self._samples else [math.nan] * len(HOST_METRICS)
        gpus = [reader.read(slow, self._host.processes) for reader in self._gpus]
        with self._lock:
            values = [*itertools.chain.from_iterable(gpus), *host, *self._loop]
            self._samples_kept.add((now - self._started, self._phase, *values))
            read = np.array(values)
            known = ~np.isnan(read)
            self._sums[0, known] += read[known]
            self._sums[1] += known
            self._samples += 1
