"""A run under watch: the sampler beside its loop, and the report when it ends.

Nothing here can harm the run: what fails is said in one line, and the run goes on.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from fastae.console import console, say
from fastae.errors import FastaeError
from fastae.monitor.diagnosis import RunInfo
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import Gpu, close_nvml, gpu_by_uuid, open_nvml, visible_gpus
from fastae.monitor.poller import Poller
from fastae.monitor.report import PLOT, REPORT, SAMPLES, make_report, write_report
from fastae.monitor.text import show_report

ON_CPU = "the run is on the CPU"


class Monitor(AbstractContextManager):
    """Samples while the block runs, then prints the report and writes it to `folder`.

    `uuid`: the GPU that the run uses, as NVML writes it, or None where it uses none. `hz`: samples a
    second, 0 for no sampler at all.
    """

    def __init__(self, folder: Path, hz: float, uuid: str | None, info: RunInfo) -> None:
        self._folder = folder
        self._hz = hz
        self._uuid = uuid
        self._info = info
        self._poller: Poller | None = None
        self._library: Any = None
        self._note = ""

    def enter(self, phase: str) -> None:
        if self._poller:
            self._poller.enter(phase)

    def record(self, images: float, seconds: float, wait_share: float) -> None:
        if self._poller:
            self._poller.record(images, seconds, wait_share)

    def means(self) -> dict[str, float]:
        """For TensorBoard: the means of GPU and host columns since the last call."""
        return self._poller.means() if self._poller else {}

    def __enter__(self) -> Monitor:
        if self._hz:
            try:
                host = HostReader(os.getpid())
                self._poller = Poller([GpuReader(self._library, gpu) for gpu in self._find()], host, self._hz)
                self._poller.start()
            except Exception as error:  # the run matters more than its report
                self._poller = None
                say(f"watching  no GPU report: {error}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._poller:
            try:
                self._poller.stop()
                if kind is None or self._folder.is_dir():  # else the run did not come into being
                    self._report(self._poller)
            except Exception as failure:  # the run matters more than its report
                say(f"watching  no GPU report: {failure}")
        if self._library:
            with suppress(Exception):
                close_nvml(self._library)

    def _find(self) -> list[Gpu]:
        """The run's GPU; none, and a note that says why, where there is none to be seen."""
        if self._uuid is None:
            self._note = ON_CPU
            return []
        try:
            self._library = open_nvml()
        except FastaeError as error:
            self._note = str(error)
            return []
        # A MIG instance may go by another UUID in CUDA than in NVML.
        gpu = gpu_by_uuid(self._library, self._uuid)
        found = [gpu] if gpu else visible_gpus(self._library, os.environ.get("CUDA_VISIBLE_DEVICES"))[:1]
        self._note = "" if found else "NVML does not show the run's GPU"
        return found

    def _report(self, poller: Poller) -> None:
        recording = poller.recording()
        report = make_report(recording, "this run", self._note, self._info)
        show_report(report, console)
        write_report(report, recording, self._folder)
        say(f"report    {self._folder / PLOT}, {SAMPLES}, {REPORT}; again: fastae gpu {self._folder}")
