"""The poller: a thread that reads whatever it is given, each query at its own rate, all on one clock.

It keeps to BUDGET by asking the dearest queries less often, and only those. Its cost is measured in
docs/monitor.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastae.monitor.recording import Column, LoopTotals, Metric, Phase, Recording, Span

BUDGET = 0.005  # the most CPU time that all queries together may take, as a share of one core
BLOCKED = 0.25  # the most time that they may block the thread: waiting costs no CPU but delays the others
NO_ANSWER = 1.0  # seconds before a query that gave nothing is asked again
LONGEST_STOP = 2.0  # seconds that `stop` waits for a reading in progress: a lost GPU may never answer

LOOP_COLUMNS = {
    "loop/images_per_second": Metric("images_per_second", "images/s", "images/s"),
    "loop/data_wait": Metric("data_wait", "waiting for data", "%"),
    "loop/device_wait": Metric("device_wait", "waiting for the device", "%"),
}


@dataclass
class Query:
    """Something to read. `read()` gives column -> value for what was answered; `period`: seconds between
    two calls at least, 0 for the rate of the poller. cost: the share of what all may take that it would take
    if it were called all the time."""

    read: Callable[[], Mapping[str, float]]
    period: float = 0.0
    due: float = field(default=0.0, init=False)
    cost: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def took(self, cpu: float, wall: float) -> None:
        """Seconds of the last call. A single slow one, such as the first, does not count."""
        cost = max(cpu / BUDGET, wall / BLOCKED)
        self.cost, self._last = min(cost, self._last), cost


def fair_share(demands: Sequence[float]) -> float:
    """How much each may have of 1: as little as it takes that those who want less have all they want."""
    left = 1.0
    for place, demand in enumerate(sorted(demands)):
        share = left / (len(demands) - place)
        if demand >= share:
            return share
        left -= demand
    return math.inf


class Reader(Protocol):
    """What is read of the host, or of one GPU: columns by name, the queries that fill them, and, after the
    last query, what was missing."""

    def columns(self) -> dict[str, Metric]: ...
    def queries(self) -> list[Query]: ...
    def record(self) -> Any: ...


class Poller:
    """`start`, then from the loop `enter(phase)` and `record(...)`, then `stop`, then `recording()`.

    None of these raises, and none waits for a GPU.
    """

    def __init__(self, host: Reader, gpus: Sequence[Reader], hz: float) -> None:
        self._host, self._gpus = host, gpus
        self._tick = 1 / hz
        self._queries = [query for reader in (*gpus, host) for query in reader.queries()]
        tables = (*(reader.columns() for reader in (*gpus, host)), LOOP_COLUMNS)
        self._columns = {name: Column(each) for table in tables for name, each in table.items()}
        self._spans = [Span(Phase.BEFORE, 0.0)]
        self._loop: dict[Phase, LoopTotals] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._started = self._ended = time.monotonic()
        self._cpu_seconds = self._next_share = 0.0
        self._share = math.inf
        self._failure: str | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._thread.start()

    def stop(self) -> bool:
        """Ends the thread after a last reading. False if a reading hangs: its library must then stay open."""
        self._stopping.set()
        self._thread.join(LONGEST_STOP)
        self._ended = time.monotonic()
        return not self._thread.is_alive()

    def enter(self, phase: Phase) -> None:
        """What follows belongs to this phase."""
        with self._lock:
            if phase != self._spans[-1].phase:
                self._spans.append(Span(phase, self._now()))

    def record(
        self, images: float, seconds: float, data_wait_seconds: float, device_wait_seconds: float
    ) -> None:
        """The loop's own figures since the last call; see `LoopTotals`."""
        with self._lock:
            totals = self._loop.setdefault(self._spans[-1].phase, LoopTotals())
            totals.images += images
            totals.seconds += seconds
            totals.data_wait += data_wait_seconds
            totals.device_wait += device_wait_seconds
            if seconds > 0:
                amounts = (images, 100 * data_wait_seconds, 100 * device_wait_seconds)
                rates = (amount / seconds for amount in amounts)
                self._add(self._now(), dict(zip(LOOP_COLUMNS, rates, strict=True)))

    def means(self) -> dict[str, float]:
        """The mean of each GPU and host column since the last call; without those that had no value."""
        with self._lock:
            sums, self._sums = self._sums, {}
        return {name: total / count for name, (total, count) in sums.items() if name not in LOOP_COLUMNS}

    def recording(self) -> Recording:
        with self._lock:
            seconds = self._ended - self._started
            return Recording(
                seconds=seconds,
                spans=tuple(self._spans),
                columns=dict(self._columns),
                loop=dict(self._loop),
                gpus=tuple(reader.record() for reader in self._gpus),
                host_missing=self._host.record(),
                poller_share=self._cpu_seconds / seconds if seconds else 0.0,
                failure=self._failure,
                hung=self._thread.is_alive(),
            )

    def _run(self) -> None:
        try:
            while not self._stopping.wait(min(query.due for query in self._queries) - self._now()):
                self._poll(self._now() + self._tick / 2)
            self._poll(math.inf)
        except Exception as error:  # whatever it is, the run must not be harmed
            self._failure = f"{type(error).__name__}: {error}"

    def _poll(self, until: float) -> None:
        """Asks what is due before `until`. All of it has the time of the poll's beginning."""
        now = self._now()
        for query in self._queries:
            if query.due <= until:
                cpu, wall = time.thread_time(), time.perf_counter()
                values = query.read()
                with self._lock:
                    self._add(now, values)
                query.took(time.thread_time() - cpu, time.perf_counter() - wall)
                period = query.period or (0.0 if values else NO_ANSWER)
                interval = max(period, self._tick, query.cost / self._share)
                query.due = round((now + interval) / self._tick) * self._tick
        if now >= self._next_share:
            self._share = fair_share([each.cost / max(each.period, self._tick) for each in self._queries])
            self._next_share = now + 1.0
        self._cpu_seconds = time.thread_time()

    def _add(self, now: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._columns[name].add(now, len(self._spans) - 1, value)
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1

    def _now(self) -> float:
        return time.monotonic() - self._started
