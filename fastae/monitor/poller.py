"""The poller: a thread that reads the host and the GPUs, each query at its own rate, all on one clock.

Each call is timed, and one that takes too much CPU time, or blocks the thread for too long, is made less
often; the others keep their rate. docs/monitor.md says what the poller costs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import Device, NvmlError, offered, open_nvml
from fastae.monitor.recording import Absence, Column, Metric, Phase, Query, Recording, Span

CPU_SHARE, BLOCKED_SHARE = 0.001, 0.02
"""The most of a core that one query may take, and of the time that it may block the thread. With N GPUs, a
query of each may take an Nth of that."""

NO_ANSWER = 1.0  # seconds before a query that gave nothing is asked again
LONGEST_STOP = 2.0  # seconds that `stop` waits for a reading in progress: a lost GPU may never answer

LOOP_COLUMNS = {
    "loop/images_per_second": Metric("images/s", "images/s"),
    "loop/data_wait": Metric("waiting for data", "%"),
    "loop/device_wait": Metric("waiting for the device", "%"),
    "loop/seconds": Metric("a log step", "s"),
}


class _Schedule:
    """A query and when it is due. tick: seconds between two polls. share: of what a query may take."""

    def __init__(self, query: Query, tick: float, share: float) -> None:
        self._period, self._read = query
        self._tick, self._share = tick, share
        self._cost = 0.0
        self.due = 0.0

    def call(self, now: float) -> Mapping[str, float]:
        """Reads. It is due again after its period, or when it may take as much time as this call did; a
        single slow call, such as the first, changes nothing."""
        cpu, wall = time.thread_time(), time.perf_counter()
        values = self._read()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        before, self._cost = self._cost, max(cpu / CPU_SHARE, wall / BLOCKED_SHARE) / self._share
        period = self._period or (0.0 if values else NO_ANSWER)
        self.due = round((now + max(period, self._tick, min(before, self._cost))) / self._tick) * self._tick
        return values


class Poller:
    """`start`, then from the loop `enter(phase)` and `record(...)`, then `stop`, then `recording()`.

    None of these raises, and none waits for a GPU. What is sampled is the host, and the GPUs that `find_gpus`
    returns when it is called with NVML, opened. None in their place means the host alone, and None among them
    a GPU that is missing; `absence`: the reason for either. A failure of NVML is recorded, not raised.
    """

    def __init__(
        self,
        host: HostReader,
        hz: float,
        library: Any,
        find_gpus: Callable[[Any], Sequence[Device | None]] | None,
        absence: Absence | None,
    ) -> None:
        self._library, self._absence, self._absence_detail = None, absence, ""
        devices: list[Device | None] = []
        try:
            if find_gpus:
                self._library = open_nvml(library)
                devices = list(find_gpus(library))
        except NvmlError as error:
            self._absence, self._absence_detail = error.absence, error.detail
        if devices and None not in devices:
            self._absence = None
        known = [device for device in devices if device is not None]
        indices = [gpu.index for gpu, _ in known]
        if len(set(indices)) < len(indices):  # slices of one board
            indices = list(range(len(known)))
        found = [(f"gpu{index}", device) for index, device in zip(indices, known, strict=True)]
        self._gpus = [GpuReader(library, device, prefix, host.is_ours) for prefix, device in found]
        readers: list[GpuReader | HostReader] = [*self._gpus, host]
        tick, share = 1 / hz, 1 / max(1, len(found))
        self._tick = tick
        self._schedules = [_Schedule(query, tick, share) for each in readers for query in each.queries()]
        tables = (*(reader.columns for reader in readers), LOOP_COLUMNS)
        self._columns = {name: Column(metric) for table in tables for name, metric in table.items()}
        self._sums: dict[str, tuple[float, int]] = {}
        self._spans = [Span(Phase.BEFORE, 0.0)]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._started = self._ended = time.monotonic()
        self._cpu_seconds = 0.0
        self._failure: str | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after a last reading, and closes NVML, unless a reading hangs: then closing it
        would hang too, or crash."""
        self._stopping.set()
        self._thread.join(LONGEST_STOP)
        self._ended = time.monotonic()
        if self._thread.is_alive():
            self._failure = "a reading did not return"
        elif self._library:
            offered(self._library.nvmlShutdown)

    def enter(self, phase: Phase) -> None:
        """What follows belongs to this phase."""
        with self._lock:
            if phase != self._spans[-1].phase:
                self._spans.append(Span(phase, self._now()))

    def record(self, images: float, seconds: float, data_wait: float, device_wait: float) -> None:
        """The loop's figures since the last call: images trained on, seconds in all, seconds in which the
        device had no batch, and seconds in which the host was blocked until the device was done."""
        if seconds > 0:
            values = (images / seconds, 100 * data_wait / seconds, 100 * device_wait / seconds, seconds)
            with self._lock:
                self._add(self._now(), dict(zip(LOOP_COLUMNS, values, strict=True)))

    def means(self) -> dict[str, float]:
        """For TensorBoard: the mean of each metric since the last call, by tags such as "utilisation/GPU
        power (W)". TensorBoard sorts them, so that the host's come last."""
        with self._lock:
            sums, self._sums = self._sums, {}
        found = {}
        for name, (total, count) in sums.items():
            label, unit = self._columns[name].metric
            owner, _, metric = name.partition("/")
            if len(self._gpus) > 1:
                label = label.replace("GPU", f"GPU {owner.removeprefix('gpu')}", 1)
            if unit and owner != "loop" and not metric.startswith("throttled"):
                found[f"utilisation/{label} ({unit})"] = total / count
        return found

    def recording(self) -> Recording:
        seconds = self._ended - self._started
        with self._lock:
            return Recording(
                seconds,
                tuple(self._spans),
                dict(self._columns),
                tuple(gpu.record() for gpu in self._gpus),
                self._absence,
                self._absence_detail,
                self._cpu_seconds / seconds if seconds else 0.0,
                self._failure,
            )

    def _run(self) -> None:
        try:
            while not self._stopping.wait(min(each.due for each in self._schedules) - self._now()):
                self._poll(self._now() + self._tick / 2)
            self._poll(math.inf)
        except Exception as error:  # whatever it is, the run must not be harmed
            self._failure = f"{type(error).__name__}: {error}"

    def _poll(self, until: float) -> None:
        """Reads what is due before `until`. All of it has the time of the poll's beginning."""
        now = self._now()
        for schedule in self._schedules:
            if schedule.due <= until:
                values = schedule.call(now)
                with self._lock:
                    self._add(now, values)
        self._cpu_seconds = time.thread_time()

    def _add(self, now: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._columns[name].add(now, value)
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1

    def _now(self) -> float:
        return time.monotonic() - self._started
