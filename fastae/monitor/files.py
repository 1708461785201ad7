"""Writes gpu.json, gpu.csv and gpu.png to a run's folder, and reads gpu.json. No file is ever incomplete.

A resumed run has several parts, each from its start or resumption to its end: gpu.json is the list of their
reports, and each part has its own samples and plot, such as gpu-2.csv and gpu-2.png for the second one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from bisect import bisect
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from fastae.errors import FastaeError
from fastae.monitor.plot import draw
from fastae.monitor.recording import Recording
from fastae.monitor.summary import UsageReport
from fastae.utils.files import atomic_write, write_json
from fastae.utils.json import read_json

REPORT = "gpu.json"


def write_report(report: UsageReport, recording: Recording, folder: Path, title: str) -> list[UsageReport]:
    """Adds the report of a run's part, its samples and its plot to an existing folder; returns all reports.

    `title` is the title of the plot. Earlier reports that cannot be read are dropped. Raises OSError if a
    file cannot be written.
    """
    try:
        reports = [*read_reports(folder), report]
    except FastaeError:
        reports = [report]
    names = chain(["gpu"], (f"gpu-{number}" for number in count(2)))
    name = next(stem for stem in names if not (folder / f"{stem}.csv").exists())
    write_json(folder / REPORT, [dataclasses.asdict(each) for each in reports])
    with atomic_write(folder / f"{name}.csv") as file:
        file.write(_as_csv(recording).encode())
    with atomic_write(folder / f"{name}.png") as file:
        draw(recording, title, file)
    return reports


def read_reports(folder: Path) -> list[UsageReport]:
    """The reports of a run's parts, at least one, in order.

    Raises FastaeError if there is none, or if they cannot be read.
    """
    path = folder / REPORT
    try:
        if reports := read_json(path, list[UsageReport]):
            return reports
        raise ValueError("it is empty")
    except FileNotFoundError:
        raise FastaeError(
            f"{str(folder)!r} has no {REPORT}: the run has not ended, was killed, or used --gpu-sample-hz 0"
        ) from None
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(path)!r} is not a report of this version of fastae: {error}") from None


def read_report(folder: Path) -> UsageReport:
    """The report of a run's last part. Raises FastaeError like `read_reports`."""
    return read_reports(folder)[-1]


def count_unreported(folder: Path, reports: Sequence[UsageReport]) -> int:
    """Returns the number of a run's parts that have no report; 0 if the folder has no valid config.json."""
    try:
        resumed = read_json(folder / "config.json", dict[str, Any]).get("resumed", ())
        return max(0, 1 + len(resumed) - len(reports))
    except (OSError, TypeError, ValueError):
        return 0


def _as_csv(recording: Recording) -> str:
    """The recording as CSV, with a line for each time at which anything was read.

    The columns are the time in seconds, the phase, and each metric with its unit. A cell is empty if the
    metric was not read at this time.
    """
    starts = [span.start for span in recording.spans]
    titles = ["time [s]", "phase"]
    lines: dict[float, dict[str, str]] = {}
    for name, column in recording.columns.items():
        titles.append(f"{name} [{column.unit}]" if column.unit else name)
        for time, value in zip(column.times, column.values, strict=True):
            lines.setdefault(time, {})[name] = f"{value:.10g}"
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(titles)
    for time, cells in sorted(lines.items()):
        phase = recording.spans[bisect(starts, time) - 1].phase
        writer.writerow([f"{time:.3f}", phase, *(cells.get(name, "") for name in recording.columns)])
    return text.getvalue()
