"""Shows a report as text: one line after a run, or a table with evidence and advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from fastae.device.gpu_reader import Throttle
from fastae.monitor.diagnosis import THROTTLED_FROM
from fastae.monitor.recording import SAMPLED, Phase
from fastae.monitor.summary import GpuSummary, Statistics, Summary, UsageReport
from fastae.utils.console import duration, rate_text

FIGURES = ("mean", "p5", "p50", "p95", "max")


def headline(report: UsageReport) -> str:
    """The verdict and the figures behind it, in one line."""
    summary, gpu = report.summary, report.summary.main_gpu
    figures = []
    if "gpu_busy" in gpu.statistics:
        figures.append(f"{gpu.record.name} busy {gpu.mean('gpu_busy'):.0f}%")
    if not summary.gpus and "cpu" in summary.host:
        figures.append(f"{summary.host['cpu'].mean:.1f} of {summary.cores.usable:g} cores")
    if summary.data_wait is not None:
        figures.append(f"waiting for data {_percent(summary.data_wait, 1)}")
    return report.diagnosis.verdict.text + (f" ({', '.join(figures)})" if figures else "")


def show_reports(reports: Sequence[UsageReport], console: Console, unreported: int = 0) -> None:
    """Prints the last part of a run (heading, table and findings), and a line about other parts.

    `unreported` is the number of the run's parts that have no report.
    """
    report = reports[-1]
    console.print(_heading(report))
    table = Table("", "", box=None, pad_edge=False)
    for column in FIGURES:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(report.summary):
        table.add_row(row.label, row.unit, *(_number(getattr(row, column)) for column in FIGURES))
    console.print(table)
    for word, text in findings(report):
        console.print(f"{word:10}{text}")
    if unreported:
        why = "killed, still running, or run with --gpu-sample-hz 0"
        console.print(f"{'parts':10}{unreported} of {len(reports) + unreported} have no report: {why}")
    if len(reports) > 1:
        console.print(f"{'parts':10}{_describe_parts(reports)}")


def _heading(report: UsageReport) -> str:
    """Returns the measured devices, the time that the figures describe, and the rate of samples."""
    summary = report.summary
    names = ", ".join(dict.fromkeys(gpu.record.gpu.name for gpu in summary.gpus))
    if len(summary.gpus) > 1:
        names = f"{len(summary.gpus)} x {names}"
    elif not summary.gpus:
        names = "a GPU that NVML does not show" if report.missing else "CPU"
    length, training = duration(summary.seconds), duration(summary.phases.get(Phase.TRAIN, 0.0))
    what = f"{training} of training in {length}"
    if not summary.measured:
        what = f"{length}, too few samples of the training alone"
    return f"{names}: {what}; {summary.hz:.1f} samples/s"


def _rows(summary: Summary) -> Iterator[Statistics]:
    """Yields the rows of the table: each metric of the main rank's GPU and of the host.

    Other GPUs have one row each.
    """
    for gpu in summary.gpus:
        for metric, statistics in gpu.statistics.items():
            if metric == "gpu_busy" or (statistics.unit and gpu is summary.main_gpu):
                yield statistics
    yield from summary.host.values()


def findings(report: UsageReport) -> Iterator[tuple[str, str]]:
    """Yields the lines below the table, each with its first word: verdict, evidence, troubles and advice."""
    summary = report.summary
    yield "verdict", headline(report)
    yield from (("", line) for line in _evidence(report))
    yield from (("trouble", line) for line in troubles(summary))
    if summary.headroom and summary.replayed and summary.images_per_second:
        reached = f"{summary.replayed:,.0f} instead of {summary.images_per_second:,.0f} images/s"
        yield "headroom", f"with replayed batches the loop reaches {reached}: {summary.headroom:.2f}x"
    if summary.kwh is not None:
        rate = f"{summary.images_per_joule:.3g} images/J, " if summary.images_per_joule else ""
        is_counted = all("energy" in gpu.growth for gpu in summary.gpus)
        source = "the GPU's own counter" if is_counted else "the mean of sampled power"
        yield "energy", f"{rate}{summary.kwh:.4g} kWh in total (by {source})"
    elif any(gpu.kwh is not None for gpu in summary.gpus):
        yield "energy", "not shown: it is unknown for this run alone, or for some of its GPUs"
    yield from (("advice", line) for line in report.diagnosis.advice)


def troubles(summary: Summary) -> Iterator[str]:
    """Yields lines about faults of the hardware, or of reading it."""
    for gpu in summary.gpus:
        yield from (f"{gpu.record.name} {line}" for line in _troubles(gpu))


def _troubles(gpu: GpuSummary) -> Iterator[str]:
    if gpu.record.xids:
        numbers = ", ".join(map(str, gpu.record.xids))
        yield f"had XID {numbers}: see dmesg and NVIDIA's list of XID errors for the cause"
    if uncorrected := gpu.growth.get("ecc_uncorrected"):
        yield f"had {uncorrected:.0f} uncorrected ECC errors (nvidia-smi -q -d ECC,ROW_REMAPPER shows more)"
    if corrected := gpu.growth.get("ecc_corrected"):
        yield f"had {corrected:.0f} corrected ECC errors"
    for reason in Throttle:
        share = gpu.throttled(reason)
        if share >= THROTTLED_FROM and reason is not Throttle.POWER_CAP:
            yield f"was {reason.text}, {_percent(share)} of the time"
    for query, errors in gpu.record.errors.items():
        yield f"failed to answer: {_words(query)}, " + ", ".join(f"{n} x {e}" for e, n in errors.items())
    if gpu.record.lost:
        yield f"stopped answering: {gpu.record.lost}"


def _describe_parts(reports: Sequence[UsageReport]) -> str:
    lengths = ", ".join(duration(report.summary.seconds) for report in reports)
    energies = [report.summary.kwh for report in reports if report.summary.kwh is not None]
    energy = f"; {sum(energies):.4g} kWh together" if len(energies) == len(reports) else ""
    return f"{len(reports)}, of {lengths}{energy}; the figures above are of the last one"


def _evidence(report: UsageReport) -> Iterator[str]:
    """Yields the evidence for the verdict that is not in the table."""
    summary, host, gpu = report.summary, report.summary.host, report.summary.main_gpu
    if report.missing:
        yield report.missing
    if summary.tflops is not None:
        share = f", {_percent(summary.mfu, 1)} of the peak (MFU)" if summary.mfu is not None else ""
        yield f"the model computes {rate_text(1e12 * summary.tflops)}{share}"
    if "power" in gpu.statistics and (limit := gpu.record.gpu.power_limit):
        capped = gpu.throttled(Throttle.POWER_CAP)
        often = f", at the limit {_percent(capped)} of the time (normal at full load)"
        often = often if capped >= THROTTLED_FROM else ""
        yield f"{gpu.mean('power'):.0f} W of {limit:.0f} W allowed{often}"
    others = gpu.statistics.get("other_processes")
    if others and others.max:
        yield f"processes of other programs on this GPU: up to {others.max:.0f}"
    width, most = gpu.statistics.get("pcie_width"), gpu.record.gpu.max_pcie_width
    # An idle link lowers its PCIe generation, but not its width.
    if width and most and width.max < most:
        yield f"{width.max:.0f} of {most} PCIe lanes (usual in a virtual machine; else reseat the card)"
    if gpu.record.missing:
        yield f"not available on this GPU and driver: {', '.join(map(_words, gpu.record.missing))}"
    if "cpu" in host:
        physical = summary.cores.physical
        threads = f" ({physical:g} physical)" if physical < summary.cores.usable else ""
        yield f"the run keeps {host['cpu'].mean:.1f} of {summary.cores.usable:g} CPU cores{threads} busy"


def _words(query: str) -> str:
    """Returns the words for a query of a GPU, which may be a metric."""
    return SAMPLED.get(f"gpu/{query}", (query, ""))[0].removeprefix("GPU ")


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
