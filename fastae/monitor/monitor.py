"""The monitor beside a run: it samples GPUs and host while the loop trains, and reports when the run ends.

Nothing here can harm the run: what fails costs one line, and the run continues.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import write_report
from fastae.monitor.gpu_reader import GpuReader
from fastae.monitor.host import HostReader, usable_cores
from fastae.monitor.nvml import NvmlError, close_nvml, gpu_of_cuda, open_nvml
from fastae.monitor.poller import Poller
from fastae.monitor.profiler import PhaseRanges
from fastae.monitor.recording import Absence, Phase
from fastae.monitor.summary import RunInfo, UsageReport, summarize
from fastae.monitor.text import headline
from fastae.utils.console import say


def local_gpus(device: torch.device, ranks: int = 1) -> list[str]:
    """The UUIDs, without prefix, of a run's GPUs on this machine: that of `device` alone, or those of all
    local ranks if several `ranks` share the run, as torchrun starts them; none for a CPU."""
    if device.type != "cuda":
        return []
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    devices = range(local) if ranks > 1 else [device.index or 0]
    return [str(torch.cuda.get_device_properties(each).uuid) for each in devices]


class Monitor(AbstractContextManager):
    """Samples while the block runs, then writes the report to `folder` and prints one line.

    `hz`: samples per second, 0 for none. `gpus`: as from `local_gpus`. It also marks the phases as NVTX
    ranges, whatever `hz` is.
    """

    def __init__(self, folder: Path, hz: float, gpus: list[str], info: RunInfo) -> None:
        self._folder = folder
        self._hz = hz
        self._uuids = gpus
        self._info = info
        self._ranges = PhaseRanges()
        self._poller: Poller | None = None
        self._library: Any = None
        self._absence: Absence | None = None
        self._detail = ""

    def enter(self, phase: Phase) -> None:
        """What follows belongs to this phase of the run."""
        self._ranges.enter(phase)
        if self._poller:
            self._poller.enter(phase)

    def record(
        self, images: float, seconds: float, data_wait_seconds: float, device_wait_seconds: float
    ) -> None:
        """The loop's figures since the last call: images trained on, seconds in all, seconds of the host in
        `next()` of the loader, and seconds in which it was blocked until the device was done."""
        if self._poller:
            self._poller.record(images, seconds, data_wait_seconds, device_wait_seconds)

    def means(self) -> dict[str, float]:
        """For TensorBoard: the means of GPU and host columns since the last call."""
        return self._poller.means() if self._poller else {}

    def __enter__(self) -> Monitor:
        if self._hz:
            try:
                self._start()
            except Exception as error:  # the run matters more than its report
                self._poller = None
                say(f"monitor   no GPU report: {error}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._ranges.enter(None)
        try:
            if self._poller is None or self._poller.stop():
                self._close()
            has_begun = kind is None or (self._folder / "config.json").exists()
            if self._poller and has_begun:
                self._report(self._poller)
        except Exception as failure:  # the run matters more than its report
            say(f"monitor   no GPU report: {failure}")

    def _start(self) -> None:
        # Of a shared run, the processes of the other local ranks are torchrun's children as well.
        is_shared = self._info.ranks > 1
        host = HostReader(os.getppid() if is_shared else os.getpid(), children=is_shared)
        poller = Poller(host, self._find_gpus(host), self._hz)
        poller.start()
        self._poller = poller

    def _find_gpus(self, host: HostReader) -> list[GpuReader]:
        if not self._uuids:
            self._absence = Absence.CPU_RUN
            return []
        try:
            self._library = open_nvml()
        except NvmlError as error:
            self._absence, self._detail = error.absence, error.detail
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        found = [gpu_of_cuda(self._library, uuid, visible) for uuid in self._uuids]
        self._absence = Absence.NOT_SHOWN if None in found else None
        return [
            GpuReader(self._library, device, f"gpu{place}", host.is_ours)
            for place, device in enumerate(found)
            if device is not None
        ]

    def _close(self) -> None:
        if self._library:
            close_nvml(self._library)
            self._library = None

    def _report(self, poller: Poller) -> None:
        recording = poller.recording()
        summary = summarize(recording, usable_cores(), self._info.ranks if self._uuids else None)
        diagnosis = diagnose(summary, self._info)
        report = UsageReport(None, summary, diagnosis, self._absence, self._detail)
        line = headline(report)
        write_report(report, recording, self._folder, f"{self._folder.name}: {line}")
        say(f"usage     {line}; table and plot: fastae gpu {self._folder}")
