"""The monitor beside a run: it samples GPUs and host while the loop trains, and reports when the run ends.

Nothing here can harm the run: what fails costs one line, and the run continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch

from fastae.monitor.diagnosis import diagnose
from fastae.monitor.files import write_report
from fastae.monitor.host import HostReader
from fastae.monitor.nvml import Device, gpu_of_cuda
from fastae.monitor.poller import Poller
from fastae.monitor.profiler import PhaseRanges
from fastae.monitor.recording import Absence, Phase, Recording
from fastae.monitor.summary import RunInfo, UsageReport, summarize
from fastae.monitor.text import headline
from fastae.utils.console import log, printable
from fastae.utils.limits import local_ranks, usable_cores


def local_gpus(device: torch.device, ranks: int = 1) -> list[str]:
    """The UUIDs, without prefix, of a run's GPUs on this machine: that of `device` alone, or those of all
    local ranks if several `ranks` share the run, as torchrun starts them; none for a CPU."""
    if device.type != "cuda":
        return []
    devices = range(local_ranks()) if ranks > 1 else [device.index or 0]
    return [str(torch.cuda.get_device_properties(each).uuid) for each in devices]


class Monitor(AbstractContextManager):
    """Samples while the block runs, then writes the report to `folder` and prints one line.

    `hz`: samples per second, 0 for none. `gpus`: as from `local_gpus`. It also marks the phases as NVTX
    ranges, whatever `hz` is. Used as a `Poller`: `enter`, `record`, `means`.
    """

    def __init__(
        self, folder: Path, hz: float, gpus: list[str], info: RunInfo, library: Any = pynvml
    ) -> None:
        self._folder, self._hz, self._uuids, self._info, self._library = folder, hz, gpus, info, library
        self._ranges = PhaseRanges()
        self._poller: Poller | None = None

    def enter(self, phase: Phase) -> None:
        self._ranges.enter(phase)
        if self._poller:
            self._poller.enter(phase)

    def record(self, images: float, seconds: float, data_wait: float, device_wait: float) -> None:
        if self._poller and self._info.at_once == 1:  # others' turns are in the seconds
            self._poller.record(images, seconds, data_wait, device_wait)

    def means(self) -> dict[str, float]:
        return self._poller.means() if self._poller else {}

    def __enter__(self) -> Monitor:
        with self._harmless():
            if self._hz:
                self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._ranges.enter(None)
        with self._harmless():
            if self._poller:
                self._poller.stop()
                if kind is None or (self._folder / "config.json").exists():  # else it has not begun
                    self._report(self._poller.recording())

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the run matters more than its report
            log(f"monitor   no GPU report: {error}")

    def _start(self) -> None:
        # In a shared run the processes of the other local ranks are torchrun's children as well.
        is_shared = self._info.ranks > 1
        host = HostReader(os.getppid() if is_shared else os.getpid(), children=is_shared)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")

        def find_gpus(library: Any) -> list[Device | None]:
            return [gpu_of_cuda(library, uuid, visible) for uuid in self._uuids]

        absence = Absence.NOT_SHOWN if self._uuids else Absence.CPU_RUN
        poller = Poller(host, self._hz, self._library, find_gpus if self._uuids else None, absence)
        poller.start()
        self._poller = poller

    def _report(self, recording: Recording) -> None:
        # Of runs that take turns none has an energy of its own.
        gpus = 0 if self._info.at_once > 1 else self._info.ranks if self._uuids else None
        summary = summarize(recording, usable_cores(), gpus)
        diagnosis = diagnose(summary, self._info)
        report = UsageReport(None, summary, diagnosis, recording.absence, recording.absence_detail)
        line = headline(report)
        write_report(report, recording, self._folder, printable(f"{self._folder.name}: {line}"))
        log(f"usage     {line}; table and plot: fastae gpu {self._folder}")
