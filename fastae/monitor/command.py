"""`fastae gpu`: a finished run's report, or another program run under the monitor and reported on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pynvml

from fastae.errors import FastaeError
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report, report_json, write_report
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader, sees_all_processes, usable_cores
from fastae.monitor.nvml import Device, NvmlError, close_nvml, open_nvml, visible_gpus
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Absence, Recording
from fastae.monitor.summary import UsageReport, summarize
from fastae.monitor.text import headline, show_report
from fastae.utils.console import HarmlessConsole, console

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def gpu_command(
    run: Path | None, command: Sequence[str] | None, *, as_json: bool, out: Path | None, hz: float
) -> int:
    """Returns the exit code. Raises FastaeError for options that do not belong together."""
    if not 0 < hz <= 1000:
        raise FastaeError(f"--gpu-sample-hz must be above 0, and at most 1000, not {hz:g}")
    if command is not None:
        if not command or run or as_json:
            raise FastaeError("after -- comes a COMMAND, with --out DIR for files, and nothing else")
        return monitor_program(command, hz, out)
    if out:
        raise FastaeError("--out is for the report on a COMMAND: fastae gpu --out DIR -- COMMAND")
    if run is None:
        raise FastaeError("name a RUN, or a COMMAND after --; to watch the GPUs live, use nvitop")
    report = read_report(run)
    if as_json:
        print(report_json(report))  # not the file as it is, which may hold anything behind what was read
    else:
        show_report(report, console)
    return 0


def monitor_program(command: Sequence[str], hz: float, out: Path | None, library: Any = pynvml) -> int:
    """Runs it, prints the report on stderr, which leaves stdout to the program, and returns its exit code,
    whatever happens to the report. A program that a signal ended counts as 128 + the signal, as in a shell.

    `out`: a folder for gpu.json, gpu.csv and gpu.png. Raises FastaeError if it cannot be made, or the program
    cannot start.
    """
    if out:
        _make(out)
    with _forwarding() as children:
        process = _start(command)
        children.append(process)
        try:
            monitor, trouble = _ProgramMonitor(process.pid, hz, library), ""
        except (Exception, KeyboardInterrupt) as error:
            monitor, trouble = None, str(error)
        code = _wait(process)
    errors = HarmlessConsole(stderr=True)
    try:
        if monitor is None:
            raise FastaeError(trouble)
        report, recording = monitor.finish(shlex.join(command))
        show_report(report, errors)
        if out:
            write_report(report, recording, out, headline(report))
    except Exception as error:  # the exit code is the program's
        with suppress(OSError):
            errors.print(f"fastae: no GPU report: {error}")
    return code if code >= 0 else 128 - code


class _ProgramMonitor:
    """Samples a process, all that descend from it, and every GPU that they may use, from the beginning."""

    def __init__(self, pid: int, hz: float, library: Any) -> None:
        self._library = library
        self._absence: Absence | None = None
        self._detail = ""
        host = HostReader(pid, children=True)
        devices = enumerate(self._find_gpus())
        gpus = [GpuReader(library, device, f"gpu{place}", host.is_ours) for place, device in devices]
        self._poller = Poller(host, gpus, hz)
        self._poller.start()

    def finish(self, command: str) -> tuple[UsageReport, Recording]:
        """Ends it. The report is on the GPUs on which NVML saw a process of the program."""
        if self._poller.stop() and self._library:
            close_nvml(self._library)
        recording = self._poller.recording()
        held = tuple(record for record in recording.gpus if record.ours)
        if recording.gpus and not held:
            is_known = sees_all_processes() and all(record.ours is False for record in recording.gpus)
            self._absence = Absence.NOT_USED if is_known else Absence.NOT_ATTRIBUTED
            held = () if is_known else recording.gpus
        others = tuple(f"{record.prefix}/" for record in recording.gpus if record not in held)
        columns = {name: each for name, each in recording.columns.items() if not name.startswith(others)}
        recording = replace(recording, gpus=held, columns=columns)
        is_known = self._absence is not Absence.NOT_ATTRIBUTED or len(held) == 1
        summary = summarize(recording, usable_cores(), len(held) if is_known else 0)
        diagnosis = diagnose(summary, judge=is_known)
        return UsageReport(command, summary, diagnosis, self._absence, self._detail), recording

    def _find_gpus(self) -> list[Device]:
        try:
            open_nvml(self._library)
        except NvmlError as error:
            self._library, self._absence, self._detail = None, error.absence, error.detail
            return []
        found = visible_gpus(self._library, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._absence = None if found else Absence.NONE_VISIBLE
        return found


def _start(command: Sequence[str]) -> subprocess.Popen:
    try:
        return subprocess.Popen(command)
    except OSError as error:
        raise FastaeError(f"cannot start {command[0]!r}: {error.strerror or error}") from None


def _wait(process: subprocess.Popen) -> int:
    """Waits for its end. Ctrl-C reaches it from the terminal by itself."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


@contextmanager
def _forwarding() -> Iterator[list[subprocess.Popen]]:
    """While the block runs, signals go to the processes in the list, unless they were ignored before."""
    children: list[subprocess.Popen] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in children:
            process.send_signal(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastaeError(f"--out {str(folder)!r} cannot be made: {error.strerror or error}") from None
