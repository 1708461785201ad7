"""The poller, a thread that reads the host and the GPUs at a fixed rate, all on one clock."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect
from collections.abc import Mapping, Sequence

from fastae.device.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.recording import NOT_AVERAGED, Column, Phase, Recording, Span

LONGEST_STOP = 2.0  # the maximum seconds that `stop` waits for a reading: a lost GPU may never answer


class Poller:
    """Reads in a thread between `start` and `stop`. `recording` then returns the samples.

    The training loop calls `enter` and `record`. No method raises an error or waits for a GPU. `failure` is
    the error that ended the thread early.
    """

    def __init__(self, readers: Sequence[GpuReader | HostReader], hz: float) -> None:
        self._readers = readers
        self._tick = 1 / hz
        self._columns: dict[str, Column] = {}
        self._phases = [(Phase.BEFORE, 0.0)]
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._started = self._ended = time.monotonic()
        self._polls = 0
        self._averaged = 0.0
        self.failure: str | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after a last reading, unless a reading does not return."""
        self._stopping.set()
        self._thread.join(LONGEST_STOP)
        self._ended = time.monotonic()
        if self._thread.is_alive():
            self.failure = "a reading did not return"

    def enter(self, phase: Phase) -> None:
        """Starts a phase."""
        with self._lock:
            self._phases.append((phase, self._now()))

    def record(self, figures: Mapping[str, float], at: float) -> None:
        """Records figures of the training loop, metric -> value, at a time of time.monotonic."""
        with self._lock:
            self._add(at - self._started, {f"loop/{name}": value for name, value in figures.items()})

    def means(self) -> dict[str, float]:
        """The mean of each metric since the last call, by TensorBoard tag.

        An example of a tag is "utilisation/GPU power (W)". TensorBoard sorts tags, so that the host's come
        last.
        """
        with self._lock:
            since, self._averaged = self._averaged, self._now()
            recent = [(each, each.values[bisect(each.times, since) :]) for each in self._columns.values()]
        return {
            f"utilisation/{column.label} ({column.unit})": sum(values) / len(values)
            for column, values in recent
            if values and column.unit and column.owner != "loop" and column.metric not in NOT_AVERAGED
        }

    def recording(self) -> Recording:
        seconds = self._ended - self._started
        with self._lock:
            ends = [*(start for _, start in self._phases[1:]), seconds]
            spans = zip(self._phases, ends, strict=True)
            return Recording(
                seconds=seconds,
                spans=tuple(Span(phase, start, end - start) for (phase, start), end in spans),
                columns=dict(self._columns),
                gpus=tuple(each.record() for each in self._readers if isinstance(each, GpuReader)),
                hz=self._polls / seconds if seconds else 0.0,
            )

    def _run(self) -> None:
        try:
            self._poll()
            while not self._stopping.wait(self._until_due()):
                self._poll()
            self._poll()
        except Exception as error:  # no error of the monitor may end the run
            self.failure = f"{type(error).__name__}: {error}"

    def _until_due(self) -> float:
        """Seconds until the next multiple of a tick. Multiples that a slow reading missed are skipped."""
        now = self._now()
        return (math.floor(now / self._tick + 0.1) + 1) * self._tick - now

    def _poll(self) -> None:
        """Reads everything once. All values get the time at which the poll began."""
        now = self._now()
        for reader in self._readers:
            values = reader.read()
            with self._lock:
                self._add(now, values)
        self._polls += 1

    def _add(self, now: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._columns:
                self._columns[name] = Column(name)
            self._columns[name].add(now, value)

    def _now(self) -> float:
        return time.monotonic() - self._started
