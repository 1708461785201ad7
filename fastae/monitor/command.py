"""What `fastae gpu` does: a finished run's report, the machine's GPUs now, or another program watched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastae.console import console
from fastae.errors import FastaeError


def gpu_command(
    run: Path | None, command: Sequence[str] | None, *, once: bool, as_json: bool, out: Path | None, hz: float
) -> int:
    """Returns the exit code. Raises FastaeError for options that do not belong together."""
    if not 0 < hz <= 1000:
        raise FastaeError(f"--gpu-sample-hz must be above 0, and at most 1000, not {hz:g}")
    if command is not None:
        if not command or run or once or as_json:
            raise FastaeError("after -- comes a COMMAND, with --out DIR for files, and nothing else")
        from fastae.monitor.program import watch_program

        return watch_program(command, hz, out)
    if out:
        raise FastaeError("--out is for the report on a COMMAND: fastae gpu --out DIR -- COMMAND")
    if run:
        _show_run(run, as_json)
        return 0
    if as_json and not once:
        raise FastaeError("--json needs a RUN, or --once")
    from fastae.monitor.live import show_gpus

    show_gpus(once=once, as_json=as_json, hz=hz)
    return 0


def _show_run(run: Path, as_json: bool) -> None:
    from fastae.monitor.report import read_report, report_json
    from fastae.monitor.text import show_report

    report = read_report(run)
    if as_json:
        print(report_json(report))  # not the file as it is, which may hold anything behind what was read
    else:
        show_report(report, console)
