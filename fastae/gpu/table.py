"""A report as a table and a few lines, for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from fastae.console import duration
from fastae.gpu.report import Report
from fastae.gpu.sampler import TRAIN
from fastae.gpu.summary import GpuSummary, Statistics, Summary


def show_report(report: Report, console: Console) -> None:
    """Prints the table, energy, throttling, what was not offered, and the diagnosis."""
    summary = report.summary
    console.print(_heading(report))
    console.print(_table(summary))
    for gpu in summary.gpus:
        for line in _gpu_lines(gpu):
            console.print(line)
    for line in _energy_lines(summary):
        console.print(line)
    for error in summary.errors:
        console.print(f"trouble   {error}")
    console.print(f"verdict   {report.diagnosis.verdict}")
    for line in report.diagnosis.evidence:
        console.print(f"          {line}")
    for line in report.diagnosis.advice:
        console.print(f"try       {line}")


def _heading(report: Report) -> str:
    summary = report.summary
    names = ", ".join(gpu.name for gpu in summary.gpus)
    what = "training, without warm-up and evaluation" if summary.measured == TRAIN else "everything"
    note = f" ({report.note})" if report.note else ""
    return (
        f"utilisation of {names or 'the host alone'}{note}, {report.subject}: {what}, "
        f"{summary.samples:,} samples in {duration(summary.seconds)}"
    )


def _table(summary: Summary) -> Table:
    table = Table("", "", box=None, pad_edge=False)
    for heading in ("mean", "p5", "p50", "p95", "max", "at 0 %", "> 90 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, gpu in enumerate(summary.gpus):
        prefix = f"GPU {place} " if len(summary.gpus) > 1 else ""
        _add(table, gpu.statistics, prefix)
    _add(table, summary.host, "")
    return table


def _add(table: Table, statistics: Mapping[str, Statistics], prefix: str) -> None:
    for each in statistics.values():
        values = (each.mean, each.p5, each.p50, each.p95, each.max)
        shares = ("" if share is None else f"{share:.0%}" for share in (each.at_zero, each.above_90))
        # The label of a rate is its unit: "images/s" need not be said twice.
        unit = "" if each.unit == each.label else each.unit
        table.add_row(prefix + each.label, unit, *(_number(value) for value in values), *shares)


def _gpu_lines(gpu: GpuSummary) -> list[str]:
    lines = [f"clocks    {text} in {share:.0%} of the samples" for text, share in gpu.throttling.items()]
    if gpu.not_offered:
        by_reason: dict[str, list[str]] = {}
        for name, reason in gpu.not_offered.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [f"lacking   not offered: {', '.join(names)} ({why})" for why, names in by_reason.items()]
    return lines


def _energy_lines(summary: Summary) -> list[str]:
    if summary.kwh is None:
        return []
    source = ", ".join(sorted({gpu.energy_from or "" for gpu in summary.gpus}))
    rate = f"{summary.images_per_joule:.3g} images/J, " if summary.images_per_joule else ""
    return [f"energy    {rate}{summary.kwh:.4g} kWh in all (by {source})"]


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
