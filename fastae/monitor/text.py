"""The text of a report: one line after a run, and a table with evidence and advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from fastae.device.nvml import Absence
from fastae.flops import rate_text
from fastae.monitor.diagnosis import THROTTLED_FROM
from fastae.monitor.recording import METRICS, Phase, Throttle
from fastae.monitor.summary import GpuSummary, Summary, UsageReport
from fastae.utils.console import duration

COLUMNS = ("mean", "p5", "p50", "p95", "max")

SM_COUNTERS = "SM counters (they need Hopper or newer)"
NAMES = {
    **dict.fromkeys(("sm_active", "tensor_active", "fp32_active", "dram_bandwidth"), SM_COUNTERS),
    **dict.fromkeys((f"throttled_{reason}" for reason in Throttle), "the reasons for lowered clocks"),
    **dict.fromkeys(("ecc_corrected", "ecc_uncorrected"), "ECC errors"),
}
"""The names of metrics in lists of missing or failed ones, if they differ from their labels."""


def headline(report: UsageReport) -> str:
    """The verdict and the figures behind it, in one line."""
    summary, gpu = report.summary, _main(report.summary)
    figures = []
    if gpu and (busy := gpu.mean("gpu_busy")) is not None:
        figures.append(f"{_name(gpu, summary)} busy {busy:.0f} %")
    if not summary.gpus and "cpu" in summary.host:
        figures.append(f"{summary.host['cpu'].mean:.1f} of {summary.cores.usable:g} cores")
    if summary.data_wait is not None:
        figures.append(f"waiting for data {_percent(summary.data_wait, 1)}")
    return report.diagnosis.verdict.text + (f" ({', '.join(figures)})" if figures else "")


def show_sessions(reports: Sequence[UsageReport], console: Console) -> None:
    """Prints the last session of a run (heading, table and findings), and a line about earlier sessions."""
    report = reports[-1]
    console.print(heading(report))
    table = Table("", "", box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(report.summary):
        table.add_row(*row)
    console.print(table)
    for word, text in findings(report):
        console.print(f"{word:10}{text}")
    if len(reports) > 1:
        console.print(f"{'sessions':10}{_of_sessions(reports)}")


def heading(report: UsageReport) -> str:
    """The devices that were watched, for how long, and which part of it the figures describe."""
    summary = report.summary
    names = ", ".join(dict.fromkeys(gpu.record.gpu.name for gpu in summary.gpus))
    if len(summary.gpus) > 1:
        names = f"{len(summary.gpus)} x {names}"
    elif not summary.gpus:
        names = "CPU" if report.absence is Absence.CPU_RUN else "a GPU that NVML does not show"
    length, training = duration(summary.seconds), duration(summary.phases.get(Phase.TRAIN, 0.0))
    what = f"{training} of training in a session of {length}"
    if not summary.measured:
        what = f"a session of {length}, too short to separate its training"
    return f"{names}: {what}; {summary.hz:.1f} samples/s"


def rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    """Yields the rows of the table: a label, a unit, and a cell for each of COLUMNS.

    There is a row for each metric of the host and of the main rank's GPU. Other GPUs have one row each.
    """
    found = [
        (each, each.label.replace("GPU", _name(gpu, summary), 1))
        for gpu in summary.gpus
        for name, each in gpu.statistics.items()
        if (each.unit and gpu is summary.gpus[0]) or name == "gpu_busy"
    ]
    for each, label in (*found, *((each, each.label) for each in summary.host.values())):
        unit = "" if each.unit == label else each.unit  # images/s is its own label
        yield label, unit, *map(_number, (each.mean, each.p5, each.p50, each.p95, each.max))


def findings(report: UsageReport) -> Iterator[tuple[str, str]]:
    """Yields the lines below the table, each with its first word: verdict, evidence, troubles and advice."""
    summary = report.summary
    yield "verdict", headline(report)
    yield from (("", line) for line in _evidence(report))
    yield from (("trouble", line) for line in troubles(summary))
    if summary.kwh is not None:
        rate = f"{summary.images_per_joule:.3g} images/J, " if summary.images_per_joule else ""
        is_counted = all(gpu.is_counted for gpu in summary.gpus)
        source = "the GPU's own counter" if is_counted else "the mean of sampled power"
        yield "energy", f"{rate}{summary.kwh:.4g} kWh in total (by {source})"
    elif any(gpu.kwh is not None for gpu in summary.gpus):
        yield "energy", "not shown: unknown for this run alone, or for some of its GPUs"
    yield from (("advice", line) for line in report.diagnosis.advice)


def troubles(summary: Summary) -> Iterator[str]:
    """Yields lines about faults of the hardware, or of reading it."""
    for gpu in summary.gpus:
        yield from (f"{_name(gpu, summary)} {line}" for line in _troubles(gpu))
    if summary.failure:
        yield f"the monitor ended early: {summary.failure}"


def _troubles(gpu: GpuSummary) -> Iterator[str]:
    if gpu.record.xids:
        numbers = ", ".join(map(str, gpu.record.xids))
        yield f"had XID {numbers}: see dmesg and NVIDIA's list of XID errors for the cause"
    if gpu.ecc_uncorrected:
        yield f"had {gpu.ecc_uncorrected:.0f} uncorrected ECC errors: its memory is failing"
    if gpu.ecc_corrected:
        yield f"had {gpu.ecc_corrected:.0f} corrected ECC errors"
    for reason, share in gpu.throttling.items():
        if share >= THROTTLED_FROM and reason not in (Throttle.POWER_CAP, Throttle.SET_CLOCKS):
            yield f"was {reason.text}, {_percent(share)} of the time"
    for metric, errors in gpu.record.errors.items():
        yield f"failed to answer: {_called(metric)}, " + ", ".join(f"{n} x {e}" for e, n in errors.items())
    if gpu.record.lost:
        yield f"stopped answering: {gpu.record.lost}"


def _of_sessions(reports: Sequence[UsageReport]) -> str:
    lengths = ", ".join(duration(report.summary.seconds) for report in reports)
    energies = [report.summary.kwh for report in reports if report.summary.kwh is not None]
    energy = f"; {sum(energies):.4g} kWh together" if len(energies) == len(reports) else ""
    return f"{len(reports)}, of {lengths}{energy}; the figures above are of the last one"


def _evidence(report: UsageReport) -> Iterator[str]:
    """Yields the evidence for the verdict that is not in the table."""
    summary, host, gpu = report.summary, report.summary.host, _main(report.summary)
    if report.absence and report.absence is not Absence.CPU_RUN:
        yield report.absence.text + (f" ({report.absence_detail})" if report.absence_detail else "")
    if summary.data_wait is not None and summary.device_wait is not None:
        data, device = _percent(summary.data_wait, 1), _percent(summary.device_wait, 1)
        yield f"the GPU waits for data {data} of the time, the host for the GPU {device}"
    if summary.tflops is not None:
        share = f", {_percent(summary.mfu, 1)} of the peak (MFU)" if summary.mfu is not None else ""
        yield f"the model computes {rate_text(1e12 * summary.tflops)}{share}"
    if summary.allocated_gib is not None and summary.reserved_gib is not None:
        total = f" of {gpu.record.gpu.memory_gib:.1f}" if gpu and gpu.record.gpu.memory_gib else ""
        used, reserved = summary.allocated_gib, summary.reserved_gib
        yield f"PyTorch used at most {used:.1f} GiB, and reserved {reserved:.1f}{total}"
    busy = [(mean, _name(gpu, summary)) for gpu in summary.gpus if (mean := gpu.mean("gpu_busy")) is not None]
    if len(busy) > 1:  # the GPUs of one job wait for the slowest
        (low, first), (high, last) = min(busy), max(busy)
        yield f"GPU busy from {low:.0f} % ({first}) to {high:.0f} % ({last})"
    if gpu:
        yield from _evidence_of(gpu)
    if "cpu" in host:
        physical = summary.cores.physical
        threads = f" ({physical:g} physical)" if physical < summary.cores.usable else ""
        yield f"the run keeps {host['cpu'].mean:.1f} of {summary.cores.usable:g} CPU cores{threads} busy"
    if summary.other_cores:
        yield f"other programs keep {summary.other_cores:.1f} cores busy"


def _evidence_of(gpu: GpuSummary) -> Iterator[str]:
    if (watts := gpu.mean("power")) is not None and (limit := gpu.record.gpu.power_limit):
        capped = gpu.throttling.get(Throttle.POWER_CAP, 0.0)
        often = f", at the limit {_percent(capped)} of the time" if capped >= THROTTLED_FROM else ""
        yield f"{watts:.0f} W of {limit:.0f} W allowed{often}"
    others = gpu.statistics.get("other_processes")
    if others and others.max:
        yield f"processes of other programs on this GPU: up to {others.max:.0f}"
    if missing := dict.fromkeys(_called(name) for name in gpu.record.missing if name != "xid"):
        yield f"not known for this GPU and driver: {', '.join(missing)}"


def _called(metric: str) -> str:
    """The name of a GPU's metric in a list."""
    known = METRICS.get(f"gpu/{metric}")
    return NAMES.get(metric) or (known.label.removeprefix("GPU ") if known else metric)


def _main(summary: Summary) -> GpuSummary | None:
    """The main rank's GPU."""
    return summary.gpus[0] if summary.gpus else None


def _name(gpu: GpuSummary, summary: Summary) -> str:
    return "GPU" if len(summary.gpus) == 1 else f"GPU {gpu.record.prefix.removeprefix('gpu')}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
