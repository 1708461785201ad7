"""A report as a table and a few lines, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from fastae.console import duration
from fastae.monitor.poller import TRAIN
from fastae.monitor.report import UsageReport
from fastae.monitor.summary import GpuSummary, Statistics, Summary

COLUMNS = ("mean", "p5", "p50", "p95", "max", "at 0 %", "> 90 %")


def show_report(report: UsageReport, console: Console) -> None:
    """Prints the table, energy, throttling, what was not offered, and the diagnosis."""
    summary = report.summary
    console.print(heading(report))
    console.print(_table(summary))
    for line in remarks(summary):
        console.print(line)
    console.print(f"verdict   {report.diagnosis.verdict}")
    for line in report.diagnosis.evidence:
        console.print(f"          {line}")
    for line in report.diagnosis.advice:
        console.print(f"try       {line}")


def heading(report: UsageReport) -> str:
    """What was watched, for how long."""
    summary = report.summary
    names = ", ".join(gpu.name for gpu in summary.gpus)
    what = "training, without warm-up and evaluation" if summary.measured == TRAIN else "everything"
    note = f" ({report.note})" if report.note else ""
    return (
        f"utilisation of {names or 'the host alone'}{note}, {report.subject}: {what}, "
        f"{summary.samples:,} samples in {duration(summary.seconds)}"
    )


def rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    """Of each metric its label, its unit, and a cell for each of COLUMNS; of the GPUs, then of the host."""
    for place, gpu in enumerate(summary.gpus):
        prefix = f"GPU {place} " if len(summary.gpus) > 1 else ""
        for each in gpu.statistics.values():
            yield _row(each, prefix)
    for each in summary.host.values():
        yield _row(each, "")


def remarks(summary: Summary) -> list[str]:
    """Lines below the table, each with the word that it begins with."""
    lines = [line for gpu in summary.gpus for line in _gpu_lines(gpu)]
    return [*lines, *_energy_lines(summary), *(f"trouble   {error}" for error in summary.errors)]


def _table(summary: Summary) -> Table:
    table = Table("", "", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(summary):
        table.add_row(*row)
    return table


def _row(each: Statistics, prefix: str) -> tuple[str, ...]:
    values = (each.mean, each.p5, each.p50, each.p95, each.max)
    shares = ("" if share is None else f"{share:.0%}" for share in (each.at_zero, each.above_90))
    # The label of a rate is its unit: "images/s" need not be said twice.
    unit = "" if each.unit == each.label else each.unit
    return (prefix + each.label, unit, *(_number(value) for value in values), *shares)


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
