"""`fastae gpu`: a finished run's report, or another program run under the monitor and reported on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pynvml

from fastae.errors import FastaeError
from fastae.monitor.compatibility import has_nvidia_card
from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import read_report, report_json, write_report
from fastae.monitor.host import HostReader, sees_all_processes
from fastae.monitor.nvml import visible_gpus
from fastae.monitor.poller import Poller
from fastae.monitor.recording import Absence, Phase, Recording, Span
from fastae.monitor.summary import Diagnosis, UsageReport, Verdict, summarize
from fastae.monitor.text import headline, show_report
from fastae.utils.console import HarmlessConsole, console
from fastae.utils.limits import usable_cores

BLIND = (Absence.NVML_FAILED, Absence.NO_NVML_IN_WSL)
NOT_ATTRIBUTED = "CUDA_VISIBLE_DEVICES with one GPU: which of these the program uses is not known"
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
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastaeError(f"--out {str(out)!r} cannot be made: {error.strerror or error}") from None
    poller: Poller | Exception
    with _forwarding() as attach:  # to the end: no signal that comes late changes the exit code
        try:
            process = subprocess.Popen(command)
        except OSError as error:
            raise FastaeError(f"cannot start {command[0]!r}: {error.strerror or error}") from None
        attach(process)
        try:
            poller = _watch(process.pid, hz, library)
        except Exception as error:
            poller = error
        code = process.wait()
        errors = HarmlessConsole(stderr=True)
        try:
            if isinstance(poller, Exception):
                raise poller
            poller.stop()
            report, recording = _report_on(poller.recording(), shlex.join(command))
            show_report(report, errors)
            if out:
                write_report(report, recording, out, headline(report))
        except Exception as error:  # the exit code is the program's
            with suppress(OSError):
                errors.print(f"fastae: no GPU report: {error}")
    return code if code >= 0 else 128 - code


def _watch(pid: int, hz: float, library: Any) -> Poller:
    """Samples a process, all that descend from it, and every GPU that they may use, from the beginning."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    host = HostReader(pid, children=True)
    poller = Poller(host, hz, library, lambda nvml: visible_gpus(nvml, visible), Absence.NONE_VISIBLE)
    poller.start()
    return poller


def _report_on(recording: Recording, command: str) -> tuple[UsageReport, Recording]:
    """The report on the GPUs on which NVML saw a process of the program, from when one was first busy, and
    their recording."""
    held = tuple(record for record in recording.gpus if record.ours)
    absence = recording.absence
    if recording.gpus and not held:
        is_known = sees_all_processes() and all(record.ours is False for record in recording.gpus)
        absence = Absence.NOT_USED if is_known else Absence.NOT_ATTRIBUTED
        held = () if is_known else recording.gpus
    others = tuple(f"{record.prefix}/" for record in recording.gpus if record not in held)
    columns = {name: each for name, each in recording.columns.items() if not name.startswith(others)}
    busy = [recording.columns[f"{record.prefix}/gpu_busy"] for record in held]
    used = [column.times[column.values > 0].min(initial=recording.seconds) for column in busy]
    spans = (Span(Phase.BEFORE, 0.0), Span(Phase.TRAIN, min(used, default=recording.seconds)))
    recording = replace(recording, gpus=held, columns=columns, spans=spans)
    is_attributed = absence is not Absence.NOT_ATTRIBUTED or len(held) == 1
    summary = summarize(recording, usable_cores(), len(held) if is_attributed else 0)
    if not is_attributed:
        diagnosis = Diagnosis(Verdict.UNKNOWN, (NOT_ATTRIBUTED,))
    elif absence in BLIND or (absence is Absence.NO_NVML and has_nvidia_card()):
        diagnosis = Diagnosis(Verdict.UNKNOWN)  # it may well use a GPU
    else:
        diagnosis = diagnose(summary)
    return UsageReport(command, summary, diagnosis, absence, recording.absence_detail), recording


@contextmanager
def _forwarding() -> Iterator[Callable[[subprocess.Popen], None]]:
    """While the block runs, signals go to the process that it attaches, unless they were ignored before.

    Ctrl-C reaches that from the terminal by itself.
    """
    children: list[subprocess.Popen] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            return
        if children:
            children[0].send_signal(number)
        else:
            early.append(number)

    def attach(process: subprocess.Popen) -> None:
        children.append(process)
        for number in early:
            process.send_signal(number)

    before = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        yield attach
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
