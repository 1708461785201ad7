"""Writes and reads gpu.json, gpu.csv and gpu.png in a run's folder. Each is written completely or not at all.

A resumed run has several sessions: gpu.json is the list of their reports, and gpu.csv and gpu.png show them
one after the other.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from bisect import bisect
from pathlib import Path

from fastae.errors import FastaeError
from fastae.monitor.plot import draw
from fastae.monitor.recording import METRICS, Column, Phase, Recording, Span, joined, key_of
from fastae.monitor.summary import UsageReport
from fastae.utils.files import atomic_write, require_file
from fastae.utils.json import read_json

REPORT, SAMPLES, PLOT = "gpu.json", "gpu.csv", "gpu.png"
FIRST_TITLES = ["time [s]", "session", "phase"]
MAX_BYTES = 1 << 26  # the most bytes of a gpu.csv; a session has some MB


def write_report(report: UsageReport, recording: Recording, folder: Path, title: str) -> None:
    """Adds a session to the three files in an existing folder. Earlier ones that cannot be read are dropped.

    `title` is the title of the plot. Raises OSError if a file cannot be written.
    """
    try:
        reports = [*read_sessions(folder), report]
    except FastaeError:
        reports = [report]
    if earlier := read_samples(folder / SAMPLES):
        recording = joined(earlier, recording)
    with atomic_write(folder / REPORT) as file:
        file.write(report_json(reports).encode() + b"\n")
    with atomic_write(folder / SAMPLES) as file:
        file.write(_as_csv(recording).encode())
    with atomic_write(folder / PLOT) as file:
        draw(recording, title, file)


def read_sessions(folder: Path) -> list[UsageReport]:
    """The reports of a run's sessions, at least one, in order.

    Raises FastaeError if there is none, or if they cannot be read.
    """
    path = folder / REPORT
    if not folder.is_dir():
        raise FastaeError(f"{str(folder)!r} is not a run's folder")
    try:
        if reports := read_json(path, list[UsageReport]):
            return reports
        raise ValueError("it is empty")
    except FileNotFoundError:
        raise FastaeError(
            f"{str(folder)!r} has no {REPORT}: the run has not ended, or has --gpu-sample-hz 0"
        ) from None
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(path)!r} is not a report of this version of fastae: {error}") from None


def read_report(folder: Path) -> UsageReport:
    """The report of a run's last session. Raises FastaeError like `read_sessions`."""
    return read_sessions(folder)[-1]


def report_json(reports: list[UsageReport]) -> str:
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=2)


def _as_csv(recording: Recording) -> str:
    """The recording as CSV, with a line for each time at which anything was read.

    The columns are the time in seconds, the session, the phase, and each metric with its unit, which is empty
    if it was not read at this time.
    """
    starts = [span.start for span in recording.spans]
    titles = [*FIRST_TITLES]
    lines: dict[float, dict[str, object]] = {}
    for name, column in recording.columns.items():
        titles.append(f"{name} [{column.metric.unit}]" if column.metric.unit else name)
        for time, value in zip(column.times, column.values, strict=True):
            lines.setdefault(time, {})[titles[-1]] = f"{value:.10g}"
    for time, line in lines.items():
        phase = recording.spans[bisect(starts, time) - 1].phase
        first = (f"{time:.3f}", bisect(recording.sessions, time), phase)
        line.update(zip(FIRST_TITLES, first, strict=True))
    writer = csv.DictWriter(text := io.StringIO(), titles, lineterminator="\n")
    writer.writeheader()
    writer.writerows(line for _, line in sorted(lines.items()))
    return text.getvalue()


def read_samples(path: Path) -> Recording | None:
    """The recording in a gpu.csv, without the GPUs; None if it is missing or cannot be read."""
    try:
        require_file(path)
        with path.open("rb") as file:
            return _parse(file.read(MAX_BYTES).decode())
    except (OSError, ValueError, LookupError, csv.Error):
        return None


def _parse(text: str) -> Recording:
    """Parses the output of `_as_csv`. Raises ValueError, LookupError or csv.Error for other content."""
    header, *lines = csv.reader(io.StringIO(text))
    if header[:3] != FIRST_TITLES:
        raise ValueError("not samples of this version")
    names = [title.partition(" [")[0] for title in header[3:]]
    columns = {name: Column(METRICS[key_of(name)]) for name in names}
    spans, sessions, time = [Span(Phase.BEFORE, 0.0)], [0.0], 0.0
    for cell, session, phase, *cells in lines:
        before, time = time, float(cell)
        if not before <= time < math.inf:
            raise ValueError("the times are not in order")
        if int(session) > len(sessions):
            sessions.append(time)
        if phase != spans[-1].phase:
            spans.append(Span(Phase(phase), time))
        for name, value in zip(names, cells, strict=True):
            if value and math.isfinite(float(value)):
                columns[name].add(time, float(value))
    seconds = time + 1e-3  # the next session starts on a line of its own
    return Recording(seconds, tuple(spans), columns, sessions=tuple(sessions))
