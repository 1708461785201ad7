"""Everything that people read of a report: one line after a run, and a table with evidence and advice."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from fastae.monitor.summary import GpuSummary, Statistics, Summary, UsageReport
from fastae.utils.console import duration

COLUMNS = ("mean", "p5", "p50", "p95", "max", "at 0 %", "> 90 %")


def headline(report: UsageReport) -> str:
    """The verdict and the figures behind it, in one line."""
    summary, gpu = report.summary, report.judged
    figures = []
    if gpu and (busy := gpu.mean("gpu_busy")) is not None:
        figures.append(f"{_name(gpu) if len(summary.gpus) > 1 else 'GPU'} busy {busy:.0f} %")
    if not summary.gpus and "cpu" in summary.host:
        figures.append(f"{summary.host['cpu'].mean:.1f} of {summary.cores:g} cores")
    if summary.data_wait is not None:
        figures.append(f"waiting for data {_percent(summary.data_wait, 1)}")
    probably = "probably " if report.diagnosis.is_guess else ""
    return f"{probably}{report.diagnosis.verdict.text}" + (f" ({', '.join(figures)})" if figures else "")


def show_report(report: UsageReport, console: Console) -> None:
    """Prints the table, what is missing in it, and the diagnosis."""
    console.print(heading(report))
    table = Table("", "", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(report.summary):
        table.add_row(*row)
    console.print(table)
    for line in remarks(report.summary):
        console.print(line)
    console.print(f"verdict   {headline(report)}")
    for line in evidence(report):
        console.print(f"          {line}")
    for line in report.diagnosis.advice:
        console.print(f"try       {line}")


def heading(report: UsageReport) -> str:
    """What was watched, and for how long."""
    summary = report.summary
    names = ", ".join(dict.fromkeys(gpu.record.gpu.name for gpu in summary.gpus))
    count = f"{len(summary.gpus)} x " if len(summary.gpus) > 1 else ""
    if report.command and len(summary.gpus) == 1:  # of those of the machine
        count = f"{_name(summary.gpus[0])}, "
    program = shorten(report.command or "this run", 70, placeholder=" ...")
    what = "everything"
    if summary.measured:
        training = "training, without warm-up and evaluation"
        what = "since it first used the GPU" if report.command else training
    return f"{count}{names or 'CPU'}, {program}: {what}; {duration(summary.seconds)} in all"


def rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    """Label, unit and a cell for each of COLUMNS, for each metric of the host and of the GPU; of several
    GPUs, how busy each was."""
    for gpu in summary.gpus:
        for name, each in gpu.statistics.items():
            if len(summary.gpus) == 1 and each.unit:
                yield _row(each, each.label)
            elif name == "gpu_busy":
                yield _row(each, f"{_name(gpu)} busy")
    for each in summary.host.values():
        yield _row(each, each.label)


def remarks(summary: Summary) -> list[str]:
    """Lines below the table, each with the word that it begins with; those on several GPUs name them."""
    found: dict[tuple[str, str], list[str]] = {}
    for gpu in summary.gpus:
        for remark in _remarks_on(gpu):
            found.setdefault(remark, []).append(_name(gpu))
    lines = []
    for (word, text), names in found.items():
        which = f"{', '.join(names)}: " if len(names) < len(summary.gpus) else ""
        lines.append(f"{word:10}{which}{text}")
    if summary.kwh is not None:
        rate = f"{summary.images_per_joule:.3g} images/J, " if summary.images_per_joule else ""
        sources = dict.fromkeys(gpu.energy_source.text for gpu in summary.gpus if gpu.energy_source)
        lines.append(f"energy    {rate}{summary.kwh:.4g} kWh in all (by {', '.join(sources)})")
    elif any(gpu.kwh is not None for gpu in summary.gpus):
        lines.append("energy    withheld: it is not known for every GPU of the job")
    if summary.failure:
        lines.append(f"trouble   the monitor ended early: {summary.failure}")
    return lines


def evidence(report: UsageReport) -> list[str]:
    """The figures that the verdict rests on."""
    summary, host = report.summary, report.summary.host
    lines = []
    if report.absence:
        lines.append(report.absence.text + (f" ({report.absence_detail})" if report.absence_detail else ""))
    if summary.gpus and summary.data_wait is not None and summary.device_wait is not None:
        data, device = _percent(summary.data_wait, 1), _percent(summary.device_wait, 1)
        lines.append(f"the host waits for data {data} of the time, for the device {device}")
    elif report.diagnosis.is_guess:
        lines.append("a guess from the use of GPU and CPU: the program does not report its waits")
    if report.judged:
        name = f"{_name(report.judged)}: " if len(summary.gpus) > 1 else ""
        lines += [name + line for line in _evidence_of(report.judged)]
    busy = [(mean, _name(gpu)) for gpu in summary.gpus if (mean := gpu.mean("gpu_busy")) is not None]
    if len(busy) > 1:  # the GPUs of one job wait for the slowest
        (low, first), (high, last) = min(busy), max(busy)
        lines.append(f"GPU busy from {low:.0f} % ({first}) to {high:.0f} % ({last})")
    if "cpu" in host:
        lines.append(f"the program keeps {host['cpu'].mean:.1f} of {summary.cores:g} CPU cores busy")
    if summary.other_cores:
        lines.append(f"other programs keep {summary.other_cores:.1f} cores busy")
    return lines


def _evidence_of(gpu: GpuSummary) -> Iterator[str]:
    record, known = gpu.record, gpu.record.gpu
    if record.lost:
        yield f"the GPU stopped answering ({record.lost})"
    if busy := gpu.statistics.get("gpu_busy"):
        none, most = _percent(busy.at_zero or 0.0), _percent(busy.above_90 or 0.0)
        samples = f"none in {none} of the samples, over 90 % in {most}"
        yield f"some kernel was running {busy.mean:.0f} % of the time ({samples})"
    elif not record.lost:
        yield f"GPU busy is not offered ({record.missing.get('gpu_busy', 'no sample')})"
    names = ("sm_active", "tensor_active", "dram_bandwidth", "jpeg")
    found = [gpu.statistics[name] for name in names if gpu.mean(name)]
    if found:
        yield ", ".join(f"{each.label.removeprefix('GPU ')} {each.mean:.0f} %" for each in found)
    if (watts := gpu.mean("power")) is not None:
        yield f"{watts:.0f} W" + (f" of {known.power_limit:.0f} W allowed" if known.power_limit else "")
    if (clock := gpu.mean("sm_clock")) is not None and known.max_sm_clock:
        state = gpu.statistics.get("performance_state")
        suffix = f", mostly P{state.p50:.0f}" if state else ""
        yield f"SM clock {clock:,.0f} of at most {known.max_sm_clock:,.0f} MHz{suffix}"
    if record.other_processes:
        others = f"{record.other_processes} at once, with {record.other_gib:.1f} GiB"
        yield f"processes of other programs on this GPU: {others}"


def _remarks_on(gpu: GpuSummary) -> Iterator[tuple[str, str]]:
    known = gpu.record.gpu
    for reason, share in gpu.throttling.items():
        yield "clocks", f"{reason.text} {_percent(share)} of the time"
    generation, width = (gpu.statistics.get(f"pcie_{name}") for name in ("generation", "width"))
    if generation and width and known.max_pcie_generation and known.max_pcie_width:
        most = f"{known.max_pcie_generation} x{known.max_pcie_width}"
        yield "PCIe", f"generation {generation.max:.0f} x{width.max:.0f}, at most {most}"
    by_reason: dict[str, list[str]] = {}
    for name, why in gpu.record.missing.items():
        if not name.startswith("throttle"):
            by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        yield "missing", f"{', '.join(names)} ({why})"
    for name, count in gpu.record.errors.items():
        yield "trouble", f"{count} x {name}"
    if gpu.record.lost:
        yield "trouble", f"stopped answering: {gpu.record.lost}"


def _name(gpu: GpuSummary) -> str:
    return f"GPU {gpu.record.prefix.removeprefix('gpu')}"


def _row(each: Statistics, label: str) -> tuple[str, ...]:
    values = (each.mean, each.p5, each.p50, each.p95, each.max)
    shares = ("" if share is None else _percent(share) for share in (each.at_zero, each.above_90))
    unit = "" if each.unit == label else each.unit  # images/s is its own label
    return (label, unit, *(_number(value) for value in values), *shares)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
