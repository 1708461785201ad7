"""gpu.json, gpu.csv and gpu.png in a run's folder: written, each whole or not at all, and read again."""

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
from fastae.utils.files import atomic_write
from fastae.utils.json import read_json

REPORT, SAMPLES, PLOT = "gpu.json", "gpu.csv", "gpu.png"


def write_report(report: UsageReport, recording: Recording, folder: Path, title: str) -> None:
    """Writes the three files into an existing folder. `title`: of the plot. Raises OSError."""
    with atomic_write(folder / REPORT) as file:
        file.write(report_json(report).encode() + b"\n")
    with atomic_write(folder / SAMPLES) as file:
        file.write(_as_csv(recording).encode())
    with atomic_write(folder / PLOT) as file:
        draw(recording, title, file)


def read_report(folder: Path) -> UsageReport:
    """The report in a run's folder. Raises FastaeError if there is none, or it cannot be read."""
    path = folder / REPORT
    if not folder.is_dir():
        raise FastaeError(f"{str(folder)!r} is not a run's folder")
    try:
        return read_json(path, UsageReport)
    except FileNotFoundError:
        raise FastaeError(
            f"{str(folder)!r} has no {REPORT}: its run has not ended, or had --gpu-sample-hz 0"
        ) from None
    except (OSError, ValueError) as error:
        raise FastaeError(f"{str(path)!r} is not a report of this version of fastae: {error}") from None


def report_json(report: UsageReport) -> str:
    return json.dumps(dataclasses.asdict(report), indent=2)


def _as_csv(recording: Recording) -> str:
    """A line per time at which anything was read: time in seconds, phase, and each column with its unit;
    empty if it was not read then."""
    columns = {name: column for name, column in recording.columns.items() if len(column)}
    lines: dict[float, dict[str, float]] = {}
    for name, column in columns.items():
        for time, value in zip(column.times, column.values, strict=True):
            lines.setdefault(time, {})[name] = value
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    units = (f"{name} [{each.metric.unit}]" if each.metric.unit else name for name, each in columns.items())
    writer.writerow(["time [s]", "phase", *units])
    starts = [span.start for span in recording.spans]
    for time, values in sorted(lines.items()):
        cells = (f"{values[name]:.10g}" if name in values else "" for name in columns)
        writer.writerow([f"{time:.3f}", recording.spans[bisect(starts, time) - 1].phase, *cells])
    return text.getvalue()
