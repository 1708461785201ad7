"""Everything that people read of a report: one line after a run, and a table with evidence and advice."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten

from rich.console import Console
from rich.table import Table

from fastae.monitor.recording import Absence
from fastae.monitor.summary import GpuSummary, Summary, UsageReport
from fastae.utils.console import duration

COLUMNS = ("mean", "p50", "p95", "max", "at 0 %", "> 90 %")


def headline(report: UsageReport) -> str:
    """The verdict and the figures behind it, in one line."""
    summary, gpu = report.summary, report.judged
    figures = []
    if gpu and (busy := gpu.mean("gpu_busy")) is not None:
        figures.append(f"{_name(gpu, summary)} busy {busy:.0f} %")
    if not summary.gpus and "cpu" in summary.host:
        figures.append(f"{summary.host['cpu'].mean:.1f} of {summary.cores:g} cores")
    if summary.data_wait is not None:
        figures.append(f"waiting for data {_percent(summary.data_wait, 1)}")
    probably = "probably " if report.diagnosis.is_guess else ""
    return f"{probably}{report.diagnosis.verdict.text}" + (f" ({', '.join(figures)})" if figures else "")


def show_report(report: UsageReport, console: Console) -> None:
    """Prints what was watched, the table, and the findings."""
    console.print(heading(report))
    table = Table("", "", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(report.summary):
        table.add_row(*row)
    console.print(table)
    for word, text in findings(report):
        console.print(f"{word:10}{text}")


def heading(report: UsageReport) -> str:
    """What was watched, and for how long."""
    summary = report.summary
    is_hidden = not summary.gpus and report.command is None and report.absence is not Absence.CPU_RUN
    names = ", ".join(dict.fromkeys(gpu.record.gpu.name for gpu in summary.gpus))
    names = names or ("a GPU" if is_hidden else "CPU")
    if len(summary.gpus) > 1:
        names = f"{len(summary.gpus)} x {names}"
    elif report.command and summary.gpus:
        names = f"GPU {summary.gpus[0].record.prefix[3:]}, {names}"  # of those of the machine
    program = shorten(report.command or "this run", 70, placeholder=" ...")
    what = "since it first used a GPU" if report.command else "training, without warm-up and evaluation"
    return f"{names}, {program}: {what if summary.measured else 'all'}; {duration(summary.seconds)} in all"


def rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    """Label, unit and a cell for each of COLUMNS, for each metric of the host and of the GPU; of several
    GPUs, how busy each was."""
    is_single = len(summary.gpus) == 1
    found = [
        (each, each.label.replace("GPU", _name(gpu, summary), 1))
        for gpu in summary.gpus
        for name, each in gpu.statistics.items()
        if (each.unit and is_single) or name == "gpu_busy"
    ]
    for each, label in (*found, *((each, each.label) for each in summary.host.values())):
        values = (each.mean, each.p50, each.p95, each.max)
        shares = ("" if share is None else _percent(share) for share in (each.at_zero, each.above_90))
        unit = "" if each.unit == label else each.unit  # images/s is its own label
        yield label, unit, *(_number(value) for value in values), *shares


def findings(report: UsageReport) -> Iterator[tuple[str, str]]:
    """The lines below the table and the word that each begins with: verdict, evidence, troubles, advice."""
    summary = report.summary
    yield "verdict", headline(report)
    yield from (("", line) for line in _evidence(report))
    for gpu in summary.gpus:
        yield from (("trouble", f"{_name(gpu, summary)} {line}") for line in _troubles(gpu))
    if summary.kwh is not None:
        rate = f"{summary.images_per_joule:.3g} images/J, " if summary.images_per_joule else ""
        sources = dict.fromkeys(gpu.energy_source.text for gpu in summary.gpus if gpu.energy_source)
        yield "energy", f"{rate}{summary.kwh:.4g} kWh in all (by {', '.join(sources)})"
    elif any(gpu.kwh is not None for gpu in summary.gpus):
        yield "energy", "withheld: it is not known for every GPU of the job"
    if summary.failure:
        yield "trouble", f"the monitor ended early: {summary.failure}"
    yield from (("try", line) for line in report.diagnosis.advice)


def _evidence(report: UsageReport) -> Iterator[str]:
    """The figures that the verdict rests on."""
    summary, host = report.summary, report.summary.host
    if report.absence:
        yield report.absence.text + (f" ({report.absence_detail})" if report.absence_detail else "")
    if report.absence is not Absence.CPU_RUN and summary.data_wait is not None:
        data, device = _percent(summary.data_wait, 1), _percent(summary.device_wait or 0.0, 1)
        yield f"the GPU waits for data {data} of the time, the host for the GPU {device}"
    elif report.diagnosis.is_guess:
        yield "a guess from the use of GPU and CPU: the program does not report its waits"
    if report.judged:
        yield from _evidence_of(report.judged)
    busy = [(mean, _name(gpu, summary)) for gpu in summary.gpus if (mean := gpu.mean("gpu_busy")) is not None]
    if len(busy) > 1:  # the GPUs of one job wait for the slowest
        (low, first), (high, last) = min(busy), max(busy)
        yield f"GPU busy from {low:.0f} % ({first}) to {high:.0f} % ({last})"
    if "cpu" in host:
        yield f"the program keeps {host['cpu'].mean:.1f} of {summary.cores:g} CPU cores busy"
    if summary.other_cores:
        yield f"other programs keep {summary.other_cores:.1f} cores busy"


def _evidence_of(gpu: GpuSummary) -> Iterator[str]:
    known, figures = gpu.record.gpu, gpu.statistics
    if busy := figures.get("gpu_busy"):
        none, most = _percent(busy.at_zero or 0.0), _percent(busy.above_90 or 0.0)
        samples = f"none in {none} of the samples, over 90 % in {most}"
        yield f"some kernel was running {busy.mean:.0f} % of the time ({samples})"
    names = ("sm_active", "tensor_active", "dram_bandwidth", "jpeg")
    if found := [figures[name] for name in names if gpu.mean(name)]:
        yield ", ".join(f"{each.label.removeprefix('GPU ')} {each.mean:.0f} %" for each in found)
    if (watts := gpu.mean("power")) is not None:
        yield f"{watts:.0f} W" + (f" of {known.power_limit:.0f} W allowed" if known.power_limit else "")
    if (clock := gpu.mean("sm_clock")) is not None and known.max_sm_clock:
        state = f", mostly P{figures['performance_state'].p50:.0f}" if "performance_state" in figures else ""
        yield f"SM clock {clock:,.0f} of at most {known.max_sm_clock:,.0f} MHz{state}"
    if "pcie_generation" in figures and "pcie_width" in figures and known.max_pcie_width:
        link = f"{figures['pcie_generation'].max:.0f} x{figures['pcie_width'].max:.0f}"
        yield f"PCIe {link}, at most {known.max_pcie_generation} x{known.max_pcie_width}"
    if gpu.record.other_processes:
        others = f"{gpu.record.other_processes} at once, with {gpu.record.other_gib:.1f} GiB"
        yield f"processes of other programs on this GPU: {others}"
    by_reason: dict[str, list[str]] = {}
    for name, why in gpu.record.missing.items():
        by_reason.setdefault(why, []).append(name)
    for why, missing in by_reason.items():
        yield f"missing: {', '.join(missing)} ({why})"


def _troubles(gpu: GpuSummary) -> Iterator[str]:
    for reason, share in gpu.throttling.items():
        yield f"{reason.text} {_percent(share)} of the time"
    for name, count in gpu.record.errors.items():
        yield f"answered {name} {count} times"
    if gpu.record.lost:
        yield f"stopped answering: {gpu.record.lost}"


def _name(gpu: GpuSummary, summary: Summary) -> str:
    return "GPU" if len(summary.gpus) == 1 else f"GPU {gpu.record.prefix.removeprefix('gpu')}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
