"""The report on a run: made from a recording, written to its folder, and read back from there."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

from fastae.errors import FastaeError
from fastae.files import atomic_write
from fastae.monitor.diagnosis import Diagnosis, RunInfo, diagnose
from fastae.monitor.host import usable_cores
from fastae.monitor.poller import Recording
from fastae.monitor.summary import Summary, summarise
from fastae.parsing import parse, read_json

REPORT, SAMPLES, PLOT = "gpu.json", "gpu.csv", "gpu.png"


@dataclass(frozen=True)
class UsageReport:
    """`subject`: what was watched; `note`: why a half of it is missing, empty where none is."""

    subject: str
    summary: Summary
    diagnosis: Diagnosis
    note: str = ""


def make_report(
    recording: Recording, subject: str, note: str = "", info: RunInfo | None = None
) -> UsageReport:
    summary = summarise(recording)
    return UsageReport(subject, summary, diagnose(summary, usable_cores(), info), note)


def write_report(report: UsageReport, recording: Recording, folder: Path) -> None:
    """gpu.json, gpu.csv and gpu.png, each whole or not there. The folder is there already."""
    from fastae.monitor.plot import draw  # matplotlib takes half a second to import

    with atomic_write(folder / REPORT) as file:
        file.write(report_json(report).encode() + b"\n")
    with atomic_write(folder / SAMPLES) as file:
        file.write(_as_csv(recording).encode())
    with atomic_write(folder / PLOT) as file:
        draw(recording, file)


def read_report(folder: Path) -> UsageReport:
    """The report that lies in a run's folder. Raises FastaeError where none that can be read does."""
    path = folder / REPORT
    if not folder.is_dir():
        raise FastaeError(f"{str(folder)!r} is not a run's folder")
    try:
        return parse(UsageReport, read_json(path))
    except FileNotFoundError:
        raise FastaeError(
            f"{str(folder)!r} has no {REPORT}: its run has not ended, or had --gpu-sample-hz 0"
        ) from None
    except OSError as error:
        raise FastaeError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise FastaeError(f"{str(path)!r} is not a report of this version of fastae: {error}") from None


def report_json(report: UsageReport) -> str:
    return json.dumps(dataclasses.asdict(report), indent=2)


def _as_csv(recording: Recording) -> str:
    """One line a sample: time in seconds, phase, and each column with its unit; empty where not read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = recording.columns.items()
    writer.writerow(["time [s]", "phase", *(f"{name} [{metric.unit}]" for name, metric in columns)])
    for time, phase, row in zip(recording.times, recording.phases, recording.rows, strict=True):
        values = ("" if math.isnan(value) else f"{value:.10g}" for value in row)
        writer.writerow([f"{time:.3f}", phase, *values])
    return text.getvalue()
