"""Writes and reads gpu.json, gpu.csv and gpu.png in a run's folder. Each is written completely or not at all.

A resumed run has several sessions: gpu.json is the list of their reports, gpu.csv has the samples of all of
them, and each session after the first has a plot of its own: gpu-2.png and so on.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from bisect import bisect
from pathlib import Path

from fastae.errors import FastaeError
from fastae.monitor.plot import draw
from fastae.monitor.recording import Recording
from fastae.monitor.summary import UsageReport
from fastae.utils.files import atomic_write, require_file
from fastae.utils.json import read_json

REPORT, SAMPLES = "gpu.json", "gpu.csv"
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
    session = len(reports)
    samples = as_csv(recording, session, read_samples(folder / SAMPLES) if session > 1 else [])
    with atomic_write(folder / REPORT) as file:
        file.write(report_json(reports).encode() + b"\n")
    with atomic_write(folder / SAMPLES) as file:
        file.write(samples.encode())
    with atomic_write(folder / ("gpu.png" if session == 1 else f"gpu-{session}.png")) as file:
        draw(recording, title, file)


def read_sessions(folder: Path) -> list[UsageReport]:
    """The reports of a run's sessions, at least one, in order.

    Raises FastaeError if there is none, or if they cannot be read.
    """
    path = folder / REPORT
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


def as_csv(recording: Recording, session: int, earlier: list[dict[str, str]]) -> str:
    """The earlier sessions' lines, and the recording as CSV, with a line for each time at which it was read.

    The columns are the time in seconds since the session began, the session, the phase, and each metric with
    its unit, which is empty if it was not read at this time.
    """
    starts = [span.start for span in recording.spans]
    titles = dict.fromkeys([*FIRST_TITLES, *(earlier[0] if earlier else ())])
    lines: dict[float, dict[str, object]] = {}
    for name, column in recording.columns.items():
        title = f"{name} [{column.unit}]" if column.unit else name
        titles[title] = None
        for time, value in zip(column.times, column.values, strict=True):
            lines.setdefault(time, {})[title] = f"{value:.10g}"
    for time, line in lines.items():
        first = (f"{time:.3f}", session, recording.spans[bisect(starts, time) - 1].phase)
        line.update(zip(FIRST_TITLES, first, strict=True))
    writer = csv.DictWriter(text := io.StringIO(), titles, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(earlier)
    writer.writerows(line for _, line in sorted(lines.items()))
    return text.getvalue()


def read_samples(path: Path) -> list[dict[str, str]]:
    """The lines of a gpu.csv, as title -> text; [] if it is missing or cannot be read."""
    try:
        require_file(path)
        with path.open("rb") as file:
            reader = csv.DictReader(io.StringIO(file.read(MAX_BYTES).decode()), restkey="", restval="")
        return list(reader) if (reader.fieldnames or [])[:3] == FIRST_TITLES else []
    except (OSError, ValueError, csv.Error):
        return []
