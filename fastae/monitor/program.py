"""`fastae gpu -- COMMAND ...`: another program run under the same sampler, and reported on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pynvml

from fastae.console import HarmlessConsole
from fastae.errors import FastaeError
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import close_nvml, open_nvml, visible_gpus
from fastae.monitor.poller import Poller, Recording
from fastae.monitor.report import UsageReport, make_report, write_report
from fastae.monitor.text import show_report


def watch_program(command: Sequence[str], hz: float, out: Path | None, library: Any = pynvml) -> int:
    """Runs it, prints the report on stderr, which leaves stdout to the program, and returns its exit code.

    A program that a signal ended counts as 128 + the signal, as in a shell. `out`: a folder for gpu.json,
    gpu.csv and gpu.png. Raises FastaeError where there is no driver or GPU, or the program cannot start.
    """
    library = open_nvml(library)
    try:
        gpus = visible_gpus(library, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if not gpus:
            raise FastaeError("CUDA_VISIBLE_DEVICES names no GPU that the NVIDIA driver shows")
        if out:
            _make(out)
        process = _start(command)
        readers = [GpuReader(library, gpu) for gpu in gpus]
        poller = Poller(readers, HostReader(process.pid, children=True), hz)
        poller.start()
        code = _wait(process)
        poller.stop()
        recording = poller.recording()
    finally:
        close_nvml(library)
    report = make_report(recording, shlex.join(command))
    show_report(report, HarmlessConsole(stderr=True))
    if out:
        _write(report, recording, out)
    return code if code >= 0 else 128 - code


def _start(command: Sequence[str]) -> subprocess.Popen:
    try:
        return subprocess.Popen(command)
    except OSError as error:
        raise FastaeError(f"cannot start {command[0]!r}: {error.strerror or error}") from None


def _wait(process: subprocess.Popen) -> int:
    """Waits for its end. Ctrl-C reaches it from the terminal by itself; SIGTERM is passed on."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastaeError(f"--out {str(folder)!r} cannot be made: {error.strerror or error}") from None


def _write(report: UsageReport, recording: Recording, folder: Path) -> None:
    try:
        write_report(report, recording, folder)
    except OSError as error:
        raise FastaeError(f"cannot write to --out {str(folder)!r}: {error.strerror or error}") from None
